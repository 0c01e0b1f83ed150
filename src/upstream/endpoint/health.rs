//! The health of one endpoint, learned from dials and probes.
//!
//! An endpoint that failed stays unhealthy for a time that doubles with each failure, so that an endpoint
//! that keeps failing and recovering does not cost a request each time. After a minute without a failure
//! the count starts again.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{EndpointHealth, Health};
use crate::{hosts::UpstreamAddr, upstream::lock};

/// One address of an apiserver.
#[derive(Debug)]
pub(in crate::upstream) struct Endpoint {
    address: UpstreamAddr,
    /// Connections to it, of all workers.
    connections: AtomicUsize,
    /// It is unhealthy and another endpoint is healthy: no new request goes to it, not even on a
    /// connection that exists.
    ejected: AtomicBool,
    record: Mutex<HealthRecord>,
}

#[derive(Debug)]
struct HealthRecord {
    state: Health,
    since: Instant,
    why: Option<String>,
    /// Times it became unhealthy since it was last healthy for [`FORGIVE_AFTER`].
    failures: u32,
    /// Until then, a success does not make it healthy.
    unhealthy_until: Instant,
}

/// Counts one connection to an endpoint, or one dial, until dropped.
#[derive(Debug)]
pub(in crate::upstream) struct CountedConnection(Arc<Endpoint>);

impl Endpoint {
    pub(in crate::upstream) fn new(address: UpstreamAddr) -> Self {
        let now = Instant::now();
        Self {
            address,
            connections: AtomicUsize::new(0),
            ejected: AtomicBool::new(false),
            record: Mutex::new(HealthRecord {
                state: Health::Unknown,
                since: now,
                why: None,
                failures: 0,
                unhealthy_until: now,
            }),
        }
    }

    pub(in crate::upstream) fn address(&self) -> UpstreamAddr {
        self.address
    }

    /// Counts one connection until the result is dropped.
    pub(in crate::upstream) fn count(self: &Arc<Self>) -> CountedConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        CountedConnection(Arc::clone(self))
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether this endpoint gets no new requests, because it is unhealthy and another endpoint is healthy.
    pub(in crate::upstream) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    pub(super) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Ordering::Relaxed);
    }

    pub(in crate::upstream) fn state(&self) -> Health {
        self.with(|record| record.state)
    }

    /// Records a success. Returns whether the state changed. An endpoint that failed recently stays unhealthy
    /// until `unhealthy_until`.
    pub(super) fn set_healthy(&self) -> bool {
        let now = Instant::now();
        self.with(|record| match record.state {
            Health::Unhealthy if now < record.unhealthy_until => false,
            Health::Healthy => {
                if now.duration_since(record.since) >= FORGIVE_AFTER {
                    record.failures = 0;
                }
                false
            }
            Health::Unknown | Health::Unhealthy => {
                (record.state, record.since) = (Health::Healthy, now);
                record.why = None;
                true
            }
        })
    }

    /// Records a failure. Returns whether the state changed.
    pub(super) fn set_unhealthy(&self, why: String) -> bool {
        let now = Instant::now();
        self.with(|record| {
            record.why = Some(why);
            if record.state == Health::Unhealthy {
                return false;
            }
            if record.state == Health::Healthy && now.duration_since(record.since) >= FORGIVE_AFTER
            {
                record.failures = 0;
            }
            let doubled =
                MIN_UNHEALTHY_TIME * 2_u32.saturating_pow(record.failures.min(MAX_DOUBLINGS));
            record.failures = record.failures.saturating_add(1);
            record.unhealthy_until = now + with_jitter(doubled.min(MAX_UNHEALTHY_TIME));
            (record.state, record.since) = (Health::Unhealthy, now);
            true
        })
    }

    pub(super) fn health(&self) -> EndpointHealth {
        self.with(|record| EndpointHealth {
            address: self.address,
            state: record.state,
            since: record.since,
            connections: self.connections(),
            why: record.why.clone(),
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut HealthRecord) -> T) -> T {
        look(&mut lock(&self.record))
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The same time, changed by up to a fifth, so that many proxies do not return to an apiserver at once.
pub(super) fn with_jitter(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 401;
    time * u32::try_from(800 + random).unwrap_or(1000) / 1000
}

/// How long an endpoint stays unhealthy after its first failure, and at most.
const MIN_UNHEALTHY_TIME: Duration = Duration::from_secs(1);
const MAX_UNHEALTHY_TIME: Duration = Duration::from_secs(30);
const MAX_DOUBLINGS: u32 = 5;
/// After this time without a failure, earlier failures no longer count.
const FORGIVE_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint::new(UpstreamAddr(([127, 0, 0, 1], 6443).into()))
    }

    /// Advances the clock until a success counts, and returns how long that took.
    async fn recovery(endpoint: &Endpoint) -> Duration {
        let from = Instant::now();
        while !endpoint.set_healthy() {
            advance(Duration::from_millis(100)).await;
        }
        from.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn unhealthy_time_doubles_with_each_failure() {
        let endpoint = endpoint();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert!(endpoint.set_unhealthy("refused".into()));
            let took = recovery(&endpoint).await;
            let (min, max) = (seconds * 800, seconds * 1200 + 100);
            assert!(
                (min..=max).contains(&took.as_millis()),
                "{took:?} instead of {seconds} s"
            );
        }
        advance(FORGIVE_AFTER).await;
        endpoint.set_unhealthy("refused".into());
        assert!(recovery(&endpoint).await < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn further_failures_do_not_extend_the_unhealthy_time() {
        let endpoint = endpoint();
        assert!(endpoint.set_unhealthy("refused".into()));
        for _ in 0..100 {
            assert!(!endpoint.set_unhealthy("still refused".into()));
        }
        assert_eq!(endpoint.health().why.unwrap(), "still refused");
        assert!(recovery(&endpoint).await < Duration::from_secs(2));
    }

    #[test]
    fn connections_are_counted_until_they_are_dropped() {
        let endpoint = Arc::new(endpoint());
        let (one, two) = (endpoint.count(), endpoint.count());
        assert_eq!(endpoint.health().connections, 2);
        drop((one, two));
        assert_eq!(endpoint.health().connections, 0);
    }
}
