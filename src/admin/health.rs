//! Whether the process lives, and whether clients should be sent to it.

use std::{fmt::Write as _, time::SystemTime};

use super::sources::{STUCK, Sources};
use crate::{
    drain::Phase,
    pki::UtcDate,
    upstream::{Cluster, Health},
};

/// One thing that must hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) name: &'static str,
    /// Why it does not hold, in words.
    pub(super) failure: Option<String>,
}

/// The checks of one path.
#[derive(Debug)]
pub(super) struct Checks {
    what: &'static str,
    pub(super) checks: Vec<Check>,
}

impl Checks {
    pub(super) fn hold(&self) -> bool {
        self.checks.iter().all(|check| check.failure.is_none())
    }

    /// As kube-apiserver says it, but that the reason is told: who can ask may know.
    pub(super) fn text(&self, verbose: bool) -> String {
        if self.hold() && !verbose {
            return "ok".to_owned();
        }
        let mut text = String::new();
        for Check { name, failure } in &self.checks {
            // Writing to a String cannot fail.
            match failure {
                None => writeln!(text, "[+]{name} ok"),
                Some(why) => writeln!(text, "[-]{name} failed: {why}"),
            }
            .ok();
        }
        let came_out = if self.hold() { "passed" } else { "failed" };
        writeln!(text, "{} check {came_out}", self.what).ok();
        text
    }
}

/// Fails when only a restart can help.
pub(super) fn livez(sources: &Sources) -> Checks {
    let (worker, silence) = sources.heartbeats.longest_silence();
    let failure = (silence >= STUCK).then(|| {
        format!(
            "worker {worker}: event loop stalled for {} s; restart the process",
            silence.as_secs()
        )
    });
    Checks {
        what: "livez",
        checks: vec![Check {
            name: "workers",
            failure,
        }],
    }
}

/// Fails while clients are better served elsewhere.
pub(super) fn readyz(sources: &Sources, now: SystemTime) -> Checks {
    let phase = *sources.phase.borrow();
    let checks = [
        ("certificate", certificate(sources, now)),
        (
            "listening",
            (phase == Phase::Draining).then(|| "the sockets for clients are closed".to_owned()),
        ),
        ("upstream", upstream(sources)),
        (
            "draining",
            (phase != Phase::Serving).then(|| "the proxy was told to stop".to_owned()),
        ),
    ];
    let checks = checks.map(|(name, failure)| Check { name, failure });
    Checks {
        what: "readyz",
        checks: checks.into(),
    }
}

/// One valid certificate is enough: those of other names have nothing to do with its clients.
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
    let each = identities.iter().map(|identity| {
        let (names, leaf) = (identity.names().join(", "), identity.summary());
        if leaf.not_before > now {
            let from = UtcDate(leaf.not_before);
            format!("the one for {names} is valid from {from} on; look at the clock")
        } else {
            let on = UtcDate(leaf.not_after);
            format!("the one for {names} expired on {on}; renew it")
        }
    });
    Some(each.collect::<Vec<_>>().join("; "))
}

/// One endpoint that works is enough, for the same reason.
fn upstream(sources: &Sources) -> Option<String> {
    let report = sources.report.borrow();
    let is_well = |cluster: &Cluster| {
        let health = cluster.endpoints().health();
        health
            .iter()
            .any(|endpoint| endpoint.state == Health::Healthy)
    };
    if report.clusters.iter().any(|cluster| is_well(cluster)) {
        return None;
    }
    let mut told = Vec::new();
    for cluster in &report.clusters {
        let (name, health) = (cluster.name(), cluster.endpoints().health());
        if health.is_empty() {
            let host = cluster.endpoints().host();
            told.push(format!("{name}: no address is known for {host}"));
        }
        for endpoint in health {
            let (address, why) = (endpoint.address, endpoint.why.unwrap_or_default());
            told.push(match endpoint.state {
                Health::Unhealthy if !why.is_empty() => format!("{name}: {why}"),
                Health::Unhealthy => format!("{name}: {address} does not work"),
                Health::Unknown | Health::Healthy => format!("{name}: {address} was not tried yet"),
            });
        }
    }
    Some(told.join("; "))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

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

    /// Sources of a proxy with one certificate, and the other ends of what they watch.
    fn sources(dir: &TempDir, phase: Phase) -> (Sources, watch::Sender<Phase>, Reloader) {
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
            metrics: Arc::new(Metrics::new(2)),
            heartbeats: Heartbeats::new(2),
            report: reloader.report(),
            phase,
            listening: Vec::new(),
            connections_limit: 1,
            started: (now, Instant::now()),
        };
        (sources, tell, reloader)
    }

    fn failure(checks: &Checks, name: &str) -> Option<String> {
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
        advance(STUCK - Duration::from_secs(2)).await;
        assert_eq!(livez(&sources).text(false), "ok");
        run(0, 3).await;
        assert_eq!(
            livez(&sources).text(false),
            "[-]workers failed: worker 1: event loop stalled for 11 s; restart the process\nlivez check failed\n"
        );
    }

    #[tokio::test]
    async fn a_certificate_that_expires_while_it_is_served_makes_readyz_fail() {
        let dir = TempDir::new();
        let (sources, _tell, _reloader) = sources(&dir, Phase::Serving);
        let now = SystemTime::now();
        assert_eq!(failure(&readyz(&sources, now), "certificate"), None);
        let years = Duration::from_secs(100 * 365 * 24 * 60 * 60);
        let why = failure(&readyz(&sources, now + years), "certificate").unwrap();
        assert!(
            why.starts_with("the one for kube.test expired on 20"),
            "{why}"
        );
        let why = failure(&readyz(&sources, SystemTime::UNIX_EPOCH), "certificate").unwrap();
        assert!(why.contains("is valid from"), "{why}");
    }

    #[tokio::test]
    async fn readyz_fails_from_the_signal_on_and_listening_only_once_the_sockets_are_closed() {
        let dir = TempDir::new();
        let (sources, tell, _reloader) = sources(&dir, Phase::Serving);
        for (phase, listening, draining) in [
            (Phase::Serving, true, true),
            (Phase::Announced, true, false),
            (Phase::Draining, false, false),
        ] {
            tell.send_replace(phase);
            let checks = readyz(&sources, SystemTime::now());
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
