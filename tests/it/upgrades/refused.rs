//! Only a 101 to the requested protocol opens a tunnel.

use http::StatusCode;
use standin::{
    client::{Http1, Response, TlsConnection},
    tcp,
    upstream::{ConnectionEnd, full},
    within,
};

use super::{ManualApiserver, SPDY, SPDY_101, WEBSOCKET, WEBSOCKET_101};
use crate::proxy::{HOST, Proxy, World};

/// Sends an upgrade request and more bytes, which must not be read as a request.
async fn send_upgrade(proxy: &Proxy, request: &str) -> Http1<TlsConnection> {
    let mut client = proxy.client().http1().await;
    client
        .send(format!(
            "{request}GET /secret HTTP/1.1\r\nHost: kube.test\r\n\r\n"
        ))
        .await;
    client
}

/// Returns the response, and asserts that the connection then closes cleanly without more bytes.
async fn only_response(client: &mut Http1<TlsConnection>) -> Response {
    let response = client.response().await;
    assert_eq!(
        response.head.header("connection"),
        Some("close"),
        "{:?}",
        response.head
    );
    assert_eq!(
        client.end().await.unwrap(),
        "",
        "no bytes after the response"
    );
    response
}

fn assert_status(response: &Response, code: u16) {
    assert_eq!(response.status, code, "{}", response.text());
    let status: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(status["kind"], "Status");
    assert_eq!(status["code"], code);
    assert!(
        response.head.header("content-length").is_some(),
        "gorilla/websocket reads up to 1024 bytes of the body"
    );
}

/// Case 11. kubectl would not fall back to SPDY if the proxy closed the socket without a response.
#[tokio::test]
async fn upgrade_without_a_reachable_apiserver_gets_503() {
    let world = World::new();
    let proxy = world.proxy(tcp::refused().await).start();
    for request in [WEBSOCKET, SPDY] {
        let mut client = send_upgrade(&proxy, request).await;
        assert_status(&only_response(&mut client).await, 503);
    }
}

/// Case 12. Each attempt of the client is one request upstream.
#[tokio::test]
async fn refusal_is_forwarded_and_each_attempt_is_one_request() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|_| async {
            http::Response::builder()
                .status(StatusCode::FORBIDDEN)
                .header("Audit-Id", "a")
                .body(full("{\"kind\":\"Status\",\"code\":403}"))
                .unwrap()
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    for request in [WEBSOCKET, SPDY] {
        let mut client = send_upgrade(&proxy, request).await;
        let response = only_response(&mut client).await;
        assert_status(&response, 403);
        assert_eq!(response.head.header("audit-id"), Some("a"));
    }
    let methods: Vec<_> = upstream
        .requests()
        .iter()
        .map(|request| request.method.clone())
        .collect();
    assert_eq!(methods, ["GET", "POST"]);
}

/// Case 13. x/net/websocket refuses with a head without fields, and closes the connection.
#[tokio::test]
async fn bare_403_is_forwarded() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let mut client = send_upgrade(&proxy, WEBSOCKET).await;
    let mut server = apiserver.next_request().await;
    server.send("HTTP/1.1 403 Forbidden\r\n\r\n").await;
    server.shutdown().await;
    let response = only_response(&mut client).await;
    assert_eq!((response.status, response.text().as_str()), (403, ""));
}

/// Cases 16, 17. No byte after the request goes upstream without a 101 (CVE-2018-1002105), and the upstream
/// connection is not used again.
#[tokio::test]
async fn no_bytes_follow_a_refused_upgrade_upstream() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (request, status) in [(SPDY, 200), (WEBSOCKET, 403), (SPDY, 400), (WEBSOCKET, 500)] {
        let mut client = send_upgrade(&proxy, request).await;
        let mut server = apiserver.next_request().await;
        client
            .send("GET /another HTTP/1.1\r\nHost: kube.test\r\n\r\n")
            .await;
        server
            .send(format!(
                "HTTP/1.1 {status} Reason\r\nContent-Length: 2\r\n\r\nno"
            ))
            .await;
        let response = only_response(&mut client).await;
        assert_eq!((response.status, response.text().as_str()), (status, "no"));
        assert_eq!(server.read_to_end().await.unwrap(), b"", "after {status}");
    }
}

