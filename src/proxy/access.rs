//! One log line per request, and one more at the start of what may take hours.
//!
//! Never a query string, a header value or a subprotocol: each of them can be a token.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode, Uri, Version};
use tokio::time::Instant;
use tracing::info;

use super::{Downstream, request_info::RequestInfo};

/// What is known about one request; logged when dropped.
#[derive(Debug)]
pub(super) struct Access {
    started: Instant,
    head: Option<Duration>,
    client: std::net::SocketAddr,
    version: Version,
    method: Method,
    uri: Uri,
    info: RequestInfo,
    cluster: String,
    audit_id: String,
    /// `None` until there is a response; a client may not wait for it.
    status: Option<StatusCode>,
    received: Arc<AtomicU64>,
    sent: u64,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Dropped before its end: the client went away, or the proxy was told to stop.
    Abandoned,
    Complete,
    Cut,
    Failed(&'static str),
}

impl Access {
    /// `None` when requests are not logged.
    pub(super) fn begin(downstream: &Downstream, head: &http::request::Parts) -> Option<Box<Self>> {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return None;
        }
        Some(Box::new(Self {
            started: Instant::now(),
            head: None,
            client: downstream.peer.0,
            version: head.version,
            method: head.method.clone(),
            uri: head.uri.clone(),
            info: RequestInfo::of(&head.method, &head.uri),
            cluster: String::new(),
            audit_id: String::new(),
            status: None,
            received: Arc::default(),
            sent: 0,
            outcome: Outcome::Abandoned,
        }))
    }

    pub(super) fn routed(&mut self, cluster: &str) {
        cluster.clone_into(&mut self.cluster);
    }

    /// Counts the request's body as it comes.
    pub(super) fn receives(&mut self, received: Arc<AtomicU64>) {
        self.received = received;
    }

    /// Notes the head of a response, and logs the start of one that may go on for hours.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.head = Some(self.started.elapsed());
        self.status = Some(status);
        if let Some(id) = headers.get("audit-id").and_then(|id| id.to_str().ok()) {
            id.chars()
                .take(AUDIT_ID_CHARS)
                .collect::<String>()
                .clone_into(&mut self.audit_id);
        }
        let switches = status == StatusCode::SWITCHING_PROTOCOLS;
        if switches || (status.is_success() && self.info.is_long_running(&self.uri)) {
            info!(
                target: TARGET,
                cluster = self.cluster,
                client.address = %self.client,
                http.request.method = %Printable(self.method.as_str()),
                url.path = %Printable(self.uri.path()),
                http.response.status_code = status.as_u16(),
                k8s.verb = self.info.verb,
                k8s.resource = %Printable(&self.info.resource),
                k8s.namespace = %Printable(&self.info.namespace),
                k8s.audit_id = %Printable(&self.audit_id),
                "{}", if switches { "tunnel started" } else { "stream started" },
            );
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Notes that the response ended well. What the proxy answered in place of the apiserver stays failed.
    pub(super) fn complete(&mut self) {
        if !matches!(self.outcome, Outcome::Failed(_)) {
            self.outcome = Outcome::Complete;
        }
    }

    pub(super) fn cut(&mut self) {
        self.outcome = Outcome::Cut;
    }

    pub(super) fn failed(&mut self, label: &'static str) {
        self.outcome = Outcome::Failed(label);
    }

    /// Notes what a tunnel carried and that it ended.
    pub(super) fn tunnelled(&mut self, received: u64, sent: u64, whole: bool) {
        self.received.store(received, Ordering::Relaxed);
        self.sent = sent;
        self.outcome = if whole {
            Outcome::Complete
        } else {
            Outcome::Cut
        };
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let outcome = match self.outcome {
            Outcome::Abandoned => "client_gone",
            Outcome::Complete => "complete",
            Outcome::Cut => "cut",
            Outcome::Failed(label) => label,
        };
        info!(
            target: TARGET,
            cluster = self.cluster,
            client.address = %self.client,
            network.protocol.version = protocol(self.version),
            http.request.method = %Printable(self.method.as_str()),
            url.path = %Printable(self.uri.path()),
            http.response.status_code = self.status.map_or(0, |status| status.as_u16()),
            k8s.verb = self.info.verb,
            k8s.resource = %Printable(&self.info.resource),
            k8s.namespace = %Printable(&self.info.namespace),
            k8s.audit_id = %Printable(&self.audit_id),
            received_bytes = self.received.load(Ordering::Relaxed),
            sent_bytes = self.sent,
            head_seconds = seconds(self.head.unwrap_or_default()),
            duration_seconds = seconds(self.started.elapsed()),
            outcome,
            "request",
        );
    }
}

/// Text of a peer, with control and direction characters escaped and cut to a sane length, so that no
/// request can forge or garble a log line.
struct Printable<'a>(&'a str);

impl std::fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for char in self.0.chars().take(LOGGED_CHARS) {
            if char.is_control()
                || ('\u{202a}'..='\u{202e}').contains(&char)
                || ('\u{2066}'..='\u{2069}').contains(&char)
            {
                write!(f, "{}", char.escape_unicode())?;
            } else {
                std::fmt::Write::write_char(f, char)?;
            }
        }
        Ok(())
    }
}

/// To the microsecond; more digits are noise.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// The `tracing` target of access lines, for filters.
pub(super) const TARGET: &str = "kube_tls_proxy::access";
const LOGGED_CHARS: usize = 1024;
const AUDIT_ID_CHARS: usize = 64;
