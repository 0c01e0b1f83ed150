//! What an operator should look at although the proxy is ready. The limits are those of `config/prometheus/rules.yaml`.

use std::time::{Duration, SystemTime};

use super::{
    history::{LastMinute, of_class, share},
    sources::Sources,
};
use crate::{
    metrics::CodeClass,
    pki::{CertSummary, ClientIdentity, UtcDate},
    reload::ReloadReport,
    upstream::{EndpointHealth, Health},
};

/// The problems at `now`, the worst first, each as a sentence with its fix.
pub(super) fn problems(
    sources: &Sources,
    report: &ReloadReport,
    minute: &LastMinute,
    connections: u64,
    now: SystemTime,
) -> Vec<String> {
    let mut found = Vec::new();
    apiservers(report, &mut found);
    found.extend(report.clusters.iter().filter_map(|cluster| {
        let why = cluster.endpoints().discovery()?.failure?;
        let name = cluster.name();
        Some(format!(
            "{name}: cannot find the apiservers, and the known addresses stay in use: {why}"
        ))
    }));
    expiry(report, now, &mut found);
    client_certificates(report, now, &mut found);
    found.extend(sources.acme.all().into_iter().filter_map(|certificate| {
        let (names, failure) = (certificate.names.join(", "), certificate.failure?);
        let next = certificate
            .next
            .map(|at| format!("; next attempt at {}", UtcDate(at)));
        let next = next.unwrap_or_default();
        Some(format!("{names}: no new certificate: {failure}{next}"))
    }));
    if let Some(failure) = &report.failure {
        found.push(format!(
            "the last reload failed, and the previous configuration stays in use: {failure}"
        ));
    }
    found.extend(report.material.cluster_problems.iter().cloned());
    responses(report, minute, &mut found);
    let (handshakes, failed) = minute.handshakes();
    if failed >= MIN_RATE && failed > handshakes * MAX_FAILED_HANDSHAKES {
        found.push(format!(
            "{failed:.1} of {handshakes:.1} TLS handshakes per second fail; the log has the clients and the reasons"
        ));
    }
    if sources.memory.1.is_short() {
        found.push(
            "memory is short, so new clients wait; raise the memory limit or add instances"
                .to_owned(),
        );
    }
    let limit = sources.settings.load().limits.connections as u64;
    if connections * 10 > limit * 9 {
        found.push(format!(
            "{connections} of {limit} connections are open; see the clients with the most connections"
        ));
    }
    let dropped = minute.dropped_log_lines();
    if dropped > 0 {
        found.push(format!(
            "{dropped} log lines were lost in the last minute; check the disk and the reader of the log"
        ));
    }
    found
}

/// Clusters without a healthy endpoint come first.
fn apiservers(report: &ReloadReport, found: &mut Vec<String>) {
    let mut unhealthy = Vec::new();
    for cluster in &report.clusters {
        let (name, health) = (cluster.name(), cluster.endpoints().health());
        let is = |state| move |endpoint: &&EndpointHealth| endpoint.state == state;
        let failed: Vec<_> = health.iter().filter(is(Health::Unhealthy)).collect();
        let why = |endpoint: &EndpointHealth| endpoint.why.clone().unwrap_or_default();
        if health.is_empty() {
            let host = cluster.endpoints().host();
            found.push(format!(
                "{name}: {host} has no address; check the name and DNS"
            ));
        } else if !health
            .iter()
            .any(|endpoint| endpoint.state == Health::Healthy)
        {
            if let Some(last) = failed.last() {
                found.push(format!("{name}: no apiserver is healthy: {}", why(last)));
            }
        } else {
            let each = failed.iter().map(|endpoint| {
                let (address, why) = (endpoint.address, why(endpoint));
                format!("{name}: the apiserver {address} is unhealthy: {why}")
            });
            unhealthy.extend(each);
        }
    }
    found.append(&mut unhealthy);
}

