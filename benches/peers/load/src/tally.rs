//! The counters of a load: work done, the latency of each unit, and errors with the text of the first.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

/// Shared by the tasks of one load.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    latencies: Vec<Duration>,
    errors: u64,
    first_error: String,
    bytes: u64,
}

impl Tally {
    /// Counts one unit of work.
    pub(crate) fn done(&self, latency: Duration, bytes: u64) {
        let mut counts = self.counts();
        counts.latencies.push(latency);
        counts.bytes += bytes;
    }

    /// Counts one failure.
    pub(crate) fn failed(&self, why: impl ToString) {
        let mut counts = self.counts();
        counts.errors += 1;
        if counts.first_error.is_empty() {
            counts.first_error = why.to_string();
        }
    }

    /// The number of units done.
    pub(crate) fn units(&self) -> usize {
        self.counts().latencies.len()
    }

    /// The object that the script reads before it starts the load.
    pub(crate) fn ready(&self, open: usize) -> Value {
        let counts = self.counts();
        json!({ "ready": open, "errors": counts.errors, "first_error": counts.first_error })
    }

    /// The object that the script reads at the end.
    pub(crate) fn result(&self, wall: Duration) -> Value {
        let mut counts = self.counts();
        counts.latencies.sort_unstable();
        json!({
            "done": counts.latencies.len(),
            "errors": counts.errors,
            "first_error": counts.first_error,
            "bytes": counts.bytes,
            "wall_s": wall.as_secs_f64(),
            "p50_ms": percentile_ms(&counts.latencies, 50),
            "p99_ms": percentile_ms(&counts.latencies, 99),
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The percentile of a sorted list, by the nearest rank; `None` for an empty list.
fn percentile_ms(sorted: &[Duration], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).map(|value| value.as_secs_f64() * 1e3)
}

/// How much work may still start: a count and a time; the first that ends counts.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Mutex<u64>,
    until: Instant,
}

impl Budget {
    /// This many units, and no longer than this from now.
    pub(crate) fn new(count: u64, time: Duration) -> Self {
        Self {
            left: Mutex::new(count),
            until: Instant::now() + time,
        }
    }

    /// Takes one unit, if one is left and the time is not over.
    pub(crate) fn take(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if *left == 0 || Instant::now() >= self.until {
            return false;
        }
        *left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(values: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        values.into_iter().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let hundred = millis(1..=100);
        assert_eq!(percentile_ms(&hundred, 50), Some(50.0));
        assert_eq!(percentile_ms(&hundred, 99), Some(99.0));
        assert_eq!(percentile_ms(&millis([7]), 99), Some(7.0));
        assert_eq!(percentile_ms(&millis([1, 9]), 99), Some(9.0));
        assert_eq!(percentile_ms(&[], 50), None);
    }

    #[test]
    fn result_counts_errors_and_keeps_the_first_reason() {
        let tally = Tally::default();
        tally.done(Duration::from_millis(9), 10);
        tally.done(Duration::from_millis(1), 5);
        tally.failed("first");
        tally.failed("second");
        let result = tally.result(Duration::from_secs(2));
        assert_eq!(result["done"], 2);
        assert_eq!(result["errors"], 2);
        assert_eq!(result["first_error"], "first");
        assert_eq!(result["bytes"], 15);
        assert_eq!(result["p50_ms"], 1.0, "latencies are sorted first");
    }

    #[tokio::test(start_paused = true)]
    async fn budget_ends_by_count_and_by_time() {
        let two = Budget::new(2, Duration::from_secs(1));
        assert!(two.take() && two.take());
        assert!(!two.take());
        let many = Budget::new(1000, Duration::from_secs(1));
        assert!(many.take());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!many.take());
    }
}
