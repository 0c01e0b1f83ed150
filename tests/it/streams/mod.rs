//! Streams: heads and frames are forwarded immediately, aborted bodies stay incomplete, and back-pressure works.

mod aborts;
mod cuts;
mod pressure;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use standin::{
    client::{Http2, whole},
    upstream::{BodyEnd, BodySender, Builder, channel, full},
    within,
};
use tokio::io::AsyncWriteExt as _;

use crate::proxy::{HOST, World, data, watch_or_ok};

const WATCH: &str = "https://kube.test/watch";

/// An apiserver whose only response is written by the test.
fn scripted(world: &World) -> (Builder, BodySender) {
    let (events, body) = channel();
    let body = Mutex::new(Some(body));
    let builder = world.apiserver().http(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        let response = Response::builder().header("content-encoding", "gzip");
        async { response.body(body).unwrap() }
    });
    (builder, events)
}

/// The members of a gzip stream, each flushed separately, as kube-apiserver compresses a watch.
fn members() -> [&'static [u8]; 3] {
    [
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03first",
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03second\0\xff",
        b"\x1f",
    ]
}

/// Cases 21, 23, 45. The head arrives before any byte of the body, and each frame arrives separately and unchanged.
#[tokio::test]
async fn head_and_each_frame_are_forwarded_immediately_over_http2() {
    let world = World::new();
    let (upstream, events) = scripted(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut watch = client.open(WATCH).await.unwrap();
    assert_eq!(watch.headers()["content-encoding"], "gzip");
    for member in members() {
        events.send(member).await.unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), member);
    }
    drop(events);
    assert_eq!(whole(watch).await.unwrap().body, "");
}

/// Cases 21, 23, 45.
#[tokio::test]
async fn head_and_each_chunk_are_forwarded_immediately_over_http1() {
    let world = World::new();
    let (upstream, events) = scripted(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    let watch = "GET /watch HTTP/1.1\r\nHost: kube.test\r\n\r\n";
    client.send(watch).await;
    let head = client.head().await.unwrap();
    assert_eq!(head.header("content-encoding"), Some("gzip"));
    for member in members() {
        events.send(member).await.unwrap();
        assert_eq!(client.chunk().await.unwrap(), member);
    }
    drop(events);
    assert_eq!(client.chunk().await.unwrap(), "");
}

/// Case 25.
#[tokio::test]
async fn cancelled_watch_is_reset_upstream_immediately() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let watch = client.open(WATCH).await.unwrap();
    drop(watch);
    upstream
        .wait_for("the reset", |connections| {
            (connections[0].resets() == [(1, 8)]).then_some(())
        })
        .await;
    let mut client = proxy.client().http1().await;
    client
        .send("GET /watch HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    client.head().await.unwrap();
    drop(client);
    upstream.connection_end(1).await;
    upstream.wait_for_open_responses(0).await;
}

/// `printf 'GET …' | openssl s_client` closes its side at once, and so do some health checks.
#[tokio::test]
async fn half_closed_client_gets_its_response() {
    /// The proxy has noticed the close by then.
    const NOTICED: Duration = Duration::from_millis(300);
    let world = World::new();
    let (release, released) = tokio::sync::watch::channel(false);
    let apiserver = world.apiserver().http(move |_| {
        let mut released = released.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            Response::new(full("in time"))
        }
    });
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    client.stream().shutdown().await.unwrap();
    upstream.next_request().await;
    let cancelled = tokio::time::timeout(NOTICED, upstream.connection_end(0)).await;
    assert!(cancelled.is_err(), "the request was cancelled");
    release.send_replace(true);
    assert_eq!(client.response().await.text(), "in time");
    assert_eq!(client.end().await.unwrap(), "");
}

/// The client may have gone for good.
#[tokio::test]
async fn watch_of_a_half_closed_client_is_cancelled_soon() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("GET /watch HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    client.head().await.unwrap();
    client.stream().shutdown().await.unwrap();
    upstream.connection_end(0).await;
    upstream.wait_for_open_responses(0).await;
}

/// Case 25. A request that is cancelled before its response head arrives leaves no stream open either.
#[tokio::test]
async fn thousand_cancelled_requests_leave_no_open_stream() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|request| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            watch_or_ok(request).await
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    // No client may cancel more requests at once before their response begins.
    for number in 1..=100 {
        for _ in 0..9 {
            drop(client.open(WATCH).await.unwrap());
        }
        let request = Request::get("https://kube.test/never").body(()).unwrap();
        let (response, _) = client.begin(request, true).await.unwrap();
        upstream
            .wait_for("the request", |connections| {
                let requests: usize = connections.iter().map(|one| one.requests).sum();
                (requests == 10 * number).then_some(())
            })
            .await;
        drop(response);
    }
    upstream
        .wait_for("the last reset", |connections| {
            let resets: usize = connections.iter().map(|one| one.resets().len()).sum();
            (resets == 1000).then_some(())
        })
        .await;
    let response = client.get("https://kube.test/ok").await.unwrap();
    assert_eq!(response.text(), "ok");
    assert_eq!(upstream.connections().len(), 1, "no connection was closed");
}

