//! Requests on open connections: small ones, alone and in parallel, and large lists.

use criterion::{Criterion, Throughput};
use futures::future::join_all;
use rustls::client::Resumption;

use crate::{
    apiserver::{LIST_BYTES, SMALL_BYTES},
    client::{Client, Http1},
    harness::World,
};

/// Requests in flight at once: a controller with many informers at its start.
const CONCURRENT_REQUESTS: usize = 16;

/// `kubectl get` of one object, with an open connection and lease.
pub(crate) fn small_get(criterion: &mut Criterion) {
    let world = World::start();
    let client = world.client(Resumption::disabled());
    let h2 = world.prepare(client.http2());
    let connections = (0..CONCURRENT_REQUESTS).map(|_| used(&client));
    let mut http1 = world.prepare(join_all(connections));

    let mut group = criterion.benchmark_group("small_get");
    group.throughput(Throughput::Elements(1));
    world.time(&mut group, "h2", async || {
        h2.get("/small", SMALL_BYTES).await
    });
    world.time(&mut group, "http1", async || {
        let lone = http1.first_mut().expect("a connection");
        lone.get("/small", SMALL_BYTES).await;
    });
    group.throughput(Throughput::Elements(CONCURRENT_REQUESTS as u64));
    world.time(&mut group, "h2_16_streams", async || {
        join_all((0..CONCURRENT_REQUESTS).map(|_| h2.get("/small", SMALL_BYTES))).await;
    });
    world.time(&mut group, "http1_16_connections", async || {
        join_all(http1.iter_mut().map(|one| one.get("/small", SMALL_BYTES))).await;
    });
    group.finish();
}

/// A large list, read as fast as it arrives.
pub(crate) fn list(criterion: &mut Criterion) {
    let world = World::start();
    let client = world.client(Resumption::disabled());
    let h2 = world.prepare(client.http2());
    let mut http1 = world.prepare(used(&client));

    let mut group = criterion.benchmark_group("list");
    group.throughput(Throughput::Bytes(LIST_BYTES as u64));
    world.time(&mut group, "h2", async || h2.get("/list", LIST_BYTES).await);
    world.time(&mut group, "http1", async || {
        http1.get("/list", LIST_BYTES).await
    });
    group.finish();
}

/// A connection that has sent one request. The proxy closes a connection that sends none within ten seconds.
async fn used(client: &Client) -> Http1 {
    let mut http1 = client.http1().await;
    http1.get("/small", SMALL_BYTES).await;
    http1
}
