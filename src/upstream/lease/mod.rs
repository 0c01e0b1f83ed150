//! A lease instead of a pool: an upstream connection serves one downstream connection at a time.
//!
//! kube-apiserver answers every anonymous or 401 request over HTTP/2 with GOAWAY, ends a connection
//! with too many early resets, and lets 100 streams run. On a shared connection each of these would
//! let one client break all others; on a lease it harms only itself.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    endpoint::Endpoint,
    h1::{GiveBack, H1Connection},
    h2::{H2Connection, H2Stream},
};
use crate::{
    drain::Drain,
    hosts::UpstreamAddr,
    metrics::{ConnectionStats, LeaseEnd},
};

/// The spotless connections of one worker that nobody leases, by cluster. The cluster number changes
/// with its trust anchors, so a connection of an older trust generation is never found again.
#[derive(Debug)]
pub(super) struct IdlePool {
    capacity: usize,
    keep: Duration,
    drain: Drain,
    connections: Mutex<HashMap<u64, Vec<IdleConnection>>>,
    /// Who has held a connection on which nothing ran, and may be gone.
    sweep_targets: Mutex<Vec<Weak<LeaseTable>>>,
}

#[derive(Debug)]
struct IdleConnection {
    since: Instant,
    connection: Connection,
}

/// A connection of either protocol, with nothing running on it.
#[derive(Debug)]
pub(super) enum Connection {
    H2(H2Connection),
    H1(H1Connection),
}

/// The connections that one downstream connection holds. When the last user is gone, the spotless
/// ones go back to the idle set and the others are closed.
#[derive(Debug)]
pub(super) struct LeaseTable {
    idle: Arc<IdlePool>,
    by_cluster: Mutex<Vec<(u64, ClusterLeases)>>,
    /// The idle set looks after what it holds.
    is_registered: AtomicBool,
}

#[derive(Debug, Default)]
struct ClusterLeases {
    h2: Vec<H2Connection>,
    h1: Vec<H1Connection>,
    /// The apiserver chose HTTP/1.1 although h2 was offered; each stream leases one connection.
    speaks_h1: bool,
}

/// What a request can be sent on.
#[derive(Debug)]
pub(super) enum LeasedSlot {
    H2(H2Stream),
    H1(H1Connection),
}

/// What a downstream connection already has for its next request.
#[derive(Debug)]
pub(super) enum Lookup {
    Slot(LeasedSlot),
    /// Nothing; every further connection will speak HTTP/1.1, so dialling them one by one gains nothing.
    MustDialH1,
    /// Nothing; one dial will serve all requests that wait.
    MustDial,
}

/// How old a connection may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Freshness {
    Any,
    /// Established later than this.
    After(Instant),
}

impl IdlePool {
    pub(super) fn new(capacity: usize, keep: Duration, drain: Drain) -> Self {
        Self {
            capacity,
            keep,
            drain,
            connections: Mutex::new(HashMap::new()),
            sweep_targets: Mutex::new(Vec::new()),
        }
    }

    /// The connection that went idle last, so that the others can grow old and go.
    pub(super) fn take(&self, cluster: u64, wants_h2: bool) -> Option<Connection> {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let idle = connections.get_mut(&cluster)?;
        while let Some(at) = idle
            .iter()
            .rposition(|idle| matches!(idle.connection, Connection::H2(_)) == wants_h2)
        {
            let mut found = idle.remove(at);
            let is_young = found.since.elapsed() < self.keep;
            if is_young && found.connection.is_reusable() {
                found.connection.stats().on_reuse();
                return Some(found.connection);
            }
            if !is_young {
                found.connection.stats().set_end_reason(LeaseEnd::Age);
            }
        }
        None
    }

