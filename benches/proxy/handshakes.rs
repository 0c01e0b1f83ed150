//! Clients that connect, send one request and leave.

use criterion::{Criterion, Throughput};
use rustls::{
    HandshakeKind::{self, FullWithHelloRetryRequest},
    client::Resumption,
};

use crate::{apiserver::SMALL_BYTES, client::Client, harness::World};

/// TCP, TLS and one request over HTTP/2, on an upstream connection from the idle pool.
pub(crate) fn handshake(criterion: &mut Criterion) {
    let world = World::start();
    let mut group = criterion.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    let new = world.client(Resumption::disabled());
    world.time(&mut group, "full", async || {
        connect_and_get(&new, HandshakeKind::Full).await;
    });
    let known = world.client(Resumption::default());
    // Creates the session to resume.
    world.prepare(connect_and_get(&known, HandshakeKind::Full));
    world.time(&mut group, "resumed", async || {
        connect_and_get(&known, HandshakeKind::Resumed).await;
    });
    group.finish();
    let leases = world.upstream.connections().len();
    assert!(
        leases <= MAX_DIALS,
        "{leases} upstream connections were dialled"
    );
}

async fn connect_and_get(client: &Client, wanted: HandshakeKind) {
    let http2 = client.http2().await;
    assert_ne!(http2.handshake, Some(FullWithHelloRetryRequest));
    assert_eq!(http2.handshake, Some(wanted));
    http2.get("/small", SMALL_BYTES).await;
    http2.close().await;
}

/// If an upstream connection returns to the idle pool slightly late, the next client dials. With more dials than
/// this, the bench would measure dialling.
const MAX_DIALS: usize = 16;
