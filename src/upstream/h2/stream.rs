//! One request on one stream of a connection, up to the head of its response.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Request, Response, StatusCode, request::Parts};

use super::{
    super::{
        HttpError, ResponseBody, UpstreamError,
        upload::{Upload, UploadEnd},
    },
    H2Response, H2State,
};
use crate::{drain::Drain, metrics::LeaseEnd};

/// One stream of a connection, from the moment it is chosen to its end.
#[derive(Debug)]
pub(in crate::upstream) struct H2Stream {
    pub(super) send: SendRequest<Bytes>,
    pub(super) usage: StreamGuard,
}

/// Counts a stream in and out, and spoils the connection if the stream did not end well.
#[derive(Debug)]
pub(super) struct StreamGuard {
    pub(super) state: Arc<H2State>,
    pub(super) ended_well: bool,
}

impl H2Stream {
    /// Sends the request and returns the response once its head is there.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::is_unprocessed`] says whether the apiserver can have acted on it.
    pub(in crate::upstream) async fn exchange(
        mut self,
        head: &Parts,
        upload: &mut Upload,
        drain: &Drain,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let endpoint = self.usage.state.endpoint;
        let unsent = |source| UpstreamError::Unsent {
            endpoint,
            source: HttpError::H2(source),
        };
        let bodyless = upload.is_empty();
        poll_fn(|cx| self.send.poll_ready(cx))
            .await
            .map_err(unsent)?;
        let (response, stream) = self
            .send
            .send_request(without_body(head), bodyless)
            .map_err(unsent)?;
        let peer = Arc::clone(&self.usage.state.peer);
        let id = response.stream_id();
        let answered = if bodyless {
            HeadOutcome::whole(response.await)
        } else {
            race(response, stream, upload).await?
        };
        let response = answered.response.map_err(|source| {
            let refused = source.is_remote()
                && source.is_reset()
                && source.reason() == Some(h2::Reason::REFUSED_STREAM);
            if refused || peer.is_unprocessed(id) {
                UpstreamError::Refused { endpoint, source }
            } else if peer.is_unwritten(id) {
                unsent(source)
            } else {
                UpstreamError::Lost {
                    endpoint,
                    source: HttpError::H2(source),
                }
            }
        })?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.usage.poison();
            self.usage
                .state
                .stats
                .set_end_reason(LeaseEnd::Unauthorized);
        }
        let still_uploading = answered.rest.map(|stream| {
            let mut rest = upload.take_over(stream);
            drain
                .spawn(async move { poll_fn(|cx| rest.poll_send(cx)).await })
                .abort_handle()
        });
        let (head, recv) = response.into_parts();
        let answer = H2Response {
            recv,
            data_ended: false,
            usage: self.usage,
            upload: still_uploading,
        };
        Ok(Response::from_parts(head, answer.into()))
    }
}

/// The head of a response (or why there is none), and the stream if the upload is not finished.
struct HeadOutcome {
    response: Result<Response<RecvStream>, h2::Error>,
    rest: Option<SendStream<Bytes>>,
}

impl HeadOutcome {
    fn whole(response: Result<Response<RecvStream>, h2::Error>) -> Self {
        Self {
            response,
            rest: None,
        }
    }
}

/// Uploads until the response head is there: an apiserver may answer 413 long before the end.
async fn race(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    upload: &mut Upload,
) -> Result<HeadOutcome, UpstreamError> {
    let mut response = pin!(response);
    upload.start(stream);
    poll_fn(|cx| {
        if let Poll::Ready(response) = response.as_mut().poll(cx) {
            return Poll::Ready(Ok(HeadOutcome {
                response,
                rest: upload.unfinished(),
            }));
        }
        match upload.poll_send(cx) {
            Poll::Ready(UploadEnd::FailedExchange(source)) => {
                Poll::Ready(Err(UpstreamError::Upload { source }))
            }
            // The peer takes no more; what it has to say comes as the response or its error.
            Poll::Ready(UploadEnd::Done | UploadEnd::Stopped) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// An HTTP/2 request of the same head; cloned, because it may have to be sent once more.
fn without_body(head: &Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    request
}

impl StreamGuard {
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
