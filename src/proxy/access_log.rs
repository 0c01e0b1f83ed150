//! Records one request: counts it at its end, logs it in one line, and lists a stream that may last for hours
//! on the status page.
//!
//! It never prints a query string, a subprotocol, or a header value other than the user agent, the host, the id of the
//! request and the audit ID, because each of the others can be a token. The name of the user comes from a token, but
//! only from one that the apiserver has verified (`end_user`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version, header};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    ClientConnection, Error, error,
    hints::CredentialProblem,
    request_client::{LoggedPeers, RequestClient},
    request_facts::{MAX_LOGGED_CHARS, RequestFacts},
    request_id::RequestId,
    request_info::RequestInfo,
    tunnel::Carried,
};
use crate::{
    activity::{EndUser, LongLived, StreamInfo},
    ending::{EndReason, Ending},
    hosts::UpstreamAddr,
    metrics::{
        ClusterLabel, ClusterSlot, Connected, OpenStream, Protocol, RequestRecord, Resource,
        TunnelEnd, Verb,
    },
    quote,
    text::{Escaped, error_chain, escape},
    upstream::{DownloadError, Origin, ResponseBody},
};

/// One request, from its head to the end of its response. Dropping it counts and logs the request.
#[derive(Debug)]
pub(super) struct AccessLog {
    connected: Arc<Connected>,
    /// The client, if a proxy in front names it.
    named: Option<Box<RequestClient>>,
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
    /// Who ended the response. `None` if it was dropped before its end.
    ending: Option<Ending>,
    /// The entry for the list of open streams. Present only until the response starts, and only for a request
    /// that may last for hours.
    long_lived: Option<Box<StreamInfo>>,
    open: Option<OpenStream>,
    facts: RequestFacts,
    /// Whether `facts` and `fields` hold copies, and no slices of the request's head.
    has_copies: bool,
    /// Present only when requests are logged.
    fields: Option<LogFields>,
}

/// Data that only the log line needs.
#[derive(Debug)]
struct LogFields {
    user_agent: Option<HeaderValue>,
    /// The host that the client asked for.
    host: Option<HeaderValue>,
    audit_id: Option<HeaderValue>,
    upstream: Option<Origin>,
    /// What few lines have.
    rare: Option<Box<RareFields>>,
}

/// Data of few log lines. Every other one pays only for a pointer.
#[derive(Debug, Default)]
struct RareFields {
    /// Requests of this client whose lines were left out before this one.
    suppressed: u64,
    /// The access rule that has denied the request. The inner `None`: no rule allows it.
    denied_by: Option<Option<u16>>,
    user: Option<Arc<EndUser>>,
    /// What is wrong with the credential, if the apiserver refuses it.
    credential_problem: Option<CredentialProblem>,
    /// The rule by which the proxy has refused the request.
    rejection: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Dropped before the end: the client left, or the proxy closed the connection.
    Abandoned,
    /// It ended in order. A watch that the drain ended between two events did too.
    Complete,
    Aborted,
    Failed(&'static str),
}

impl AccessLog {
    /// Starts the record of a request whose head has arrived. `named` is its client, if that is not the connection's.
    pub(super) fn new<B>(
        downstream: &ClientConnection,
        request: &Request<B>,
        named: Option<Box<RequestClient>>,
    ) -> Box<Self> {
        let info = RequestInfo::new(request.method(), request.uri());
        let headers = request.headers();
        let is_upgrade = headers.contains_key(header::UPGRADE);
        let kind = info.long_lived(request.uri());
        let kind = kind.or_else(|| is_upgrade.then_some(LongLived::Tunnel));
        let long_lived = kind.map(|kind| {
            let user_agent = headers.get(header::USER_AGENT);
            let user_agent = user_agent.and_then(|value| value.to_str().ok());
            Box::new(StreamInfo {
                kind,
                cluster: Arc::default(),
                client: named
                    .as_ref()
                    .map_or(downstream.peer, |named| named.address)
                    .0,
                user_agent: StreamInfo::text(user_agent.unwrap_or_default()),
                user: None,
                resource: StreamInfo::text(&info.resource_name()),
                namespace: StreamInfo::text(&info.namespace),
                name: StreamInfo::text(&info.name),
            })
        });
        let is_logged = tracing::enabled!(target: TARGET, tracing::Level::INFO);
        let fields = is_logged.then(|| LogFields::new(request));
        downstream.connected.place().begin_request();
        Box::new(Self {
            connected: Arc::clone(&downstream.connected),
            named,
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
            ending: None,
            long_lived,
            open: None,
            facts: RequestFacts {
                id: RequestId::from_headers(headers),
                method: request.method().clone(),
                uri: request.uri().clone(),
            },
            has_copies: false,
            fields,
        })
    }

