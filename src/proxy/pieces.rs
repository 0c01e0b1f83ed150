//! Bounds how many small pieces of one response wait for a client of HTTP/2.
//!
//! What waits is bounded in bytes, and a frame of one byte costs some hundred of them: a log that comes
//! byte by byte, on each of a hundred streams that nobody reads, would hold gigabytes.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

/// The small pieces of one response that were handed on and are not written yet. Most responses have none.
#[derive(Debug, Default)]
pub(super) struct Pieces(Option<Arc<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    count: AtomicUsize,
    /// Who wants to hand on more.
    waker: Mutex<Option<Waker>>,
}

/// A small piece, counted until it is written or given up.
struct Piece {
    /// Copied, because a part of a buffer would keep all of it.
    data: Box<[u8]>,
    waiting: Arc<Waiting>,
}

impl Pieces {
    /// Ready once another piece may follow.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(waiting) = &self.0 else {
            return Poll::Ready(());
        };
        if waiting.has_room() {
            return Poll::Ready(());
        }
        drop(waiting.waker().replace(cx.waker().clone()));
        // One may have been written in between.
        if waiting.has_room() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The same bytes as a small piece.
    pub(super) fn counted(&mut self, data: &[u8]) -> Bytes {
        let waiting = self.0.get_or_insert_default();
        waiting.count.fetch_add(1, Ordering::SeqCst);
        Bytes::from_owner(Piece {
            data: Box::from(data),
            waiting: Arc::clone(waiting),
        })
    }
}

/// Whether such a piece has to be counted.
pub(super) fn is_small(data: &Bytes) -> bool {
    data.len() < SMALL
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.count.load(Ordering::SeqCst) < MOST
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // Below the bound nobody waits.
        if self.waiting.count.fetch_sub(1, Ordering::SeqCst) >= MOST {
            let waker = mem::take(&mut *self.waiting.waker());
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// Bytes from which a piece is worth its frame.
const SMALL: usize = 256;
/// As many as fill what is buffered for a stream if all are as large as that.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn whoever_waits_for_room_is_woken_when_a_piece_is_gone() {
        let woken = Arc::new(Woken::default());
        let times = || woken.0.load(Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&woken));
        let cx = &mut Context::from_waker(&waker);
        let mut pieces = Pieces::default();
        let mut kept = Vec::new();
        for _ in 0..MOST {
            assert!(pieces.poll_room(cx).is_ready());
            kept.push(pieces.counted(b"x"));
        }
        assert!(pieces.poll_room(cx).is_pending());
        // A part of a piece is all of it.
        let part = kept.pop().unwrap().slice(..1);
        assert_eq!(times(), 0);
        drop(part);
        assert_eq!(times(), 1);
        assert!(pieces.poll_room(cx).is_ready());
        drop(kept);
        assert_eq!(times(), 1, "nobody waited");
    }
}
