//! Whether the proxy is ready while it reaches no apiserver: an outage, which every other instance sees as well, leaves
//! it in the rotation of the load balancer; a fault of its own does not.

use std::{net::SocketAddr, time::Duration};

use http::{Request, Response, StatusCode};
use kube_tls_proxy::upstream::Health;
use standin::{
    pki::Ca,
    tcp::{self, Behaviour, Peer, Relay},
    upstream::{RequestBody, ResponseBody, Upstream, full},
    within,
};

use super::get;
use crate::proxy::{APISERVER, Proxy, Setup, World};

/// A proxy that has just started and probes often.
fn start(world: &World, upstream: SocketAddr) -> Proxy {
    let setup = world.proxy(upstream).admin();
    fast_probes(setup).start()
}

fn fast_probes(setup: Setup<'_>) -> Setup<'_> {
    setup.timeouts(|timeouts| {
        timeouts.probe_interval = Duration::from_millis(50);
        timeouts.probe_timeout = Duration::from_millis(200);
    })
}

/// The line of `/readyz?verbose` about the upstream, and whether the proxy is ready.
async fn upstream_check(admin: SocketAddr, query: &str) -> (u16, String) {
    let response = get(admin, &format!("/readyz?verbose{query}")).await;
    let text = response.text();
    let line = text.lines().find(|line| line.contains("upstream")).unwrap();
    (response.status, line.to_owned())
}

async fn answers_500(_: Request<RequestBody>) -> Response<ResponseBody> {
    let mut response = Response::new(full("no etcd"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// Asserts that a proxy that starts now is ready, or not, once the first probe has ended.
async fn assert_ready(world: &World, upstream: SocketAddr, ready: bool, why: &str) {
    let proxy = start(world, upstream);
    proxy.wait_for_health(upstream, Health::Unhealthy).await;
    let admin = proxy.admin();
    let (status, line) = upstream_check(admin, "").await;
    let (strict, strict_line) = upstream_check(admin, "&strict").await;
    assert_eq!(status, if ready { 200 } else { 503 }, "{line}");
    let expected = if ready {
        "[+]upstream ok, but no apiserver can be reached: test: "
    } else {
        "[-]upstream failed: test: "
    };
    assert!(line.starts_with(expected), "{line}");
    assert!(line.contains(why), "{line}");
    assert_eq!(strict, 503);
    assert!(
        strict_line.starts_with("[-]upstream failed: "),
        "{strict_line}"
    );
}

/// A rolling restart during an outage would otherwise leave the load balancer without any server.
#[tokio::test]
async fn proxy_that_starts_in_an_outage_is_ready() {
    let world = World::new();
    assert_ready(&world, tcp::refused().await, true, "Connection refused").await;
    let silent = Peer::start(Behaviour::Silent).await;
    assert_ready(&world, silent.address(), true, "probeTimeout").await;
    // A load balancer whose apiservers are down.
    for behaviour in [Behaviour::CloseInHandshake, Behaviour::ResetInHandshake] {
        let balancer = Peer::start(behaviour).await;
        assert_ready(&world, balancer.address(), true, "handshake").await;
    }
    let broken = world.apiserver().http(answers_500).start().await;
    assert_ready(&world, broken.address(), true, "500 Internal Server Error").await;
}

/// A new version with a wrong CA or name must not replace the old one.
#[tokio::test]
async fn proxy_that_must_not_use_the_upstream_is_not_ready() {
    let world = World::new();
    let foreign = Upstream::builder(Ca::new("foreign").server(&[APISERVER]));
    let foreign = foreign.start().await;
    assert_ready(
        &world,
        foreign.address(),
        false,
        "not signed by the cluster CA",
    )
    .await;
    let renamed = Upstream::builder(world.cluster_ca.server(&["other.test"]));
    let renamed = renamed.start().await;
    assert_ready(&world, renamed.address(), false, "other.test").await;
    let plain = Behaviour::Responds(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec());
    let plain = Peer::start(plain).await;
    assert_ready(&world, plain.address(), false, "handshake").await;
}

/// The clients of the other cluster are served, so the proxy stays ready, also for `?strict`.
#[tokio::test]
async fn outage_of_one_of_two_clusters_is_a_warning() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let down = tcp::refused().await;
    // The order of the clusters does not matter: the healthy one comes first here, and last below.
    for (first, second, name) in [
        (upstream.address(), down, "staging"),
        (down, upstream.address(), "test"),
    ] {
        let setup = world.proxy(first).admin();
        let setup = setup.second_cluster("staging", "staging.test", second);
        let proxy = fast_probes(setup).start();
        proxy
            .wait_for_health(upstream.address(), Health::Healthy)
            .await;
        proxy.wait_for_health(down, Health::Unhealthy).await;
        for query in ["", "&strict"] {
            let (status, line) = upstream_check(proxy.admin(), query).await;
            let begin =
                format!("[+]upstream ok, but no healthy apiserver for some hosts: {name}: ");
            assert_eq!(status, 200, "{line}");
            assert!(line.starts_with(&begin), "{line}");
            assert!(line.contains("Connection refused"), "{line}");
        }
    }
}

#[tokio::test]
async fn warning_of_readiness_ends_with_the_outage() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let relay = Relay::start(tcp::refused().await).await;
    let proxy = start(&world, relay.address());
    proxy
        .wait_for_health(relay.address(), Health::Unhealthy)
        .await;
    let client = proxy.client().http2().await;
    let refused = client.get("https://kube.test/ok").await.unwrap();
    assert_eq!(
        refused.status, 503,
        "the client gets the words of the proxy"
    );
    relay.retarget(upstream.address());
    within("readiness without a warning", async {
        let ok = (200, "[+]upstream ok".to_owned());
        while upstream_check(proxy.admin(), "&strict").await != ok {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
