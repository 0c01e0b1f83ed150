//! Upstreams that are not the expected apiserver: they receive no byte of a request, and the client gets a `Status`.

use std::{net::SocketAddr, time::Duration};

use rustls_pki_types::ServerName;
use standin::{
    frames::{FrameConnection, kind},
    pki::Identity,
    tcp::{Behaviour, Peer, refused},
    upstream::{ConnectionEnd, Upstream},
};
use tokio::io::AsyncReadExt as _;

use crate::{
    proxy::{APISERVER, World},
    responses::{BOTH, ClientResponse, Protocol},
};

/// Sends one GET over each protocol.
async fn get_over_both(world: &World, upstream: SocketAddr) -> [ClientResponse; 2] {
    let setup = world.proxy(upstream);
    let proxy = setup
        .timeouts(|timeouts| timeouts.upstream_connect = Duration::from_millis(500))
        .start();
    [
        proxy.get(Protocol::Http1, "/ok").await,
        proxy.get(Protocol::Http2, "/ok").await,
    ]
}

/// Asserts that a certificate is refused: the client gets a 503 that says so, without `Retry-After`, and the
/// proxy sends nothing.
async fn assert_refused(world: &World, identity: Identity, expected: &str) {
    let upstream = Upstream::builder(identity).start().await;
    for (number, response) in get_over_both(world, upstream.address())
        .await
        .iter()
        .enumerate()
    {
        let message = response.assert_status(503, "ServiceUnavailable");
        assert!(
            message.contains(&format!("the apiserver's certificate {expected}, so")),
            "{message}"
        );
        assert_eq!(response.lines("retry-after"), Vec::<&str>::new());
        let end = upstream.connection_end(number).await;
        assert!(matches!(end, ConnectionEnd::Handshake(_)), "{end:?}");
    }
    assert_untouched(&upstream, 2);
}

#[track_caller]
fn assert_untouched(upstream: &Upstream, connections: usize) {
    let seen = upstream.connections();
    assert_eq!(seen.len(), connections);
    assert!(seen.iter().all(|seen| seen.bytes_received == 0), "{seen:?}");
    assert!(upstream.requests().is_empty());
}

/// Case 61.
#[tokio::test]
async fn certificate_of_an_unknown_ca_is_refused() {
    let world = World::new();
    let identity = world.public_ca.server(&[APISERVER]);
    assert_refused(&world, identity, "is not signed by the cluster CA").await;
}

/// Case 61. A CA with the same name but another key is another CA.
#[tokio::test]
async fn certificate_of_a_ca_with_the_same_name_is_refused() {
    let world = World::new();
    let impostor = standin::pki::Ca::new("cluster");
    let identity = impostor.server(&[APISERVER]);
    assert_refused(&world, identity, "is not signed by the cluster CA").await;
}

/// Another server may pose as the apiserver, which is worse than an apiserver that is down.
#[tokio::test]
async fn failed_verification_is_told_rather_than_a_refused_dial() {
    let world = World::new();
    let identity = world.public_ca.server(&[APISERVER]);
    let foreign = Upstream::builder(identity).start().await;
    let dead = refused().await;
    for addresses in [[dead, foreign.address()], [foreign.address(), dead]] {
        let setup = world.proxy(addresses[0]);
        let proxy = setup
            .cluster(|cluster| cluster.addresses = addresses.to_vec())
            .start();
        let response = proxy.get(Protocol::Http1, "/ok").await;
        let message = response.assert_status(503, "ServiceUnavailable");
        assert!(
            message.contains("is not signed by the cluster CA"),
            "{message}"
        );
    }
    assert!(foreign.requests().is_empty());
}

/// Case 61.
#[tokio::test]
async fn certificate_for_another_name_is_refused() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["other.test"]);
    assert_refused(&world, identity, "is for another name").await;
}

/// Case 61. The dialled address does not count as the expected name.
#[tokio::test]
async fn certificate_for_the_address_only_is_refused() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["127.0.0.1"]);
    assert_refused(&world, identity, "is for another name").await;
}

/// Case 61.
#[tokio::test]
async fn expired_certificate_is_refused() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).expired().build();
    assert_refused(&world, identity, "has expired").await;
}

/// Case 61.
#[tokio::test]
async fn certificate_that_is_not_yet_valid_is_refused() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).not_yet_valid().build();
    assert_refused(&world, identity, "is not valid yet").await;
}

/// Case 61. The common name does not count, even if it is the expected one.
#[tokio::test]
async fn certificate_without_san_is_refused() {
    let world = World::new();
    let leaf = world.cluster_ca.leaf(&[]).common_name(APISERVER);
    assert_refused(&world, leaf.build(), "is for another name").await;
}

/// Case 61. A kubelet's certificate is signed by the cluster CA too.
#[tokio::test]
async fn client_certificate_is_refused() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).client_auth().build();
    assert_refused(&world, identity, "is not a server certificate").await;
}

/// Case 61.
#[tokio::test]
async fn self_signed_certificate_is_refused() {
    let world = World::new();
    let identity = Identity::self_signed(&[APISERVER]);
    assert_refused(&world, identity, "is not signed by the cluster CA").await;
}

/// Case 61. A chain that does not reach the cluster CA proves nothing.
#[tokio::test]
async fn certificate_without_its_intermediate_is_refused() {
    let world = World::new();
    let intermediate = world.cluster_ca.intermediate("intermediate");
    let identity = intermediate.server(&[APISERVER]).without_intermediates();
    assert_refused(&world, identity, "is not signed by the cluster CA").await;
}