    pub(super) fn id(&self) -> &RequestId {
        &self.facts.id
    }

    /// The client, if a proxy in front names it.
    pub(super) fn named(&self) -> Option<&RequestClient> {
        self.named.as_deref()
    }

    pub(super) fn peers(&self) -> LoggedPeers {
        LoggedPeers::new(&self.connected, self.named())
    }

    /// Whether the request asks for a watch. The drain may end its response between two events.
    pub(super) fn is_watch(&self) -> bool {
        self.is_watch
    }

    /// Notes the cluster that the request goes to.
    pub(super) fn routed(&mut self, cluster: &ClusterLabel) {
        self.cluster = self.connected.counters().begin_request(cluster);
    }

    /// Notes the upstream connection that the response comes from.
    pub(super) fn answered_by(&mut self, body: &ResponseBody) {
        if let Some(fields) = &mut self.fields {
            fields.upstream = Some(body.origin());
        }
    }

    /// Sets the counter of the request body's bytes.
    pub(super) fn set_received(&mut self, received: Option<Arc<AtomicU64>>) {
        self.received = received;
    }

    /// Notes that the head of the apiserver's response is there, and returns how long it took.
    pub(super) fn headers_arrived(&mut self) -> Duration {
        *self.time_to_headers.insert(self.started.elapsed())
    }

    /// Whether the log or the status page has a place for the user.
    pub(super) fn shows_user(&self) -> bool {
        self.fields.is_some() || self.long_lived.is_some()
    }

    /// Notes what is wrong with the credential.
    pub(super) fn set_credential_problem(&mut self, problem: Option<CredentialProblem>) {
        if let (Some(fields), Some(_)) = (&mut self.fields, problem) {
            fields.rare.get_or_insert_default().credential_problem = problem;
        }
    }

    /// Notes the user whom the apiserver has verified.
    pub(super) fn set_user(&mut self, user: Option<Arc<EndUser>>) {
        let Some(user) = user else {
            return;
        };
        if let Some(stream) = &mut self.long_lived {
            stream.user = Some(Arc::clone(&user));
        }
        if let Some(fields) = &mut self.fields {
            fields.rare.get_or_insert_default().user = Some(user);
        }
    }

    /// Notes the head of the response.
    pub(super) fn response_started(&mut self, status: StatusCode, headers: &HeaderMap) {
        if self.time_to_headers.is_none() {
            self.headers_arrived();
        }
        self.status = Some(status);
        if let Some(fields) = &mut self.fields {
            fields.audit_id = headers.get("audit-id").cloned();
        }
        self.list_stream(status);
    }

