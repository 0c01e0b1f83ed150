//! The proxy closes connections of clients that send nothing.

use std::time::Duration;

use standin::{frames::PREFACE, within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::proxy::{HOST, World};

const SHORT: Duration = Duration::from_millis(200);

/// A client that never begins TLS, or never ends its handshake.
#[tokio::test]
async fn client_without_a_handshake_is_disconnected() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.handshake = SHORT)
        .start();
    // The start of a record that contains a ClientHello.
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let began = Instant::now();
        let mut silent = TcpStream::connect(proxy.address()).await.unwrap();
        silent.write_all(sent).await.unwrap();
        let mut rest = Vec::new();
        within("the end", silent.read_to_end(&mut rest)).await.ok();
        assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
    }
    proxy.client().connect().await.unwrap();
}

/// A client that only connects, or stops in its `ClientHello`, takes no handshake slot.
#[tokio::test]
async fn silent_clients_take_no_handshake_slot() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.handshakes = 1)
        .timeouts(|timeouts| timeouts.handshake = Duration::from_secs(60))
        .start();
    let mut silent = Vec::new();
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let mut tcp = TcpStream::connect(proxy.address()).await.unwrap();
        tcp.write_all(sent).await.unwrap();
        silent.push(tcp);
    }
    let client = proxy.client();
    let handshake = within(
        "a handshake while other clients are silent",
        client.connect(),
    );
    handshake.await.unwrap();
}

/// A client that finishes its handshake, and then sends nothing or half a request head.
#[tokio::test]
async fn client_without_a_request_is_disconnected() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.request_head = SHORT)
        .start();
    for (alpn, sent) in [
        (&[][..], &b""[..]),
        (&["http/1.1"], b"GET /version HT"),
        (&["h2"], b""),
        (&["h2"], &PREFACE[..10]),
        (&["h2"], PREFACE),
    ] {
        let mut tls = proxy.client().alpn(alpn).connect().await.unwrap();
        let began = Instant::now();
        tls.write_all(sent).await.unwrap();
        tls.flush().await.unwrap();
        let mut rest = Vec::new();
        within("the end", tls.read_to_end(&mut rest)).await.ok();
        // The deadline started with the connection, a little earlier.
        assert!(began.elapsed() >= SHORT / 2, "{:?}", began.elapsed());
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// The head deadline does not apply after the head: not to a slow response, and not before the next request.
#[tokio::test]
async fn head_deadline_does_not_apply_after_the_head() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|_| async {
            tokio::time::sleep(SHORT * 2).await;
            http::Response::new(standin::upstream::full("late"))
        })
        .start()
        .await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.request_head = SHORT)
        .start();
    let mut http1 = proxy.client().http1().await;
    assert_eq!(http1.get(HOST, "/version", "").await.text(), "late");
    tokio::time::sleep(SHORT * 2).await;
    assert_eq!(http1.get(HOST, "/version", "").await.text(), "late");
    let http2 = proxy.client().http2().await;
    let response = http2.get("https://kube.test/version").await.unwrap();
    assert_eq!(response.text(), "late");
    tokio::time::sleep(SHORT * 2).await;
    let response = http2.get("https://kube.test/version").await.unwrap();
    assert_eq!(response.text(), "late");
}

/// The proxy closes the connection of an HTTP/1.1 client that is idle for longer than `clientIdle`.
#[tokio::test]
async fn idle_http1_client_is_disconnected() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.client_idle = SHORT)
        .start();
    let mut http1 = proxy.client().http1().await;
    http1.get(HOST, "/version", "").await;
    let began = Instant::now();
    // It may end without `close_notify`: no response is in progress, so none can look complete by mistake.
    assert_eq!(http1.end().await.unwrap_or_default(), "");
    assert!(began.elapsed() >= SHORT / 2, "{:?}", began.elapsed());
}
