//! One HTTP/1.1 connection to an apiserver: one request at a time, or an upgrade.
//!
//! It runs within the task of the request that uses it, and hyper's client is not under it: that keeps a
//! task, a queue and two buffers for every connection, which is a third of what an HTTP/1.1 client costs
//! (docs/performance.md). httparse reads heads, sizes of chunks and trailers.

mod body;
mod error;
mod head;
mod request;
mod response;
mod sending;
mod upgraded;
mod wire;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Method, Response, StatusCode, request::Parts};
use tokio::time::Instant;

pub use error::H1Error;
pub(super) use response::{GiveBack, H1Response};
pub use upgraded::Upgraded;

use super::{HttpError, RequestBody, ResponseBody, UpstreamError, endpoint::Endpoint};
use crate::{
    drain::Drain,
    hosts::UpstreamAddr,
    metrics::{ConnectionStats, LeaseEnd},
    transport::Readable,
};
use head::ResponseHead;
use sending::{SendError, Sending};
use wire::Wire;

/// The fuzz bodies of this leg: the head of a response, and a chunked body.
pub(super) const FUZZ: [fn(&[u8]); 2] = [head::fuzz, body::fuzz];

/// A connection that takes one request at a time.
#[derive(Debug)]
pub(super) struct H1Connection {
    wire: Wire,
    endpoint: UpstreamAddr,
    /// What is known of that; retires the connection when it is nothing good.
    endpoint_health: Option<Arc<Endpoint>>,
    poisoned: bool,
    idle_since: Instant,
    stats: ConnectionStats,
}

/// Why there is no answer, and the request if not a byte of it was written. Boxed where it is returned,
/// since answers are what mostly comes.
#[derive(Debug)]
pub(super) struct ExchangeError {
    pub(super) error: UpstreamError,
    pub(super) unsent: Option<(Parts, RequestBody)>,
}

impl H1Connection {
    /// HTTP/1.1 on an established stream.
    pub(super) fn new(stream: Box<dyn Readable>, endpoint: UpstreamAddr) -> Self {
        Self {
            wire: Wire::new(stream),
            endpoint,
            endpoint_health: None,
            poisoned: false,
            idle_since: Instant::now(),
            stats: ConnectionStats::default(),
        }
    }

    /// What is counted of it.
    pub(super) fn stats(&self) -> &ConnectionStats {
        &self.stats
    }

    /// The same, known to lead to this endpoint.
    pub(super) fn to(mut self, endpoint: Arc<Endpoint>) -> Self {
        self.endpoint_health = Some(endpoint);
        self
    }

    /// Since when nothing has run on it.
    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    pub(super) fn becomes_idle(&mut self) {
        self.idle_since = Instant::now();
        self.wire.is_idle = true;
    }

    pub(super) fn endpoint(&self) -> UpstreamAddr {
        self.endpoint
    }

    /// Whether nothing more may be sent on it. Nothing runs on it, so that whatever it has to say is its
    /// end, or an answer that nobody asked for.
    pub(super) fn is_closed(&mut self) -> bool {
        let endpoint_health = self.endpoint_health.as_deref();
        endpoint_health.is_some_and(Endpoint::is_ejected) || !self.wire.is_silent()
    }

    /// Whether another client may have this connection.
    pub(super) fn is_reusable(&mut self) -> bool {
        !self.poisoned && !self.is_closed()
    }

    /// Sends a request of its own; the connection goes back to `give_back` after a good end. An upload
    /// that is longer than the answer goes on as a task of `drain`.
    ///
    /// # Errors
    ///
    /// With the request if not a byte of it was written.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
    pub(super) async fn exchange(
        mut self,
        head: Parts,
        body: RequestBody,
        give_back: Option<GiveBack>,
        drain: &Drain,
    ) -> Result<Response<ResponseBody>, Box<ExchangeError>> {
        let endpoint = self.endpoint;
        if !self.wire.is_silent() {
            let source = HttpError::H1(H1Error::Closed);
            return Err(Box::new(ExchangeError {
                error: UpstreamError::Unsent { endpoint, source },
                unsent: Some((head, body)),
            }));
        }
        self.wire.is_idle = false;
        let mut exchange = Exchange {
            sending: Sending::new(&head, body),
            method: head.method,
            stopped: None,
            interim: 0,
        };
        let mut failed = ResetOnDrop(Some(&self.stats));
        let answered = poll_fn(|cx| exchange.poll_answer(&mut self.wire, cx)).await;
        if matches!(answered, Ok(_) | Err(H1Error::Closed | H1Error::Io(_))) {
            failed.0 = None;
        }
        drop(failed);
        let head = answered.map_err(|fault| {
            let error = if let H1Error::Upload(source) = fault {
                UpstreamError::Upload { source }
            } else {
                let source = HttpError::H1(fault);
                UpstreamError::Lost { endpoint, source }
            };
            Box::new(ExchangeError {
                error,
                unsent: None,
            })
        })?;
        if head.parts.status == StatusCode::UNAUTHORIZED {
            self.poisoned = true;
            self.stats.set_end_reason(LeaseEnd::Unauthorized);
        }
        let stopped = exchange.stopped.is_some();
        let give_back = give_back.filter(|_| !stopped);
        let answer = H1Response::new(self, exchange.sending, &head, give_back, drain);
        Ok(Response::from_parts(head.parts, answer.into()))
    }
}

/// Notes that a request was given up before its answer, when dropped.
struct ResetOnDrop<'a>(Option<&'a ConnectionStats>);

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(stats) = self.0 {
            stats.set_end_reason(LeaseEnd::Reset);
        }
    }
}

/// A request that has no answer yet.
struct Exchange {
    sending: Sending,
    method: Method,
    /// Why the apiserver takes no more of the request.
    stopped: Option<H1Error>,
    interim: usize,
}

impl Exchange {
    /// Sends, and reads what comes meanwhile: an apiserver may answer 413 long before the end of an
    /// upload, and take no more of it.
    fn poll_answer(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseHead, H1Error>> {
        match self.sending.poll_send(&mut *wire.io, cx) {
            Poll::Ready(Err(SendError::Upload(cut))) => {
                return Poll::Ready(Err(H1Error::Upload(cut)));
            }
            Poll::Ready(Err(SendError::Refused(error))) => self.stopped = Some(H1Error::Io(error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        loop {
            match head::take(&mut wire.unread, &self.method)? {
                Some(head) if head.is_interim() && self.interim == MAX_INTERIM_RESPONSES => {
                    return Poll::Ready(Err(H1Error::Interim {
                        most: MAX_INTERIM_RESPONSES,
                    }));
                }
                Some(head) if head.is_interim() => self.interim += 1,
                Some(head) => return Poll::Ready(Ok(head)),
                None => match ready!(wire.poll_more(cx)) {
                    Ok(0) => {
                        return Poll::Ready(Err(self.stopped.take().unwrap_or(H1Error::Closed)));
                    }
                    Ok(_) => {}
                    Err(fault) => return Poll::Ready(Err(self.stopped.take().unwrap_or(fault))),
                },
            }
        }
    }
}

/// Interim responses (`100 Continue`, `103 Early Hints`) before the answer; kube-apiserver sends none.
const MAX_INTERIM_RESPONSES: usize = 100;
