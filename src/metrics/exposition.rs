//! Numbers as `OpenMetrics` text.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use super::{Buckets, FAMILIES, Family, MetricKind};

/// A label and its value.
pub type Label = (&'static str, Cow<'static, str>);

/// What is exposed at one moment; families without a number are named all the same.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<&'static str, Vec<(Vec<Label>, Value)>>,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Box<Buckets>),
    Info,
}

impl Exposition {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a count.
    pub fn counter(&mut self, family: &'static Family, labels: Vec<Label>, count: u64) {
        self.add(family, labels, Value::Counter(count));
    }

    /// Adds a value that goes up and down.
    pub fn gauge(&mut self, family: &'static Family, labels: Vec<Label>, value: f64) {
        self.add(family, labels, Value::Gauge(value));
    }

    /// Adds durations.
    pub fn histogram(&mut self, family: &'static Family, labels: Vec<Label>, buckets: &Buckets) {
        let value = Value::Histogram(Box::new(buckets.clone()));
        self.add(family, labels, value);
    }

    /// Adds what labels say.
    pub fn info(&mut self, family: &'static Family, labels: Vec<Label>) {
        self.add(family, labels, Value::Info);
    }

    /// `OpenMetrics` text, as [`CONTENT_TYPE`] names it.
    #[must_use]
    pub fn into_text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Fails only when writing fails, and a String takes everything.
        text::encode(&mut text, &registry).ok();
        text
    }

    fn add(&mut self, family: &'static Family, labels: Vec<Label>, value: Value) {
        let samples = self.samples.entry(family.name).or_default();
        samples.push((labels, value));
    }
}

impl Value {
    fn encode(&self, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(count) => {
                sample.encode_counter(count, None::<&Exemplar<NoLabelSet, f64>>)
            }
            Self::Gauge(value) => sample.encode_gauge(value),
            Self::Histogram(buckets) => {
                let bounded: Vec<_> = buckets.bounded().collect();
                let (sum, count) = (buckets.sum, buckets.count());
                sample.encode_histogram::<NoLabelSet>(sum, count, &bounded, None)
            }
            Self::Info => sample.encode_info(&Vec::<Label>::new()),
        }
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in FAMILIES {
            let (suffix, kind) = match family.kind {
                MetricKind::Counter => ("_total", MetricType::Counter),
                MetricKind::Gauge => ("", MetricType::Gauge),
                MetricKind::Histogram => ("", MetricType::Histogram),
                MetricKind::Info => ("_info", MetricType::Info),
            };
            // OpenMetrics names a family without the suffix of its samples.
            let name = family.name.strip_suffix(suffix).unwrap_or(family.name);
            let mut samples = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, value) in self.samples.get(family.name).into_iter().flatten() {
                if let Value::Info = value {
                    samples.encode_info(labels)?;
                } else if labels.is_empty() {
                    // A family without labels would be written with empty braces.
                    value.encode(&mut samples)?;
                } else {
                    value.encode(&mut samples.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// What [`Exposition::into_text`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
