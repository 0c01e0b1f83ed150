//! Bytes through an upgraded connection, one way at a time.

use criterion::{Criterion, Throughput};
use rustls::client::Resumption;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::{apiserver::PIECE_BYTES, harness::World};

/// Bytes of one turn. They are many compared with the two numbers before them.
const TRANSFER_BYTES: usize = 8 * 1024 * 1024;

/// `kubectl cp` through an open tunnel.
pub(crate) fn tunnel(criterion: &mut Criterion) {
    let world = World::start();
    let client = world.client(Resumption::disabled());
    let mut tunnel = world.prepare(client.tunnel());
    let mut group = criterion.benchmark_group("tunnel");
    group.throughput(Throughput::Bytes(TRANSFER_BYTES as u64));
    world.time(&mut group, "down", async || {
        transfer(&mut tunnel, TRANSFER_BYTES, 0).await
    });
    world.time(&mut group, "up", async || {
        transfer(&mut tunnel, 0, TRANSFER_BYTES).await
    });
    group.finish();
}

/// Announces how many bytes to receive and to send, transfers them, and reads how many bytes the apiserver received.
async fn transfer(tunnel: &mut TlsStream<TcpStream>, down: usize, up: usize) {
    let mut piece = vec![b'x'; PIECE_BYTES];
    for number in [down, up] {
        let announced = tunnel.write_u64(number as u64).await;
        announced.expect("the proxy accepts the numbers");
    }
    for _ in 0..up / PIECE_BYTES {
        let sent = tunnel.write_all(&piece).await;
        sent.expect("the proxy accepts the bytes");
    }
    tunnel.flush().await.expect("the proxy accepts the bytes");
    let mut left = down;
    while left > 0 {
        let room = piece.len().min(left);
        let part = piece
            .get_mut(..room)
            .expect("the range is within the piece");
        let read = tunnel.read(part).await.expect("the tunnel has not ended");
        assert!(read > 0, "the tunnel ended, and {left} bytes are missing");
        left -= read;
    }
    let received = tunnel.read_u64().await.expect("the tunnel has not ended");
    assert_eq!(received, up as u64, "the bytes that the apiserver received");
}
