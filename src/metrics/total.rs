//! The counters of all workers together.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Buckets, Counters, Dialled, Exposition, Handshake, LeaseEnd, LeaseFrom, Limit, Protocol,
    REASONS, RecentError, StreamInfo, Verb, errors::MOST_RECENT, families, requests::Row,
};

/// Everything that is counted in this process.
pub struct Metrics {
    workers: Vec<Arc<Counters>>,
    log_lines_dropped: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workers = self.workers.len();
        f.debug_struct("Metrics")
            .field("workers", &workers)
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Counters for so many workers, all at nothing.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            log_lines_dropped: OnceLock::new(),
        }
    }

    /// The counters of each worker.
    #[must_use]
    pub fn workers(&self) -> &[Arc<Counters>] {
        &self.workers
    }

    /// Says where the number of dropped log lines can be asked; the first answer stays.
    pub fn ask_log_lines_dropped(&self, ask: impl Fn() -> u64 + Send + Sync + 'static) {
        drop(self.log_lines_dropped.set(Box::new(ask)));
    }

    /// The sum over all workers.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot::from_workers(&self.workers)
    }

    /// Adds everything that was counted, and what was not yet: `increase()` sees nothing of a series that begins
    /// at 1, so each begins at 0, for these clusters too.
    pub fn expose<'a>(&self, clusters: impl Iterator<Item = &'a str>, to: &mut Exposition) {
        let mut total = self.snapshot();
        for cluster in clusters {
            for how in Dialled::ALL {
                total.dials.entry((cluster.to_owned(), *how)).or_default();
            }
        }
        for reason in REASONS {
            total.errors.entry(reason).or_default();
        }
        total.expose(to);
        let dropped = self.log_lines_dropped.get().map_or(0, |ask| ask());
        to.counter(&families::LOG_LINES_DROPPED, Vec::new(), dropped);
    }
}

/// Sums of counters at one moment.
#[derive(Debug, Default)]
pub struct MetricsSnapshot {
    requests: BTreeMap<Row, u64>,
    time_to_headers: [Buckets; Verb::ALL.len()],
    durations: [Buckets; Verb::ALL.len()],
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Client connections that are open.
    pub connections: u64,
    connections_total: [u64; Protocol::ALL.len()],
    handshakes: [u64; Handshake::ALL.len()],
    leases_taken: [u64; LeaseFrom::ALL.len()],
    leases_retired: [u64; LeaseEnd::ALL.len()],
    limits_hit: [u64; Limit::ALL.len()],
    dials: BTreeMap<(String, Dialled), u64>,
    /// Watches and followed logs that are open.
    pub watches: u64,
    /// Tunnels that are open.
    pub tunnels: u64,
    /// Who holds them, the oldest first; not all when there are very many.
    pub streams: Vec<StreamInfo>,
    errors: BTreeMap<&'static str, u64>,
    /// The last errors, the newest first.
    pub recent_errors: Vec<RecentError>,
}