/// Case 61. Everyone can copy the certificate; only the key proves the identity.
#[tokio::test]
async fn certificate_with_another_key_is_refused() {
    let world = World::new();
    let identity = world.cluster_ca.server(&[APISERVER]).with_wrong_key();
    assert_refused(&world, identity, "cannot be verified").await;
}

/// An expected address is compared with the addresses of the certificate, not with its names.
#[tokio::test]
async fn expected_address_does_not_match_a_name() {
    let world = World::new();
    for (names, code) in [(["127.0.0.1"], 200), ([APISERVER], 503)] {
        let identity = world.cluster_ca.server(&names);
        let upstream = Upstream::builder(identity).start().await;
        let setup = world.proxy(upstream.address()).cluster(|cluster| {
            cluster.expected_name = ServerName::try_from("127.0.0.1").unwrap();
        });
        let proxy = setup.start();
        for protocol in BOTH {
            assert_eq!(proxy.get(protocol, "/").await.code, code, "{names:?}");
        }
        assert_eq!(upstream.connections()[0].sni, None);
    }
}

/// Asserts a 503 with `Retry-After`: the connection failed before a certificate, so the proxy sent nothing and
/// the client may repeat its request.
async fn assert_unreachable(upstream: SocketAddr, world: &World, expected: &str) {
    for response in get_over_both(world, upstream).await {
        let message = response.assert_status(503, "ServiceUnavailable");
        assert!(message.contains(expected), "{message}");
        assert_eq!(response.lines("retry-after"), ["1"]);
    }
}

/// Replies to the `ClientHello` with these bytes. Asserts a 503, and one connection per request.
async fn assert_hello_reply_is_refused(bytes: &[u8]) {
    let peer = Peer::start(Behaviour::Responds(bytes.to_vec())).await;
    assert_unreachable(peer.address(), &World::new(), "TLS handshake").await;
    assert_eq!(peer.connections(), 2);
}

/// Case 61. The proxy never falls back to plain HTTP.
#[tokio::test]
async fn plain_http_reply_gives_503() {
    assert_hello_reply_is_refused(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
}

/// Case 61. A `ServerHello` that chooses TLS 1.1.
#[tokio::test]
async fn tls_1_1_is_refused() {
    let mut hello = vec![0x03, 0x02];
    hello.extend([7; 32]);
    hello.extend([0, 0xc0, 0x13, 0]);
    let mut record = vec![22, 3, 2, 0, 42, 2, 0, 0, 38];
    record.extend(hello);
    assert_hello_reply_is_refused(&record).await;
}

/// Case 61. The alert that a server sends when it supports at most TLS 1.1 and the client offers more.
#[tokio::test]
async fn protocol_version_alert_gives_503() {
    assert_hello_reply_is_refused(&[21, 3, 1, 0, 2, 2, 70]).await;
}

#[tokio::test]
async fn reset_in_the_handshake_gives_503() {
    let peer = Peer::start(Behaviour::ResetInHandshake).await;
    assert_unreachable(peer.address(), &World::new(), "TLS handshake").await;
}

#[tokio::test]
async fn close_in_the_handshake_gives_503() {
    let peer = Peer::start(Behaviour::CloseInHandshake).await;
    assert_unreachable(peer.address(), &World::new(), "TLS handshake").await;
}

#[tokio::test]
async fn silence_in_the_handshake_gives_503() {
    let peer = Peer::start(Behaviour::Silent).await;
    assert_unreachable(
        peer.address(),
        &World::new(),
        "connecting to the apiserver timed out",
    )
    .await;
}

#[tokio::test]
async fn refused_connection_gives_503() {
    let address = refused().await;
    assert_unreachable(address, &World::new(), "does not accept connections").await;
}

/// The proxy starts with a name that does not resolve, and responds to requests without a long wait.
#[tokio::test]
async fn unresolvable_name_gives_503() {
    let world = World::new();
    let setup = world.proxy(refused().await).cluster(|cluster| {
        cluster.upstream_host = "apiserver.invalid".into();
    });
    let proxy = setup.start();
    for protocol in BOTH {
        let response = proxy.get(protocol, "/").await;
        let message = response.assert_status(503, "ServiceUnavailable");
        assert!(message.contains("no address"), "{message}");
        assert!(!message.contains("apiserver.invalid"), "{message}");
        assert_eq!(response.lines("retry-after"), ["1"]);
    }
}

/// Case 46. The request was sent and may have been processed, so the response does not tell the client to repeat it.
#[tokio::test]
async fn lost_connection_gives_502_without_retry_after() {
    let world = World::new();
    let apiserver = world.apiserver().raw(|mut raw| async move {
        if raw.connection.alpn.as_deref() == Some("h2") {
            let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
            wire.expect(kind::HEADERS).await.unwrap();
        } else {
            raw.stream.read_u8().await.unwrap();
        }
    });
    let upstream = apiserver.start().await;
    for response in get_over_both(&world, upstream.address()).await {
        let message = response.assert_status(502, "InternalError");
        assert!(
            message.contains("it may have processed the request"),
            "{message}"
        );
        assert_eq!(response.lines("retry-after"), Vec::<&str>::new());
    }
    assert_eq!(upstream.connections().len(), 2, "no request is sent twice");
}

/// After a failure the next request dials again, so the proxy uses a fixed apiserver immediately.
#[tokio::test]
async fn proxy_recovers_when_the_certificate_is_fixed() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).expired().build();
    let upstream = Upstream::builder(identity).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let url = "https://kube.test/";
    assert_eq!(client.get(url).await.unwrap().status, 503);
    upstream.present(&world.cluster_ca.server(&[APISERVER]));
    assert_eq!(client.get(url).await.unwrap().status, 200);
}
