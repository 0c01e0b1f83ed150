//! Which hosts and targets are served, and what all others are told.

use bytes::Bytes;
use http::{Request, Uri};
use standin::{
    client::Http2,
    frames::{self, FrameConnection, kind},
    within,
};

use crate::{
    proxy::{HOST, Proxy, World},
    status::{Answer, BOTH},
};

/// Sends these bytes and reads one response.
async fn raw(proxy: &Proxy, bytes: &str) -> Answer {
    let mut client = proxy.client().http1().await;
    client.send(bytes).await;
    client.response().await.into()
}

/// Sends a request whose URI is taken apart into pseudo-fields.
async fn http2(client: &Http2, method: &str, uri: &str, host: Option<&str>) -> Answer {
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let request = request.body(Bytes::new()).unwrap();
    client.request(request).await.unwrap().into()
}

/// Case 60. What cannot be routed for certain is not routed at all, and the client learns why.
#[tokio::test]
async fn malformed_hosts_and_targets_are_refused_over_http1() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for (head, message) in [
        ("GET / HTTP/1.1", "names no host"),
        ("GET / HTTP/1.0", "names no host"),
        ("GET / HTTP/1.1\r\nHost:", "host is malformed"),
        (
            "GET / HTTP/1.1\r\nHost: kube.test\r\nHost: kube.test",
            "given more than once",
        ),
        (
            "GET / HTTP/1.1\r\nHost: kube.test\r\nHost: other.test",
            "given more than once",
        ),
        (
            "GET / HTTP/1.1\r\nHost: kube.test, kube.test",
            "host is malformed",
        ),
        (
            "GET / HTTP/1.1\r\nHost: user@kube.test",
            "host is malformed",
        ),
        ("GET / HTTP/1.1\r\nHost: kube.test/x", "host is malformed"),
        ("GET / HTTP/1.1\r\nHost: :443", "host is malformed"),
        ("GET / HTTP/1.1\r\nHost: kube test", "host is malformed"),
        (
            "GET https://other.test/ HTTP/1.1\r\nHost: kube.test",
            "two different hosts",
        ),
        (
            "GET https://kube.test/ HTTP/1.1\r\nHost: other.test",
            "two different hosts",
        ),
        (
            "GET https://kube.test:444/ HTTP/1.1\r\nHost: kube.test",
            "two different hosts",
        ),
        ("GET https://user@kube.test/ HTTP/1.1", "host is malformed"),
        (
            "GET http://kube.test/ HTTP/1.1\r\nHost: kube.test",
            "scheme is not https",
        ),
        (
            "GET ftp://kube.test/ HTTP/1.1\r\nHost: kube.test",
            "scheme is not https",
        ),
        (
            "GET kube.test:443 HTTP/1.1\r\nHost: kube.test:443",
            "not a path",
        ),
        ("GET * HTTP/1.1\r\nHost: kube.test", "not a path"),
    ] {
        let answer = raw(&proxy, &format!("{head}\r\n\r\n")).await;
        let said = answer.status(400, "BadRequest");
        assert!(said.contains(message), "{head:?}: {said}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// Case 42. hyper compares neither `:authority` with `host` nor `:scheme` with TLS.
#[tokio::test]
async fn malformed_hosts_are_refused_over_http2() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    for (uri, host, message) in [
        (
            "https://kube.test/",
            Some("other.test"),
            "two different hosts",
        ),
        (
            "https://other.test/",
            Some("kube.test"),
            "two different hosts",
        ),
        ("https://kube.test/", Some("a b"), "host is malformed"),
        ("https://user@kube.test/", None, "host is malformed"),
        ("http://kube.test/", None, "scheme is not https"),
    ] {
        let answer = http2(&client, "GET", uri, host).await;
        let said = answer.status(400, "BadRequest");
        assert!(said.contains(message), "{uri} {host:?}: {said}");
    }
    assert_eq!(upstream.connections().len(), 0);
    let same = http2(&client, "GET", "https://kube.test/", Some("KUBE.test")).await;
    assert_eq!(same.code, 200, "one host written in two ways");
    assert_eq!(
        upstream.next_request().await.lines("host"),
        Vec::<&str>::new()
    );
}

/// Case 42. `Host` alone names the host as well (RFC 9113 §8.3.1).
#[tokio::test]
async fn http2_without_authority_goes_by_its_host_field() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::client(tls, &[]).await.unwrap();
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/x"),
        ("host", HOST),
    ];
    wire.headers(1, &fields, frames::END_STREAM).await.unwrap();
    let request = upstream.next_request().await;
    assert_eq!(request.authority.as_deref(), Some(HOST));
    let head = within("a response", wire.expect(kind::HEADERS))
        .await
        .unwrap();
    assert_eq!(head.stream, 1);
}

