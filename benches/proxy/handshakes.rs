//! Clients that connect, send one request and leave.

use criterion::{Criterion, Throughput};
use rustls::{
    HandshakeKind::{self, FullWithHelloRetryRequest},
    client::Resumption,
};

use crate::{apiserver::SMALL, client::Client, harness::World};

/// TCP, TLS and one request over HTTP/2, on an upstream connection from the idle pool.
pub(crate) fn handshake(criterion: &mut Criterion) {
    let world = World::start();
    let mut group = criterion.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    let new = world.client(Resumption::disabled());
    world.time(&mut group, "full", async || {
        visit(&new, HandshakeKind::Full).await;
    });
    let known = world.client(Resumption::default());
    // Creates the session to resume.
    world.prepare(visit(&known, HandshakeKind::Full));
    world.time(&mut group, "resumed", async || {
        visit(&known, HandshakeKind::Resumed).await;
    });
    group.finish();
    let leases = world.upstream.connections().len();
    assert!(leases <= FEW, "{leases} upstream connections were dialled");
}

async fn visit(client: &Client, wanted: HandshakeKind) {
    let http2 = client.http2().await;
    assert_ne!(http2.handshake, Some(FullWithHelloRetryRequest));
    assert_eq!(http2.handshake, Some(wanted));
    http2.get("/small", SMALL).await;
    http2.close().await;
}

/// An upstream connection that comes back a little late makes the next client dial. With more dials than
/// this, the bench would measure dialling.
const FEW: usize = 16;
