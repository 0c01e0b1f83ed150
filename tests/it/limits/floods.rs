//! Clients and apiservers that send frames of no use: a flood ends the connection of its client with GOAWAY and
//! `ENHANCE_YOUR_CALM`, or the request to the apiserver with a 502, and nothing else.

use std::time::Duration;

use http::{Request, Response};
use standin::{
    client::{Http2, TlsConnection},
    frames::{END_HEADERS, END_STREAM, FrameConnection, encode_fields, kind},
    upstream::{Raw, RequestBody, ResponseBody, Upstream, channel, full},
    within,
};

use crate::proxy::{World, request_fields, watch_or_ok};

type Wire = FrameConnection<TlsConnection>;

const ENHANCE_YOUR_CALM: u32 = 11;

/// The code of the GOAWAY, or `None` if the connection ends without one.
async fn goaway(wire: &mut Wire) -> Option<u32> {
    let found = async {
        while let Ok(Some(frame)) = wire.next().await {
            if frame.kind == kind::GOAWAY {
                return frame.error_code();
            }
        }
        None
    };
    within("the end of the connection", found).await
}

/// Sends this frame as often as the proxy takes it.
async fn flood(wire: &mut Wire, (kind, flags, stream, payload): (u8, u8, u32, Vec<u8>)) {
    for _ in 0..1200 {
        if wire
            .send(kind, flags, stream, payload.clone())
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Opens 100 streams, and cancels them once all are at the apiserver. `round` counts the calls on this connection from
/// 0. With POST, the body of each request is incomplete.
async fn cancel_100_begun(wire: &mut Wire, upstream: &Upstream, method: &str, round: u32) {
    let streams = (0..100).map(|number| 200 * round + 2 * number + 1);
    let flags = if method == "GET" { END_STREAM } else { 0 };
    for stream in streams.clone() {
        let head = request_fields(method, "/never");
        wire.headers(stream, &head, flags).await.unwrap();
    }
    upstream
        .wait_for("the requests", |connections| {
            let requests: usize = connections.iter().map(|one| one.requests).sum();
            (requests == 100 * (round as usize + 1)).then_some(())
        })
        .await;
    for stream in streams {
        wire.reset(stream, 8).await.unwrap();
    }
}

async fn wait_for_resets(upstream: &Upstream, count: usize) {
    upstream
        .wait_for("the resets", |connections| {
            let resets: usize = connections.iter().map(|one| one.resets().len()).sum();
            (resets == count).then_some(())
        })
        .await;
}

#[tokio::test]
async fn flood_of_control_frames_ends_only_its_connection() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let other = proxy.client().http2().await;
    let _watch = other.open("https://kube.test/watch").await.unwrap();
    for (name, frame) in [
        ("empty DATA", (kind::DATA, 0, 3, vec![])),
        ("late DATA", (kind::DATA, 0, 1, vec![b'x'])),
        ("PRIORITY", (kind::PRIORITY, 0, 1, vec![0, 0, 0, 0, 15])),
        (
            "late RST_STREAM",
            (kind::RST_STREAM, 0, 1, vec![0, 0, 0, 8]),
        ),
        ("SETTINGS", (kind::SETTINGS, 0, 0, vec![])),
        ("PING", (kind::PING, 0, 0, vec![0; 8])),
        (
            "WINDOW_UPDATE",
            (kind::WINDOW_UPDATE, 0, 0, vec![0, 0, 0, 1]),
        ),
        ("PRIORITY_UPDATE", (0x10, 0, 0, vec![0; 4])),
        ("an unknown type", (0xff, 0xff, 7, vec![])),
    ] {
        let mut wire = proxy.frame_client().await;
        let get = request_fields("GET", "/");
        wire.headers(1, &get, END_STREAM).await.unwrap();
        wire.expect(kind::DATA).await.unwrap();
        wire.headers(3, &request_fields("POST", "/"), 0)
            .await
            .unwrap();
        flood(&mut wire, frame).await;
        // Frames that the proxy has not read make the kernel reset the connection, and the client may lose the GOAWAY.
        let code = goaway(&mut wire).await.unwrap_or(ENHANCE_YOUR_CALM);
        assert_eq!(code, ENHANCE_YOUR_CALM, "{name}");
    }
    let response = other.get("https://kube.test/").await.unwrap();
    assert_eq!(response.text(), "ok");
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
}

/// Fewer than h2 refuses per head, on many heads.
#[tokio::test]
async fn flood_of_small_continuations_ends_its_connection() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let mut wire = proxy.frame_client().await;
    let block = encode_fields(&request_fields("GET", "/"));
    for stream in (1..200).step_by(2) {
        let mut frames = vec![(kind::HEADERS, END_STREAM, block.clone())];
        frames.extend([(); 4].map(|()| (kind::CONTINUATION, 0, vec![])));
        frames.push((kind::CONTINUATION, END_HEADERS, vec![]));
        for (kind, flags, payload) in frames {
            wire.send(kind, flags, stream, payload).await.ok();
        }
    }
    assert_eq!(goaway(&mut wire).await, Some(ENHANCE_YOUR_CALM));
}

