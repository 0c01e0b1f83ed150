//! One client does not affect another.

use http::{Request, Response};
use standin::{
    client::{Http2, whole},
    frames::{END_STREAM, Frame, FrameConnection, encode_fields, kind},
    upstream::{Builder, RequestBody, Upstream, channel, full},
    within,
};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, watch},
};

use crate::{
    admin,
    proxy::{HOST, World, data, request_fields, sum_until_quiet, watch_or_ok},
};

const MIB: usize = 1 << 20;

fn get(path: &str, token: &str) -> Request<()> {
    Request::get(format!("https://{HOST}{path}"))
        .header("authorization", token)
        .body(())
        .unwrap()
}

/// An apiserver that responds to unknown clients with 401 and, over HTTP/2, GOAWAY. Known clients get a watch
/// with one event, and a second event after a signal.
async fn strict(world: &World) -> (Upstream, watch::Sender<bool>) {
    let (released, release) = watch::channel(false);
    let upstream = world.apiserver().http(move |request| {
        let mut release = release.clone();
        async move {
            let token = request.headers().get("authorization");
            if token.is_none_or(|token| token != "Bearer good") {
                let response = Response::builder()
                    .status(401)
                    .header("connection", "close");
                return response.body(full("who are you")).unwrap();
            }
            if request.uri().path() == "/goaway" {
                let response = Response::builder().header("connection", "close");
                return response.body(full("ok")).unwrap();
            }
            let (events, body) = channel();
            tokio::spawn(async move {
                if events.send("first").await.is_ok()
                    && release.wait_for(|released| *released).await.is_ok()
                {
                    drop(events.send("second").await);
                }
            });
            Response::new(body)
        }
    });
    (upstream.start().await, released)
}

/// Cases 4, 5. On a shared upstream connection, each 401 would end the watches of all clients.
#[tokio::test]
async fn client_with_bad_token_ends_no_watch_of_another() {
    for token in ["", "Bearer bad"] {
        let world = World::new();
        let (upstream, released) = strict(&world).await;
        let proxy = world.proxy(upstream.address()).start();
        let good = proxy.client().http2().await;
        let mut watches = Vec::new();
        for number in 0..50 {
            let request = get("/watch", "Bearer good");
            let (response, _) = good.begin(request, true).await.unwrap();
            let mut watch = within("a watch", response).await.unwrap();
            assert_eq!(data(&mut watch).await.unwrap(), "first");
            watches.push(watch);
            // Between the watches: a reused connection after a 401 would show.
            if number % 5 == 0 {
                assert_eq!(status(&proxy.client().http2().await, token).await, 401);
            }
        }
        for _ in 0..50 {
            assert_eq!(status(&proxy.client().http2().await, token).await, 401);
        }
        released.send(true).unwrap();
        for watch in &mut watches {
            assert_eq!(data(watch).await.unwrap(), "second");
        }
        let of_watches = &upstream.connections()[0];
        assert_eq!(of_watches.requests, 50);
    }
}

/// Cases 4, 5. The apiserver answers each such request with GOAWAY, so that its sender pays for a handshake. If
/// the client kept its connection, the proxy would pay for it.
#[tokio::test]
async fn request_without_valid_token_ends_its_connection_but_no_watch() {
    for token in ["", "Bearer bad"] {
        let world = World::new();
        let (upstream, released) = strict(&world).await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let request = get("/watch", "Bearer good");
        let (response, _) = client.begin(request, true).await.unwrap();
        let mut watch = within("a watch", response).await.unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), "first");

        assert_eq!(status(&client, token).await, 401);
        assert_eq!(client.goaway().await, h2::Reason::NO_ERROR);
        assert!(client.begin(get("/api", token), true).await.is_err());
        let next = proxy.client().http2().await;
        assert_eq!(status(&next, "Bearer good").await, 200);

        released.send(true).unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), "second");
        assert_eq!(whole(watch).await.unwrap().body, "");
    }
}

/// The apiserver also answers anonymous requests with GOAWAY that it does not refuse with 401.
#[tokio::test]
async fn anonymous_request_ends_its_connection_whatever_the_status() {
    for status_code in [200, 403] {
        let world = World::new();
        let upstream = world.apiserver().http(move |_| async move {
            let response = Response::builder().status(status_code);
            response
                .header("connection", "close")
                .body(full("ok"))
                .unwrap()
        });
        let upstream = upstream.start().await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let response = client.get("https://kube.test/api").await.unwrap();
        assert_eq!(response.status, status_code);
        assert_eq!(client.goaway().await, h2::Reason::NO_ERROR);
    }
}

