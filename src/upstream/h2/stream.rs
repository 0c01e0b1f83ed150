//! One request on one stream of a connection, and the body of its response.
//!
//! `RST_STREAM(NO_ERROR)` after the end of a response is how a server says "this was the whole response,
//! stop sending" (RFC 9113 §8.1); before the end, the response is incomplete. The h2 crate returns an
//! error only in the second case. Proof: tests/it `no_error_reset_is_an_end_only_after_end_stream`.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream, StreamId,
    client::{ResponseFuture, SendRequest},
};
use http::{Request, Response, StatusCode, request::Parts};
use hyper::body::{Frame, SizeHint};
use tokio::{sync::Notify, task::AbortHandle};

use super::H2State;
use crate::{
    drain::Drain,
    http1::{MAX_RESPONSE_HEAD, is_head_too_large},
    metrics::{ConnectionStats, LeaseEnd},
    upstream::{
        DownloadError, HttpError, Origin, UpstreamError,
        endpoint::Endpoint,
        request_body::{Upload, UploadEnd},
    },
};

/// One stream of a connection, from the moment it is chosen to the head of its response.
#[derive(Debug)]
pub(in crate::upstream) struct H2Stream {
    pub(super) send: SendRequest<Bytes>,
    pub(super) guard: StreamGuard,
}

/// Counts one stream until dropped, and poisons the connection if the stream did not end well.
#[derive(Debug)]
pub(super) struct StreamGuard {
    pub(super) state: Arc<H2State>,
    ended_well: bool,
}

impl StreamGuard {
    pub(super) fn new(state: Arc<H2State>) -> Self {
        state.in_flight.fetch_add(1, Ordering::AcqRel);
        Self {
            state,
            ended_well: false,
        }
    }

