//! Records one request: counts it at its end, logs it in one line, and lists a stream that may last for hours
//! on the status page.
//!
//! It never prints a query string, a subprotocol, or a header value other than the user agent and the audit
//! ID, because each of the others can be a token.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header};
use tokio::time::Instant;
use tracing::info;

use super::{ClientConnection, request_info::RequestInfo, tunnel::Carried};
use crate::{
    activity::{LongLived, StreamInfo},
    metrics::{
        ClusterLabel, ClusterSlot, Connected, OpenStream, Protocol, RequestRecord, Resource, Verb,
    },
    text::escape,
};

/// One request, from its head to the end of its response. Dropping it counts and logs the request.
#[derive(Debug)]
pub(super) struct AccessLog {
    connected: Arc<Connected>,
    started: Instant,
    time_to_headers: Option<Duration>,
    version: Version,
    verb: Verb,
    is_watch: bool,
    resource: Resource,
    cluster: ClusterSlot,
    /// `None` until there is a response. The client may leave before that.
    status: Option<StatusCode>,
    received: Option<Arc<AtomicU64>>,
    sent: u64,
    outcome: Outcome,
    /// The entry for the list of open streams. Present only until the response starts, and only for a request
    /// that may last for hours.
    long_lived: Option<Box<StreamInfo>>,
    open: Option<OpenStream>,
    /// Present only when requests are logged.
    fields: Option<LogFields>,
}

/// Data that only the log line needs.
#[derive(Debug)]
struct LogFields {
    method: Method,
    uri: Uri,
    verb: &'static str,
    resource: String,
    namespace: String,
    cluster: String,
    audit_id: String,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Dropped before the end: the client left, or the drain timeout passed.
    Abandoned,
    Complete,
    Aborted,
    Failed(&'static str),
}

impl AccessLog {
    /// Starts the record of a request whose head has arrived.
    pub(super) fn new<B>(downstream: &ClientConnection, request: &Request<B>) -> Box<Self> {
        let info = RequestInfo::new(request.method(), request.uri());
        let is_upgrade = request.headers().contains_key(header::UPGRADE);
        let kind = info.long_lived(request.uri());
        let kind = kind.or_else(|| is_upgrade.then_some(LongLived::Tunnel));
        let long_lived = kind.map(|kind| {
            let user_agent = request.headers().get(header::USER_AGENT);
            let user_agent = user_agent.and_then(|value| value.to_str().ok());
            Box::new(StreamInfo {
                kind,
                cluster: Arc::default(),
                client: downstream.peer.0,
                user_agent: StreamInfo::text(user_agent.unwrap_or_default()),
                resource: StreamInfo::text(&info.resource_name()),
                namespace: StreamInfo::text(&info.namespace),
                name: StreamInfo::text(&info.name),
            })
        });
        let is_logged = tracing::enabled!(target: TARGET, tracing::Level::INFO);
        let fields = is_logged.then(|| LogFields {
            method: request.method().clone(),
            uri: request.uri().clone(),
            verb: info.verb,
            resource: info.resource_name(),
            namespace: info.namespace.to_string(),
            cluster: String::new(),
            audit_id: String::new(),
        });
        downstream.connected.place().begin_request();
        Box::new(Self {
            connected: Arc::clone(&downstream.connected),
            started: Instant::now(),
            time_to_headers: None,
            version: request.version(),
            verb: info.verb_label(),
            is_watch: info.is_watch(),
            resource: info.resource_label(),
            cluster: ClusterSlot::UNROUTED,
            status: None,
            received: None,
            sent: 0,
            outcome: Outcome::Abandoned,
            long_lived,
            open: None,
            fields,
        })
    }

    /// The client that sent the request.
    pub(super) fn client(&self) -> SocketAddr {
        self.connected.client()
    }

    /// Whether the request asks for a watch. `forward` uses it to decide whether the drain may end the response
    /// between two events.
    pub(super) fn is_watch(&self) -> bool {
        self.is_watch
    }

    /// Notes the cluster that the request goes to.
    pub(super) fn routed(&mut self, cluster: &ClusterLabel) {
        self.cluster = self.connected.counters().begin_request(cluster);
        if let Some(fields) = &mut self.fields {
            cluster.name().clone_into(&mut fields.cluster);
        }
    }

    /// The cluster that the request goes to.
    pub(super) fn cluster(&self) -> ClusterSlot {
        self.cluster
    }

    /// Sets the counter of the request body's bytes.
    pub(super) fn set_received(&mut self, received: Option<Arc<AtomicU64>>) {
        self.received = received;
    }

    /// Notes that the head of the apiserver's response is there, and returns how long it took.
    pub(super) fn headers_arrived(&mut self) -> Duration {
        *self.time_to_headers.insert(self.started.elapsed())
    }

    /// Notes the head of the response.
    pub(super) fn response_started(&mut self, status: StatusCode, headers: &HeaderMap) {
        if self.time_to_headers.is_none() {
            self.headers_arrived();
        }
        self.status = Some(status);
        if let Some(fields) = &mut self.fields
            && let Some(id) = headers.get("audit-id").and_then(|id| id.to_str().ok())
        {
            fields.audit_id = id.chars().take(MAX_AUDIT_ID_CHARS).collect();
        }
        self.list_stream(status);
    }

