//! Responses that arrive before the request is complete.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use standin::{
    client::{Http2, TlsConnection, whole},
    frames::{ACK, END_HEADERS, END_STREAM, Frame, FrameConnection, FrameTap, encode_fields, kind},
    upstream::{Raw, RequestBody, ResponseBody, Upstream, full},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use crate::{
    proxy::{HOST, Proxy, World},
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

/// The frames of one stream until its response is complete or it is reset, each with the number of its TLS record.
struct StreamFrames {
    tls: TlsConnection,
    tap: FrameTap,
    records: usize,
    seen: Vec<(usize, Frame)>,
}

impl StreamFrames {
    /// Begins a POST whose body is not complete.
    async fn post(proxy: &Proxy, authority: &str, part: &[u8]) -> Self {
        let mut wire = proxy.frame_client().await;
        let head = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", authority),
            (":path", "/"),
        ];
        wire.headers(1, &head, 0).await.unwrap();
        wire.data(1, part.to_vec(), 0).await.unwrap();
        Self {
            tls: wire.into_inner(),
            tap: FrameTap::from_server(),
            records: 0,
            seen: Vec::new(),
        }
    }

    /// Sends one more frame of the body.
    async fn send(&mut self, data: &[u8], flags: u8) {
        self.write(&Frame {
            kind: kind::DATA,
            flags,
            stream: 1,
            payload: data.to_vec().into(),
        })
        .await;
    }

    async fn write(&mut self, frame: &Frame) {
        self.tls.write_all(&frame.encode()).await.unwrap();
        self.tls.flush().await.unwrap();
    }

    /// Sends a ping and reads until its answer.
    async fn ping(&mut self) {
        self.write(&Frame {
            kind: kind::PING,
            flags: 0,
            stream: 0,
            payload: Bytes::from_static(b"the ping"),
        })
        .await;
        self.read_until(|frame| frame.kind == kind::PING && frame.has(ACK))
            .await;
    }

    /// Reads whole records until one has such a frame. Returns the number of its record.
    async fn read_until(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> usize {
        loop {
            let record = self.tls.record().await.unwrap().unwrap();
            self.records += 1;
            let frames = self.tap.feed(&record);
            let found = frames.iter().any(&is_wanted);
            self.seen
                .extend(frames.into_iter().map(|frame| (self.records, frame)));
            if found {
                return self.records;
            }
        }
    }

    async fn end_of_response(&mut self) -> usize {
        self.read_until(|frame| frame.stream == 1 && frame.has(END_STREAM) && frame.kind <= 1)
            .await
    }

    fn resets(&self) -> Vec<Option<u32>> {
        let resets = self.seen.iter().map(|(_, frame)| frame);
        let resets = resets.filter(|frame| frame.kind == kind::RST_STREAM);
        resets.map(Frame::error_code).collect()
    }
}

/// Refusals of the proxy and of an apiserver over both protocols.
async fn refusing(world: &World) -> [(Upstream, &'static str); 3] {
    let http1 = world.apiserver().alpn(&["http/1.1"]).raw(too_large_as_go);
    [
        (world.apiserver().start().await, "other.test"),
        (world.apiserver().http(too_large).start().await, HOST),
        (http1.start().await, HOST),
    ]
}

/// curl 7.88 loses a response whose reset comes in the same read.
#[tokio::test]
async fn early_response_leaves_before_the_reset_of_its_stream() {
    const NO_ERROR: u32 = 0;
    let world = World::new();
    for (upstream, authority) in refusing(&world).await {
        let proxy = world.proxy(upstream.address()).start();
        let mut client = StreamFrames::post(&proxy, authority, b"{}").await;
        let response = client.end_of_response().await;
        let answered = Instant::now();
        let reset = client
            .read_until(|frame| frame.kind == kind::RST_STREAM)
            .await;
        assert!(reset > response, "{:?}", client.seen);
        assert_eq!(client.resets(), [Some(NO_ERROR)], "{authority}");
        // The rest of a body that is on its way has time to arrive.
        assert!(answered.elapsed() > Duration::from_millis(500));
    }
}

/// The end of a small body is on its way when the response comes.
#[tokio::test]
async fn body_that_ends_after_early_response_sees_no_reset() {
    let world = World::new();
    for (upstream, authority) in refusing(&world).await {
        let proxy = world.proxy(upstream.address()).start();
        let mut client = StreamFrames::post(&proxy, authority, b"{").await;
        client.end_of_response().await;
        client.send(b"}", END_STREAM).await;
        // Frames are answered in order, and then the stream would have had its reset.
        client.ping().await;
        client.ping().await;
        assert_eq!(client.resets(), [], "{authority}: {:?}", client.seen);
    }
}

/// A client that uploads more than its window still sends all of it.
#[tokio::test]
async fn rest_of_a_large_body_is_discarded_after_early_response() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let client = proxy.client().http2().await;
    let request = Request::post("https://other.test/").body(()).unwrap();
    let (response, mut body) = client.begin(request, false).await.unwrap();
    body.send_data(Bytes::from(vec![b'x'; 2 << 20]), false)
        .unwrap();
    let response = within("a refusal", response).await.unwrap();
    ClientResponse::from(whole(response).await.unwrap()).assert_status(421, "MisdirectedRequest");
    body.reserve_capacity(1);
    // Ready once the proxy has taken what came before.
    let capacity = within("a window", poll_fn(|cx| body.poll_capacity(cx))).await;
    capacity.unwrap().unwrap();
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(client.get("https://kube.test/").await.unwrap().status, 200);
    let resets = client.frames();
    let resets = resets.iter().filter(|frame| frame.kind == kind::RST_STREAM);
    assert_eq!(resets.count(), 0);
}

/// A client cannot hold its streams: each is reset after about a second, and then another one can begin.
#[tokio::test]
async fn unfinished_bodies_hold_their_streams_only_for_a_moment() {
    const STREAMS: u32 = 8;
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.streams_per_connection = STREAMS)
        .start();
    let client = proxy.client().http2().await;
    let mut bodies = Vec::new();
    // Three times as many as may be open: `begin` waits until a stream is free.
    for _ in 0..3 * STREAMS {
        let request = Request::post("https://other.test/").body(()).unwrap();
        let (response, body) = client.begin(request, false).await.unwrap();
        bodies.push(body);
        let response = within("a refusal", response).await.unwrap();
        assert_eq!(response.status(), 421);
    }
    assert_eq!(client.get("https://kube.test/").await.unwrap().status, 200);
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