    fn poison(&self) {
        self.state.poisoned.store(true, Ordering::Release);
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if !self.ended_well {
            self.poison();
        }
        self.state.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl H2Stream {
    /// The endpoint of its connection.
    pub(in crate::upstream) fn endpoint(&self) -> &Endpoint {
        &self.guard.state.endpoint
    }

    /// Sends the request and returns the response once its head is there. If the head comes before the end
    /// of the upload, the rest is sent by a task of `drain`.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::wants_another_connection`] says whether the request may be sent again.
    pub(in crate::upstream) async fn exchange(
        mut self,
        head: &Parts,
        upload: &mut Upload,
        drain: &Drain,
    ) -> Result<Response<H2Response>, UpstreamError> {
        let endpoint = self.guard.state.endpoint.address();
        let unsent = |source| UpstreamError::Unsent {
            endpoint,
            source: HttpError::H2(source),
        };
        let has_no_body = upload.is_empty();
        poll_fn(|cx| self.send.poll_ready(cx))
            .await
            .map_err(unsent)?;
        let (response, stream) = self
            .send
            .send_request(without_body(head), has_no_body)
            .map_err(unsent)?;
        let id = response.stream_id();
        let (received, unfinished) = if has_no_body {
            (response.await, None)
        } else {
            (send_body(response, stream, upload).await?, upload.stop())
        };
        let response = received.map_err(|source| failure(&self.guard.state, id, source))?;
        if is_head_too_large(response.headers()) {
            let max = MAX_RESPONSE_HEAD;
            return Err(UpstreamError::HeadTooLarge { endpoint, max });
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            self.guard.poison();
            let stats = &self.guard.state.stats;
            stats.set_end_reason(LeaseEnd::Unauthorized);
        }
        let rest_of_upload = unfinished.map(|stream| {
            let mut rest = upload.take_rest(stream);
            drain
                .spawn(async move { poll_fn(|cx| rest.poll_send(cx)).await })
                .abort_handle()
        });
        Ok(response.map(|recv| H2Response {
            recv,
            data_ended: false,
            guard: self.guard,
            rest_of_upload,
        }))
    }
}

/// Returns the reason why stream `id` has no response. The error variant decides whether the request may be sent again.
fn failure(state: &H2State, id: StreamId, source: h2::Error) -> UpstreamError {
    let endpoint = state.endpoint.address();
    let is_refused =
        source.is_remote() && source.is_reset() && source.reason() == Some(Reason::REFUSED_STREAM);
    if is_refused || state.peer.is_unprocessed(id) {
        return UpstreamError::Refused { endpoint, source };
    }
    let is_unwritten = state.peer.is_unwritten(id);
    let source = HttpError::H2(source);
    if is_unwritten {
        UpstreamError::Unsent { endpoint, source }
    } else {
        UpstreamError::no_response(endpoint, source)
    }
}

/// Sends the body until the head of the response is there: an apiserver may answer 413 long before the end.
async fn send_body(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    upload: &mut Upload,
) -> Result<Result<Response<RecvStream>, h2::Error>, UpstreamError> {
    let mut response = pin!(response);
    upload.start(stream);
    poll_fn(|cx| {
        if let Poll::Ready(received) = response.as_mut().poll(cx) {
            return Poll::Ready(Ok(received));
        }
        match upload.poll_send(cx) {
            Poll::Ready(UploadEnd::Failed(source)) => {
                Poll::Ready(Err(UpstreamError::Upload { source }))
            }
            // If the apiserver accepts no more, its reason comes as the response or as its error.
            Poll::Ready(UploadEnd::Complete | UploadEnd::Stopped) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// An HTTP/2 request with the same head. The head is cloned, because it may have to be sent once more.
fn without_body(head: &Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    request
}

/// The body of a response, and the rest of the upload when the response came before its end.
#[derive(Debug)]
pub(in crate::upstream) struct H2Response {
    recv: RecvStream,
    data_ended: bool,
    guard: StreamGuard,
    rest_of_upload: Option<AbortHandle>,
}

impl H2Response {
    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Freed at once: the next frame is asked for only after h2 has the one before.
                    self.recv.flow_control().release_capacity(data.len()).ok();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.recv.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => {
                self.finish();
                None
            }
            Err(error) => Some(Err(error)),
        })
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    #[expect(
        clippy::unused_self,
        reason = "the content-length field has the length, if it is known"
    )]
    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    pub(in crate::upstream) fn stats(&self) -> &ConnectionStats {
        &self.guard.state.stats
    }

    /// The connection of this response. Its first request has the stream 1.
    pub(in crate::upstream) fn origin(&self) -> Origin {
        Origin {
            endpoint: self.guard.state.endpoint.address(),
            is_reused: self.recv.stream_id().as_u32() != FIRST_STREAM,
        }
    }

    /// Why the response is incomplete. When the peer is silent, the proxy drops the connection, and h2 returns an error
    /// that does not say so.
    pub(in crate::upstream) fn download_error(&self, error: h2::Error) -> DownloadError {
        if self.guard.state.is_silent.load(Ordering::Acquire) {
            DownloadError::PingTimeout
        } else {
            DownloadError::H2(error)
        }
    }

    /// Notifies `waiting` once the peer has sent GOAWAY on the connection of this response.
    pub(in crate::upstream) fn notify_of_goaway(&self, waiting: Arc<Notify>) {
        self.guard.state.peer.notify_of_goaway(waiting);
    }

    fn finish(&mut self) {
        let upload = self.rest_of_upload.as_ref();
        self.guard.ended_well = upload.is_none_or(AbortHandle::is_finished);
    }
}

/// The first stream of a client (RFC 9113 §5.1.1).
const FIRST_STREAM: u32 = 1;

impl Drop for H2Response {
    fn drop(&mut self) {
        // A body without data is often dropped unread.
        if self.recv.is_end_stream() {
            self.finish();
        }
        if let Some(upload) = &self.rest_of_upload {
            upload.abort();
        }
    }
}
