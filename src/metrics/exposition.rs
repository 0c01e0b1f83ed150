//! Writes samples in the Prometheus text format or as `OpenMetrics` text.
//!
//! The two differ in few lines: `OpenMetrics` names a counter without `_total` and an info without `_info`, knows the
//! type `info`, and ends with `# EOF`. `promtool check metrics` and older collectors read only the Prometheus format.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use super::{FAMILIES, Family, MetricKind};

/// The name and the value of a label.
pub type Label = (&'static str, Cow<'static, str>);

/// The samples of one scrape. A family without samples still gets its HELP and TYPE lines.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<&'static str, Vec<(Vec<Label>, Sample)>>,
}

/// The formats of an exposition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// The Prometheus text format, version 0.0.4.
    Prometheus,
    /// `OpenMetrics` text, version 1.0.0.
    OpenMetrics,
}

#[derive(Debug)]
enum Sample {
    Number(f64),
    Histogram(Vec<(f64, u64)>, f64),
}

impl ExpositionFormat {
    /// `OpenMetrics` if the `Accept` field asks for it and does not prefer `text/plain`; otherwise the Prometheus format,
    /// which every collector reads.
    #[must_use]
    pub fn from_accept(accept: &str) -> Self {
        let quality = |name: &str| {
            let ranges = accept.split(',').map(MediaRange::parse);
            let named = ranges.filter(|range| range.name.eq_ignore_ascii_case(name));
            let known = named.filter(|range| {
                name == TEXT_PLAIN || matches!(range.version, None | Some("1.0.0" | "0.0.1"))
            });
            known.map(|range| range.quality).fold(0.0, f64::max)
        };
        let (openmetrics, text) = (quality(OPENMETRICS_TEXT), quality(TEXT_PLAIN));
        if openmetrics > 0.0 && openmetrics >= text {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// One part of an `Accept` field.
struct MediaRange<'a> {
    name: &'a str,
    version: Option<&'a str>,
    quality: f64,
}

impl<'a> MediaRange<'a> {
    /// A range with a quality that is no number is not wanted.
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self {
            name: parts.next().unwrap_or_default(),
            version: None,
            quality: 1.0,
        };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim_matches('"');
            match name.to_ascii_lowercase().as_str() {
                "q" => range.quality = value.parse().unwrap_or(0.0),
                "version" => range.version = Some(value),
                _ => {}
            }
        }
        range
    }
}

impl Exposition {
    /// An exposition without samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample of a counter or a gauge.
    pub fn number(&mut self, family: &'static Family, labels: Vec<Label>, value: f64) {
        self.add(family, labels, Sample::Number(value));
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
        self.add(family, labels, Sample::Number(1.0));
    }

    /// The text in this format.
    #[must_use]
    pub fn into_text(self, format: ExpositionFormat) -> String {
        let mut text = String::new();
        // It fails only if writing fails, and writing to a String cannot fail.
        self.write(&mut text, format).ok();
        text
    }

    fn write(&self, text: &mut String, format: ExpositionFormat) -> fmt::Result {
        for family in FAMILIES {
            let Family { name, help, .. } = family;
            let (described, kind) = match (format, family.kind) {
                (ExpositionFormat::OpenMetrics, MetricKind::Counter) => {
                    (name.strip_suffix("_total").unwrap_or(name), "counter")
                }
                (ExpositionFormat::OpenMetrics, MetricKind::Info) => {
                    (name.strip_suffix("_info").unwrap_or(name), "info")
                }
                (ExpositionFormat::Prometheus, MetricKind::Info) => (*name, "gauge"),
                (_, kind) => (*name, kind.name()),
            };
            writeln!(text, "# HELP {described} {help}\n# TYPE {described} {kind}")?;
            for (labels, sample) in self.samples.get(name).into_iter().flatten() {
                match sample {
                    Sample::Number(value) => write_sample(text, name, "", labels, None, *value)?,
                    Sample::Histogram(buckets, sum) => {
                        write_histogram(text, name, labels, buckets, *sum)?;
                    }
                }
            }
        }
        if format == ExpositionFormat::OpenMetrics {
            text.push_str("# EOF\n");
        }
        Ok(())
    }

    fn add(&mut self, family: &'static Family, labels: Vec<Label>, value: Sample) {
        let samples = self.samples.entry(family.name).or_default();
        samples.push((labels, value));
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the values of an exposition are floats"
)]
fn write_histogram(
    text: &mut String,
    name: &str,
    labels: &[Label],
    buckets: &[(f64, u64)],
    sum: f64,
) -> fmt::Result {
    let mut count = 0;
    for (bound, durations) in buckets {
        count += durations;
        // OpenMetrics requires the decimal point of `1.0`.
        let bound = if bound.is_finite() {
            format!("{bound:?}")
        } else {
            "+Inf".to_owned()
        };
        write_sample(text, name, "_bucket", labels, Some(&bound), count as f64)?;
    }
    write_sample(text, name, "_sum", labels, None, sum)?;
    write_sample(text, name, "_count", labels, None, count as f64)
}

