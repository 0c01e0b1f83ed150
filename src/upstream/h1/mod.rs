//! One HTTP/1.1 connection to an apiserver: one request at a time, or an upgrade.

mod message;

use std::{
    error::Error,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};
use tracing::debug;

use super::{
    LostCause, RequestBody, ResponseBody, UploadError, UpstreamError, endpoint::Endpoint,
    lease::Held,
};
use crate::{
    addr::UpstreamAddr,
    drain::Drain,
    metrics::{LeaseEnd, Life},
    telemetry::causes,
};
use message::origin_form;

/// A connection that takes one request at a time.
#[derive(Debug)]
pub(super) struct H1Connection {
    /// hyper keeps room for 32 requests; boxed bodies make that a quarter less.
    send: http1::SendRequest<Box<RequestBody>>,
    endpoint: UpstreamAddr,
    /// What is known of that; retires the connection when it is nothing good.
    site: Option<Arc<Endpoint>>,
    spoiled: bool,
    idle_since: Instant,
    life: Life,
}

/// Where a connection goes when its response has come to a good end.
#[derive(Debug)]
pub(super) struct GiveBack {
    pub(super) held: Arc<Held>,
    pub(super) cluster: u64,
}

/// Why there is no answer, and the request if not a byte of it was written. Boxed where it is returned,
/// since answers are what mostly comes.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) error: UpstreamError,
    pub(super) unsent: Option<(Parts, RequestBody)>,
}

/// The rest of a response.
#[derive(Debug)]
pub(super) struct Answer {
    incoming: Incoming,
    /// `None` after the end, and for a connection that is never used again.
    connection: Option<(H1Connection, GiveBack)>,
}

impl H1Connection {
    /// Starts HTTP/1.1 on an established stream and keeps the connection running.
    ///
    /// # Errors
    ///
    /// None in practice: HTTP/1.1 has no preface.
    pub(super) async fn establish<S>(
        stream: S,
        endpoint: UpstreamAddr,
        drain: &Drain,
    ) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) = http1::Builder::new()
            .max_headers(RESPONSE_FIELDS)
            .max_buf_size(READ_BUFFER)
            .handshake(TokioIo::new(stream))
            .await?;
        let mut connection = connection.with_upgrades();
        // No async block, which would hold the connection twice for as long as it lives.
        drain.spawn(poll_fn(move |cx| {
            let ended = ready!(Pin::new(&mut connection).poll(cx));
            if let Err(error) = ended {
                debug!(upstream.address = %endpoint, error = %causes(&error), "upstream connection ended");
            }
            Poll::Ready(())
        }));
        Ok(Self {
            send,
            endpoint,
            site: None,
            spoiled: false,
            idle_since: Instant::now(),
            life: Life::default(),
        })
    }

    /// What is counted of it.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// The same, known to lead to this endpoint.
    pub(super) fn to(mut self, endpoint: Arc<Endpoint>) -> Self {
        self.site = Some(endpoint);
        self
    }

    /// Since when nothing has run on it.
    pub(super) fn idle_since(&self) -> Instant {
        self.idle_since
    }

    pub(super) fn becomes_idle(&mut self) {
        self.idle_since = Instant::now();
    }

    pub(super) fn endpoint(&self) -> UpstreamAddr {
        self.endpoint
    }

    /// Whether nothing more may be sent on it.
    pub(super) fn is_closed(&self) -> bool {
        let site = self.site.as_deref();
        self.send.is_closed() || site.is_some_and(Endpoint::is_passed_over)
    }

    /// Whether nothing runs on it.
    pub(super) fn is_ready(&self) -> bool {
        self.send.is_ready()
    }

    /// Whether another client may have this connection.
    pub(super) fn is_spotless(&self) -> bool {
        !self.spoiled && !self.is_closed() && self.is_ready()
    }

    /// Sends a request of its own; the connection goes back to `give_back` after a good end.
    ///
    /// # Errors
    ///
    /// With the request if not a byte of it was written.
    pub(super) async fn exchange(
        mut self,
        head: Parts,
        body: RequestBody,
        give_back: Option<GiveBack>,
    ) -> Result<Response<ResponseBody>, Box<Unanswered>> {
        let endpoint = self.endpoint;
        let (request, original) = origin_form(head, body);
        let answered = self.send.try_send_request(request).await;
        let response = answered.map_err(|mut failure| {
            let unsent = failure.take_message();
            let error = failure.into_error();
            let error = if unsent.is_some() {
                let source = LostCause::H1(error);
                UpstreamError::Unsent { endpoint, source }
            } else {
                failed(endpoint, error)
            };
            let unsent = unsent.map(|request| original.restore(request));
            Box::new(Unanswered { error, unsent })
        })?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.spoiled = true;
            self.life.ends(LeaseEnd::Unauthorized);
        }
        let (head, incoming) = response.into_parts();
        let mut answer = Answer {
            incoming,
            connection: give_back.map(|to| (self, to)),
        };
        if answer.incoming.is_end_stream() {
            answer.ended();
        }
        Ok(Response::from_parts(head, answer.into()))
    }
}

/// Whose fault it is: hyper also fails the exchange when the body that it is given fails.
fn failed(endpoint: UpstreamAddr, error: hyper::Error) -> UpstreamError {
    let upload = error
        .source()
        .is_some_and(|source| source.is::<UploadError>());
    if upload {
        UpstreamError::Upload {
            source: UploadError::Read(error),
        }
    } else {
        UpstreamError::Lost {
            endpoint,
            source: LostCause::H1(error),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Given up before its end, or cut.
        if let Some((connection, _)) = &self.connection {
            connection.life.ends(LeaseEnd::Reset);
        }
    }
}

impl Answer {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if frame.is_none() || self.incoming.is_end_stream() {
            self.ended();
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    fn ended(&mut self) {
        if let Some((connection, GiveBack { held, cluster })) = self.connection.take() {
            held.give_back(cluster, connection);
        }
    }
}

/// What hyper may keep for every connection once much has come at once, and the longest response head.
const READ_BUFFER: usize = 32 * 1024;
/// kube-apiserver repeats `Warning` lines, and backends behind services/proxy set what they like. No
/// more, because hyper clears room for so many fields for every response.
const RESPONSE_FIELDS: usize = 200;
