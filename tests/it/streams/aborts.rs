//! A response that is aborted upstream is aborted downstream, in every way it can be aborted.

use h2::Reason;
use standin::{
    client::whole,
    frames::{END_STREAM, FrameConnection, kind},
    upstream::{Builder, Raw},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
};

use super::{Arc, begin_upload, data};
use crate::proxy::World;

const GET: &str = "GET / HTTP/1.1\r\nHost: kube.test\r\n\r\n";

/// Each framing of an HTTP/1.1 response, with the first half of the response.
const HALVES: [(&str, &str); 3] = [
    ("a length", "Content-Length: 8\r\n\r\nhalf"),
    ("chunks", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ("a body until close", "\r\nhalf"),
];

/// An HTTP/1.1 apiserver that closes the connection after the first half, without `close_notify`.
fn sends_half(world: &World, half: &'static str) -> Builder {
    world
        .apiserver()
        .alpn(&["http/1.1"])
        .raw(move |mut raw: Raw| async move {
            let mut space = [0; 4096];
            if raw.stream.read(&mut space).await.is_ok_and(|read| read > 0) {
                let response = format!("HTTP/1.1 200 OK\r\n{half}");
                raw.stream.write_all(response.as_bytes()).await.unwrap();
                raw.stream.flush().await.unwrap();
            }
        })
}

/// Case 24.
#[tokio::test]
async fn aborted_response_never_looks_complete_over_http1() {
    for (framing, half) in HALVES {
        let world = World::new();
        let upstream = sends_half(&world, half).start().await;
        let proxy = world.proxy(upstream.address()).start();
        let mut client = proxy.client().http1().await;
        client.send(GET).await;
        let head = client.head().await.unwrap();
        let error = client.body(&head).await.unwrap_err();
        assert_eq!(error.received, "half", "{framing}");
    }
}

/// Case 24. The client speaks HTTP/2, the apiserver only HTTP/1.1.
#[tokio::test]
async fn response_aborted_over_http1_is_reset_over_http2() {
    for (framing, half) in HALVES {
        let world = World::new();
        let upstream = sends_half(&world, half).start().await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let mut response = client.open("https://kube.test/").await.unwrap();
        assert_eq!(data(&mut response).await.unwrap(), "half");
        let reason = whole(response).await.unwrap_err().reason();
        assert_eq!(reason, Some(Reason::INTERNAL_ERROR), "{framing}");
    }
}

/// Case 24. The proxy always sends `INTERNAL_ERROR`: hyper's clients take `NO_ERROR` and `CANCEL` for a normal end.
#[tokio::test]
async fn aborted_response_never_looks_complete_over_http2() {
    let resets = [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR].map(Some);
    for reset in resets.into_iter().chain([None]) {
        let world = World::new();
        let arrived = Arc::new(Notify::new());
        let upstream = {
            let arrived = Arc::clone(&arrived);
            world.apiserver().raw(move |raw| {
                let arrived = Arc::clone(&arrived);
                async move {
                    let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
                    let head = wire.expect(kind::HEADERS).await.unwrap();
                    let ok = [(":status", "200")];
                    wire.headers(head.stream, &ok, 0).await.unwrap();
                    wire.data(head.stream, "half", 0).await.unwrap();
                    arrived.notified().await;
                    // Without a reset, the apiserver closes the connection.
                    if let Some(reason) = reset {
                        wire.reset(head.stream, reason.into()).await.unwrap();
                        drop(wire.expect(kind::GOAWAY).await);
                    }
                }
            })
        };
        let upstream = upstream.start().await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let mut response = client.open("https://kube.test/").await.unwrap();
        assert_eq!(data(&mut response).await.unwrap(), "half");
        arrived.notify_one();
        let reason = whole(response).await.unwrap_err().reason();
        assert_eq!(reason, Some(Reason::INTERNAL_ERROR), "{reset:?}");
    }
}

/// `RST_STREAM(NO_ERROR)` asks the client to stop the upload. It does not mean that the response is complete.
#[tokio::test]
async fn no_error_reset_is_an_end_only_after_end_stream() {
    for (flags, is_whole) in [(END_STREAM, true), (0, false)] {
        let world = World::new();
        let upstream = world
            .apiserver()
            .raw(move |raw| async move {
                let mut wire = FrameConnection::server(raw.stream, &[]).await.unwrap();
                let head = wire.expect(kind::HEADERS).await.unwrap();
                let status = [(":status", "413")];
                wire.headers(head.stream, &status, 0).await.unwrap();
                wire.data(head.stream, "too much", flags).await.unwrap();
                wire.reset(head.stream, Reason::NO_ERROR.into())
                    .await
                    .unwrap();
                drop(wire.expect(kind::GOAWAY).await);
            })
            .start()
            .await;
        let proxy = world.proxy(upstream.address()).start();
        let client = proxy.client().http2().await;
        let (response, _upload) = begin_upload(&client).await;
        // A reset discards data that is not sent yet, so an aborted response may lose its head too.
        let response = match standin::within("the head", response).await {
            Ok(response) => whole(response).await,
            Err(error) => Err(error),
        };
        match response {
            Ok(response) => {
                assert_eq!(response.status, 413);
                assert_eq!((response.text().as_str(), is_whole), ("too much", true));
            }
            Err(error) => assert_eq!(
                (error.reason(), is_whole),
                (Some(Reason::INTERNAL_ERROR), false)
            ),
        }
    }
}
