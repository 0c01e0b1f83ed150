//! Signs of life of the workers.

use std::sync::Arc;

use crate::metrics::{Counters, Metrics};

/// A number for each worker that changes every second while its thread takes turns.
#[derive(Debug, Clone)]
pub struct Beats(pub(super) Arc<Metrics>);

impl Beats {
    /// The numbers now.
    #[must_use]
    pub fn now(&self) -> Vec<u64> {
        let workers = self.0.workers().iter();
        workers.map(|counts| Counters::last_beat(counts)).collect()
    }
}
