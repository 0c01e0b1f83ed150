//! One apiserver as requests see it: its endpoints, and how they prove who they are.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::{ClientTls, Endpoints};

/// The apiserver of one cluster, in one trust generation.
#[derive(Debug)]
pub struct Cluster {
    pub(super) id: u64,
    name: String,
    path_prefix: String,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) tls: ClientTls,
    /// Dropped with this generation.
    pub(super) generation: Arc<()>,
}

impl Cluster {
    /// A cluster of a new trust generation: connections of an older one are not used for it.
    #[must_use]
    pub fn new(
        name: String,
        path_prefix: String,
        endpoints: Arc<Endpoints>,
        tls: ClientTls,
    ) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            name,
            path_prefix,
            endpoints,
            tls,
            generation: Arc::default(),
        }
    }

    /// The name in log lines and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The prefix of every path.
    #[must_use]
    pub fn path_prefix(&self) -> &str {
        &self.path_prefix
    }

    /// Its addresses and their health.
    #[must_use]
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }
}
