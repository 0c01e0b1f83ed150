//! Malformed heads, and heads that two parsers could read in two ways.

use crate::{proxy::World, responses::ClientResponse};

/// Follows every refused request; it must never be served as a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: kube.test\r\n\r\n";

/// Sends each request. Asserts a 400 that contains `message`, no second response, and no upstream connection.
async fn assert_refused(world: &World, requests: &[&str], message: &str) {
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    for request in requests {
        let mut client = proxy.client().http1().await;
        client.send(format!("{request}{SMUGGLED}")).await;
        let response: ClientResponse = client.response().await.into();
        let text = response.assert_status(400, "BadRequest");
        assert!(text.contains(message), "{request:?}: {text}");
        let rest = client.end().await;
        assert_eq!(rest.unwrap_or_default(), "", "{request:?}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// Case 60.
#[tokio::test]
async fn length_together_with_coding_is_refused() {
    let requests = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\ncontent-length:5\r\ntransfer-encoding:chunked\r\n\r\n0\r\n\r\n",
    ];
    assert_refused(
        &World::new(),
        &requests,
        "length of the request body is ambiguous",
    )
    .await;
}

/// Case 60. Two lengths that agree are refused as well: another proxy on the path may add them up.
#[tokio::test]
async fn repeated_content_length_is_refused() {
    let repeated = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
    ];
    assert_refused(
        &World::new(),
        &repeated,
        "length of the request body is ambiguous",
    )
    .await;
    let list = ["POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4, 4\r\n\r\nbody"];
    assert_refused(&World::new(), &list, "not valid HTTP").await;
}

/// Case 60.
#[tokio::test]
async fn content_length_that_is_not_a_number_is_refused() {
    let requests: Vec<String> = ["+4", "-4", "0x4", "4a", "", "4 4", "99999999999999999999"]
        .iter()
        .map(|length| {
            format!("POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: {length}\r\n\r\nbody")
        })
        .collect();
    let requests: Vec<&str> = requests.iter().map(String::as_str).collect();
    assert_refused(&World::new(), &requests, "not valid HTTP").await;
}

/// Case 60. Any list of codings that ends with `chunked` would be valid.
#[tokio::test]
async fn coding_other_than_chunked_is_refused() {
    let requests = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: identity\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ];
    assert_refused(
        &World::new(),
        &requests,
        "only supported Transfer-Encoding is chunked",
    )
    .await;
    let requests =
        ["POST / HTTP/1.0\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"];
    assert_refused(&World::new(), &requests, "not valid HTTP").await;
}

/// Case 60.
#[tokio::test]
async fn malformed_request_head_is_refused() {
    let requests = [
        "GET / HTTP/1.1\r\nHost: kube.test\r\nX: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\nX : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\n X: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: kube.test\r\nX\0: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: kube.test\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: kube.test\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: kube.test\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: kube.test\r\n\r\n",
        "GET / HTTP/3.0\r\nHost: kube.test\r\n\r\n",
        "GET /\r\nHost: kube.test\r\n\r\n",
    ];
    assert_refused(&World::new(), &requests, "").await;
}

/// RFC 9112 §2.2 lets a recipient accept a bare LF as a line end; the proxy sends CRLF upstream.
#[tokio::test]
async fn bare_line_feeds_in_a_head_are_sent_as_crlf() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    client
        .send("POST /a HTTP/1.1\nHost: kube.test\nContent-Length: 4\nX: 1\n\nbody")
        .await;
    assert_eq!(client.response().await.status, 200);
    let request = upstream.next_request().await;
    let head = String::from_utf8(request.head.clone().unwrap().to_vec()).unwrap();
    assert_eq!(
        head.matches('\n').count(),
        head.matches("\r\n").count(),
        "{head:?}"
    );
    assert_eq!(request.lines("x"), ["1"]);
    assert_eq!(request.body().await, b"body");
}

/// A bare LF is not allowed in a chunked body: the proxy aborts malformed chunks and never repairs them.
#[tokio::test]
async fn malformed_chunks_abort_the_request() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for chunks in [
        "4\nbody\r\n0\r\n\r\n",
        "4\r\nbodyX0\r\n\r\n",
        "x\r\nbody",
        "4;\nbody\r\n0\r\n\r\n",
        "-4\r\nbody",
    ] {
        let mut client = proxy.client().http1().await;
        let head = "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}{chunks}")).await;
        let response: ClientResponse = client.response().await.into();
        let message = response.assert_status(400, "BadRequest");
        assert!(
            message.contains("request body is incomplete"),
            "{chunks:?}: {message}"
        );
        for request in upstream.requests() {
            let end = request.body_end().await;
            assert!(
                matches!(end, standin::upstream::BodyEnd::Incomplete(_)),
                "{chunks:?}: {end:?}"
            );
        }
    }
}

/// A client that speaks HTTP/2 without ALPN gets no response and reaches no apiserver.
#[tokio::test]
async fn http2_preface_without_alpn_ends_the_connection() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    client.send(standin::frames::PREFACE).await;
    let rest = client.end().await.unwrap_or_default();
    assert!(!rest.starts_with(b"HTTP/1.1 2"), "{rest:?}");
    assert_eq!(upstream.connections().len(), 0);
}

/// The apiserver may send a bare 400, too. It is no response of the proxy and closes no connection.
#[tokio::test]
async fn bare_400_of_the_apiserver_is_not_replaced() {
    let world = World::new();
    let apiserver = world.apiserver().http(|request| async move {
        let status = if request.uri().path() == "/bare" {
            400
        } else {
            200
        };
        let response = http::Response::builder().status(status);
        response.body(standin::upstream::empty()).unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("GET /bare HTTP/1.1\r\nHost: kube.test\r\n\r\nGET /next HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    let bare = client.response().await;
    assert_eq!((bare.status, bare.text().as_str()), (400, ""));
    assert_eq!(bare.head.lines("connection"), Vec::<&str>::new());
    assert_eq!(client.response().await.status, 200);
    client.send("GET /x HTTP/1.1\r\nX\r\n\r\n").await;
    let response: ClientResponse = client.response().await.into();
    response.assert_status(400, "BadRequest");
}

/// Where the end of a body is written in a way that two parsers read differently, no later byte is a request.
#[tokio::test]
async fn no_request_follows_a_body_with_an_uncertain_end() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let zeros = "0".repeat(70);
    for end in ["0\r\nX: y\n\n", "0\r\n\n", &format!("{zeros}\r\n\r\n")] {
        let mut client = proxy.client().http1().await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\n\r\n{end}{SMUGGLED}"
            ))
            .await;
        let response: ClientResponse = client.response().await.into();
        let text = response.assert_status(400, "BadRequest");
        assert!(text.contains("incomplete"), "{end:?}: {text}");
        assert_eq!(response.lines("connection"), ["close"]);
        assert_eq!(client.end().await.unwrap(), "", "{end:?}");
    }
    let mut reached = upstream.requests().into_iter();
    assert!(reached.all(|request| request.target == "/"));
}

/// Spaces around a length are no part of it, however many there are.
#[tokio::test]
async fn padded_length_is_read() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let spaces = " ".repeat(70);
    let request = "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length:";
    client
        .send(format!("{request}{spaces}4\t\r\n\r\nbody"))
        .await;
    assert_eq!(client.response().await.status, 200);
    assert_eq!(upstream.next_request().await.body().await, b"body");
    assert_eq!(client.get(crate::proxy::HOST, "/", "").await.status, 200);
}