/// CVE-2018-1002105. No status but 101 opens a tunnel: the client gets the response, a redirect as 502, and the
/// apiserver none of the bytes that follow the request.
#[tokio::test]
async fn no_status_but_101_opens_a_tunnel() {
    let statuses: Vec<u16> = [200..=208, 226..=226, 300..=308, 400..=418, 421..=431]
        .into_iter()
        .chain([451..=451, 500..=511, 299..=299, 599..=599, 799..=799])
        .flatten()
        .collect();
    assert!(statuses.len() >= 50, "{} statuses", statuses.len());
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (number, status) in statuses.into_iter().enumerate() {
        let (request, fields) = match number % 2 {
            0 => (SPDY, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"),
            _ => (WEBSOCKET, "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        };
        let mut client = send_upgrade(&proxy, request).await;
        let mut server = apiserver.next_request().await;
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n";
        let head = format!("HTTP/1.1 {status} Reason\r\n{fields}Content-Length: 0\r\n\r\n");
        server.send(format!("{interim}{head}")).await;
        client
            .send("GET /another HTTP/1.1\r\nHost: kube.test\r\n\r\n")
            .await;
        let response = only_response(&mut client).await;
        let expected = match status {
            300..=303 | 305..=308 => 502,
            status => status,
        };
        assert_eq!(response.status, expected, "{status}");
        assert_eq!(response.head.header("upgrade"), None, "{status}");
        let received = server.read_to_end().await.unwrap();
        assert_eq!(received, b"", "after {status}");
    }
}

/// client-go's SPDY dialer would follow a redirect and send the token of the user to its target.
#[tokio::test]
async fn redirected_upgrade_gets_502() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for status in [301, 302, 307, 308] {
        let mut client = send_upgrade(&proxy, SPDY).await;
        let mut server = apiserver.next_request().await;
        server
            .send(format!(
                "HTTP/1.1 {status} Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n"
            ))
            .await;
        let response = only_response(&mut client).await;
        assert_status(&response, 502);
        assert_eq!(response.head.header("location"), None);
        assert_eq!(server.read_to_end().await.unwrap(), b"");
    }
}

/// A 101 to another protocol than the requested one does not open a tunnel.
#[tokio::test]
async fn a_101_to_another_protocol_gives_502() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (request, response) in [
        (WEBSOCKET, SPDY_101.to_owned()),
        (SPDY, WEBSOCKET_101.to_owned()),
        (SPDY, SPDY_101.replace("SPDY/3.1", "h2c")),
        (SPDY, SPDY_101.replace("Upgrade: SPDY/3.1\r\n", "")),
        (SPDY, SPDY_101.replace("SPDY/3.1", "SPDY/3.1, websocket")),
        (
            SPDY,
            SPDY_101.replace(
                "Upgrade: SPDY/3.1\r\n",
                "Upgrade: SPDY/3.1\r\nUpgrade: websocket\r\n",
            ),
        ),
    ] {
        let mut client = send_upgrade(&proxy, request).await;
        let mut server = apiserver.next_request().await;
        server.send(&response).await;
        assert_status(&only_response(&mut client).await, 502);
        // How it ends does not matter: no client uses this connection any more.
        let received = server.read_to_end().await.unwrap_or_default();
        assert_eq!(received, b"", "after {response}");
    }
}

/// A 101 without an upgrade request is an error of the apiserver.
#[tokio::test]
async fn unsolicited_101_gives_502() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();

    let mut http1 = proxy.client().http1().await;
    http1
        .send("GET /ok HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    let mut server = apiserver.next_request().await;
    server.send(format!("{WEBSOCKET_101}rest")).await;
    assert_status(&http1.response().await, 502);

    let http2 = proxy.client().http2().await;
    let request = http2.get("https://kube.test/ok");
    let respond = async { apiserver.next_request().await.send(WEBSOCKET_101).await };
    let (response, ()) = within("a response", async { tokio::join!(request, respond) }).await;
    assert_eq!(response.unwrap().status, 502);
}

/// RFC 9110 §7.8 allows a body here, but no Kubernetes client sends one, and two parsers may read it in two ways.
#[tokio::test]
async fn upgrade_request_with_a_body_gets_400() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for (framing, body) in [
        ("Content-Length: 5", "GET /"),
        ("Transfer-Encoding: chunked", "5\r\nGET /\r\n0\r\n\r\n"),
    ] {
        let mut client = proxy.client().http1().await;
        let request = SPDY.replace("Content-Length: 0", framing);
        client.send(format!("{request}{body}")).await;
        assert_status(&client.response().await, 400);
    }
    assert_eq!(
        upstream.connections().len(),
        0,
        "no request reached the apiserver"
    );
}

/// Bytes after an upgrade request are never read as a request, also when the proxy itself refuses it.
#[tokio::test]
async fn no_bytes_follow_a_request_that_the_proxy_refuses() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let elsewhere = WEBSOCKET.replace("kube.test", "other.test");
    let expecting = SPDY.replace("Content-Length: 0", "Content-Length: 0\r\nExpect: more");
    let with_body = SPDY.replace("Content-Length: 0\r\n", "Content-Length: 1\r\n") + "x";
    let connect = "CONNECT kube.test:443 HTTP/1.1\r\nHost: kube.test:443\r\n\r\n";
    for (request, code) in [
        (elsewhere.as_str(), 421),
        (&expecting, 417),
        (&with_body, 400),
        (connect, 405),
    ] {
        let mut client = send_upgrade(&proxy, request).await;
        assert_status(&only_response(&mut client).await, code);
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// The upgrade of `kube-tls-proxy check` is for the proxy itself, and needs no token. Any other subprotocol passes.
#[tokio::test]
async fn upgrade_of_check_is_refused_in_own_words() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for (request, field) in [
        (WEBSOCKET, "Sec-WebSocket-Protocol"),
        (SPDY, "X-Stream-Protocol-Version"),
    ] {
        let (line, rest) = request.split_once("\r\n").unwrap();
        let lines = rest.split("\r\n").filter(|line| !line.starts_with(field));
        let rest = lines.collect::<Vec<_>>().join("\r\n");
        let with = |value: &str| format!("{line}\r\n{field}: {value}\r\n{rest}");
        let mut client = send_upgrade(&proxy, &with("check.kube-tls-proxy")).await;
        let response = only_response(&mut client).await;
        assert_status(&response, 400);
        let status: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(status["reason"], "UpgradeCheck");
        assert_eq!(upstream.connections().len(), 0);
    }
    let mut client = send_upgrade(&proxy, WEBSOCKET).await;
    assert_eq!(only_response(&mut client).await.status, 200);
}

/// The proxy does not use a connection that refused an upgrade for the next request.
#[tokio::test]
async fn connection_that_refused_an_upgrade_is_not_reused() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    client.send(WEBSOCKET).await;
    assert_eq!(client.response().await.status, 200);
    let refusing = upstream.next_request().await.connection;
    assert_eq!(
        upstream.connection_end(refusing).await,
        ConnectionEnd::Clean
    );
    let mut next = proxy.client().http1().await;
    next.get(HOST, "/version", "").await;
    assert_ne!(upstream.next_request().await.connection, refusing);
}
