//! Real kubectl with an empty cache, as on a new laptop: its first command shows what the proxy says.
//!
//! `KUBECTLS` is a list of binaries separated by colons, for several versions. Without kubectl these tests pass;
//! `tests/it/words.rs` compares the same responses on the wire.

use std::{
    env, fs,
    process::{Output, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use standin::{kubernetes::Kubernetes, pki::Ca, tcp::refused, within};
use tokio::{process::Command, time::Instant};

use crate::world::{APISERVER, Serving, World, path};

/// Runs `kubectl get pods` with each kubectl, and asserts that it fails soon and that its stderr has this text.
async fn assert_shown(world: &World, serving: &Serving, user: &Value, text: &str) {
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "clusters": [{ "name": "a", "cluster": {
            "server": format!("https://localhost:{}", serving.address.port()),
            "certificate-authority": world.public_ca_file(),
        }}],
        "users": [{ "name": "a", "user": user }],
        "contexts": [{ "name": "a", "context": { "cluster": "a", "user": "a" } }],
    });
    let kubeconfig = world.dir.write("kubeconfig", kubeconfig.to_string());
    let binaries = env::var("KUBECTLS").unwrap_or_else(|_| "kubectl".to_owned());
    for binary in binaries.split(':') {
        // Each run has an empty discovery cache.
        let home = world.dir.path().join("home");
        fs::remove_dir_all(&home).ok();
        fs::create_dir(&home).unwrap();
        let began = Instant::now();
        let output = Command::new(binary)
            .args(["--kubeconfig", path(&kubeconfig), "get", "pods"])
            .env("HOME", &home)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let Ok(output) = within("the end of kubectl", output).await else {
            return;
        };
        let took = began.elapsed();
        let Output { status, stderr, .. } = output;
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(
            stderr.contains(text) && !status.success(),
            "{binary}: {stderr}"
        );
        // Before, it took 55 s.
        assert!(took < Duration::from_secs(8), "{binary}: {took:?}");
    }
}

fn token() -> Value {
    json!({ "token": "good" })
}

#[tokio::test]
async fn kubectl_shows_that_apiserver_is_down() {
    let world = World::new();
    let serving = world.serve(&world.flags(refused().await)).await;
    let text = "kube-tls-proxy: the apiserver does not accept connections; it may be restarting";
    assert_shown(&world, &serving, &token(), text).await;
}

#[tokio::test]
async fn kubectl_shows_that_apiserver_is_not_verified() {
    let world = World::new();
    let foreign = Ca::new("foreign").server(&[APISERVER]);
    let expired = world.cluster_ca.leaf(&[APISERVER]).expired().build();
    for (identity, text) in [
        (foreign, "is not signed by the cluster CA"),
        (expired, "has expired"),
    ] {
        let upstream = world.apiserver_as(identity).start().await;
        let serving = world.serve(&world.flags(upstream.address())).await;
        let text = format!("kube-tls-proxy: the apiserver's certificate {text}");
        assert_shown(&world, &serving, &token(), &text).await;
    }
}

#[tokio::test]
async fn kubectl_shows_that_host_is_not_served() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let flags = world.flags_of_two_clusters(upstream.address());
    let serving = world.serve(&flags).await;
    let text = "kube-tls-proxy: no cluster is configured for this host name";
    assert_shown(&world, &serving, &token(), text).await;
}

/// kubeadm's admin.conf has a client certificate and no token.
#[tokio::test]
async fn kubectl_shows_why_credential_was_refused() {
    let world = World::new();
    let cluster = Kubernetes::new().token("good", "jane", &[]);
    let upstream = world.apiserver().kubernetes(&cluster).start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let admin = world
        .cluster_ca
        .client("kubernetes-admin", &["system:masters"]);
    let (certificate, key) = admin.write(&world.dir, "admin");
    let admin = json!({ "client-certificate": certificate, "client-key": key });
    let text = "Warning: this request has no token; a client certificate ends at this proxy";
    assert_shown(&world, &serving, &admin, text).await;
    let claims = BASE64_URL_SAFE_NO_PAD.encode(r#"{"exp":1000000000}"#);
    let expired = json!({ "token": format!("e30.{claims}.c2ln") });
    let text = "Warning: the token expired at 2001-09-09T01:46:40Z";
    assert_shown(&world, &serving, &expired, text).await;
}
