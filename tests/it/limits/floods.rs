//! Clients that send frames of no use: a flood ends the connection of its client with GOAWAY and
//! `ENHANCE_YOUR_CALM`, and nothing else.

use http::Response;
use standin::{
    client::{Http2, TlsConnection},
    frames::{END_HEADERS, END_STREAM, FrameConnection, encode_fields, kind},
    upstream::channel,
    within,
};

use crate::proxy::{HOST, Proxy, World, watch_or_ok};

type Wire = FrameConnection<TlsConnection>;

const ENHANCE_YOUR_CALM: u32 = 11;

fn fields<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", path),
    ]
}

async fn wire(proxy: &Proxy) -> Wire {
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    Wire::client(tls, &[]).await.unwrap()
}

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

#[tokio::test]
async fn flood_of_control_frames_ends_only_its_connection() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let other = proxy.client().http2().await;
    let _watch = other.open("https://kube.test/watch").await.unwrap();
    for (name, frame) in [
        ("empty DATA", (kind::DATA, 0, 3, vec![])),
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
        let mut wire = wire(&proxy).await;
        let get = fields("GET", "/");
        wire.headers(1, &get, END_STREAM).await.unwrap();
        wire.expect(kind::DATA).await.unwrap();
        wire.headers(3, &fields("POST", "/"), 0).await.unwrap();
        flood(&mut wire, frame).await;
        assert_eq!(goaway(&mut wire).await, Some(ENHANCE_YOUR_CALM), "{name}");
    }
    let response = other.get("https://kube.test/").await.unwrap();
    assert_eq!(response.text(), "ok");
    assert_eq!(upstream.open_responses(), 1, "the watch is still open");
}

/// Fewer than h2 refuses per head, on many heads.
#[tokio::test]
async fn flood_of_small_continuations_ends_its_connection() {
    let (_world, _upstream, proxy) = World::with_proxy().await;
    let mut wire = wire(&proxy).await;
    let block = encode_fields(&fields("GET", "/"));
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
    let upstream = world
        .apiserver()
        .http(|_| std::future::pending::<Response<_>>())
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let mut wire = wire(&proxy).await;
    for round in 0..2_u32 {
        let streams = (0..100).map(|number| 200 * round + 2 * number + 1);
        for stream in streams.clone() {
            let get = fields("GET", "/never");
            wire.headers(stream, &get, END_STREAM).await.unwrap();
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
    upstream
        .wait_for("the resets", |connections| {
            let resets: usize = connections.iter().map(|one| one.resets().len()).sum();
            (resets == 200).then_some(())
        })
        .await;
    for stream in (401..601).step_by(2) {
        let get = fields("GET", "/never");
        wire.headers(stream, &get, END_STREAM).await.ok();
    }
    assert_eq!(goaway(&mut wire).await, Some(ENHANCE_YOUR_CALM));
    let frames = [("limits_hit_total{limit=\"frames\"}", 1.0)];
    crate::admin::wait_for_numbers(proxy.admin(), &frames).await;
    assert_eq!(upstream.requests().len(), 200);
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
    let client = Http2::with(&builder, tls).await;
    for _ in 0..30 {
        let mut watches = Vec::new();
        for _ in 0..100 {
            let watch = http::Request::get("https://kube.test/watch").body(());
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
    let mut wire = wire(&proxy).await;
    let get = fields("GET", "/watch");
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
