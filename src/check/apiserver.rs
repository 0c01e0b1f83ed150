//! Checks a server from its name to a watch: an apiserver responds, its clock agrees, and it is ready.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    Check, Leg, Message, Plan, Recorder, dial,
    http::{BufferedResponse, CheckClient, RequestError, Responder},
    recorder::{escape, format_duration},
    streams,
    target::{CheckTarget, TargetRole},
};
use crate::{
    hosts::UpstreamAddr,
    pki::{TimeLeft, UtcDate},
    quote,
    text::error_chain,
    upstream::Offer,
};

/// Runs every check of one server. Returns the endpoint that an apiserver responds at.
pub(super) async fn check(
    plan: &Plan,
    target: &CheckTarget,
    recorder: &mut Recorder<'_>,
) -> Option<UpstreamAddr> {
    let mut rest = vec![
        Check::Version,
        Check::Clock,
        Check::Readyz,
        Check::Upgrade,
        Check::Watch,
    ];
    if plan.watch.is_none() {
        rest.pop();
    }
    let Some(endpoint) = dial::check(target, recorder).await else {
        recorder.skipped(&rest, "there is no verified connection");
        return None;
    };
    let client = CheckClient {
        plan,
        target,
        endpoint,
        token: plan.token.as_ref(),
    };
    if !version(client, recorder).await {
        rest.retain(|check| *check != Check::Version);
        recorder.skipped(&rest, "no apiserver responds");
        return None;
    }
    readyz(client, recorder).await;
    streams::upgrade(client, recorder).await;
    streams::watch(client, recorder).await;
    Some(endpoint)
}

/// Returns whether an apiserver responds; compares its clock as well.
async fn version(client: CheckClient<'_>, recorder: &mut Recorder<'_>) -> bool {
    recorder.waiting(Check::Version, "waiting for the response to GET /version");
    let response = match client.get("/version", Offer::Http2, accept_json()).await {
        Ok(response) => response,
        Err(error) => {
            no_response(client, Check::Version, "/version", &error, recorder);
            return false;
        }
    };
    let version = response.json_text("gitVersion");
    match (version, &client.plan.token) {
        (Some(version), _) if response.status == StatusCode::OK => {
            recorder.ok(Check::Version, format!("Kubernetes {}", escape(&version)));
        }
        (_, Some(token))
            if response.status == StatusCode::UNAUTHORIZED
                && response.responder() != Responder::Unknown =>
        {
            let message = Message::new(
                format!(
                    "the apiserver responds but rejects the token in {} ({})",
                    quote::path(&token.file),
                    response.describe()
                ),
                "get a new token, for example with `kubectl create token NAME`",
            );
            recorder.warning(Check::Version, message);
        }
        _ if response.is_denied_by_apiserver() => {
            let text = format!(
                "an apiserver responds, but does not tell its version ({})",
                response.status
            );
            recorder.ok(Check::Version, text);
        }
        _ => {
            unexpected_response(client, Check::Version, "/version", &response, recorder);
            return false;
        }
    }
    clock(&response, recorder);
    true
}

/// Compares the clock of this machine with the `Date` of the response.
fn clock(response: &BufferedResponse, recorder: &mut Recorder<'_>) {
    let date = response
        .headers
        .get(header::DATE)
        .and_then(|date| date.to_str().ok())
        .and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(theirs) = date else {
        return recorder.skipped(&[Check::Clock], "the response has no valid Date header");
    };
    let ours = response.received_at;
    let (difference, direction) = clock_difference(ours, theirs);
    if difference < CLOCK_TOLERANCE {
        let text = "the clocks of this machine and the apiserver agree";
        return recorder.ok(Check::Clock, text);
    }
    let message = Message::new(
        format!(
            "the clock of this machine is {} {direction} the apiserver's ({} here, {} there), so certificates and tokens may appear expired or not yet valid",
            rough_duration(difference),
            UtcDate(ours),
            UtcDate(theirs)
        ),
        "synchronize both clocks with NTP (`timedatectl set-ntp true`)",
    );
    if difference < MAX_CLOCK_DIFFERENCE {
        recorder.warning(Check::Clock, message);
    } else {
        recorder.failed(Check::Clock, message);
    }
}

/// A duration in the unit that a person would choose.
fn rough_duration(duration: Duration) -> String {
    const HOUR: u64 = 60 * 60;
    match duration.as_secs() {
        seconds if seconds < 2 * 60 => format!("{seconds} s"),
        seconds if seconds < 2 * HOUR => format!("{} minutes", seconds / 60),
        _ => TimeLeft(duration).to_string(),
    }
}

fn clock_difference(ours: SystemTime, theirs: SystemTime) -> (Duration, &'static str) {
    match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    }
}

async fn readyz(client: CheckClient<'_>, recorder: &mut Recorder<'_>) {
    recorder.waiting(Check::Readyz, "waiting for the response to GET /readyz");
    let response = match client.get("/readyz", Offer::Http2, HeaderMap::new()).await {
        Ok(response) => response,
        Err(error) => return no_response(client, Check::Readyz, "/readyz", &error, recorder),
    };
    let failing = failing_checks(&response);
    if response.status == StatusCode::OK {
        recorder.ok(Check::Readyz, "the apiserver is ready");
    } else if response.is_denied_by_apiserver() {
        let text = format!(
            "the apiserver responds, but /readyz needs authentication ({})",
            response.status
        );
        recorder.ok(Check::Readyz, text);
    } else if !failing.is_empty() {
        let message = Message::new(
            format!("the apiserver is not ready: {}", failing.join(", ")),
            "read the logs of the apiserver and of etcd; it may be starting or stopping",
        );
        recorder.failed_on(Leg::ProxyApiserver, Check::Readyz, message);
    } else {
        unexpected_response(client, Check::Readyz, "/readyz", &response, recorder);
    }
}

