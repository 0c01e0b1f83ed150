//! Liveness and readiness: `/livez` and `/readyz`.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::sources::Sources;
use crate::{drain::Phase, pki::UtcDate, upstream::Health};

/// One condition of health.
#[derive(Debug, Serialize)]
pub(super) struct HealthCheck {
    pub(super) name: &'static str,
    /// Why the condition does not hold, and how to fix it.
    pub(super) failure: Option<String>,
    /// What is wrong although the condition holds.
    pub(super) warning: Option<String>,
}

impl HealthCheck {
    fn new(name: &'static str, failure: Option<String>) -> Self {
        Self {
            name,
            failure,
            warning: None,
        }
    }
}

/// The checks of `/livez` or `/readyz`.
#[derive(Debug)]
pub(super) struct HealthChecks {
    path: &'static str,
    pub(super) checks: Vec<HealthCheck>,
}

impl HealthChecks {
    pub(super) fn passed(&self) -> bool {
        self.checks.iter().all(|check| check.failure.is_none())
    }

    /// The text in the format of kube-apiserver, and the reasons too: readers of this port may know them.
    pub(super) fn text(&self, verbose: bool) -> String {
        if self.passed() && !verbose {
            return "ok".to_owned();
        }
        let mut text = String::new();
        for HealthCheck {
            name,
            failure,
            warning,
        } in &self.checks
        {
            // Writing to a String cannot fail.
            match (failure, warning) {
                (Some(why), _) => writeln!(text, "[-]{name} failed: {why}"),
                (None, Some(what)) => writeln!(text, "[+]{name} ok, but {what}"),
                (None, None) => writeln!(text, "[+]{name} ok"),
            }
            .ok();
        }
        let result = if self.passed() { "passed" } else { "failed" };
        writeln!(text, "{} check {result}", self.path).ok();
        text
    }
}

/// Fails if only a restart can help.
pub(super) fn livez(sources: &Sources) -> HealthChecks {
    let (worker, silence) = sources.heartbeats.longest_silence();
    let failure = (silence >= MAX_SILENCE).then(|| {
        format!(
            "worker {worker}: event loop stalled for {} s; restart the process",
            silence.as_secs()
        )
    });
    HealthChecks {
        path: "livez",
        checks: vec![HealthCheck::new("workers", failure)],
    }
}

/// Fails while clients are better served by another instance. With `strict`, also while no apiserver can be reached.
pub(super) fn readyz(sources: &Sources, now: SystemTime, strict: bool) -> HealthChecks {
    let phase = *sources.phase.borrow();
    let upstream = upstream(sources, strict);
    let closed = (phase == Phase::Draining).then(|| "the listening sockets are closed".to_owned());
    let stops = (phase != Phase::Serving).then(|| "the proxy is shutting down".to_owned());
    let mut checks = vec![HealthCheck::new("certificate", certificate(sources, now))];
    checks.extend(client_certificates(sources, now));
    checks.extend(cluster_files(sources));
    checks.extend([
        HealthCheck::new("listening", closed),
        upstream,
        HealthCheck::new("draining", stops),
    ]);
    HealthChecks {
        path: "readyz",
        checks,
    }
}

/// Passes always, because tokens work whatever is wrong with client certificates. `None` if no cluster uses them.
fn client_certificates(sources: &Sources, now: SystemTime) -> Option<HealthCheck> {
    let report = sources.report.borrow();
    report.material.clients().next()?;
    let problems = report.material.client_problems(now);
    let mut check = HealthCheck::new("clientCertificates", None);
    check.warning = (!problems.is_empty()).then(|| problems.join("; "));
    Some(check)
}

/// Passes always, because a file affects its own cluster only. `None` without clusters from a directory.
fn cluster_files(sources: &Sources) -> Option<HealthCheck> {
    let report = sources.report.borrow();
    let (clusters, problems) = (&report.material.clusters, &report.material.cluster_problems);
    let has_files = clusters.iter().any(|one| one.config.file.is_some());
    if problems.is_empty() && !has_files {
        return None;
    }
    let mut check = HealthCheck::new("clusterFiles", None);
    check.warning = (!problems.is_empty()).then(|| problems.join("; "));
    Some(check)
}

