//! What becomes of watches when the proxy is told to stop: they end between two events, as they would have
//! ended by themselves, so that a reflector resumes and logs nothing.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, header};
use standin::{
    client::{Http1, TlsConnection},
    upstream::{BodySender, Upstream, channel},
    within,
};
use tokio::sync::mpsc;

use crate::proxy::{HOST, Proxy, World, data};

const WATCH: &str = "/api/v1/pods?watch=true";
const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// An apiserver whose every response is a watch in the hands of the test.
async fn watches(
    world: &World,
    content_type: &'static str,
    coding: Option<&'static str>,
) -> (Upstream, mpsc::UnboundedReceiver<BodySender>) {
    let (tell, opened) = mpsc::unbounded_channel();
    let apiserver = world.apiserver().http(move |_| {
        let (events, body) = channel();
        tell.send(events).unwrap();
        let mut response = Response::builder().header(header::CONTENT_TYPE, content_type);
        if let Some(coding) = coding {
            response = response.header(header::CONTENT_ENCODING, coding);
        }
        async move { response.body(body).unwrap() }
    });
    (apiserver.start().await, opened)
}

/// A proxy that would wait for a watch for much longer than the test does.
fn patient(world: &World, upstream: &Upstream) -> Proxy {
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

/// A reflector asks for the next watch at once and on the same connection: the head of the last one has not
/// said that it would be closed.
#[tokio::test]
async fn what_a_client_asks_right_behind_its_watch_is_answered() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, JSON, None).await;
    let mut proxy = patient(&world, &upstream);
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
    assert_eq!(client.end().await.unwrap(), "", "an end in order");
    proxy.wait_until_stopped().await;
}

/// One watch over each version of HTTP; what the apiserver sends on both, in two steps with the signal to
/// stop between them, and what the clients get after the signal.
async fn ends(content_type: &'static str, before: &[u8], after: &[u8], rest: &[u8]) {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, content_type, None).await;
    let mut proxy = patient(&world, &upstream);
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
    assert_eq!(http1.end().await.unwrap(), "", "an end in order");
    let end = within("the end of the watch", response.body_mut().data()).await;
    assert!(end.is_none_or(|end| end.unwrap().is_empty()), "END_STREAM");
    within("the apiserver to hear of it", async {
        events_http1.closed().await;
        events_http2.closed().await;
    })
    .await;
    drop(http2);
    proxy.wait_until_stopped().await;
}

/// Case 56. A watch that is silent ends at once.
#[tokio::test]
async fn a_json_watch_between_two_events_ends_at_once() {
    ends(JSON, b"{\"type\":\"ADDED\"}\n", b"", b"").await;
    ends(JSON, b"", b"", b"").await;
}

/// Case 56. The event that has begun is the last one, and it is whole.
#[tokio::test]
async fn a_json_watch_within_an_event_ends_behind_it() {
    ends(
        JSON,
        b"{\"type\":\"ADDED\"}\n{\"type\":\"MO",
        b"DIFIED\"}\n{\"type\":\"DELETED\"}\n{\"ty",
        b"DIFIED\"}\n",
    )
    .await;
}

/// Case 56. Protobuf has lengths in place of lines; a newline in it means nothing.
#[tokio::test]
async fn a_protobuf_watch_ends_behind_a_frame() {
    ends(PROTOBUF, b"\0\0\0\x02k8", b"", b"").await;
    ends(
        PROTOBUF,
        b"\0\0\0\x02k8\0\0\0\x05a\n",
        b"\nbc\0\0\0\x01d\0\0",
        b"\nbc",
    )
    .await;
}

/// Case 56. What is compressed cannot be ended in the middle without being read: it is cut at the deadline,
/// and seen to be cut.
#[tokio::test]
async fn a_compressed_watch_is_cut_at_the_deadline() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, JSON, Some("gzip")).await;
    let mut proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.drain = Duration::from_millis(300))
        .start();
    let mut client = open_http1(&proxy).await;
    let events = opened.recv().await.unwrap();
    events.send("gzip\n").await.unwrap();
    assert_eq!(client.chunk().await.unwrap(), "gzip\n");
    proxy.begin_shutdown();
    client.chunk().await.unwrap_err();
    proxy.wait_until_stopped().await;
}

/// Case 56. A list that happens to be long is no watch.
#[tokio::test]
async fn other_bodies_run_to_their_end() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world, JSON, None).await;
    let mut proxy = patient(&world, &upstream);
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
