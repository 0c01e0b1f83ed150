//! How long a client may take for the head of a request, and how long it may be idle. Every limit is scaled
//! down. Whatever must stay open is kept for several times the limit.

use std::time::Duration;

use http::Response;
use kube_tls_proxy::config::Timeouts;
use standin::{
    client::{Http1, TlsConnection},
    upstream::full,
};
use tokio::time::{Instant, sleep};

use crate::proxy::{HOST, World, data, watch_or_ok};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
/// How much earlier than its limit a timer may end: the clocks of two runtimes tick apart.
const TICK: Duration = Duration::from_millis(5);

fn short_head(timeouts: &mut Timeouts) {
    timeouts.request_head = SHORT;
    timeouts.client_idle = LONG;
}

fn short_idle(timeouts: &mut Timeouts) {
    timeouts.request_head = LONG;
    timeouts.client_idle = SHORT;
}

/// Waits for the end of the connection and returns when it came; nothing may come before.
async fn ended(client: &mut Http1<TlsConnection>, since: Instant) -> Duration {
    let rest = client.end().await.unwrap_or_default();
    assert_eq!(rest, "");
    since.elapsed()
}

#[tokio::test]
async fn a_head_that_stops_is_cut() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    for part in ["", "G", "GET / HTTP/1.1\r\nHost: kube.test\r\n", "\r\n\r\n"] {
        let mut client = proxy.client().http1().await;
        let start = Instant::now();
        client.send(part).await;
        assert!(ended(&mut client, start).await > SHORT - TICK, "{part:?}");
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// The deadline is for the whole head: bytes that keep coming do not move it.
#[tokio::test]
async fn a_head_that_drips_is_cut() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    let mut client = proxy.client().http1().await;
    assert_eq!(client.get(HOST, "/", "").await.status, 200);
    client
        .send("GET / HTTP/1.1\r\nHost: kube.test\r\nX: ")
        .await;
    let start = Instant::now();
    let dripping = async {
        while client.try_send("x").await.is_ok() {
            sleep(SHORT / 10).await;
        }
    };
    standin::within("the end of dripping", dripping).await;
    assert!(start.elapsed() > SHORT - TICK);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_idle).start();
    let mut client = proxy.client().http1().await;
    for _ in 0..2 {
        assert_eq!(client.get(HOST, "/", "").await.status, 200);
    }
    let start = Instant::now();
    assert!(ended(&mut client, start).await > SHORT - TICK);
}

/// kube-apiserver closes an HTTP/2 connection without streams too; pings that are answered change nothing.
#[tokio::test]
async fn an_http2_connection_is_closed_when_idle_and_not_before() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let setup = world.proxy(upstream.address()).timeouts(short_idle);
    let proxy = setup
        .timeouts(|timeouts| timeouts.client_ping_interval = SHORT / 3)
        .start();
    let client = proxy.client().http2().await;
    let mut watch = client.open("https://kube.test/watch").await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");
    sleep(SHORT * 3).await;
    let answer = client.get("https://kube.test/").await.unwrap();
    assert_eq!(answer.text(), "ok");
    let start = Instant::now();
    drop(watch);
    assert_eq!(client.goaway().await, h2::Reason::NO_ERROR);
    assert!(start.elapsed() > SHORT - TICK);
    // The client may say its own goodbye to a connection that is gone by then.
    client.end().await.ok();
}

/// An HTTP/1.1 connection with a request on it is neither idle nor waiting for a head.
#[tokio::test]
async fn a_slow_answer_and_a_slow_body_are_not_cut() {
    let world = World::new();
    let apiserver = world.apiserver().http(|request| async move {
        let body = request.into_body().read().await.unwrap();
        sleep(SHORT * 3).await;
        Response::new(full(body))
    });
    let upstream = apiserver.start().await;
    let setup = world.proxy(upstream.address());
    let proxy = setup
        .timeouts(|timeouts| {
            timeouts.request_head = SHORT;
            timeouts.client_idle = SHORT;
        })
        .start();
    let mut client = proxy.client().http1().await;
    client
        .send("POST / HTTP/1.1\r\nHost: kube.test\r\nContent-Length: 4\r\n\r\n")
        .await;
    for part in ["b", "o", "d", "y"] {
        sleep(SHORT / 2).await;
        client.send(part).await;
    }
    assert_eq!(client.response().await.text(), "body");
}

/// Each head has its own time, also when it begins in the same breath as another one ends.
#[tokio::test]
async fn heads_that_follow_each_other_have_a_deadline_each() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    let mut client = proxy.client().http1().await;
    client.send("G").await;
    for _ in 0..4 {
        sleep(SHORT / 2).await;
        client
            .send("ET / HTTP/1.1\r\nHost: kube.test\r\n\r\nG")
            .await;
        assert_eq!(client.response().await.text(), "ok");
    }
    let start = Instant::now();
    ended(&mut client, start).await;
}

/// Between two requests there is more time than for a head.
#[tokio::test]
async fn an_idle_connection_outlives_the_deadline_of_a_head() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    let mut client = proxy.client().http1().await;
    for _ in 0..2 {
        assert_eq!(client.get(HOST, "/", "").await.status, 200);
        sleep(SHORT * 2).await;
    }
    assert_eq!(client.get(HOST, "/", "").await.status, 200);
}

/// HTTP/2 begins with a preface; without it nothing of hyper's would ever end the connection.
#[tokio::test]
async fn a_missing_http2_preface_is_cut() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    for part in [
        &b""[..],
        &standin::frames::PREFACE[..10],
        standin::frames::PREFACE,
    ] {
        let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
        let mut client = Http1::new(tls);
        let start = Instant::now();
        client.send(part).await;
        // What the proxy says first are its settings.
        client.end().await.unwrap_or_default();
        assert!(start.elapsed() > SHORT - TICK, "{part:?}");
    }
}

/// A socket that waits for the rest of a refused request still counts among `limits.connections`.
#[tokio::test]
async fn a_connection_that_lingers_keeps_its_place() {
    const LINGER: Duration = Duration::from_secs(1);
    let world = World::new();
    let apiserver = world.apiserver().http(|request| async move {
        let status = if request.uri().path() == "/version" {
            200
        } else {
            403
        };
        let response = Response::builder().status(status);
        response.body(full("whole")).unwrap()
    });
    let upstream = apiserver.start().await;
    for refused in [
        "no HTTP at all\r\n\r\n".to_owned(),
        format!("{}after", crate::upgrades::WEBSOCKET),
    ] {
        let setup = world.proxy(upstream.address());
        let proxy = setup.limits(|limits| limits.connections = 1).start();
        let mut lingering = proxy.client().http1().await;
        lingering.send(&refused).await;
        assert!(lingering.response().await.status >= 400);
        let start = Instant::now();
        let mut next = proxy.client().http1().await;
        assert_eq!(next.get(HOST, "/version", "").await.status, 200);
        let waited = start.elapsed();
        assert!(waited > LINGER / 2, "{refused:?}: {waited:?}");
    }
}
