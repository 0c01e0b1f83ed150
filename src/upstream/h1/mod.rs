//! One HTTP/1.1 connection to an apiserver: one request at a time, or an upgrade.
//!
//! It runs within the task of the request that uses it. hyper's client is not used: it keeps a task, a queue
//! and two buffers for every connection, which is a third of the cost of an HTTP/1.1 client
//! (docs/performance.md).

mod request;
mod response;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Response, StatusCode, request::Parts};
use tokio::time::Instant;

pub(super) use response::H1Response;

use super::{
    H1Error, HttpError, Origin, RefusedAuthorization, RequestBody, UpstreamError,
    endpoint::Endpoint, sockets::SocketPermit,
};
use crate::{
    drain::Drain,
    hosts::UpstreamAddr,
    http1::{MessageError, ResponseHead, Upgraded, Wire, take_response_head},
    metrics::{ConnectionStats, LeaseEnd},
    transport::Readable,
};
use request::{RequestWriter, SendError};

/// A connection that takes one request at a time.
#[derive(Debug)]
pub(super) struct H1Connection {
    wire: Wire,
    /// The endpoint of this connection. No request is sent on the connection once the endpoint is ejected.
    endpoint: Arc<Endpoint>,
    poisoned: bool,
    keep_alive: bool,
    /// Requests that were sent on it, including the current one.
    requests: u32,
    idle_since: Instant,
    stats: ConnectionStats,
    socket_permit: Option<Arc<SocketPermit>>,
}

/// Why there is no response, and the request if no byte of it was written. Returned in a box, because it
/// is rare and large.
#[derive(Debug)]
pub(super) struct ExchangeError {
    pub(super) error: UpstreamError,
    pub(super) unsent: Option<(Parts, RequestBody)>,
}

impl H1Connection {
    /// HTTP/1.1 on an established stream.
    pub(super) fn new(stream: Box<dyn Readable>, endpoint: Arc<Endpoint>) -> Self {
        Self {
            wire: Wire::new(stream),
            endpoint,
            poisoned: false,
            keep_alive: false,
            requests: 0,
            idle_since: Instant::now(),
            stats: ConnectionStats::default(),
            socket_permit: None,
        }
    }

    /// Keeps the permit of the socket until the connection is dropped.
    pub(super) fn with_socket_permit(self, permit: Arc<SocketPermit>) -> Self {
        Self {
            socket_permit: Some(permit),
            ..self
        }
    }

    pub(super) fn socket_permit(&self) -> Option<&SocketPermit> {
        self.socket_permit.as_deref()
    }

