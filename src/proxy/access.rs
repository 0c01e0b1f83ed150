//! What is known about one request: counted at its end, logged with one line, and listed while it goes on
//! for hours.
//!
//! Never a query string, a header value but the user agent, or a subprotocol: each of them can be a token.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header};
use tokio::time::Instant;
use tracing::info;

use super::{
    Downstream,
    request_info::{RequestInfo, ResourceName},
};
use crate::{
    activity::{LongLived, OpenStream, StreamInfo},
    metrics::{Counters, Protocol, RequestRecord, Resource, Verb},
    text::escape,
};

/// One request, from its head to the end of its answer; counted and logged when dropped.
#[derive(Debug)]
pub(super) struct Access {
    counts: Arc<Counters>,
    started: Instant,
    head: Option<Duration>,
    version: Version,
    verb: Verb,
    resource: Resource,
    /// `None` until there is a response; a client may not wait for it.
    status: Option<StatusCode>,
    received: Option<Arc<AtomicU64>>,
    sent: u64,
    outcome: Outcome,
    /// Only of what may go on for hours.
    asked: Option<Box<Asked>>,
    open: Option<OpenStream>,
    /// Only when requests are logged.
    logged: Option<Logged>,
}

/// Who asked, for the list of what is open.
#[derive(Debug)]
struct Asked {
    client: SocketAddr,
    user_agent: Option<HeaderValue>,
    method: Method,
    uri: Uri,
}

/// What only the log needs.
#[derive(Debug)]
struct Logged {
    client: SocketAddr,
    method: Method,
    uri: Uri,
    cluster: String,
    audit_id: String,
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
    /// A request whose head has just come.
    pub(super) fn begin(downstream: &Downstream, head: &http::request::Parts) -> Box<Self> {
        let info = RequestInfo::new(&head.method, &head.uri);
        let client = downstream.peer.0;
        let may_last =
            info.is_long_running(&head.uri) || head.headers.contains_key(header::UPGRADE);
        let asked = may_last.then(|| {
            Box::new(Asked {
                client,
                user_agent: head.headers.get(header::USER_AGENT).cloned(),
                method: head.method.clone(),
                uri: head.uri.clone(),
            })
        });
        let logged = tracing::enabled!(target: TARGET, tracing::Level::INFO).then(|| Logged {
            client,
            method: head.method.clone(),
            uri: head.uri.clone(),
            cluster: String::new(),
            audit_id: String::new(),
        });
        Box::new(Self {
            counts: Arc::clone(downstream.connected.counts()),
            started: Instant::now(),
            head: None,
            version: head.version,
            verb: info.verb_label(),
            resource: info.resource_label(),
            status: None,
            received: None,
            sent: 0,
            outcome: Outcome::Abandoned,
            asked,
            open: None,
            logged,
        })
    }

    pub(super) fn routed(&mut self, cluster: &str) {
        if let Some(logged) = &mut self.logged {
            cluster.clone_into(&mut logged.cluster);
        }
    }

    /// Counts the request's body as it comes.
    pub(super) fn receives(&mut self, received: Arc<AtomicU64>) {
        self.received = Some(received);
    }

