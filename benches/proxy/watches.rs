//! One event that a thousand watches wait for.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use criterion::{Criterion, Throughput};
use h2::RecvStream;
use rustls::client::Resumption;
use tokio::{sync::Notify, task::JoinSet};

use crate::{client::release_data, harness::World};

/// Connections, each with as many streams as the apiserver allows.
const CONNECTIONS: usize = 10;
const STREAMS: usize = 100;
const WATCHES: usize = CONNECTIONS * STREAMS;
/// Bytes of an event: a small object.
const EVENT_BYTES: usize = 1024;

/// The watches that have not received the current event.
#[derive(Default)]
struct Waiting {
    left: AtomicUsize,
    empty: Notify,
}

/// Events delivered to the watches of controllers, when an object changes that all of them watch.
pub(crate) fn fan_out(criterion: &mut Criterion) {
    let world = World::start();
    let client = world.client(Resumption::disabled());
    let event = Bytes::from(vec![b'x'; EVENT_BYTES]);
    let waiting = Arc::new(Waiting::default());
    let mut readers = JoinSet::new();
    let connections = world.prepare(async {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let http2 = client.http2().await;
            for _ in 0..STREAMS {
                let watch = http2.open("/watch").await;
                readers.spawn(read(watch, Arc::clone(&waiting)));
            }
            connections.push(http2);
        }
        connections
    });

    let mut group = criterion.benchmark_group("watch_fan_out");
    group.throughput(Throughput::Elements(WATCHES as u64));
    world.time(&mut group, "h2_1000_watches", async || {
        waiting.left.store(WATCHES, Ordering::Relaxed);
        assert_eq!(world.apiserver.send_to_all(&event), WATCHES);
        tokio::select! {
            () = waiting.empty.notified() => {}
            // A watch does not end, so the end of a reader is a fault.
            ended = readers.join_next() => {
                ended.expect("readers are running").expect("no reader has failed");
            }
        }
    });
    group.finish();
    drop(connections);
}

/// Reads one watch, and counts down for each complete event.
async fn read(mut watch: RecvStream, waiting: Arc<Waiting>) {
    loop {
        let mut received = 0;
        while received < EVENT_BYTES {
            let data = watch.data().await.expect("the watch has not ended");
            received += release_data(&mut watch, data);
        }
        assert_eq!(received, EVENT_BYTES, "one event at a time");
        if waiting.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            waiting.empty.notify_one();
        }
    }
}
