//! The data of the status page, served as `/status.json`.

use std::{cmp::Reverse, time::SystemTime};

use serde::Serialize;

use super::{
    health::{self, HealthCheck},
    sources::{Sources, unix_seconds},
};
use crate::{
    activity::{Activity, LongLived, MAX_RECENT, StreamInfo},
    drain::Phase,
    upstream::{Cluster, Health},
};

/// The state of the proxy at one moment. All times are Unix time.
#[derive(Debug, Serialize)]
pub(super) struct View {
    version: &'static str,
    now: f64,
    started: f64,
    phase: &'static str,
    checks: Vec<HealthCheck>,
    listening: Vec<String>,
    connections: u64,
    memory_is_short: bool,
    watches: u64,
    tunnels: u64,
    requests: u64,
    errors: u64,
    received_bytes: u64,
    sent_bytes: u64,
    /// Each bucket: its upper bound in seconds (`null`: none) and the responses in that bucket alone.
    time_to_headers_seconds: Vec<(Option<f64>, u64)>,
    certificates: Vec<CertificateView>,
    clusters: Vec<ClusterView>,
    clients: Vec<ClientView>,
    open: Vec<OpenView>,
    reload: ReloadView,
    recent_errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
struct CertificateView {
    names: Vec<String>,
    issuer: String,
    not_after: f64,
}

#[derive(Debug, Serialize)]
struct ClusterView {
    name: String,
    url: String,
    hosts: Vec<String>,
    trusted: Vec<TrustedView>,
    endpoints: Vec<EndpointView>,
}

#[derive(Debug, Serialize)]
struct TrustedView {
    subject: String,
    not_after: f64,
}

#[derive(Debug, Serialize)]
struct EndpointView {
    address: String,
    state: &'static str,
    since: f64,
    connections: usize,
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct ClientView {
    /// An IPv4 address, or the /64 of an IPv6 address.
    client: String,
    connections: usize,
}

#[derive(Debug, Serialize)]
struct OpenView {
    kind: &'static str,
    client: String,
    user_agent: String,
    resource: String,
    namespace: String,
    name: String,
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
    message: String,
    count: u64,
}

impl View {
    /// The state at `now`.
    pub(super) fn new(sources: &Sources, now: SystemTime) -> Self {
        let sum = sources.metrics.sum();
        let report = sources.report.borrow().clone();
        let certificates = report.material.identities.iter().map(|identity| {
            let leaf = identity.summary();
            CertificateView {
                names: identity.names().to_vec(),
                issuer: leaf.issuer.clone(),
                not_after: unix_seconds(leaf.not_after),
            }
        });
        let clusters = report.clusters.iter().zip(&report.material.clusters).map(
            |(cluster, (config, trust))| {
                let trusted = trust.summaries().iter().map(|ca| TrustedView {
                    subject: ca.subject.clone(),
                    not_after: unix_seconds(ca.not_after),
                });
                ClusterView {
                    name: cluster.name().to_owned(),
                    url: config.url(),
                    hosts: config.hosts.clone(),
                    trusted: trusted.collect(),
                    endpoints: endpoints(sources, cluster),
                }
            },
        );
        let time_to_headers = sum.time_to_headers.sum();
        let buckets = time_to_headers
            .buckets()
            .map(|(bound, count)| (Some(bound).filter(|bound| bound.is_finite()), count));
        let activities = || sources.metrics.activities();
        let mut streams: Vec<_> = activities().flat_map(Activity::streams).collect();
        streams.sort_by_key(|stream| stream.since);
        let mut errors: Vec<_> = activities().flat_map(Activity::recent_errors).collect();
        errors.sort_by_key(|error| Reverse(error.at));
        let errors = errors.into_iter().take(MAX_RECENT).map(|error| ErrorView {
            at: sources.unix(error.at),
            reason: error.reason,
            message: error.message,
            count: error.count,
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            now: unix_seconds(now),
            started: unix_seconds(sources.started.0),
            phase: match *sources.phase.borrow() {
                Phase::Serving => "serving",
                Phase::Announced => "stopping",
                Phase::Draining => "draining",
            },
            checks: health::readyz(sources, now, false).checks,
            listening: sources.listening.iter().map(ToString::to_string).collect(),
            connections: sum.connections.get(),
            memory_is_short: sources.memory.1.is_short(),
            watches: activities().map(Activity::watches).sum(),
            tunnels: activities().map(Activity::tunnels).sum(),
            requests: sum.requests.sum(),
            errors: sum.errors.sum(),
            received_bytes: sum.received.get(),
            sent_bytes: sum.sent.get(),
            time_to_headers_seconds: buckets.collect(),
            certificates: certificates.collect(),
            clusters: clusters.collect(),
            clients: largest_clients(sources),
            open: streams
                .iter()
                .take(MAX_STREAMS_SHOWN)
                .map(|stream| OpenView::new(sources, stream))
                .collect(),
            reload: ReloadView {
                at: unix_seconds(report.changed),
                failure: report.failure.clone(),
                needs_restart: report.needs_restart.clone(),
            },
            recent_errors: errors.collect(),
        }
    }
}

impl OpenView {
    fn new(sources: &Sources, stream: &StreamInfo) -> Self {
        Self {
            kind: match stream.kind {
                LongLived::Watch => "watch",
                LongLived::Log => "log",
                LongLived::Tunnel => "tunnel",
            },
            client: stream.client.to_string(),
            user_agent: stream.user_agent.to_string(),
            resource: stream.resource.to_string(),
            namespace: stream.namespace.to_string(),
            name: stream.name.to_string(),
            since: sources.unix(stream.since),
        }
    }
}

fn largest_clients(sources: &Sources) -> Vec<ClientView> {
    let largest = sources.clients.largest(MAX_CLIENTS_SHOWN).into_iter();
    let each = largest.map(|(client, connections)| ClientView {
        client: client.to_string(),
        connections,
    });
    each.collect()
}

fn endpoints(sources: &Sources, cluster: &Cluster) -> Vec<EndpointView> {
    let health = cluster.endpoints().health().into_iter();
    let each = health.map(|endpoint| EndpointView {
        address: endpoint.address.to_string(),
        state: match endpoint.state {
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Unknown => "unknown",
        },
        since: sources.unix(endpoint.since),
        connections: endpoint.connections,
        why: endpoint.why,
    });
    each.collect()
}

/// Clients that the page lists, those with the most connections.
const MAX_CLIENTS_SHOWN: usize = 5;
/// Watches and tunnels that the page lists, the oldest first.
const MAX_STREAMS_SHOWN: usize = 200;