    /// Lists a response that may last for hours on the status page, and logs its start.
    fn list_stream(&mut self, status: StatusCode) {
        let Some(mut stream) = self.long_lived.take() else {
            return;
        };
        if status == StatusCode::SWITCHING_PROTOCOLS {
            stream.kind = LongLived::Tunnel;
        } else if !status.is_success() || stream.kind == LongLived::Tunnel {
            return;
        }
        let kind = stream.kind;
        let counters = self.connected.counters();
        stream.cluster = counters.clusters().name(self.cluster);
        self.open = Some(counters.open_stream(self.cluster, *stream, self.started));
        if let Some(fields) = &self.fields {
            info!(
                target: TARGET,
                cluster = fields.cluster,
                client.address = %self.connected.client(),
                http.request.method = %escape(fields.method.as_str(), MAX_LOGGED_CHARS),
                url.path = %escape(fields.uri.path(), MAX_LOGGED_CHARS),
                http.response.status_code = status.as_u16(),
                k8s.verb = fields.verb,
                k8s.resource = %escape(&fields.resource, MAX_LOGGED_CHARS),
                k8s.namespace = %escape(&fields.namespace, MAX_LOGGED_CHARS),
                k8s.audit_id = %escape(&fields.audit_id, MAX_LOGGED_CHARS),
                "{}", if kind == LongLived::Tunnel { "tunnel started" } else { "stream started" },
            );
        }
    }

    /// Counts bytes of the response body.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.connected.counters().sent.add(bytes as u64);
    }

    /// Notes the bytes that a tunnel carried.
    pub(super) fn carried(&mut self, carried: Carried) {
        self.received = Some(Arc::new(AtomicU64::new(carried.up)));
        self.sent = carried.down;
        self.connected.counters().sent.add(carried.down);
    }

    /// Notes that the response ended in order. A response that the proxy sent itself stays failed, and one that
    /// was aborted stays aborted.
    pub(super) fn completed(&mut self) {
        if !matches!(self.outcome, Outcome::Failed(_) | Outcome::Aborted) {
            self.outcome = Outcome::Complete;
        }
    }

    /// Notes that the client left before it had the whole response.
    pub(super) fn abandoned(&mut self) {
        if matches!(self.outcome, Outcome::Complete) {
            self.outcome = Outcome::Abandoned;
        }
    }

    /// Notes that the response or tunnel ended early.
    pub(super) fn aborted(&mut self) {
        self.outcome = Outcome::Aborted;
    }

    /// Notes that the proxy sends the response itself, because of the error with this label.
    pub(super) fn failed(&mut self, label: &'static str) {
        self.outcome = Outcome::Failed(label);
    }

    fn log(&self, fields: &LogFields, received: u64, duration: Duration) {
        let outcome = match self.outcome {
            Outcome::Abandoned => "client_gone",
            Outcome::Complete => "complete",
            Outcome::Aborted => "aborted",
            Outcome::Failed(label) => label,
        };
        info!(
            target: TARGET,
            cluster = fields.cluster,
            client.address = %self.connected.client(),
            network.protocol.version = protocol(self.version),
            http.request.method = %escape(fields.method.as_str(), MAX_LOGGED_CHARS),
            url.path = %escape(fields.uri.path(), MAX_LOGGED_CHARS),
            http.response.status_code = self.status.map_or(0, |status| status.as_u16()),
            k8s.verb = fields.verb,
            k8s.resource = %escape(&fields.resource, MAX_LOGGED_CHARS),
            k8s.namespace = %escape(&fields.namespace, MAX_LOGGED_CHARS),
            k8s.audit_id = %escape(&fields.audit_id, MAX_LOGGED_CHARS),
            received_bytes = received,
            sent_bytes = self.sent,
            time_to_headers_seconds = seconds(self.time_to_headers.unwrap_or_default()),
            duration_seconds = seconds(duration),
            outcome,
            "request",
        );
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        let now = Instant::now();
        let duration = now.duration_since(self.started);
        self.connected.place().end_request(now);
        let received = self.received.as_ref();
        let received = received.map_or(0, |received| received.load(Ordering::Relaxed));
        self.connected.counters().received.add(received);
        self.connected.counters().end_request(&RequestRecord {
            cluster: self.cluster,
            verb: self.verb,
            resource: self.resource,
            status: self.status,
            protocol: match self.version {
                Version::HTTP_2 => Protocol::Http2,
                _ => Protocol::Http1,
            },
            time_to_headers: self.time_to_headers,
            // The client decides how long a watch or tunnel lasts, so its duration says nothing about how
            // fast responses are.
            duration: (self.open.is_none() && self.status.is_some()).then_some(duration),
            is_stream: self.open.is_some(),
        });
        if let Some(fields) = &self.fields {
            self.log(fields, received, duration);
        }
    }
}

/// Rounded to microseconds; more digits are noise.
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

/// The `tracing` target of access log lines, for filters.
pub(super) const TARGET: &str = "kube_tls_proxy::access";
const MAX_LOGGED_CHARS: usize = 1024;
const MAX_AUDIT_ID_CHARS: usize = 64;
