//! Tests the limit of small frames.

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
