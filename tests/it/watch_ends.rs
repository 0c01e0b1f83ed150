//! How watches end when the proxy shuts down: between two events, like a watch that the apiserver ends, so that a
//! reflector resumes and logs nothing.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, header};
use standin::{
    client::{Http1, TlsConnection, whole},
    gzip,
    upstream::{BodySender, Upstream, channel},
    within,
};
use tokio::{sync::mpsc, time::Instant};

use crate::proxy::{HOST, Proxy, World, data};

const WATCH: &str = "/api/v1/pods?watch=true";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";
const CBOR: &str = "application/cbor-seq";

/// An apiserver that responds to every request with a watch, and gives the test the sender of its events.
async fn watches(
    world: &World,
    content_type: &'static str,
    coding: Option<&'static str>,
) -> (Upstream, mpsc::UnboundedReceiver<BodySender>) {
    let (sender, opened) = mpsc::unbounded_channel();
    let apiserver = world.apiserver().http(move |_| {
        let (events, body) = channel();
        sender.send(events).unwrap();
        let mut response = Response::builder().header(header::CONTENT_TYPE, content_type);
        if let Some(coding) = coding {
            response = response.header(header::CONTENT_ENCODING, coding);
        }
        async move { response.body(body).unwrap() }
    });
    (apiserver.start().await, opened)
}

/// A proxy with a drain timeout that is much longer than the timeout of the test.
fn with_long_drain(world: &World, upstream: &Upstream) -> Proxy {
    let setup = world.proxy(upstream.address());
    setup
        .timeouts(|timeouts| timeouts.drain = standin::WAIT * 10)
        .start()
}

async fn open_http1(proxy: &Proxy) -> Http1<TlsConnection> {
    let mut client = proxy.client().http1().await;
    client
        .send(format!("GET {WATCH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    assert_eq!(client.head().await.unwrap().status, 200);
    client
}

/// A reflector opens its next watch immediately and on the same connection, because the head of the last watch
/// did not contain `Connection: close`.
#[tokio::test]
async fn next_request_after_an_ended_watch_is_served() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, JSON, None).await;
    let mut proxy = with_long_drain(&world, &upstream);
    let mut client = open_http1(&proxy).await;
    let _events = opened.recv().await.unwrap();

    proxy.begin_shutdown();
    assert_eq!(client.chunk().await.unwrap(), "", "the last chunk");
    client
        .send(format!("GET {WATCH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    let head = client.head().await.unwrap();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("connection"), Some("close"));
    drop(opened.recv().await);
    assert_eq!(client.chunk().await.unwrap(), "", "the last chunk");
    assert_eq!(client.end().await.unwrap(), "", "a clean close");
    proxy.wait_until_stopped().await;
}

/// Opens one watch over each version of HTTP. The apiserver sends `before`, the shutdown begins, and the
/// apiserver sends `after`. Asserts that the clients receive `rest` after the shutdown began, and a clean end.
async fn assert_watch_end(
    (content_type, coding): (&'static str, Option<&'static str>),
    before: &[u8],
    after: &[u8],
    rest: &[u8],
) {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, content_type, coding).await;
    let mut proxy = with_long_drain(&world, &upstream);
    let mut http1 = open_http1(&proxy).await;
    let events_http1 = opened.recv().await.unwrap();
    let http2 = proxy.client().http2().await;
    let mut response = http2.open(&format!("https://{HOST}{WATCH}")).await.unwrap();
    let events_http2 = opened.recv().await.unwrap();
    let before = Bytes::copy_from_slice(before);
    if !before.is_empty() {
        events_http1.send(before.clone()).await.unwrap();
        assert_eq!(http1.chunk().await.unwrap(), before);
        events_http2.send(before.clone()).await.unwrap();
        assert_eq!(data(&mut response).await.unwrap(), before);
    }

    proxy.begin_shutdown();
    http2.goaway().await;

    if !after.is_empty() {
        let after = Bytes::copy_from_slice(after);
        events_http1.send(after.clone()).await.unwrap();
        assert_eq!(http1.chunk().await.unwrap(), rest);
        events_http2.send(after).await.unwrap();
        assert_eq!(data(&mut response).await.unwrap(), rest);
    }
    assert_eq!(http1.chunk().await.unwrap(), "", "the last chunk");
    assert_eq!(http1.end().await.unwrap(), "", "a clean close");
    let end = within("the end of the watch", response.body_mut().data()).await;
    assert!(end.is_none_or(|end| end.unwrap().is_empty()), "END_STREAM");
    within("the apiserver to see the end", async {
        events_http1.closed().await;
        events_http2.closed().await;
    })
    .await;
    drop(http2);
    proxy.wait_until_stopped().await;
}

/// Case 56. A watch ends immediately when no event is in progress.
#[tokio::test]
async fn json_watch_ends_immediately_between_two_events() {
    assert_watch_end((JSON, None), b"{\"type\":\"ADDED\"}\n", b"", b"").await;
    assert_watch_end((JSON, None), b"", b"", b"").await;
}

/// Case 56. A reflector of client-go takes a watch that lasted less than a second without an event for a fault.
#[tokio::test]
async fn empty_watch_is_a_second_old_when_the_drain_ends_it() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, JSON, None).await;
    let mut proxy = with_long_drain(&world, &upstream);
    let began_http1 = Instant::now();
    let mut http1 = open_http1(&proxy).await;
    let _events_http1 = opened.recv().await.unwrap();
    let http2 = proxy.client().http2().await;
    let began_http2 = Instant::now();
    let response = http2.open(&format!("https://{HOST}{WATCH}")).await.unwrap();
    let _events_http2 = opened.recv().await.unwrap();

    proxy.begin_shutdown();
    let second = Duration::from_secs(1);
    assert_eq!(http1.chunk().await.unwrap(), "", "the last chunk");
    assert!(began_http1.elapsed() >= second);
    assert_eq!(whole(response).await.unwrap().body, "");
    assert!(began_http2.elapsed() >= second);
    drop(http2);
    proxy.wait_until_stopped().await;
}

