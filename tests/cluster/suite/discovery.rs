//! `discover: endpoints` against a real apiserver: the shipped Role is enough for it, and without it the proxy works on.
//!
//! An apiserver accepts no loopback address in an EndpointSlice, so the addresses here lead nowhere, and only what the
//! proxy learns is tested; `tests/it` has a slice whose addresses serve.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use kube_tls_proxy::app::App;
use kube_tls_proxy::config::{self, Environment, ServeArgs};
use kube_tls_proxy::upstream::Endpoints;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::process::run;
use crate::suite::{Turn, alone};

const ROLES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/config/kubernetes/components/discovery"
);
const NAMESPACE: &str = "kube-tls-proxy";
const BINDING: &str = "kube-tls-proxy-discovery";

#[test]
fn shipped_role_lets_the_pod_follow_the_apiservers() {
    let Some(suite) = alone() else { return };
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    kubectl(&suite, &["apply", "-f", "-"], &namespace.to_string());
    for file in ["service-account.yaml", "role.yaml"] {
        let text = fs::read_to_string(Path::new(ROLES).join(file)).unwrap();
        kubectl(&suite, &["apply", "-f", "-"], &text);
    }
    name_apiservers(&suite, &["198.51.100.7"]);
    // Another object of the same kind, which the Role does not cover and the proxy does not ask for.
    kubectl(
        &suite,
        &["apply", "-f", "-"],
        &slice("other", &["198.51.100.99"]),
    );
    let runtime = Runtime::new().unwrap();
    let account = account(&suite);
    let endpoints = start(&suite, &runtime, &account);
    runtime.block_on(wait_for(&endpoints, &["198.51.100.7:6443"]));

    name_apiservers(&suite, &["198.51.100.7", "198.51.100.8"]);
    let both = ["198.51.100.7:6443", "198.51.100.8:6443"];
    runtime.block_on(wait_for(&endpoints, &both));
    assert_eq!(endpoints.discovery().unwrap().failures, 0);

    kubectl(
        &suite,
        &["delete", "endpointslice", "kubernetes", "-n", "default"],
        "",
    );
    let why = runtime.block_on(failure(&endpoints));
    assert!(why.contains("names no apiserver"), "{why}");
    runtime.block_on(wait_for(&endpoints, &both));

    name_apiservers(&suite, &["198.51.100.8"]);
    runtime.block_on(wait_for(&endpoints, &["198.51.100.8:6443"]));
}

#[test]
fn pod_without_the_role_uses_the_service() {
    let Some(suite) = alone() else { return };
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    kubectl(&suite, &["apply", "-f", "-"], &namespace.to_string());
    let text = fs::read_to_string(Path::new(ROLES).join("service-account.yaml")).unwrap();
    kubectl(&suite, &["apply", "-f", "-"], &text);
    let delete = ["delete", "rolebinding", BINDING, "-n", "default"];
    kubectl(&suite, &[&delete[..], &["--ignore-not-found"]].concat(), "");
    name_apiservers(&suite, &["198.51.100.7"]);
    let runtime = Runtime::new().unwrap();
    let account = account(&suite);
    let endpoints = start(&suite, &runtime, &account);
    let why = runtime.block_on(failure(&endpoints));
    let words = format!(
        "\"kubernetes\" is forbidden: User \"system:serviceaccount:{NAMESPACE}:{NAMESPACE}\" cannot list"
    );
    assert!(
        why.contains(&words) && why.contains("; create the Role"),
        "{why}"
    );
    let service = suite.fixture.server().strip_prefix("https://").unwrap();
    runtime.block_on(wait_for(&endpoints, &[service]));

    fs::write(account.join("token"), "unknown").unwrap();
    let rejected = async {
        while !failure(&endpoints).await.contains("rejects the token") {
            sleep(TICK).await;
        }
    };
    runtime
        .block_on(async { timeout(STEP, rejected).await })
        .unwrap();
}

/// The folder that a pod of the shipped Deployment has: CA and token.
fn account(suite: &Turn) -> PathBuf {
    let folder = suite.fixture.scratch().join("pod-account");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(suite.fixture.ca(), folder.join("ca.crt")).unwrap();
    let args = ["create", "token", NAMESPACE, "-n", NAMESPACE];
    fs::write(folder.join("token"), kubectl(suite, &args, "")).unwrap();
    folder
}

/// Starts the proxy as in a pod, where the apiserver of the suite is the Service. It runs as long as the runtime.
fn start(suite: &Turn, runtime: &Runtime, account: &Path) -> Arc<Endpoints> {
    let scratch = suite.fixture.scratch();
    let file = scratch.join("discovery.yaml");
    // The chain is that of the apiserver: no client connects.
    let text = json!({
        "listen": ["127.0.0.1:0"],
        "workers": 1,
        "certificates": [{"certificate": scratch.join("apiserver.crt"), "key": scratch.join("apiserver.key")}],
        "clusters": [{"name": "here", "inCluster": {"discover": "endpoints"}}],
        "timeouts": {"probeInterval": "0s"},
    });
    fs::write(&file, text.to_string()).unwrap();
    let args = ServeArgs {
        config: Some(file),
        ..ServeArgs::default()
    };
    let service: SocketAddr = (suite.fixture.server().strip_prefix("https://").unwrap())
        .parse()
        .unwrap();
    let env = Environment {
        service_host: Some(service.ip().to_string()),
        service_port: Some(service.port().to_string()),
        service_account: account.to_owned(),
        ..Environment::from_process()
    };
    let app = App::bind(Box::new(move || config::load(&args, &env))).unwrap();
    let endpoints = Arc::clone(app.reloader().clusters()[0].endpoints());
    #[expect(clippy::disallowed_methods, reason = "a test has no Drain")]
    runtime.spawn(app.run(std::future::pending()));
    endpoints
}

async fn wait_for(endpoints: &Endpoints, wanted: &[&str]) {
    let known = || -> Vec<String> {
        let health = endpoints.health().into_iter();
        health.map(|one| one.address.to_string()).collect()
    };
    let reached = async {
        while known() != wanted {
            sleep(TICK).await;
        }
    };
    let found = timeout(STEP, reached).await;
    assert!(found.is_ok(), "{:?} in place of {wanted:?}", known());
}

/// Why the addresses cannot be read.
async fn failure(endpoints: &Endpoints) -> String {
    let failed = async {
        loop {
            if let Some(why) = endpoints.discovery().unwrap().failure {
                return why;
            }
            sleep(TICK).await;
        }
    };
    timeout(STEP, failed).await.unwrap()
}

fn name_apiservers(suite: &Turn, addresses: &[&str]) {
    kubectl(
        suite,
        &["apply", "-f", "-"],
        &slice("kubernetes", addresses),
    );
}

/// As an apiserver writes it.
fn slice(name: &str, addresses: &[&str]) -> String {
    let ready = json!({"ready": true});
    let endpoints = addresses.iter();
    let endpoints = endpoints.map(|one| json!({"addresses": [one], "conditions": ready}));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
    })
    .to_string()
}

/// kubectl as an administrator.
fn kubectl(suite: &Turn, args: &[&str], input: &str) -> String {
    let mut command = Command::new("kubectl");
    command
        .args(args)
        .env("HOME", suite.fixture.scratch())
        .env("KUBECONFIG", suite.fixture.kubeconfig());
    run(command, input.as_bytes().to_vec(), STEP).ok()
}

const STEP: Duration = Duration::from_mins(1);
const TICK: Duration = Duration::from_millis(20);
