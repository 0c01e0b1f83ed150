//! Moves leases from the endpoints of a cluster that have many to those that have few.
//!
//! A new connection goes to the endpoint with the fewest leases, but clients keep theirs for days. Without this, an
//! apiserver that was restarted would get none of them back.
//!
//! The rule compares with the mean in both directions. A rule for "too many" alone would see nothing with five
//! endpoints: when one of them is empty, the others have a quarter more than the mean.

use std::{
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tracing::info;

use super::{AddressSource, Endpoint, Endpoints, Health};
use crate::hosts::UpstreamAddr;

/// When leases of one cluster move, and how many.
#[derive(Debug, Default)]
struct Balance {
    /// The endpoints that it is about: the healthy ones.
    healthy: Vec<UpstreamAddr>,
    uneven_since: Option<Instant>,
    /// While leases move: how many more may do so.
    left: Option<usize>,
    /// Rounds of moves that did not make the endpoints even.
    vain_rounds: u32,
}

impl Balance {
    /// Begins again if other endpoints are healthy than before. Otherwise moves in vain to one endpoint would keep
    /// another empty that was restarted.
    fn set_healthy(&mut self, healthy: Vec<UpstreamAddr>) {
        if healthy != self.healthy {
            *self = Self {
                healthy,
                ..Self::default()
            };
        }
    }

    /// How many leases each endpoint may give up until the next call. `leases` has those of each healthy endpoint,
    /// `moved` says how many moved since the last call, and `wait` how long the endpoints must be uneven at first.
    fn allow(
        &mut self,
        leases: &[usize],
        moved: usize,
        most: usize,
        wait: Duration,
        now: Instant,
    ) -> Vec<usize> {
        let nothing = vec![0; leases.len()];
        // Moves go on until the endpoints are clearly even, so that they do not start again at once.
        if !is_uneven(leases, 8, 2) {
            *self = Self {
                healthy: mem::take(&mut self.healthy),
                ..Self::default()
            };
            return nothing;
        }
        // Rounded down: seven endpoints with 7 leases and an empty one have a mean of 6.
        let mean = leases.iter().sum::<usize>() / leases.len().max(1);
        let excess = leases.iter().map(|one| one.saturating_sub(mean));
        let left = match self.left {
            Some(left) => left.saturating_sub(moved),
            None if !is_uneven(leases, 4, 4) => {
                self.uneven_since = None;
                return nothing;
            }
            None => {
                let since = *self.uneven_since.get_or_insert(now);
                let doublings = self.vain_rounds.min(MAX_DOUBLINGS);
                let doubled = wait.saturating_mul(2_u32.saturating_pow(doublings));
                if now.duration_since(since) < doubled {
                    return nothing;
                }
                excess.clone().sum()
            }
        };
        if left == 0 {
            // An endpoint that always loses the race of the dials, because it is far away, never fills. Each try costs
            // requests some time, so the next one comes later.
            (self.left, self.uneven_since) = (None, Some(now));
            self.vain_rounds = self.vain_rounds.saturating_add(1);
            return nothing;
        }
        self.left = Some(left);
        excess.map(|one| one.min(most).min(left)).collect()
    }
}

/// Whether an endpoint differs from the mean by more than the mean divided by `divisor`, plus `spare`.
fn is_uneven(leases: &[usize], divisor: usize, spare: usize) -> bool {
    let (count, sum) = (leases.len(), leases.iter().sum::<usize>());
    leases
        .iter()
        .any(|one| (one * count).abs_diff(sum) > sum / divisor + spare * count)
}

impl Endpoints {
    /// Moves leases until all other handles of the endpoints are dropped. Each endpoint with too many gives up at most
    /// one per worker and second, or in each interval of the probes if that is shorter. Returns at once for a single
    /// endpoint that cannot get company. Endpoints that are not probed are not balanced, because their health is
    /// unknown.
    pub async fn keep_balanced(
        self: Arc<Self>,
        workers: usize,
        probe_interval: impl Fn() -> Duration,
    ) {
        if matches!(self.source, AddressSource::Fixed) && self.list.load().len() < 2 {
            return;
        }
        let endpoints = Arc::downgrade(&self);
        drop(self);
        let mut balance = Balance::default();
        let (mut allowed, mut moved) = (0_usize, 0);
        loop {
            let interval = probe_interval();
            let pause = if balance.left.is_some() {
                interval.min(MOVE_INTERVAL)
            } else {
                interval
            };
            sleep(if pause.is_zero() {
                UNPROBED_PAUSE
            } else {
                pause
            })
            .await;
            let Some(this) = endpoints.upgrade() else {
                return;
            };
            let list = this.list.load();
            let unused = list
                .iter()
                .map(|one| one.surplus.swap(0, Ordering::Relaxed));
            let moved_now = mem::take(&mut allowed).saturating_sub(unused.sum::<usize>());
            moved += moved_now;
            let balanced: Vec<_> = list
                .iter()
                .filter(|one| !interval.is_zero() && one.state() == Health::Healthy)
                .collect();
            balance.set_healthy(balanced.iter().map(|one| one.address).collect());
            let leases: Vec<_> = balanced.iter().map(|one| one.leases()).collect();
            let wait = interval.saturating_mul(UNEVEN_ROUNDS);
            let surplus = balance.allow(&leases, moved_now, workers, wait, Instant::now());
            for (endpoint, surplus) in balanced.into_iter().zip(surplus) {
                endpoint.surplus.store(surplus, Ordering::Relaxed);
                allowed += surplus;
            }
            if balance.left.is_none() && mem::take(&mut moved) > 0 {
                info!(
                    cluster = this.cluster,
                    server.address = this.host,
                    connections = ?leases,
                    "upstream connections moved between endpoints"
                );
            }
        }
    }
}

impl Endpoint {
    /// Connections to it that may get new requests, and dials in progress.
    pub(super) fn leases(&self) -> usize {
        let connections = self.connections.load(Ordering::Relaxed);
        connections.saturating_sub(self.leaving.load(Ordering::Relaxed))
    }

    /// Whether this endpoint has more leases than it should.
    pub(in crate::upstream) fn has_surplus(&self) -> bool {
        self.surplus.load(Ordering::Relaxed) > 0
    }

    /// Whether a lease of this endpoint may move now. A `true` is for one lease.
    pub(in crate::upstream) fn take_surplus(&self) -> bool {
        let take = |surplus: usize| surplus.checked_sub(1);
        self.surplus
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Lets this many leases move, in place of a round of moves.
    #[cfg(test)]
    pub(in crate::upstream) fn set_surplus(&self, count: usize) {
        self.surplus.store(count, Ordering::Relaxed);
    }

    /// Counts a connection as one that only finishes its streams, until the result is dropped.
    pub(in crate::upstream) fn leave(self: &Arc<Self>) -> LeavingConnection {
        self.leaving.fetch_add(1, Ordering::Relaxed);
        LeavingConnection(Arc::clone(self))
    }
}

/// A connection of a lease that has moved. Without this count, the streams that still run on it would make the
/// endpoint look full, and more leases would move than should.
#[derive(Debug)]
pub(in crate::upstream) struct LeavingConnection(Arc<Endpoint>);

impl Drop for LeavingConnection {
    fn drop(&mut self) {
        self.0.leaving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many probes the endpoints must be uneven before leases move: a minute, with the default interval.
const UNEVEN_ROUNDS: u32 = 12;
/// How often a worker may move a lease, at most.
const MOVE_INTERVAL: Duration = Duration::from_secs(1);
/// How soon to look again whether probes are on.
const UNPROBED_PAUSE: Duration = Duration::from_secs(60);
/// After moves in vain: up to about an hour, with the default interval.
const MAX_DOUBLINGS: u32 = 6;

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::drain::Drain;

    const WAIT: Duration = Duration::from_secs(60);
    const WORKERS: usize = 2;

    /// Moves leases from endpoint to endpoint, as clients do that send requests all the time.
    struct Simulation {
        balance: Balance,
        leases: Vec<usize>,
        moved: usize,
        now: Instant,
    }

    impl Simulation {
        fn new(leases: &[usize]) -> Self {
            Self {
                balance: Balance::default(),
                leases: leases.to_vec(),
                moved: 0,
                now: Instant::now(),
            }
        }

        /// Asks once, after `pause`.
        fn allow(&mut self, pause: Duration) -> Vec<usize> {
            self.now += pause;
            let moved = mem::take(&mut self.moved);
            self.balance
                .allow(&self.leases, moved, WORKERS, WAIT, self.now)
        }

        /// Waits until leases may move, and returns how long that took. `None` if they never may.
        fn wait_for_moves(&mut self) -> Option<Duration> {
            let begun = self.now;
            let mut allowed = (0..7200).map(|_| self.allow(MOVE_INTERVAL));
            let found = allowed.any(|surplus| surplus.iter().any(|one| *one > 0));
            found.then(|| self.now - begun)
        }

        /// Moves leases until no more may move, and returns how many moved.
        fn settle(&mut self) -> usize {
            let mut sum = 0;
            while self.balance.left.is_some() {
                for (from, surplus) in self.allow(MOVE_INTERVAL).into_iter().enumerate() {
                    assert!(surplus <= WORKERS);
                    for _ in 0..surplus {
                        let counts = self.leases.iter().enumerate();
                        let (to, _) = counts.min_by_key(|(_, count)| **count).unwrap();
                        self.leases[from] -= 1;
                        self.leases[to] += 1;
                        self.moved += 1;
                        sum += 1;
                    }
                }
            }
            sum
        }
    }

    #[test]
    fn leases_move_after_a_minute_and_until_the_shares_are_even() {
        for before in [
            vec![100, 100, 0],
            vec![12, 0],
            vec![9, 9, 0],
            vec![25, 25, 25, 25, 0],
            vec![7, 7, 7, 7, 7, 7, 7, 0],
            vec![400, 10, 10],
            vec![3000, 0, 0, 3000, 1000],
        ] {
            let mut cluster = Simulation::new(&before);
            let waited = cluster.wait_for_moves();
            let soon = WAIT..WAIT + 2 * MOVE_INTERVAL;
            assert!(soon.contains(&waited.unwrap()), "{before:?}: {waited:?}");
            let moved = cluster.settle();
            let (after, sum) = (cluster.leases.clone(), before.iter().sum::<usize>());
            let mean = sum / before.len();
            let off = after.iter().map(|one| one.abs_diff(mean)).max().unwrap();
            assert!(off <= mean / 8 + 3, "{before:?}: {after:?}");
            let excess: usize = before.iter().map(|one| one.saturating_sub(mean)).sum();
            assert!(moved <= excess, "{before:?}: {moved} moved");
            assert_eq!(after.iter().sum::<usize>(), sum);
            assert_eq!(cluster.wait_for_moves(), None, "{before:?}: {after:?}");
        }
    }

    #[test]
    fn few_leases_and_small_differences_stay() {
        for leases in [
            vec![],
            vec![1000],
            vec![6, 0],
            vec![5, 5, 0],
            vec![50, 40, 60],
            vec![0, 0, 0],
        ] {
            let waited = Simulation::new(&leases).wait_for_moves();
            assert_eq!(waited, None, "{leases:?}");
        }
    }

    #[test]
    fn time_starts_again_when_the_shares_were_even() {
        let mut cluster = Simulation::new(&[100, 100, 0]);
        for _ in 0..3 {
            for (leases, pause) in [([100, 100, 0], WAIT / 2), ([70, 70, 60], WAIT)] {
                cluster.leases = leases.to_vec();
                assert_eq!(cluster.allow(pause), [0, 0, 0]);
            }
        }
        cluster.leases = vec![100, 100, 0];
        assert!(cluster.wait_for_moves().unwrap() >= WAIT);
    }

    /// As with an endpoint that is so far away that every dial goes to another one.
    #[test]
    fn moves_in_vain_come_less_and_less_often() {
        let mut cluster = Simulation::new(&[100, 100, 0]);
        let mut waits = Vec::new();
        for _ in 0..3 {
            waits.push(cluster.wait_for_moves().unwrap().as_secs() / WAIT.as_secs());
            let mut moved = 0;
            while cluster.balance.left.is_some() {
                let allowed: usize = cluster.allow(MOVE_INTERVAL).iter().sum();
                cluster.moved = allowed;
                moved += allowed;
            }
            assert!((60..75).contains(&moved), "{moved}");
        }
        assert_eq!(waits, [1, 2, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn healthy_endpoints_give_up_one_lease_a_second_per_worker() {
        let addresses = [1, 2, 3, 4].map(|host| ([127, 0, 0, host], 6443).into());
        let endpoints = Arc::new(Endpoints::resolved(&addresses));
        let all = endpoints.all();
        let [many, dead, none, unknown] = all.as_slice() else {
            panic!("four endpoints");
        };
        endpoints.mark_healthy(many);
        endpoints.mark_healthy(none);
        endpoints.mark_unhealthy(dead, "refused", String::new(), true);
        let counted: Vec<_> = (0..40).map(|_| many.count()).collect();
        let also_counted: Vec<_> = (0..400).map(|_| dead.count()).collect();
        let interval = || Duration::from_secs(5);
        let drain = Drain::new();
        let balancing = drain.spawn(Arc::clone(&endpoints).keep_balanced(WORKERS, interval));
        let give_up = || all.iter().map(|one| one.take_surplus()).collect::<Vec<_>>();
        let begun = Instant::now();
        while !many.has_surplus() {
            assert_eq!(give_up(), [false; 4]);
            advance_and_run(MOVE_INTERVAL).await;
        }
        let waited = begun.elapsed();
        assert!(waited > WAIT && waited < 2 * WAIT, "{waited:?}");
        // Two leases may move now, and what is not used is not saved up.
        for _ in 0..3 {
            advance_and_run(MOVE_INTERVAL).await;
        }
        for expected in [true, true, false] {
            assert_eq!(give_up(), [expected, false, false, false]);
        }
        // The streams of leases that have moved still run, and do not count.
        let _leaving: Vec<_> = (0..20).map(|_| many.leave()).collect();
        let _moved: Vec<_> = (0..20).map(|_| none.count()).collect();
        advance_and_run(MOVE_INTERVAL).await;
        assert_eq!(give_up(), [false; 4]);
        assert!(!unknown.has_surplus());
        drop((counted, also_counted));
        balancing.abort();
    }

    /// The endpoint that is far away stays empty, and the waits for it grow.
    #[tokio::test(start_paused = true)]
    async fn restarted_endpoint_does_not_wait_for_one_that_never_fills() {
        let addresses = [1, 2, 3].map(|host| ([127, 0, 0, host], 6443).into());
        let endpoints = Arc::new(Endpoints::resolved(&addresses));
        let all = endpoints.all();
        let [full, far, restarted] = all.as_slice() else {
            panic!("three endpoints");
        };
        endpoints.mark_healthy(full);
        endpoints.mark_healthy(far);
        let _counted: Vec<_> = (0..100).map(|_| full.count()).collect();
        let interval = || Duration::from_secs(5);
        let drain = Drain::new();
        let balancing = drain.spawn(Arc::clone(&endpoints).keep_balanced(WORKERS, interval));
        // Uses up all moves of a round, and returns how long they took to begin.
        let moves_in_vain = async || {
            let begun = Instant::now();
            while !full.has_surplus() {
                advance_and_run(MOVE_INTERVAL).await;
            }
            let waited = begun.elapsed();
            let mut without_moves = 0;
            while without_moves < 10 {
                without_moves = if full.take_surplus() {
                    0
                } else {
                    without_moves + 1
                };
                advance_and_run(MOVE_INTERVAL).await;
            }
            waited
        };
        let (first, second) = (moves_in_vain().await, moves_in_vain().await);
        assert!(first < WAIT * 3 / 2, "{first:?}");
        assert!(second > WAIT * 3 / 2, "{second:?}");
        endpoints.mark_healthy(restarted);
        let third = moves_in_vain().await;
        assert!(third < WAIT * 3 / 2, "{third:?}");
        balancing.abort();
    }

    async fn advance_and_run(time: Duration) {
        advance(time).await;
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
}
