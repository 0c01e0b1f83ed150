//! Forwards one upgrade request. After a 101 it returns the apiserver's side of a tunnel; a redirect or a 101 to
//! another protocol is an error; any other response is relayed.
//!
//! No byte that follows the request goes upstream before the apiserver's 101 has gone downstream, and only a 101 to
//! exactly the requested protocol starts a tunnel (CVE-2018-1002105).

use std::sync::Arc;

use http::{Response, StatusCode};
use tracing::debug;

use super::{
    Body, ClientConnection, Error,
    access_log::AccessLog,
    body::Content,
    certificate_ended, close_after, headers,
    request_client::LoggedPeers,
    tunnel::{self, Carried, TunnelError},
};
use crate::{
    drain::ConnectionKind,
    ending::{EndReason, Ending},
    http1::Upgraded,
    text::error_chain,
    upgrade_token::UpgradeToken,
    upstream::{RequestBody, UpstreamRequest},
};

/// Sends the request on an upstream connection of its own. Returns the response; after a 101 its
/// body is the apiserver's side of the tunnel.
///
/// After any other response the downstream connection is closed: the client may already have sent bytes
/// for a tunnel, which must not be read as a request.
///
/// # Errors
///
/// The apiserver sent no response, or one that must not be passed on.
pub(super) async fn forward(
    downstream: &ClientConnection,
    request: UpstreamRequest<'_>,
    body: RequestBody,
    token: UpgradeToken,
    log: &mut AccessLog,
) -> Result<Response<Body>, Error> {
    let response = downstream.leases.send_upgrade(request, body).await?;
    let (mut head, body) = response.into_parts();
    log.answered_by(&body);
    match head.status {
        StatusCode::SWITCHING_PROTOCOLS if token.is_granted_by(&head.headers) => {
            let apiserver = body.into_upgraded().ok_or(Error::UnexpectedProtocol)?;
            let tunnel = Body::new(Content::Tunnel(Box::new(apiserver)));
            // No hop-by-hop field is removed: kube-rs accepts only exactly `Connection: Upgrade`.
            Ok(Response::from_parts(head, tunnel))
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
            Ok(response)
        }
    }
}

/// Joins `client` with the apiserver's side of the tunnel, which is the body of a 101, in a task of its own. Call
/// it only after the 101 was flushed: client-go's SPDY dialer drops bytes that share a TLS record with the 101.
pub(crate) fn start_tunnel(body: Body, client: Upgraded, downstream: &ClientConnection) {
    let Some((apiserver, log)) = body.into_tunnel() else {
        return;
    };
    let half_close_timeout = downstream.settings.timeouts.half_close_timeout;
    let LoggedPeers {
        client: peer,
        network_peer,
    } = log.peers();
    let connected = Arc::clone(&downstream.connected);
    let certificate = downstream.certificate.clone();
    let counted = downstream.drain.count(ConnectionKind::Tunnel);
    connected.place().become_tunnel();
    downstream.drain.spawn(async move {
        let _counted = counted;
        // The connection's task has ended. The tunnel keeps its place.
        let mut tunnel = TunnelRecord {
            log,
            carried: Carried::default(),
        };
        let carried = &mut tunnel.carried;
        let joined =
            tunnel::join_in_place(client, *apiserver, half_close_timeout, &connected, carried);
        let result = tokio::select! {
            ended = joined => ended,
            () = certificate_ended(certificate.as_deref()) => {
                return tunnel.log.aborted(Ending::by_proxy(EndReason::Certificate));
            }
        };
        match result {
            Ok(ended) => tunnel.log.completed(ended),
            Err(TunnelError { ending, error }) => {
                debug!(client.address = %peer, network.peer.address = network_peer.map(display), error = %error_chain(&error), "tunnel aborted");
                tunnel.log.aborted(ending);
            }
        }
    });
}

/// The record of a tunnel. The line has the bytes that the tunnel carried also if its task is dropped, as at the
/// deadline of the drain.
struct TunnelRecord {
    log: Box<AccessLog>,
    carried: Carried,
}

impl Drop for TunnelRecord {
    fn drop(&mut self) {
        self.log.carried(self.carried);
    }
}
