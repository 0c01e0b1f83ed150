//! Takes one upgrade request to its 101 and joins the two connections, or relays the refusal.
//!
//! No byte of the client goes upstream before the apiserver's 101 has gone down, and nothing but a 101
//! to the very protocol asked for starts a tunnel (CVE-2018-1002105).

use std::sync::Arc;

use http::{Request, Response, StatusCode, request::Parts};
use hyper::{body::Incoming, upgrade};
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::{
    Body, Downstream, Error, access::Access, close_after, failed, headers, policy::UpgradeToken,
    tunnel,
};
use crate::{
    drain::Kind,
    hosts::PeerAddr,
    text::error_chain,
    upstream::{Cluster, RequestBody, ResponseBody},
};

/// Sends the request on a connection of its own and does what the apiserver answers.
///
/// The downstream connection ends after anything but a 101: what the client may have sent behind its
/// request was meant for a tunnel and must not be read as a request.
pub(super) async fn forward(
    downstream: &Arc<Downstream>,
    cluster: &Cluster,
    head: Parts,
    body: Incoming,
    token: UpgradeToken,
    access: &mut Option<Box<Access>>,
) -> Response<Body> {
    let answered = ask(downstream, cluster, head, body, token, access).await;
    let mut response = answered.unwrap_or_else(|error| failed(downstream, &error, access));
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        close_after(&mut response);
    }
    response
}

/// # Errors
///
/// When there is no answer, or one that may not be passed on.
async fn ask(
    downstream: &Arc<Downstream>,
    cluster: &Cluster,
    head: Parts,
    body: Incoming,
    token: UpgradeToken,
    access: &mut Option<Box<Access>>,
) -> Result<Response<Body>, Error> {
    let mut asked = Request::from_parts(head, body);
    let client = upgrade::on(&mut asked);
    let (head, body) = asked.into_parts();
    let body = RequestBody::new(body, head.version);
    let response = downstream.lease.send_upgrade(cluster, head, body).await?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS if token.is_granted_by(response.headers()) => {
            switch(downstream, client, response, access)
        }
        StatusCode::SWITCHING_PROTOCOLS => Err(Error::WrongSwitch),
        status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
            Err(Error::RedirectedUpgrade)
        }
        _ => Ok(refused(response, downstream.peer)),
    }
}

/// An ordinary response.
fn refused(response: Response<ResponseBody>, client: PeerAddr) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    headers::rewrite_response(&mut head.headers);
    Response::from_parts(head, Body::upstream(body, client))
}

/// Passes the 101 on with its fields as they are (kube-rs wants exactly `Connection: Upgrade`) and
/// joins the two connections once it has gone out.
///
/// # Errors
///
/// None in practice: behind a 101 there is a connection.
fn switch(
    downstream: &Arc<Downstream>,
    client: upgrade::OnUpgrade,
    response: Response<ResponseBody>,
    access: &mut Option<Box<Access>>,
) -> Result<Response<Body>, Error> {
    let (head, body) = response.into_parts();
    let apiserver = body.into_upgraded().ok_or(Error::WrongSwitch)?;
    let mut access = access.take();
    if let Some(access) = &mut access {
        access.answered(head.status, &head.headers);
    }
    let rest = downstream.half_close_timeout;
    let peer = downstream.peer;
    let connected = Arc::clone(&downstream.connected);
    let tunnel = downstream.drain.count(Kind::Tunnel);
    downstream.drain.spawn(async move {
        let _tunnel = tunnel;
        // The downstream connection is over for hyper when the tunnel begins; for the limit it is not.
        let _connected = connected;
        // hyper fulfils this only after the 101 was flushed, so what the tunnel writes comes in
        // TLS records behind it: client-go's SPDY dialer drops bytes that share a record with the 101.
        let client = match client.await {
            Ok(client) => TokioIo::new(client),
            Err(error) => {
                debug!(client.address = %peer, error = %error_chain(&error), "upgrade not completed");
                return;
            }
        };
        let (carried, ended) = tunnel::join(client, apiserver, rest).await;
        if let Err(error) = &ended {
            debug!(client.address = %peer, error = %error_chain(error), "tunnel ended early");
        }
        if let Some(access) = &mut access {
            access.tunnelled(carried.up, carried.down, ended.is_ok());
        }
    });
    Ok(Response::from_parts(head, Body::full(bytes::Bytes::new())))
}
