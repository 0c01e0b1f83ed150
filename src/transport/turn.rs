//! Bounds what one connection does before the other tasks of its thread run. tokio counts operations, and one read may
//! have 64 KiB.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::task::yield_now;

/// The bytes that a connection has read and written in this turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) read: usize,
    pub(super) written: usize,
    /// The next turn, once this one is over. HTTP may try to read again within the same turn.
    next: Option<Arc<NextTurn>>,
}

#[derive(Debug)]
struct NextTurn {
    has_begun: AtomicBool,
    task: Waker,
}

impl Wake for NextTurn {
    fn wake(self: Arc<Self>) {
        self.has_begun.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

impl Turn {
    /// The bytes that may still be read in this turn. Pending until the next turn when there are none.
    pub(super) fn poll_read_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.poll_room(cx, |turn| turn.read)
    }

    /// As [`Turn::poll_read_room`], for writes.
    pub(super) fn poll_write_room(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        self.poll_room(cx, |turn| turn.written)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>, used: impl Fn(&Self) -> usize) -> Poll<usize> {
        let next = self.next.as_ref();
        if next.is_some_and(|next| next.has_begun.load(Ordering::Relaxed)) {
            *self = Self::default();
        }
        let room = MAX_BYTES_PER_TURN.saturating_sub(used(self));
        if room > 0 {
            return Poll::Ready(room);
        }
        // Two tasks may share a connection. Each is woken.
        let next = self.next.as_ref();
        if !next.is_some_and(|next| next.task.will_wake(cx.waker())) {
            let next = Arc::new(NextTurn {
                has_begun: AtomicBool::new(false),
                task: cx.waker().clone(),
            });
            self.next = Some(Arc::clone(&next));
            return yield_turn(&mut Context::from_waker(&Waker::from(next)));
        }
        Poll::Pending
    }
}

/// Pending until the other tasks of this thread have had a turn. Uses `yield_now` and not `wake_by_ref`: a task that
/// wakes itself is runnable at once, and while a task is runnable, tokio looks for I/O events only once in 61 polls.
pub(crate) fn yield_turn<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _pending = pin!(yield_now()).poll(cx);
    Poll::Pending
}

/// Bytes that a connection reads, and bytes that it writes, before the other tasks of its thread have a turn. Four full
/// TLS records. Proof: `downstream::tests::flood_of_one_client_lets_others_ask`.
pub(super) const MAX_BYTES_PER_TURN: usize = 64 * 1024;
