//! From an empty directory to kubectl, with a certificate that a CA issues by ACME.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use standin::TempDir;

use crate::kubectl::Kubectl;
use crate::pebble::{Pebble, free_port};
use crate::process::Running;
use crate::suite::{Route, Server, alone, skip};

const NAME: &str = "kube.test";

/// Everything is new for each challenge: the directory, the account, the key and the certificate.
#[test]
fn one_command_in_an_empty_directory_serves_kubectl() {
    let Some(suite) = alone() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (port, http_port) = (free_port(), free_port());
    let http01 = format!("127.0.0.1:{http_port}");
    // With http-01 the CA cannot use the port for tls-alpn-01.
    for (settings, more) in [
        (json!({}), vec![]),
        (
            json!({ "httpPort": http_port, "tlsPort": 1 }),
            vec!["--acme-http01-listen", &http01],
        ),
    ] {
        let started = Pebble::start(port, settings, &[("PEBBLE_VA_NOSLEEP", "1")]);
        let Some(pebble) = runtime.block_on(started) else {
            return skip("pebble is missing; \".ci/run\" builds it with Go");
        };
        let root = pebble
            .dir
            .write("root.crt", runtime.block_on(pebble.root()));
        let kubectl = Kubectl::new(&suite, Route::Proxied)
            .with_server(Server {
                url: format!("https://127.0.0.1:{port}"),
                ca: root.display().to_string(),
                name: Some(NAME),
            })
            .with_user(json!({ "token": suite.fixture.token() }));
        let dir = TempDir::new();
        let mut serve = suite.fixture.client("leash");
        serve
            .args(["--", env!("CARGO_BIN_EXE_kube-tls-proxy"), "serve"])
            .args(["--acme", NAME, "--kubeconfig", suite.fixture.kubeconfig()])
            .args(["--acme-directory", &pebble.directory()])
            .arg("--acme-directory-ca")
            .arg(pebble.directory_ca())
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(&more)
            // As systemd gives it to the service.
            .env("STATE_DIRECTORY", dir.path())
            .current_dir(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let began = Instant::now();
        let proxy = Running::start(serve);
        let pods = loop {
            let outcome = kubectl.run(&["get", "pods"]);
            let took = began.elapsed();
            if outcome.code == Some(0) {
                break outcome.ok();
            }
            assert!(took < LIMIT, "{}\n{}", outcome.stderr, proxy.stderr());
        };
        let took = began.elapsed();
        eprintln!("from an empty directory to `kubectl get pods` {more:?}: {took:?}");
        assert!(took < LIMIT, "{took:?}");
        for pod in ["shell", "chatty", "quiet"] {
            assert!(pods.contains(pod), "{pods}");
        }
        assert!(dir.path().join("certificate.pem").exists());
        end(proxy);
    }
}

/// Waits until the port is free.
fn end(mut proxy: Running) {
    proxy.end_input();
    let deadline = Instant::now() + LIMIT;
    while !proxy.has_ended() {
        assert!(Instant::now() < deadline, "{}", proxy.stderr());
        proxy.try_line(Duration::from_millis(20));
    }
}

const LIMIT: Duration = Duration::from_secs(10);