/// Passes if one certificate is valid: an expired one does not affect clients of other names.
fn certificate(sources: &Sources, now: SystemTime) -> Option<String> {
    let report = sources.report.borrow();
    let identities = &report.material.identities;
    let is_valid = |not_before, not_after| not_before <= now && now <= not_after;
    if identities.iter().any(|identity| {
        let leaf = identity.summary();
        is_valid(leaf.not_before, leaf.not_after)
    }) {
        return None;
    }
    let pending = report.material.pending.iter().map(|config| {
        let names = config.names.join(", ");
        match sources.acme.of(config).and_then(|report| report.failure) {
            Some(failure) => format!("{names}: no certificate yet: {failure}"),
            None => format!("{names}: no certificate yet; the CA has been asked for one"),
        }
    });
    let each = identities.iter().map(|identity| {
        let (names, leaf) = (identity.names().join(", "), identity.summary());
        if leaf.not_before > now {
            let from = UtcDate(leaf.not_before);
            format!("{names}: not valid before {from}; check the clock of this machine")
        } else {
            let on = UtcDate(leaf.not_after);
            format!("{names}: expired on {on}; renew the certificate")
        }
    });
    Some(each.chain(pending).collect::<Vec<_>>().join("; "))
}

/// Passes if one endpoint is healthy: an outage of one cluster does not affect clients of the others. The warning then
/// names the clusters without one.
///
/// Passes with a warning if the apiservers of one cluster are all down. Every other instance sees the same, so a
/// failure would leave the load balancer without any: clients would get its error instead of the 503 of the proxy,
/// and would wait for it after the apiserver is back. An instance that reaches an apiserver and must not use it has a
/// fault of its own, such as a wrong CA, and fails.
///
/// A directory may have no cluster yet. No other instance has one then, so it passes with a warning.
fn upstream(sources: &Sources, strict: bool) -> HealthCheck {
    let report = sources.report.borrow();
    let mut check = HealthCheck::new("upstream", None);
    if report.clusters.is_empty() {
        check.warning = Some("the directory of clusters gives no cluster yet".to_owned());
        return check;
    }
    let mut reasons = Vec::new();
    let (mut is_one_healthy, mut is_outage) = (false, false);
    for cluster in &report.clusters {
        let (name, health) = (cluster.name(), cluster.endpoints().health());
        if health.iter().any(|one| one.state == Health::Healthy) {
            is_one_healthy = true;
            continue;
        }
        is_outage |= !health.is_empty() && health.iter().all(|one| one.is_down);
        if health.is_empty() {
            let host = cluster.endpoints().host();
            reasons.push(format!(
                "{name}: {host} has no address; check the name and DNS"
            ));
        }
        for endpoint in health {
            let (address, why) = (endpoint.address, endpoint.why.unwrap_or_default());
            reasons.push(match endpoint.state {
                Health::Unhealthy if !why.is_empty() => format!("{name}: {why}"),
                Health::Unhealthy => format!("{name}: {address} is unhealthy"),
                Health::Unknown | Health::Healthy => {
                    format!("{name}: {address} has not been probed yet")
                }
            });
        }
    }
    if is_one_healthy && reasons.is_empty() {
        return check;
    }
    let reasons = reasons.join("; ");
    if is_one_healthy {
        check.warning = Some(format!("no healthy apiserver for some hosts: {reasons}"));
    } else if is_outage && !strict {
        check.warning = Some(format!("no apiserver can be reached: {reasons}"));
    } else {
        check.failure = Some(reasons);
    }
    check
}

