//! The kinds of values that a worker counts: each can be read, summed and exposed at any time.
//!
//! They are atomics so that other threads may read them; only the thread of one worker writes.

use std::{
    collections::BTreeMap,
    marker::PhantomData,
    sync::{
        Mutex, PoisonError,
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
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// One value for each label of a closed set.
#[derive(Debug)]
pub struct Per<L, V> {
    values: Box<[V]>,
    labels: PhantomData<L>,
}

/// One value for each cluster of the configuration.
#[derive(Debug, Default)]
pub struct PerCluster<V>(Mutex<BTreeMap<String, V>>);

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

impl From<u64> for Gauge {
    fn from(number: u64) -> Self {
        Self(number.into())
    }
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().take_while(|bound| micros > **bound).count();
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Each bucket with its upper bound in seconds, and the number of durations in that bucket alone. The
    /// bound of the last bucket is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.map(|micros| Duration::from_micros(micros).as_secs_f64());
        let bounds = bounds.into_iter().chain([f64::INFINITY]);
        bounds.zip(
            self.counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed)),
        )
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

impl<L: LabelSet> PerCluster<Per<L, Counter>> {
    /// Counts one.
    pub fn count(&self, cluster: &str, label: L) {
        let mut clusters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = clusters.get(cluster) {
            return values.count(label);
        }
        clusters.entry(cluster.to_owned()).or_default().count(label);
    }
}

impl<V: MetricValue> PerCluster<V> {
    /// Creates the series of this cluster, at 0.
    pub(super) fn begin(&self, cluster: &str) {
        let mut clusters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.entry(cluster.to_owned()).or_default();
    }
}

impl MetricValue for Counter {
    fn merge(&self, other: &Self) {
        self.add(other.get());
    }

    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        to.counter(family, labels, self.get());
    }
}

impl MetricValue for Gauge {
    fn merge(&self, other: &Self) {
        self.0.fetch_add(other.get(), Ordering::Relaxed);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float in every exposition"
    )]
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        to.gauge(family, labels, self.get() as f64);
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

impl<V: MetricValue> MetricValue for PerCluster<V> {
    fn merge(&self, other: &Self) {
        let mut clusters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = other.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (cluster, more) in &*others {
            clusters.entry(cluster.clone()).or_default().merge(more);
        }
    }

    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        let clusters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (cluster, value) in &*clusters {
            let mut labels = labels.clone();
            labels.push(("cluster", cluster.clone().into()));
            value.expose(family, labels, to);
        }
    }
}

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
}