    /// Notes the head of a response; lists and logs the start of one that may go on for hours.
    pub(super) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.head = Some(self.started.elapsed());
        self.status = Some(status);
        if let Some(logged) = &mut self.logged
            && let Some(id) = headers.get("audit-id").and_then(|id| id.to_str().ok())
        {
            logged.audit_id = id.chars().take(AUDIT_ID_CHARS).collect();
        }
        let Some(kind) = self.asked.as_deref().and_then(|asked| asked.kind(status)) else {
            return;
        };
        self.open = self.asked.as_deref().map(|asked| {
            OpenStream::new(
                Arc::clone(self.counts.activity()),
                asked.holder(kind, self.started),
            )
        });
        if let Some(logged) = &self.logged {
            let info = RequestInfo::new(&logged.method, &logged.uri);
            info!(
                target: TARGET,
                cluster = logged.cluster,
                client.address = %logged.client,
                http.request.method = %escape(logged.method.as_str(), MAX_LOGGED_CHARS),
                url.path = %escape(logged.uri.path(), MAX_LOGGED_CHARS),
                http.response.status_code = status.as_u16(),
                k8s.verb = info.verb,
                k8s.resource = %escape(&ResourceName(&info).to_string(), MAX_LOGGED_CHARS),
                k8s.namespace = %escape(&info.namespace, MAX_LOGGED_CHARS),
                k8s.audit_id = %escape(&logged.audit_id, MAX_LOGGED_CHARS),
                "{}", if kind == LongLived::Tunnel { "tunnel started" } else { "stream started" },
            );
        }
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.counts.sent.add(bytes as u64);
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
        self.received = Some(Arc::new(AtomicU64::new(received)));
        self.sent = sent;
        self.counts.sent.add(sent);
        self.outcome = if whole {
            Outcome::Complete
        } else {
            Outcome::Cut
        };
    }

    fn log(&self, logged: &Logged, received: u64, duration: Duration) {
        let outcome = match self.outcome {
            Outcome::Abandoned => "client_gone",
            Outcome::Complete => "complete",
            Outcome::Cut => "cut",
            Outcome::Failed(label) => label,
        };
        let info = RequestInfo::new(&logged.method, &logged.uri);
        info!(
            target: TARGET,
            cluster = logged.cluster,
            client.address = %logged.client,
            network.protocol.version = protocol(self.version),
            http.request.method = %escape(logged.method.as_str(), MAX_LOGGED_CHARS),
            url.path = %escape(logged.uri.path(), MAX_LOGGED_CHARS),
            http.response.status_code = self.status.map_or(0, |status| status.as_u16()),
            k8s.verb = info.verb,
            k8s.resource = %escape(&ResourceName(&info).to_string(), MAX_LOGGED_CHARS),
            k8s.namespace = %escape(&info.namespace, MAX_LOGGED_CHARS),
            k8s.audit_id = %escape(&logged.audit_id, MAX_LOGGED_CHARS),
            received_bytes = received,
            sent_bytes = self.sent,
            head_seconds = seconds(self.head.unwrap_or_default()),
            duration_seconds = seconds(duration),
            outcome,
            "request",
        );
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        let received = self.received.as_ref();
        let received = received.map_or(0, |received| received.load(Ordering::Relaxed));
        self.counts.received.add(received);
        self.counts.request(&RequestRecord {
            verb: self.verb,
            resource: self.resource,
            status: self.status,
            protocol: match self.version {
                Version::HTTP_2 => Protocol::Http2,
                _ => Protocol::Http1,
            },
            time_to_headers: self.head,
            // What lasts as long as its client wants says nothing about how fast answers are.
            duration: (self.open.is_none() && self.status.is_some()).then_some(duration),
        });
        if let Some(logged) = &self.logged {
            self.log(logged, received, duration);
        }
    }
}

impl Asked {
    /// What this request has become, if it goes on for hours.
    fn kind(&self, status: StatusCode) -> Option<LongLived> {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Some(LongLived::Tunnel);
        }
        let info = RequestInfo::new(&self.method, &self.uri);
        if !status.is_success() || !info.is_long_running(&self.uri) {
            return None;
        }
        Some(if info.verb == "watch" {
            LongLived::Watch
        } else {
            LongLived::Log
        })
    }

    fn holder(&self, kind: LongLived, since: Instant) -> StreamInfo {
        let info = RequestInfo::new(&self.method, &self.uri);
        let user_agent = self.user_agent.as_ref();
        let user_agent = user_agent.and_then(|value| value.to_str().ok());
        StreamInfo {
            kind,
            client: self.client,
            user_agent: StreamInfo::text(user_agent.unwrap_or_default()),
            resource: StreamInfo::text(&ResourceName(&info).to_string()),
            namespace: StreamInfo::text(&info.namespace),
            name: StreamInfo::text(&info.name),
            since,
        }
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
const MAX_LOGGED_CHARS: usize = 1024;
const AUDIT_ID_CHARS: usize = 64;
