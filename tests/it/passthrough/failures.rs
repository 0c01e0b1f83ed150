//! Apiservers that fail, and what a client sees of it.

use std::net::SocketAddr;

use kube_tls_proxy::{config::TrustSource, upstream::Health};
use standin::{
    client::Client,
    pki::Ca,
    tcp::{Behaviour, Peer, refused},
    upstream::Upstream,
    within,
};
use tokio::{io::AsyncWriteExt as _, time::Duration};

use super::{ANSWER, PASSED, RawApiserver, connect, hello, read, rest, setup};
use crate::{
    admin::{get, wait_for_numbers},
    proxy::{Proxy, World},
};

/// A fatal alert of TLS.
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// The health of an endpoint of the passthrough cluster.
async fn wait_for_health(proxy: &Proxy, address: SocketAddr, healthy: f64) {
    let series = format!("endpoint_healthy{{cluster=\"direct\",endpoint=\"{address}\"}}");
    wait_for_numbers(proxy.admin(), &[(&series, healthy)]).await;
}

/// Up to three endpoints get the `ClientHello`, and the client notices nothing. An endpoint that closes without an
/// answer stays in the choice, because the `ClientHello` of a client may be the reason.
#[tokio::test]
async fn endpoint_that_answers_is_found_after_dead_ones() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let closes = Peer::start(Behaviour::CloseInHandshake).await;
    let direct = RawApiserver::start().await;
    let down = refused().await;
    let mut setup = setup(&world, terminated.address(), direct.address());
    setup.config.clusters[1].addresses = vec![down, closes.address(), direct.address()];
    let proxy = setup.start();
    let bytes = [hello(PASSED), b"early".to_vec()].concat();
    let mut client = connect(&proxy).await;
    client.write_all(&bytes).await.unwrap();
    let mut server = direct.greet(&bytes[..bytes.len() - 5]).await;
    assert_eq!(read(&mut server, 5).await, b"early");
    assert_eq!(read(&mut client, ANSWER.len()).await, ANSWER);
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"", "nothing comes twice");
    assert_eq!(closes.connections(), 1);
    let numbers = [
        (
            "upstream_dials_total{cluster=\"direct\",result=\"refused\"}",
            1.0,
        ),
        (
            "upstream_dials_total{cluster=\"direct\",result=\"tls\"}",
            1.0,
        ),
        (
            "upstream_dials_total{cluster=\"direct\",result=\"ok\"}",
            1.0,
        ),
    ];
    wait_for_numbers(proxy.admin(), &numbers).await;
    wait_for_health(&proxy, direct.address(), 1.0).await;
    let status = get(proxy.admin(), "/status.json").await.text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let endpoints = status["clusters"][1]["endpoints"].as_array().unwrap();
    let states: Vec<_> = endpoints.iter().map(|one| &one["state"]).collect();
    assert_eq!(states, ["unhealthy", "unknown", "healthy"]);
}

/// An endpoint that accepts and says nothing costs a client 300 ms, not the whole timeout.
#[tokio::test]
async fn silent_endpoint_is_overtaken_by_the_next_one() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let silent = Peer::start(Behaviour::Silent).await;
    let direct = RawApiserver::start().await;
    let mut setup = setup(&world, terminated.address(), direct.address())
        .timeouts(|timeouts| timeouts.upstream_connect = standin::WAIT * 10);
    setup.config.clusters[1].addresses = vec![silent.address(), direct.address()];
    let proxy = setup.start();
    let bytes = hello(PASSED);
    for _ in 0..2 {
        let mut client = connect(&proxy).await;
        client.write_all(&bytes).await.unwrap();
        direct.greet(&bytes).await;
        assert_eq!(read(&mut client, ANSWER.len()).await, ANSWER);
    }
}

/// Once an apiserver may have the `ClientHello`, the proxy sends no byte of its own: no alert, and no HTTP.
#[tokio::test]
async fn no_answer_is_a_close_without_a_byte() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let silent = Peer::start(Behaviour::Silent).await;
    let resets = Peer::start(Behaviour::ResetInHandshake).await;
    for (address, reason) in [
        (silent.address(), "connect_timeout"),
        (resets.address(), "handshake"),
    ] {
        let proxy = setup(&world, terminated.address(), address)
            .timeouts(|timeouts| timeouts.upstream_connect = Duration::from_millis(200))
            .start();
        let mut client = connect(&proxy).await;
        client.write_all(&hello(PASSED)).await.unwrap();
        assert_eq!(rest(&mut client).await, b"", "{reason}");
        let errors = format!("errors_total{{cluster=\"direct\",reason=\"{reason}\"}}");
        let numbers = [
            (errors.as_str(), 1.0),
            (
                "tunnels_ended_total{cluster=\"direct\",end=\"apiserver\"}",
                0.0,
            ),
            ("connections", 0.0),
        ];
        wait_for_numbers(proxy.admin(), &numbers).await;
    }
}

