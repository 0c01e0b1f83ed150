//! Upstreams that are not the expected apiserver: each gets no request byte, and the client a `Status`.

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

/// Asks once over each protocol.
async fn ask(world: &World, upstream: SocketAddr) -> [ClientResponse; 2] {
    let setup = world.proxy(upstream);
    let proxy = setup
        .timeouts(|timeouts| timeouts.upstream_connect = Duration::from_millis(500))
        .start();
    [
        proxy.get(Protocol::Http1, "/api").await,
        proxy.get(Protocol::Http2, "/api").await,
    ]
}

/// A certificate that cannot be verified: 503 that says so, without `Retry-After`, and nothing was sent.
async fn refuses(world: &World, identity: Identity, expected: &str) {
    let upstream = Upstream::builder(identity).start().await;
    for (number, answer) in ask(world, upstream.address()).await.iter().enumerate() {
        let message = answer.assert_status(503, "ServiceUnavailable");
        assert!(
            message.contains(&format!("the apiserver's certificate {expected}, so")),
            "{message}"
        );
        assert_eq!(answer.lines("retry-after"), Vec::<&str>::new());
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
async fn unknown_ca() {
    let world = World::new();
    let identity = world.public_ca.server(&[APISERVER]);
    refuses(&world, identity, "is not signed by the cluster CA").await;
}

/// Case 61. A CA that merely has the same name is another CA.
#[tokio::test]
async fn ca_of_the_same_name() {
    let world = World::new();
    let impostor = standin::pki::Ca::new("cluster");
    let identity = impostor.server(&[APISERVER]);
    refuses(&world, identity, "is not signed by the cluster CA").await;
}

/// Case 61.
#[tokio::test]
async fn wrong_name() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["other.test"]);
    refuses(&world, identity, "is for another name").await;
}

/// Case 61. The address that was dialled does not stand in for the expected name.
#[tokio::test]
async fn address_instead_of_the_expected_name() {
    let world = World::new();
    let identity = world.cluster_ca.server(&["127.0.0.1"]);
    refuses(&world, identity, "is for another name").await;
}

/// Case 61.
#[tokio::test]
async fn expired() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).expired().build();
    refuses(&world, identity, "has expired").await;
}

/// Case 61.
#[tokio::test]
async fn not_yet_valid() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).not_yet_valid().build();
    refuses(&world, identity, "is not valid yet").await;
}

/// Case 61. The common name does not count, even if it is the expected one.
#[tokio::test]
async fn no_subject_alternative_name() {
    let world = World::new();
    let leaf = world.cluster_ca.leaf(&[]).common_name(APISERVER);
    refuses(&world, leaf.build(), "is for another name").await;
}

/// Case 61. A kubelet's certificate is signed by the cluster CA too.
#[tokio::test]
async fn for_clients_only() {
    let world = World::new();
    let identity = world.cluster_ca.leaf(&[APISERVER]).client_auth().build();
    refuses(&world, identity, "is not a server certificate").await;
}

/// Case 61.
#[tokio::test]
async fn self_signed_leaf() {
    let world = World::new();
    let identity = Identity::self_signed(&[APISERVER]);
    refuses(&world, identity, "is not signed by the cluster CA").await;
}

/// Case 61. The certificate is public; only its key proves anything.
#[tokio::test]
async fn wrong_key() {
    let world = World::new();
    let identity = world.cluster_ca.server(&[APISERVER]).with_wrong_key();
    refuses(&world, identity, "cannot be verified").await;
}

/// The address is verified as such when it is what is expected.
#[tokio::test]
async fn expected_address_is_not_a_name() {
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

/// What never gets as far as a certificate: 503 that may be repeated, because nothing was sent.
async fn unreachable(upstream: SocketAddr, world: &World, expected: &str) {
    for answer in ask(world, upstream).await {
        let message = answer.assert_status(503, "ServiceUnavailable");
        assert!(message.contains(expected), "{message}");
        assert_eq!(answer.lines("retry-after"), ["1"]);
    }
}

/// Answers the `ClientHello` with this, and fails the test if the proxy then speaks on.
async fn answers_hello_with(bytes: &[u8]) {
    let peer = Peer::start(Behaviour::Responds(bytes.to_vec())).await;
    unreachable(peer.address(), &World::new(), "TLS handshake").await;
    assert_eq!(peer.connections(), 2);
}

/// Case 61. There is no way to fall back to.
#[tokio::test]
async fn plain_http() {
    answers_hello_with(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
}

/// Case 61. A `ServerHello` that chooses TLS 1.1.
#[tokio::test]
async fn only_tls_1_1() {
    let mut hello = vec![0x03, 0x02];
    hello.extend([7; 32]);
    hello.extend([0, 0xc0, 0x13, 0]);
    let mut record = vec![22, 3, 2, 0, 42, 2, 0, 0, 38];
    record.extend(hello);
    answers_hello_with(&record).await;
}

/// Case 61. What a server that wants TLS 1.1 or less says to a client that offers more.
#[tokio::test]
async fn alert_protocol_version() {
    answers_hello_with(&[21, 3, 1, 0, 2, 2, 70]).await;
}

#[tokio::test]
async fn reset_in_the_handshake() {
    let peer = Peer::start(Behaviour::ResetInHandshake).await;
    unreachable(peer.address(), &World::new(), "TLS handshake").await;
}

#[tokio::test]
async fn close_in_the_handshake() {
    let peer = Peer::start(Behaviour::CloseInHandshake).await;
    unreachable(peer.address(), &World::new(), "TLS handshake").await;
}

#[tokio::test]
async fn silence_in_the_handshake() {
    let peer = Peer::start(Behaviour::Silent).await;
    unreachable(
        peer.address(),
        &World::new(),
        "connecting to the apiserver timed out",
    )
    .await;
}

#[tokio::test]
async fn nobody_listens() {
    let address = refused().await;
    unreachable(address, &World::new(), "does not accept connections").await;
}

/// A name that does not resolve is no reason not to start, and no reason to wait for long.
#[tokio::test]
async fn no_address_known() {
    let world = World::new();
    let setup = world.proxy(refused().await).cluster(|cluster| {
        cluster.upstream_host = "apiserver.invalid".into();
    });
    let proxy = setup.start();
    for protocol in BOTH {
        let answer = proxy.get(protocol, "/").await;
        let message = answer.assert_status(503, "ServiceUnavailable");
        assert!(message.contains("no address"), "{message}");
        assert!(!message.contains("apiserver.invalid"), "{message}");
        assert_eq!(answer.lines("retry-after"), ["1"]);
    }
}

/// Case 46. The request was sent and may have been carried out, so nobody is told to repeat it.
#[tokio::test]
async fn connection_lost_without_an_answer_is_502_without_retry_after() {
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
    for answer in ask(&world, upstream.address()).await {
        let message = answer.assert_status(502, "InternalError");
        assert!(
            message.contains("it may have processed the request"),
            "{message}"
        );
        assert_eq!(answer.lines("retry-after"), Vec::<&str>::new());
    }
    assert_eq!(upstream.connections().len(), 2, "nothing is sent twice");
}

/// After every failure the next connection is tried afresh: a mended apiserver is found at once.
#[tokio::test]
async fn recovers_when_the_certificate_is_mended() {
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
