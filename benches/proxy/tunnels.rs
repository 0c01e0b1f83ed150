//! Bytes through an upgraded connection, one way at a time.

use criterion::{Criterion, Throughput};
use rustls::client::Resumption;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::{apiserver::PIECE, harness::World};

/// Bytes of one turn: many, compared with the two numbers in front of them.
const CARGO: usize = 8 * 1024 * 1024;

/// `kubectl cp` through an open tunnel.
pub(crate) fn tunnel(criterion: &mut Criterion) {
    let world = World::start();
    let client = world.client(Resumption::disabled());
    let mut tunnel = world.prepare(client.tunnel());
    let mut group = criterion.benchmark_group("tunnel");
    group.throughput(Throughput::Bytes(CARGO as u64));
    world.time(&mut group, "down", async || {
        carry(&mut tunnel, CARGO, 0).await
    });
    world.time(&mut group, "up", async || {
        carry(&mut tunnel, 0, CARGO).await
    });
    group.finish();
}

/// Announces how many bytes to receive and to send, transfers them, and reads how many have arrived.
async fn carry(tunnel: &mut TlsStream<TcpStream>, down: usize, up: usize) {
    let mut piece = vec![b'x'; PIECE];
    for number in [down, up] {
        let said = tunnel.write_u64(number as u64).await;
        said.expect("the proxy takes the numbers");
    }
    for _ in 0..up / PIECE {
        let sent = tunnel.write_all(&piece).await;
        sent.expect("the proxy takes the bytes");
    }
    tunnel.flush().await.expect("the proxy takes the bytes");
    let mut left = down;
    while left > 0 {
        let room = piece.len().min(left);
        let part = piece.get_mut(..room).expect("it is no longer than a piece");
        let read = tunnel.read(part).await.expect("the tunnel has not ended");
        assert!(read > 0, "the tunnel ended, {left} bytes were to come");
        left -= read;
    }
    let taken = tunnel.read_u64().await.expect("the tunnel has not ended");
    assert_eq!(taken, up as u64, "what the apiserver took");
}