/// While the apiserver is down, kubectl says so at once: it prints the alert, and repeats a GET after a plain close. No
/// endpoint has the `ClientHello` then.
#[tokio::test]
async fn apiserver_that_is_down_is_an_alert() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let proxy = setup(&world, terminated.address(), refused().await).start();
    let mut client = connect(&proxy).await;
    let early = vec![0; 100_000];
    client
        .write_all(&[hello(PASSED), early].concat())
        .await
        .unwrap();
    assert_eq!(rest(&mut client).await, INTERNAL_ERROR);
    let client = Client::new(proxy.address()).sni(PASSED);
    let error = client.connect().await.unwrap_err();
    assert!(error.to_string().contains("InternalError"), "{error}");
    let numbers = [
        ("errors_total{cluster=\"direct\",reason=\"connect\"}", 2.0),
        ("connections", 0.0),
    ];
    wait_for_numbers(proxy.admin(), &numbers).await;
}

/// An answer that is no TLS reaches the client as it is: the client judges it.
#[tokio::test]
async fn answer_of_the_apiserver_is_not_judged() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let answer = b"SSH-2.0-OpenSSH\r\n".to_vec();
    let ssh = Peer::start(Behaviour::Responds(answer.clone())).await;
    let proxy = setup(&world, terminated.address(), ssh.address()).start();
    let mut client = connect(&proxy).await;
    client.write_all(&hello(PASSED)).await.unwrap();
    assert_eq!(rest(&mut client).await, answer);
}

/// Without a CA a probe asks whether TLS is spoken, and with one whether clients can verify the apiserver.
#[tokio::test]
async fn probes_verify_an_apiserver_only_with_a_ca() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let ca = TrustSource::File(world.dir.write("direct-ca.crt", world.cluster_ca.pem()));
    let http = Peer::start(Behaviour::Responds(
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ))
    .await;
    let start = |identity| Upstream::builder(identity).start();
    let kubeadm = start(world.cluster_ca.server(&[PASSED])).await;
    let foreign = start(Ca::new("foreign").server(&[PASSED])).await;
    let other_name = start(world.cluster_ca.server(&["other"])).await;
    for (address, trust, health) in [
        (kubeadm.address(), TrustSource::Clients, Health::Healthy),
        (foreign.address(), TrustSource::Clients, Health::Healthy),
        (http.address(), TrustSource::Clients, Health::Unhealthy),
        (kubeadm.address(), ca.clone(), Health::Healthy),
        (foreign.address(), ca.clone(), Health::Unhealthy),
        (other_name.address(), ca.clone(), Health::Unhealthy),
    ] {
        let mut setup = setup(&world, terminated.address(), address)
            .timeouts(|timeouts| timeouts.probe_interval = Duration::from_secs(1));
        setup.config.clusters[1].trust = trust.clone();
        // Its cluster is the first one whose health the test can wait for.
        setup.config.clusters.swap(0, 1);
        let proxy = setup.start();
        proxy.wait_for_health(address, health).await;
        let requests = kubeadm.requests();
        let is_probed = requests.iter().any(|request| request.target == "/readyz");
        // The first case without a CA comes before those with one.
        let may_ask = trust != TrustSource::Clients;
        assert!(
            may_ask || !is_probed,
            "a probe without a CA sends no request"
        );
        assert!(is_probed || !may_ask, "a probe with a CA asks for /readyz");
        drop(proxy);
    }
    assert!(foreign.requests().is_empty() && other_name.requests().is_empty());
}

/// A client may be the reason that there is no answer, so the proxy asks itself, and not only at the next interval.
#[tokio::test]
async fn endpoint_without_an_answer_is_probed_at_once() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let closes = Peer::start(Behaviour::CloseInHandshake).await;
    let mut setup = setup(&world, terminated.address(), closes.address())
        .timeouts(|timeouts| timeouts.probe_interval = Duration::from_secs(3600));
    setup.config.clusters.swap(0, 1);
    let proxy = setup.start();
    let connections = async |count| {
        let reached = async {
            while closes.connections() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("a connection", reached).await;
    };
    // The first probe fails, so a second one follows soon, and a third one after an hour.
    connections(2).await;
    let mut client = connect(&proxy).await;
    client.write_all(&hello(PASSED)).await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    connections(4).await;
}

/// With a CA the answer to a client does not make an endpoint healthy that probes cannot verify. Without one it does.
#[tokio::test]
async fn answer_to_a_client_overrules_probes_only_without_a_ca() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let ca = TrustSource::File(world.dir.write("direct-ca.crt", world.cluster_ca.pem()));
    let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let http = Peer::start(Behaviour::Responds(answer)).await;
    for (trust, health) in [
        (ca, Health::Unhealthy),
        (TrustSource::Clients, Health::Healthy),
    ] {
        let mut setup = setup(&world, terminated.address(), http.address())
            .timeouts(|timeouts| timeouts.probe_interval = Duration::from_secs(3600));
        setup.config.clusters[1].trust = trust;
        setup.config.clusters.swap(0, 1);
        let proxy = setup.start();
        proxy
            .wait_for_health(http.address(), Health::Unhealthy)
            .await;
        // A failed endpoint cannot become healthy before this.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        let mut client = connect(&proxy).await;
        client.write_all(&hello(PASSED)).await.unwrap();
        read(&mut client, 5).await;
        drop(client);
        wait_for_numbers(proxy.admin(), &[("connections", 0.0)]).await;
        assert_eq!(proxy.health(http.address()).state, health);
    }
}
