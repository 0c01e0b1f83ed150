//! `Expect: 100-continue` over HTTP/2. `early_responses` and `forwarding` have HTTP/1.1.

use std::future::poll_fn;

use bytes::Bytes;
use h2::client::ResponseFuture;
use http::{Request, StatusCode};
use standin::{
    client::{Http2, whole},
    frames::{END_STREAM, kind},
    upstream::Upstream,
    within,
};

use crate::{
    proxy::{HOST, Proxy, World, request_fields, watch_or_ok},
    responses::ClientResponse,
};

/// Begins a POST that waits for a 100.
async fn begin(client: &Http2, host: &str) -> (ResponseFuture, h2::SendStream<Bytes>) {
    let request = Request::post(format!("https://{host}/")).header("expect", "100-continue");
    let request = request.body(()).unwrap();
    client.begin(request, false).await.unwrap()
}

/// The status of each interim response until the final one, which is not read.
async fn interim(response: &mut ResponseFuture) -> Option<StatusCode> {
    let polled = within("a response", poll_fn(|cx| response.poll_informational(cx))).await;
    polled.map(|interim| interim.unwrap().status())
}

/// A proxy before an apiserver of each version of HTTP.
async fn proxies(world: &World) -> Vec<(Upstream, Proxy)> {
    let mut proxies = Vec::new();
    for alpn in ["h2", "http/1.1"] {
        let upstream = world.apiserver().alpn(&[alpn]).http(watch_or_ok).start();
        let upstream = upstream.await;
        let proxy = world.proxy(upstream.address()).start();
        proxies.push((upstream, proxy));
    }
    proxies
}

/// RFC 9110 §10.1.1. Java's `HttpClient` sends its body only after the 100.
#[tokio::test]
async fn client_that_expects_100_gets_it_over_http2() {
    let world = World::new();
    for (_upstream, proxy) in proxies(&world).await {
        let client = proxy.client().http2().await;
        for _ in 0..2 {
            let (mut response, mut body) = begin(&client, HOST).await;
            assert_eq!(interim(&mut response).await, Some(StatusCode::CONTINUE));
            body.send_data("all of it".into(), true).unwrap();
            let response = within("a response", response).await.unwrap();
            assert_eq!(whole(response).await.unwrap().text(), "ok");
        }
    }
}

#[tokio::test]
async fn client_that_expects_100_gets_the_refusal_instead() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    let client = proxy.client().http2().await;
    let (mut response, _body) = begin(&client, "other.test").await;
    assert_eq!(interim(&mut response).await, None);
    let response = within("a refusal", response).await.unwrap();
    ClientResponse::from(whole(response).await.unwrap()).assert_status(421, "MisdirectedRequest");
    assert_eq!(upstream.connections().len(), 0);
}

/// Some clients take an unexpected 100 for an error.
#[tokio::test]
async fn client_that_expects_nothing_gets_no_100_over_http2() {
    let world = World::new();
    for (_upstream, proxy) in proxies(&world).await {
        let mut wire = proxy.frame_client().await;
        let head = request_fields("POST", "/");
        let expects = [&head[..], &[("expect", "100-continue")]].concat();
        for (stream, head, body_comes_late, heads) in [
            (1, &head[..], true, 1),
            (3, &expects[..], true, 2),
            // RFC 9110 §10.1.1: no 100 without a body.
            (5, &expects[..], false, 1),
        ] {
            let flags = if body_comes_late { 0 } else { END_STREAM };
            wire.headers(stream, head, flags).await.unwrap();
            let mut found = 0;
            if body_comes_late {
                wire.send(kind::PING, 0, 0, b"a round.".to_vec())
                    .await
                    .unwrap();
                if heads == 2 {
                    within("a 100", wire.expect(kind::HEADERS)).await.unwrap();
                    found += 1;
                }
                wire.data(stream, "all of it", END_STREAM).await.unwrap();
            }
            loop {
                let frame = within("a frame", wire.next()).await.unwrap().unwrap();
                found += usize::from(frame.kind == kind::HEADERS);
                if frame.stream == stream && frame.has(END_STREAM) {
                    break;
                }
            }
            assert_eq!(found, heads, "stream {stream}");
        }
    }
}
