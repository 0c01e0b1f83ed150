//! Who keeps the proxy waiting is not waited for without end.

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
async fn a_client_without_a_handshake_is_let_go() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.handshake = SHORT)
        .start();
    // The beginning of a record that announces a ClientHello.
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let began = Instant::now();
        let mut silent = TcpStream::connect(proxy.address()).await.unwrap();
        silent.write_all(said).await.unwrap();
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
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"] {
        let mut tcp = TcpStream::connect(proxy.address()).await.unwrap();
        tcp.write_all(said).await.unwrap();
        silent.push(tcp);
    }
    let client = proxy.client();
    let shaken = within("a handshake beside a silent client", client.connect());
    shaken.await.unwrap();
}

/// TLS and then nothing, or half a request head.
#[tokio::test]
async fn a_client_without_a_request_is_let_go() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.request_head = SHORT)
        .start();
    for (alpn, said) in [
        (&[][..], &b""[..]),
        (&["http/1.1"], b"GET /version HT"),
        (&["h2"], b""),
        (&["h2"], &PREFACE[..10]),
        (&["h2"], PREFACE),
    ] {
        let mut tls = proxy.client().alpn(alpn).connect().await.unwrap();
        let began = Instant::now();
        tls.write_all(said).await.unwrap();
        tls.flush().await.unwrap();
        let mut rest = Vec::new();
        within("the end", tls.read_to_end(&mut rest)).await.ok();
        // The deadline began with the connection, a little before.
        assert!(began.elapsed() >= SHORT / 2, "{:?}", began.elapsed());
    }
    assert_eq!(upstream.requests().len(), 0);
}

/// The deadline of a head is none for what follows it: a slow answer, or the next request.
#[tokio::test]
async fn only_the_head_is_hurried() {
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

/// An HTTP/1.1 client that says nothing for long loses its connection.
#[tokio::test]
async fn an_idle_http1_client_is_let_go() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.client_idle = SHORT)
        .start();
    let mut http1 = proxy.client().http1().await;
    http1.get(HOST, "/version", "").await;
    let began = Instant::now();
    // hyper ends it without `close_notify`; no response is in progress, so none can look complete.
    assert_eq!(http1.end().await.unwrap_or_default(), "");
    assert!(began.elapsed() >= SHORT / 2, "{:?}", began.elapsed());
}