    fn put(&self, cluster: u64, mut connection: Connection) {
        if self.capacity == 0 || self.drain.has_begun() || !connection.is_reusable() {
            return;
        }
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let idle = connections.entry(cluster).or_default();
        if idle.len() >= self.capacity {
            idle.remove(0)
                .connection
                .stats()
                .set_end_reason(LeaseEnd::Full);
        }
        idle.push(IdleConnection {
            since: connection.idle_since(),
            connection,
        });
    }

    /// Closes what is too old or broken. Called now and then, because only this closes a connection
    /// that nobody asks for any more.
    pub(super) fn sweep(&self) {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for idle in connections.values_mut() {
            idle.retain_mut(|idle| {
                let is_young = idle.since.elapsed() < self.keep;
                if !is_young {
                    idle.connection.stats().set_end_reason(LeaseEnd::Age);
                }
                is_young && idle.connection.is_reusable()
            });
        }
        connections.retain(|_, idle| !idle.is_empty());
        drop(connections);
        let sweep_targets = self.sweep_targets.lock();
        let sweep_targets: Vec<_> = sweep_targets
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for held in sweep_targets {
            held.sweep();
        }
    }

    /// Looks after what this client holds too: it may watch for days and ask for nothing else.
    fn register_for_sweep(&self, held: &Arc<LeaseTable>) {
        let mut sweep_targets = self
            .sweep_targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if sweep_targets.len() == sweep_targets.capacity() {
            sweep_targets.retain(|held| held.strong_count() > 0);
            // As much again, so that this is seldom.
            let left = sweep_targets.len();
            sweep_targets.reserve(left.max(MIN_SWEEP_TARGETS));
        }
        sweep_targets.push(Arc::downgrade(held));
    }

