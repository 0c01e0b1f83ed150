//! The body of one response, and the rest of the upload when the response came before its end.

use std::{
    future::{Future as _, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Frame, SizeHint};
use tokio::{sync::oneshot, time::timeout};

use super::{
    H1Connection, H1Error,
    request::{RequestWriter, SendError},
};
use crate::{
    drain::Drain,
    http1::{BodyDecoder, MessageError, ResponseHead},
    metrics::LeaseEnd,
    transport::yield_turn,
    upstream::Origin,
};

/// The body of a response, on a connection that `C` holds. The connection is dropped at the end of the
/// body; [`H1Connection::keep_alive`] then says whether another request may follow.
#[derive(Debug)]
pub(in crate::upstream) struct H1Response<C: AsMut<H1Connection> + Send + 'static> {
    body: BodyDecoder,
    /// `None` after the end of the body, complete or not.
    active: Option<ActiveExchange<C>>,
    /// The error that ends the body, held back until the data before it was written to the client.
    error: Option<H1Error>,
    origin: Origin,
}

#[derive(Debug)]
struct ActiveExchange<C> {
    connection: C,
    /// The result of the rest of the request, and the drain that waits for it if the response ends first.
    upload: Option<(UploadResult, Drain)>,
    /// Whether another request may follow if this exchange ends well.
    keep_alive: bool,
    is_refusal: bool,
}

impl<C: AsMut<H1Connection> + Send + 'static> H1Response<C> {
    pub(super) fn new(
        mut connection: C,
        request: RequestWriter,
        head: &ResponseHead,
        keep_alive: bool,
        drain: &Drain,
    ) -> Self {
        // A task of its own, because the client may read the response only after it has sent everything.
        let upload = (!request.is_done()).then(|| {
            let upload = send_rest(connection.as_mut(), request, drain);
            (upload, drain.clone())
        });
        let origin = connection.as_mut().origin();
        let status = head.parts.status;
        let is_upgrade = status == StatusCode::SWITCHING_PROTOCOLS;
        let mut response = Self {
            body: head.body,
            active: Some(ActiveExchange {
                connection,
                upload,
                keep_alive: keep_alive && head.keep_alive && !is_upgrade,
                is_refusal: status.is_client_error() || status.is_server_error(),
            }),
            error: None,
            origin,
        };
        if response.is_end_stream() && !is_upgrade {
            response.finish();
        }
        response
    }

    /// The connection of this response.
    pub(in crate::upstream) fn origin(&self) -> Origin {
        self.origin
    }

    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, H1Error>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let polled = self.poll_body(cx);
        match polled {
            Poll::Ready(Some(Err(error))) => {
                self.abort();
                // Over HTTP/2, a reset drops the data that h2 has not written yet.
                self.error = Some(error);
                yield_turn(cx)
            }
            Poll::Ready(_) if self.is_end_stream() => {
                self.finish();
                polled
            }
            Poll::Ready(_) | Poll::Pending => polled,
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, H1Error>>> {
        let Some(active) = &mut self.active else {
            let is_cut = self.body != BodyDecoder::Complete;
            return Poll::Ready(is_cut.then_some(Err(MessageError::Cut.into())));
        };
        if let Some((upload, _)) = &mut active.upload
            && let Poll::Ready(ended) = Pin::new(upload).poll(cx)
        {
            active.upload = None;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(SendError::Upload(error))) => {
                    return Poll::Ready(Some(Err(H1Error::Upload(error))));
                }
                // The apiserver may accept no more because its response says all.
                Ok(Err(SendError::Refused(_))) | Err(_) => active.keep_alive = false,
            }
        }
        let wire = &mut active.connection.as_mut().wire;
        loop {
            let decoded = self.body.decode(&mut wire.unread);
            if let Some(frame) = decoded.transpose() {
                return Poll::Ready(Some(frame.map_err(H1Error::from)));
            }
            if self.body == BodyDecoder::Complete {
                return Poll::Ready(None);
            }
            match wire.poll_more(cx) {
                Poll::Ready(Ok(0)) => {
                    active.keep_alive = false;
                    return Poll::Ready(self.body.close().err().map(|cut| Err(cut.into())));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(MessageError::Io(error).into())));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.body == BodyDecoder::Complete
    }

    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        match self.body {
            BodyDecoder::Complete => SizeHint::with_exact(0),
            BodyDecoder::Length(left) => SizeHint::with_exact(left),
            BodyDecoder::Chunked(_) | BodyDecoder::UntilClose => SizeHint::default(),
        }
    }

    /// The connection of a 101; `None` for every other response.
    pub(in crate::upstream) fn into_connection(mut self) -> Option<C> {
        // Every other response drops its connection at the end of the body.
        let is_over = self.is_end_stream();
        let active = self.active.take().filter(|_| is_over)?;
        Some(active.connection)
    }

    /// Frees the connection after the end of the body.
    fn finish(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        // The apiserver may still want the rest of an upload. To close the connection before the client
        // has sent all of it could cost the client the response.
        if let Some((mut upload, drain)) = active.upload.take() {
            drain.spawn(async move {
                // After an error, the apiserver may not read the rest, nor the client send it.
                let sent = if active.is_refusal {
                    timeout(MAX_UPLOAD_AFTER_REFUSAL, &mut upload).await
                } else {
                    Ok((&mut upload).await)
                };
                if let Ok(Ok(Ok(()))) = sent {
                    active.finish();
                }
            });
        } else {
            active.finish();
        }
    }

    /// Closes the connection before the end of the body.
    fn abort(&mut self) {
        if let Some(mut active) = self.active.take() {
            let stats = active.connection.as_mut().stats();
            stats.set_end_reason(LeaseEnd::Reset);
        }
    }
}

impl<C: AsMut<H1Connection>> ActiveExchange<C> {
    /// Request and response are complete.
    fn finish(mut self) {
        self.connection.as_mut().finish_exchange(self.keep_alive);
    }
}

/// Starts a task that sends the rest of a request, until the result is dropped.
fn send_rest(connection: &mut H1Connection, request: RequestWriter, drain: &Drain) -> UploadResult {
    let mut request = request.without_pace();
    let io = connection.wire.share_io();
    let (mut result, upload) = oneshot::channel();
    drain.spawn(async move {
        let ended = poll_fn(|cx| {
            if result.poll_closed(cx).is_ready() {
                return Poll::Ready(None);
            }
            io.with(|io| request.poll_send(io, cx)).map(Some)
        });
        if let Some(ended) = ended.await {
            // Before the other side learns that the connection is free.
            drop(io);
            result.send(ended).ok();
        }
    });
    upload
}

/// How long the rest of a request is sent on after a complete response that is an error.
const MAX_UPLOAD_AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// How the rest of a request ended.
type UploadResult = oneshot::Receiver<Result<(), SendError>>;

impl<C: AsMut<H1Connection> + Send + 'static> Drop for H1Response<C> {
    fn drop(&mut self) {
        self.abort();
    }
}