    /// Releases the buffer that the head of the request was read into, before a response that takes a while: a slice of
    /// the head keeps all of it. Most responses end before they wait, and pay for no copy. Proof: tests/it
    /// `silent_http1_connection_holds_at_most_one_buffer`.
    pub(super) fn release_head(&mut self) {
        if self.has_copies {
            return;
        }
        self.has_copies = true;
        if let Ok(uri) = Uri::try_from(self.facts.uri.to_string()) {
            self.facts.uri = uri;
        }
        let id = match &mut self.facts.id {
            RequestId::FromClient(id) => Some(id),
            RequestId::New(_) => None,
        };
        let fields = self.fields.as_mut().into_iter().flat_map(|fields| {
            let values = [
                &mut fields.user_agent,
                &mut fields.host,
                &mut fields.audit_id,
            ];
            values.into_iter().flatten()
        });
        for value in id.into_iter().chain(fields) {
            if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
                *value = copy;
            }
        }
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
        self.release_head();
        if let Some(fields) = &self.fields {
            let facts = &self.facts;
            let kubernetes = facts.kubernetes();
            let peers = self.peers();
            let user = fields.user();
            info!(
                target: TARGET,
                cluster = self.connected.cluster_name(self.cluster),
                client.address = %peers.client,
                network.peer.address = peers.network_peer.map(display),
                user_agent.original = fields.user_agent.as_ref().and_then(shortened).map(display),
                enduser.id = user.map(|user| display(&user.id)),
                enduser.issuer = user.and_then(|user| text(&user.issuer)).map(display),
                http.request.id = %facts.id,
                http.request.method = %facts.method(),
                url.domain = fields.host.as_ref().and_then(host).map(display),
                url.path = %facts.path(),
                http.response.status_code = status.as_u16(),
                k8s.verb = text(kubernetes.verb).map(display),
                k8s.resource = text(&kubernetes.resource).map(display),
                k8s.namespace = text(&kubernetes.namespace).map(display),
                k8s.audit_id = fields.audit_id.as_ref().and_then(shortened).map(display),
                upstream.address = fields.upstream.map(|origin| display(origin.endpoint)),
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

    /// Notes that the response or tunnel ended in order, and who ended it. A response that the proxy sent itself stays
    /// failed, and one that was aborted stays aborted.
    pub(super) fn completed(&mut self, ending: Ending) {
        if matches!(self.outcome, Outcome::Abandoned) {
            (self.outcome, self.ending) = (Outcome::Complete, Some(ending));
        }
    }

    /// Notes that the client left before it had the whole response.
    pub(super) fn abandoned(&mut self) {
        if matches!(self.outcome, Outcome::Complete) {
            (self.outcome, self.ending) = (Outcome::Abandoned, None);
        }
    }

    /// Notes that the client left before there was a response.
    pub(super) fn client_left(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// Notes that the response or tunnel ended early. The first reason stays.
    pub(super) fn aborted(&mut self, ending: Ending) {
        if !matches!(self.outcome, Outcome::Aborted) {
            (self.outcome, self.ending) = (Outcome::Aborted, Some(ending));
        }
    }

    /// Notes that the response ended early because of this error, and logs its cause.
    pub(super) fn cut(&mut self, error: &DownloadError) {
        self.aborted(error.ending());
        let peers = self.peers();
        let activity = self.connected.counters().activity();
        if let Some(suppressed) = activity.admit_line(peers.client.ip()) {
            warn!(
                cluster = self.connected.cluster_name(self.cluster),
                client.address = %peers.client,
                network.peer.address = peers.network_peer.map(display),
                http.request.id = %self.facts.id,
                upstream.address = self.upstream().map(display),
                error = %error_chain(error),
                suppressed_lines = Some(suppressed).filter(|lines| *lines > 0),
                "response aborted"
            );
        }
    }

    /// The apiserver that sends the response; `None` also if no line of the request will need it.
    fn upstream(&self) -> Option<UpstreamAddr> {
        let origin = self.fields.as_ref()?.upstream?;
        Some(origin.endpoint)
    }

    /// Counts and logs the error, to which the proxy itself responds. If this client has filled its share of the log,
    /// the request is not logged either.
    pub(super) fn failed(&mut self, error: &Error) {
        self.outcome = Outcome::Failed(error.label());
        self.ending = Some(error.ending());
        match error::record(
            error,
            self.cluster,
            &self.connected,
            self.peers(),
            &self.facts.id,
            Some(&self.facts),
        ) {
            None => self.fields = None,
            Some(suppressed) => {
                let Some(fields) = &mut self.fields else {
                    return;
                };
                if suppressed > 0 {
                    fields.rare.get_or_insert_default().suppressed = suppressed;
                }
                if let Error::Denied(denial) = error {
                    fields.rare.get_or_insert_default().denied_by = Some(denial.rule());
                }
                if let Error::Rejected(rejection) = error {
                    fields.rare.get_or_insert_default().rejection = Some(rejection.label());
                }
            }
        }
    }

    /// How the request ended, and who ended it.
    fn end(&self) -> (&'static str, Ending) {
        let ending = self.ending.unwrap_or_else(|| {
            // The connection is open, so the client has reset the stream.
            let cancelled = Ending::by_client(EndReason::Cancel);
            self.connected.end().unwrap_or(cancelled)
        });
        let outcome = match self.outcome {
            Outcome::Complete | Outcome::Abandoned if ending.reason.is_of_drain() => DRAINED,
            Outcome::Complete => "complete",
            Outcome::Aborted => "aborted",
            Outcome::Failed(label) => label,
            Outcome::Abandoned if ending.reason.is_of_limit() => "aborted",
            Outcome::Abandoned => "client_gone",
        };
        (outcome, ending)
    }

    fn log(&self, fields: &LogFields, received: u64, duration: Duration) {
        let facts = &self.facts;
        let kubernetes = facts.kubernetes();
        let (outcome, ending) = self.end();
        let peers = self.peers();
        let (user, rare) = (fields.user(), fields.rare.as_ref());
        info!(
            target: TARGET,
            cluster = self.connected.cluster_name(self.cluster),
            client.address = %peers.client,
            network.peer.address = peers.network_peer.map(display),
            user_agent.original = fields.user_agent.as_ref().and_then(shortened).map(display),
            enduser.id = user.map(|user| display(&user.id)),
            enduser.issuer = user.and_then(|user| text(&user.issuer)).map(display),
            network.protocol.version = protocol(self.version),
            http.request.id = %facts.id,
            http.request.method = %facts.method(),
            url.domain = fields.host.as_ref().and_then(host).map(display),
            url.path = %facts.path(),
            http.response.status_code = self.status.map_or(0, |status| status.as_u16()),
            k8s.verb = text(kubernetes.verb).map(display),
            k8s.resource = text(&kubernetes.resource).map(display),
            k8s.namespace = text(&kubernetes.namespace).map(display),
            k8s.audit_id = fields.audit_id.as_ref().and_then(shortened).map(display),
            upstream.address = fields.upstream.map(|origin| display(origin.endpoint)),
            upstream.reused = fields.upstream.map(|origin| origin.is_reused),
            received_bytes = received,
            sent_bytes = self.sent,
            time_to_headers_seconds = seconds(self.time_to_headers.unwrap_or_default()),
            duration_seconds = seconds(duration),
            outcome,
            access.rule = fields.denied_by(),
            ended_by = ending.by.label(),
            reason = rare.and_then(|rare| rare.rejection).unwrap_or_else(|| ending.reason.label()),
            credential.problem = rare.and_then(|rare| rare.credential_problem).map(CredentialProblem::label),
            suppressed_lines = rare.map(|rare| rare.suppressed).filter(|lines| *lines > 0),
            "request",
        );
    }

    /// How the tunnel ended, as a label.
    fn tunnel_end(&self) -> TunnelEnd {
        match self.end() {
            ("complete", _) => TunnelEnd::Complete,
            (DRAINED, _) => TunnelEnd::Drained,
            (_, ending) => TunnelEnd::by(ending.by),
        }
    }
}

impl LogFields {
    fn new<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        // Over HTTP/2 the target has the host.
        let authority = request.uri().authority();
        let authority = authority.and_then(|host| HeaderValue::try_from(host.as_str()).ok());
        Self {
            user_agent: headers.get(header::USER_AGENT).cloned(),
            host: authority.or_else(|| headers.get(header::HOST).cloned()),
            audit_id: None,
            upstream: None,
            rare: None,
        }
    }

    /// The number of the access rule that has denied the request, or `none` if none allows it.
    fn denied_by(&self) -> Option<String> {
        let rule = self.rare.as_ref()?.denied_by?;
        Some(rule.map_or_else(|| "none".to_owned(), |rule| rule.to_string()))
    }

    fn user(&self) -> Option<&EndUser> {
        self.rare.as_ref()?.user.as_deref()
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
        let is_own = matches!(self.outcome, Outcome::Failed(_));
        self.connected.counters().end_request(&RequestRecord {
            cluster: self.cluster,
            verb: self.verb,
            resource: self.resource,
            status: self.status,
            protocol: match self.version {
                Version::HTTP_2 => Protocol::Http2,
                _ => Protocol::Http1,
            },
            // A refusal of the proxy takes microseconds: many of them would hide a slow apiserver.
            time_to_headers: self.time_to_headers.filter(|_| !is_own),
            // The client decides how long a watch or tunnel lasts, so its duration says nothing about how
            // fast responses are.
            duration: (self.open.is_none() && self.status.is_some()).then_some(duration),
            is_stream: self.open.is_some(),
        });
        if self.status == Some(StatusCode::SWITCHING_PROTOCOLS) {
            let counters = self.connected.counters();
            let counters = counters.clusters().get(self.cluster);
            counters.tunnels_ended.count(self.tunnel_end());
        }
        if let Some(fields) = &self.fields {
            self.log(fields, received, duration);
        }
    }
}

/// Text for a field; `None` if it is empty.
fn text(text: &str) -> Option<Escaped<'_>> {
    (!text.is_empty()).then(|| escape(text, MAX_LOGGED_CHARS))
}

/// The value of a header, escaped and shortened; `None` if it is empty.
fn shortened(value: &HeaderValue) -> Option<String> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let text = escape(&text, MAX_VALUE_CHARS).to_string();
    (!text.is_empty()).then_some(text)
}

/// The host that a client asked for. A text that looks like a secret is hidden.
fn host(value: &HeaderValue) -> Option<String> {
    let text = String::from_utf8_lossy(value.as_bytes());
    let text = escape(&quote::name(&text), MAX_VALUE_CHARS).to_string();
    (!text.is_empty()).then_some(text)
}

/// Rounded to microseconds; more digits are noise.
pub(super) fn seconds(duration: Duration) -> f64 {
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
/// Of a header value.
const MAX_VALUE_CHARS: usize = 256;
/// The outcome of a response or tunnel that ended because the proxy stops.
/// The outcome of what ended for the drain.
pub(super) const DRAINED: &str = "drained";