impl MetricsSnapshot {
    /// The sum of these.
    pub fn from_workers<'a>(workers: impl IntoIterator<Item = &'a Arc<Counters>>) -> Self {
        let mut total = Self::default();
        for counts in workers {
            total.add(counts);
        }
        total.streams.sort_by_key(|holder| holder.since);
        total
            .recent_errors
            .sort_by_key(|error| std::cmp::Reverse(error.at));
        total.recent_errors.truncate(MOST_RECENT);
        total
    }

    /// Requests that have come to their end.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.values().sum()
    }

    /// Answers that the proxy made itself.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Times to the head of an answer, over all verbs.
    #[must_use]
    pub fn time_to_headers(&self) -> Buckets {
        let mut all = Buckets::default();
        self.time_to_headers
            .iter()
            .for_each(|time_to_headers| all.add(time_to_headers));
        all
    }

    /// Leases that were taken from there.
    #[must_use]
    pub fn leases_taken(&self, from: LeaseFrom) -> u64 {
        self.leases_taken.get(from as usize).copied().unwrap_or(0)
    }

    /// Leases that were retired for that reason.
    #[must_use]
    pub fn leases_retired(&self, why: LeaseEnd) -> u64 {
        self.leases_retired.get(why as usize).copied().unwrap_or(0)
    }

    fn add(&mut self, counts: &Counters) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let add_all = |sums: &mut [u64], counters: &[AtomicU64]| {
            for (sum, counter) in sums.iter_mut().zip(counters) {
                *sum += load(counter);
            }
        };
        counts.requests.for_each(|row, count| {
            *self.requests.entry(row).or_default() += count;
        });
        for (sums, histograms) in [
            (&mut self.time_to_headers, &counts.time_to_headers),
            (&mut self.durations, &counts.durations),
        ] {
            for (sum, histogram) in sums.iter_mut().zip(histograms) {
                histogram.add_to(sum);
            }
        }
        self.received += load(&counts.received);
        self.sent += load(&counts.sent);
        self.connections += load(&counts.connections);
        add_all(&mut self.connections_total, &counts.connections_total);
        add_all(&mut self.handshakes, &counts.handshakes);
        add_all(&mut self.leases_taken, &counts.leases_taken);
        add_all(&mut self.leases_retired, &counts.leases_retired);
        add_all(&mut self.limits_hit, &counts.limits_hit);
        let dials = counts.dials.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, count) in &*dials {
            *self.dials.entry(key.clone()).or_default() += count;
        }
        drop(dials);
        self.watches += counts.open.watches();
        self.tunnels += counts.open.tunnels();
        counts.open.list(&mut self.streams);
        counts.errors.by_reason(&mut self.errors);
        counts.errors.recent(&mut self.recent_errors);
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float in every exposition"
    )]
    fn expose(&self, to: &mut Exposition) {
        for (row, count) in &self.requests {
            let labels = vec![
                ("verb", row.verb.label().into()),
                ("resource", row.resource.label().into()),
                ("code", format!("{:03}", row.code).into()),
                ("protocol", row.protocol.label().into()),
            ];
            to.counter(&families::REQUESTS, labels, *count);
        }
        for (verb, (time_to_headers, durations)) in Verb::ALL
            .iter()
            .zip(self.time_to_headers.iter().zip(&self.durations))
        {
            for (family, buckets) in [
                (&families::REQUEST_TIME_TO_HEADERS, time_to_headers),
                (&families::REQUEST_DURATION, durations),
            ] {
                // A verb that nobody has used is no series, and its sixteen buckets are no lines.
                if buckets.count() > 0 {
                    to.histogram(family, vec![("verb", verb.label().into())], buckets);
                }
            }
        }
        to.counter(&families::RECEIVED, Vec::new(), self.received);
        to.counter(&families::SENT, Vec::new(), self.sent);
        to.gauge(&families::CONNECTIONS, Vec::new(), self.connections as f64);
        to.gauge(&families::WATCHES, Vec::new(), self.watches as f64);
        to.gauge(&families::TUNNELS, Vec::new(), self.tunnels as f64);
        // Closed sets begin at 0, so that the first of each is an increase.
        let mut set = |family, label, values: &[&'static str], counts: &[u64]| {
            for (value, count) in values.iter().zip(counts) {
                to.counter(family, vec![(label, (*value).into())], *count);
            }
        };
        let labels = |protocols: &[Protocol]| -> Vec<_> {
            protocols.iter().map(|protocol| protocol.label()).collect()
        };
        set(
            &families::CONNECTIONS_TOTAL,
            "protocol",
            &labels(Protocol::ALL),
            &self.connections_total,
        );
        let handshakes: Vec<_> = Handshake::ALL.iter().map(|it| it.label()).collect();
        set(
            &families::HANDSHAKES,
            "result",
            &handshakes,
            &self.handshakes,
        );
        let from: Vec<_> = LeaseFrom::ALL.iter().map(|it| it.label()).collect();
        set(&families::LEASES_TAKEN, "from", &from, &self.leases_taken);
        let why: Vec<_> = LeaseEnd::ALL.iter().map(|it| it.label()).collect();
        set(
            &families::LEASES_RETIRED,
            "reason",
            &why,
            &self.leases_retired,
        );
        let limits: Vec<_> = Limit::ALL.iter().map(|it| it.label()).collect();
        set(&families::LIMITS_HIT, "limit", &limits, &self.limits_hit);
        for ((cluster, how), count) in &self.dials {
            let labels = vec![
                ("cluster", cluster.clone().into()),
                ("result", how.label().into()),
            ];
            to.counter(&families::DIALS, labels, *count);
        }
        for (reason, count) in &self.errors {
            to.counter(
                &families::ERRORS,
                vec![("reason", (*reason).into())],
                *count,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{RequestRecord, Resource};

    fn done(status: u16) -> RequestRecord {
        RequestRecord {
            verb: Verb::List,
            resource: Resource::of("", "pods", None),
            status: http::StatusCode::from_u16(status).ok(),
            protocol: Protocol::Http2,
            time_to_headers: Some(Duration::from_millis(3)),
            duration: Some(Duration::from_millis(7)),
        }
    }

    #[test]
    fn workers_are_summed() {
        let metrics = Metrics::new(2);
        for counts in metrics.workers() {
            counts.request(&done(200));
            counts.sent(10);
            counts.dialled("a \"name\"", Dialled::Verify);
            counts.failed("verify", [192, 0, 2, 1].into(), || "no".into());
        }
        let mut exposition = Exposition::new();
        metrics.expose(["new"].into_iter(), &mut exposition);
        let text = exposition.into_text();
        for line in [
            "kube_tls_proxy_requests_total{verb=\"list\",resource=\"pods\",code=\"200\",protocol=\"h2\"} 2",
            "kube_tls_proxy_request_time_to_headers_seconds_bucket{le=\"0.0025\",verb=\"list\"} 0",
            "kube_tls_proxy_request_time_to_headers_seconds_bucket{le=\"0.005\",verb=\"list\"} 2",
            "kube_tls_proxy_request_time_to_headers_seconds_bucket{le=\"+Inf\",verb=\"list\"} 2",
            "kube_tls_proxy_request_duration_seconds_sum{verb=\"list\"} 0.014",
            "kube_tls_proxy_sent_bytes_total 20",
            "kube_tls_proxy_upstream_dials_total{cluster=\"a \\\"name\\\"\",result=\"verify\"} 2",
            "kube_tls_proxy_upstream_dials_total{cluster=\"new\",result=\"verify\"} 0",
            "kube_tls_proxy_errors_total{reason=\"verify\"} 2",
            "kube_tls_proxy_errors_total{reason=\"connect\"} 0",
            "kube_tls_proxy_handshakes_total{result=\"failed\"} 0",
            "kube_tls_proxy_watches 0.0",
            "# TYPE kube_tls_proxy_requests counter",
            "# TYPE kube_tls_proxy_build info",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