/// h2 itself limits only the resets of streams that no task serves yet.
#[tokio::test]
async fn rapid_reset_of_begun_requests_ends_its_connection() {
    let world = World::new();
    for method in ["GET", "POST"] {
        let upstream = world
            .apiserver()
            .http(|_| std::future::pending::<Response<_>>())
            .start()
            .await;
        let proxy = world.proxy(upstream.address()).admin().start();
        let mut wire = proxy.frame_client().await;
        for round in 0..2 {
            cancel_100_begun(&mut wire, &upstream, method, round).await;
        }
        wait_for_resets(&upstream, 200).await;
        for stream in (401..601).step_by(2) {
            let get = request_fields("GET", "/never");
            wire.headers(stream, &get, END_STREAM).await.ok();
        }
        assert_eq!(goaway(&mut wire).await, Some(ENHANCE_YOUR_CALM), "{method}");
        let frames = [("limits_hit_total{limit=\"frames\"}", 1.0)];
        crate::admin::wait_for_numbers(proxy.admin(), &frames).await;
        assert_eq!(upstream.requests().len(), 200, "{method}");
    }
}

/// A dashboard that shows another namespace ends all its watches, and begins others.
#[tokio::test]
async fn client_that_cancels_3000_watches_at_once_stays() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    // h2 forgets some of the streams and resets them again with the next event.
    let mut builder = h2::client::Builder::new();
    builder.max_local_error_reset_streams(None);
    // The events that it does not read are small.
    builder.data_frame_budget(1 << 24);
    let client = Http2::with(&builder, tls).await;
    for _ in 0..30 {
        let mut watches = Vec::new();
        for _ in 0..100 {
            let watch = Request::get("https://kube.test/watch").body(());
            watches.push(client.begin(watch.unwrap(), true).await.unwrap().0);
        }
        for watch in &mut watches {
            within("a watch", watch).await.unwrap();
        }
    }
    let response = client.get("https://kube.test/").await.unwrap();
    assert_eq!(response.text(), "ok");
    let frames = client.frames();
    assert!(frames.iter().all(|frame| frame.kind != kind::GOAWAY));
}

