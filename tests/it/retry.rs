//! When the proxy sends a request again, and when it must not.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use standin::{
    client::Http2Response,
    frames::{END_STREAM, FrameConnection, kind},
    tcp::{Behaviour, Peer},
    upstream::{Raw, Upstream},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
};

use crate::{
    admin,
    proxy::{HOST, World},
};

/// How often a request is sent at most.
const MAX_TRIES: usize = 7;
const CANCEL: u32 = 8;
const REFUSED_STREAM: u32 = 7;

type Wire = FrameConnection<tokio_rustls::server::TlsStream<tokio::net::TcpStream>>;

/// A request that the apiserver processed: its connection and its body.
type Processed = (usize, Bytes);

/// What the apiserver does with the second request of a connection. Other requests get a response.
#[derive(Clone, Copy)]
pub(crate) enum Outcome {
    /// GOAWAY that names the previous stream as the last processed one, then the connection closes, as Go does.
    Goaway,
    /// `RST_STREAM(REFUSED_STREAM)`.
    Refused,
    /// GOAWAY that counts the request as processed, then the connection closes.
    ProcessedAndLost,
    /// `RST_STREAM(CANCEL)`.
    Reset,
}

pub(crate) struct Apiserver {
    pub(crate) upstream: Upstream,
    processed: mpsc::UnboundedReceiver<Processed>,
}

impl Apiserver {
    /// An apiserver that ends the second request on each of its first `connections` with `outcome`.
    pub(crate) async fn start(world: &World, outcome: Outcome, connections: usize) -> Self {
        let (sender, processed) = mpsc::unbounded_channel();
        let upstream = world.apiserver().raw(move |raw| {
            let sender = sender.clone();
            async move {
                let id = raw.connection.id;
                // An error here means that the proxy closed the connection, which ends the script.
                drop(script(raw, (id < connections).then_some(outcome), &sender).await);
            }
        });
        Self {
            upstream: upstream.start().await,
            processed,
        }
    }

    fn processed(&mut self) -> Vec<Processed> {
        std::iter::from_fn(|| self.processed.try_recv().ok()).collect()
    }
}

async fn script(
    raw: Raw,
    outcome: Option<Outcome>,
    sender: &mpsc::UnboundedSender<Processed>,
) -> std::io::Result<()> {
    let id = raw.connection.id;
    let mut wire = FrameConnection::server(raw.stream, &[(3, 100)]).await?;
    loop {
        let (stream, body) = request(&mut wire).await?;
        if let Some(outcome) = outcome
            && stream > 1
        {
            match outcome {
                Outcome::Goaway => return wire.goaway(stream - 2, 0).await,
                Outcome::Refused => wire.reset(stream, REFUSED_STREAM).await?,
                Outcome::ProcessedAndLost => return wire.goaway(stream, 0).await,
                Outcome::Reset => wire.reset(stream, CANCEL).await?,
            }
        } else {
            sender.send((id, body)).ok();
            wire.headers(stream, &[(":status", "200")], 0).await?;
            wire.data(stream, "ok", END_STREAM).await?;
        }
    }
}

/// Reads the next request with its complete body.
async fn request(wire: &mut Wire) -> std::io::Result<(u32, Bytes)> {
    let head = wire.expect(kind::HEADERS).await?;
    let mut body = Vec::new();
    let mut ended = head.has(END_STREAM);
    while !ended {
        let data = wire.expect(kind::DATA).await?;
        assert_eq!(data.stream, head.stream, "one request after another");
        ended = data.has(END_STREAM);
        body.extend_from_slice(&data.payload);
    }
    Ok((head.stream, body.into()))
}

/// Sends one request to open the connection, and a second one that ends with the outcome.
async fn second_request(
    world: &World,
    apiserver: &Apiserver,
    method: Method,
    body: Bytes,
) -> Http2Response {
    let proxy = world
        .proxy(apiserver.upstream.address())
        .limits(|limits| limits.replay_bytes = 2048)
        .start();
    let client = proxy.client().http2().await;
    let first = client.get("https://kube.test/first").await.unwrap();
    assert_eq!(first.text(), "ok");
    let request = http::Request::builder()
        .method(method)
        .uri("https://kube.test/second")
        .body(body)
        .unwrap();
    client.request(request).await.unwrap()
}

/// Case 6.
#[tokio::test]
async fn unprocessed_request_is_retried_on_a_new_connection() {
    for (outcome, case) in [(Outcome::Goaway, "goaway"), (Outcome::Refused, "refused")] {
        for (method, size) in [(Method::GET, 0), (Method::POST, 1024)] {
            let world = World::new();
            let mut apiserver = Apiserver::start(&world, outcome, 1).await;
            let body = Bytes::from((b'a'..=b'z').cycle().take(size).collect::<Vec<_>>());
            let response = second_request(&world, &apiserver, method, body.clone()).await;
            assert_eq!(
                (response.status, &response.body[..]),
                (StatusCode::OK, &b"ok"[..])
            );
            assert_eq!(
                apiserver.processed(),
                [(0, Bytes::new()), (1, body)],
                "{case}, {size} bytes"
            );
        }
    }
}

