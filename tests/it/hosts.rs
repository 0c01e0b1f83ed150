//! Which hosts and targets the proxy serves, and how it refuses all others.

use bytes::Bytes;
use http::{Request, Uri};
use standin::{
    client::Http2,
    frames::{self, FrameConnection, kind},
    within,
};

use crate::{
    proxy::{HOST, Proxy, World, request_fields},
    responses::{BOTH, ClientResponse, Protocol},
};

/// Sends these bytes and reads one response.
async fn raw(proxy: &Proxy, bytes: &str) -> ClientResponse {
    let mut client = proxy.client().http1().await;
    client.send(bytes).await;
    client.response().await.into()
}

/// Sends a request; h2 turns its URI into pseudo-header fields.
async fn http2(client: &Http2, method: &str, uri: &str, host: Option<&str>) -> ClientResponse {
    let mut request = Request::builder().method(method).uri(uri);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    let request = request.body(Bytes::new()).unwrap();
    client.request(request).await.unwrap().into()
}

/// Case 60. The proxy refuses ambiguous requests and tells the client why.
#[tokio::test]
async fn malformed_hosts_and_targets_are_refused_over_http1() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for (head, message) in [
        ("GET / HTTP/1.1", "names no host"),
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
            "GET https://kube.test/ HTTP/1.1\r\nHost: a b",
            "host is malformed",
        ),
        (
            "GET https://kube.test/ HTTP/1.1\r\nHost: kube.test\r\nHost: kube.test",
            "given more than once",
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
        ("GET / HTTP/1.1\r\nHost: kube.test:abc", "host is malformed"),
        (
            "GET / HTTP/1.1\r\nHost: kube.test:99999",
            "host is malformed",
        ),
    ] {
        let answer = raw(&proxy, &format!("{head}\r\n\r\n")).await;
        let found = answer.assert_status(400, "BadRequest");
        assert!(found.contains(message), "{head:?}: {found}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// RFC 9112 §3.2.2: with an absolute target `Host` is ignored, and the apiserver gets the host of the target.
#[tokio::test]
async fn absolute_target_decides_and_not_host_over_http1() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for (target, host, code) in [
        ("https://kube.test/version", "other.test", 200),
        ("https://kube.test:444/version", "kube.test", 200),
        ("https://KUBE.test/version", "kube.test:443", 200),
        ("https://other.test/ok", "kube.test", 421),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let answer = raw(&proxy, &request).await;
        assert_eq!(answer.code, code, "{target} {host}");
        if code == 200 {
            let received = upstream.next_request().await;
            assert_eq!(received.header("host"), target.split('/').nth(2));
        }
    }
}

/// RFC 9113 §8.3.1 and RFC 3986 §6.2.3: some clients send both, one of them with the default port.
#[tokio::test]
async fn host_with_the_default_port_is_the_same_host() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let client = proxy.client().http2().await;
    for (uri, host, code) in [
        ("https://kube.test:443/", "kube.test", 200),
        ("https://kube.test/", "kube.test:443", 200),
        ("https://KUBE.test:443/", "kube.TEST", 200),
        ("https://kube.test:6443/", "kube.test:6443", 200),
        ("https://kube.test:6443/", "kube.test", 400),
        ("https://kube.test/", "kube.test:80", 400),
    ] {
        let answer = http2(&client, "GET", uri, Some(host)).await;
        assert_eq!(answer.code, code, "{uri} {host}");
    }
}

/// kubeadm's `HAProxy` page sends HTTP/1.0 without `Host`; clouds and the kubelet send an address, and none sends SNI.
#[tokio::test]
async fn health_check_of_a_load_balancer_is_served() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    // For an address the client sends no SNI, as a health check does.
    let identity = world.public_ca.server(&[HOST, "127.0.0.9"]);
    let proxy = world.proxy_as(upstream.address(), &identity).start();
    let client = proxy.client().sni("127.0.0.9");
    let address = proxy.address();
    for (head, code) in [
        ("GET /healthz HTTP/1.0".to_owned(), 200),
        // What `option httpchk` sends without more.
        ("OPTIONS / HTTP/1.0".to_owned(), 200),
        (format!("GET /healthz HTTP/1.1\r\nHost: {address}"), 200),
        (format!("GET /healthz HTTP/1.0\r\nHost: {address}"), 200),
        (
            "GET /healthz HTTP/1.1\r\nHost: 198.51.100.1:443".to_owned(),
            200,
        ),
        ("GET /healthz HTTP/1.1".to_owned(), 400),
        (
            "GET /healthz HTTP/1.0\r\nHost: rebound.test".to_owned(),
            421,
        ),
        (
            "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1.nip.test".to_owned(),
            421,
        ),
        ("GET /healthz HTTP/1.1\r\nHost: localhost".to_owned(), 421),
    ] {
        let mut client = client.http1().await;
        client.send(format!("{head}\r\n\r\n")).await;
        let answer: ClientResponse = client.response().await.into();
        assert_eq!(answer.code, code, "{head:?}");
    }
}

