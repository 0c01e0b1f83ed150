//! Sends a request body over HTTP/2 and keeps what it sent, so that an unprocessed request can be sent
//! once more.

use std::{
    mem,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::Body;

use super::{RequestBody, body::UploadError};

/// One request body on its way to one or, after a refusal, two streams.
#[derive(Debug)]
pub(super) struct Upload {
    /// `None` once a task of its own has taken the rest over.
    body: Option<RequestBody>,
    sent: ReplayBuffer,
    /// Read and not yet sent.
    pending: Option<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

/// What was sent so far, while it is little enough to be sent again.
#[derive(Debug)]
enum ReplayBuffer {
    /// Copied, because a piece of a client's frame keeps the whole buffer that it was read into: a
    /// thousand small frames would hold far more than their bytes.
    Kept {
        bytes: Vec<u8>,
        most: usize,
    },
    TooMuch,
}

/// How an upload ended.
#[derive(Debug)]
pub(super) enum UploadEnd {
    /// All of it was sent.
    Done,
    /// The peer wants no more of it.
    Stopped,
    /// The client cut it; the stream was reset, so the apiserver cannot take it for the whole.
    FailedExchange(UploadError),
}

impl Upload {
    /// An upload that keeps `replay_bytes` of what it sends.
    pub(super) fn new(body: RequestBody, replay_bytes: usize) -> Self {
        Self {
            body: Some(body),
            sent: ReplayBuffer::Kept {
                bytes: Vec::new(),
                most: replay_bytes,
            },
            pending: None,
            stream: None,
        }
    }

    /// An upload of nothing.
    #[cfg(test)]
    pub(super) fn empty() -> Self {
        Self {
            body: None,
            sent: ReplayBuffer::TooMuch,
            pending: None,
            stream: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Begins to send on this stream.
    pub(super) fn start(&mut self, stream: SendStream<Bytes>) {
        self.stream = Some(stream);
    }

    /// The stream, if there is still something to send on it.
    pub(super) fn unfinished(&mut self) -> Option<SendStream<Bytes>> {
        self.stream.take()
    }

    /// The rest of the upload, for a task of its own; it cannot be sent again.
    pub(super) fn take_over(&mut self, stream: SendStream<Bytes>) -> Self {
        Self {
            body: self.body.take(),
            sent: ReplayBuffer::TooMuch,
            pending: self.pending.take(),
            stream: Some(stream),
        }
    }

    /// Makes ready to send everything once more. `None` if too much of it is gone.
    pub(super) fn rewind(mut self) -> Option<Self> {
        let ReplayBuffer::Kept { bytes, most } = self.sent else {
            return None;
        };
        let mut body = self.body.take()?;
        let pieces = [Some(bytes.into()), self.pending].into_iter().flatten();
        body.put_back(pieces.filter(|piece: &Bytes| !piece.is_empty()));
        Some(Self::new(body, most))
    }

    /// The body as it was before anything was sent of it, for a connection without HTTP/2.
    pub(super) fn into_body(self) -> Option<RequestBody> {
        self.rewind()?.body
    }

    /// Sends as much as the peer takes now; stays pending for ever once the upload has ended.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        let (Some(stream), Some(body)) = (&mut self.stream, &mut self.body) else {
            return Poll::Pending;
        };
        let ended = loop {
            let Some(piece) = &mut self.pending else {
                if stream.poll_reset(cx).is_ready() {
                    break UploadEnd::Stopped;
                }
                match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) => self.pending = Some(data),
                    Some(Err(error)) => {
                        stream.send_reset(Reason::CANCEL);
                        break UploadEnd::FailedExchange(error);
                    }
                    None => {
                        break if stream.send_data(Bytes::new(), true).is_ok() {
                            UploadEnd::Done
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
        Poll::Ready(ended)
    }
}

impl ReplayBuffer {
    fn keep(&mut self, part: &Bytes) {
        match self {
            Self::Kept { bytes, most } if part.len() <= *most - bytes.len() => {
                bytes.extend_from_slice(part);
            }
            Self::Kept { .. } | Self::TooMuch => drop(mem::replace(self, Self::TooMuch)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_holds_no_buffer_of_the_client() {
        let mut sent = ReplayBuffer::Kept {
            bytes: Vec::new(),
            most: 3,
        };
        let read = Bytes::from(vec![b'x'; 64 * 1024]);
        for at in 0..3 {
            sent.keep(&read.slice(at..=at));
        }
        assert!(read.is_unique(), "a piece keeps all of it");
        assert!(matches!(&sent, ReplayBuffer::Kept { bytes, .. } if bytes.len() == 3));
        sent.keep(&read.slice(..1));
        assert!(matches!(sent, ReplayBuffer::TooMuch));
    }
}
