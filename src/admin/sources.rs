//! Where health, metrics and the status page get what they show, and the numbers that no worker counts.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};

use crate::{
    drain::Phase,
    heartbeat::Heartbeats,
    metrics::{self, Exposition, Family, Label, Metrics, Process, Reloaded, unix_seconds},
    pki::Identity,
    reload::ReloadReport,
    upstream::{EndpointHealth, Health},
};

/// Everything that can be asked for on the admin port.
#[derive(Debug)]
pub struct Sources {
    /// What workers have counted.
    pub metrics: Arc<Metrics>,
    /// The heartbeats of the workers.
    pub heartbeats: Heartbeats,
    /// What is served, and what the last looks at files came to.
    pub report: watch::Receiver<ReloadReport>,
    /// How far the process is on its way to its end.
    pub phase: watch::Receiver<Phase>,
    /// Where clients connect.
    pub listening: Vec<SocketAddr>,
    /// How many of their connections may be open at once.
    pub connections_limit: usize,
    /// When the process started, by both clocks.
    pub started: (SystemTime, Instant),
}

impl Sources {
    /// An instant in Unix time; the same one is always the same number.
    pub(super) fn unix(&self, at: Instant) -> f64 {
        let (clock, instant) = self.started;
        unix_seconds(clock + at.saturating_duration_since(instant))
    }

    /// Metrics as `OpenMetrics` text.
    pub(super) fn exposition(&self) -> String {
        let mut exposition = Exposition::new();
        let report = self.report.borrow().clone();
        let clusters = report.clusters.iter().map(|cluster| cluster.name());
        self.metrics.expose(clusters, &mut exposition);
        self.expose(&report, &mut exposition);
        exposition.into_text()
    }

    fn expose(&self, report: &ReloadReport, to: &mut Exposition) {
        let version = vec![("version", env!("CARGO_PKG_VERSION").into())];
        to.info(&metrics::BUILD, version);
        for identity in &report.material.identities {
            let name = vec![("name", first_name(identity).into())];
            let not_after = unix_seconds(identity.not_after());
            to.gauge(&metrics::CERTIFICATE_NOT_AFTER, name, not_after);
        }
        for (cluster, trust) in &report.material.clusters {
            let not_after = trust.summaries().iter().map(|ca| ca.not_after).min();
            if let Some(not_after) = not_after {
                let name = vec![("cluster", cluster.name.clone().into())];
                to.gauge(&metrics::CA_NOT_AFTER, name, unix_seconds(not_after));
            }
        }
        for cluster in &report.clusters {
            for EndpointHealth { address, state, .. } in cluster.endpoints().health() {
                let labels = vec![
                    ("cluster", cluster.name().to_owned().into()),
                    ("endpoint", address.to_string().into()),
                ];
                let is_well = state == Health::Healthy;
                to.gauge(
                    &metrics::ENDPOINT_HEALTHY,
                    labels,
                    f64::from(u8::from(is_well)),
                );
            }
        }
        for (result, count) in [
            (Reloaded::Ok, report.reloaded),
            (Reloaded::Failed, report.failed),
            (Reloaded::Unchanged, report.unchanged),
        ] {
            let labels = vec![("result", result.label().into())];
            to.counter(&metrics::RELOADS, labels, count);
        }
        let mut gauge = |family: &'static Family, value: f64| {
            to.gauge(family, Vec::<Label>::new(), value);
        };
        let flag = |is_so: bool| f64::from(u8::from(is_so));
        gauge(
            &metrics::LAST_RELOAD_SUCCESSFUL,
            flag(report.failure.is_none()),
        );
        gauge(&metrics::LAST_RELOAD, unix_seconds(report.changed));
        gauge(
            &metrics::DRAINING,
            flag(*self.phase.borrow() != Phase::Serving),
        );
        gauge(&metrics::PROCESS_START_TIME, unix_seconds(self.started.0));
        let process = Process::now();
        #[expect(
            clippy::cast_precision_loss,
            reason = "a gauge is a float in every exposition"
        )]
        for (family, value) in [
            (
                &metrics::CONNECTIONS_LIMIT,
                Some(self.connections_limit as u64),
            ),
            (&metrics::PROCESS_RESIDENT_MEMORY, process.resident_bytes),
            (&metrics::PROCESS_OPEN_FDS, process.open_files),
        ] {
            if let Some(value) = value {
                gauge(family, value as f64);
            }
        }
    }
}

/// What a certificate is called where there is room for one name.
fn first_name(identity: &Identity) -> String {
    identity.names().first().cloned().unwrap_or_default()
}

/// A worker that has not turned its loop for so long is stuck: nothing that it does takes a tenth of it.
pub(super) const STUCK: Duration = Duration::from_secs(10);