/// Case 60. An absolute target of ours is accepted (RFC 9112 §3.2.2) and goes up in origin form.
#[tokio::test]
async fn absolute_target_of_ours_is_served() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for head in [
        "GET https://kube.test//a%2F?b=1; HTTP/1.1\r\nHost: kube.test",
        "GET https://kube.test//a%2F?b=1; HTTP/1.1",
        "GET HTTPS://Kube.Test//a%2F?b=1; HTTP/1.1\r\nHost: kube.test",
    ] {
        let answer = raw(&proxy, &format!("{head}\r\n\r\n")).await;
        assert_eq!(answer.code, 200, "{head:?}: {}", answer.text());
        let request = upstream.next_request().await;
        assert_eq!(request.target, "//a%2F?b=1;");
        assert!(request.lines("host")[0].eq_ignore_ascii_case(HOST));
        assert_eq!(request.lines("host").len(), 1);
    }
}

/// A host that is not served gets 421, whatever the handshake was about, and nothing is sent.
#[tokio::test]
async fn foreign_hosts_are_misdirected() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for host in [
        "other.test",
        "kube.test.other.test",
        "a.kube.test",
        "test",
        "kube.test..",
        "xkube.test",
    ] {
        let answer = raw(&proxy, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        answer.status(421, "MisdirectedRequest");
        let client = proxy.client().http2().await;
        let answer = http2(&client, "GET", &format!("https://{host}/"), None).await;
        let message = answer.status(421, "MisdirectedRequest");
        assert!(message.contains("server in the kubeconfig"), "{message}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// A bare address is routed by the name of the handshake (`tls-server-name` in a kubeconfig), and only then.
#[tokio::test]
async fn bare_address_goes_by_the_handshake() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let identity = world.public_ca.server(&[HOST]);
    let proxy = world.proxy_as(upstream.address(), &identity).start();
    for host in ["192.0.2.1", "192.0.2.1:6443", "[2001:db8::1]:6443"] {
        let answer = raw(&proxy, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(answer.code, 200, "{host}: {}", answer.text());
        assert_eq!(upstream.next_request().await.lines("host"), [host]);
        let client = proxy.client().http2().await;
        let answer = http2(&client, "GET", &format!("https://{host}/"), None).await;
        assert_eq!(answer.code, 200);
        upstream.next_request().await;
    }
}

/// Without a served name in the handshake an address must be one of the certificate's.
#[tokio::test]
async fn bare_address_without_a_name_must_be_served() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for (host, code) in [("127.0.0.1", 200), ("192.0.2.1", 421)] {
        let mut client = proxy.client().sni("127.0.0.1").http1().await;
        let answer: Answer = client.get(host, "/", "").await.into();
        assert_eq!(answer.code, code, "{host}");
    }
    assert_eq!(upstream.requests().len(), 1);
}

/// Case 60. 405 says that this is no forward proxy, and what is; the connection does not become a tunnel.
#[tokio::test]
async fn connect_is_refused() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for target in ["kube.test:443", "other.test:443", "127.0.0.1:22"] {
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let answer = raw(&proxy, &request).await;
        let message = answer.status(405, "MethodNotAllowed");
        assert!(message.contains("proxy-url"), "{message}");
        assert!(answer.lines("allow")[0].contains("GET"));
        let client = proxy.client().http2().await;
        let uri = Uri::builder().authority(target).build().unwrap();
        let request = Request::connect(uri).body(Bytes::new()).unwrap();
        let answer: Answer = client.request(request).await.unwrap().into();
        answer.status(405, "MethodNotAllowed");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// Case 60. An extended CONNECT was never offered, so it is no request at all (RFC 8441 §3).
#[tokio::test]
async fn extended_connect_is_refused() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::client(tls, &[]).await.unwrap();
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", "/api/v1/pods/p/exec"),
    ];
    wire.headers(1, &fields, 0).await.unwrap();
    let reset = within("a reset", wire.expect(kind::RST_STREAM))
        .await
        .unwrap();
    assert_eq!((reset.stream, reset.error_code()), (1, Some(1)));
    assert_eq!(upstream.connections().len(), 0);
}

/// A refusal costs the client nothing else: its connection goes on.
#[tokio::test]
async fn connection_goes_on_after_a_refused_host() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let refused: Answer = client.get("other.test", "/", "").await.into();
    refused.status(421, "MisdirectedRequest");
    assert_eq!(client.get(HOST, "/", "").await.status, 200);
    for protocol in BOTH {
        assert_eq!(proxy.get(protocol, "/").await.code, 200);
    }
}