/// Case 6. The body is larger than `limits.replayBytes`, so only the client can repeat the request.
#[tokio::test]
async fn refused_request_with_a_large_body_is_not_retried() {
    for outcome in [Outcome::Goaway, Outcome::Refused] {
        let world = World::new();
        let mut apiserver = Apiserver::start(&world, outcome, 1).await;
        let body = vec![b'x'; 4096];
        let response = second_request(&world, &apiserver, Method::POST, body.into()).await;
        assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers["retry-after"], "1");
        assert_eq!(apiserver.processed().len(), 1);
        assert_eq!(apiserver.upstream.connections().len(), 1);
    }
}

/// A client may keep four times `limits.replayBytes`, so that the copies of its unfinished uploads are bounded. A
/// request that finds no room is sent without a copy, and only the client can repeat it.
#[tokio::test]
async fn request_without_room_for_its_copy_is_sent_but_not_retried() {
    const REPLAY: usize = 2048;
    const FULL: [u32; 4] = [1, 3, 5, 7];
    let world = World::new();
    let (sender, mut sent) = mpsc::unbounded_channel();
    let upstream = world
        .apiserver()
        .raw(move |raw| {
            let sender = sender.clone();
            async move {
                let is_first = raw.connection.id == 0;
                let mut wire = FrameConnection::server(raw.stream, &[(3, 100)])
                    .await
                    .unwrap();
                while let Ok(frame) = wire.expect(kind::DATA).await {
                    let is_refused = is_first && !FULL.contains(&frame.stream);
                    sender.send((frame.stream, frame.payload.len())).ok();
                    if frame.has(END_STREAM) && is_refused {
                        wire.reset(frame.stream, REFUSED_STREAM).await.unwrap();
                    } else if frame.has(END_STREAM) {
                        let status = [(":status", "200")];
                        wire.headers(frame.stream, &status, END_STREAM)
                            .await
                            .unwrap();
                    }
                }
            }
        })
        .start()
        .await;
    let proxy = world
        .proxy(upstream.address())
        .admin()
        .limits(|limits| limits.replay_bytes = REPLAY)
        .start();
    let client = proxy.client().http2().await;
    let post = || http::Request::post("https://kube.test/");
    let mut uploads = Vec::new();
    for stream in FULL {
        let request = post().body(()).unwrap();
        let (response, mut upload) = client.begin(request, false).await.unwrap();
        upload.send_data(vec![b'x'; REPLAY].into(), false).unwrap();
        let arrived = within("the data", sent.recv()).await.unwrap();
        assert_eq!(arrived, (stream, REPLAY));
        uploads.push((response, upload));
    }
    let short = Bytes::from_static(b"short");
    let response = client
        .request(post().body(short.clone()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers["retry-after"], "1");
    assert_eq!(sent.recv().await.unwrap(), (9, short.len()), "it was sent");
    assert_eq!(upstream.connections().len(), 1, "it was not sent again");
    let hits = [("limits_hit_total{limit=\"replay_copies\"}", 1.0)];
    admin::wait_for_numbers(proxy.admin(), &hits).await;
    // Another client has its own room.
    let other = proxy.client().http2().await;
    let response = other
        .request(post().body(short.clone()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status, StatusCode::OK);

    // The end of the uploads gives the room back.
    for (response, mut upload) in uploads {
        upload.send_data(Bytes::new(), true).unwrap();
        assert_eq!(within("a response", response).await.unwrap().status(), 200);
    }
    let response = client.request(post().body(short).unwrap()).await.unwrap();
    assert_eq!(response.status, StatusCode::OK, "it was sent again");
    assert_eq!(upstream.connections().len(), 3);
}

/// Case 6.
#[tokio::test]
async fn request_that_may_have_been_processed_is_not_retried() {
    for outcome in [Outcome::ProcessedAndLost, Outcome::Reset] {
        for method in [Method::GET, Method::POST] {
            let world = World::new();
            let mut apiserver = Apiserver::start(&world, outcome, 1).await;
            let response = second_request(&world, &apiserver, method, Bytes::new()).await;
            assert_eq!(response.status, StatusCode::BAD_GATEWAY);
            assert_eq!(response.headers.get("retry-after"), None);
            assert_eq!(apiserver.processed().len(), 1);
            assert_eq!(apiserver.upstream.connections().len(), 1);
        }
    }
}

/// Case 6.
#[tokio::test]
async fn request_that_is_always_refused_gets_503() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .raw(|raw| async {
            let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
            while let Ok((stream, _)) = request(&mut wire).await {
                wire.reset(stream, REFUSED_STREAM).await.unwrap();
            }
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let response = client.get("https://kube.test/").await.unwrap();
    assert_eq!(response.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers["retry-after"], "1");
    assert_eq!(upstream.connections().len(), MAX_TRIES);
}

/// Cases 5, 6. The apiserver reads one request of each connection, and its 401 ends the connection for the others.
#[tokio::test]
async fn requests_that_meet_a_401_on_each_connection_all_get_401() {
    const BURST: usize = 100;
    let world = World::new();
    let upstream = world
        .apiserver()
        .raw(|raw| async {
            let mut wire = FrameConnection::server(raw.stream, &[(3, 100)])
                .await
                .unwrap();
            let Ok((stream, body)) = request(&mut wire).await else {
                return;
            };
            assert_eq!(body, "body");
            // As Go does: the streams that came later are ignored.
            drop(wire.goaway(stream, 0).await);
            drop(
                wire.headers(stream, &[(":status", "401")], END_STREAM)
                    .await,
            );
            drop(wire.expect(kind::GOAWAY).await);
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut requests = Vec::new();
    for _ in 0..BURST {
        let request =
            http::Request::post("https://kube.test/").header("authorization", "Bearer bad");
        let request = request.body(()).unwrap();
        let (response, mut body) = client.begin(request, false).await.unwrap();
        body.send_data("body".into(), true).unwrap();
        requests.push(response);
    }
    for response in requests {
        assert_eq!(within("a response", response).await.unwrap().status(), 401);
    }
    assert!(upstream.connections().len() <= BURST + MAX_TRIES);
}

#[tokio::test]
async fn one_dial_serves_all_requests_that_a_goaway_refused() {
    const BURST: usize = 20;
    let world = World::new();
    let upstream = world
        .apiserver()
        .raw(|raw| async move {
            let first = raw.connection.id == 0;
            let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
            let mut streams = Vec::new();
            while streams.len() < BURST {
                let Ok((stream, _)) = request(&mut wire).await else {
                    return;
                };
                streams.push(stream);
            }
            if first {
                return wire.goaway(0, 0).await.unwrap();
            }
            for stream in streams {
                wire.headers(stream, &[(":status", "200")], END_STREAM)
                    .await
                    .unwrap();
            }
            drop(wire.expect(kind::GOAWAY).await);
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut requests = Vec::new();
    for _ in 0..BURST {
        let request = http::Request::get("https://kube.test/").body(()).unwrap();
        requests.push(client.begin(request, true).await.unwrap().0);
    }
    for response in requests {
        assert_eq!(within("a response", response).await.unwrap().status(), 200);
    }
    assert_eq!(upstream.connections().len(), 2);
}

#[tokio::test]
async fn idle_http1_connection_closed_by_apiserver_is_replaced() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .raw(|raw| async {
            let mut stream = raw.stream;
            let mut space = [0; 4096];
            if stream.read(&mut space).await.is_ok_and(|read| read > 0) {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    .await
                    .unwrap();
                stream.shutdown().await.unwrap();
            }
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    for number in 0..5 {
        client
            .send("POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 2\r\n\r\nhi")
            .await;
        assert_eq!(client.response().await.status, 200, "request {number}");
        upstream.connection_end(number).await;
    }
}

/// Case 57. While the apiserver is down, requests never leave the proxy, so the client may repeat them.
#[tokio::test]
async fn requests_during_an_apiserver_restart_get_503() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let address = upstream.address();
    let proxy = world.proxy(address).start();
    let (http2, mut http1) = (proxy.client().http2().await, proxy.client().http1().await);
    assert_eq!(http2.get("https://kube.test/").await.unwrap().status, 200);
    assert_eq!(http1.get(HOST, "/", "").await.status, 200);
    drop(upstream);
    // The apiserver is gone once its port can be bound again.
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    drop(listener);
    for _ in 0..3 {
        let response = http2.get("https://kube.test/").await.unwrap();
        assert_eq!(response.status, 503, "{}", response.text());
        assert_eq!(response.headers["retry-after"], "1");
        let response = http1.get(HOST, "/", "").await;
        assert_eq!(response.status, 503, "{}", response.text());
        assert_eq!(response.head.header("retry-after"), Some("1"));
    }
    let listener = TcpListener::bind(address).await.unwrap();
    let back = world.apiserver().serve(listener);
    for _ in 0..2 {
        assert_eq!(http2.get("https://kube.test/").await.unwrap().status, 200);
        assert_eq!(http1.get(HOST, "/", "").await.status, 200);
    }
    assert_eq!(back.connections().len(), 2);
}

#[tokio::test]
async fn requests_that_wait_for_one_dial_share_its_failure() {
    let world = World::new();
    let silent = Peer::start(Behaviour::Silent).await;
    let proxy = world
        .proxy(silent.address())
        .timeouts(|timeouts| timeouts.upstream_connect = std::time::Duration::from_millis(300))
        .start();
    let client = Arc::new(proxy.client().http2().await);
    let mut requests = Vec::new();
    for _ in 0..50 {
        let request = http::Request::get("https://kube.test/").body(()).unwrap();
        requests.push(client.begin(request, true).await.unwrap().0);
    }
    for response in requests {
        let response = within("a response", response).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
    }
    assert_eq!(silent.connections(), 1);
}
