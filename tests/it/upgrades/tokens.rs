//! Which requests are upgrades.

use standin::upstream::empty;

use super::{ManualApiserver, WEBSOCKET, WEBSOCKET_101, echo};
use crate::proxy::{HOST, World};

/// The two upgrade protocols of kube-apiserver, in upper or lower case, and with other connection options.
#[tokio::test]
async fn websocket_and_spdy_are_upgrades() {
    let world = World::new();
    let upstream = world.apiserver().http(echo).start().await;
    let proxy = world.proxy(upstream.address()).start();
    for (connection, token) in [
        ("Upgrade", "websocket"),
        ("upgrade", "WebSocket"),
        ("Upgrade", "SPDY/3.1"),
        ("UPGRADE", "spdy/3.1"),
        ("keep-alive, Upgrade", "websocket"),
        ("keep-alive\r\nConnection: upgrade", "websocket"),
    ] {
        let mut client = proxy.client().http1().await;
        let lines = format!("Connection: {connection}\r\nUpgrade: {token}\r\n");
        client
            .send(format!("GET /e HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"))
            .await;
        assert_eq!(client.head().await.unwrap().status, 101, "{lines}");
        client.send("x").await;
        assert_eq!(client.take(1).await.unwrap(), "x");
        let request = upstream.next_request().await;
        assert_eq!(request.lines("connection"), ["Upgrade"]);
        assert_eq!(request.lines("upgrade").len(), 1);
    }
}

/// Case 18. The proxy forwards any other upgrade as an ordinary request, without its upgrade fields.
#[tokio::test]
async fn other_protocols_are_not_upgrades() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for lines in [
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: Upgrade\r\nUpgrade: foo\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, SPDY/3.1\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade:\r\n",
        "Upgrade: websocket\r\n",
        "Connection: keep-alive\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade-Insecure-Requests\r\nUpgrade: websocket\r\n",
    ] {
        let mut client = proxy.client().http1().await;
        let response = client.get(HOST, "/version", lines).await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "ok"),
            "{lines}"
        );
        assert_eq!(
            client.get(HOST, "/again", "").await.status,
            200,
            "still HTTP after {lines}"
        );
        let request = upstream.next_request().await;
        for name in ["upgrade", "connection", "http2-settings"] {
            assert_eq!(request.lines(name), [""; 0], "{name} after {lines}");
        }
        upstream.next_request().await;
    }
}

/// HTTP/1.0 has no upgrades (RFC 9110 §7.8).
#[tokio::test]
async fn http10_is_never_upgraded() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    client.send(WEBSOCKET.replace("HTTP/1.1", "HTTP/1.0")).await;
    assert_eq!(client.response().await.text(), "ok");
    assert_eq!(upstream.next_request().await.lines("upgrade"), [""; 0]);
}

/// A connection never returns to HTTP after its tunnel began, even if the data in the tunnel looks like HTTP.
#[tokio::test]
async fn http_inside_a_tunnel_is_not_parsed() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let request = "GET /version HTTP/1.1\r\nHost: elsewhere\r\n\r\n";
    client.send(format!("{WEBSOCKET}{request}")).await;
    let mut server = apiserver.next_request().await;
    server.send(WEBSOCKET_101).await;
    assert_eq!(client.head().await.unwrap().status, 101);
    assert_eq!(server.read(request.len()).await, request.as_bytes());
    for status in [400, 414, 431] {
        let response = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
        server.send(&response).await;
        assert_eq!(client.take(response.len()).await.unwrap(), response);
        client.send(request).await;
        assert_eq!(server.read(request.len()).await, request.as_bytes());
    }
}

/// The proxy does not mistake a refusal of the apiserver for its own refusal of a malformed request.
#[tokio::test]
async fn bare_400_of_the_apiserver_reaches_a_pipelining_client() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|_| async {
            let response = http::Response::builder().status(400);
            response.body(empty()).unwrap()
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let request = format!("GET /version HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client.send(format!("{request}{request}")).await;
    for _ in 0..2 {
        let response = client.response().await;
        assert_eq!((response.status, response.text().as_str()), (400, ""));
    }
}
