//! Request and response bodies and their trailers. An aborted body never looks complete.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use standin::{
    client::{Http1, TlsConnection},
    frames::{self, FrameConnection, kind},
    upstream::{BodyEnd, Raw, channel},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::{
    proxy::{HOST, World, request_fields},
    responses::{BOTH, Protocol},
};

/// Case 49. The proxy itself sends the 100 when the upstream connection is ready for the body.
#[tokio::test]
async fn proxy_answers_expect_100_continue() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    let head =
        "POST /x HTTP/1.1\r\nHost: kube.test\r\nExpect: 100-Continue\r\nContent-Length: 5\r\n\r\n";
    for _ in 0..2 {
        client.send(head).await;
        assert_eq!(client.head().await.unwrap().status, 100);
        client.send("hello").await;
        assert_eq!(client.response().await.text(), "ok");
        let request = upstream.next_request().await;
        assert_eq!(request.lines("expect"), Vec::<&str>::new());
        assert_eq!(request.body().await, b"hello");
    }
}

/// Case 49. A 100 or 103 of the apiserver is not the response; the final response follows.
#[tokio::test]
async fn interim_responses_are_not_taken_for_the_response() {
    let world = World::new();
    let apiserver = world.apiserver().alpn(&["http/1.1"]).raw(|mut raw| async move {
        read_until(&mut raw, b"\r\n\r\n").await;
        let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                      HTTP/1.1 201 Created\r\nContent-Length: 4\r\n\r\nmade";
        raw.stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for protocol in BOTH {
        let answer = proxy.get(protocol, "/x").await;
        assert_eq!((answer.code, answer.text().as_str()), (201, "made"));
    }
}

/// HTTP/1.0 has no chunks. Its connections close after one response.
#[tokio::test]
async fn http1_0_client_gets_no_chunks() {
    let world = World::new();
    let upstream = world.apiserver().http(|request| async move {
        if request.uri().path() == "/length" {
            return Response::new(standin::upstream::full("whole"));
        }
        let (sender, body) = channel();
        tokio::spawn(async move { sender.send("part").await.unwrap() });
        Response::new(body)
    });
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    for (target, line, whole) in [
        ("/length", "Connection: keep-alive\r\n", "whole"),
        ("/chunks", "", "part"),
    ] {
        let mut client = proxy.client().http1().await;
        client
            .send(format!(
                "GET {target} HTTP/1.0\r\nHost: {HOST}\r\n{line}\r\n"
            ))
            .await;
        let head = client.head().await.unwrap();
        assert_eq!(head.lines("connection"), ["close"], "{target} {line:?}");
        assert_eq!(head.header("transfer-encoding"), None);
        assert_eq!(client.end().await.unwrap(), whole);
    }
}

/// One write and one TLS record for a head with a small body.
#[tokio::test]
async fn small_response_is_one_tls_record() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().connect().await.unwrap();
    for _ in 0..2 {
        let get = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        client.write_all(get.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        let record = client.record().await.unwrap().unwrap();
        let record = String::from_utf8_lossy(&record);
        assert!(record.starts_with("HTTP/1.1 200 OK\r\n"), "{record}");
        assert!(record.ends_with("\r\n\r\nok"), "{record}");
    }
}

/// A GET may have a body with or without a length.
#[tokio::test]
async fn get_body_arrives_with_any_framing() {
    let world = World::new();
    let upstream = world.apiserver().alpn(&["http/1.1"]).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    for framed in [
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Content-Length: 5\r\n\r\nhello",
    ] {
        client
            .send(format!("GET /x HTTP/1.1\r\nHost: kube.test\r\n{framed}"))
            .await;
        assert_eq!(client.response().await.text(), "ok");
        assert_eq!(upstream.next_request().await.body().await, b"hello");
    }
    let client = proxy.client().http2().await;
    let url = "https://kube.test/x";
    let request = Request::get(url).body(Bytes::from("hello")).unwrap();
    assert_eq!(client.request(request).await.unwrap().text(), "ok");
    assert_eq!(upstream.next_request().await.body().await, b"hello");
}

async fn read_until(raw: &mut Raw, end: &[u8]) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(end) {
        match raw.stream.read_buf(&mut seen).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Request trailers could smuggle fields past the checks of the head, so the proxy drops them.
#[tokio::test]
async fn request_trailers_are_dropped_before_http1() {
    let world = World::new();
    let (seen, mut requests) = mpsc::unbounded_channel();
    let apiserver = world.apiserver().alpn(&["http/1.1"]).raw(move |mut raw| {
        let seen = seen.clone();
        async move {
            seen.send(read_until(&mut raw, b"0\r\n\r\n").await).unwrap();
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            raw.stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: kube.test\r\nTrailer: x-remote-user\r\nTransfer-Encoding: chunked\r\n\r\n\
             4\r\nbody\r\n0\r\nX-Remote-User: admin\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.text(), "ok");
    post_with_trailers(proxy.client().http2().await).await;
    for protocol in BOTH {
        let request = requests.recv().await.unwrap().to_ascii_lowercase();
        assert!(
            request.ends_with("\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
            "{protocol:?} {request}"
        );
        assert!(!request.contains("trailer"), "{protocol:?} {request}");
    }
}

async fn post_with_trailers(client: standin::client::Http2) {
    let request = Request::post("https://kube.test/").header("trailer", "x-remote-user");
    let (response, mut body) = client
        .begin(request.body(()).unwrap(), false)
        .await
        .unwrap();
    body.send_data(Bytes::from("body"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-remote-user", "admin".parse().unwrap());
    body.send_trailers(trailers).unwrap();
    assert_eq!(within("a response", response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn request_trailers_are_dropped_before_http2() {
    let world = World::new();
    let (seen, mut frames) = mpsc::unbounded_channel();
    let apiserver = world.apiserver().raw(move |raw| {
        let seen = seen.clone();
        async move {
            let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
            let head = wire.expect(kind::HEADERS).await.unwrap();
            let mut body = Vec::new();
            loop {
                let data = wire.expect(kind::DATA).await.unwrap();
                body.extend_from_slice(&data.payload);
                if data.has(frames::END_STREAM) {
                    break;
                }
            }
            seen.send(body).unwrap();
            let ok = [(":status", "200")];
            wire.headers(head.stream, &ok, frames::END_STREAM)
                .await
                .unwrap();
            // Keep the connection open until the proxy closes it: closing it would lose frames in flight.
            while let Ok(Some(_)) = wire.next().await {}
        }
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    post_with_trailers(proxy.client().http2().await).await;
    assert_eq!(frames.recv().await.unwrap(), b"body");
}

/// Response trailers are forwarded; over HTTP/1.1 only to a client that sent `TE: trailers`.
#[tokio::test]
async fn response_trailers_reach_clients_that_accept_them() {
    let world = World::new();
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let apiserver = world
            .apiserver()
            .alpn(&[alpn, &["http/1.1"]].concat())
            .http(|_| async {
                let (sender, body) = channel();
                tokio::spawn(async move {
                    sender.send("part").await.unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-checksum", "1".parse().unwrap());
                    sender.trailers(trailers).await.unwrap();
                });
                Response::builder()
                    .header("trailer", "x-checksum")
                    .body(body)
                    .unwrap()
            });
        let upstream = apiserver.start().await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let request = Request::get("https://kube.test/").header("te", "trailers");
        let response = client
            .request(request.body(Bytes::new()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.text(), "part");
        assert_eq!(
            response.trailers.unwrap()["x-checksum"],
            "1",
            "from {alpn:?}"
        );
        for (te, trailers) in [
            ("Connection: TE\r\nTE: trailers\r\n", "x-checksum: 1\r\n"),
            ("", ""),
        ] {
            let mut client = proxy.client().http1().await;
            let lines = format!("Connection: close\r\n{te}");
            client
                .send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"))
                .await;
            client.head().await.unwrap();
            let body = client.end().await.unwrap();
            let body = String::from_utf8_lossy(&body).to_ascii_lowercase();
            assert_eq!(body, format!("4\r\npart\r\n0\r\n{trailers}\r\n"), "{te:?}");
        }
    }
}

/// Trailers must not contain fields for framing or for one connection (RFC 9110 §6.5.1).
#[tokio::test]
async fn forbidden_response_trailers_are_dropped() {
    let world = World::new();
    let apiserver = world.apiserver().alpn(&["http/1.1"]).raw(|mut raw| async move {
        read_until(&mut raw, b"\r\n\r\n").await;
        let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
                      Trailer: x-checksum, connection, x-named, transfer-encoding, keep-alive\r\n\r\n\
                      4\r\npart\r\n0\r\nConnection: x-named\r\nX-Named: 1\r\nKeep-Alive: a\r\n\
                      Transfer-Encoding: chunked\r\nContent-Length: 4\r\nX-Checksum: 1\r\n\r\n";
        raw.stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let response = client.get("https://kube.test/").await.unwrap();
    let trailers = response.trailers.unwrap();
    assert_eq!(trailers["x-checksum"], "1");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
}

/// How a client aborts an upload over HTTP/1.1.
#[derive(Debug, Clone, Copy)]
enum Abort {
    /// Closes TLS with `close_notify`, in the middle of the message.
    CloseNotify,
    /// Closes TCP without `close_notify`.
    CloseTcp,
    Reset,
}

async fn abort(client: Http1<TlsConnection>, how: Abort) {
    let (mut tls, _) = client.into_parts();
    match how {
        Abort::CloseNotify => tls.shutdown().await.unwrap(),
        Abort::CloseTcp => drop(tls),
        Abort::Reset => tls.reset(),
    }
}

/// An aborted upload never looks complete to the apiserver, not even without a length.
#[tokio::test]
async fn http1_upload_aborted_by_client_is_aborted_upstream() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for how in [Abort::CloseNotify, Abort::CloseTcp, Abort::Reset] {
        for (framing, part) in [
            ("Content-Length: 9", "part"),
            ("Transfer-Encoding: chunked", "4\r\npart\r\n"),
            ("Transfer-Encoding: chunked", "4\r\npart\r\n0\r\n"),
            ("Transfer-Encoding: chunked", "8\r\npart"),
        ] {
            let mut client = proxy.client().http1().await;
            let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n{part}");
            client.send(head).await;
            let request = upstream.next_request().await;
            abort(client, how).await;
            let end = request.body_end().await;
            assert!(
                matches!(end, BodyEnd::Incomplete(_)),
                "{how:?} {framing} {part:?}: {end:?}"
            );
        }
    }
}

/// Some HTTP/2 libraries take a body whose stream was reset with `CANCEL` or `NO_ERROR` for complete.
#[tokio::test]
async fn http2_upload_aborted_by_client_is_aborted_upstream() {
    const NO_ERROR: u32 = 0;
    const INTERNAL_ERROR: u32 = 2;
    const CANCEL: u32 = 8;
    let world = World::new();
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let upstream = world.apiserver().alpn(alpn).start().await;
        let proxy = world.proxy(upstream.address()).start();
        for code in [NO_ERROR, INTERNAL_ERROR, CANCEL] {
            for length in [None, Some(("content-length", "9"))] {
                let mut wire = proxy.frame_client().await;
                let mut fields = request_fields("POST", "/").to_vec();
                fields.extend(length);
                wire.headers(1, &fields, 0).await.unwrap();
                wire.data(1, "part", 0).await.unwrap();
                let request = upstream.next_request().await;
                wire.reset(1, code).await.unwrap();
                let end = request.body_end().await;
                assert!(
                    matches!(end, BodyEnd::Incomplete(_)),
                    "code {code} to {alpn:?}: {end:?}"
                );
            }
        }
    }
}

/// The same after an early response head, when only the connection still reads the request body.
#[tokio::test]
async fn upload_aborted_after_early_head_is_aborted_upstream() {
    const CANCEL: u32 = 8;
    let world = World::new();
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let apiserver = world.apiserver().alpn(alpn).http(|request| async {
            let (sender, body) = channel();
            tokio::spawn(async move {
                drop(request.into_body().read().await);
                drop(sender);
            });
            Response::new(body)
        });
        let upstream = apiserver.start().await;
        let proxy = world.proxy(upstream.address()).start();
        let mut wire = proxy.frame_client().await;
        let fields = request_fields("POST", "/");
        wire.headers(1, &fields, 0).await.unwrap();
        within("an early response head", wire.expect(kind::HEADERS))
            .await
            .unwrap();
        wire.data(1, "part", 0).await.unwrap();
        let request = upstream.next_request().await;
        wire.reset(1, CANCEL).await.unwrap();
        let end = request.body_end().await;
        assert!(matches!(end, BodyEnd::Incomplete(_)), "{alpn:?}: {end:?}");
    }
}

/// The same when the client connection is lost.
#[tokio::test]
async fn upload_on_lost_http2_connection_is_aborted_upstream() {
    let world = World::new();
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let upstream = world.apiserver().alpn(alpn).start().await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let request = Request::post("https://kube.test/").body(()).unwrap();
        let (_response, mut body) = client.begin(request, false).await.unwrap();
        body.send_data(Bytes::from("part"), false).unwrap();
        let request = upstream.next_request().await;
        drop(client);
        let end = request.body_end().await;
        assert!(matches!(end, BodyEnd::Incomplete(_)), "{alpn:?}: {end:?}");
    }
}

/// Uploads in many small frames, with an empty last frame, and large uploads.
#[tokio::test]
async fn uploads_arrive_complete_with_any_frame_size() {
    let world = World::new();
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let upstream = world
            .apiserver()
            .alpn(&[alpn, &["http/1.1"]].concat())
            .start()
            .await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let request = Request::post("https://kube.test/").body(()).unwrap();
        let (response, mut body) = client.begin(request, false).await.unwrap();
        for _ in 0..50 {
            body.send_data(Bytes::from("0123456789"), false).unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(within("a response", response).await.unwrap().status(), 200);
        let request = upstream.next_request().await;
        assert_eq!(request.body().await, b"0123456789".repeat(50));

        let large = vec![b'x'; 3 << 20];
        let answer = proxy
            .request(Protocol::Http2, "POST", "/", &[], &large)
            .await;
        assert_eq!(answer.code, 200);
        let answer = proxy
            .request(Protocol::Http1, "POST", "/", &[], &large)
            .await;
        assert_eq!(answer.code, 200);
        for _ in 0..2 {
            assert!(upstream.next_request().await.body().await == large);
        }
    }
}