fn expiry(report: &ReloadReport, now: SystemTime, found: &mut Vec<String>) {
    for identity in &report.material.identities {
        let names = identity.names().join(", ");
        if let Some(when) = expires(identity.summary(), now) {
            found.push(format!("{names}: the certificate {when}; renew it"));
        }
    }
    for cluster in &report.material.clusters {
        let name = &cluster.config.name;
        for ca in cluster.trust.summaries() {
            if let Some(when) = expires(ca, now) {
                let subject = &ca.subject;
                found.push(format!(
                    "{name}: the CA {subject} {when}; add the new CA to the bundle"
                ));
            }
        }
    }
}

/// What stops client certificates now, and what will soon.
fn client_certificates(report: &ReloadReport, now: SystemTime, found: &mut Vec<String>) {
    found.extend(report.material.client_problems(now));
    for (cluster, clients) in report.material.clients() {
        let name = &cluster.name;
        let front_proxy = clients.naming.front_proxy().map(ClientIdentity::summary);
        let front_proxy = front_proxy.filter(|front_proxy| front_proxy.not_after >= now);
        if let Some(when) = front_proxy.and_then(|front_proxy| expires(front_proxy, now)) {
            found.push(format!(
                "{name}: the front-proxy certificate {when}; renew it"
            ));
        }
        for ca in clients.ca.anchors().summaries() {
            if let Some(when) = expires(ca, now) {
                let subject = &ca.subject;
                found.push(format!(
                    "{name}: the CA of client certificates {subject} {when}; add the new CA to the file"
                ));
            }
        }
    }
}

/// When a certificate expires, if that is soon.
fn expires(certificate: &CertSummary, now: SystemTime) -> Option<String> {
    let Ok(left) = certificate.not_after.duration_since(now) else {
        return Some("has expired".to_owned());
    };
    certificate
        .expires_soon(now)
        .then(|| match left.as_secs() / DAY.as_secs() {
            0 => "expires within a day".to_owned(),
            1 => "expires in 1 day".to_owned(),
            left => format!("expires in {left} days"),
        })
}

/// Many 401s: a client that does not notice that its token has expired or was revoked.
fn responses(report: &ReloadReport, minute: &LastMinute, found: &mut Vec<String>) {
    for cluster in &report.clusters {
        let (name, requests) = (cluster.name(), minute.requests(cluster.name()));
        let failed = of_class(&requests, CodeClass::ServerError);
        if failed >= MIN_RATE && share(&requests, CodeClass::ServerError) > MAX_SERVER_ERRORS {
            found.push(format!(
                "{name}: {failed:.1} responses per second have a status of 500 or more; see the recent errors and the apiserver"
            ));
        }
        let refused = of_class(&requests, CodeClass::Unauthorized);
        if refused > MAX_UNAUTHORIZED_RATE {
            found.push(format!(
                "{name}: {refused:.1} responses per second are 401, because the token of a client is not valid; \
                 the access log has the clients, by http.response.status_code=401"
            ));
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Events per second; fewer say nothing about a share.
const MIN_RATE: f64 = 0.2;
/// The share of failed handshakes.
const MAX_FAILED_HANDSHAKES: f64 = 0.5;
/// The share of responses with a status of 500 or more.
const MAX_SERVER_ERRORS: f64 = 0.05;
/// 401s per second. A client that notices a 401 sends a few.
const MAX_UNAUTHORIZED_RATE: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_is_a_problem_before_it_comes() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let leaf = &standin::pki::Ca::new("a").server(&["a.test"]).chain[0];
        let mut leaf = CertSummary::from_der(leaf).unwrap();
        leaf.not_before = SystemTime::UNIX_EPOCH;
        for (not_after, words) in [
            (now - DAY, Some("has expired")),
            (now + DAY / 2, Some("expires within a day")),
            (now + DAY * 3 / 2, Some("expires in 1 day")),
            (now + DAY * 13, Some("expires in 13 days")),
            (now + DAY * 14, None),
        ] {
            leaf.not_after = not_after;
            assert_eq!(expires(&leaf, now).as_deref(), words);
        }
        leaf.not_before = now - DAY * 4;
        leaf.not_after = now + DAY * 2;
        assert_eq!(expires(&leaf, now), None, "a third of its life is left");
    }
}
