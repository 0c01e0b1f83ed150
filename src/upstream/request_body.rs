//! The body of a request: read from the client, and sent over HTTP/2 with a copy for one retry.
//!
//! An incomplete body never looks complete. hyper reports a request body that its HTTP/2 client reset
//! with `CANCEL` as complete; [`RequestBody`] does not.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::{Body, Incoming};

use super::UploadError;

/// The body of one downstream request, without trailers.
#[derive(Debug)]
pub struct RequestBody {
    /// Data that was read before and must be sent again.
    replay: VecDeque<Bytes>,
    /// `None` for a request that the proxy makes itself.
    incoming: Option<Incoming>,
    downstream: http::Version,
    received: Arc<AtomicU64>,
}

impl RequestBody {
    /// Wraps the body of a request that came in with this version of HTTP.
    #[must_use]
    pub fn new(incoming: Incoming, downstream: http::Version) -> Self {
        Self {
            replay: VecDeque::new(),
            incoming: Some(incoming),
            downstream,
            received: Arc::default(),
        }
    }

    /// No body.
    pub(super) fn empty() -> Self {
        Self {
            replay: VecDeque::new(),
            incoming: None,
            downstream: http::Version::HTTP_11,
            received: Arc::default(),
        }
    }

    /// The number of bytes received from the client so far.
    #[must_use]
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }

    /// Whether nothing more can be read from it.
    pub(super) fn is_end_stream(&self) -> bool {
        self.replay.is_empty() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Puts data that was read already back in front.
    fn put_back(&mut self, read: impl IntoIterator<Item = Bytes>) {
        let mut replay: VecDeque<_> = read.into_iter().collect();
        replay.append(&mut self.replay);
        self.replay = replay;
    }

    /// The next piece of data, never empty; `None` only at a complete end.
    ///
    /// # Errors
    ///
    /// When the body ended early.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UploadError>>> {
        if let Some(data) = self.replay.pop_front() {
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
                // hyper ends a body that the peer reset with CANCEL or NO_ERROR as if it were complete;
                // only `is_end_stream` tells the difference. Usually hyper drops the whole request at
                // the same moment, which resets the upload too, but that depends on the order of tasks.
                None if self.downstream == http::Version::HTTP_2 && !incoming.is_end_stream() => {
                    Some(Err(UploadError::Reset))
                }
                None => None,
            });
        }
    }
}

/// One request body while it is sent to one HTTP/2 stream or, after a refusal, to a second one.
#[derive(Debug)]
pub(super) struct Upload {
    /// `None` after [`Upload::take_rest`].
    body: Option<RequestBody>,
    sent: ReplayBuffer,
    /// Data that was read and not sent yet.
    pending: Option<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

/// The data sent so far, while it is short enough to be sent again.
#[derive(Debug)]
enum ReplayBuffer {
    /// A copy, because a slice of a client's frame keeps the whole buffer that it was read into: a
    /// thousand small frames would hold far more than their bytes.
    Kept {
        bytes: Vec<u8>,
        max: usize,
    },
    TooLong,
}

/// How an upload ended.
#[derive(Debug)]
pub(super) enum UploadEnd {
    /// All of the body was sent.
    Complete,
    /// The apiserver accepts no more of it.
    Stopped,
    /// The client did not finish it. The stream was reset, so the apiserver cannot take the body for
    /// complete.
    Failed(UploadError),
}

impl Upload {
    /// An upload that keeps a copy of up to `replay_bytes` of the data it sends.
    pub(super) fn new(body: RequestBody, replay_bytes: usize) -> Self {
        Self {
            body: Some(body),
            sent: ReplayBuffer::Kept {
                bytes: Vec::new(),
                max: replay_bytes,
            },
            pending: None,
            stream: None,
        }
    }

    /// Whether the request has no body.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.body.as_ref().is_none_or(RequestBody::is_end_stream)
    }

    /// Sets the stream to send on.
    pub(super) fn start(&mut self, stream: SendStream<Bytes>) {
        self.stream = Some(stream);
    }

    /// Stops sending. Returns the stream if the upload is not finished.
    pub(super) fn stop(&mut self) -> Option<SendStream<Bytes>> {
        self.stream.take()
    }

    /// The rest of the upload, for a task of its own; it cannot be sent again.
    pub(super) fn take_rest(&mut self, stream: SendStream<Bytes>) -> Self {
        Self {
            body: self.body.take(),
            sent: ReplayBuffer::TooLong,
            pending: self.pending.take(),
            stream: Some(stream),
        }
    }

    /// The same upload from its beginning. `None` if a part of it was not kept.
    pub(super) fn rewind(mut self) -> Option<Self> {
        let ReplayBuffer::Kept { bytes, max } = self.sent else {
            return None;
        };
        let mut body = self.body.take()?;
        let pieces = [Some(bytes.into()), self.pending].into_iter().flatten();
        body.put_back(pieces.filter(|piece: &Bytes| !piece.is_empty()));
        Some(Self::new(body, max))
    }

    /// The body from its beginning, to send it over HTTP/1.1. `None` if a part of it was not kept.
    pub(super) fn into_body(self) -> Option<RequestBody> {
        self.rewind()?.body
    }

    /// Sends as much as the apiserver accepts now. Pending forever after the upload has ended.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        let (Some(stream), Some(body)) = (&mut self.stream, &mut self.body) else {
            return Poll::Pending;
        };
        let end = loop {
            let Some(piece) = &mut self.pending else {
                if stream.poll_reset(cx).is_ready() {
                    break UploadEnd::Stopped;
                }
                match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) => self.pending = Some(data),
                    Some(Err(error)) => {
                        stream.send_reset(Reason::CANCEL);
                        break UploadEnd::Failed(error);
                    }
                    None => {
                        break if stream.send_data(Bytes::new(), true).is_ok() {
                            UploadEnd::Complete
                        } else {
                            UploadEnd::Stopped
                        };
                    }
                }
                continue;
            };
            stream.reserve_capacity(piece.len());
            let mut capacity = stream.capacity();
            while capacity == 0 {
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(granted)) => capacity = granted,
                    Some(Err(_)) | None => break,
                }
            }
            let part = piece.split_to(capacity.min(piece.len()));
            if part.is_empty() {
                break UploadEnd::Stopped;
            }
            if piece.is_empty() {
                self.pending = None;
            }
            self.sent.keep(&part);
            if stream.send_data(part, false).is_err() {
                break UploadEnd::Stopped;
            }
        };
        self.stream = None;
        Poll::Ready(end)
    }
}

impl ReplayBuffer {
    fn keep(&mut self, part: &Bytes) {
        match self {
            Self::Kept { bytes, max } if part.len() <= *max - bytes.len() => {
                bytes.extend_from_slice(part);
            }
            Self::Kept { .. } | Self::TooLong => drop(mem::replace(self, Self::TooLong)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_buffer_holds_no_buffer_of_the_client() {
        let mut sent = ReplayBuffer::Kept {
            bytes: Vec::new(),
            max: 3,
        };
        let read = Bytes::from(vec![b'x'; 64 * 1024]);
        for at in 0..3 {
            sent.keep(&read.slice(at..=at));
        }
        assert!(read.is_unique(), "a kept byte holds the whole buffer");
        assert!(matches!(&sent, ReplayBuffer::Kept { bytes, .. } if bytes.len() == 3));
        sent.keep(&read.slice(..1));
        assert!(matches!(sent, ReplayBuffer::TooLong));
    }
}
