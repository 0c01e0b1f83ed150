//! Proofs of the lease that need no apiserver.

use std::net::SocketAddr;

use tokio::{
    io::duplex,
    time::{advance, pause},
};

use super::*;
use crate::metrics::Counters;

const KEEP: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_http1_connection_is_not_used_again_once_it_idled_too_long() {
    pause();
    for (idle, used_again) in [(KEEP - Duration::from_millis(1), true), (KEEP, false)] {
        let drain = Drain::new();
        let held = LeaseTable::new(Arc::new(IdlePool::new(1, KEEP, drain.clone())));
        let (near, _far) = duplex(1024);
        let endpoint = UpstreamAddr(SocketAddr::from(([127, 0, 0, 1], 6443)));
        let connection = H1Connection::new(Box::new(near), endpoint);
        held.give_back(1, connection);
        advance(idle).await;
        let found = held.find(1, false, Freshness::Any);
        let found = matches!(found, Lookup::Slot(LeasedSlot::H1(_)));
        assert_eq!(found, used_again, "after {idle:?}");
    }
}

#[tokio::test]
async fn no_more_idle_connections_are_kept_than_the_limit_says() {
    for capacity in 0..3 {
        let drain = Drain::new();
        let idle = IdlePool::new(capacity, KEEP, drain.clone());
        let mut ends = Vec::new();
        for _ in 0..4 {
            let (near, far) = duplex(1024);
            let endpoint = UpstreamAddr(SocketAddr::from(([127, 0, 0, 1], 6443)));
            let connection = H1Connection::new(Box::new(near), endpoint);
            ends.push(far);
            idle.put(1, Connection::H1(connection));
        }
        let kept = (0..4).filter(|_| idle.take(1, false).is_some()).count();
        assert_eq!(kept, capacity);
    }
}

/// tokio says "nothing yet" to a task that has done much without a pause. That is not the silence of a
/// connection: taken for it, an ended one would get the next request.
#[tokio::test]
async fn connections_that_have_ended_are_told_apart_however_many_there_are() {
    const MANY: usize = 300;
    let held = LeaseTable::new(Arc::new(IdlePool::new(1, KEEP, Drain::new())));
    for _ in 0..MANY {
        let (near, far) = duplex(1024);
        let endpoint = UpstreamAddr(SocketAddr::from(([127, 0, 0, 1], 6443)));
        held.give_back(1, H1Connection::new(Box::new(near), endpoint));
        drop(far);
    }
    let found = held.find(1, false, Freshness::Any);
    assert!(matches!(found, Lookup::MustDialH1), "{found:?}");
}

#[tokio::test]
async fn what_the_apiserver_closed_did_not_grow_old() {
    let (counts, generation) = (Arc::new(Counters::default()), Arc::new(()));
    let idle = IdlePool::new(1, KEEP, Drain::new());
    let (near, far) = duplex(1024);
    let endpoint = UpstreamAddr(SocketAddr::from(([127, 0, 0, 1], 6443)));
    let connection = H1Connection::new(Box::new(near), endpoint);
    connection.stats().on_dial(&counts, &generation);
    idle.put(1, Connection::H1(connection));
    drop(far);
    assert!(idle.take(1, false).is_none());
    assert_eq!(counts.leases_retired.value(LeaseEnd::Closed), 1);
    assert_eq!(counts.leases_retired.value(LeaseEnd::Age), 0);
}
