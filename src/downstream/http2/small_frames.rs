//! Limits how many small frames of one response wait in h2 for a client that does not read.
//!
//! h2 limits the bytes that wait per stream. A frame of one byte costs h2 several hundred bytes, so a log
//! that arrives byte by byte, on each of a hundred streams that the client does not read, would hold
//! gigabytes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Wraps a response body so that it hands over at most [`MAX_SMALL_FRAMES`] small frames that are not yet
/// written.
pub(super) fn limit_small_frames<B>(body: B) -> SmallFrameLimit<B> {
    SmallFrameLimit {
        body,
        permits: None,
    }
}

/// A response body whose unwritten small frames are limited.
#[derive(Debug)]
pub(super) struct SmallFrameLimit<B> {
    body: B,
    /// Made with the first small frame, because most responses have none.
    permits: Option<Box<Permits>>,
}

#[derive(Debug)]
struct Permits {
    semaphore: PollSemaphore,
    /// The permit of the next frame, taken before the frame is read.
    next: Option<OwnedSemaphorePermit>,
}

/// The data of a small frame. It holds its permit until h2 has written or dropped it.
struct SmallFrame {
    /// A copy, because a slice would keep the whole buffer that it came in.
    data: Box<[u8]>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Permits {
    fn new() -> Self {
        let semaphore = Arc::new(Semaphore::new(MAX_SMALL_FRAMES));
        Self {
            next: Arc::clone(&semaphore).try_acquire_owned().ok(),
            semaphore: PollSemaphore::new(semaphore),
        }
    }

    /// Ready once there is a permit for the next frame.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none() {
            self.next = ready!(self.semaphore.poll_acquire(cx));
        }
        Poll::Ready(())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SmallFrameLimit<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(permits) = &mut this.permits {
            ready!(permits.poll_next(cx));
        }
        let mut frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(data) = frame.data_mut()
            && data.len() < SMALL
            // No frame follows the last one, so it needs no limit.
            && !this.body.is_end_stream()
        {
            let permits = this.permits.get_or_insert_with(|| Box::new(Permits::new()));
            *data = Bytes::from_owner(SmallFrame {
                data: Box::from(&data[..]),
                _permit: permits.next.take(),
            });
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl AsRef<[u8]> for SmallFrame {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Frames with fewer bytes than this count as small.
const SMALL: usize = 256;
/// As many frames of [`SMALL`] bytes fill the send buffer of a stream.
const MAX_SMALL_FRAMES: usize = 256;

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Wake, Waker},
    };

    use super::*;

    #[derive(Default)]
    struct Wakeups(AtomicUsize);

    impl Wake for Wakeups {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A body without end whose frames all have this size.
    struct Endless(usize);

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(Some(Ok(Frame::data(vec![b'x'; self.0].into()))))
        }
    }

    /// The next frame of this body, if it has one now.
    fn next(body: &mut SmallFrameLimit<Endless>, cx: &mut Context<'_>) -> Option<Bytes> {
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(frame) => Some(frame.unwrap().unwrap().into_data().unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn waiting_body_is_woken_when_a_small_frame_is_gone() {
        let wakeups = Arc::new(Wakeups::default());
        let count = || wakeups.0.load(Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&wakeups));
        let cx = &mut Context::from_waker(&waker);
        let mut body = limit_small_frames(Endless(1));
        let mut unwritten: Vec<_> = (0..MAX_SMALL_FRAMES)
            .map(|_| next(&mut body, cx).unwrap())
            .collect();
        assert!(next(&mut body, cx).is_none());
        // A part of a frame keeps the whole frame.
        let part = unwritten.pop().unwrap().slice(..1);
        assert_eq!(count(), 0);
        drop(part);
        assert_eq!(count(), 1);
        assert!(next(&mut body, cx).is_some());
        drop(unwritten);
        assert_eq!(count(), 1, "the body was not waiting");
    }

    #[test]
    fn large_frames_are_not_limited() {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut body = limit_small_frames(Endless(SMALL));
        let unwritten: Vec<_> = (0..=MAX_SMALL_FRAMES)
            .map_while(|_| next(&mut body, cx))
            .collect();
        assert_eq!(unwritten.len(), MAX_SMALL_FRAMES + 1);
    }
}