/// An event loop that has not run for this long is stalled: no task of it takes a tenth of that.
const MAX_SILENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use standin::{TempDir, pki::Ca};
    use tokio::{
        sync::watch,
        time::{Instant, advance},
    };

    use super::*;
    use crate::{
        config::{Environment, ServeArgs, load},
        heartbeat::Heartbeats,
        metrics::Metrics,
        reload::{Material, Reloader},
    };

    /// Sources of a proxy with one certificate, and the senders that they read from.
    pub(in crate::admin) fn sources(
        dir: &TempDir,
        phase: Phase,
    ) -> (Sources, watch::Sender<Phase>, Reloader) {
        let ca = Ca::new("public");
        let (certificate, key) = ca.server(&["kube.test"]).write(dir, "public");
        let args = ServeArgs {
            certificates: vec![certificate],
            keys: vec![key],
            upstream: Some("https://127.0.0.1:1".to_owned()),
            upstream_ca: Some(dir.write("ca.crt", ca.pem())),
            ..ServeArgs::default()
        };
        let config = load(&args, &Environment::from_process()).unwrap();
        let now = SystemTime::now();
        let material = Material::load(&config, now).unwrap();
        let (reloader, _) = Reloader::new(config, material, now).unwrap();
        let (tell, phase) = watch::channel(phase);
        let sources = Sources {
            acme: Arc::default(),
            metrics: Arc::new(Metrics::new(2)),
            heartbeats: Heartbeats::new(2),
            report: reloader.report(),
            phase,
            listening: Arc::default(),
            clients: crate::clients::ClientTable::new(&crate::config::Limits::default()),
            settings: Arc::default(),
            memory: (1, Arc::default()),
            started: (now, Instant::now()),
        };
        (sources, tell, reloader)
    }

    fn failure(checks: &HealthChecks, name: &str) -> Option<String> {
        let check = checks.checks.iter().find(|check| check.name == name);
        check.unwrap().failure.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn livez_fails_only_when_a_worker_is_stalled() {
        let dir = TempDir::new();
        let (sources, _tell, _reloader) = sources(&dir, Phase::Draining);
        let workers = [0, 1].map(|number| sources.heartbeats.worker(number));
        let run = async |worker: usize, seconds| {
            let running = workers[worker].heartbeat();
            let running = tokio::time::timeout(Duration::from_secs(seconds), running);
            running.await.unwrap_err();
        };
        run(1, 1).await;
        advance(MAX_SILENCE - Duration::from_secs(2)).await;
        assert_eq!(livez(&sources).text(false), "ok");
        run(0, 3).await;
        assert_eq!(
            livez(&sources).text(false),
            "[-]workers failed: worker 1: event loop stalled for 11 s; restart the process\nlivez check failed\n"
        );
    }

    #[tokio::test]
    async fn readyz_fails_when_the_certificate_expires() {
        let dir = TempDir::new();
        let (sources, _tell, _reloader) = sources(&dir, Phase::Serving);
        let now = SystemTime::now();
        assert_eq!(failure(&readyz(&sources, now, false), "certificate"), None);
        let years = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        let why = failure(&readyz(&sources, now + years, false), "certificate").unwrap();
        assert!(why.starts_with("kube.test: expired on 20"), "{why}");
        let why = failure(
            &readyz(&sources, SystemTime::UNIX_EPOCH, false),
            "certificate",
        )
        .unwrap();
        assert!(why.contains("not valid before"), "{why}");
    }

    #[tokio::test]
    async fn readyz_fails_from_the_signal_listening_when_draining() {
        let dir = TempDir::new();
        let (sources, tell, _reloader) = sources(&dir, Phase::Serving);
        for (phase, listening, draining) in [
            (Phase::Serving, true, true),
            (Phase::Announced, true, false),
            (Phase::Draining, false, false),
        ] {
            tell.send_replace(phase);
            let checks = readyz(&sources, SystemTime::now(), false);
            assert_eq!(
                failure(&checks, "listening").is_none(),
                listening,
                "{phase:?}"
            );
            assert_eq!(
                failure(&checks, "draining").is_none(),
                draining,
                "{phase:?}"
            );
        }
    }
}
