//! Heartbeats: each worker records that its event loop runs, `/livez` and the systemd watchdog read it.
//!
//! A worker that has ended says so. Otherwise its last heartbeat would look like a stalled event loop, and
//! the watchdog would kill the process while other workers still drain.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// The state of one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Heartbeat {
    /// Its event loop has not run yet: the process still resolves names and opens sockets.
    #[default]
    Starting,
    /// Its event loop ran last at this instant.
    Running(Instant),
    /// It has ended.
    Ended,
}

/// The heartbeats of all workers. Clones share them.
#[derive(Debug, Clone)]
pub struct Heartbeats(Arc<[Mutex<Heartbeat>]>);

/// Records the heartbeat of one worker; [`Heartbeat::Ended`] when dropped.
#[derive(Debug)]
pub struct WorkerHeartbeat {
    all: Heartbeats,
    worker: usize,
}

impl Heartbeats {
    /// Heartbeats for this number of workers, all of them starting.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Mutex::default()).collect())
    }

    /// The current state of each worker.
    #[must_use]
    pub fn now(&self) -> Vec<Heartbeat> {
        let each = self.0.iter();
        each.map(|one| *one.lock().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    /// The running worker with the oldest heartbeat, and the age of that heartbeat.
    #[must_use]
    pub fn longest_silence(&self) -> (usize, Duration) {
        let silence = |heartbeat| match heartbeat {
            Heartbeat::Running(at) => at.elapsed(),
            Heartbeat::Starting | Heartbeat::Ended => Duration::ZERO,
        };
        let silences = self.now().into_iter().map(silence).enumerate();
        silences
            .max_by_key(|(_, silence)| *silence)
            .unwrap_or_default()
    }

    /// The recorder of the worker with this number.
    #[must_use]
    pub fn worker(&self, worker: usize) -> WorkerHeartbeat {
        WorkerHeartbeat {
            all: self.clone(),
            worker,
        }
    }
}

impl WorkerHeartbeat {
    /// Records a heartbeat every [`INTERVAL`]. Run it on the worker's own event loop.
    pub async fn heartbeat(&self) -> Infallible {
        loop {
            self.record(Heartbeat::Running(Instant::now()));
            sleep(INTERVAL).await;
        }
    }

    fn record(&self, heartbeat: Heartbeat) {
        if let Some(one) = self.all.0.get(self.worker) {
            *one.lock().unwrap_or_else(PoisonError::into_inner) = heartbeat;
        }
    }
}

impl Drop for WorkerHeartbeat {
    fn drop(&mut self) {
        self.record(Heartbeat::Ended);
    }
}

/// Time between two heartbeats of a worker.
pub const INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_stalled_event_loop_is_silent() {
        let heartbeats = Heartbeats::new(2);
        advance(Duration::from_secs(60)).await;
        assert_eq!(heartbeats.longest_silence().1, Duration::ZERO, "starting");
        let worker = heartbeats.worker(1);
        let running = timeout(Duration::from_secs(60), worker.heartbeat());
        running.await.unwrap_err();
        let (_, silence) = heartbeats.longest_silence();
        assert!(silence <= INTERVAL, "{silence:?}");
        advance(Duration::from_secs(9)).await;
        let (number, silence) = heartbeats.longest_silence();
        assert_eq!(number, 1);
        assert!(silence >= Duration::from_secs(9), "{silence:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn ended_worker_is_not_silent() {
        let heartbeats = Heartbeats::new(1);
        let worker = heartbeats.worker(0);
        timeout(INTERVAL, worker.heartbeat()).await.unwrap_err();
        drop(worker);
        advance(Duration::from_secs(60)).await;
        assert_eq!(heartbeats.longest_silence().1, Duration::ZERO);
        assert_eq!(heartbeats.now(), [Heartbeat::Ended]);
    }
}
