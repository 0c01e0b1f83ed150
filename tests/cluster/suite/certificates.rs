//! A user with a client certificate, through a proxy that is a front proxy.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kubectl::{Kubectl, STREAMINGS, assert_same};
use crate::process::Outcome;
use crate::proxy::Proxy;
use crate::suite::{Route, Suite, alone, on_both};

/// A proxy with the section `clientCertificates`.
fn front_proxy(suite: &Suite) -> Proxy {
    let fixture = &suite.fixture;
    let [certificate, key] = fixture.front_proxy_files();
    let config = json!({
        "clusters": [{
            "name": "test",
            "upstream": {"url": fixture.server(), "ca": fixture.ca()},
            "clientCertificates": {
                "ca": fixture.ca(),
                "frontProxy": {"certificate": certificate, "key": key},
            },
        }],
    });
    let file = fixture.scratch().join("front-proxy.yaml");
    fs::write(&file, config.to_string()).unwrap();
    suite
        .proxy
        .another(fixture, &["--config", file.to_str().unwrap()])
}

/// A kubeconfig for this user on each route.
fn kubeconfigs(suite: &Suite, proxy: &Proxy, user: &Value) -> [PathBuf; 2] {
    let fixture = &suite.fixture;
    let proxied = (proxy.server.as_str(), proxy.ca.display().to_string());
    let direct = (fixture.server(), fixture.ca().to_owned());
    [("direct", direct), ("proxied", proxied)].map(|(name, (server, ca))| {
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {"server": server, "certificate-authority": ca}}],
            "users": [{"name": "it", "user": user}],
            "contexts": [{"name": "it", "context": {
                "cluster": "it", "user": "it", "namespace": fixture.namespace(),
            }}],
            "current-context": "it",
        });
        let file = fixture.scratch().join(format!("certificate-{name}.json"));
        fs::write(&file, content.to_string()).unwrap();
        file
    })
}

/// Runs kubectl as this user on both routes.
fn both(suite: &Suite, files: &[PathBuf; 2], args: &[&str]) -> Outcome {
    let [direct, proxied] = on_both(|route| {
        let file = &files[usize::from(route == Route::Proxied)];
        let flag = ["--kubeconfig", file.to_str().unwrap()];
        Kubectl::new(suite, route).run(&[&flag[..], args].concat())
    });
    assert_same(direct, proxied)
}

/// The user that both routes show. The rest of the object has the time.
fn whoami(suite: &Suite, files: &[PathBuf; 2], more: &[&str]) -> Value {
    let shown = on_both(|route| {
        let file = &files[usize::from(route == Route::Proxied)];
        let flag = ["--kubeconfig", file.to_str().unwrap()];
        let args = ["auth", "whoami", "-o", "json"];
        let json = Kubectl::new(suite, route).run(&[&flag[..], more, &args].concat());
        let object: Value = serde_json::from_str(&json.ok()).unwrap();
        object["status"]["userInfo"].clone()
    });
    assert_eq!(shown[0], shown[1]);
    let [direct, _] = shown;
    direct
}

/// Cases 30, 31, 32, 36, 37. User, id, groups and the id of the credential are the same.
#[test]
fn whoami_shows_the_owner_of_the_certificate() {
    let Some(suite) = alone() else { return };
    let proxy = front_proxy(&suite);
    let [certificate, key] = suite.fixture.user_files();
    let user = json!({"client-certificate": certificate, "client-key": key});
    let files = kubeconfigs(&suite, &proxy, &user);
    let who = whoami(&suite, &files, &[]);
    assert_eq!(who["username"], "jane");
    assert_eq!(who["uid"], "7d1a");
    for part in ["certificate-users", "on call", "X509SHA256="] {
        assert!(who.to_string().contains(part), "{part} in {who}");
    }
    let other = suite.fixture.impersonated_user();
    let as_other = whoami(&suite, &files, &["--as", other]);
    assert_eq!(as_other["username"], other);
    both(&suite, &files, &["--as", "eve", "get", "pods"]);

    // A token beside the certificate changes nothing.
    let token = suite.fixture.token();
    let user = json!({"client-certificate": certificate, "client-key": key, "token": token});
    let files = kubeconfigs(&suite, &proxy, &user);
    assert_eq!(whoami(&suite, &files, &[]), who);
    // A token alone, and no credential.
    let files = kubeconfigs(&suite, &proxy, &json!({"token": token}));
    let who = whoami(&suite, &files, &[]).to_string();
    assert!(who.contains("system:serviceaccount:"), "{who}");
    // The apiserver ignores passwords; without any, kubectl would ask for one.
    let anonymous = json!({"username": "any", "password": "any"});
    let files = kubeconfigs(&suite, &proxy, &anonymous);
    assert_eq!(both(&suite, &files, &["get", "--raw", "/livez"]).ok(), "ok");
    drop(proxy);
}

#[test]
fn exec_and_watch_work_with_a_certificate() {
    let Some(suite) = alone() else { return };
    let proxy = front_proxy(&suite);
    let [certificate, key] = suite.fixture.user_files();
    let user = json!({"client-certificate": certificate, "client-key": key});
    let [_, proxied] = kubeconfigs(&suite, &proxy, &user);
    let flag = ["--kubeconfig", proxied.to_str().unwrap()];
    for streaming in STREAMINGS {
        let kubectl = Kubectl::new(&suite, Route::Proxied).streaming(streaming);
        let exec = ["exec", "-i", "shell", "--", "cat"];
        let outcome = kubectl.run_with_input(&[&flag[..], &exec].concat(), b"x\n".to_vec());
        assert_eq!(outcome.ok(), "x\n", "{streaming:?}");
    }
    let kubectl = Kubectl::new(&suite, Route::Proxied);
    let label = "watched-by=certificate";
    let watch = ["get", "configmaps", "-l", label, "-w", "-o", "name"];
    let watch = kubectl.start(&[&flag[..], &watch].concat());
    for name in ["certificate-1", "certificate-2"] {
        kubectl.run(&["create", "configmap", name]).ok();
        kubectl.run(&["label", "configmap", name, label]).ok();
        let line = watch.line(Duration::from_secs(30)).text;
        assert_eq!(line, format!("configmap/{name}"));
    }
    drop(proxy);
}
