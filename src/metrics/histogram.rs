//! Durations in buckets.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds in seconds; a last bucket without a bound follows.
pub(super) const BOUNDS: [f64; 15] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// The same in microseconds, so that nothing is converted on the way of a request.
const MICROS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// How many durations fell into each bucket.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Buckets {
    /// Durations in each bucket alone, not in those below it; the last has no upper bound.
    pub counts: [u64; BOUNDS.len() + 1],
    /// All durations together, in seconds.
    pub sum: f64,
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let at = MICROS.iter().take_while(|bound| micros > **bound).count();
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn add_to(&self, sum: &mut Buckets) {
        for (total, count) in sum.counts.iter_mut().zip(&self.counts) {
            *total += count.load(Ordering::Relaxed);
        }
        sum.sum += Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64();
    }
}

impl Buckets {
    /// How many durations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Each bucket with its upper bound in seconds.
    pub fn bounded(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.counts)
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (total, count) in self.counts.iter_mut().zip(other.counts) {
            *total += count;
        }
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_smallest_bucket_that_holds_it() {
        for (micros, bucket) in [
            (0, 0),
            (1_000, 0),
            (1_001, 1),
            (60_000_000, 14),
            (60_000_001, 15),
        ] {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_micros(micros));
            let mut buckets = Buckets::default();
            histogram.add_to(&mut buckets);
            assert_eq!(
                buckets.counts.iter().position(|count| *count == 1),
                Some(bucket),
                "{micros}"
            );
            assert_eq!(buckets.count(), 1);
        }
    }

    #[test]
    fn both_spellings_of_the_bounds_agree() {
        for (seconds, micros) in BOUNDS.iter().zip(MICROS) {
            assert_eq!(
                Duration::from_secs_f64(*seconds).as_micros(),
                u128::from(micros)
            );
        }
    }
}
