//! An `admin.conf` with a client certificate, directly and through a passthrough host of the proxy.
//!
//! `kube-tls-proxy kubeconfig --direct` makes the kubeconfig of the second route, so it is tested with the real kubectl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::forward::{echo_all, local_port};
use crate::kubectl::{Kubectl, STREAMINGS, assert_same};
use crate::process::{Outcome, run};
use crate::proxy::Proxy;
use crate::suite::{Route, Suite, on_both, shared};

/// A proxy with a terminated and a passthrough host, and the kubeconfigs of both routes.
struct Passed {
    proxy: Proxy,
    admin_conf: PathBuf,
    direct: PathBuf,
}

impl Passed {
    /// `name` belongs to the case, because cases run at the same time.
    #[track_caller]
    fn start(suite: &Suite, name: &str) -> Self {
        let (server, ca) = (suite.fixture.server(), suite.fixture.ca());
        let file = |ending: &str| suite.fixture.scratch().join(format!("{name}{ending}"));
        let config = json!({ "clusters": [
            { "name": "terminated", "hosts": ["localhost"], "upstream": { "url": server, "ca": ca } },
            { "name": "direct", "hosts": ["kubernetes"], "passthrough": true, "upstream": { "url": server } },
        ]});
        let config_file = file(".yaml");
        fs::write(&config_file, config.to_string()).unwrap();
        let flags = ["--config", config_file.to_str().unwrap()];
        let proxy = suite.proxy.another(&suite.fixture, &flags);
        let admin_conf = file("-admin.conf");
        fs::write(&admin_conf, admin(suite).to_string()).unwrap();
        let direct = file("-direct.conf");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
        command
            .args(["kubeconfig", "--direct", "--server", &proxy.server])
            .args([Path::new("--from"), &admin_conf])
            .args([Path::new("--output"), &direct]);
        run(command, Vec::new(), STEP).ok();
        Self {
            proxy,
            admin_conf,
            direct,
        }
    }

    fn kubectl<'a>(&self, suite: &'a Suite, route: Route) -> Kubectl<'a> {
        let kubeconfig = match route {
            Route::Direct => &self.admin_conf,
            Route::Proxied => &self.direct,
        };
        Kubectl::new(suite, route).with_kubeconfig(kubeconfig)
    }

    /// Runs kubectl on both routes, asserts the same outcome, and returns it.
    #[track_caller]
    fn same(&self, suite: &Suite, args: &[&str]) -> Outcome {
        let [direct, passed] = on_both(|route| self.kubectl(suite, route).run(args));
        assert_same(direct, passed)
    }
}

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

#[test]
fn certificate_is_the_user_and_tokens_work_on_the_same_port() {
    let Some(suite) = shared() else { return };
    let passed = Passed::start(&suite, "passthrough-whoami");
    let [direct, who] = on_both(|route| {
        let kubectl = passed.kubectl(&suite, route);
        let who = kubectl.run(&["auth", "whoami", "-o", "json"]).ok();
        serde_json::from_str::<Value>(&who).unwrap()
    });
    // The rest is the time of the response.
    assert_eq!(direct["status"], who["status"]);
    let user = &who["status"]["userInfo"];
    assert_eq!(user["username"], "fixture", "{who}");
    let groups = user["groups"].as_array().unwrap();
    assert!(groups.contains(&json!("system:masters")), "{who}");
    // A token on the terminated host of the same port.
    let token = suite.fixture.token();
    let ca = passed.proxy.ca.display().to_string();
    let content = crate::kubectl::kubeconfig_for(&suite, &passed.proxy.server, &ca, token);
    let file = passed.direct.with_extension("token");
    fs::write(&file, content.to_string()).unwrap();
    let kubectl = Kubectl::new(&suite, Route::Proxied).with_kubeconfig(&file);
    let who = kubectl.run(&["auth", "whoami", "-o", "name"]).ok();
    assert!(!who.contains("fixture"), "{who}");
    kubectl.run(&["get", "pods"]).ok();
}

