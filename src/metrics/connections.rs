//! Guards that count the connections of both legs.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock, Weak},
};

use tokio::sync::OwnedSemaphorePermit;

use super::{Counters, ErrorReason, LeaseEnd, LeaseFrom, Protocol};

/// An open downstream connection: holds its permit and its place in the gauge. A tunnel keeps both until
/// the tunnel ends.
#[derive(Debug)]
pub struct Connected {
    counters: Arc<Counters>,
    client: SocketAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connected {
    /// Counts a connection after its handshake.
    #[must_use]
    pub fn new(
        counters: Arc<Counters>,
        client: SocketAddr,
        protocol: Protocol,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        counters.connections.increment();
        counters.connections_total.count(protocol);
        Self {
            counters,
            client,
            _permit: permit,
        }
    }

    /// The address of the client.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The counters of the worker that serves the connection.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Counts and lists an error that the proxy answers by itself. Returns `Some` if it may be logged,
    /// with the number of log lines about this client that were suppressed since the last one.
    pub fn record_error(
        &self,
        reason: ErrorReason,
        message: impl FnOnce() -> String,
    ) -> Option<u64> {
        self.counters.errors.count(reason);
        let activity = self.counters.activity();
        activity.record_error(reason.label(), self.client.ip(), message)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.counters.connections.decrement();
    }
}

/// Statistics of one upstream connection: how often it was leased, and why it is no longer used. Dropped,
/// it counts the end once, with the first reason that was set. A connection that was never dialled, such
/// as one of a test, is not counted.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    dialled: OnceLock<DialledBy>,
    end: OnceLock<LeaseEnd>,
}

#[derive(Debug)]
struct DialledBy {
    counters: Arc<Counters>,
    /// Dangling once a reload has replaced the cluster that the connection was made for.
    in_use: Weak<()>,
}

impl ConnectionStats {
    /// Counts the first lease, of a connection that was just dialled.
    pub fn on_dial(&self, counters: &Arc<Counters>, in_use: &Arc<()>) {
        counters.leases_taken.count(LeaseFrom::Dial);
        let dialled = DialledBy {
            counters: Arc::clone(counters),
            in_use: Arc::downgrade(in_use),
        };
        // A second dial of one connection does not occur; it would keep the first worker.
        self.dialled.set(dialled).ok();
    }

    /// Counts another lease, of a connection that was idle.
    pub fn on_reuse(&self) {
        if let Some(dialled) = self.dialled.get() {
            dialled.counters.leases_taken.count(LeaseFrom::Idle);
        }
    }

    /// Sets why the connection is used for no further request. The first reason stays.
    pub fn set_end_reason(&self, reason: LeaseEnd) {
        self.end.set(reason).ok();
    }
}

impl Drop for ConnectionStats {
    fn drop(&mut self) {
        let Some(dialled) = self.dialled.get() else {
            return;
        };
        let reason = self.end.get().copied().unwrap_or(LeaseEnd::Closed);
        // No request looks for a connection of an older generation, so such a connection ages or is closed.
        let is_replaced = dialled.in_use.strong_count() == 0;
        let is_age = matches!(reason, LeaseEnd::Age | LeaseEnd::Closed);
        let reason = if is_age && is_replaced {
            LeaseEnd::Generation
        } else {
            reason
        };
        dialled.counters.leases_retired.count(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_end_counts_once_with_its_first_reason() {
        let (counters, in_use) = (Arc::new(Counters::default()), Arc::new(()));
        let stats = ConnectionStats::default();
        stats.on_dial(&counters, &in_use);
        stats.on_reuse();
        stats.set_end_reason(LeaseEnd::Unauthorized);
        stats.set_end_reason(LeaseEnd::GoAway);
        drop(stats);
        drop(ConnectionStats::default());
        let aged = ConnectionStats::default();
        aged.on_dial(&counters, &in_use);
        aged.set_end_reason(LeaseEnd::Age);
        drop(in_use);
        drop(aged);
        assert_eq!(counters.leases_taken.value(LeaseFrom::Dial), 2);
        assert_eq!(counters.leases_taken.value(LeaseFrom::Idle), 1);
        for reason in LeaseEnd::ALL {
            let expected = matches!(reason, LeaseEnd::Unauthorized | LeaseEnd::Generation);
            let counted = counters.leases_retired.value(*reason);
            assert_eq!(counted, u64::from(expected), "{reason:?}");
        }
    }
}