/// A kubeconfig with `server: https://localhost:6443` and `tls-server-name`, for a tunnel of ssh.
#[tokio::test]
async fn localhost_is_served_by_the_name_of_the_handshake() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    for protocol in BOTH {
        let answer: ClientResponse = match protocol {
            Protocol::Http1 => {
                let mut client = proxy.client().http1().await;
                client.get("localhost:6443", "/", "").await.into()
            }
            Protocol::Http2 => {
                let client = proxy.client().http2().await;
                http2(&client, "GET", "https://localhost:6443/", None).await
            }
        };
        assert_eq!(answer.code, 200, "{protocol:?}");
    }
}

/// The `http` crate takes no such URI, and kube-apiserver does.
#[tokio::test]
async fn target_that_is_no_uri_is_refused_in_words_over_http1() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for target in ["/?query=up{job=\"a\"}", "/?a<b", "/?a>b", "/a<b"] {
        let answer = raw(
            &proxy,
            &format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        )
        .await;
        let found = answer.assert_status(400, "BadRequest");
        assert!(found.contains("percent-encode it"), "{target}: {found}");
        assert_eq!(answer.lines("connection"), ["close"], "{target}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// h2 itself resets the stream of a request that it cannot parse. The client learns why, and the connection lives.
#[tokio::test]
async fn malformed_request_over_http2_gets_400_in_words() {
    const PROTOCOL_ERROR: u32 = 1;
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut wire = proxy.frame_client().await;
    let long = format!("/{}", "x".repeat(65_534));
    let mut stream = 1;
    for (path, more, is_fine) in [
        ("/?query=up{job=\"a\"}", None, false),
        ("/fine", None, true),
        ("/a<b", None, false),
        ("/?a>b", None, false),
        (&long, None, false),
        ("/fine", Some(("connection", "close")), false),
        ("/fine", Some(("te", "gzip")), false),
        ("/fine", None, true),
    ] {
        let head = request_fields("GET", path);
        let head: Vec<_> = head.into_iter().chain(more).collect();
        for (block, flags, kind) in split(&frames::encode_fields(&head)) {
            wire.send(kind, flags, stream, block).await.unwrap();
        }
        let found = within("a response", wire.expect(kind::HEADERS))
            .await
            .unwrap();
        assert_eq!(found.stream, stream);
        let start = &path[..path.len().min(30)];
        if is_fine {
            assert_eq!(found.payload[0], OK, "{start}");
        } else {
            assert_eq!(found.payload[0], BAD_REQUEST, "{start}");
            assert!(found.has(frames::END_STREAM), "{start}");
            let words = String::from_utf8_lossy(&found.payload);
            assert!(words.contains("warning"), "{words}");
            assert!(words.contains("must be percent-encoded"), "{words}");
            let reset = within("a reset", wire.expect(kind::RST_STREAM))
                .await
                .unwrap();
            assert_eq!(
                (reset.stream, reset.error_code()),
                (stream, Some(PROTOCOL_ERROR))
            );
        }
        stream += 2;
    }
    assert_eq!(upstream.requests().len(), 2);
}

/// A header block as HEADERS and CONTINUATION frames.
fn split(block: &[u8]) -> Vec<(Vec<u8>, u8, u8)> {
    const MAX_FRAME: usize = 16 * 1024;
    let count = block.len().div_ceil(MAX_FRAME);
    let frames = block.chunks(MAX_FRAME).enumerate();
    frames
        .map(|(number, part)| {
            let (first, last) = (number == 0, number + 1 == count);
            let end_headers = if last { frames::END_HEADERS } else { 0 };
            let end_stream = if first { frames::END_STREAM } else { 0 };
            let kind = if first {
                kind::HEADERS
            } else {
                kind::CONTINUATION
            };
            (part.to_vec(), end_headers | end_stream, kind)
        })
        .collect()
}

/// Case 42. h2 compares neither `:authority` with `host` nor `:scheme` with TLS.
#[tokio::test]
async fn malformed_hosts_are_refused_over_http2() {
    let (_world, upstream, proxy) = World::with_proxy().await;
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
        ("https://kube.test:99999/", None, "host is malformed"),
    ] {
        let answer = http2(&client, "GET", uri, host).await;
        let found = answer.assert_status(400, "BadRequest");
        assert!(found.contains(message), "{uri} {host:?}: {found}");
    }
    assert_eq!(upstream.connections().len(), 0);
    let same = http2(&client, "GET", "https://kube.test/", Some("KUBE.test")).await;
    assert_eq!(same.code, 200, "one host written in two ways");
    assert_eq!(
        upstream.next_request().await.lines("host"),
        Vec::<&str>::new()
    );
}

/// The `http` crate drops everything from `#` on, so the first target would delete all config maps of the namespace.
#[tokio::test]
async fn targets_with_a_hash_are_refused_over_http1() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for target in [
        "/api/v1/namespaces/n/configmaps/#y",
        "/#",
        "/a?b#c",
        "https://kube.test/#y",
        "https://kube.test#y",
        "#/..",
        "#",
        "?x",
    ] {
        let request = format!("DELETE {target} HTTP/1.1\r\nHost: kube.test\r\n\r\n");
        let answer = raw(&proxy, &request).await;
        answer.assert_status(400, "BadRequest");
        assert_eq!(answer.lines("connection"), ["close"], "{target}");
        // In two writes, with a request before and after it.
        let mut client = proxy.client().http1().await;
        assert_eq!(client.get(HOST, "/", "").await.status, 200);
        upstream.next_request().await;
        let (first, last) = request.split_at(8);
        client.send(first).await;
        client.send(format!("{last}{request}")).await;
        let answer: ClientResponse = client.response().await.into();
        answer.assert_status(400, "BadRequest");
    }
    assert!(
        upstream
            .requests()
            .iter()
            .all(|request| request.method == "GET")
    );
}