/// The first checks that the apiserver lists as failing.
fn failing_checks(response: &BufferedResponse) -> Vec<String> {
    if response.status != StatusCode::INTERNAL_SERVER_ERROR {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&response.body);
    let failing = text.lines().filter(|line| line.starts_with("[-]"));
    failing.take(MAX_FAILING_CHECKS).map(escape).collect()
}

/// Records that a server that was just verified did not respond.
pub(super) fn no_response(
    client: CheckClient<'_>,
    check: Check,
    request: &str,
    error: &RequestError,
    recorder: &mut Recorder<'_>,
) {
    let target = client.target;
    let text = match error {
        RequestError::Timeout => format!(
            "{} accepts the request for {request} but does not respond within {}",
            target.server(),
            format_duration(client.plan.response_timeout)
        ),
        RequestError::Dial(_) | RequestError::Closed(_) => {
            format!("no response to {request}: {}", error_chain(error))
        }
    };
    let fix = if asks_for_client_certificate(&text) {
        target.client_certificate_fix()
    } else {
        target.by_role(
            "check the load and the log of the apiserver, and the load balancer or firewall in front of it",
            "check the log of the proxy, and the load balancer or firewall in front of it",
        )
    };
    recorder.failed(check, Message::new(text, fix));
}

/// Records a response that the check does not accept.
pub(super) fn unexpected_response(
    client: CheckClient<'_>,
    check: Check,
    request: &str,
    response: &BufferedResponse,
    recorder: &mut Recorder<'_>,
) {
    let target = client.target;
    let described = response.describe();
    let (leg, text, fix) = match (target.role, response.responder()) {
        // The proxy responds with these only after it tried to reach the apiserver.
        (TargetRole::Proxy, Responder::Proxy(_)) if is_upstream_failure(response.status) => (
            Some(Leg::ProxyApiserver),
            format!("the proxy itself responds to {request} with {described}"),
            "run `kube-tls-proxy check` where the proxy runs, with the flags of its `serve`: it tells what is wrong there",
        ),
        // The status is 421, or 403 in API discovery.
        (TargetRole::Proxy, Responder::Proxy(message))
            if message.starts_with("no cluster is configured") =>
        {
            (
                None,
                format!("the proxy has no cluster for the host {}", target.authority),
                "use a name in its certificate, or add this name with --host or `hosts` where the proxy runs",
            )
        }
        (_, Responder::Proxy(_)) => (
            None,
            format!("the proxy rejects {request}: {described}"),
            "check the log of the proxy, and any load balancer in front of it that changes requests",
        ),
        // The proxy forwards what the apiserver says.
        (_, Responder::Apiserver(_)) => (
            Some(Leg::ProxyApiserver),
            format!("the apiserver responds to {request} with {described}"),
            "check the log of the apiserver",
        ),
        (role, Responder::Unknown) => {
            let text = format!("the response to {request} is not from an apiserver: {described}");
            let fix = if asks_for_client_certificate(&described) {
                target.client_certificate_fix().to_owned()
            } else if role == TargetRole::Apiserver {
                format!(
                    "check the URL of the apiserver, its port and its path, and the host that requests ask for, {}: --upstream-host or `upstream.host` chooses the client's or that of the URL",
                    target.authority
                )
            } else {
                "check the URL of --through, and the load balancer or firewall in front of the proxy".to_owned()
            };
            return recorder.failed(check, Message::new(text, fix));
        }
    };
    let message = Message::new(text, fix);
    match leg {
        Some(leg) => recorder.failed_on(leg, check, message),
        None => recorder.failed(check, message),
    }
}

/// Whether a failure says that the server wants a client certificate: by a TLS alert, or as nginx says it over HTTP.
fn asks_for_client_certificate(failure: &str) -> bool {
    ["TLS alert certificate_required", "required SSL certificate"]
        .iter()
        .any(|part| failure.contains(part))
}

/// Whether the proxy responds with this status because of the apiserver.
fn is_upstream_failure(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    )
}

pub(super) fn accept_json() -> HeaderMap {
    let json = HeaderValue::from_static("application/json");
    HeaderMap::from_iter([(header::ACCEPT, json)])
}

/// A smaller difference does no harm: tokens and certificates are issued with some minutes to spare.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// Token validators usually allow one minute, and both clocks may use a part of it.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(60);
const MAX_FAILING_CHECKS: usize = 3;

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::AlertDescription;

    use super::*;

    /// Errors of HTTP/2 keep only the text of the alert, so the words of `tls_error` are compared.
    #[test]
    fn alert_that_wants_a_client_certificate_is_recognized() {
        for (alert, wants) in [
            (AlertDescription::CertificateRequired, true),
            (AlertDescription::UnknownCA, false),
        ] {
            let error = io::Error::other(rustls::Error::AlertReceived(alert));
            let text = error_chain(&error).to_string();
            assert_eq!(asks_for_client_certificate(&text), wants, "{text}");
        }
    }

    #[test]
    fn clock_difference_is_in_the_largest_unit() {
        for (seconds, text) in [
            (31, "31 s"),
            (119, "119 s"),
            (120, "2 minutes"),
            (3 * 3_600 + 59, "3 hours"),
            (8_640_000, "100 days"),
        ] {
            assert_eq!(rough_duration(Duration::from_secs(seconds)), text);
        }
    }
}
