//! Lets running work finish, tunnels too, and knows when all of it has.
//!
//! Every task starts through [`Drain::spawn`]; one that starts elsewhere is not waited for.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

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
    tasks: TaskTracker,
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

    /// Asks all work to come to an end. Calling it again changes nothing.
    pub fn begin(&self) {
        self.started.cancel();
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

    /// Waits until every task has ended, for `limit` at most; returns how many are still running.
    pub async fn finish(&self, limit: Duration) -> usize {
        self.tasks.close();
        match tokio::time::timeout(limit, self.tasks.wait()).await {
            Ok(()) => 0,
            Err(_elapsed) => self.tasks.len(),
        }
    }
}
