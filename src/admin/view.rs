//! The data of the status page, served as `/status.json`.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::SystemTime,
};

use serde::Serialize;

use super::{
    health::{self, HealthCheck},
    history::{Charts, History, LastMinute, of_class},
    problems,
    sources::{Sources, unix_seconds},
};
use crate::{
    activity::{Activity, LongLived, MAX_RECENT, RecentError, StreamGroup, StreamInfo},
    drain::Phase,
    metrics::{ClusterCounters, CodeClass, quantile},
    pki::{CertSummary, ClientCa, RevocationLists},
    reload::ClientMaterial,
    upstream::{Cluster, Health},
};

/// The state of the proxy at one moment. All times are Unix time.
#[derive(Debug, Serialize)]
pub(super) struct View {
    version: &'static str,
    /// Where the documentation is; empty if the package does not say.
    homepage: &'static str,
    now: f64,
    started: f64,
    phase: &'static str,
    /// `ready`, `problems` (ready, with problems), `outage` (ready, but no apiserver can be reached) or `not_ready`.
    state: &'static str,
    problems: Vec<String>,
    checks: Vec<HealthCheck>,
    listening: Vec<String>,
    connections: u64,
    connections_limit: usize,
    memory_is_short: bool,
    /// TLS handshakes with clients in the last minute: all, and those that failed.
    handshakes_per_second: f64,
    failed_handshakes_per_second: f64,
    requests_in_flight: u64,
    watches: u64,
    tunnels: u64,
    requests: u64,
    errors: u64,
    received_bytes: u64,
    sent_bytes: u64,
    charts: Charts,
    certificates: Vec<CertificateView>,
    clusters: Vec<ClusterView>,
    clients: Vec<ClientView>,
    open_tunnels: Vec<OpenView>,
    /// Equal watches are one entry.
    open_watches: Vec<OpenView>,
    reload: ReloadView,
    recent_errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
struct CertificateView {
    names: Vec<String>,
    issuer: String,
    not_after: f64,
    /// Whether it should have been renewed by now.
    expires_soon: bool,
}

#[derive(Debug, Serialize)]
struct ClusterView {
    name: String,
    url: String,
    /// The outbound proxy on the way to it, without credentials; `null`: none. The endpoints are then those of this
    /// proxy.
    outbound_proxy: Option<String>,
    hosts: Vec<String>,
    /// Whether its connections are passed through, so that it has tunnels and no requests.
    passthrough: bool,
    /// In the last minute.
    requests_per_second: f64,
    /// In the last minute: responses with a status of 500 or more.
    server_errors_per_second: f64,
    /// In the last minute: responses with the status 401.
    unauthorized_per_second: f64,
    requests_in_flight: u64,
    watches: u64,
    tunnels: u64,
    /// How many there are; 0 means that every request may pass.
    access_rules: usize,
    /// Requests that the rules have denied since the start.
    denied_requests: u64,
    trusted: Vec<TrustedView>,
    endpoints: Vec<EndpointView>,
    /// `null`: the cluster is not asked for the addresses of its apiservers.
    discovery: Option<DiscoveryView>,
    /// `null`: the cluster asks for no client certificates.
    client_certificates: Option<ClientCertificatesView>,
}

/// What a cluster has said about its apiservers.
#[derive(Debug, Serialize)]
struct DiscoveryView {
    /// The apiservers that it has named last; 0: the address of the Service is used.
    found: usize,
    /// `null`: it has named none so far.
    changed: Option<f64>,
    /// Why the last attempt failed; `null` if it succeeded.
    failure: Option<String>,
}

/// The certificates of a cluster that authenticates users by client certificate.
#[derive(Debug, Serialize)]
struct ClientCertificatesView {
    /// `null`: the proxy names users with a token that may impersonate them.
    front_proxy: Option<TrustedView>,
    /// The CAs that issue the certificates of users.
    users: Vec<TrustedView>,
    /// `null`: nothing is checked for revocation.
    revocation_lists: Option<Vec<RevocationListView>>,
}

#[derive(Debug, Serialize)]
struct RevocationListView {
    issuer: String,
    /// `current`, `outdated`, or `missing` for a CA of users without a list. The certificates of a CA count only while
    /// its list is current.
    state: &'static str,
    /// `null`: it is missing.
    next_update: Option<f64>,
    revoked: usize,
}

#[derive(Debug, Serialize)]
struct TrustedView {
    subject: String,
    not_after: f64,
    expires_soon: bool,
}

#[derive(Debug, Serialize)]
struct EndpointView {
    address: String,
    state: &'static str,
    since: f64,
    connections: usize,
    /// Time to headers in seconds in the last minute; `null` without a response.
    p50: Option<f64>,
    p99: Option<f64>,
    /// How long connections took to open, in seconds since the address is known; `null` without a connection.
    tcp_p50: Option<f64>,
    tls_p50: Option<f64>,
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct ClientView {
    /// An IPv4 address, or the /64 of an IPv6 address.
    client: String,
    /// In the last minute.
    requests_per_second: f64,
    connections: usize,
    /// Responses with the status 401, since the proxy knows the client.
    unauthorized: u64,
}

#[derive(Debug, Serialize)]
struct OpenView {
    kind: &'static str,
    cluster: String,
    /// With its port, except for watches.
    client: String,
    user_agent: String,
    /// `null`: the apiserver has verified no name, or the configuration does not want it.
    user: Option<Box<str>>,
    /// Who has issued the token of the user.
    issuer: Option<Box<str>>,
    resource: String,
    /// `null`: the watches differ.
    namespace: Option<Box<str>>,
    /// `null`: the watches differ.
    name: Option<Box<str>>,
    count: usize,
    /// When the oldest one began.
    since: f64,
}

#[derive(Debug, Serialize)]
struct ReloadView {
    at: f64,
    failure: Option<String>,
    needs_restart: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct ErrorView {
    at: f64,
    reason: &'static str,
    /// Empty if the proxy refused the request before it chose a cluster.
    cluster: String,
    message: String,
    count: u64,
}

impl View {
    /// The state at `now`.
    pub(super) fn new(sources: &Sources, history: &History, now: SystemTime) -> Self {
        let sum = sources.metrics.sum();
        let minute = history.last_minute(sources);
        let report = sources.report.borrow().clone();
        let certificates = report.material.identities.iter().map(|identity| {
            let leaf = identity.summary();
            CertificateView {
                names: identity.names().to_vec(),
                issuer: leaf.issuer.clone(),
                not_after: unix_seconds(leaf.not_after),
                expires_soon: leaf.expires_soon(now),
            }
        });
        let clusters =
            report
                .clusters
                .iter()
                .zip(&report.material.clusters)
                .map(|(cluster, material)| {
                    let config = &material.config;
                    let trusted = material.trust.summaries().iter();
                    let trusted = trusted.map(|ca| TrustedView::new(ca, now));
                    let clients = material.clients.as_ref();
                    let (requests, counters) = (
                        minute.requests(cluster.name()),
                        sum.cluster(cluster.label()),
                    );
                    ClusterView {
                        name: cluster.name().to_owned(),
                        url: config.url(),
                        outbound_proxy: config.outbound.as_ref().map(ToString::to_string),
                        hosts: config.public_names(),
                        passthrough: config.passthrough,
                        requests_per_second: requests.iter().sum(),
                        server_errors_per_second: of_class(&requests, CodeClass::ServerError),
                        unauthorized_per_second: of_class(&requests, CodeClass::Unauthorized),
                        requests_in_flight: counters.in_flight.get(),
                        watches: counters.watches.get(),
                        tunnels: counters.tunnels.get(),
                        access_rules: config.access.len(),
                        denied_requests: counters.denied.sum(),
                        trusted: trusted.collect(),
                        endpoints: endpoints(sources, cluster, &minute),
                        discovery: discovery(sources, cluster),
                        client_certificates: clients
                            .map(|clients| ClientCertificatesView::new(clients, now)),
                    }
                });
        let (clusters, certificates) = (clusters.collect(), certificates.collect());
        let readyz = health::readyz(sources, now, false);
        let has_apiserver = health::readyz(sources, now, true).passed();
        let connections = sum.connections.get();
        let problems = problems::problems(sources, &report, &minute, connections, now);
        let (handshakes, failed_handshakes) = minute.handshakes();
        let activities = || sources.metrics.activities();
        let (tunnels, watches) = open_streams(activities().flat_map(Activity::streams));
        let of_clusters =
            |number: fn(&ClusterCounters) -> u64| sum.clusters().values().map(number).sum();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            homepage: env!("CARGO_PKG_HOMEPAGE"),
            now: unix_seconds(now),
            started: unix_seconds(sources.started.0),
            phase: match *sources.phase.borrow() {
                Phase::Serving => "serving",
                Phase::Announced => "stopping",
                Phase::Draining => "draining",
            },
            // Another instance would not help, so the proxy stays ready in an outage. But nothing works.
            state: match (readyz.passed(), has_apiserver, problems.is_empty()) {
                (false, _, _) => "not_ready",
                (true, false, _) => "outage",
                (true, true, false) => "problems",
                (true, true, true) => "ready",
            },
            problems,
            checks: readyz.checks,
            listening: sources
                .listening
                .load()
                .iter()
                .map(ToString::to_string)
                .collect(),
            connections,
            connections_limit: sources.settings.load().limits.connections,
            memory_is_short: sources.memory.1.is_short(),
            handshakes_per_second: handshakes,
            failed_handshakes_per_second: failed_handshakes,
            requests_in_flight: of_clusters(|it| it.in_flight.get()),
            watches: of_clusters(|it| it.watches.get()),
            tunnels: of_clusters(|it| it.tunnels.get()),
            requests: of_clusters(|it| it.requests.sum()),
            errors: of_clusters(|it| it.errors.sum()),
            received_bytes: sum.received.get(),
            sent_bytes: sum.sent.get(),
            charts: history.charts(),
            certificates,
            clusters,
            clients: busy_clients(sources, &minute),
            open_tunnels: rows(sources, tunnels),
            open_watches: rows(sources, watches),
            reload: ReloadView {
                at: unix_seconds(report.changed),
                failure: report.failure.clone(),
                needs_restart: report.needs_restart.clone(),
            },
            recent_errors: recent_errors(sources, activities().flat_map(Activity::recent_errors)),
        }
    }
}

impl TrustedView {
    fn new(certificate: &CertSummary, now: SystemTime) -> Self {
        Self {
            subject: certificate.subject.clone(),
            not_after: unix_seconds(certificate.not_after),
            expires_soon: certificate.expires_soon(now),
        }
    }
}

impl ClientCertificatesView {
    fn new(clients: &ClientMaterial, now: SystemTime) -> Self {
        let cas = clients.ca.anchors().summaries();
        let front_proxy = clients.naming.front_proxy();
        Self {
            front_proxy: front_proxy.map(|identity| TrustedView::new(identity.summary(), now)),
            users: cas.iter().map(|ca| TrustedView::new(ca, now)).collect(),
            revocation_lists: (clients.ca.revoked()).map(|lists| lists_of(&clients.ca, lists, now)),
        }
    }
}

/// The revocation lists, and the CAs that have none.
fn lists_of(ca: &ClientCa, lists: &RevocationLists, now: SystemTime) -> Vec<RevocationListView> {
    let present = lists.summaries().iter().map(|list| RevocationListView {
        issuer: list.issuer.clone(),
        state: match list.next_update < now {
            true => "outdated",
            false => "current",
        },
        next_update: Some(unix_seconds(list.next_update)),
        revoked: list.revoked,
    });
    let missing = ca.without_list().map(|ca| RevocationListView {
        issuer: ca.subject.clone(),
        state: "missing",
        next_update: None,
        revoked: 0,
    });
    present.chain(missing).collect()
}

/// The tunnels, the oldest first, and the other streams, the largest row first. The rows of several workers are joined.
fn open_streams(
    of_workers: impl Iterator<Item = StreamGroup>,
) -> (Vec<StreamGroup>, Vec<StreamGroup>) {
    let mut joined: HashMap<Arc<StreamInfo>, StreamGroup> = HashMap::new();
    for group in of_workers {
        match joined.entry(Arc::clone(&group.info)) {
            Entry::Vacant(free) => {
                free.insert(group);
            }
            Entry::Occupied(mut same) => {
                let same = same.get_mut();
                same.place = same.place.common(&group.place);
                same.since = same.since.min(group.since);
                same.count += group.count;
            }
        }
    }
    let is_tunnel = |group: &StreamGroup| group.info.kind == LongLived::Tunnel;
    let (tunnels, watches) = joined.into_values().partition(is_tunnel);
    let (mut tunnels, mut watches) = (fair_share(tunnels), fair_share(watches));
    tunnels.sort_by_key(|group| group.since);
    watches.sort_by_key(|group| (Reverse(group.count), group.since));
    (tunnels, watches)
}

/// At most [`MAX_ROWS_SHOWN`] rows: one of each client before the second one of any. A client is an address and a
/// `User-Agent`, because many clients may share the address of a NAT.
fn fair_share(mut groups: Vec<StreamGroup>) -> Vec<StreamGroup> {
    groups.sort_by_key(|group| group.since);
    let mut of_client = HashMap::new();
    let ranked = groups.into_iter().map(|group| {
        let client = (group.info.client.ip(), group.info.user_agent.clone());
        let rank = of_client.entry(client).or_insert(0);
        *rank += 1;
        (*rank, group)
    });
    let mut ranked: Vec<(u32, StreamGroup)> = ranked.collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.truncate(MAX_ROWS_SHOWN);
    ranked.into_iter().map(|(_, group)| group).collect()
}

fn rows(sources: &Sources, groups: Vec<StreamGroup>) -> Vec<OpenView> {
    let each = groups.into_iter().map(|group| {
        let info = &group.info;
        OpenView {
            kind: match info.kind {
                LongLived::Watch => "watch",
                LongLived::Log => "log",
                LongLived::Tunnel => "tunnel",
            },
            cluster: info.cluster.to_string(),
            client: match info.client.port() {
                0 => info.client.ip().to_string(),
                _ => info.client.to_string(),
            },
            user_agent: info.user_agent.to_string(),
            user: info.user.as_ref().map(|user| user.id.clone()),
            issuer: info.user.as_ref().map(|user| user.issuer.clone()),
            resource: info.resource.to_string(),
            namespace: group.place.namespace,
            name: group.place.name,
            count: group.count,
            since: sources.unix(group.since),
        }
    });
    each.collect()
}

/// The newest first. The same error of several workers is one entry.
fn recent_errors(
    sources: &Sources,
    of_workers: impl Iterator<Item = RecentError>,
) -> Vec<ErrorView> {
    let mut joined: Vec<RecentError> = Vec::new();
    for error in of_workers {
        let is_same = |other: &&mut RecentError| {
            (other.reason, &other.cluster, &other.message)
                == (error.reason, &error.cluster, &error.message)
        };
        if let Some(same) = joined.iter_mut().find(is_same) {
            same.at = same.at.max(error.at);
            same.count += error.count;
        } else {
            joined.push(error);
        }
    }
    joined.sort_by_key(|error| Reverse(error.at));
    let each = joined.into_iter().take(MAX_RECENT).map(|error| ErrorView {
        at: sources.unix(error.at),
        reason: error.reason,
        cluster: error.cluster.to_string(),
        message: error.message,
        count: error.count,
    });
    each.collect()
}

/// The clients with the most requests, then those with the most connections.
fn busy_clients(sources: &Sources, minute: &LastMinute) -> Vec<ClientView> {
    let mut clients = minute.busiest_clients(MAX_CLIENTS_SHOWN);
    for (largest, _) in sources.clients.largest(MAX_CLIENTS_SHOWN) {
        if !clients.iter().any(|(client, _)| *client == largest) {
            clients.push((largest, minute.requests_of_client(largest)));
        }
    }
    let each = clients
        .into_iter()
        .map(|(client, requests_per_second)| ClientView {
            client: client.to_string(),
            requests_per_second,
            connections: sources.clients.connections(client),
            unauthorized: sources.clients.unauthorized(client),
        });
    each.collect()
}

fn discovery(sources: &Sources, cluster: &Cluster) -> Option<DiscoveryView> {
    let report = cluster.endpoints().discovery()?;
    Some(DiscoveryView {
        found: report.found,
        changed: report.changed.map(|at| sources.unix(at)),
        failure: report.failure,
    })
}

fn endpoints(sources: &Sources, cluster: &Cluster, minute: &LastMinute) -> Vec<EndpointView> {
    let health = cluster.endpoints().health().into_iter();
    let each = health.map(|endpoint| {
        let [p50, p99] = minute.times(cluster.name(), endpoint.address);
        EndpointView {
            address: endpoint.address.to_string(),
            state: match endpoint.state {
                Health::Healthy => "healthy",
                Health::Unhealthy => "unhealthy",
                Health::Unknown => "unknown",
            },
            since: sources.unix(endpoint.since),
            connections: endpoint.connections,
            p50,
            p99,
            tcp_p50: quantile(&endpoint.connect_times.tcp.counts(), 0.5),
            tls_p50: quantile(&endpoint.connect_times.tls.counts(), 0.5),
            why: endpoint.why,
        }
    });
    each.collect()
}

/// Clients that the page lists, those with the most requests, and those with the most connections.
const MAX_CLIENTS_SHOWN: usize = 5;
/// Rows of tunnels that the page lists, and of watches.
const MAX_ROWS_SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::activity::StreamPlace;

