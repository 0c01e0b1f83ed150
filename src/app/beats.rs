//! Signs of life of the workers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;

/// A number for each worker that goes up every second while its thread takes turns.
#[derive(Debug, Clone)]
pub struct Beats(Arc<[AtomicU64]>);

impl Beats {
    pub(super) fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| AtomicU64::new(0)).collect())
    }

    /// The numbers now.
    #[must_use]
    pub fn now(&self) -> Vec<u64> {
        let beats = self.0.iter();
        beats.map(|beat| beat.load(Ordering::Relaxed)).collect()
    }

    /// Beats for this worker, for ever.
    pub(super) async fn keep(&self, worker: usize) {
        loop {
            sleep(BEAT).await;
            if let Some(beat) = self.0.get(worker) {
                beat.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

const BEAT: Duration = Duration::from_secs(1);