/// Without acknowledging the GOAWAY of the proxy, a client could send requests without end.
#[tokio::test]
async fn client_that_ignores_goaway_loses_its_connection() {
    const STREAMS: u32 = 5;
    let world = World::new();
    let (upstream, _released) = strict(&world).await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.streams_per_connection = STREAMS)
        .start();
    let mut wire = proxy.frame_client().await;
    let bad = [("authorization", "Bearer bad")];
    let fields = [&request_fields("GET", "/api")[..], &bad].concat();
    let requests = async {
        let mut answered = 0;
        for stream in (1..).step_by(2) {
            if wire.headers(stream, &fields, END_STREAM).await.is_err() {
                break;
            }
            // Not `expect`, which acknowledges pings.
            loop {
                match wire.next().await {
                    Ok(Some(frame)) if frame.kind == kind::HEADERS => break answered += 1,
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return answered,
                }
            }
        }
        answered
    };
    let answered = within("the end of the connection", requests).await;
    assert!((1..=2 * STREAMS).contains(&answered), "{answered} requests");
}

/// Cases 4, 5. A client that repeats its bad token gets the answer of the apiserver each time, not an error that
/// sounds as if the apiserver were down.
#[tokio::test]
async fn parallel_requests_with_bad_token_all_get_401() {
    let world = World::new();
    let (upstream, _released) = strict(&world).await;
    let proxy = world.proxy(upstream.address()).start();
    for _ in 0..5 {
        let client = proxy.client().http2().await;
        let mut responses = Vec::new();
        for _ in 0..100 {
            let request = get("/api", "Bearer bad");
            let Ok((response, _)) = client.begin(request, true).await else {
                break;
            };
            responses.push(response);
        }
        assert!(!responses.is_empty());
        for response in responses {
            assert_eq!(within("a response", response).await.unwrap().status(), 401);
        }
    }
}

async fn status(client: &Http2, token: &str) -> u16 {
    let (response, _) = client.begin(get("/api", token), true).await.unwrap();
    within("a response", response)
        .await
        .unwrap()
        .status()
        .as_u16()
}

/// Each watch holds its upstream connection, and each GOAWAY makes the proxy dial another one.
#[tokio::test]
async fn upstream_connections_of_one_client_are_bounded() {
    let world = World::new();
    let (upstream, released) = strict(&world).await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let open = || {
        let connections = upstream.connections();
        connections.iter().filter(|one| one.is_open()).count()
    };
    let (attacker, other) = (proxy.client().http2().await, proxy.client().http2().await);
    let mut watches = Vec::new();
    let refused = loop {
        assert!(watches.len() < 60, "{} connections are open", open());
        let request = get("/watch", "Bearer good");
        let (response, _) = attacker.begin(request, true).await.unwrap();
        let mut response = within("a response", response).await.unwrap();
        if response.status() != 200 {
            break whole(response).await.unwrap();
        }
        assert_eq!(data(&mut response).await.unwrap(), "first");
        watches.push(response);
        // The last one may be refused too.
        let request = get("/goaway", "Bearer good");
        let (response, _) = attacker.begin(request, true).await.unwrap();
        let status = within("a response", response).await.unwrap().status();
        assert!([200, 503].contains(&status.as_u16()));
    };
    assert_eq!(refused.status, 503);
    assert_eq!(refused.headers["retry-after"], "1");
    let sentence = "this connection already uses 17 connections to the apiserver";
    assert!(refused.text().contains(sentence), "{}", refused.text());
    assert_eq!(open(), 17);
    let scrape = admin::scrape(proxy.admin()).await;
    let hits = scrape.get("limits_hit_total{limit=\"upstream_connections\"}");
    assert!(hits > 0.0);

    // Other clients are served, and so is this one on another connection or after its watches have ended.
    for client in [&other, &proxy.client().http2().await] {
        assert_eq!(status(client, "Bearer good").await, 200);
    }
    let mut http1 = proxy.client().http1().await;
    for _ in 0..20 {
        assert_eq!(http1.get(HOST, "/api", "").await.status, 401);
        http1 = proxy.client().http1().await;
    }
    released.send(true).unwrap();
    for watch in &mut watches {
        assert_eq!(data(watch).await.unwrap(), "second");
    }
    drop(watches);
    let served = async { while status(&attacker, "Bearer good").await != 200 {} };
    within("a response after the watches", served).await;
}

/// The bound leaves room for all streams that a client may open.
#[tokio::test]
async fn bound_of_upstream_connections_leaves_room_for_all_streams() {
    const STREAMS: u32 = 1000;
    let world = World::new();
    let upstream = world.apiserver().max_concurrent_streams(50);
    let upstream = upstream.http(watch_or_ok).start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.streams_per_connection = STREAMS)
        .start();
    let client = proxy.client().http2().await;
    let mut watches = Vec::new();
    for _ in 1..STREAMS {
        watches.push(client.open("https://kube.test/watch").await.unwrap());
    }
    let response = client.get("https://kube.test/ok").await.unwrap();
    assert_eq!(response.text(), "ok");
    assert_eq!(upstream.connections().len(), 20);
    drop(watches);
}

