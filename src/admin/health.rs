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
    let (worker, silence) = sources.metrics.most_silent();
    let failure = (silence >= STUCK).then(|| {
        format!(
            "worker {worker} has not turned its loop for {} s; restart the process",
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
        health.iter().any(|endpoint| endpoint.state == Health::Well)
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
                Health::Ill if !why.is_empty() => format!("{name}: {why}"),
                Health::Ill => format!("{name}: {address} does not work"),
                Health::Unknown | Health::Well => format!("{name}: {address} was not tried yet"),
            });
        }
    }
    Some(told.join("; "))
}