/// Go's client updates both windows while it reads a list, and other clients after each event of a watch.
#[tokio::test]
async fn client_that_updates_windows_per_frame_stays() {
    const EVENTS: usize = 2000;
    const LIST: usize = 10 << 20;
    let world = World::new();
    let apiserver = world.apiserver().http(|_| async {
        let (events, body) = channel();
        tokio::spawn(async move {
            for _ in 0..EVENTS {
                events.send("x").await.unwrap();
                tokio::task::yield_now().await;
            }
            events.send(vec![b'x'; LIST]).await.unwrap();
        });
        Response::new(body)
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut wire = proxy.frame_client().await;
    let get = request_fields("GET", "/watch");
    wire.headers(1, &get, END_STREAM).await.unwrap();
    let (mut received, mut updates) = (0, 0);
    while received < EVENTS + LIST {
        let frame = wire.expect(kind::DATA).await.unwrap();
        received += frame.payload.len();
        if frame.has(END_STREAM) {
            break;
        }
        let more = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
        for stream in [0, 1] {
            wire.send(kind::WINDOW_UPDATE, 0, stream, more.to_vec())
                .await
                .unwrap();
            updates += 1;
        }
    }
    assert_eq!(received, EVENTS + LIST);
    assert!(updates > 1000, "{updates} updates show nothing");
    wire.headers(3, &get, END_STREAM).await.unwrap();
    wire.expect(kind::HEADERS).await.unwrap();
}

/// `/never` gets no response.
async fn watch_or_never(request: Request<RequestBody>) -> Response<ResponseBody> {
    if request.uri().path() == "/never" {
        return std::future::pending().await;
    }
    watch_or_ok(request).await
}

/// The frames that make the proxy reset a request of this client (`MadeYouReset`, CVE-2025-8671).
fn made_you_reset(trigger: &str, stream: u32) -> Vec<(u8, u8, Vec<u8>)> {
    let post = [
        &request_fields("POST", "/never")[..],
        &[("content-length", "1")],
    ]
    .concat();
    let post = (kind::HEADERS, END_HEADERS, encode_fields(&post));
    let then = match trigger {
        "a body longer than its length" => (kind::DATA, 0, b"xx".to_vec()),
        "a body shorter than its length" => (kind::DATA, END_STREAM, vec![]),
        "a window that overflows" => (kind::WINDOW_UPDATE, 0, vec![0x7f, 0xff, 0xff, 0xff]),
        "a stream that depends on itself" => (
            kind::PRIORITY,
            0,
            [&stream.to_be_bytes()[..], &[15]].concat(),
        ),
        "a malformed head" => {
            let head = [&request_fields("GET", "/")[..], &[("connection", "close")]].concat();
            return vec![(
                kind::HEADERS,
                END_HEADERS | END_STREAM,
                encode_fields(&head),
            )];
        }
        unknown => panic!("{unknown}"),
    };
    vec![post, then]
}

#[tokio::test]
async fn resets_that_a_client_provokes_are_limited() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_never).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let other = proxy.client().http2().await;
    let _watch = other.open("https://kube.test/watch").await.unwrap();
    for trigger in [
        "a body longer than its length",
        "a body shorter than its length",
        "a window that overflows",
        "a stream that depends on itself",
        "a malformed head",
    ] {
        let mut wire = proxy.frame_client().await;
        let (mut resets, mut code) = (0, None);
        for first in (1..600).step_by(100) {
            if code.is_some() {
                break;
            }
            // Half of the streams that may be open, so that none is refused.
            for stream in (first..first + 100).step_by(2) {
                for (kind, flags, payload) in made_you_reset(trigger, stream) {
                    wire.send(kind, flags, stream, payload).await.ok();
                }
            }
            let wanted = resets + 50;
            while resets < wanted && code.is_none() {
                let frame = within(trigger, wire.next()).await.unwrap().unwrap();
                resets += usize::from(frame.kind == kind::RST_STREAM);
                code = (frame.kind == kind::GOAWAY).then(|| frame.error_code());
            }
        }
        assert_eq!(code, Some(Some(ENHANCE_YOUR_CALM)), "{trigger}");
        assert!(resets <= 128, "{trigger}: {resets} resets");
        drop(wire);
        // No request outlives its connection, nor its reset.
        upstream.wait_for_open_responses(1).await;
    }
    let response = other.get("https://kube.test/").await.unwrap();
    assert_eq!(response.text(), "ok");
}

