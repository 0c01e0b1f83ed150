//! How long a client may take to send a request head, and how long it may be idle. The tests use short limits.
//! Exchanges that must not be aborted last several times the limit.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use kube_tls_proxy::config::Timeouts;
use standin::{
    client::{Http1, TlsConnection},
    frames::{END_HEADERS, END_STREAM, encode_fields, kind},
    upstream::{BodyEnd, full},
};
use tokio::time::{Instant, sleep, timeout};

use crate::proxy::{HOST, World, data, request_fields, watch_or_ok};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
/// How much earlier than its limit a timer may fire: the clocks of the two runtimes tick at different moments.
const TICK: Duration = Duration::from_millis(5);

fn short_head(timeouts: &mut Timeouts) {
    timeouts.request_head = SHORT;
    timeouts.client_idle = LONG;
}

fn short_idle(timeouts: &mut Timeouts) {
    timeouts.request_head = LONG;
    timeouts.client_idle = SHORT;
}

/// Waits for the end of the connection, and returns the time since `since`. Asserts that no byte arrives before.
async fn wait_for_end(client: &mut Http1<TlsConnection>, since: Instant) -> Duration {
    let rest = client.end().await.unwrap_or_default();
    assert_eq!(rest, "");
    since.elapsed()
}

#[tokio::test]
async fn head_that_stops_is_closed_at_the_deadline() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    for part in ["", "G", "GET / HTTP/1.1\r\nHost: kube.test\r\n", "\r\n\r\n"] {
        let mut client = proxy.client().http1().await;
        let start = Instant::now();
        client.send(part).await;
        assert!(
            wait_for_end(&mut client, start).await > SHORT - TICK,
            "{part:?}"
        );
    }
    assert_eq!(upstream.connections().len(), 0);
}

/// The deadline applies to the whole head: more bytes do not extend it.
#[tokio::test]
async fn slow_head_is_closed_at_the_deadline() {
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
    standin::within("the proxy to close the connection", dripping).await;
    assert!(start.elapsed() > SHORT - TICK);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn idle_http1_connection_is_closed() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_idle).start();
    let mut client = proxy.client().http1().await;
    for _ in 0..2 {
        assert_eq!(client.get(HOST, "/", "").await.status, 200);
    }
    let start = Instant::now();
    assert!(wait_for_end(&mut client, start).await > SHORT - TICK);
}

/// kube-apiserver also closes an HTTP/2 connection without streams. Acknowledged pings do not keep it open.
#[tokio::test]
async fn http2_connection_is_closed_only_when_idle() {
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
    let response = client.get("https://kube.test/").await.unwrap();
    assert_eq!(response.text(), "ok");
    let start = Instant::now();
    drop(watch);
    assert_eq!(client.goaway().await, h2::Reason::NO_ERROR);
    assert!(start.elapsed() > SHORT - TICK);
    // The client may send its own GOAWAY on a connection that is already closed.
    client.end().await.ok();
}