    pub(super) fn address(&self) -> UpstreamAddr {
        self.endpoint.address()
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn stats(&self) -> &ConnectionStats {
        &self.stats
    }

    fn origin(&self) -> Origin {
        Origin {
            endpoint: self.address(),
            is_reused: self.requests > 1,
        }
    }

    /// When its last exchange ended.
    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    /// Whether no request may be sent on it. No request runs on it, so data that was received is its end,
    /// or a response that belongs to no request.
    pub(super) fn is_closed(&mut self) -> bool {
        self.endpoint.is_ejected() || !self.wire.is_silent()
    }

    /// Whether the last exchange ended well and allows another request of the same client.
    pub(super) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether another client may use this connection.
    pub(super) fn is_reusable(&mut self) -> bool {
        !self.poisoned && !self.is_closed()
    }

    /// The stream of bytes after a 101.
    pub(super) fn into_upgraded(self) -> Upgraded {
        self.wire.into_upgraded()
    }

    fn finish_exchange(&mut self, keep_alive: bool) {
        self.idle_since = Instant::now();
        self.wire.is_idle = true;
        // Bytes that follow the response would be read as the next response.
        self.keep_alive = keep_alive && self.wire.unread.is_empty();
    }
}

impl AsMut<Self> for H1Connection {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}

/// Sends one request on the connection that `holder` holds, and drops `holder` at the end of the response;
/// after a 101 the response keeps it for [`H1Response::into_connection`].
/// If the response ends before the upload, the rest is sent by a task of `drain`.
///
/// # Errors
///
/// The error holds the request if no byte of it was written.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub(super) async fn exchange<C>(
    mut holder: C,
    request: Parts,
    body: RequestBody,
    drain: &Drain,
) -> Result<Response<H1Response<C>>, Box<ExchangeError>>
where
    C: AsMut<H1Connection> + Send + 'static,
{
    let connection = holder.as_mut();
    let endpoint = connection.address();
    connection.keep_alive = false;
    if !connection.wire.is_silent() {
        let source = HttpError::H1(H1Error::Closed);
        return Err(Box::new(ExchangeError {
            error: UpstreamError::Unsent { endpoint, source },
            unsent: Some((request, body)),
        }));
    }
    connection.wire.is_idle = false;
    connection.requests = connection.requests.saturating_add(1);
    let mut exchange = Exchange {
        request: RequestWriter::new(&request, body),
        method: request.method,
        refused: None,
        interim: 0,
    };
    let mut reset = ResetOnDrop(Some(&connection.stats));
    let received = poll_fn(|cx| exchange.poll_head(&mut connection.wire, cx)).await;
    if matches!(
        received,
        Ok(_) | Err(H1Error::Closed | H1Error::Message(MessageError::Io(_)))
    ) {
        reset.0 = None;
    }
    drop(reset);
    let head = received.map_err(|error| {
        let error = if let H1Error::Upload(source) = error {
            UpstreamError::Upload { source }
        } else {
            UpstreamError::no_response(endpoint, HttpError::H1(error))
        };
        Box::new(ExchangeError {
            error,
            unsent: None,
        })
    })?;
    if head.parts.status == StatusCode::UNAUTHORIZED {
        connection.poisoned = true;
        connection.stats.set_end_reason(LeaseEnd::Unauthorized);
    }
    let keep_alive = exchange.refused.is_none();
    let body = H1Response::new(holder, exchange.request, &head, keep_alive, drain);
    let mut response = Response::from_parts(head.parts, body);
    RefusedAuthorization::keep_for(&mut response, &request.headers);
    Ok(response)
}

/// Records a reset when a request is dropped before its response.
struct ResetOnDrop<'a>(Option<&'a ConnectionStats>);

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(stats) = self.0 {
            stats.set_end_reason(LeaseEnd::Reset);
        }
    }
}

/// A request that has no response yet.
struct Exchange {
    request: RequestWriter,
    method: Method,
    /// Why the apiserver accepts no more of the request.
    refused: Option<H1Error>,
    /// Interim responses received so far.
    interim: usize,
}

impl Exchange {
    /// Sends the request and reads the head of the response at the same time: an apiserver may answer 413
    /// long before the end of an upload, and accept no more of it.
    fn poll_head(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, H1Error>> {
        match wire.with_io(|io| self.request.poll_send(io, cx)) {
            Poll::Ready(Err(SendError::Upload(error))) => {
                return Poll::Ready(Err(H1Error::Upload(error)));
            }
            Poll::Ready(Err(SendError::Refused(error))) => {
                self.refused = Some(MessageError::Io(error).into())
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        loop {
            match take_response_head(&mut wire.unread, &self.method)? {
                Some(head) if head.is_interim() && self.interim == MAX_INTERIM_RESPONSES => {
                    return Poll::Ready(Err(H1Error::Interim {
                        max: MAX_INTERIM_RESPONSES,
                    }));
                }
                Some(head) if head.is_interim() => self.interim += 1,
                Some(head) => return Poll::Ready(Ok(head)),
                None => match ready!(wire.poll_more(cx)) {
                    Ok(0) => {
                        return Poll::Ready(Err(self.refused.take().unwrap_or(H1Error::Closed)));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let lost = MessageError::Io(error).into();
                        return Poll::Ready(Err(self.refused.take().unwrap_or(lost)));
                    }
                },
            }
        }
    }
}

/// Interim responses (`100 Continue`, `103 Early Hints`) before the final one; kube-apiserver sends none.
const MAX_INTERIM_RESPONSES: usize = 100;
