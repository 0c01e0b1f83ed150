//! The two bodies of an exchange: what the client uploads, what the apiserver answers.
//!
//! Neither may end well when it was cut. hyper reports a request body that its HTTP/2 client reset
//! with `CANCEL` as complete; [`RequestBody`] does not.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::h1::{H1Error, Upgraded};

/// The body of one downstream request, without trailers.
#[derive(Debug)]
pub struct RequestBody {
    /// What was read before and must be sent again.
    again: VecDeque<Bytes>,
    /// `None` for a request that the proxy makes itself.
    incoming: Option<Incoming>,
    downstream: http::Version,
    received: Arc<AtomicU64>,
}

/// Why a request body did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The downstream connection failed.
    #[error("read the request body")]
    Read(#[source] hyper::Error),
    /// The client reset the stream before the end of the body.
    #[error("the client gave the request up half-way")]
    Reset,
    /// It is longer or shorter than the client had announced.
    #[error("the request body is not as long as its content-length says")]
    Length,
}

impl RequestBody {
    /// Wraps the body of a request that came in with this version of HTTP.
    #[must_use]
    pub fn new(incoming: Incoming, downstream: http::Version) -> Self {
        Self {
            again: VecDeque::new(),
            incoming: Some(incoming),
            downstream,
            received: Arc::default(),
        }
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self {
            again: VecDeque::new(),
            incoming: None,
            downstream: http::Version::HTTP_11,
            received: Arc::default(),
        }
    }

    /// How many bytes the client has sent so far.
    #[must_use]
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Puts what was already read back in front.
    pub(super) fn put_back(&mut self, read: impl IntoIterator<Item = Bytes>) {
        let mut again: VecDeque<_> = read.into_iter().collect();
        again.append(&mut self.again);
        self.again = again;
    }

    /// The next piece that is not empty; `None` only at a true end.
    ///
    /// # Errors
    ///
    /// When the body was cut.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UploadError>>> {
        if let Some(data) = self.again.pop_front() {
            return Poll::Ready(Some(Ok(data)));
        }
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
                // Request trailers are dropped: kube-apiserver reads none, and they could name fields
                // that were checked in the head.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        self.received
                            .fetch_add(data.len() as u64, Ordering::Relaxed);
                        Some(Ok(data))
                    }
                    _ => continue,
                },
                Some(Err(error)) => Some(Err(UploadError::Read(error))),
                // hyper ends a body that the peer reset with CANCEL or NO_ERROR as if it were whole;
                // only `is_end_stream` knows. Mostly hyper also drops the whole request at the same
                // moment, which resets the upload anyway; this does not leave it to the order of tasks.
                None if self.downstream == http::Version::HTTP_2 && !incoming.is_end_stream() => {
                    Some(Err(UploadError::Reset))
                }
                None => None,
            });
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        self.get_mut().poll_data(cx).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        self.again.is_empty() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.incoming {
            Some(incoming) if self.again.is_empty() => incoming.size_hint(),
            Some(_) | None => SizeHint::default(),
        }
    }
}

/// The body of one upstream response. Dropping it before its end cancels the exchange upstream at
/// once: `RST_STREAM(CANCEL)` over HTTP/2, the end of the connection over HTTP/1.1.
#[derive(Debug)]
pub struct ResponseBody(Source);

#[derive(Debug)]
enum Source {
    /// Boxed, because it holds its connection, and a stream of HTTP/2 has no use for the room.
    H1(Box<super::h1::H1Response>),
    H2(super::h2::H2Response),
}

/// Why a response was cut.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The HTTP/1.1 connection failed.
    #[error("read the response body")]
    H1(#[source] H1Error),
    /// The HTTP/2 stream or its connection failed.
    #[error("read the response body")]
    H2(#[source] h2::Error),
}

impl ResponseBody {
    /// The connection behind a 101; `None` for every other response.
    #[must_use]
    pub fn into_upgraded(self) -> Option<Upgraded> {
        match self.0 {
            Source::H1(answer) => answer.into_upgraded(),
            Source::H2(_) => None,
        }
    }
}

impl From<super::h1::H1Response> for ResponseBody {
    fn from(answer: super::h1::H1Response) -> Self {
        Self(Source::H1(Box::new(answer)))
    }
}

impl From<super::h2::H2Response> for ResponseBody {
    fn from(answer: super::h2::H2Response) -> Self {
        Self(Source::H2(answer))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match &mut self.0 {
            Source::H1(answer) => answer.poll_frame(cx).map_err(DownloadError::H1),
            Source::H2(answer) => answer.poll_frame(cx).map_err(DownloadError::H2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::H1(answer) => answer.is_end_stream(),
            Source::H2(answer) => answer.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::H1(answer) => answer.size_hint(),
            Source::H2(answer) => answer.size_hint(),
        }
    }
}