#[test]
fn exec_passes_through_over_websocket_and_spdy() {
    let Some(suite) = shared() else { return };
    let passed = Passed::start(&suite, "passthrough-exec");
    let input: Vec<u8> = (0..1_u32 << 20).map(|at| (at % 251) as u8).collect();
    for streaming in STREAMINGS {
        let on_both_with = |args: &[&str], input: &[u8]| {
            let [direct, through] = on_both(|route| {
                let kubectl = passed.kubectl(&suite, route).streaming(streaming);
                kubectl.run_with_input(args, input.to_vec())
            });
            assert_same(direct, through)
        };
        let script = "echo to stdout; echo to stderr >&2; exit 3";
        let outcome = on_both_with(&["exec", "shell", "--", "sh", "-c", script], b"");
        assert_eq!((outcome.code, &*outcome.text()), (Some(3), "to stdout\n"));
        let outcome = on_both_with(&["exec", "-i", "shell", "--", "cat"], &input);
        assert!(
            outcome.stdout == input,
            "{streaming:?}: {}",
            outcome.stdout.len()
        );
    }
}

#[test]
fn cp_passes_through_in_both_directions() {
    let Some(suite) = shared() else { return };
    let passed = Passed::start(&suite, "passthrough-cp");
    let source = suite.fixture.scratch().join("passthrough-source");
    let bytes: Vec<u8> = (0..20_u32 << 20).map(|at| (at % 249) as u8).collect();
    fs::write(&source, &bytes).unwrap();
    for streaming in STREAMINGS {
        let kubectl = passed.kubectl(&suite, Route::Proxied).streaming(streaming);
        let name = format!("passthrough-{}", streaming.name());
        let remote = format!("shell:{name}");
        kubectl.run(&["cp", source.to_str().unwrap(), &remote]).ok();
        let uploaded = suite.fixture.pod_directory("shell").join(&name);
        assert!(fs::read(&uploaded).unwrap() == bytes, "{streaming:?}");
        let back = suite.fixture.scratch().join(&name);
        kubectl.run(&["cp", &remote, back.to_str().unwrap()]).ok();
        assert!(fs::read(&back).unwrap() == bytes, "{streaming:?}");
        fs::remove_file(uploaded).unwrap();
    }
}

#[test]
fn port_forward_passes_through() {
    let Some(suite) = shared() else { return };
    let passed = Passed::start(&suite, "passthrough-forward");
    let echo = suite.fixture.echo_port();
    for streaming in STREAMINGS {
        let kubectl = passed.kubectl(&suite, Route::Proxied).streaming(streaming);
        let running = kubectl.start(&["port-forward", "pod/shell", &format!(":{echo}")]);
        let local = local_port(&running, echo);
        for number in 0..4 {
            echo_all(local, number);
        }
    }
}

#[test]
fn logs_and_watches_pass_through() {
    let Some(suite) = shared() else { return };
    let passed = Passed::start(&suite, "passthrough-watch");
    let all = passed.same(&suite, &["logs", "shell"]).ok();
    assert_eq!(all.lines().count(), 1000);
    let kubectl = passed.kubectl(&suite, Route::Proxied);
    let follow = kubectl.start(&["logs", "-f", "chatty"]);
    for number in 0..3 {
        let line = follow.line(STEP).text;
        assert!(line.starts_with(&format!("{number} ")), "{line}");
    }
    let watch = kubectl.start(&["get", "configmaps", "-l", "passed=yes", "-w", "-o", "name"]);
    for name in ["passed-1", "passed-2"] {
        kubectl.run(&["create", "configmap", name]).ok();
        kubectl
            .run(&["label", "configmap", name, "passed=yes"])
            .ok();
        assert_eq!(watch.line(STEP).text, format!("configmap/{name}"));
    }
}

const STEP: Duration = Duration::from_secs(30);
