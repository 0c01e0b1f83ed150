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
    let agreeing = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
    ];
    assert_refused(
        &World::new(),
        &agreeing,
        "length of the request body is ambiguous",
    )
    .await;
    // After this much padding the scanner can no longer read the value.
    let padded = format!(
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length:{}4\r\n\r\nbody",
        " ".repeat(70)
    );
    assert_refused(
        &World::new(),
        &[&padded],
        "length of the request body is ambiguous",
    )
    .await;
    let differing = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4\r\nContent-Length: 0\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4, 4\r\n\r\nbody",
    ];
    assert_refused(&World::new(), &differing, "not valid HTTP").await;
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

/// Case 60. hyper accepts any list of codings that ends with `chunked`.
#[tokio::test]
async fn coding_other_than_chunked_is_refused() {
    let requests = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ];
    assert_refused(
        &World::new(),
        &requests,
        "only supported Transfer-Encoding is chunked",
    )
    .await;
    let requests = [
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: identity\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked, gzip\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
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

/// The apiserver may send a bare 400, too. The proxy must not take it for hyper's response to a malformed
/// head, even when the next request has already arrived.
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

/// The proxy finds two lengths in a request after every body, however the body's end is written.
#[tokio::test]
async fn ambiguous_request_is_found_after_every_kind_of_body() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let decoy = "POST /decoy HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 99999\r\n\r\n";
    let length = decoy.len();
    let zeros = "0".repeat(70);
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    for body in [
        format!("{chunked}0\r\nX: y\n\n{decoy}"),
        format!("{chunked}0\r\n\n{decoy}"),
        format!("{chunked}{zeros}{length:x}\r\n{decoy}\r\n0\r\n\r\n"),
    ] {
        let mut client = proxy.client().http1().await;
        client
            .send(format!(
                "POST / HTTP/1.1\r\nHost: kube.test\r\n{body}\
                 POST /ambiguous HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 5\r\n{chunked}0\r\n\r\n"
            ))
            .await;
        assert_eq!(client.response().await.status, 200, "{body:?}");
        let response: ClientResponse = client.response().await.into();
        let text = response.assert_status(400, "BadRequest");
        assert!(text.contains("ambiguous"), "{body:?}: {text}");
        assert_eq!(client.end().await.unwrap(), "", "{body:?}");
    }
    let mut reached = upstream.requests().into_iter();
    assert!(reached.all(|request| request.target == "/"));
}

/// A body may contain the exact bytes that hyper writes for a malformed head, in one piece.
#[tokio::test]
async fn body_that_looks_like_a_refusal_is_not_replaced() {
    const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let world = World::new();
    let (pieces, body) = standin::upstream::channel();
    let body = std::sync::Mutex::new(Some(body));
    let length = "first".len() + BARE.len();
    let apiserver = world.apiserver().http(move |_| {
        let body = body.lock().unwrap().take();
        async move {
            let response = http::Response::builder();
            match body {
                // With a length, the piece is written without chunk framing around it.
                Some(body) => response.header("Content-Length", length).body(body),
                None => response.body(standin::upstream::full("second")),
            }
            .unwrap()
        }
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let request = "GET / HTTP/1.1\r\nHost: kube.test\r\n\r\n";
    client.send(format!("{request}{request}")).await;
    pieces.send("first").await.unwrap();
    let head = client.head().await.unwrap();
    assert_eq!(head.header("content-length"), Some(&*length.to_string()));
    assert_eq!(client.take(5).await.unwrap(), "first");
    pieces.send(BARE).await.unwrap();
    assert_eq!(client.take(BARE.len()).await.unwrap(), BARE);
    drop(pieces);
    assert_eq!(client.response().await.text(), "second");
    client.send("GET / HTTP/1.1\r\nX\r\n\r\n").await;
    let response: ClientResponse = client.response().await.into();
    response.assert_status(400, "BadRequest");
}
