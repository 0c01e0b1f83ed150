//! The counters of each worker, and the guards that count its connections.
//!
//! One row per metric family names the field, its kind and its family. Only the thread of a worker adds to
//! its counters, so counting costs no shared cache line. A scrape sums them.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use super::{
    Dialled, ErrorReason, Exposition, Handshake, LeaseEnd, LeaseFrom, Limit, Protocol, Resource,
    TunnelEnd, Verb, families,
    requests::{Requests, Row, code_label},
    values::{Counter, Gauge, Histogram, MetricValue as _, Per, PerCluster},
};
use crate::{
    activity::Activity,
    clients::Place,
    drain::Drain,
    ending::{EndReason, Ending},
};
use http::StatusCode;

/// The struct, the sum of two of them, and their exposition.
macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident: $kind:ty => $family:ident,)+) => {
        /// What one worker has counted; or, from [`Metrics::sum`], what all workers have counted.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $field: $kind,)+
            activity: Arc<Activity>,
        }

        impl Counters {
            fn merge(&self, other: &Self) {
                $(self.$field.merge(&other.$field);)+
            }

            fn expose(&self, to: &mut Exposition) {
                $(self.$field.expose(&families::$family, Vec::new(), to);)+
            }
        }
    };
}

counters! {
    /// Completed requests.
    requests: Requests => REQUESTS,
    /// From the head of the request to the head of the response.
    time_to_headers: Per<Verb, Histogram> => REQUEST_TIME_TO_HEADERS,
    /// From the head of the request to the end of the response; not for watches, logs and tunnels.
    durations: Per<Verb, Histogram> => REQUEST_DURATION,
    /// Bytes of request bodies and tunnels from clients.
    received: Counter => RECEIVED,
    /// Bytes of response bodies and tunnels to clients.
    sent: Counter => SENT,
    /// Open client connections.
    connections: Gauge => CONNECTIONS,
    /// Client connections after a successful handshake.
    connections_total: Per<Protocol, Counter> => CONNECTIONS_TOTAL,
    /// Handshakes with clients.
    handshakes: Per<Handshake, Counter> => HANDSHAKES,
    /// Leases of upstream connections.
    leases_taken: Per<LeaseFrom, Counter> => LEASES_TAKEN,
    /// Upstream connections that are no longer used.
    leases_retired: Per<LeaseEnd, Counter> => LEASES_RETIRED,
    /// Tunnels that have ended.
    tunnels_ended: Per<TunnelEnd, Counter> => TUNNELS_ENDED,
    /// Dials of apiservers.
    dials: PerCluster<Per<Dialled, Counter>> => DIALS,
    /// Limits that were reached.
    limits_hit: Per<Limit, Counter> => LIMITS_HIT,
    /// Errors to which the proxy itself responded.
    errors: Per<ErrorReason, Counter> => ERRORS,
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct RequestRecord {
    /// What it did.
    pub verb: Verb,
    /// The resource that it named.
    pub resource: Resource,
    /// `None` if the client left before there was a response.
    pub status: Option<StatusCode>,
    /// The protocol of the client.
    pub protocol: Protocol,
    /// From the head of the request to the head of the response.
    pub time_to_headers: Option<Duration>,
    /// From the head of the request to the end of the response. `None` for a response that does not end by itself.
    pub duration: Option<Duration>,
}

impl Counters {
    /// Counts a request that has ended.
    pub fn request(&self, record: &RequestRecord) {
        self.requests.count(Row {
            verb: record.verb,
            resource: record.resource,
            code: code_label(record.status),
            protocol: record.protocol,
        });
        for (histograms, duration) in [
            (&self.time_to_headers, record.time_to_headers),
            (&self.durations, record.duration),
        ] {
            if let (Some(histogram), Some(duration)) = (histograms.get(record.verb), duration) {
                histogram.observe(duration);
            }
        }
    }

    /// The open streams and recent errors of the same worker.
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

/// An open downstream connection: holds its place among all connections, and counts in the gauge. A tunnel keeps both until
/// the tunnel ends.
#[derive(Debug)]
pub struct Connected {
    counters: Arc<Counters>,
    client: SocketAddr,
    place: Place,
    drain: Drain,
    end: OnceLock<Ending>,
}

impl Connected {
    /// Counts a connection after its handshake.
    #[must_use]
    pub fn new(
        counters: Arc<Counters>,
        client: SocketAddr,
        protocol: Protocol,
        place: Place,
        drain: Drain,
    ) -> Self {
        counters.connections.increment();
        counters.connections_total.count(protocol);
        Self {
            counters,
            client,
            place,
            drain,
            end: OnceLock::new(),
        }
    }

    /// Notes how the connection ended, before its requests are dropped. The first call counts.
    pub fn set_end(&self, end: Ending) {
        self.end.set(end).ok();
    }

    /// How the connection ended, or why it is being closed. `None` while it is open.
    #[must_use]
    pub fn end(&self) -> Option<Ending> {
        let closing = || {
            let place = self.place.is_closing().then_some(EndReason::Place);
            self.drain.close_reason().or(place).map(Ending::by_proxy)
        };
        self.end.get().copied().or_else(closing)
    }

    /// The address of the client.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// Its place among all connections.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The counters of the worker that serves the connection.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Counts and lists an error to which the proxy itself responds. Returns `Some` if it may be logged, with the
    /// number of log lines about this client that were suppressed since the last one.
    pub fn record_error(
        &self,
        reason: ErrorReason,
        message: impl FnOnce() -> String,
    ) -> Option<u64> {
        self.counters.errors.count(reason);
        let activity = self.counters.activity();
        activity.record_error(reason.label(), self.client.ip(), message)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.counters.connections.decrement();
    }
}

/// Statistics of one upstream connection: how often it was leased, and why it is no longer used. When dropped, it
/// counts the end once, with the first reason that was set. A connection that was never dialled, such as one of a
/// test, is not counted.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    dialled: OnceLock<DialledBy>,
    end: OnceLock<LeaseEnd>,
}

#[derive(Debug)]
struct DialledBy {
    counters: Arc<Counters>,
    /// Cannot be upgraded any more once a reload has replaced the cluster of the connection.
    in_use: Weak<()>,
}

impl ConnectionStats {
    /// Counts the first lease, of a connection that was just dialled.
    pub fn on_dial(&self, counters: &Arc<Counters>, in_use: &Arc<()>) {
        counters.leases_taken.count(LeaseFrom::Dial);
        let dialled = DialledBy {
            counters: Arc::clone(counters),
            in_use: Arc::downgrade(in_use),
        };
        // A connection is dialled once; a second call would change nothing.
        self.dialled.set(dialled).ok();
    }

    /// Counts another lease, of a connection that was idle.
    pub fn on_reuse(&self) {
        if let Some(dialled) = self.dialled.get() {
            dialled.counters.leases_taken.count(LeaseFrom::Idle);
        }
    }

    /// Sets why the connection is used for no further request. The first reason stays.
    pub fn set_end_reason(&self, reason: LeaseEnd) {
        self.end.set(reason).ok();
    }
}

impl Drop for ConnectionStats {
    fn drop(&mut self) {
        let Some(dialled) = self.dialled.get() else {
            return;
        };
        let reason = self.end.get().copied().unwrap_or(LeaseEnd::Closed);
        // No request looks for a connection of an older generation, so such a connection ages or is closed.
        let is_replaced = dialled.in_use.strong_count() == 0;
        let is_age = matches!(reason, LeaseEnd::Age | LeaseEnd::Closed);
        let reason = if is_age && is_replaced {
            LeaseEnd::Generation
        } else {
            reason
        };
        dialled.counters.leases_retired.count(reason);
    }
}

/// The counters of all workers.
pub struct Metrics {
    workers: Vec<Arc<Counters>>,
    dropped_log_lines: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Counters for this number of workers, all at 0.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let limiter = Arc::default();
        let counters = |_| {
            let activity = Activity::with_limiter(Arc::clone(&limiter));
            Arc::new(Counters {
                activity: Arc::new(activity),
                ..Counters::default()
            })
        };
        Self {
            workers: (0..workers).map(counters).collect(),
            dropped_log_lines: OnceLock::new(),
        }
    }

    /// The counters of each worker.
    #[must_use]
    pub fn workers(&self) -> &[Arc<Counters>] {
        &self.workers
    }

    /// Sets the function that returns the number of dropped log lines. A second call has no effect.
    pub fn read_dropped_log_lines(&self, read: impl Fn() -> u64 + Send + Sync + 'static) {
        drop(self.dropped_log_lines.set(Box::new(read)));
    }

    /// The sum over all workers.
    #[must_use]
    pub fn sum(&self) -> Counters {
        let sum = Counters::default();
        self.workers.iter().for_each(|worker| sum.merge(worker));
        sum
    }

    /// The activity of each worker.
    pub fn activities(&self) -> impl Iterator<Item = &Activity> {
        self.workers.iter().map(|worker| &**worker.activity())
    }

    /// Adds everything that workers have counted. `increase()` does not see the first event of a series
    /// that begins at 1, so each series of a closed set begins at 0, and those of `clusters` too.
    pub fn expose<'a>(&self, clusters: impl Iterator<Item = &'a str>, to: &mut Exposition) {
        let sum = self.sum();
        clusters.for_each(|cluster| sum.dials.begin(cluster));
        sum.expose(to);
        for (family, count) in [
            (
                &families::WATCHES,
                Activity::watches as fn(&Activity) -> u64,
            ),
            (&families::TUNNELS, Activity::tunnels),
        ] {
            let open = Gauge::from(self.activities().map(count).sum::<u64>());
            open.expose(family, Vec::new(), to);
        }
        let dropped = self.dropped_log_lines.get().map_or(0, |read| read());
        to.counter(&families::LOG_LINES_DROPPED, Vec::new(), dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposition_sums_workers() {
        let metrics = Metrics::new(2);
        for counters in metrics.workers() {
            counters.request(&RequestRecord {
                verb: Verb::List,
                resource: Resource::new("", "pods", None),
                status: Some(StatusCode::OK),
                protocol: Protocol::Http2,
                time_to_headers: Some(Duration::from_millis(3)),
                duration: Some(Duration::from_millis(7)),
            });
            counters.sent.add(10);
            counters.dials.count("a \"name\"", Dialled::Verify);
            counters.errors.count(ErrorReason::Verify);
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

    #[test]
    fn connection_end_counts_once_with_its_first_reason() {
        let (counters, in_use) = (Arc::new(Counters::default()), Arc::new(()));
        let stats = ConnectionStats::default();
        stats.on_dial(&counters, &in_use);
        stats.on_reuse();
        stats.set_end_reason(LeaseEnd::Unauthorized);
        stats.set_end_reason(LeaseEnd::GoAway);
        drop(stats);
        drop(ConnectionStats::default());
        let aged = ConnectionStats::default();
        aged.on_dial(&counters, &in_use);
        aged.set_end_reason(LeaseEnd::Age);
        drop(in_use);
        drop(aged);
        assert_eq!(counters.leases_taken.value(LeaseFrom::Dial), 2);
        assert_eq!(counters.leases_taken.value(LeaseFrom::Idle), 1);
        for reason in LeaseEnd::ALL {
            let expected = matches!(reason, LeaseEnd::Unauthorized | LeaseEnd::Generation);
            let counted = counters.leases_retired.value(*reason);
            assert_eq!(counted, u64::from(expected), "{reason:?}");
        }
    }
}
