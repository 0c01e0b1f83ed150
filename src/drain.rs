//! Lets running requests and tunnels finish when the process stops, within deadlines.
//!
//! Every task starts through [`Drain::spawn`]. The drain does not wait for a task that starts elsewhere.

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

use crate::ending::EndReason;

/// The phase of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No stop signal has come.
    Serving,
    /// A stop signal has come: `/readyz` fails, so that load balancers send no more clients. Clients that
    /// still come are served.
    Announced,
    /// The listening sockets are closed, and running requests and tunnels finish.
    Draining,
}

/// The tasks of one worker and the signal that tells them to finish. Each worker has its own, so that
/// tracking a task touches no other thread.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    request_deadline: CancellationToken,
    aborted: CancellationToken,
    tasks: TaskTracker,
    tally: Arc<Tally>,
}

/// Counts for the log.
#[derive(Debug, Default)]
struct Tally {
    connections: AtomicUsize,
    tunnels: AtomicUsize,
    watches_ended: AtomicUsize,
}

/// The kinds of work that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// A connection of a client, until it ends or becomes a tunnel.
    Connection,
    /// The two connections of an upgraded request.
    Tunnel,
}

/// Counts one connection or tunnel until dropped.
#[derive(Debug)]
pub struct OpenConnection {
    tally: Arc<Tally>,
    kind: ConnectionKind,
}

/// Numbers of connections and tunnels.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Connections of clients.
    pub connections: usize,
    /// Tunnels.
    pub tunnels: usize,
}

/// How long requests and tunnels may continue after the drain begins.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// Requests and their connections.
    pub requests: Duration,
    /// Tunnels; at least as long as requests.
    pub tunnels: Duration,
}

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A drain for some of the tasks, which can begin earlier. It begins with this one at the latest, and this one
    /// waits for its tasks.
    #[must_use]
    pub fn part(&self) -> Self {
        Self {
            begun: self.begun.child_token(),
            request_deadline: self.request_deadline.child_token(),
            ..self.clone()
        }
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

    /// Counts one connection or tunnel until the result is dropped.
    #[must_use]
    pub fn count(&self, kind: ConnectionKind) -> OpenConnection {
        self.tally.counter(kind).fetch_add(1, Ordering::Relaxed);
        OpenConnection {
            tally: Arc::clone(&self.tally),
            kind,
        }
    }

    /// Returns how many connections and tunnels are open now.
    #[must_use]
    pub fn open(&self) -> ConnectionCounts {
        ConnectionCounts {
            connections: self.tally.connections.load(Ordering::Relaxed),
            tunnels: self.tally.tunnels.load(Ordering::Relaxed),
        }
    }

    /// Counts a watch that the drain ended between two events.
    pub fn ended_watch(&self) {
        self.tally.watches_ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many watches the drain ended between two events.
    #[must_use]
    pub fn watches_ended(&self) -> usize {
        self.tally.watches_ended.load(Ordering::Relaxed)
    }

    /// Tells all tasks to finish. A second call changes nothing.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Makes [`Drain::finish`] return now, whatever still runs.
    pub fn abort(&self) {
        self.begun.cancel();
        self.aborted.cancel();
    }

    /// Tells all tasks but tunnels to end now, as the deadline of requests does.
    pub fn end_requests(&self) {
        self.request_deadline.cancel();
    }

    /// Whether [`Drain::begin`] was called.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    /// Returns once [`Drain::begin`] was called.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Why whatever still runs is closed now: the deadline of requests has passed, or [`Drain::abort`] was called.
    #[must_use]
    pub fn close_reason(&self) -> Option<EndReason> {
        if self.aborted.is_cancelled() {
            Some(EndReason::SecondSignal)
        } else {
            let is_over = self.request_deadline.is_cancelled();
            is_over.then_some(EndReason::Drain)
        }
    }

    /// Like [`Drain::begun`], but the future borrows nothing.
    pub fn begun_owned(&self) -> WaitForCancellationFutureOwned {
        self.begun.clone().cancelled_owned()
    }

    /// Returns once the deadline of requests has passed. The caller then drops its connection without an
    /// orderly shutdown (no `close_notify`).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn deadline(&self) {
        self.request_deadline.cancelled().await;
    }

    /// Waits until every task has ended, its deadline has passed, or [`Drain::abort`] was called. Returns how
    /// many connections and tunnels had not ended by themselves.
    pub async fn finish(&self, deadlines: Deadlines) -> ConnectionCounts {
        self.tasks.close();
        tokio::select! {
            left = self.wait(deadlines) => left,
            () = self.aborted.cancelled() => self.open(),
        }
    }

    async fn wait(&self, deadlines: Deadlines) -> ConnectionCounts {
        let all = tokio::time::timeout(deadlines.requests, self.tasks.wait());
        if all.await.is_ok() {
            return ConnectionCounts::default();
        }
        let ConnectionCounts {
            connections,
            tunnels,
        } = self.open();
        self.request_deadline.cancel();
        let left = if tunnels > 0 {
            deadlines.tunnels.saturating_sub(deadlines.requests)
        } else {
            CLOSE_TIMEOUT
        };
        drop(tokio::time::timeout(left, self.tasks.wait()).await);
        ConnectionCounts {
            connections,
            tunnels: self.open().tunnels,
        }
    }
}

impl Tally {
    fn counter(&self, kind: ConnectionKind) -> &AtomicUsize {
        match kind {
            ConnectionKind::Connection => &self.connections,
            ConnectionKind::Tunnel => &self.tunnels,
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.tally
            .counter(self.kind)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long tasks may take to drop their connections after the deadline.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);
