//! Silent connections on both legs: live ones stay open, dead ones are found and closed.

use std::{sync::Mutex, time::Duration};

use http::Response;
use kube_tls_proxy::config::Timeouts;
use standin::{
    client::whole,
    frames::{ACK, END_STREAM, FrameConnection, kind},
    tcp::Relay,
    upstream::channel,
    within,
};

use crate::proxy::{HOST, World, data, watch_or_ok};

const WATCH: &str = "https://kube.test/watch";
const OK: &str = "https://kube.test/ok";
/// The header fields of a watch.
const GET_WATCH: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", HOST),
    (":path", "/watch"),
];

fn ping_upstream(timeouts: &mut Timeouts) {
    timeouts.upstream_ping_interval = Duration::from_millis(100);
    timeouts.upstream_ping_timeout = Duration::from_millis(500);
}

/// Case 7.
#[tokio::test]
async fn hanging_apiserver_ends_its_watches_and_is_redialled() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let relay = Relay::start(upstream.address()).await;
    let proxy = world.proxy(relay.address()).timeouts(ping_upstream).start();
    let client = proxy.client().http2().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        let mut watch = client.open(WATCH).await.unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), "first");
        watches.push(watch);
    }
    relay.freeze();
    for watch in watches {
        let reason = whole(watch).await.unwrap_err().reason();
        assert_eq!(reason, Some(h2::Reason::INTERNAL_ERROR));
    }
    relay.thaw();
    assert_eq!(client.get(OK).await.unwrap().text(), "ok");
    assert_eq!(relay.connections(), 2);
}

/// Case 7. The apiserver may have processed the request, so the response has no `Retry-After`.
#[tokio::test]
async fn request_to_hanging_apiserver_gets_502() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let relay = Relay::start(upstream.address()).await;
    let proxy = world.proxy(relay.address()).timeouts(ping_upstream).start();
    let client = proxy.client().http2().await;
    assert_eq!(client.get(OK).await.unwrap().text(), "ok");
    relay.freeze();
    let response = client.get(OK).await.unwrap();
    assert_eq!(response.status, 502);
    assert_eq!(response.headers.get("retry-after"), None);
    relay.thaw();
    assert_eq!(client.get(OK).await.unwrap().text(), "ok");
}

/// Case 22. The watch stays silent for 20 ping intervals, with every timeout shorter than that.
#[tokio::test]
async fn silent_watch_stays_open_whatever_the_timeouts() {
    let world = World::new();
    let (events, body) = channel();
    let events_of_http1 = channel();
    let bodies = Mutex::new(vec![events_of_http1.1, body]);
    let upstream = world
        .apiserver()
        .http(move |_| {
            let body = bodies.lock().unwrap().pop().unwrap();
            async { Response::new(body) }
        })
        .start()
        .await;
    let tiny = Duration::from_millis(50);
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| {
            timeouts.client_idle = tiny;
            timeouts.client_ping_interval = tiny;
            timeouts.upstream_ping_interval = tiny;
            timeouts.upstream_idle = tiny;
            timeouts.half_close_timeout = tiny;
            timeouts.drain = tiny;
            timeouts.resolve = tiny;
            timeouts.reload = tiny;
        })
        .start();
    let http2 = proxy.client().http2().await;
    let mut watch = http2.open(WATCH).await.unwrap();
    let mut http1 = proxy.client().http1().await;
    http1
        .send("GET /watch HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    http1.head().await.unwrap();
    upstream
        .wait_for("20 pings", |connections| {
            (connections[0].pings() >= 20).then_some(())
        })
        .await;
    events.send("late").await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "late");
    events_of_http1.0.send("late").await.unwrap();
    assert_eq!(http1.chunk().await.unwrap(), "late");
}

/// Received data shows that the connection is alive.
#[tokio::test]
async fn busy_upstream_connection_is_not_pinged() {
    let world = World::new();
    let (events, body) = channel();
    let body = Mutex::new(Some(body));
    let upstream = world
        .apiserver()
        .http(move |_| {
            let body = body.lock().unwrap().take().unwrap();
            async { Response::new(body) }
        })
        .start()
        .await;
    let interval = Duration::from_secs(2);
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.upstream_ping_interval = interval)
        .start();
    let client = proxy.client().http2().await;
    let mut watch = client.open(WATCH).await.unwrap();
    let start = tokio::time::Instant::now();
    while start.elapsed() < interval * 3 / 2 {
        tokio::time::sleep(interval / 40).await;
        events.send("event").await.unwrap();
        data(&mut watch).await.unwrap();
    }
    assert_eq!(upstream.connections()[0].pings(), 0);
}

/// Case 62. The proxy pings, so a client that never pings keeps its connection.
#[tokio::test]
async fn silent_client_is_pinged_and_its_pings_are_answered() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.client_ping_interval = Duration::from_millis(100))
        .start();
    let client = proxy.client().http2().await;
    let mut watch = client.open(WATCH).await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");
    client.wait_for_pings(3).await;
    assert_eq!(client.get(OK).await.unwrap().text(), "ok");

    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::client(tls, &[]).await.unwrap();
    wire.headers(1, &GET_WATCH, END_STREAM).await.unwrap();
    within("the first event", wire.expect(kind::DATA))
        .await
        .unwrap();
    wire.send(kind::PING, 0, 0, &b"are you?"[..]).await.unwrap();
    let answer = loop {
        let frame = within("a ping reply", wire.expect(kind::PING))
            .await
            .unwrap();
        if frame.has(ACK) {
            break frame;
        }
    };
    assert_eq!(&answer.payload[..], b"are you?");
}

/// The watches of a dead client must not stay open at the apiserver.
#[tokio::test]
async fn client_that_answers_no_ping_is_closed() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| {
            timeouts.client_ping_interval = Duration::from_millis(100);
            timeouts.client_ping_timeout = Duration::from_millis(200);
        })
        .start();
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::client(tls, &[]).await.unwrap();
    wire.headers(1, &GET_WATCH, END_STREAM).await.unwrap();
    upstream.wait_for_open_responses(1).await;
    // The client reads everything but answers no ping.
    while let Ok(Some(_)) = within("the end", wire.next()).await {}
    upstream.wait_for_open_responses(0).await;
}