    /// Closes all of them.
    pub(super) fn clear(&self) {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl Connection {
    /// The same, known to lead to this endpoint: it is retired once that is passed over.
    pub(super) fn to(self, endpoint: Arc<Endpoint>) -> Self {
        match self {
            Self::H2(connection) => Self::H2(connection.to(endpoint)),
            Self::H1(connection) => Self::H1(connection.to(endpoint)),
        }
    }

    pub(super) fn endpoint(&self) -> UpstreamAddr {
        match self {
            Self::H2(connection) => connection.endpoint(),
            Self::H1(connection) => connection.endpoint(),
        }
    }

    /// What is counted of it.
    pub(super) fn stats(&self) -> &ConnectionStats {
        match self {
            Self::H2(connection) => connection.stats(),
            Self::H1(connection) => connection.stats(),
        }
    }

    /// Since when nothing has run on it; for HTTP/2 that is noted only when its client is gone.
    fn idle_since(&self) -> Instant {
        match self {
            Self::H2(_) => Instant::now(),
            Self::H1(connection) => connection.idle_since(),
        }
    }

    fn is_reusable(&mut self) -> bool {
        match self {
            Self::H2(connection) => connection.is_reusable(),
            Self::H1(connection) => connection.is_reusable(),
        }
    }
}

impl LeaseTable {
    pub(super) fn new(idle: Arc<IdlePool>) -> Arc<Self> {
        Arc::new(Self {
            idle,
            by_cluster: Mutex::new(Vec::new()),
            is_registered: AtomicBool::new(false),
        })
    }

    /// A free stream or connection among those already held, or else from the idle set.
    pub(super) fn find(&self, cluster: u64, wants_h2: bool, age: Freshness) -> Lookup {
        let mut by_cluster = self
            .by_cluster
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let held = for_cluster(&mut by_cluster, cluster);
        // Retired ones are let go here: running streams keep them alive until they end.
        held.h2.retain(H2Connection::is_open);
        held.drop_old(self.idle.keep);
        if wants_h2 && !held.speaks_h1 {
            let young_enough = |connection: &&H2Connection| match age {
                Freshness::Any => true,
                Freshness::After(at) => connection.established() > at,
            };
            let mut suitable = held.h2.iter().filter(young_enough);
            if let Some(stream) = suitable.find_map(H2Connection::take_stream) {
                return Lookup::Slot(LeasedSlot::H2(stream));
            }
            if matches!(age, Freshness::Any)
                && let Some(Connection::H2(connection)) = self.idle.take(cluster, true)
                && let Some(stream) = connection.take_stream()
            {
                held.h2.push(connection);
                return Lookup::Slot(LeasedSlot::H2(stream));
            }
            return Lookup::MustDial;
        }
        if matches!(age, Freshness::After(_)) {
            return Lookup::MustDialH1;
        }
        if let Some(connection) = held.h1.pop() {
            return Lookup::Slot(LeasedSlot::H1(connection));
        }
        if let Some(Connection::H1(connection)) = self.idle.take(cluster, false) {
            return Lookup::Slot(LeasedSlot::H1(connection));
        }
        Lookup::MustDialH1
    }

    /// Leases a connection that was just dialled and takes a slot of it.
    pub(super) fn add(
        &self,
        cluster: u64,
        connection: Connection,
        wanted_h2: bool,
    ) -> Option<LeasedSlot> {
        let mut by_cluster = self
            .by_cluster
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let held = for_cluster(&mut by_cluster, cluster);
        match connection {
            Connection::H2(connection) => {
                held.speaks_h1 = false;
                let stream = connection.take_stream();
                held.h2.push(connection);
                stream.map(LeasedSlot::H2)
            }
            Connection::H1(connection) => {
                held.speaks_h1 |= wanted_h2;
                Some(LeasedSlot::H1(connection))
            }
        }
    }

    /// Takes an HTTP/1.1 connection back after a response came to its good end.
    pub(super) fn give_back(self: &Arc<Self>, cluster: u64, connection: H1Connection) {
        let mut by_cluster = self
            .by_cluster
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for_cluster(&mut by_cluster, cluster).h1.push(connection);
        drop(by_cluster);
        if !self.is_registered.load(Ordering::Relaxed) {
            self.is_registered.store(true, Ordering::Relaxed);
            self.idle.register_for_sweep(self);
        }
    }

    /// Closes what is too old or has ended and is not asked for.
    fn sweep(&self) {
        let mut by_cluster = self
            .by_cluster
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for (_, held) in by_cluster.iter_mut() {
            held.drop_old(self.idle.keep);
        }
    }

    /// Where a connection of `cluster` shall go after its response.
    pub(super) fn give_back_to(self: &Arc<Self>, cluster: u64) -> GiveBack {
        GiveBack {
            held: Arc::clone(self),
            cluster,
        }
    }
}

impl ClusterLeases {
    /// The apiserver closes what is idle for 90 s; a request must not meet that halfway.
    fn drop_old(&mut self, keep: Duration) {
        self.h1.retain_mut(|connection| {
            let is_young = connection.idle_since().elapsed() < keep;
            if !is_young {
                connection.stats().set_end_reason(LeaseEnd::Age);
            }
            !connection.is_closed() && is_young
        });
    }
}

impl Drop for LeaseTable {
    fn drop(&mut self) {
        let by_cluster = std::mem::take(
            self.by_cluster
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (cluster, held) in by_cluster {
            for connection in held.h2 {
                self.idle.put(cluster, Connection::H2(connection));
            }
            for connection in held.h1 {
                self.idle.put(cluster, Connection::H1(connection));
            }
        }
    }
}

fn for_cluster(by_cluster: &mut Vec<(u64, ClusterLeases)>, cluster: u64) -> &mut ClusterLeases {
    let at = by_cluster
        .iter()
        .position(|(id, _)| *id == cluster)
        .unwrap_or_else(|| {
            by_cluster.push((cluster, ClusterLeases::default()));
            by_cluster.len() - 1
        });
    let (_, held) = by_cluster
        .get_mut(at)
        .expect("the position was just found or made");
    held
}

/// Holders that there is room for at least.
const MIN_SWEEP_TARGETS: usize = 16;

#[cfg(test)]
mod tests;
