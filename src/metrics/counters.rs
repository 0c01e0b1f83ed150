//! The counters of each worker, and the guards that count its connections.
//!
//! One row per metric family names the field, its kind and its family. Only the thread of a worker adds to
//! its counters, so counting costs no shared cache line. A scrape sums them.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use super::{
    ClusterLabel, ClusterSlot, Denials, Dialled, ErrorReason, Exposition, Handshake, Label,
    LeaseEnd, LeaseFrom, Limit, PerCluster, Protocol, Resource, TunnelEnd, Verb, families,
    requests::{Requests, Row, code_label},
    values::{Counter, Gauge, Histogram, MetricValue as _, Per},
};
use crate::{
    activity::{Activity, ListedStream, LongLived, StreamInfo},
    clients::{Place, Refusal},
    drain::Drain,
    ending::{EndReason, Ending},
    hosts::PeerAddr,
};
use http::StatusCode;
use tokio::time::Instant;

/// The struct, the sum of two of them, and their exposition.
macro_rules! counters {
    (
        $(#[$of_struct:meta])* $name:ident {
            $($(#[$doc:meta])* $field:ident: $kind:ty => $family:ident,)+
        }
        with { $($own:ident: $own_kind:ty,)* }
    ) => {
        $(#[$of_struct])*
        #[derive(Debug, Default)]
        pub struct $name {
            $($(#[$doc])* pub $field: $kind,)+
            $($own: $own_kind,)*
        }

        impl $name {
            fn merge_families(&self, other: &Self) {
                $(self.$field.merge(&other.$field);)+
            }

            fn expose_families(&self, labels: &[Label], to: &mut Exposition) {
                $(self.$field.expose(&families::$family, labels.to_vec(), to);)+
            }
        }
    };
}

counters! {
    /// What one worker has counted; or, from [`Metrics::sum`], what all workers have counted.
    Counters {
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
        /// Limits that were reached.
        limits_hit: Per<Limit, Counter> => LIMITS_HIT,
    }
    with {
        worker: usize,
        clusters: PerCluster<ClusterCounters>,
        activity: Arc<Activity>,
    }
}

counters! {
    /// What one worker has counted of one cluster.
    ClusterCounters {
        /// Completed requests.
        requests: Requests => REQUESTS,
        /// Requests that have begun and not ended, without watches, followed logs and tunnels.
        in_flight: Gauge => REQUESTS_IN_FLIGHT,
        /// From the head of the request to the head of the response.
        time_to_headers: Per<Verb, Histogram> => REQUEST_TIME_TO_HEADERS,
        /// From the head of the request to the end of the response; not for watches, logs and tunnels.
        durations: Per<Verb, Histogram> => REQUEST_DURATION,
        /// Open watches and followed logs.
        watches: Gauge => WATCHES,
        /// Open tunnels.
        tunnels: Gauge => TUNNELS,
        /// Tunnels that have ended.
        tunnels_ended: Per<TunnelEnd, Counter> => TUNNELS_ENDED,
        /// Dials of apiservers.
        dials: Per<Dialled, Counter> => DIALS,
        /// Errors to which the proxy itself responded.
        errors: Per<ErrorReason, Counter> => ERRORS,
        /// Requests that access rules have denied.
        denied: Denials => ACCESS_DENIED,
    }
    with {}
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct RequestRecord {
    /// The cluster that it went to, from [`Counters::begin_request`].
    pub cluster: ClusterSlot,
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
    /// Whether it became an [`OpenStream`].
    pub is_stream: bool,
}

impl Counters {
    /// Counts a request that goes to this cluster as in flight, until [`Counters::end_request`] or
    /// [`Counters::open_stream`].
    pub fn begin_request(&self, cluster: &ClusterLabel) -> ClusterSlot {
        let (slot, counters) = self.clusters.begin(cluster);
        counters.in_flight.increment();
        slot
    }

    /// Counts a request that has ended.
    pub fn end_request(&self, record: &RequestRecord) {
        let counters = self.clusters.get(record.cluster);
        if record.cluster != ClusterSlot::UNROUTED && !record.is_stream {
            counters.in_flight.decrement();
        }
        counters.requests.count(Row {
            verb: record.verb,
            resource: record.resource,
            code: code_label(record.status),
            protocol: record.protocol,
        });
        for (histograms, duration) in [
            (&counters.time_to_headers, record.time_to_headers),
            (&counters.durations, record.duration),
        ] {
            if let (Some(histogram), Some(duration)) = (histograms.get(record.verb), duration) {
                histogram.observe(duration);
            }
        }
    }

    /// Counts and lists a stream that does not end by itself, instead of its request.
    #[must_use]
    pub fn open_stream(
        self: &Arc<Self>,
        cluster: ClusterSlot,
        info: StreamInfo,
        since: Instant,
    ) -> OpenStream {
        if cluster != ClusterSlot::UNROUTED {
            self.clusters.get(cluster).in_flight.decrement();
        }
        self.open_connection(cluster, info, since)
    }

    /// Counts and lists a stream that is a connection of its own and no request.
    #[must_use]
    pub fn open_connection(
        self: &Arc<Self>,
        cluster: ClusterSlot,
        info: StreamInfo,
        since: Instant,
    ) -> OpenStream {
        let stream = OpenStream {
            counters: Arc::clone(self),
            cluster,
            kind: info.kind,
            _listed: ListedStream::new(Arc::clone(&self.activity), info, since),
        };
        stream.gauge().increment();
        stream
    }

    /// The counters of this cluster.
    #[must_use]
    pub fn cluster(&self, label: &ClusterLabel) -> &ClusterCounters {
        self.clusters.begin(label).1
    }

    /// The counters of each cluster, and those of requests without one.
    #[must_use]
    pub fn clusters(&self) -> &PerCluster<ClusterCounters> {
        &self.clusters
    }

    /// The number of the worker.
    #[must_use]
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The open streams and recent errors of the same worker.
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    fn merge(&self, other: &Self) {
        self.merge_families(other);
        for (label, counters) in other.clusters.clusters() {
            self.cluster(label).merge_families(counters);
        }
        self.clusters
            .unrouted()
            .merge_families(other.clusters.unrouted());
    }

    fn expose(&self, to: &mut Exposition) {
        self.expose_families(&[], to);
        for (label, counters) in self.clusters.clusters() {
            counters.expose_families(&[("cluster", label.name().to_owned().into())], to);
        }
        // A request without a cluster is refused at once, so the gauges would always be 0.
        let (unrouted, labels) = (self.clusters.unrouted(), vec![("cluster", "".into())]);
        unrouted
            .requests
            .expose(&families::REQUESTS, labels.clone(), to);
        unrouted
            .time_to_headers
            .expose(&families::REQUEST_TIME_TO_HEADERS, labels.clone(), to);
        unrouted
            .durations
            .expose(&families::REQUEST_DURATION, labels.clone(), to);
        unrouted.errors.expose(&families::ERRORS, labels, to);
    }
}

/// Counts and lists one watch, followed log or tunnel until dropped.
#[derive(Debug)]
pub struct OpenStream {
    counters: Arc<Counters>,
    cluster: ClusterSlot,
    kind: LongLived,
    _listed: ListedStream,
}

impl OpenStream {
    fn gauge(&self) -> &Gauge {
        let counters = self.counters.clusters.get(self.cluster);
        match self.kind {
            LongLived::Watch | LongLived::Log => &counters.watches,
            LongLived::Tunnel => &counters.tunnels,
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.gauge().decrement();
    }
}

/// An open downstream connection: holds its place among all connections, and counts in the gauge. A tunnel keeps both
/// until the tunnel ends.
#[derive(Debug)]
pub struct Connected {
    counters: Arc<Counters>,
    client: PeerAddr,
    network_peer: Option<PeerAddr>,
    place: Place,
    drain: Drain,
    end: OnceLock<Ending>,
}

impl Connected {
    /// Counts a connection after its handshake. `network_peer` is the load balancer that has named the client.
    #[must_use]
    pub fn new(
        counters: Arc<Counters>,
        client: PeerAddr,
        network_peer: Option<PeerAddr>,
        protocol: Protocol,
        place: Place,
        drain: Drain,
    ) -> Self {
        counters.connections.increment();
        counters.connections_total.count(protocol);
        Self {
            counters,
            client,
            network_peer,
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

    /// The address of the client of the connection.
    #[must_use]
    pub fn client(&self) -> PeerAddr {
        self.client
    }

    /// The load balancer in front, if it has named the client.
    #[must_use]
    pub fn network_peer(&self) -> Option<PeerAddr> {
        self.network_peer
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

    /// The name of a cluster for the log. `None` for a request without one.
    #[must_use]
    pub fn cluster_name(&self, cluster: ClusterSlot) -> Option<&str> {
        let label = self.counters.clusters.label(cluster);
        label.map(ClusterLabel::name)
    }

    /// Counts and lists an error to which the proxy itself responds. Returns `Some` if it may be logged, with the
    /// number of log lines about this client that were suppressed since the last one.
    pub fn record_error(
        &self,
        client: PeerAddr,
        cluster: ClusterSlot,
        reason: ErrorReason,
        message: impl FnOnce() -> String,
    ) -> Option<u64> {
        let clusters = &self.counters.clusters;
        clusters.get(cluster).errors.count(reason);
        let name = clusters.name(cluster);
        let activity = self.counters.activity();
        activity.record_error(reason.label(), &name, client.ip(), message)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.counters.connections.decrement();
    }
}

impl From<Refusal> for Limit {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Connections => Self::Connections,
            Refusal::ClientConnections => Self::ClientConnections,
        }
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
    time_to_headers: Arc<Histogram>,
}

impl ConnectionStats {
    /// Counts the first lease, of a connection that was just dialled. `time_to_headers` is the histogram of its
    /// endpoint and its worker.
    pub fn on_dial(
        &self,
        counters: &Arc<Counters>,
        in_use: &Arc<()>,
        time_to_headers: Arc<Histogram>,
    ) {
        counters.leases_taken.count(LeaseFrom::Dial);
        let dialled = DialledBy {
            counters: Arc::clone(counters),
            in_use: Arc::downgrade(in_use),
            time_to_headers,
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

    /// The time to headers of requests that the endpoint of this connection answers.
    #[must_use]
    pub fn time_to_headers(&self) -> Option<Arc<Histogram>> {
        let dialled = self.dialled.get()?;
        Some(Arc::clone(&dialled.time_to_headers))
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
        let counters = |worker| {
            let activity = Activity::with_limiter(Arc::clone(&limiter));
            Arc::new(Counters {
                worker,
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

    /// Log lines that were lost.
    #[must_use]
    pub fn dropped_log_lines(&self) -> u64 {
        self.dropped_log_lines.get().map_or(0, |read| read())
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

    /// Adds everything that workers have counted. `increase()` does not see the first event of a series that begins
    /// at 1, so each series of a closed set begins at 0, and those of `clusters` too, each with the number of its
    /// access rules.
    pub fn expose<'a>(
        &self,
        clusters: impl Iterator<Item = (&'a ClusterLabel, usize)>,
        to: &mut Exposition,
    ) {
        let sum = self.sum();
        for (cluster, rules) in clusters {
            let (_, counters) = sum.clusters.begin(cluster);
            counters.denied.begin(rules);
        }
        sum.expose(to);
        let dropped = Counter::from(self.dropped_log_lines());
        dropped.expose(&families::LOG_LINES_DROPPED, Vec::new(), to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{ClusterLabels, ExpositionFormat};

    #[test]
    fn exposition_sums_workers() {
        let metrics = Metrics::new(2);
        let mut labels = ClusterLabels::default();
        let (named, new) = (labels.label("a \"name\""), labels.label("new"));
        for counters in metrics.workers() {
            counters.end_request(&RequestRecord {
                cluster: counters.begin_request(&named),
                verb: Verb::List,
                resource: Resource::new("", "pods", None),
                status: Some(StatusCode::OK),
                protocol: Protocol::Http2,
                time_to_headers: Some(Duration::from_millis(3)),
                duration: Some(Duration::from_millis(7)),
                is_stream: false,
            });
            counters.begin_request(&named);
            counters.sent.add(10);
            counters.cluster(&named).dials.count(Dialled::Verify);
            counters.cluster(&named).errors.count(ErrorReason::Verify);
        }
        let mut exposition = Exposition::new();
        metrics.expose([(&new, 1)].into_iter(), &mut exposition);
        let text = exposition.into_text(ExpositionFormat::Prometheus);
        for line in [
            "kube_tls_proxy_requests_total{cluster=\"a \\\"name\\\"\",verb=\"list\",resource=\"pods\",code=\"200\",protocol=\"h2\"} 2",
            "kube_tls_proxy_requests_in_flight{cluster=\"a \\\"name\\\"\"} 2",
            "kube_tls_proxy_requests_in_flight{cluster=\"new\"} 0",
            "kube_tls_proxy_request_time_to_headers_seconds_bucket{cluster=\"a \\\"name\\\"\",verb=\"list\",le=\"0.0025\"} 0",
            "kube_tls_proxy_request_time_to_headers_seconds_bucket{cluster=\"a \\\"name\\\"\",verb=\"list\",le=\"0.005\"} 2",
            "kube_tls_proxy_request_duration_seconds_sum{cluster=\"a \\\"name\\\"\",verb=\"list\"} 0.014",
            "kube_tls_proxy_sent_bytes_total 20",
            "kube_tls_proxy_upstream_dials_total{cluster=\"a \\\"name\\\"\",result=\"verify\"} 2",
            "kube_tls_proxy_upstream_dials_total{cluster=\"new\",result=\"verify\"} 0",
            "kube_tls_proxy_errors_total{cluster=\"a \\\"name\\\"\",reason=\"verify\"} 2",
            "kube_tls_proxy_errors_total{cluster=\"new\",reason=\"connect\"} 0",
            "kube_tls_proxy_errors_total{cluster=\"\",reason=\"rejected\"} 0",
            "kube_tls_proxy_access_denied_total{cluster=\"new\",rule=\"1\"} 0",
            "kube_tls_proxy_handshakes_total{result=\"failed\"} 0",
            "kube_tls_proxy_watches{cluster=\"new\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn stream_counts_instead_of_its_request_until_it_ends() {
        let counters = Arc::new(Counters::default());
        let label = ClusterLabels::default().label("prod");
        let gauges = || {
            let of_cluster = counters.cluster(&label);
            let gauges = [
                &of_cluster.in_flight,
                &of_cluster.watches,
                &of_cluster.tunnels,
            ];
            (gauges.map(Gauge::get), counters.activity().streams().len())
        };
        let slot = counters.begin_request(&label);
        assert_eq!(gauges(), ([1, 0, 0], 0));
        let info = StreamInfo {
            kind: LongLived::Tunnel,
            cluster: "prod".into(),
            client: "192.0.2.1:1".parse().unwrap(),
            user_agent: StreamInfo::text("kubectl/v1.36"),
            user: None,
            resource: "pods/exec".into(),
            namespace: "default".into(),
            name: "web-0".into(),
        };
        let stream = counters.open_stream(slot, info, Instant::now());
        assert_eq!(gauges(), ([0, 0, 1], 1));
        counters.end_request(&RequestRecord {
            cluster: slot,
            verb: Verb::Connect,
            resource: Resource::new("", "pods", Some("exec")),
            status: Some(StatusCode::SWITCHING_PROTOCOLS),
            protocol: Protocol::Http1,
            time_to_headers: None,
            duration: None,
            is_stream: true,
        });
        drop(stream);
        assert_eq!(gauges(), ([0, 0, 0], 0));
        assert_eq!(counters.cluster(&label).requests.sum(), 1);
    }

    #[test]
    fn connection_end_counts_once_with_its_first_reason() {
        let (counters, in_use) = (Arc::new(Counters::default()), Arc::new(()));
        let stats = ConnectionStats::default();
        stats.on_dial(&counters, &in_use, Arc::default());
        stats.on_reuse();
        stats.set_end_reason(LeaseEnd::Unauthorized);
        stats.set_end_reason(LeaseEnd::GoAway);
        drop(stats);
        drop(ConnectionStats::default());
        let aged = ConnectionStats::default();
        aged.on_dial(&counters, &in_use, Arc::default());
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
