//! Manifests of an ingress, translated, and the proxy that runs with the result.

use std::{fs, net::SocketAddr, num::NonZeroUsize, path::Path};

use bytes::Bytes;
use http::Request;
use kube_tls_proxy::{
    config::{self, Environment, ServeArgs},
    translate::{FilePlacement, ManifestFile, translate},
};
use standin::upstream::{Upstream, full};

use crate::{
    proxy::{APISERVER, Proxy, World},
    responses::ClientResponse,
};

/// The manifest in `tests/manifests/public` that has this name.
fn manifest(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/public");
    fs::read_to_string(folder.join(name)).unwrap()
}

/// The clusters of the configuration that the manifest becomes, in a pod whose apiserver is at this address.
fn clusters(world: &World, manifest: &str, apiserver: SocketAddr) -> Vec<config::ClusterConfig> {
    let file = ManifestFile {
        path: "manifest.yaml".into(),
        text: manifest.to_owned(),
    };
    let translation = translate(&[file], FilePlacement::Beside).unwrap();
    for file in &translation.files {
        if let Some(content) = &file.content {
            world.dir.write(&file.path, content);
        }
    }
    let path = world.dir.write("kube-tls-proxy.yaml", &translation.config);
    world.dir.write("ca.crt", world.cluster_ca.pem());
    let env = Environment {
        service_host: Some(apiserver.ip().to_string()),
        service_port: Some(apiserver.port().to_string()),
        service_account: world.dir.path().to_owned(),
        cpus: NonZeroUsize::MIN,
        ..Environment::from_process()
    };
    let args = ServeArgs {
        config: Some(path),
        ..ServeArgs::default()
    };
    config::load(&args, &env).unwrap().clusters
}

/// Asks the proxy, by the first of these names in TLS, for a list of pods of the second.
async fn get(proxy: &Proxy, name: &str, host: &str) -> ClientResponse {
    let client = proxy.client().sni(name).http2().await;
    let request = Request::get(format!("https://{host}/api/v1/pods"))
        .header("authorization", "Bearer abc")
        .body(Bytes::new())
        .unwrap();
    client.request(request).await.unwrap().into()
}

#[tokio::test]
async fn translated_manifests_serve_their_host() {
    for (name, host) in [
        ("contour-seed.yaml", "kube.example.com"),
        ("kops-530.yaml", "api.k8s.example.com"),
        ("envoy-gateway-9945.yaml", "kube.example.com"),
    ] {
        let world = World::new();
        let upstream = world.apiserver().start().await;
        let identity = world.public_ca.server(&[host]);
        let mut setup = world.proxy_as(upstream.address(), &identity);
        setup.config.clusters = clusters(&world, &manifest(name), upstream.address());
        let proxy = setup.start();
        assert_eq!(get(&proxy, host, host).await.code, 200, "{name}");
        let received = upstream.next_request().await;
        assert_eq!(
            received.header("authorization"),
            Some("Bearer abc"),
            "{name}"
        );
        assert_eq!(
            get(&proxy, host, "other.example.com").await.code,
            421,
            "{name}"
        );
    }
}

#[tokio::test]
async fn translated_validation_refuses_an_impostor() {
    let world = World::new();
    let impostor = Upstream::builder(world.public_ca.server(&[APISERVER, "127.0.0.1"]));
    let impostor = impostor
        .http(|_| async { http::Response::new(full("stolen")) })
        .start()
        .await;
    let identity = world.public_ca.server(&["kube.example.com"]);
    let mut setup = world.proxy_as(impostor.address(), &identity);
    setup.config.clusters = clusters(&world, &manifest("contour-seed.yaml"), impostor.address());
    let proxy = setup.start();
    assert!(
        get(&proxy, "kube.example.com", "kube.example.com")
            .await
            .code
            >= 502
    );
    assert_eq!(
        impostor.requests().len(),
        0,
        "no byte of the request was sent"
    );
}

#[tokio::test]
async fn translated_addresses_refuse_other_clients() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let identity = world.public_ca.server(&["kube.example.com"]);
    for (range, status) in [("127.0.0.0/8", 200), ("192.0.2.0/24", 403)] {
        let policy = format!("  - ipAllowPolicy: [{{source: Peer, cidr: {range}}}]\n    services:");
        let text = manifest("contour-seed.yaml").replace("  - services:", &policy);
        let mut setup = world.proxy_as(upstream.address(), &identity);
        setup.config.clusters = clusters(&world, &text, upstream.address());
        let proxy = setup.start();
        assert_eq!(
            get(&proxy, "kube.example.com", "kube.example.com")
                .await
                .code,
            status,
            "{range}"
        );
    }
}