/// An apiserver whose `/list` is 1 MiB, and whose `/logs` sends endless short lines, each in a frame. The receiver
/// gets a number for each line that was sent.
fn lines_and_lists(world: &World) -> (Builder, mpsc::UnboundedReceiver<usize>) {
    let (sent, lines_sent) = mpsc::unbounded_channel();
    let answer = move |request: Request<RequestBody>| {
        let sent = sent.clone();
        async move {
            match request.uri().path() {
                "/list" => Response::new(full(vec![b'x'; MIB])),
                "/logs" => {
                    let (lines, body) = channel();
                    tokio::spawn(async move {
                        while lines.send(&b"line\n"[..]).await.is_ok() {
                            sent.send(1).ok();
                        }
                    });
                    Response::new(body)
                }
                _ => watch_or_ok(request).await,
            }
        }
    };
    (world.apiserver().http(answer), lines_sent)
}

/// Reads a response until the flow-control window of its client is used up, and returns the stalled connection.
async fn until_stalled(proxy: &crate::proxy::Proxy, path: &str) -> Stalled {
    let mut wire = proxy.frame_client().await;
    let fields = request_fields("GET", path);
    wire.headers(1, &fields, END_STREAM).await.unwrap();
    let mut received = 0;
    while received < INITIAL_WINDOW {
        received += within("data", wire.expect(kind::DATA))
            .await
            .unwrap()
            .payload
            .len();
    }
    wire
}

type Stalled = FrameConnection<standin::client::TlsConnection>;
/// The default window of a stream and of a connection (RFC 9113 §6.9.2).
const INITIAL_WINDOW: usize = 65_535;

/// Case 2.
#[tokio::test]
async fn stalled_readers_do_not_delay_another_client() {
    let world = World::new();
    let (upstream, _) = lines_and_lists(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(until_stalled(&proxy, "/list").await);
    }
    let client = proxy.client().http2().await;
    let list = client.get("https://kube.test/list").await.unwrap();
    assert_eq!(list.body.len(), MIB);
    assert_eq!(upstream.connections().len(), 5);
}

/// Case 3. Many small waiting frames do not even harm other streams of the same client.
#[tokio::test]
async fn stalled_reader_of_short_lines_ends_no_watch() {
    let world = World::new();
    let (upstream, mut lines) = lines_and_lists(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut watch = client.open("https://kube.test/watch").await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");

    let mut stalled = until_stalled(&proxy, "/logs").await;
    let fields = request_fields("GET", "/watch");
    stalled.headers(3, &fields, END_STREAM).await.unwrap();
    upstream.wait_for_open_responses(3).await;
    let lines = sum_until_quiet(&mut lines).await;
    assert!(lines > 20_000, "only {lines} lines are in flight");
    assert_eq!(upstream.open_responses(), 3);
    assert!(upstream.connections().iter().all(|one| one.is_open()));
    assert_eq!(
        client.get("https://kube.test/ok").await.unwrap().text(),
        "ok"
    );
}

/// Case 63.
#[tokio::test]
async fn rapid_reset_is_bounded_and_affects_no_other_client() {
    let world = World::new();
    let (upstream, released) = strict(&world).await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let (response, _) = client
        .begin(get("/watch", "Bearer good"), true)
        .await
        .unwrap();
    let mut watch = within("a watch", response).await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");

    let good = [("authorization", "Bearer good")];
    let fields = encode_fields(&[&request_fields("GET", "/watch")[..], &good].concat());
    let mut attack = Vec::new();
    for number in 0..500 {
        let stream = 2 * number + 1;
        let frame = |kind, flags, payload: Vec<u8>| Frame {
            kind,
            flags,
            stream,
            payload: payload.into(),
        };
        attack.extend(frame(kind::HEADERS, 0x5, fields.clone()).encode());
        attack.extend(frame(kind::RST_STREAM, 0, vec![0, 0, 0, 8]).encode());
    }
    let mut wire = proxy.frame_client().await;
    wire.expect(kind::SETTINGS).await.unwrap();
    let mut tls = wire.into_inner();
    // The proxy may close the connection before the last byte.
    drop(tls.write_all(&attack).await);
    while let Ok(Some(_)) = tls.record().await {}

    released.send(true).unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "second");
    let requests = upstream.requests().len();
    assert!(requests <= 100, "{requests} requests reached the apiserver");
    upstream.wait_for_open_responses(0).await;
}