/// As over HTTP/1.1, with every HPACK encoding that a client can choose for the target.
#[tokio::test]
async fn targets_with_a_hash_are_refused_over_http2() {
    /// A field with an indexed name and a literal value.
    fn literal(first: u8, value: &str) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap();
        [&[first, length], value.as_bytes()].concat()
    }
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut wire = proxy.frame_client().await;
    // `:method: GET`, `:scheme: https` and `:authority: kube.test`.
    let rest = [&[0x82, 0x87][..], &literal(0x01, HOST)].concat();
    let named = frames::encode_fields(&[(":path", "/a#y")]);
    let target = "/api/v1/namespaces/n/configmaps/#y";
    let mut stream = 1;
    for (path, status) in [
        (literal(0x04, "/fine"), OK),
        (literal(0x04, target), BAD_REQUEST),
        (literal(0x14, "/never/indexed#"), BAD_REQUEST),
        (named, BAD_REQUEST),
        (literal(0x04, "#"), BAD_REQUEST),
        (literal(0x04, "#/.."), BAD_REQUEST),
        (literal(0x04, "?x"), BAD_REQUEST),
        // `/a#b`, coded by Huffman.
        (vec![0x04, 0x84, 0x60, 0x7f, 0xf5, 0x1f], BAD_REQUEST),
        // It goes into the table, and comes back as an index, or as the name of another value.
        (literal(0x44, "/kept#y"), BAD_REQUEST),
        (vec![0xbe], BAD_REQUEST),
        (literal(0x7e, "/other#y"), BAD_REQUEST),
        (vec![0xbf], BAD_REQUEST),
        // A target without a hash, and a field that is not a target.
        (
            [&literal(0x04, "/also/fine")[..], &[0x0f, 0x00, 0x01, b'#']].concat(),
            OK,
        ),
    ] {
        let block = [&rest[..], &path].concat();
        let end = frames::END_STREAM | frames::END_HEADERS;
        wire.send(kind::HEADERS, end, stream, block).await.unwrap();
        let head = within("a response", wire.expect(kind::HEADERS)).await;
        assert_eq!(head.unwrap().payload[0], status, "{path:x?}");
        stream += 2;
    }
    // Byte by byte, in two frames.
    let block = [&rest[..], &literal(0x04, target)].concat();
    let (first, last) = block.split_at(block.len() - 2);
    wire.send(kind::HEADERS, frames::END_STREAM, stream, first.to_vec())
        .await
        .unwrap();
    wire.send(
        kind::CONTINUATION,
        frames::END_HEADERS,
        stream,
        last.to_vec(),
    )
    .await
    .unwrap();
    let head = within("a response", wire.expect(kind::HEADERS)).await;
    assert_eq!(head.unwrap().payload[0], BAD_REQUEST);
    assert_eq!(upstream.requests().len(), 2);
}

/// The proxy remembers each such target of a connection, because the client can repeat it by its HPACK index. A
/// client that sends hundreds of them gets a GOAWAY.
#[tokio::test]
async fn too_many_targets_with_a_hash_end_the_connection() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::wide_client(tls).await.unwrap();
    for number in 0..300 {
        let path = format!("/{number}#");
        let fields = request_fields("GET", &path);
        let stream = 2 * number + 1;
        wire.headers(stream, &fields, frames::END_STREAM)
            .await
            .unwrap();
        let head = within("a response", wire.expect(kind::HEADERS)).await;
        let Ok(head) = head else { break };
        assert_eq!(head.payload[0], BAD_REQUEST);
    }
    let goaway = within("GOAWAY", wire.expect(kind::GOAWAY)).await.unwrap();
    assert_eq!(goaway.error_code(), Some(0));
    assert_eq!(upstream.connections().len(), 0);
}