fn write_sample(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[Label],
    bound: Option<&str>,
    value: f64,
) -> fmt::Result {
    write!(text, "{name}{suffix}")?;
    let labels = labels.iter().map(|(label, value)| (*label, &**value));
    let mut separator = '{';
    for (label, value) in labels.chain(bound.map(|bound| ("le", bound))) {
        write!(text, "{separator}{label}=\"")?;
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
        separator = ',';
    }
    let end = if separator == ',' { "}" } else { "" };
    writeln!(text, "{end} {value}")
}

const OPENMETRICS_TEXT: &str = "application/openmetrics-text";
const TEXT_PLAIN: &str = "text/plain";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{BUILD, CONNECTIONS, DIALS, REQUEST_TIME_TO_HEADERS};

    #[test]
    fn format_follows_the_accept_field() {
        use ExpositionFormat::{OpenMetrics, Prometheus};
        for (accept, format) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/plain", Prometheus),
            ("text/html, */*;q=0.8", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            (
                "APPLICATION/OpenMetrics-Text; version=\"1.0.0\"",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;q=no", Prometheus),
            ("application/openmetrics-text;version=2.0.0", Prometheus),
            (
                "application/openmetrics-text;q=0.3,text/plain;version=0.0.4;q=0.5",
                Prometheus,
            ),
            // Prometheus 2, and Prometheus 3.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,*/*;q=0.1",
                OpenMetrics,
            ),
        ] {
            assert_eq!(ExpositionFormat::from_accept(accept), format, "{accept}");
        }
    }

    #[test]
    fn both_formats_have_the_same_samples() {
        let text = |format| {
            let mut exposition = Exposition::new();
            exposition.info(&BUILD, vec![("version", "1".into())]);
            exposition.number(&CONNECTIONS, Vec::new(), 3.0);
            let labels = vec![("cluster", "a\\b\n\"c\"".into()), ("result", "ok".into())];
            exposition.number(&DIALS, labels, 9_007_199_254_740_991.0);
            let labels = vec![("cluster", "a".into()), ("verb", "get".into())];
            let buckets = vec![(0.001, 2), (1.0, 1), (f64::INFINITY, 1)];
            exposition.histogram(&REQUEST_TIME_TO_HEADERS, labels, buckets, 90.25);
            exposition.into_text(format)
        };
        let prometheus = text(ExpositionFormat::Prometheus);
        let openmetrics = text(ExpositionFormat::OpenMetrics);
        let samples = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(ToOwned::to_owned).collect()
        };
        assert_eq!(samples(&prometheus), samples(&openmetrics));
        assert_eq!(
            samples(&prometheus),
            [
                "kube_tls_proxy_build_info{version=\"1\"} 1",
                "kube_tls_proxy_connections 3",
                "kube_tls_proxy_request_time_to_headers_seconds_bucket{cluster=\"a\",verb=\"get\",le=\"0.001\"} 2",
                "kube_tls_proxy_request_time_to_headers_seconds_bucket{cluster=\"a\",verb=\"get\",le=\"1.0\"} 3",
                "kube_tls_proxy_request_time_to_headers_seconds_bucket{cluster=\"a\",verb=\"get\",le=\"+Inf\"} 4",
                "kube_tls_proxy_request_time_to_headers_seconds_sum{cluster=\"a\",verb=\"get\"} 90.25",
                "kube_tls_proxy_request_time_to_headers_seconds_count{cluster=\"a\",verb=\"get\"} 4",
                "kube_tls_proxy_upstream_dials_total{cluster=\"a\\\\b\\n\\\"c\\\"\",result=\"ok\"} 9007199254740991",
            ]
        );
        for (text, lines) in [
            (
                &prometheus,
                [
                    "# TYPE kube_tls_proxy_build_info gauge",
                    "# TYPE kube_tls_proxy_upstream_dials_total counter",
                    "# TYPE kube_tls_proxy_request_time_to_headers_seconds histogram",
                ],
            ),
            (
                &openmetrics,
                [
                    "# TYPE kube_tls_proxy_build info",
                    "# TYPE kube_tls_proxy_upstream_dials counter",
                    "# TYPE process_cpu_seconds counter",
                ],
            ),
        ] {
            for line in lines {
                assert!(text.lines().any(|found| found == line), "{line}\n{text}");
            }
        }
        assert!(openmetrics.ends_with("\n# EOF\n"));
        assert!(!prometheus.contains("EOF"));
    }
}
