//! The body of a request that came in over HTTP/2, and the part of it that nothing has read.
//!
//! A response may be complete before its request is. If h2 reset the stream at once, the reset would leave in one TLS
//! record with the response, and curl 7.88 then loses the response. So the stream of the client keeps the unread rest
//! for a moment and discards what still comes. Proof: tests/it `early_response_leaves_before_the_reset_of_its_stream`.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::RecvStream;

use super::{UploadError, lock};

/// The body of one request, without its trailers.
#[derive(Debug)]
pub(super) struct Http2Body {
    /// `None` only while the body is dropped.
    stream: Option<RecvStream>,
    /// The client may wait for a 100 before it sends the body.
    expects_continue: bool,
    shared: Arc<SharedBody>,
}

/// What the stream of a client keeps of the body of its request.
#[derive(Debug)]
pub(crate) struct UnreadBody(Arc<SharedBody>);

#[derive(Debug)]
struct SharedBody {
    wants_continue: AtomicBool,
    rest: Mutex<BodyRest>,
}

#[derive(Debug)]
enum BodyRest {
    /// Something else reads the body. Wakes the stream once that has ended.
    Lent(Option<Waker>),
    Unread(RecvStream),
    /// The body was read to its end.
    Complete,
}

impl Http2Body {
    /// The body that comes on `stream`, and what the stream keeps of it.
    pub(super) fn new(stream: RecvStream, expects_continue: bool) -> (Self, UnreadBody) {
        let shared = Arc::new(SharedBody {
            wants_continue: AtomicBool::new(false),
            rest: Mutex::new(BodyRest::Lent(None)),
        });
        let body = Self {
            stream: Some(stream),
            expects_continue,
            shared: Arc::clone(&shared),
        };
        (body, UnreadBody(shared))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    /// The next piece of data, never empty; `None` only at a complete end.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UploadError>>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(None);
        };
        let polled = poll_stream(stream, cx);
        if polled.is_pending() && mem::take(&mut self.expects_continue) {
            self.shared.wants_continue.store(true, Ordering::Relaxed);
        }
        polled
    }
}

/// The next piece of data that comes on `stream`. Trailers are dropped: kube-apiserver reads none, and they could name
/// fields that were checked in the head.
fn poll_stream(
    stream: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, UploadError>>> {
    loop {
        return Poll::Ready(match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // It fails only for a stream that has ended.
                stream.flow_control().release_capacity(data.len()).ok();
                if data.is_empty() {
                    continue;
                }
                Some(Ok(data))
            }
            Some(Err(error)) if error.is_reset() && error.is_remote() => {
                Some(Err(UploadError::Reset))
            }
            Some(Err(error)) => Some(Err(UploadError::Http2(error))),
            None => None,
        });
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        let rest = if stream.is_end_stream() {
            BodyRest::Complete
        } else {
            BodyRest::Unread(stream)
        };
        let before = mem::replace(&mut *lock(&self.shared.rest), rest);
        if let BodyRest::Lent(Some(waiting)) = before {
            waiting.wake();
        }
    }
}

impl UnreadBody {
    /// Whether the client is to get a 100 now. True only once.
    pub(crate) fn takes_continue(&self) -> bool {
        let wants = &self.0.wants_continue;
        wants.load(Ordering::Relaxed) && wants.swap(false, Ordering::Relaxed)
    }

    /// Discards what comes of the body once nothing else reads it. Ready at the end of the body, complete or not.
    pub(crate) fn poll_discarded(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *lock(&self.0.rest) {
            BodyRest::Lent(waiting) => {
                *waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            BodyRest::Unread(stream) => while let Some(Ok(_)) = ready!(poll_stream(stream, cx)) {},
            BodyRest::Complete => {}
        }
        Poll::Ready(())
    }
}
