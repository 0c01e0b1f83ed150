//! A response and an upload at the same time, with a client that reads nothing until it has sent everything.

use standin::within;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, repeat, sink, split},
    join,
};

use super::apiserver::read_through;
use crate::proxy::{HOST, World};

/// More than the sockets on the path can buffer.
const BODY_BYTES: u64 = 32 << 20;

#[tokio::test]
async fn upload_continues_while_client_does_not_read_the_response() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .alpn(&["http/1.1"])
        .raw(|mut raw| async move {
            read_through(&mut raw.stream, "\r\n\r\n").await.unwrap();
            let (read, mut write) = split(raw.stream);
            let response = async {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
                write.write_all(head.as_bytes()).await.unwrap();
                copy(&mut repeat(b'a').take(BODY_BYTES), &mut write)
                    .await
                    .unwrap();
                write.flush().await.unwrap();
            };
            let mut upload = read.take(BODY_BYTES);
            let upload = async { copy(&mut upload, &mut sink()).await.unwrap() };
            let ((), length) = join!(response, upload);
            assert_eq!(length, BODY_BYTES);
        });
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().alpn(&["http/1.1"]).connect().await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let upload = async { copy(&mut repeat(b'u').take(BODY_BYTES), &mut client).await };
    within("the end of the upload", upload).await.unwrap();
    client.flush().await.unwrap();
    let mut response = client.take(BODY_BYTES);
    let length = within("the response", copy(&mut response, &mut sink())).await;
    assert_eq!(length.unwrap(), BODY_BYTES);
}
