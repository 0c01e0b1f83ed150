//! What the status page shows, as JSON.

use std::time::SystemTime;

use serde::Serialize;

use super::{health, sources::Sources};
use crate::{
    drain::Phase,
    metrics::{LongLived, StreamInfo, unix_seconds},
    upstream::{Cluster, Health},
};

/// All of it at one moment; times are Unix time.
#[derive(Debug, Serialize)]
pub(super) struct View {
    version: &'static str,
    now: f64,
    started: f64,
    phase: &'static str,
    checks: Vec<CheckView>,
    listening: Vec<String>,
    connections: u64,
    watches: u64,
    tunnels: u64,
    requests: u64,
    errors: u64,
    received_bytes: u64,
    sent_bytes: u64,
    /// Upper bound in seconds (`null`: none) and how many answers' heads took no longer, bucket by bucket.
    time_to_headers_seconds: Vec<(Option<f64>, u64)>,
    certificates: Vec<CertificateView>,
    clusters: Vec<ClusterView>,
    open: Vec<OpenView>,
    reload: ReloadView,
    recent_errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
struct CheckView {
    name: &'static str,
    failure: Option<String>,
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
    sentence: String,
    times: u64,
}

impl View {
    /// What is so now.
    pub(super) fn of(sources: &Sources, now: SystemTime) -> Self {
        let snapshot = sources.metrics.snapshot();
        let report = sources.report.borrow().clone();
        let checks = health::readyz(sources, now).checks.into_iter();
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
        let heads = snapshot.time_to_headers();
        let heads = heads
            .bounded()
            .map(|(bound, count)| (Some(bound).filter(|bound| bound.is_finite()), count));
        let open = snapshot.streams.iter().take(MOST_SHOWN);
        Self {
            version: env!("CARGO_PKG_VERSION"),
            now: unix_seconds(now),
            started: unix_seconds(sources.started.0),
            phase: match *sources.phase.borrow() {
                Phase::Serving => "serving",
                Phase::Announced => "stopping",
                Phase::Draining => "draining",
            },
            checks: checks
                .map(|check| CheckView {
                    name: check.name,
                    failure: check.failure,
                })
                .collect(),
            listening: sources.listening.iter().map(ToString::to_string).collect(),
            connections: snapshot.connections,
            watches: snapshot.watches,
            tunnels: snapshot.tunnels,
            requests: snapshot.requests(),
            errors: snapshot.errors(),
            received_bytes: snapshot.received,
            sent_bytes: snapshot.sent,
            time_to_headers_seconds: heads.collect(),
            certificates: certificates.collect(),
            clusters: clusters.collect(),
            open: open.map(|holder| OpenView::of(sources, holder)).collect(),
            reload: ReloadView {
                at: unix_seconds(report.changed),
                failure: report.failure.clone(),
                needs_restart: report.needs_restart.clone(),
            },
            recent_errors: snapshot
                .recent_errors
                .iter()
                .map(|error| ErrorView {
                    at: sources.unix(error.at),
                    reason: error.reason,
                    sentence: error.sentence.clone(),
                    times: error.times,
                })
                .collect(),
        }
    }
}

impl OpenView {
    fn of(sources: &Sources, holder: &StreamInfo) -> Self {
        Self {
            kind: match holder.kind {
                LongLived::Watch => "watch",
                LongLived::Log => "log",
                LongLived::Tunnel => "tunnel",
            },
            client: holder.client.to_string(),
            user_agent: holder.user_agent.to_string(),
            resource: holder.resource.to_string(),
            namespace: holder.namespace.to_string(),
            name: holder.name.to_string(),
            since: sources.unix(holder.since),
        }
    }
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

/// Watches and tunnels that the page lists; nobody reads more.
const MOST_SHOWN: usize = 200;
