//! Responses that arrive before the request is complete.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use standin::{
    client::{Http2, whole},
    frames::{END_HEADERS, END_STREAM, Frame, FrameConnection, encode_fields, kind},
    upstream::{Raw, RequestBody, ResponseBody, full},
    within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    proxy::{HOST, World},
    responses::ClientResponse,
};

const STATUS: &str =
    r#"{"kind":"Status","message":"Request entity too large: limit is 3145728","code":413}"#;
/// Far more than all buffers on the way can hold.
const UPLOAD: usize = 64 << 20;

/// Responds over HTTP/2 without reading the body, as Go's `MaxBytesReader` does.
async fn too_large(request: Request<RequestBody>) -> Response<ResponseBody> {
    drop(request);
    let response = Response::builder().status(413);
    let response = response.header("content-type", "application/json");
    response.body(full(STATUS)).unwrap()
}

/// Responds over HTTP/1.1 as Go does: it writes the response, closes the writing half, reads on for half a
/// second, and closes the connection.
async fn too_large_as_go(mut raw: Raw) {
    let mut space = vec![0; 64 << 10];
    raw.stream.read_u8().await.unwrap();
    let head = "HTTP/1.1 413 Request Entity Too Large\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let length = STATUS.len();
    let answer = format!("{head}Content-Length: {length}\r\n\r\n{STATUS}");
    raw.stream.write_all(answer.as_bytes()).await.unwrap();
    raw.stream.shutdown().await.unwrap();
    let reading = async { while raw.stream.read(&mut space).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(Duration::from_millis(500), reading)
        .await
        .ok();
}

/// Case 48. The client still uploads when it reads the response.
#[tokio::test]
async fn early_413_reaches_an_http1_client() {
    let world = World::new();
    let upstream = world.apiserver().raw(too_large_as_go).start().await;
    let proxy = world.proxy(upstream.address()).start();
    for framing in [
        format!("Content-Length: {UPLOAD}"),
        "Transfer-Encoding: chunked".to_owned(),
    ] {
        let mut client = proxy.client().http1().await;
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n");
        client.send(head).await;
        let piece = [b"4000\r\n", &vec![b'x'; 0x4000][..], b"\r\n"].concat();
        client.send(&piece).await;
        let answer: ClientResponse = client.response().await.into();
        let expected = (413, STATUS.to_owned());
        assert_eq!((answer.code, answer.text()), expected, "{framing}");
    }
}

/// Case 48. A client that reads only after its last write still gets the response: the proxy reads on for a
/// while instead of resetting the connection.
#[tokio::test]
async fn early_413_reaches_a_client_that_keeps_uploading() {
    let world = World::new();
    let upstream = world.apiserver().raw(too_large_as_go).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {UPLOAD}\r\n\r\n");
    client.send(head).await;
    // 2 MiB: a client may well have that much in flight.
    for _ in 0..32 {
        client.send(vec![b'x'; 64 << 10]).await;
    }
    let answer: ClientResponse = client.response().await.into();
    assert_eq!((answer.code, answer.text().as_str()), (413, STATUS));
}

async fn upload_over_http2(client: &Http2) -> ClientResponse {
    let request = Request::post("https://kube.test/").body(()).unwrap();
    let (response, mut body) = client.begin(request, false).await.unwrap();
    body.send_data(Bytes::from(vec![b'x'; UPLOAD]), false)
        .unwrap();
    let response = within("an early response", response).await.unwrap();
    whole(response).await.unwrap().into()
}

/// Case 48. Over HTTP/2 only the stream ends; the connection stays usable.
#[tokio::test]
async fn early_413_reaches_an_http2_client() {
    let world = World::new();
    for upstream in [
        world.apiserver().http(too_large).start().await,
        world
            .apiserver()
            .alpn(&["http/1.1"])
            .raw(too_large_as_go)
            .start()
            .await,
    ] {
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        for round in 0..2 {
            let answer = upload_over_http2(&client).await;
            let connections = upstream.connections();
            assert_eq!(
                (answer.code, answer.text().as_str()),
                (413, STATUS),
                "{round} {connections:#?}"
            );
        }
    }
}

/// Case 48. Go sends `RST_STREAM(NO_ERROR)` after a complete response: the client shall stop sending.
#[tokio::test]
async fn no_error_reset_after_early_response_keeps_it_complete() {
    const NO_ERROR: u32 = 0;
    let world = World::new();
    let apiserver = world.apiserver().raw(|raw| async {
        let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
        let head = wire.expect(kind::HEADERS).await.unwrap();
        wire.expect(kind::DATA).await.unwrap();
        let frame = |kind, flags, payload: Vec<u8>| {
            let stream = head.stream;
            let payload = payload.into();
            Frame {
                kind,
                flags,
                stream,
                payload,
            }
            .encode()
        };
        // In one write, so that the proxy sees the reset before it reads the body.
        let answer = [
            frame(
                kind::HEADERS,
                END_HEADERS,
                encode_fields(&[(":status", "413")]),
            ),
            frame(kind::DATA, END_STREAM, STATUS.into()),
            frame(kind::RST_STREAM, 0, NO_ERROR.to_be_bytes().to_vec()),
        ];
        let mut stream = wire.into_inner();
        stream.write_all(&answer.concat()).await.unwrap();
        stream.flush().await.unwrap();
        let mut space = vec![0; 64 << 10];
        while stream.read(&mut space).await.is_ok_and(|read| read > 0) {}
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let answer = upload_over_http2(&client).await;
    assert_eq!((answer.code, answer.text().as_str()), (413, STATUS));
}

/// A response of the proxy itself is early as well.
#[tokio::test]
async fn own_421_reaches_a_client_that_uploads() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    let head = format!("POST / HTTP/1.1\r\nHost: other.test\r\nContent-Length: {UPLOAD}\r\n\r\n");
    client.send(head).await;
    for _ in 0..16 {
        client.send(vec![b'x'; 64 << 10]).await;
    }
    let answer: ClientResponse = client.response().await.into();
    answer.assert_status(421, "MisdirectedRequest");

    let client = proxy.client().http2().await;
    let request = Request::post("https://other.test/").body(()).unwrap();
    let (response, mut body) = client.begin(request, false).await.unwrap();
    body.send_data(Bytes::from(vec![b'x'; UPLOAD]), false)
        .unwrap();
    let response = within("a refusal", response).await.unwrap();
    ClientResponse::from(whole(response).await.unwrap()).assert_status(421, "MisdirectedRequest");
    assert_eq!(upstream.connections().len(), 0);
}

/// Case 49. A client that waits for a 100 gets the 421 instead and does not upload.
#[tokio::test]
async fn own_421_replaces_100_continue() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let mut client = proxy.client().http1().await;
    client
        .send("POST / HTTP/1.1\r\nHost: other.test\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
        .await;
    let answer: ClientResponse = client.response().await.into();
    answer.assert_status(421, "MisdirectedRequest");
    assert_eq!(client.end().await.unwrap_or_default(), "");
}

/// RFC 9112 §9.6. A client that is not told would lose its next request. A body that has arrived does not cost the
/// connection.
#[tokio::test]
async fn close_is_announced_when_the_body_is_not_read() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).start();
    let refused = "POST / HTTP/1.1\r\nHost: other.test\r\n";
    for (rest, closes) in [
        ("Content-Length: 50000\r\n\r\npart", true),
        ("Expect: 100-continue\r\nContent-Length: 4\r\n\r\n", true),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n", true),
        ("Content-Length: 4\r\n\r\nbody", false),
        (
            "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            false,
        ),
    ] {
        let mut client = proxy.client().http1().await;
        client.send(format!("{refused}{rest}")).await;
        let answer: ClientResponse = client.response().await.into();
        answer.assert_status(421, "MisdirectedRequest");
        let announced = answer.lines("connection");
        if closes {
            assert_eq!(announced, ["close"], "{rest:?}");
            assert_eq!(client.end().await.unwrap(), "", "{rest:?}");
        } else {
            assert_eq!(announced, Vec::<&str>::new(), "{rest:?}");
            assert_eq!(client.get(HOST, "/", "").await.text(), "ok", "{rest:?}");
        }
    }
}

/// The client may keep sending after the head of the response, as in a gRPC stream through services/proxy.
#[tokio::test]
async fn upload_continues_after_early_head() {
    let world = World::new();
    let apiserver = world.apiserver().http(|request| async {
        let (sender, body) = standin::upstream::channel();
        tokio::spawn(async move {
            sender.send("first ").await.unwrap();
            let uploaded = request.into_body().read().await.unwrap();
            sender.send(uploaded).await.unwrap();
        });
        Response::new(body)
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let request = Request::post("https://kube.test/").body(()).unwrap();
    let (response, mut body) = client.begin(request, false).await.unwrap();
    let response = within("an early response head", response).await.unwrap();
    body.send_data(Bytes::from("then this"), true).unwrap();
    assert_eq!(whole(response).await.unwrap().text(), "first then this");

    let mut client = proxy.client().http1().await;
    client
        .send("POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 9\r\n\r\n")
        .await;
    let head = client.head().await.unwrap();
    client.send("then this").await;
    assert_eq!(client.body(&head).await.unwrap(), "first then this");
}
