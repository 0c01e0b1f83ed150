//! How one endpoint is: found out by those who dial it and by probes, and remembered.
//!
//! An endpoint that failed is passed over for a while that doubles from failure to failure, so that one
//! that comes and goes does not take a request with it each time. One that was well for long enough
//! starts anew.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{EndpointHealth, Health};
use crate::hosts::UpstreamAddr;

/// One address of an apiserver.
#[derive(Debug)]
pub(in crate::upstream) struct Endpoint {
    address: UpstreamAddr,
    /// Connections to it, in all workers.
    leases: AtomicUsize,
    /// It is ill and another one is not: nothing new is sent to it, on old connections neither.
    ejected: AtomicBool,
    condition: Mutex<HealthRecord>,
}

#[derive(Debug)]
struct HealthRecord {
    state: Health,
    since: Instant,
    why: Option<String>,
    /// Times it became ill since it was last well for long.
    failures: u32,
    /// Whatever a probe says, not before.
    ejected_until: Instant,
}

/// A connection to an endpoint, or a try at one, counted until dropped.
#[derive(Debug)]
pub(in crate::upstream) struct CountedConnection(Arc<Endpoint>);

impl Endpoint {
    pub(super) fn new(address: UpstreamAddr) -> Self {
        let now = Instant::now();
        Self {
            address,
            leases: AtomicUsize::new(0),
            ejected: AtomicBool::new(false),
            condition: Mutex::new(HealthRecord {
                state: Health::Unknown,
                since: now,
                why: None,
                failures: 0,
                ejected_until: now,
            }),
        }
    }

    pub(in crate::upstream) fn address(&self) -> UpstreamAddr {
        self.address
    }

    /// Counts one connection in until the result is dropped.
    pub(in crate::upstream) fn count(self: &Arc<Self>) -> CountedConnection {
        self.leases.fetch_add(1, Ordering::Relaxed);
        CountedConnection(Arc::clone(self))
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// Whether nothing new may be sent to it, because another one is better.
    pub(in crate::upstream) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    pub(super) fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Ordering::Relaxed);
    }

    pub(in crate::upstream) fn state(&self) -> Health {
        self.with(|condition| condition.state)
    }

    /// Notes that it worked. `false` when nothing changes by that; an endpoint that has just failed has
    /// to wait its time out.
    pub(super) fn set_healthy(&self) -> bool {
        let now = Instant::now();
        self.with(|condition| match condition.state {
            Health::Unhealthy if now < condition.ejected_until => false,
            Health::Healthy => {
                if now.duration_since(condition.since) >= FORGIVE_AFTER {
                    condition.failures = 0;
                }
                false
            }
            Health::Unknown | Health::Unhealthy => {
                (condition.state, condition.since) = (Health::Healthy, now);
                condition.why = None;
                true
            }
        })
    }

    /// Notes that it failed. `false` when it was ill before.
    pub(super) fn set_unhealthy(&self, why: String) -> bool {
        let now = Instant::now();
        self.with(|condition| {
            let was_unhealthy = condition.state == Health::Unhealthy;
            condition.why = Some(why);
            if was_unhealthy {
                return false;
            }
            if condition.state == Health::Healthy
                && now.duration_since(condition.since) >= FORGIVE_AFTER
            {
                condition.failures = 0;
            }
            let doubled =
                MIN_EJECTION * 2_u32.saturating_pow(condition.failures.min(MAX_DOUBLINGS));
            condition.failures = condition.failures.saturating_add(1);
            condition.ejected_until = now + with_jitter(doubled.min(MAX_EJECTION));
            (condition.state, condition.since) = (Health::Unhealthy, now);
            true
        })
    }

    pub(super) fn health(&self) -> EndpointHealth {
        self.with(|condition| EndpointHealth {
            address: self.address,
            state: condition.state,
            since: condition.since,
            leases: self.leases(),
            why: condition.why.clone(),
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut HealthRecord) -> T) -> T {
        let mut condition = self
            .condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        look(&mut condition)
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The same give or take a fifth, so that many proxies do not come back to an apiserver at once.
pub(super) fn with_jitter(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 401;
    pause * u32::try_from(800 + random).unwrap_or(1000) / 1000
}

/// How long an endpoint is passed over after its first failure, and at most.
const MIN_EJECTION: Duration = Duration::from_secs(1);
const MAX_EJECTION: Duration = Duration::from_secs(30);
const MAX_DOUBLINGS: u32 = 5;
/// After so long without a failure the old ones count no more.
const FORGIVE_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint::new(UpstreamAddr(([127, 0, 0, 1], 6443).into()))
    }

    /// Advances until a success counts, and says how long that took.
    async fn recovery(endpoint: &Endpoint) -> Duration {
        let from = Instant::now();
        while !endpoint.set_healthy() {
            advance(Duration::from_millis(100)).await;
        }
        from.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_comes_and_goes_is_passed_over_for_longer_each_time() {
        let endpoint = endpoint();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert!(endpoint.set_unhealthy("refused".into()));
            let took = recovery(&endpoint).await;
            let (least, most) = (seconds * 800, seconds * 1200 + 100);
            assert!(
                (least..=most).contains(&took.as_millis()),
                "{took:?} in place of {seconds} s"
            );
        }
        advance(FORGIVE_AFTER).await;
        endpoint.set_unhealthy("refused".into());
        assert!(recovery(&endpoint).await < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn failing_on_does_not_make_the_pause_longer() {
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
        assert_eq!(endpoint.health().leases, 2);
        drop((one, two));
        assert_eq!(endpoint.health().leases, 0);
    }
}
