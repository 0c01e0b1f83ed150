//! Runs a connection inside the task that uses it.
//!
//! A task of its own for the connection costs four switches between two tasks for each small request.
//! Here the user polls the connection, then looks for what it brought, and is woken by the socket alone.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// A connection that gets no further than its user polls it.
pub(super) struct Inline {
    /// `None` once it has ended.
    connection: Option<Pin<Box<Driver>>>,
    bell: Arc<Bell>,
    /// The same as a waker, made once.
    waker: Waker,
}

type Driver = dyn Future<Output = Result<(), hyper::Error>> + Send;

/// Rings the task outside, but not for what happens while that task polls: the poll looks again itself.
#[derive(Debug)]
struct Bell {
    polling: AtomicBool,
    rang: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In one order for all threads: either the poll sees the ring, or the ring sees that it is over.
        self.rang.store(true, Ordering::SeqCst);
        if !self.polling.load(Ordering::SeqCst) {
            self.task
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .wake_by_ref();
        }
    }
}

impl fmt::Debug for Inline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inline")
            .field("ended", &self.connection.is_none())
            .finish_non_exhaustive()
    }
}

impl Inline {
    pub(super) fn new(
        connection: impl Future<Output = Result<(), hyper::Error>> + Send + 'static,
    ) -> Self {
        let bell = Arc::new(Bell {
            polling: AtomicBool::new(false),
            rang: AtomicBool::new(false),
            task: Mutex::new(Waker::noop().clone()),
        });
        Self {
            connection: Some(Box::pin(connection)),
            waker: Arc::clone(&bell).into(),
            bell,
        }
    }

    /// Polls the connection and then `look`, which says what its user waits for, until neither sets
    /// off the other any more.
    pub(super) fn poll<T>(
        &mut self,
        cx: &Context<'_>,
        mut look: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        {
            let mut task = self
                .bell
                .task
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            task.clone_from(cx.waker());
        }
        let mut within = Context::from_waker(&self.waker);
        self.bell.polling.store(true, Ordering::SeqCst);
        let mut seen = Poll::Pending;
        for _ in 0..ROUNDS {
            self.bell.rang.store(false, Ordering::SeqCst);
            if let Some(connection) = &mut self.connection
                && let Poll::Ready(ended) = connection.as_mut().poll(&mut within)
            {
                // What it ended with is told to whoever waits for an answer on it.
                drop(ended);
                self.connection = None;
            }
            seen = look(&mut within);
            if seen.is_ready() || !self.bell.rang.load(Ordering::SeqCst) {
                break;
            }
        }
        self.bell.polling.store(false, Ordering::SeqCst);
        // Out of rounds, or rung by another thread between the look and the line above.
        if seen.is_pending() && self.bell.rang.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        seen
    }

    /// Lets the connection notice what has happened to it while nobody polled it.
    pub(super) fn catch_up(&mut self) {
        let nobody = Context::from_waker(Waker::noop());
        let done = self.poll(&nobody, |_| Poll::Ready(()));
        debug_assert!(done.is_ready(), "nothing is waited for");
    }

    /// The connection, to be run by a task of its own from now on.
    pub(super) fn into_connection(self) -> Option<Pin<Box<Driver>>> {
        self.connection
    }
}

/// How often one poll looks again. A request takes two or three; a task that has used up its share of the
/// worker's time rings for ever, until it lets others run.
const ROUNDS: usize = 8;

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        sync::atomic::AtomicUsize,
    };

    use super::*;

    /// A task that counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Woken {
        fn times(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn what_happens_within_a_poll_is_looked_at_and_wakes_nobody() {
        let woken = Arc::new(Woken::default());
        let task = Waker::from(Arc::clone(&woken));
        let mut inline = Inline::new(pending());
        let mut looks = 0;
        let seen = inline.poll(&Context::from_waker(&task), |cx| {
            looks += 1;
            if looks < 3 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(looks)
        });
        assert_eq!((seen, woken.times()), (Poll::Ready(3), 0));
    }

    #[test]
    fn what_happens_later_wakes_the_task() {
        let woken = Arc::new(Woken::default());
        let task = Waker::from(Arc::clone(&woken));
        let socket = Arc::new(Mutex::new(None));
        let of_connection = Arc::clone(&socket);
        let mut inline = Inline::new(poll_fn(move |cx| {
            *of_connection.lock().unwrap() = Some(cx.waker().clone());
            Poll::Pending
        }));
        let seen = inline.poll(&Context::from_waker(&task), |_| Poll::<()>::Pending);
        assert_eq!((seen, woken.times()), (Poll::Pending, 0));
        let socket = socket.lock().unwrap().take().unwrap();
        socket.wake();
        assert_eq!(woken.times(), 1);
    }

    #[test]
    fn a_connection_that_always_rings_lets_others_run() {
        let woken = Arc::new(Woken::default());
        let task = Waker::from(Arc::clone(&woken));
        let mut inline = Inline::new(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::Pending
        }));
        let seen = inline.poll(&Context::from_waker(&task), |_| Poll::<()>::Pending);
        assert_eq!((seen, woken.times()), (Poll::Pending, 1));
    }

    #[test]
    fn a_connection_that_has_ended_is_not_polled_again() {
        let mut inline = Inline::new(async { Ok(()) });
        inline.catch_up();
        inline.catch_up();
        assert!(inline.into_connection().is_none());
    }
}