/// h2 reads an empty length as 0; an apiserver that speaks HTTP/1.1 refuses it.
#[tokio::test]
async fn empty_content_length_is_refused_over_http2() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut wire = proxy.frame_client().await;
    let length = [("content-length", "")];
    let fields = [&request_fields("POST", "/x")[..], &length].concat();
    wire.headers(1, &fields, frames::END_STREAM).await.unwrap();
    let head = within("a response", wire.expect(kind::HEADERS)).await;
    assert_eq!(head.unwrap().payload[0], BAD_REQUEST);
    assert_eq!(upstream.connections().len(), 0);
}

/// The first byte of a response head: `:status` 200 and 400 in the static table of HPACK.
const OK: u8 = 0x88;
const BAD_REQUEST: u8 = 0x8c;

/// Case 42. A request without `:authority` may name its host in `Host` (RFC 9113 §8.3.1).
#[tokio::test]
async fn http2_without_authority_is_routed_by_host() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut wire = proxy.frame_client().await;
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

/// Case 60. The proxy accepts an absolute target with a served host (RFC 9112 §3.2.2) and forwards it in origin form.
#[tokio::test]
async fn absolute_target_with_served_host_is_forwarded() {
    let (_world, upstream, proxy) = World::with_proxy().await;
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

/// `https://kube.test?x` has no path; the apiserver must get one (RFC 9112 §3.2.1), after the prefix of the cluster.
#[tokio::test]
async fn absolute_target_without_path_gets_one() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let setup = world.proxy(upstream.address());
    let prefixed = setup.cluster(|cluster| cluster.path_prefix = "/k8s".into());
    for (proxy, prefix) in [(proxy, ""), (prefixed.start(), "/k8s")] {
        for (target, received) in [
            ("https://kube.test?x=1", "/?x=1"),
            ("https://kube.test", "/"),
        ] {
            let answer = raw(&proxy, &format!("GET {target} HTTP/1.1\r\n\r\n")).await;
            assert_eq!(answer.code, 200, "{target}: {}", answer.text());
            let request = upstream.next_request().await;
            assert_eq!(request.target, format!("{prefix}{received}"), "{target}");
        }
    }
}

/// The response to an unknown host is 421, whatever the SNI was, and the apiserver receives nothing.
#[tokio::test]
async fn unknown_hosts_get_421() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for host in [
        "other.test",
        "kube.test.other.test",
        "a.kube.test",
        "test",
        "kube.test..",
        "xkube.test",
    ] {
        let answer = raw(&proxy, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        answer.assert_status(421, "MisdirectedRequest");
        let client = proxy.client().http2().await;
        let answer = http2(&client, "GET", &format!("https://{host}/"), None).await;
        let message = answer.assert_status(421, "MisdirectedRequest");
        assert!(message.contains("server in the kubeconfig"), "{message}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// A request to an IP address is routed by the SNI of its connection (`tls-server-name` in a kubeconfig).
#[tokio::test]
async fn ip_address_host_is_routed_by_sni() {
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

/// Case 60. The 405 explains that this is not a forward proxy. The connection does not become a tunnel.
#[tokio::test]
async fn connect_is_refused() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for target in ["kube.test:443", "other.test:443", "127.0.0.1:22"] {
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let answer = raw(&proxy, &request).await;
        let message = answer.assert_status(405, "MethodNotAllowed");
        assert!(message.contains("proxy-url"), "{message}");
        assert!(answer.lines("allow")[0].contains("GET"));
        let client = proxy.client().http2().await;
        let uri = Uri::builder().authority(target).build().unwrap();
        let request = Request::connect(uri).body(Bytes::new()).unwrap();
        let answer: ClientResponse = client.request(request).await.unwrap().into();
        answer.assert_status(405, "MethodNotAllowed");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// Case 60. The proxy does not enable extended CONNECT, so such a request is malformed (RFC 8441 §3).
#[tokio::test]
async fn extended_connect_is_refused() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut wire = proxy.frame_client().await;
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

/// After a refusal the connection of the client stays usable.
#[tokio::test]
async fn connection_stays_usable_after_a_refused_host() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    let refused: ClientResponse = client.get("other.test", "/", "").await.into();
    refused.assert_status(421, "MisdirectedRequest");
    assert_eq!(client.get(HOST, "/", "").await.status, 200);
    for protocol in BOTH {
        assert_eq!(proxy.get(protocol, "/").await.code, 200);
    }
}