    fn group(kind: LongLived, agent: &str, resource: u32) -> StreamGroup {
        StreamGroup {
            info: Arc::new(StreamInfo {
                kind,
                cluster: "prod".into(),
                client: "192.0.2.1:0".parse().unwrap(),
                user_agent: agent.into(),
                user: None,
                resource: resource.to_string().into(),
                namespace: Box::default(),
                name: Box::default(),
            }),
            place: StreamPlace::default(),
            count: 1,
            since: Instant::now(),
        }
    }

    #[test]
    fn client_with_many_rows_leaves_room_for_others() {
        let many = |agent| (0..400).map(move |resource| group(LongLived::Watch, agent, resource));
        let late = group(LongLived::Watch, "late", 0);
        let exec = group(LongLived::Tunnel, "busy", 0);
        let all = many("busy").chain(many("busy too")).chain([late, exec]);
        let (tunnels, watches) = open_streams(all);
        assert_eq!((tunnels.len(), watches.len()), (1, MAX_ROWS_SHOWN));
        let of = |agent: &str| {
            let rows = watches.iter();
            rows.filter(|row| &*row.info.user_agent == agent).count()
        };
        assert_eq!((of("late"), of("busy too")), (1, 49));
    }

    #[test]
    fn rows_of_several_workers_are_joined() {
        let equal = (0..3).map(|_| group(LongLived::Watch, "controller", 7));
        let (_, watches) = open_streams(equal.chain([group(LongLived::Watch, "other", 7)]));
        let counts: Vec<_> = watches.iter().map(|row| row.count).collect();
        assert_eq!(counts, [3, 1]);
    }
}
