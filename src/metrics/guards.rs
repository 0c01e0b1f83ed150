//! What is counted in and out again by being held.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{Counters, Protocol};

/// A downstream connection that is open: its place among those that may be, and its place in the gauge.
/// A tunnel keeps both to its own end.
#[derive(Debug)]
pub struct Connected {
    counts: Arc<Counters>,
    client: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connected {
    /// Counts a connection whose protocol is agreed.
    #[must_use]
    pub fn new(
        counts: Arc<Counters>,
        client: SocketAddr,
        protocol: Protocol,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        counts.connected(protocol);
        Self {
            counts,
            client,
            _permit: permit,
        }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// Counts an error that the proxy answers by itself, as [`Counters::failed`].
    pub fn failed(&self, reason: &'static str, sentence: impl FnOnce() -> String) -> Option<u64> {
        self.counts.failed(reason, self.client.ip(), sentence)
    }

    /// The counters of the worker that serves it.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counters> {
        &self.counts
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.counts.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
