//! Back-pressure: the proxy buffers little, and a peer that does not read slows the peer that writes.

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use standin::{
    client::Http2,
    frames::{END_STREAM, FrameConnection},
    upstream::{Builder, channel},
    within,
};
use tokio::sync::{Notify, mpsc};

use super::{Arc, Mutex, Shared, begin_upload, data};
use crate::proxy::{HOST, World, sum_until_quiet};

const MIB: usize = 1 << 20;
const PIECE: usize = 64 * 1024;

/// An apiserver that writes 64 MiB as fast as the proxy reads, and reports how much the proxy has read.
fn large_list(world: &World) -> (Builder, mpsc::UnboundedReceiver<usize>) {
    let (sender, taken) = mpsc::unbounded_channel();
    let upstream = world.apiserver().http(move |_| {
        let sender = sender.clone();
        async {
            let (items, body) = channel();
            tokio::spawn(async move {
                let piece = Bytes::from(vec![b'x'; PIECE]);
                for _ in 0..64 * MIB / PIECE {
                    if items.send(piece.clone()).await.is_err() {
                        return;
                    }
                    sender.send(PIECE).ok();
                }
            });
            Response::new(body)
        }
    });
    (upstream, taken)
}

/// Case 44.
#[tokio::test]
async fn slow_reader_slows_the_apiserver_over_http2() {
    let world = World::new();
    let (upstream, mut taken) = large_list(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let client = Http2::with(&h2::client::Builder::new(), tls).await;
    let mut response = client.open("https://kube.test/").await.unwrap();
    let pushed = sum_until_quiet(&mut taken).await;
    assert!((PIECE..4 * MIB).contains(&pushed), "{pushed} bytes");
    let mut received = 0;
    while received < 64 * MIB {
        received += data(&mut response).await.unwrap().len();
    }
    assert_eq!(received, 64 * MIB);
}

/// Case 44. Here the socket buffers of the kernel, which grow to several MiB each, hold data too.
#[tokio::test]
async fn slow_reader_slows_the_apiserver_over_http1() {
    let world = World::new();
    let (upstream, mut taken) = large_list(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("GET / HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    let head = client.head().await.unwrap();
    let pushed = sum_until_quiet(&mut taken).await;
    assert!((PIECE..40 * MIB).contains(&pushed), "{pushed} bytes");
    assert_eq!(client.body(&head).await.unwrap().len(), 64 * MIB);
}

/// A client may grant any window and then not read. As over HTTP/1.1, the socket buffers of the kernel hold data too.
#[tokio::test]
async fn large_window_does_not_fill_the_memory_of_the_proxy() {
    let world = World::new();
    let (upstream, mut taken) = large_list(&world);
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let tls = proxy.client().alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::wide_client(tls).await.unwrap();
    let get = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", "/"),
    ];
    wire.headers(1, &get, END_STREAM).await.unwrap();
    let pushed = sum_until_quiet(&mut taken).await;
    assert!((PIECE..40 * MIB).contains(&pushed), "{pushed} bytes");
}

#[tokio::test]
async fn apiserver_that_does_not_read_slows_the_upload() {
    let world = World::new();
    let read = Arc::new(Notify::new());
    let length: Shared<usize> = Arc::new(Mutex::new(None));
    let upstream = {
        let (read, length) = (Arc::clone(&read), Arc::clone(&length));
        world.apiserver().http(move |request| {
            let (read, length) = (Arc::clone(&read), Arc::clone(&length));
            async move {
                read.notified().await;
                let mut upload = request.into_body();
                let mut sum = 0;
                while let Some(frame) = upload.frame().await {
                    sum += frame.unwrap().data_ref().map_or(0, Bytes::len);
                }
                *length.lock().unwrap() = Some(sum);
                Response::new(standin::upstream::full("ok"))
            }
        })
    };
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let (response, mut upload) = begin_upload(&client).await;
    let (sender, mut taken) = mpsc::unbounded_channel();
    let sending = tokio::spawn(async move {
        let mut left = 16 * MIB;
        while left > 0 {
            upload.reserve_capacity(left.min(PIECE));
            let capacity = std::future::poll_fn(|cx| upload.poll_capacity(cx)).await;
            let room = capacity.unwrap().unwrap().min(left);
            upload
                .send_data(vec![b'x'; room].into(), left == room)
                .unwrap();
            left -= room;
            sender.send(room).ok();
        }
    });
    let pushed = sum_until_quiet(&mut taken).await;
    assert!((1..4 * MIB).contains(&pushed), "{pushed} bytes");
    read.notify_one();
    within("the rest of the upload", sending).await.unwrap();
    assert_eq!(
        within("the response", response).await.unwrap().status(),
        200
    );
    assert_eq!(*length.lock().unwrap(), Some(16 * MIB));
}
