//! The life of an upstream connection: how often it was leased, and why it is used no more.

use std::sync::{Arc, OnceLock, Weak};

use super::{Counters, LeaseEnd, LeaseFrom};

/// Counts the end of an upstream connection when dropped, once, under the first reason that was given.
/// A connection that never began, such as one of a test, is not counted.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    begun: OnceLock<Begun>,
    end: OnceLock<LeaseEnd>,
}

#[derive(Debug)]
struct Begun {
    counts: Arc<Counters>,
    /// Gone once the cluster that the connection was made for has been replaced.
    generation: Weak<()>,
}

impl ConnectionStats {
    /// The connection was dialled and is leased.
    pub fn on_dial(&self, counts: &Arc<Counters>, generation: &Arc<()>) {
        counts.lease_taken(LeaseFrom::Dial);
        let begun = Begun {
            counts: Arc::clone(counts),
            generation: Arc::downgrade(generation),
        };
        // It begins once; a second time would count under the first worker.
        self.begun.set(begun).ok();
    }

    /// An idle connection was leased again.
    pub fn on_reuse(&self) {
        if let Some(begun) = self.begun.get() {
            begun.counts.lease_taken(LeaseFrom::Idle);
        }
    }

    /// From now on the connection is not used for another request; the first reason stays.
    pub fn set_end_reason(&self, why: LeaseEnd) {
        self.end.set(why).ok();
    }
}

impl Drop for ConnectionStats {
    fn drop(&mut self) {
        let Some(Begun { counts, generation }) = self.begun.get() else {
            return;
        };
        let why = self.end.get().copied().unwrap_or(LeaseEnd::Closed);
        // Nobody asks for a connection of an older generation any more, so that it grows old or is closed.
        let is_replaced = generation.strong_count() == 0;
        let is_mere_age = matches!(why, LeaseEnd::Age | LeaseEnd::Closed);
        counts.lease_retired(if is_mere_age && is_replaced {
            LeaseEnd::Generation
        } else {
            why
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricsSnapshot;

    #[test]
    fn an_end_is_counted_once_under_its_first_reason() {
        let (counts, generation) = (Arc::new(Counters::default()), Arc::new(()));
        let stats = ConnectionStats::default();
        stats.on_dial(&counts, &generation);
        stats.on_reuse();
        stats.set_end_reason(LeaseEnd::Unauthorized);
        stats.set_end_reason(LeaseEnd::GoAway);
        drop(stats);
        drop(ConnectionStats::default());
        let aged = ConnectionStats::default();
        aged.on_dial(&counts, &generation);
        aged.set_end_reason(LeaseEnd::Age);
        drop(generation);
        drop(aged);
        let total = MetricsSnapshot::from_workers([&counts]);
        assert_eq!(total.leases_taken(LeaseFrom::Dial), 2);
        assert_eq!(total.leases_taken(LeaseFrom::Idle), 1);
        for why in LeaseEnd::ALL {
            let expected = matches!(why, LeaseEnd::Unauthorized | LeaseEnd::Generation);
            assert_eq!(total.leases_retired(*why), u64::from(expected), "{why:?}");
        }
    }
}
