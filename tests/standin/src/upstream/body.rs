//! Bodies: request bodies, which are recorded as the handler reads them, and response bodies, whose end is recorded.

use std::{
    error::Error,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::record::{BodyEnd, Entry, ResponseEnd};

/// The error of a response body.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A response body. An error in it aborts the response: HTTP/1.1 closes the connection, HTTP/2 resets the stream.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// A body with these bytes.
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// An empty body.
#[must_use]
pub fn empty() -> ResponseBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is sent in pieces. Each piece is flushed at once. Dropping the sender ends the body normally.
#[must_use]
pub fn channel() -> (BodySender, ResponseBody) {
    let (sender, receiver) = mpsc::channel(1);
    (BodySender(sender), ChannelBody(receiver).boxed_unsync())
}

/// The sending end of [`channel`].
#[derive(Debug)]
pub struct BodySender(mpsc::Sender<Result<Frame<Bytes>, BoxError>>);

/// The client no longer reads the body.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl BodySender {
    /// Sends a piece after the previous one was accepted.
    ///
    /// # Errors
    ///
    /// When the client is gone or cancelled the request.
    pub async fn send(&self, data: impl Into<Bytes>) -> Result<(), Gone> {
        self.0
            .send(Ok(Frame::data(data.into())))
            .await
            .map_err(|_| Gone)
    }

    /// Sends trailers.
    ///
    /// # Errors
    ///
    /// When the client is gone or cancelled the request.
    pub async fn trailers(&self, trailers: HeaderMap) -> Result<(), Gone> {
        self.0
            .send(Ok(Frame::trailers(trailers)))
            .await
            .map_err(|_| Gone)
    }

    /// Aborts the response: no last chunk with HTTP/1.1, `RST_STREAM` with HTTP/2.
    pub async fn abort(self) {
        // Fails only if the client is gone.
        drop(
            self.0
                .send(Err(io::Error::other("aborted by the test").into()))
                .await,
        );
    }

    /// Resolves when the client no longer reads the body.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

struct ChannelBody(mpsc::Receiver<Result<Frame<Bytes>, BoxError>>);

impl Body for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx)
    }
}

/// A request body. The bytes that the handler reads are also recorded.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    entry: Entry,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, entry: Entry) -> Self {
        if inner.is_end_stream() {
            entry.body_end(BodyEnd::Complete);
        }
        Self { inner, entry }
    }

    /// Reads to the end.
    ///
    /// # Errors
    ///
    /// When the client does not send the whole body.
    pub async fn read(self) -> Result<Bytes, hyper::Error> {
        Ok(self.collect().await?.to_bytes())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.entry.body(data);
                }
                if self.inner.is_end_stream() {
                    self.entry.body_end(BodyEnd::Complete);
                }
            }
            Poll::Ready(Some(Err(err))) => {
                self.entry.body_end(BodyEnd::Incomplete(err.to_string()))
            }
            Poll::Ready(None) => self.entry.body_end(BodyEnd::Complete),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.entry.body_end(BodyEnd::Unread);
    }
}

/// A response body whose end is recorded.
pub(super) struct RecordedBody {
    inner: ResponseBody,
    entry: Entry,
}

impl RecordedBody {
    pub(super) fn new(inner: ResponseBody, entry: Entry) -> Self {
        Self { inner, entry }
    }
}

impl Body for RecordedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.entry.response_end(ResponseEnd::Complete),
            Poll::Ready(Some(Err(_))) => self.entry.response_end(ResponseEnd::Aborted),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        // hyper does not poll for the end if the length of the body is known.
        let end = if self.inner.is_end_stream() {
            ResponseEnd::Complete
        } else {
            ResponseEnd::Cancelled
        };
        self.entry.response_end(end);
    }
}
