//! Writes samples as `OpenMetrics` text.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

use super::{FAMILIES, Family, MetricKind};

/// The name and the value of a label.
pub type Label = (&'static str, Cow<'static, str>);

/// The samples of one scrape. A family without samples still gets its HELP and TYPE lines.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<&'static str, Vec<(Vec<Label>, Sample)>>,
}

#[derive(Debug)]
enum Sample {
    Counter(u64),
    Gauge(f64),
    Histogram(Vec<(f64, u64)>, f64),
    Info,
}

impl Exposition {
    /// An exposition without samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample of a counter.
    pub fn counter(&mut self, family: &'static Family, labels: Vec<Label>, count: u64) {
        self.add(family, labels, Sample::Counter(count));
    }

    /// Adds a sample of a gauge.
    pub fn gauge(&mut self, family: &'static Family, labels: Vec<Label>, value: f64) {
        self.add(family, labels, Sample::Gauge(value));
    }

    /// Adds a histogram: each bucket with its upper bound in seconds and the durations in it alone, and the
    /// sum of all durations in seconds.
    pub fn histogram(
        &mut self,
        family: &'static Family,
        labels: Vec<Label>,
        buckets: Vec<(f64, u64)>,
        sum: f64,
    ) {
        self.add(family, labels, Sample::Histogram(buckets, sum));
    }

    /// Adds a sample of an info metric, whose labels hold the information.
    pub fn info(&mut self, family: &'static Family, labels: Vec<Label>) {
        self.add(family, labels, Sample::Info);
    }

    /// The text, in the format of [`CONTENT_TYPE`].
    #[must_use]
    pub fn into_text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Encoding fails only if writing fails, and writing to a String cannot fail.
        text::encode(&mut text, &registry).ok();
        text
    }

    fn add(&mut self, family: &'static Family, labels: Vec<Label>, value: Sample) {
        let samples = self.samples.entry(family.name).or_default();
        samples.push((labels, value));
    }
}

impl Sample {
    fn encode(&self, sample: &mut MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(count) => {
                sample.encode_counter(count, None::<&Exemplar<NoLabelSet, f64>>)
            }
            Self::Gauge(value) => sample.encode_gauge(value),
            Self::Histogram(buckets, sum) => {
                let count = buckets.iter().map(|(_, count)| count).sum();
                sample.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
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
            // OpenMetrics names a family without the suffix that its samples have.
            let name = family.name.strip_suffix(suffix).unwrap_or(family.name);
            let mut samples = encoder.encode_descriptor(name, family.help, None, kind)?;
            for (labels, value) in self.samples.get(family.name).into_iter().flatten() {
                if let Sample::Info = value {
                    samples.encode_info(labels)?;
                } else if labels.is_empty() {
                    // `encode_family` without labels would write empty braces.
                    value.encode(&mut samples)?;
                } else {
                    value.encode(&mut samples.encode_family(labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The media type of [`Exposition::into_text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
