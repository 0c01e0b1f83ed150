//! The kubeconfig that `kube-tls-proxy kubeconfig --direct` makes for a passthrough host of the proxy.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::kubectl::Kubectl;
use crate::process::run;
use crate::suite::{Route, Suite, on_both, shared};

/// The kubeconfig of an administrator with a client certificate, as kubeadm writes it.
fn admin(suite: &Suite) -> Value {
    let data = |file: &Path| BASE64_STANDARD.encode(fs::read(file).unwrap());
    let file = |name: &str| data(&suite.fixture.scratch().join(name));
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "kubernetes", "cluster": {
            "server": suite.fixture.server(), "certificate-authority-data": data(Path::new(suite.fixture.ca())),
        }}],
        "users": [{ "name": "admin", "user": {
            "client-certificate-data": file("admin.crt"), "client-key-data": file("admin.key"),
        }}],
        "contexts": [{ "name": "admin@kubernetes", "context": {
            "cluster": "kubernetes", "user": "admin", "namespace": suite.fixture.namespace(),
        }}],
        "current-context": "admin@kubernetes",
    })
}

/// Two lines of an `admin.conf` change.
#[test]
fn direct_kubeconfig_keeps_the_certificate_of_admin_conf() {
    let Some(suite) = shared() else { return };
    let file = |name: &str| suite.fixture.scratch().join(name);
    let (admin_conf, direct) = (file("admin.conf"), file("direct.conf"));
    fs::write(&admin_conf, admin(&suite).to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
    command
        .args(["kubeconfig", "--direct"])
        .args(["--server", &suite.proxy.server().url])
        .args([Path::new("--from"), &admin_conf])
        .args([Path::new("--output"), &direct]);
    run(command, Vec::new(), STEP).ok();
    let [direct, passed] = on_both(|route| {
        let kubeconfig = match route {
            Route::Direct => &admin_conf,
            Route::Proxied => &direct,
        };
        let kubectl = Kubectl::new(&suite, route).with_kubeconfig(kubeconfig);
        let who = kubectl.run(&["auth", "whoami", "-o", "json"]).ok();
        // The rest is the time of the response.
        serde_json::from_str::<Value>(&who).unwrap()["status"].clone()
    });
    assert_eq!(direct, passed);
    assert_eq!(passed["userInfo"]["username"], "fixture", "{passed}");
    let groups = passed["userInfo"]["groups"].as_array().unwrap();
    assert!(groups.contains(&json!("system:masters")), "{passed}");
}

/// A port serves a terminated host beside the passthrough host.
#[test]
fn token_works_on_the_terminated_host_of_the_same_port() {
    let Some(suite) = shared() else { return };
    let kubectl = Kubectl::new(&suite, Route::Proxied)
        .with_server(suite.proxy.server())
        .with_user(json!({"token": suite.fixture.token()}));
    let who = kubectl.run(&["auth", "whoami"]).ok();
    assert!(who.contains("system:serviceaccount:suite:admin"), "{who}");
    kubectl.run(&["get", "pods"]).ok();
}

const STEP: Duration = Duration::from_secs(30);
