//! Stage 4: takes one request through policy, headers and upstream, and always has a response.

mod access;
pub(crate) mod bench;
mod body;
mod error;
mod headers;
mod notice;
mod policy;
mod request_info;
mod respond;
mod routes;
#[cfg(test)]
mod sizes;
mod tunnel;
mod upgrade;
mod watch;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use hyper::body::Incoming;

pub use body::{Body, Cut};
pub use error::Error;
pub use policy::Rejection;
pub use routes::Routes;

use crate::{
    config::Limits,
    drain::Drain,
    hosts::PeerAddr,
    metrics::Connected,
    upstream::{ClientLeases, Cluster, RequestBody},
};
use access::Access;
use headers::Vouched;
use policy::Admitted;

/// What all requests of one downstream connection have in common.
#[derive(Debug)]
pub struct Downstream {
    /// The client.
    pub peer: PeerAddr,
    /// The name of the TLS handshake, if it is one that is served.
    pub sni: Option<String>,
    /// The client's address as `X-Forwarded-For` carries it.
    pub forwarded_for: HeaderValue,
    /// The upstream connections of this client.
    pub lease: ClientLeases,
    /// Bounds on requests.
    pub limits: Limits,
    /// How long the second half of a tunnel may go on after the first has ended.
    pub half_close_timeout: Duration,
    /// The place of this connection among those that may be open; a tunnel keeps it to its own end.
    pub connected: Arc<Connected>,
    /// Where tunnels run.
    pub drain: Drain,
}

impl Downstream {
    /// The field value for a client's address: no port, because Go's `net.ParseIP` takes none, and an
    /// IPv4 client of a dual-stack socket as IPv4.
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

/// The fuzz bodies of this stage: header rewriting, the host policy and the reading of paths.
pub(crate) const FUZZ: [fn(&[u8]); 3] = [headers::fuzz, policy::fuzz, request_info::fuzz];

/// What a client reads when its request is refused before it reached [`handle`]: status and JSON.
#[must_use]
pub fn refusal(rejection: Rejection, connected: &Connected) -> (http::StatusCode, String) {
    notice::notice(&rejection.into(), connected);
    respond::refusal(rejection)
}

/// Ends the HTTP/1.1 connection behind this response.
pub(crate) fn close_after<B>(response: &mut Response<B>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// Answers one request. `broken` is what the listener already knows to be wrong with its form.
///
/// # Cancel safety
///
/// Dropping the future cancels the request upstream.
pub async fn handle(
    routes: &Routes,
    downstream: &Arc<Downstream>,
    request: Request<Incoming>,
    broken: Option<Rejection>,
) -> Response<Body> {
    let version = request.version();
    let asks_for_head = request.method() == Method::HEAD;
    let leaves_http =
        request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE);
    let mut access = None;
    let answered = match broken {
        Some(rejection) => {
            let (head, _) = request.into_parts();
            access = Some(Access::begin(downstream, &head));
            Err(rejection.into())
        }
        // On the heap: what it takes to get to the head of a response is free again while the body lasts.
        None => Box::pin(forward(routes, downstream, request, &mut access)).await,
    };
    let mut response = answered.unwrap_or_else(|error| {
        let mut response = failed(downstream, &error, &mut access);
        // What comes behind a request to leave HTTP may have been meant for the tunnel (RFC 9931).
        let is_uncertain = leaves_http
            || matches!(error, Error::Rejected(rejection) if rejection.is_about_framing());
        if version != Version::HTTP_2 && is_uncertain {
            close_after(&mut response);
        }
        if asks_for_head {
            // hyper leaves it out over HTTP/1.1 only, and clients of HTTP/2 take it for a broken stream.
            *response.body_mut() = Body::full(Bytes::new());
        }
        response
    });
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        if let Some(access) = &mut access {
            access.answered(response.status(), response.headers());
        }
        response.body_mut().set_access(access);
    }
    *response.version_mut() = version;
    response
}

/// Logs the cause, and makes the answer that names none.
fn failed(
    downstream: &Downstream,
    error: &Error,
    access: &mut Option<Box<Access>>,
) -> Response<Body> {
    notice::notice(error, &downstream.connected);
    if let Some(access) = access {
        access.failed(error.label());
    }
    respond::respond(error)
}

async fn forward(
    routes: &Routes,
    downstream: &Arc<Downstream>,
    request: Request<Incoming>,
    access: &mut Option<Box<Access>>,
) -> Result<Response<Body>, Error> {
    let (mut head, body) = request.into_parts();
    *access = Some(Access::begin(downstream, &head));
    let admitted = policy::admit(&head, routes, &downstream.limits, downstream.sni.as_deref())?;
    if let Some(access) = access {
        access.routed(admitted.cluster.name());
    }
    prepare(&mut head, downstream, &admitted)?;
    if let Some(token) = admitted.upgrade {
        let cluster = &admitted.cluster;
        // On the heap, so that every other request is not as large as a tunnel's beginning.
        let forwarded = upgrade::forward(downstream, cluster, head, body, token, access);
        return Ok(Box::pin(forwarded).await);
    }
    let body = RequestBody::new(body, head.version);
    if let Some(access) = access {
        access.receives(body.received());
    }
    let is_watch = watch::is_asked_for(&head.method, &head.uri);
    let response = downstream.lease.send(&admitted.cluster, head, body).await?;
    let (mut head, body) = response.into_parts();
    let events = (is_watch && head.status == http::StatusCode::OK)
        .then(|| watch::Events::of(&head.headers))
        .flatten();
    headers::rewrite_response(&mut head.headers);
    let body = match events {
        Some(events) => Body::watch(body, events, downstream),
        None => Body::upstream(body, downstream.peer),
    };
    Ok(Response::from_parts(head, body))
}

/// Makes the head what the apiserver shall see; path and query stay as they are, byte for byte.
fn prepare(head: &mut Parts, downstream: &Downstream, admitted: &Admitted) -> Result<(), Error> {
    let host = admitted.authority.as_str();
    let vouched = Vouched {
        client: &downstream.forwarded_for,
        host,
    };
    headers::rewrite_request(&mut head.headers, vouched, admitted.upgrade);
    head.headers.remove(header::HOST);
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(with_prefix(&admitted.cluster, parts.path_and_query)?);
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(admitted.authority.clone());
    head.uri = Uri::from_parts(parts).map_err(|_| Rejection::Target)?;
    Ok(())
}

/// The target behind the path prefix that a kubeconfig's server may carry. `*` is no path: it means the
/// server itself (RFC 9112 §3.2.4).
fn with_prefix(cluster: &Cluster, target: Option<PathAndQuery>) -> Result<PathAndQuery, Rejection> {
    let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    if cluster.path_prefix().is_empty() || target.path() == "*" {
        return Ok(target);
    }
    PathAndQuery::try_from(format!("{}{target}", cluster.path_prefix()))
        .map_err(|_| Rejection::Target)
}