/// h2 refuses each stream beyond the limit, and counts none of them.
#[tokio::test]
async fn flood_of_refused_streams_ends_its_connection() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|_| std::future::pending::<Response<_>>())
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let mut wire = proxy.frame_client().await;
    let get = request_fields("GET", "/never");
    for stream in (1..4000).step_by(2) {
        if wire.headers(stream, &get, END_STREAM).await.is_err() {
            break;
        }
    }
    assert_eq!(goaway(&mut wire).await, Some(ENHANCE_YOUR_CALM));
    assert!(upstream.requests().len() <= 100);
}

/// An uploader whose bodies the apiserver does not want: what is on the way when the stream is reset comes late.
#[tokio::test]
async fn client_whose_bodies_are_refused_stays() {
    const STREAMS: u32 = 90;
    const NO_ERROR: u32 = 0;
    let world = World::new();
    let apiserver = world.apiserver().http(|request| async {
        drop(request);
        Response::builder()
            .status(413)
            .body(full("too large"))
            .unwrap()
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut wire = proxy.frame_client().await;
    let mut before = Vec::new();
    for round in 0..4 {
        let first = 1 + round * 2 * STREAMS;
        let streams: Vec<u32> = (first..first + 2 * STREAMS).step_by(2).collect();
        for stream in &streams {
            wire.headers(*stream, &request_fields("POST", "/"), 0)
                .await
                .unwrap();
            wire.data(*stream, "begins", 0).await.unwrap();
        }
        // Late frames are answered with resets, too.
        let mut ended = 0;
        while ended < streams.len() {
            let reset = within("a reset", wire.expect(kind::RST_STREAM)).await;
            ended += usize::from(reset.unwrap().error_code() == Some(NO_ERROR));
        }
        // h2 has forgotten these streams.
        for stream in before {
            for _ in 0..3 {
                wire.data(stream, "late", 0).await.unwrap();
            }
        }
        before = streams;
    }
    let last = 1 + 8 * STREAMS;
    wire.headers(last, &request_fields("GET", "/"), END_STREAM)
        .await
        .unwrap();
    while wire.expect(kind::HEADERS).await.unwrap().stream != last {}
}

/// A client that shows one namespace after the other, and an apiserver that is slow.
#[tokio::test]
async fn client_that_cancels_all_it_has_open_stays() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_never).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut wire = proxy.frame_client().await;
    for round in 0..3 {
        cancel_100_begun(&mut wire, &upstream, "GET", round).await;
        wait_for_resets(&upstream, 100 * (round as usize + 1)).await;
        // The client looks at what it sees for a second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    wire.headers(601, &request_fields("GET", "/"), END_STREAM)
        .await
        .unwrap();
    let response = within("a response", wire.expect(kind::HEADERS)).await;
    assert_eq!(response.unwrap().stream, 601);
}

/// h2 passes over interim responses without a limit.
#[tokio::test]
async fn endless_interim_responses_over_http2_are_refused() {
    let world = World::new();
    let apiserver = world.apiserver().raw(|raw: Raw| async move {
        let mut wire = FrameConnection::server(raw.stream, &[(3, 100)])
            .await
            .unwrap();
        let mut is_endless = false;
        while let Ok(request) = wire.expect(kind::HEADERS).await {
            for _ in 0..100 {
                let hints = wire.headers(request.stream, &[(":status", "103")], 0);
                hints.await.unwrap();
            }
            if is_endless {
                let hints = [(":status", "103")];
                while wire.headers(request.stream, &hints, 0).await.is_ok() {}
                return;
            }
            is_endless = true;
            let end = wire.headers(request.stream, &[(":status", "204")], END_STREAM);
            end.await.unwrap();
        }
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    for expected in [204, 502] {
        let response = within("a response", client.get("https://kube.test/")).await;
        assert_eq!(response.unwrap().status, expected);
    }
    upstream.connection_end(0).await;
}