/// An HTTP/1.1 connection with a request on it is neither idle nor waiting for a head.
#[tokio::test]
async fn slow_response_and_slow_upload_are_not_aborted() {
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

/// A client that announces a body and does not send it gets a 408, over both protocols, and its request is aborted
/// upstream. One that sends 2 KiB per second is honest. In real time, because the rate is no setting.
#[tokio::test]
async fn upload_below_its_minimum_rate_gets_408() {
    let world = World::new();
    let both = [&["h2", "http/1.1"][..], &["http/1.1"]];
    let slow = both.map(async |alpn| {
        let upstream = world.apiserver().alpn(alpn).start().await;
        let proxy = world.proxy(upstream.address()).start();
        let mut http1 = proxy.client().http1().await;
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 99\r\n\r\npart");
        http1.send(head).await;
        let http2 = proxy.client().http2().await;
        let post = Request::post("https://kube.test/").body(()).unwrap();
        let (response, mut body) = http2.begin(post, false).await.unwrap();
        body.send_data("part".into(), false).unwrap();
        let requests = [upstream.next_request().await, upstream.next_request().await];
        let began = Instant::now();
        let refused = timeout(LONG, response).await.unwrap().unwrap();
        assert_eq!(refused.status(), 408);
        let lasted = began.elapsed();
        assert!(
            lasted > Duration::from_secs(30) && lasted < Duration::from_secs(40),
            "{lasted:?}"
        );
        let refused = http1.response().await;
        assert_eq!(
            (refused.status, refused.head.header("connection")),
            (408, Some("close"))
        );
        assert!(
            refused.text().contains("came too slowly"),
            "{}",
            refused.text()
        );
        http1.end().await.unwrap();
        for request in requests {
            let end = request.body_end().await;
            assert!(matches!(end, BodyEnd::Incomplete(_)), "{alpn:?}: {end:?}");
        }
        // Only the stream has ended.
        assert_eq!(http2.get("https://kube.test/ok").await.unwrap().status, 200);
    });
    let honest = both.map(async |alpn| {
        const SECONDS: usize = 40;
        let upstream = world.apiserver().alpn(alpn).start().await;
        let proxy = world.proxy(upstream.address()).start();
        let http2 = proxy.client().http2().await;
        let post = Request::post("https://kube.test/").body(()).unwrap();
        let (response, mut body) = http2.begin(post, false).await.unwrap();
        for _ in 0..SECONDS {
            sleep(Duration::from_secs(1)).await;
            body.send_data(vec![b'x'; 2048].into(), false).unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(
            timeout(LONG, response).await.unwrap().unwrap().status(),
            200
        );
        let request = upstream.next_request().await;
        assert_eq!(request.body().await.len(), SECONDS * 2048);
    });
    let [one, two] = slow;
    let [three, four] = honest;
    tokio::join!(one, two, three, four);
}

/// Each head has its own deadline, also when it begins in the same write in which another one ends.
#[tokio::test]
async fn each_pipelined_head_has_its_own_deadline() {
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
    wait_for_end(&mut client, start).await;
}

/// Between two requests the idle timeout applies, which is longer than the head deadline.
#[tokio::test]
async fn head_deadline_does_not_close_an_idle_connection() {
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

/// HTTP/2 begins with a preface; no timeout of h2 closes a connection that never sends it.
#[tokio::test]
async fn missing_http2_preface_is_closed_at_the_deadline() {
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
        // The proxy sends its SETTINGS first.
        client.end().await.unwrap_or_default();
        assert!(start.elapsed() > SHORT - TICK, "{part:?}");
    }
}

/// Without the flag `END_HEADERS`, a head continues with the next frame, and h2 waits for it without a limit.
#[tokio::test]
async fn http2_head_that_stops_is_closed_at_the_deadline() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).timeouts(short_head).start();
    let block = encode_fields(&request_fields("GET", "/"));
    for heads in 0..3 {
        let mut wire = proxy.frame_client().await;
        for stream in (1..).step_by(2).take(heads) {
            let (first, last) = block.split_at(20);
            wire.send(kind::HEADERS, END_STREAM, stream, first.to_vec())
                .await
                .unwrap();
            sleep(SHORT / 2).await;
            wire.send(kind::CONTINUATION, END_HEADERS, stream, last.to_vec())
                .await
                .unwrap();
            wire.expect(kind::DATA).await.unwrap();
            // Between two heads there is no deadline.
            sleep(SHORT * 2).await;
        }
        let start = Instant::now();
        wire.send(kind::HEADERS, END_STREAM, 101, block.clone())
            .await
            .unwrap();
        // More frames do not extend it.
        sleep(SHORT / 2).await;
        wire.send(kind::CONTINUATION, 0, 101, vec![0])
            .await
            .unwrap();
        let end = async { while let Ok(Some(_)) = wire.next().await {} };
        standin::within("the proxy to close the connection", end).await;
        let elapsed = start.elapsed();
        assert!(elapsed > SHORT - TICK, "{heads}: {elapsed:?}");
    }
}

/// A socket that waits for the rest of a refused request still counts towards `limits.connections`.
#[tokio::test]
async fn lingering_connection_keeps_its_permit() {
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
        format!("{}extra", crate::upgrades::WEBSOCKET),
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