/// Case 56. The event in progress is the last one, and it is complete.
#[tokio::test]
async fn json_watch_ends_after_the_event_in_progress() {
    assert_watch_end(
        (JSON, None),
        b"{\"type\":\"ADDED\"}\n{\"type\":\"MO",
        b"DIFIED\"}\n{\"type\":\"DELETED\"}\n{\"ty",
        b"DIFIED\"}\n",
    )
    .await;
}

/// Case 56. Protobuf uses length prefixes instead of lines; a newline in a frame has no meaning.
#[tokio::test]
async fn protobuf_watch_ends_after_the_frame_in_progress() {
    assert_watch_end((PROTOBUF, None), b"\0\0\0\x02k8", b"", b"").await;
    assert_watch_end(
        (PROTOBUF, None),
        b"\0\0\0\x02k8\0\0\0\x05a\n",
        b"\nbc\0\0\0\x01d\0\0",
        b"\nbc",
    )
    .await;
}

/// Case 56. In CBOR a newline has no meaning either.
#[tokio::test]
async fn cbor_watch_ends_after_the_item_in_progress() {
    let cbor = (CBOR, None);
    assert_watch_end(cbor, b"\xa1\x61a\x01", b"", b"").await;
    let rest = b"\n\x02\x03\xff";
    assert_watch_end(cbor, b"\xa0\x9f\x43a", b"\n\x02\x03\xff\xa1\x61", rest).await;
}

/// Cases 45, 56. kube-apiserver compresses the first watch of every informer, and ends a gzip member after each flush.
#[tokio::test]
async fn compressed_watch_ends_after_the_member_in_progress() {
    let members = gzip::members();
    for content_type in [JSON, PROTOBUF, CBOR] {
        let compressed = (content_type, Some("gzip"));
        assert_watch_end(compressed, b"", b"", b"").await;
        assert_watch_end(compressed, members[0], b"", b"").await;
        // The whole of one member, and the next one in two parts.
        let (begun, rest) = members[1].split_at(20);
        let before = [members[0], begun].concat();
        let after = [rest, members[2]].concat();
        assert_watch_end(compressed, &before, &after, rest).await;
    }
}

/// Case 56. A server that compresses the whole stream as one member shows no end of an event. The proxy aborts such a
/// watch at the deadline, and the client sees that the response is incomplete.
#[tokio::test]
async fn watch_without_visible_events_is_aborted_at_the_deadline() {
    for (content_type, coding) in [
        (JSON, Some("gzip")),
        (JSON, Some("zstd")),
        ("application/yaml", None),
    ] {
        let world = World::new();
        let (upstream, mut opened) = watches(&world, content_type, coding).await;
        let mut proxy = world
            .proxy(upstream.address())
            .timeouts(|timeouts| timeouts.drain = Duration::from_millis(300))
            .start();
        let mut client = open_http1(&proxy).await;
        let events = opened.recv().await.unwrap();
        // The marker of a flush is not the end of a member.
        let flushed = &b"event\n\0\0\xff\xff"[..];
        events.send(flushed).await.unwrap();
        assert_eq!(client.chunk().await.unwrap(), flushed);
        proxy.begin_shutdown();
        client.chunk().await.unwrap_err();
        proxy.wait_until_stopped().await;
    }
}

/// Case 56. A long list is not a watch: it is sent completely.
#[tokio::test]
async fn list_is_sent_completely_during_a_drain() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, JSON, None).await;
    let mut proxy = with_long_drain(&world, &upstream);
    let mut client = proxy.client().http1().await;
    client
        .send(format!("GET /api/v1/pods HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    assert_eq!(client.head().await.unwrap().status, 200);
    let list = opened.recv().await.unwrap();
    list.send("{\n").await.unwrap();
    assert_eq!(client.chunk().await.unwrap(), "{\n");
    proxy.begin_shutdown();
    proxy
        .wait_for_phase(kube_tls_proxy::drain::Phase::Draining)
        .await;
    list.send("}\n").await.unwrap();
    assert_eq!(client.chunk().await.unwrap(), "}\n");
    drop(list);
    assert_eq!(client.chunk().await.unwrap(), "", "the last chunk");
    proxy.wait_until_stopped().await;
}
