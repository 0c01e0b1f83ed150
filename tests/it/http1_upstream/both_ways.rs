//! An answer and an upload that are under way at once, and a client that reads nothing before it has sent
//! everything.

use standin::within;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy, repeat, sink, split},
    join,
};

use super::apiserver::read_through;
use crate::proxy::{HOST, World};

/// More than the sockets in between hold.
const MUCH: u64 = 32 << 20;

#[tokio::test]
async fn an_upload_goes_on_while_its_client_does_not_read_the_answer() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .alpn(&["http/1.1"])
        .raw(|mut raw| async move {
            read_through(&mut raw.stream, "\r\n\r\n").await.unwrap();
            let (read, mut write) = split(raw.stream);
            let answer = async {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n");
                write.write_all(head.as_bytes()).await.unwrap();
                copy(&mut repeat(b'a').take(MUCH), &mut write)
                    .await
                    .unwrap();
                write.flush().await.unwrap();
            };
            let mut upload = read.take(MUCH);
            let upload = async { copy(&mut upload, &mut sink()).await.unwrap() };
            let ((), length) = join!(answer, upload);
            assert_eq!(length, MUCH);
        });
    let upstream = upstream.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().alpn(&["http/1.1"]).connect().await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {MUCH}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let upload = async { copy(&mut repeat(b'u').take(MUCH), &mut client).await };
    within("the end of the upload", upload).await.unwrap();
    client.flush().await.unwrap();
    let mut answer = client.take(MUCH);
    let length = within("the answer", copy(&mut answer, &mut sink())).await;
    assert_eq!(length.unwrap(), MUCH);
}
