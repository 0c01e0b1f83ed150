//! Lets running work finish, tunnels too, and knows when all of it has.
//!
//! Every task starts through [`Drain::spawn`]; one that starts elsewhere is not waited for.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

/// How far the process is on its way to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nobody has told it to stop.
    Serving,
    /// Told to stop: `/readyz` fails, so that no more clients are sent here, and those that still come
    /// are served.
    Announced,
    /// The sockets are closed, and what runs comes to its end.
    Draining,
}

/// The tasks of one worker and the signal that they should come to an end.
///
/// Each worker has one of its own, so that tracking a task touches no other thread.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    started: CancellationToken,
    cut: CancellationToken,
    ended: CancellationToken,
    tasks: TaskTracker,
    tally: Arc<Tally>,
}

/// What runs, and what became of it; for the log.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicUsize,
    tunnels: AtomicUsize,
    watches_ended: AtomicUsize,
}

/// What is counted while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A client's connection, as long as it speaks HTTP.
    Connection,
    /// Two connections that were joined.
    Tunnel,
}

/// One that runs, until dropped.
#[derive(Debug)]
pub struct Counted {
    tally: Arc<Tally>,
    kind: Kind,
}

/// How many there are, of each kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Connections of clients.
    pub connections: usize,
    /// Tunnels.
    pub tunnels: usize,
}

/// How long what runs may go on once the drain has begun.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Requests and their connections.
    pub requests: Duration,
    /// Tunnels; never less than requests have.
    pub tunnels: Duration,
}

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task; [`Drain::finish`] waits for it.
    #[expect(clippy::disallowed_methods, reason = "the one place where tasks start")]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        tokio::spawn(self.tasks.track_future(task))
    }

    /// Counts one in until the result is dropped.
    #[must_use]
    pub fn count(&self, kind: Kind) -> Counted {
        self.tally.of(kind).fetch_add(1, Ordering::Relaxed);
        Counted {
            tally: Arc::clone(&self.tally),
            kind,
        }
    }

    /// What runs now.
    #[must_use]
    pub fn running(&self) -> Counts {
        Counts {
            connections: self.tally.connections.load(Ordering::Relaxed),
            tunnels: self.tally.tunnels.load(Ordering::Relaxed),
        }
    }

    /// Notes that a watch was ended between two events.
    pub fn ended_watch(&self) {
        self.tally.watches_ended.fetch_add(1, Ordering::Relaxed);
    }

    /// How many watches were ended between two events.
    #[must_use]
    pub fn watches_ended(&self) -> usize {
        self.tally.watches_ended.load(Ordering::Relaxed)
    }

    /// Asks all work to come to an end. Calling it again changes nothing.
    pub fn begin(&self) {
        self.started.cancel();
    }

    /// Ends all work now, whatever runs.
    pub fn end(&self) {
        self.started.cancel();
        self.ended.cancel();
    }

    /// Whether [`Drain::begin`] was called.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.started.is_cancelled()
    }

    /// Returns once [`Drain::begin`] was called.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn begun(&self) {
        self.started.cancelled().await;
    }

    /// As [`Drain::begun`], as a future that borrows nothing.
    pub fn begun_owned(&self) -> WaitForCancellationFutureOwned {
        self.started.clone().cancelled_owned()
    }

    /// Returns once the time of requests is over: whoever waits drops its connection, unended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn cut(&self) {
        self.cut.cancelled().await;
    }

    /// Waits until every task has ended, or its deadline has passed, or [`Drain::end`] was called;
    /// returns what was cut or, for tunnels, still runs.
    pub async fn finish(&self, deadlines: Deadlines) -> Counts {
        self.tasks.close();
        tokio::select! {
            left = self.wait(deadlines) => left,
            () = self.ended.cancelled() => self.running(),
        }
    }

    async fn wait(&self, deadlines: Deadlines) -> Counts {
        let all = tokio::time::timeout(deadlines.requests, self.tasks.wait());
        if all.await.is_ok() {
            return Counts::default();
        }
        let Counts {
            connections,
            tunnels,
        } = self.running();
        self.cut.cancel();
        let rest = deadlines.tunnels.saturating_sub(deadlines.requests);
        let rest = if tunnels > 0 { rest } else { LAST_WORD };
        drop(tokio::time::timeout(rest, self.tasks.wait()).await);
        Counts {
            connections,
            tunnels: self.running().tunnels,
        }
    }
}

impl Tally {
    fn of(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Tunnel => &self.tunnels,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.tally.of(self.kind).fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is told to cut its connection needs no longer than this to do so.
const LAST_WORD: Duration = Duration::from_millis(200);
