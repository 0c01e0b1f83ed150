//! Takes one request through policy, headers and upstream, and returns a response in every case.
//!
//! A request passes [`handle`], `policy::admit` and `headers::rewrite_request`, and goes upstream. Its response
//! comes back through `headers::rewrite_response` and [`Body`]. `watch` tracks the events of a watch; `upgrade`
//! and `tunnel` serve an upgrade. An `AccessLog` records each request from beginning to end.
//!
//! A connection for a passthrough host has no request that the proxy can see: `pass` joins it with an apiserver.

mod access;
mod access_log;
pub(crate) mod bench;
mod body;
mod credential;
mod end_user;
mod error;
mod headers;
mod hints;
mod identity;
mod passthrough;
mod policy;
mod published;
mod request_client;
mod request_facts;
mod request_id;
mod request_info;
mod respond;
#[cfg(test)]
mod tests;
mod tunnel;
mod upgrade;
mod watch;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};

pub(crate) use access::{AccessDecision, explain};
pub use access::{AccessRules, Denial, is_open};
pub use body::{Body, Cut};
pub use credential::{CredentialCache, CredentialError};
pub use error::Error;
pub(crate) use identity::certificate_ended;
pub use identity::{CertificateRefusal, ClientCertificates, PresentedCertificate, ProxyCredential};
pub(crate) use passthrough::{PassedClient, pass};
pub(crate) use policy::UPGRADE_CHECK;
pub use policy::{Rejection, Route, Routes};
pub use published::PublishedKubeconfig;
pub use request_info::{RequestAttributes, request_attributes};

use crate::{
    clients::Throttled,
    config::Settings,
    drain::Drain,
    hosts::PeerAddr,
    metrics::{ClusterSlot, Connected},
    upgrade_token::UpgradeToken,
    upstream::{ClientLeases, Cluster, RequestBody, UpstreamError, UpstreamRequest},
};
use access_log::AccessLog;
use body::Content;
use credential::CredentialPlace;
use headers::Forwarded;
use policy::{Admitted, ConnectionNames};
use request_client::{LoggedPeers, RequestClient};
use request_id::RequestId;
use respond::Reader;
pub(crate) use upgrade::start_tunnel;

/// One downstream connection, as all of its requests see it.
#[derive(Debug)]
pub struct ClientConnection {
    /// The client of the connection.
    pub peer: PeerAddr,
    /// The name of the TLS handshake, if a cluster is served under it.
    pub sni: Option<String>,
    /// The address that the client connected to.
    pub local: Option<SocketAddr>,
    /// The value of `X-Forwarded-For` for its requests.
    pub forwarded_for: HeaderValue,
    /// The certificate that the client has presented, if it was asked for one.
    pub certificate: Option<Arc<PresentedCertificate>>,
    /// The upstream connections of this client.
    pub leases: ClientLeases,
    /// The settings when the connection was accepted.
    pub settings: Arc<Settings>,
    /// Counts this connection against the connection limit. A tunnel holds it until it ends.
    pub connected: Arc<Connected>,
    /// Starts the tasks of this connection, and tells them when to finish.
    pub drain: Drain,
    /// The tokens that were read on this connection.
    pub credentials: CredentialCache,
}

impl ClientConnection {
    /// The value of `X-Forwarded-For` for a client. It has no port, because Go's `net.ParseIP` accepts none.
    /// An IPv4 client of a dual-stack socket is written as IPv4.
    ///
    /// # Panics
    ///
    /// Never: digits, dots and colons make a valid field value.
    #[must_use]
    pub fn forwarded_for(peer: PeerAddr) -> HeaderValue {
        let ip: IpAddr = peer.0.ip().to_canonical();
        HeaderValue::try_from(ip.to_string()).expect("an IP address is a valid field value")
    }
}

/// The fuzz bodies of this module: header rewriting, the host policy, the path reader, the events of watches,
/// credentials, access rules, `X-Forwarded-For` of a proxy in front, client certificates, and path prefixes.
pub(crate) const FUZZ: [fn(&[u8]); 9] = [
    headers::fuzz,
    policy::fuzz,
    request_info::fuzz,
    watch::fuzz,
    credential::fuzz,
    access::fuzz,
    request_client::fuzz,
    identity::fuzz,
    policy::fuzz_prefixes,
];

/// The response to a request whose head cannot be parsed, so that it does not reach [`handle`].
#[must_use]
pub fn refuse(rejection: Rejection, connected: &Connected) -> Response<Body> {
    let error = rejection.into();
    let id = RequestId::new();
    let peers = LoggedPeers::new(connected, None);
    error::record(&error, ClusterSlot::UNROUTED, connected, peers, &id, None);
    respond::respond(&error, &id, Reader::Api)
}

