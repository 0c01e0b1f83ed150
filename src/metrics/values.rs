//! The kinds of values that a worker counts: each can be read, summed and exposed at any time.
//!
//! They are atomics so that other threads may read them; only the thread of one worker writes.

use std::{
    marker::PhantomData,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Exposition, Family, Label, labels::LabelSet};

/// A value or a set of values that belongs to one metric family.
pub trait MetricValue: Default {
    /// Adds what `other` holds.
    fn merge(&self, other: &Self);

    /// Adds its samples with these labels to an exposition.
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition);
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number of things that exist now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// Durations in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

/// One value for each label of a closed set.
#[derive(Debug)]
pub struct Per<L, V> {
    values: Box<[V]>,
    labels: PhantomData<L>,
}

/// One value for each worker, so that no two workers write to the same one.
#[derive(Debug)]
pub struct PerWorker<V>(Mutex<Vec<(usize, Arc<V>)>>);

impl Counter {
    /// Adds to the number.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl From<u64> for Counter {
    fn from(number: u64) -> Self {
        Self(number.into())
    }
}

impl Gauge {
    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().take_while(|bound| micros > **bound).count();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The number of durations in each bucket alone.
    #[must_use]
    pub fn counts(&self) -> [u64; BUCKETS] {
        self.counts
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }

    /// Each bucket with its upper bound in seconds, and the number of durations in that bucket alone. The
    /// bound of the last bucket is infinite.
    fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        bounds().zip(self.counts())
    }

    /// The sum of all durations in seconds.
    pub(super) fn sum(&self) -> f64 {
        Duration::from_micros(self.micros.load(Ordering::Relaxed)).as_secs_f64()
    }
}

impl<L: LabelSet, V: Default> Default for Per<L, V> {
    fn default() -> Self {
        Self {
            values: L::ALL.iter().map(|_| V::default()).collect(),
            labels: PhantomData,
        }
    }
}

impl<L: LabelSet, V> Per<L, V> {
    pub(super) fn get(&self, label: L) -> Option<&V> {
        self.values.get(label.index())
    }
}

impl<L: LabelSet> Per<L, Counter> {
    /// Counts one.
    pub fn count(&self, label: L) {
        if let Some(counter) = self.get(label) {
            counter.add(1);
        }
    }

    /// The number of this label.
    #[must_use]
    pub fn value(&self, label: L) -> u64 {
        self.get(label).map_or(0, Counter::get)
    }

    /// The sum over all labels.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.values.iter().map(Counter::get).sum()
    }
}

impl<L: LabelSet> Per<L, Histogram> {
    /// The durations of all labels together.
    #[must_use]
    pub fn sum(&self) -> Histogram {
        let sum = Histogram::default();
        self.values.iter().for_each(|value| sum.merge(value));
        sum
    }
}

impl<V: MetricValue> PerWorker<V> {
    /// The value of this worker.
    #[must_use]
    pub fn of(&self, worker: usize) -> Arc<V> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = values.iter().find(|(number, _)| *number == worker);
        let known = known.map(|(_, value)| Arc::clone(value));
        known.unwrap_or_else(|| {
            let value = Arc::default();
            values.push((worker, Arc::clone(&value)));
            value
        })
    }

    /// The sum over all workers.
    #[must_use]
    pub fn sum(&self) -> V {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = V::default();
        values.iter().for_each(|(_, value)| sum.merge(value));
        sum
    }
}

impl<V> Default for PerWorker<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl MetricValue for Counter {
    fn merge(&self, other: &Self) {
        self.add(other.get());
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "the values of an exposition are floats"
    )]
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        to.number(family, labels, self.get() as f64);
    }
}

impl MetricValue for Gauge {
    fn merge(&self, other: &Self) {
        self.0.fetch_add(other.get(), Ordering::Relaxed);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "the values of an exposition are floats"
    )]
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        to.number(family, labels, self.get() as f64);
    }
}

impl MetricValue for Histogram {
    fn merge(&self, other: &Self) {
        for (count, more) in self.counts.iter().zip(&other.counts) {
            count.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let micros = other.micros.load(Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// A histogram without durations is not exposed: its sixteen lines would have no information.
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        let buckets: Vec<_> = self.buckets().collect();
        if buckets.iter().any(|(_, count)| *count > 0) {
            to.histogram(family, labels, buckets, self.sum());
        }
    }
}

impl<L: LabelSet, V: MetricValue> MetricValue for Per<L, V> {
    fn merge(&self, other: &Self) {
        for (value, more) in self.values.iter().zip(&other.values) {
            value.merge(more);
        }
    }

    /// Each label begins at 0, so that its first event is an increase.
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        // The label whose values are `L`, a closed set, is the last label of its family.
        let name = family.labels.last().map_or("", |(name, _)| name);
        for (label, value) in L::ALL.iter().zip(&self.values) {
            let mut labels = labels.clone();
            labels.push((name, label.label().into()));
            value.expose(family, labels, to);
        }
    }
}

/// A quantile in seconds, such as 0.99 for p99, interpolated from the number of durations in each bucket. `None`
/// without durations. A duration beyond the last bound counts as that bound.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "an interpolated value is not that precise"
)]
pub fn quantile(counts: &[u64; BUCKETS], share: f64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    let wanted = share * all as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (bound, count) in bounds().zip(counts) {
        let count = *count as f64;
        if bound.is_infinite() {
            break;
        }
        if count > 0.0 && below + count >= wanted {
            return Some(lower + (bound - lower) * (wanted - below) / count);
        }
        (below, lower) = (below + count, bound);
    }
    Some(lower)
}

/// The upper bounds of the buckets in seconds. The last one is infinite.
fn bounds() -> impl Iterator<Item = f64> {
    let bounds = BOUNDS.map(|micros| Duration::from_micros(micros).as_secs_f64());
    bounds.into_iter().chain([f64::INFINITY])
}

/// The number of buckets of a histogram.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Upper bounds of the buckets in microseconds, so that counting a request needs no conversion. A last bucket without
/// a bound follows.
const BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_counts_in_the_smallest_bucket_that_holds_it() {
        for (micros, bucket) in [
            (0, 0.001),
            (1_000, 0.001),
            (1_001, 0.0025),
            (60_000_000, 60.0),
            (60_000_001, f64::INFINITY),
        ] {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_micros(micros));
            let found: Vec<_> = histogram
                .buckets()
                .filter(|(_, count)| *count > 0)
                .collect();
            assert_eq!(found, [(bucket, 1)], "{micros}");
        }
    }

    #[test]
    fn quantile_is_interpolated_in_its_bucket() {
        let histogram = Histogram::default();
        assert_eq!(quantile(&histogram.counts(), 0.5), None);
        for _ in 0..98 {
            histogram.observe(Duration::from_millis(20));
        }
        assert_eq!(quantile(&histogram.counts(), 1.0), Some(0.025));
        assert_eq!(quantile(&histogram.counts(), 0.5), Some(0.0175));
        for _ in 0..2 {
            histogram.observe(Duration::from_secs(100));
        }
        assert_eq!(quantile(&histogram.counts(), 0.99), Some(60.0));
    }
}