async fn begin_upload(client: &Http2) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let request = Request::post("https://kube.test/upload").body(()).unwrap();
    client.begin(request, false).await.unwrap()
}

/// The apiserver must not process an aborted upload. hyper takes `CANCEL` and `NO_ERROR` for a normal end.
#[tokio::test]
async fn upload_aborted_by_client_is_aborted_upstream_over_http2() {
    for code in [
        h2::Reason::CANCEL,
        h2::Reason::NO_ERROR,
        h2::Reason::INTERNAL_ERROR,
    ] {
        let (_world, upstream, proxy) = World::with_proxy().await;
        let client = proxy.client().http2().await;
        let (_response, mut upload) = begin_upload(&client).await;
        upload.send_data("half".into(), false).unwrap();
        let request = upstream.next_request().await;
        upstream
            .wait_for("the first half", |_| {
                (request.body_so_far() == b"half").then_some(())
            })
            .await;
        upload.send_reset(code);
        let end = request.body_end().await;
        assert!(matches!(end, BodyEnd::Incomplete(_)), "{code:?}: {end:?}");
    }
}

#[tokio::test]
async fn upload_aborted_by_client_is_aborted_upstream_over_http1() {
    for framing in ["Content-Length: 8", "Transfer-Encoding: chunked"] {
        let (_world, upstream, proxy) = World::with_proxy().await;
        let mut client = proxy.client().http1().await;
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n");
        let half = if framing.contains("chunked") {
            "4\r\nhalf\r\n"
        } else {
            "half"
        };
        client.send(head + half).await;
        let request = upstream.next_request().await;
        upstream
            .wait_for("the first half", |_| {
                (request.body_so_far() == b"half").then_some(())
            })
            .await;
        drop(client);
        let end = request.body_end().await;
        assert!(matches!(end, BodyEnd::Incomplete(_)), "{framing}: {end:?}");
    }
}

/// An apiserver that sends back each piece of the request body when it arrives.
fn echo(world: &World) -> Builder {
    world.apiserver().http(|request| async {
        let (back, body) = channel();
        let mut upload = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = upload.frame().await {
                let Ok(piece) = frame.into_data() else { return };
                if back.send(piece).await.is_err() {
                    return;
                }
            }
        });
        Response::new(body)
    })
}

#[tokio::test]
async fn both_directions_stream_at_the_same_time_over_http2() {
    let world = World::new();
    let upstream = echo(&world).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let (response, mut upload) = begin_upload(&client).await;
    let mut response = within("the head", response).await.unwrap();
    for number in 0..5 {
        let piece = format!("piece {number}");
        upload.send_data(piece.clone().into(), false).unwrap();
        assert_eq!(data(&mut response).await.unwrap(), piece);
    }
    upload.send_data("last".into(), true).unwrap();
    assert_eq!(whole(response).await.unwrap().text(), "last");
    assert_eq!(
        upstream.next_request().await.body_end().await,
        BodyEnd::Complete
    );
}

/// After the response head, no task of the proxy waits for the upload any more. The abort must still reach the
/// apiserver.
#[tokio::test]
async fn upload_aborted_after_response_head_is_aborted_upstream() {
    let world = World::new();
    let upstream = echo(&world).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let (response, mut upload) = begin_upload(&client).await;
    let mut response = within("the head", response).await.unwrap();
    upload.send_data("half".into(), false).unwrap();
    assert_eq!(data(&mut response).await.unwrap(), "half");
    upload.send_reset(h2::Reason::CANCEL);
    let end = upstream.next_request().await.body_end().await;
    assert!(matches!(end, BodyEnd::Incomplete(_)), "{end:?}");
}

#[tokio::test]
async fn both_directions_stream_at_the_same_time_over_http1() {
    let world = World::new();
    let upstream = echo(&world).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("POST / HTTP/1.1\r\nHost: kube.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client.head().await.unwrap();
    for piece in ["one", "two", "six"] {
        client.send(format!("3\r\n{piece}\r\n")).await;
        assert_eq!(client.chunk().await.unwrap(), piece);
    }
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await.unwrap(), "");
}

type Shared<T> = Arc<Mutex<Option<T>>>;