/// Makes an HTTP/1.1 connection close after this response.
pub(crate) fn close_after<B>(response: &mut Response<B>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// Forwards one request and returns the response. Every request gets one: if the apiserver sends none, the
/// proxy does. `rejection` is an error in the request's form that was found while its head was read.
///
/// # Cancel safety
///
/// Dropping the future cancels the request upstream.
pub async fn handle(
    routes: &Routes,
    downstream: &ClientConnection,
    mut request: Request<RequestBody>,
    rejection: Option<Rejection>,
) -> Response<Body> {
    let version = request.version();
    let below = if routes.has_prefixes() {
        policy::take_prefix(&mut request, routes, downstream.sni.as_deref())
    } else {
        None
    };
    let mut expected = ExpectedResponse::new(&request);
    if matches!(below, Some(Err(Rejection::NoSuchPrefix))) {
        expected.reader = Reader::below_unknown_prefix(&request);
    }
    let named = routes
        .trusted_proxies()
        .and_then(|trusted| RequestClient::new(trusted, downstream, request.headers()));
    let mut log = AccessLog::new(downstream, &request, named);
    let result = match rejection {
        Some(rejection) => Err(rejection.into()),
        // On the heap: the memory of `forward` is freed before the response body is sent.
        None => Box::pin(forward(routes, downstream, request, below, &mut log)).await,
    };
    let mut client_left = false;
    let mut response = result.unwrap_or_else(|error| {
        client_left = error.client_left();
        if client_left {
            log.client_left(error.ending());
        } else {
            log.failed(&error);
        }
        let mut response = expected.for_error(&error, log.id());
        if downstream.settings.hints {
            hints::add_to_own(&mut response, &error);
        }
        response
    });
    // No client gets the response then. As for every cancelled request, the log has no status.
    if !client_left {
        log.response_started(response.status(), response.headers());
        response.body_mut().set_log(log);
    }
    *response.version_mut() = version;
    response
}

/// What a request says about the form of its response, for the case that the proxy writes it.
struct ExpectedResponse {
    is_http2: bool,
    has_no_body: bool,
    /// The client wants to leave HTTP, so its next bytes may be meant for a tunnel (RFC 9931).
    leaves_http: bool,
    reader: Reader,
}

impl ExpectedResponse {
    fn new<B>(request: &Request<B>) -> Self {
        Self {
            is_http2: request.version() == Version::HTTP_2,
            has_no_body: request.method() == Method::HEAD,
            leaves_http: request.method() == Method::CONNECT
                || request.headers().contains_key(header::UPGRADE),
            reader: Reader::from_request(request),
        }
    }

    /// The response that tells the client about an error.
    fn for_error(&self, error: &Error, id: &RequestId) -> Response<Body> {
        let mut response = respond::respond(error, id, self.reader);
        let is_uncertain = self.leaves_http
            || matches!(error, Error::Rejected(rejection) if rejection.is_about_framing())
            || error::leaves_body_unread(error);
        if !self.is_http2 && is_uncertain {
            close_after(&mut response);
        }
        if self.has_no_body {
            // Over HTTP/1.1 it would be left out. HTTP/2 clients would see a broken stream.
            *response.body_mut() = Body::full("");
        }
        response
    }
}

/// Sends the request to the apiserver, and returns the response. `below` is what its path has named, if its host has
/// clusters by path.
async fn forward(
    routes: &Routes,
    downstream: &ClientConnection,
    request: Request<RequestBody>,
    below: Option<Result<Arc<Route>, Rejection>>,
    log: &mut AccessLog,
) -> Result<Response<Body>, Error> {
    let (mut head, body) = request.into_parts();
    let names = ConnectionNames::new(downstream);
    let admitted = policy::admit(&head, routes, &downstream.settings.limits, names, below)?;
    let cluster = &admitted.route.cluster;
    log.routed(cluster.label());
    if let Some(kubeconfig) = &admitted.route.published
        && published::is_asked_for(&head)
    {
        return published::respond(kubeconfig, &head, &admitted, downstream, log);
    }
    let (user, right) = identity::authenticate(&admitted.route, downstream, &head)?.unzip();
    if let Some(rules) = &admitted.route.access {
        let client = log.peers().client.ip();
        let credential = match &user {
            Some(_) => CredentialPlace::Certificate,
            None => CredentialPlace::Fields(&downstream.credentials),
        };
        rules.check(&head, client, admitted.upgrade, credential)?;
    }
    let place = downstream.connected.place();
    let client = log.named().map(|named| Arc::clone(&named.client));
    let certificate = user.as_ref().map(|user| user.credential());
    let check = place
        .check_budget(client.as_deref(), cluster.name(), &head, certificate)
        .map_err(
            |throttled| match (throttled, &admitted.route.certificates) {
                (Throttled::Refused(_), Some(certificates)) if user.is_some() => {
                    Rejection::RefusedProxy(certificates.refused_proxy())
                }
                _ => Rejection::Throttled(throttled),
            },
        )?;
    let failed = |error: &Error| {
        // A client that breaks off its own upload may have tried a credential.
        if !matches!(error, Error::Upstream(UpstreamError::Upload { .. })) {
            place.answered(client.as_deref(), check, StatusCode::BAD_GATEWAY);
        }
    };
    let forwarded_for = log.named().map(|named| &named.forwarded_for);
    let forwarded_for = forwarded_for.unwrap_or(&downstream.forwarded_for);
    prepare(&mut head, forwarded_for, &admitted, log.id())?;
    let logged = routes.logged_user();
    let claimed = match &user {
        _ if !log.shows_user() => None,
        Some(user) => {
            log.set_user(end_user::of_certificate(user.name(), logged));
            None
        }
        None => end_user::claimed(logged, &head, admitted.upgrade, &downstream.credentials),
    };
    let request = match user.as_ref().zip(right) {
        Some((user, right)) => UpstreamRequest::for_user(cluster, right, &user.fields, head),
        None => UpstreamRequest::from_client(cluster, head),
    };
    let sent = match admitted.upgrade {
        // On the heap, so that the future of every other request stays smaller.
        Some(token) => Box::pin(upgrade::forward(downstream, request, body, token, log)).await,
        None => exchange(downstream, request, body, log).await,
    };
    let mut response = sent.inspect_err(failed)?;
    let status = response.status();
    place.answered(client.as_deref(), check, status);
    let verified = end_user::verified(claimed, logged, status, response.headers());
    log.set_user(verified);
    if let (Some(_), Some(certificates)) = (&user, &admitted.route.certificates) {
        certificates.answered(downstream, cluster.name(), &mut response);
    }
    let problem = hints::explain(
        &mut response,
        check.has_credential(),
        downstream.settings.hints,
    );
    log.set_credential_problem(problem);
    Ok(response)
}

/// Sends a request that switches to no other protocol.
async fn exchange(
    downstream: &ClientConnection,
    request: UpstreamRequest<'_>,
    body: RequestBody,
    log: &mut AccessLog,
) -> Result<Response<Body>, Error> {
    log.set_received(body.received());
    let response = downstream.leases.send(request, body).await?;
    response.body().observe_headers(log.headers_arrived());
    let (mut head, body) = response.into_parts();
    log.answered_by(&body);
    let content = if log.is_watch() && head.status == StatusCode::OK {
        watch::content(body, &head.headers, &downstream.drain)
    } else {
        Content::Upstream(body)
    };
    headers::rewrite_response(&mut head.headers);
    Ok(Response::from_parts(head, Body::new(content)))
}

/// Rewrites the head for the apiserver. Path and query stay as they are, after the path prefix of the cluster if it
/// has one.
fn prepare(
    head: &mut Parts,
    forwarded_for: &HeaderValue,
    admitted: &Admitted,
    id: &RequestId,
) -> Result<(), Error> {
    let forwarded = Forwarded {
        client: forwarded_for,
        host: admitted.authority.as_str(),
        request_id: id.header_value(),
    };
    let upgrade = admitted.upgrade.map(UpgradeToken::value);
    headers::rewrite_request(&mut head.headers, forwarded, upgrade);
    head.headers.remove(header::HOST);
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(with_prefix(&admitted.route.cluster, parts.path_and_query)?);
    parts.scheme = Some(Scheme::HTTPS);
    let authority = admitted
        .route
        .cluster
        .authority()
        .unwrap_or(&admitted.authority);
    parts.authority = Some(authority.clone());
    head.uri = Uri::from_parts(parts).map_err(|_| Rejection::Target)?;
    Ok(())
}

/// Adds the cluster's path prefix, which comes from the server of a kubeconfig, to the target. `*` gets no
/// prefix: it is not a path but means the server itself (RFC 9112 §3.2.4).
fn with_prefix(cluster: &Cluster, target: Option<PathAndQuery>) -> Result<PathAndQuery, Rejection> {
    let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let prefix = cluster.path_prefix();
    // `https://host?x` has no path, and the apiserver must get one (RFC 9112 §3.2.1). `Display` writes it.
    let has_path = !target.as_str().starts_with('?');
    if prefix.is_empty() && has_path || target.path() == "*" {
        return Ok(target);
    }
    PathAndQuery::try_from(format!("{prefix}{target}")).map_err(|_| Rejection::Target)
}
