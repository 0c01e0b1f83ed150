//! The life of an upstream connection: how often it was leased, and why it is used no more.

use std::sync::{Arc, OnceLock, Weak};

use super::{Counts, LeaseEnd, LeaseFrom};

/// Counts the end of an upstream connection when dropped, once, under the first reason that was given.
/// A connection that never began, such as one of a test, is not counted.
#[derive(Debug, Default)]
pub struct Life {
    begun: OnceLock<Begun>,
    end: OnceLock<LeaseEnd>,
}

#[derive(Debug)]
struct Begun {
    counts: Arc<Counts>,
    /// Gone once the cluster that the connection was made for has been replaced.
    generation: Weak<()>,
}

impl Life {
    /// The connection was dialled and is leased.
    pub fn begins(&self, counts: &Arc<Counts>, generation: &Arc<()>) {
        counts.lease_taken(LeaseFrom::Dial);
        let begun = Begun {
            counts: Arc::clone(counts),
            generation: Arc::downgrade(generation),
        };
        // It begins once; a second time would count under the first worker.
        self.begun.set(begun).ok();
    }

    /// An idle connection was leased again.
    pub fn goes_on(&self) {
        if let Some(begun) = self.begun.get() {
            begun.counts.lease_taken(LeaseFrom::Idle);
        }
    }

    /// From now on the connection is not used for another request; the first reason stays.
    pub fn ends(&self, why: LeaseEnd) {
        self.end.set(why).ok();
    }
}

impl Drop for Life {
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
    use crate::metrics::Total;

    #[test]
    fn an_end_is_counted_once_under_its_first_reason() {
        let (counts, generation) = (Arc::new(Counts::default()), Arc::new(()));
        let life = Life::default();
        life.begins(&counts, &generation);
        life.goes_on();
        life.ends(LeaseEnd::Unauthorized);
        life.ends(LeaseEnd::GoAway);
        drop(life);
        drop(Life::default());
        let aged = Life::default();
        aged.begins(&counts, &generation);
        aged.ends(LeaseEnd::Age);
        drop(generation);
        drop(aged);
        let total = Total::of([&counts]);
        assert_eq!(total.leases_taken(LeaseFrom::Dial), 2);
        assert_eq!(total.leases_taken(LeaseFrom::Idle), 1);
        for why in LeaseEnd::ALL {
            let expected = matches!(why, LeaseEnd::Unauthorized | LeaseEnd::Generation);
            assert_eq!(total.leases_retired(*why), u64::from(expected), "{why:?}");
        }
    }
}
