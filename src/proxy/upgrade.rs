//! Forwards one upgrade request. After a 101 it returns a tunnel to start; a redirect or a 101 to another
//! protocol is an error; any other response is relayed.
//!
//! No byte that follows the request goes upstream before the apiserver's 101 has gone downstream, and only a 101 to
//! exactly the requested protocol starts a tunnel (CVE-2018-1002105).

use std::sync::Arc;

use http::{Request, Response, StatusCode, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::{
    Body, ClientConnection, Error, access_log::AccessLog, body::Content, close_after, headers,
    policy::UpgradeToken, tunnel,
};
use crate::{
    drain::ConnectionKind,
    http1::Upgraded,
    metrics::Limit,
    text::error_chain,
    upstream::{Cluster, RequestBody},
};

/// The two connections of an upgraded request, not joined yet.
#[derive(Debug)]
pub(super) struct PendingTunnel {
    client: OnUpgrade,
    apiserver: Upgraded,
}

/// Sends the request on an upstream connection of its own. Returns the response, and after a 101 the
/// tunnel to start.
///
/// After any other response the downstream connection is closed: the client may already have sent bytes
/// for a tunnel, which must not be read as a request.
///
/// # Errors
///
/// The apiserver sent no response, or one that must not be passed on.
pub(super) async fn forward(
    downstream: &ClientConnection,
    cluster: &Cluster,
    head: Parts,
    body: Incoming,
    token: UpgradeToken,
) -> Result<(Response<Body>, Option<PendingTunnel>), Error> {
    let mut request = Request::from_parts(head, body);
    let client = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = RequestBody::from_hyper(body, head.version);
    let response = downstream.leases.send_upgrade(cluster, head, body).await?;
    let (mut head, body) = response.into_parts();
    match head.status {
        StatusCode::SWITCHING_PROTOCOLS if token.is_granted_by(&head.headers) => {
            let apiserver = body.into_upgraded().ok_or(Error::UnexpectedProtocol)?;
            let tunnel = PendingTunnel { client, apiserver };
            // No hop-by-hop field is removed: kube-rs accepts only exactly `Connection: Upgrade`.
            let response = Response::from_parts(head, Body::full(""));
            Ok((response, Some(tunnel)))
        }
        StatusCode::SWITCHING_PROTOCOLS => Err(Error::UnexpectedProtocol),
        status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
            Err(Error::RedirectedUpgrade)
        }
        _ => {
            headers::rewrite_response(&mut head.headers);
            let body = Body::new(Content::Upstream(body));
            let mut response = Response::from_parts(head, body);
            close_after(&mut response);
            Ok((response, None))
        }
    }
}

impl PendingTunnel {
    /// Joins the two connections in a task of its own, once the 101 has been sent.
    pub(super) fn start(self, downstream: &ClientConnection, mut log: Box<AccessLog>) {
        let half_close_timeout = downstream.half_close_timeout;
        let peer = downstream.peer;
        let connected = Arc::clone(&downstream.connected);
        let counted = downstream.drain.count(ConnectionKind::Tunnel);
        connected.place().become_tunnel();
        downstream.drain.spawn(async move {
            let _counted = counted;
            // hyper resolves this only after it has flushed the 101. The tunnel's bytes therefore go into
            // later TLS records: client-go's SPDY dialer drops bytes that share a record with the 101.
            let client = match self.client.await {
                Ok(client) => TokioIo::new(client),
                Err(error) => {
                    debug!(client.address = %peer, error = %error_chain(&error), "upgrade not completed");
                    return;
                }
            };
            let joined = tunnel::join(client, self.apiserver, half_close_timeout);
            // hyper considers the downstream connection finished once the tunnel begins. It keeps its place.
            let (carried, result) = tokio::select! {
                ended = joined => ended,
                () = connected.place().closing() => {
                    connected.counters().limits_hit.count(Limit::ClientPlaces);
                    return log.aborted();
                }
            };
            log.carried(carried);
            match result {
                Ok(()) => log.completed(),
                Err(error) => {
                    debug!(client.address = %peer, error = %error_chain(&error), "tunnel aborted");
                    log.aborted();
                }
            }
        });
    }
}
