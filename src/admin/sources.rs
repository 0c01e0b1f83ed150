//! The data of health, metrics and the status page, and the metrics that no worker counts.

use std::{fs, net::SocketAddr, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

use crate::{
    acme::AcmeReports,
    clients::ClientTable,
    config::LiveSettings,
    drain::Phase,
    heartbeat::Heartbeats,
    memory::{MemoryPressure, resident_bytes},
    metrics::{
        self, Counter, Exposition, ExpositionFormat, Family, Issued, Label, MetricValue as _,
        Metrics, Reloaded,
    },
    pki::{Identity, RevocationLists},
    process,
    reload::ReloadReport,
    upstream::Health,
};

/// All data that the admin port serves.
#[derive(Debug)]
pub struct Sources {
    /// The counters of the workers.
    pub metrics: Arc<Metrics>,
    /// The heartbeats of the workers.
    pub heartbeats: Heartbeats,
    /// The configuration and files in use, and the result of the last reload.
    pub report: watch::Receiver<ReloadReport>,
    /// The certificates that come from a CA by ACME.
    pub acme: Arc<AcmeReports>,
    /// The phase between start and end of the process.
    pub phase: watch::Receiver<Phase>,
    /// The addresses that clients connect to.
    pub listening: Arc<ArcSwap<Vec<SocketAddr>>>,
    /// The clients and their connections.
    pub clients: Arc<ClientTable>,
    /// The limits and timeouts.
    pub settings: LiveSettings,
    /// The memory that the process may use, and whether it is short.
    pub memory: (u64, Arc<MemoryPressure>),
    /// The start of the process on both clocks.
    pub started: (SystemTime, Instant),
}

impl Sources {
    /// An instant in Unix time. Equal instants give equal numbers even if the wall clock was changed in between.
    pub(super) fn unix(&self, at: Instant) -> f64 {
        let (clock, instant) = self.started;
        unix_seconds(clock + at.saturating_duration_since(instant))
    }

    /// All metrics in this format.
    pub(super) fn exposition(&self, format: ExpositionFormat) -> String {
        let mut exposition = Exposition::new();
        let report = self.report.borrow().clone();
        let configs = report.material.clusters.iter();
        let rules = configs.map(|cluster| cluster.config.access.len());
        let clusters = report.clusters.iter().map(|cluster| cluster.label());
        let clusters = clusters.zip(rules);
        self.metrics.expose(clusters, &mut exposition);
        self.expose(&report, &mut exposition);
        exposition.into_text(format)
    }

    fn expose(&self, report: &ReloadReport, to: &mut Exposition) {
        let version = vec![("version", env!("CARGO_PKG_VERSION").into())];
        to.info(&metrics::BUILD, version);
        for identity in &report.material.identities {
            let name = vec![("name", first_name(identity).into())];
            let leaf = identity.summary();
            let (not_before, not_after) =
                (unix_seconds(leaf.not_before), unix_seconds(leaf.not_after));
            to.number(&metrics::CERTIFICATE_NOT_BEFORE, name.clone(), not_before);
            to.number(&metrics::CERTIFICATE_NOT_AFTER, name, not_after);
        }
        for certificate in self.acme.all() {
            let name = certificate.names.first().cloned().unwrap_or_default();
            for (result, count) in [
                (Issued::Ok, certificate.renewed),
                (Issued::Failed, certificate.failed),
            ] {
                let labels = vec![
                    ("name", name.clone().into()),
                    ("result", result.label().into()),
                ];
                Counter::from(count).expose(&metrics::ACME_ORDERS, labels, to);
            }
            if let Some(next) = certificate.next {
                let labels = vec![("name", name.into())];
                to.number(&metrics::ACME_NEXT_ORDER, labels, unix_seconds(next));
            }
        }
        for cluster in &report.material.clusters {
            let cas = cluster.trust.summaries().iter();
            if let Some(ca) = cas.min_by_key(|ca| ca.not_after) {
                let name = vec![("cluster", cluster.config.name.clone().into())];
                let (not_before, not_after) =
                    (unix_seconds(ca.not_before), unix_seconds(ca.not_after));
                to.number(&metrics::CA_NOT_BEFORE, name.clone(), not_before);
                to.number(&metrics::CA_NOT_AFTER, name, not_after);
            }
        }
        for (cluster, clients) in report.material.clients() {
            let mut date = |family: &'static Family, at: Option<SystemTime>| {
                let name = vec![("cluster", cluster.name.clone().into())];
                if let Some(at) = at {
                    to.number(family, name, unix_seconds(at));
                }
            };
            let cas = clients.ca.anchors().summaries().iter();
            let lists = clients.ca.revoked().map(RevocationLists::valid_until);
            let front_proxy = clients.naming.front_proxy();
            date(
                &metrics::FRONT_PROXY_NOT_AFTER,
                front_proxy.map(|identity| identity.summary().not_after),
            );
            date(
                &metrics::CLIENT_CA_NOT_AFTER,
                cas.map(|ca| ca.not_after).min(),
            );
            date(&metrics::REVOCATION_LIST_NEXT_UPDATE, lists);
        }
        for cluster in &report.clusters {
            if let Some(discovery) = cluster.endpoints().discovery() {
                let name = || vec![("cluster", cluster.name().to_owned().into())];
                let works = f64::from(u8::from(discovery.failure.is_none()));
                to.number(&metrics::DISCOVERY_SUCCESSFUL, name(), works);
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "the values of an exposition are floats"
                )]
                let found = discovery.found as f64;
                to.number(&metrics::DISCOVERED_ENDPOINTS, name(), found);
                if let Some(changed) = discovery.changed {
                    to.number(&metrics::DISCOVERY_CHANGED, name(), self.unix(changed));
                }
                let failures = Counter::from(discovery.failures);
                failures.expose(&metrics::DISCOVERY_FAILURES, name(), to);
            }
            for endpoint in cluster.endpoints().health() {
                let labels = vec![
                    ("cluster", cluster.name().to_owned().into()),
                    ("endpoint", endpoint.address.to_string().into()),
                ];
                let is_healthy = endpoint.state == Health::Healthy;
                to.number(
                    &metrics::ENDPOINT_HEALTHY,
                    labels.clone(),
                    f64::from(u8::from(is_healthy)),
                );
                let times = &endpoint.connect_times;
                for (step, times) in [("tcp", &times.tcp), ("tls", &times.tls)] {
                    let labels = [labels.clone(), vec![("step", step.into())]].concat();
                    times.expose(&metrics::ENDPOINT_CONNECT, labels, to);
                }
                endpoint
                    .time_to_headers
                    .expose(&metrics::ENDPOINT_TIME_TO_HEADERS, labels, to);
            }
        }
        for (result, count) in [
            (Reloaded::Ok, report.reloaded),
            (Reloaded::Failed, report.failed),
            (Reloaded::Unchanged, report.unchanged),
        ] {
            let labels = vec![("result", result.label().into())];
            Counter::from(count).expose(&metrics::RELOADS, labels, to);
        }
        let mut number = |family: &'static Family, value: f64| {
            to.number(family, Vec::<Label>::new(), value);
        };
        let flag = |is_so: bool| f64::from(u8::from(is_so));
        number(
            &metrics::LAST_RELOAD_SUCCESSFUL,
            flag(report.failure.is_none()),
        );
        #[expect(
            clippy::cast_precision_loss,
            reason = "the values of an exposition are floats"
        )]
        number(
            &metrics::UNUSABLE_CLUSTER_FILES,
            report.material.cluster_problems.len() as f64,
        );
        number(&metrics::LAST_RELOAD, unix_seconds(report.changed));
        number(
            &metrics::DRAINING,
            flag(*self.phase.borrow() != Phase::Serving),
        );
        let (memory_limit, memory) = &self.memory;
        number(&metrics::MEMORY_SHORT, flag(memory.is_short()));
        number(&metrics::PROCESS_START_TIME, unix_seconds(self.started.0));
        number(&metrics::PROCESS_CPU, process::cpu_time().as_secs_f64());
        #[expect(
            clippy::cast_precision_loss,
            reason = "the values of an exposition are floats"
        )]
        for (family, value) in [
            (
                &metrics::CONNECTIONS_LIMIT,
                Some(self.settings.load().limits.connections as u64),
            ),
            (&metrics::MEMORY_LIMIT, Some(*memory_limit)),
            (&metrics::PROCESS_RESIDENT_MEMORY, resident_bytes()),
            (&metrics::PROCESS_OPEN_FDS, open_files()),
            (
                &metrics::PROCESS_MAX_FDS,
                Some(process::open_files() as u64),
            ),
        ] {
            if let Some(value) = value {
                number(family, value as f64);
            }
        }
    }
}

/// The name of a certificate where there is space for one only.
fn first_name(identity: &Identity) -> String {
    identity.names().first().cloned().unwrap_or_default()
}

/// Seconds since 1970. 0 for an earlier time.
pub(super) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Open file descriptors of this process, without the one that reads the directory. `None` without `/proc`.
fn open_files() -> Option<u64> {
    let files = fs::read_dir("/proc/self/fd").ok()?;
    Some((files.count() as u64).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_files() {
        assert!(resident_bytes().unwrap() > 1024 * 1024);
        assert!(open_files().unwrap() > 2);
    }
}
