//! What the connections of one worker share: settings, counters, and the pool of idle upstream connections.
//!
//! The pool is keyed by cluster. The number of a cluster changes with its trust anchors, so a connection of
//! an older trust generation is never found again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    h1::H1Connection,
    h2::H2Connection,
    handshake_turns::HandshakeTurns,
    lease::LeaseTable,
    lock,
    request_body::ReplayBudget,
    sockets::{ClientSockets, SocketPermit, SpareSockets},
};
use crate::{
    config::LiveSettings,
    drain::Drain,
    hosts::UpstreamAddr,
    metrics::{ConnectionStats, Counters, LeaseEnd},
};

/// Settings, idle pool and counters of one worker.
#[derive(Debug)]
pub struct UpstreamContext {
    pub(super) idle: Arc<IdlePool>,
    pub(super) settings: LiveSettings,
    pub(super) drain: Drain,
    pub(super) counters: Arc<Counters>,
    pub(super) replay_budget: Arc<ReplayBudget>,
    pub(super) spare_sockets: Arc<SpareSockets>,
    /// TLS handshakes with apiservers. Clients that are connected wait for them, so new clients have a queue of their
    /// own.
    pub(super) dial_turns: HandshakeTurns,
    /// TLS handshakes with clients.
    client_turns: HandshakeTurns,
}

impl UpstreamContext {
    /// A context without connections. Sweeping starts with the first call of [`UpstreamContext::sweep`].
    #[must_use]
    pub fn new(settings: LiveSettings, drain: Drain) -> Self {
        Self {
            idle: Arc::new(IdlePool::new(Arc::clone(&settings), drain.clone())),
            dial_turns: HandshakeTurns::new(drain.clone()),
            client_turns: HandshakeTurns::new(drain.clone()),
            settings,
            drain,
            counters: Arc::default(),
            replay_budget: Arc::new(ReplayBudget::of_process(Arc::default())),
            spare_sockets: Arc::new(SpareSockets::new(usize::MAX)),
        }
    }

    /// The same, with these counters.
    #[must_use]
    pub fn counting(self, counters: Arc<Counters>) -> Self {
        Self { counters, ..self }
    }

    /// The same, with budgets that it shares with the other workers of the process.
    #[must_use]
    pub fn sharing(
        self,
        replay_budget: Arc<ReplayBudget>,
        spare_sockets: Arc<SpareSockets>,
    ) -> Self {
        spare_sockets.register(&self.idle);
        Self {
            replay_budget,
            spare_sockets,
            ..self
        }
    }

    /// The counters of this worker.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The queue of the TLS handshakes with clients.
    pub(crate) fn client_turns(&self) -> &HandshakeTurns {
        &self.client_turns
    }

    /// How often names are resolved.
    #[must_use]
    pub fn resolve_interval(&self) -> Duration {
        self.settings.load().timeouts.resolve
    }

    /// How often each endpoint is probed.
    #[must_use]
    pub fn probe_interval(&self) -> Duration {
        self.settings.load().timeouts.probe_interval
    }

    /// Closes idle upstream connections that are too old. Never returns.
    pub async fn sweep(&self) {
        loop {
            let interval = self.idle.max_age() / 4;
            tokio::time::sleep(interval.max(Duration::from_millis(1))).await;
            self.idle.sweep();
        }
    }

    /// Closes all idle upstream connections. Those that become idle later are closed too once the drain
    /// has begun.
    pub fn close_idle(&self) {
        self.idle.clear();
    }
}

/// An upstream connection on which no request runs.
#[derive(Debug)]
pub(super) enum Connection {
    H2(H2Connection),
    H1(H1Connection),
}

impl Connection {
    /// The address of its endpoint.
    pub(super) fn address(&self) -> UpstreamAddr {
        match self {
            Self::H2(connection) => connection.address(),
            Self::H1(connection) => connection.address(),
        }
    }

    pub(super) fn stats(&self) -> &ConnectionStats {
        match self {
            Self::H2(connection) => connection.stats(),
            Self::H1(connection) => connection.stats(),
        }
    }

    /// Its socket. `None` in tests, where a connection has none.
    fn socket_permit(&self) -> Option<&SocketPermit> {
        match self {
            Self::H2(connection) => connection.socket_permit(),
            Self::H1(connection) => connection.socket_permit(),
        }
    }

    /// When it became idle. For HTTP/2 that is when its client disconnected, which is now.
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

/// The reusable connections of one worker that no client leases.
#[derive(Debug)]
pub(super) struct IdlePool {
    settings: LiveSettings,
    drain: Drain,
    connections: Mutex<HashMap<u64, Vec<IdleConnection>>>,
    /// Tables that have held idle connections of their own. Some of them may be dropped already.
    sweep_targets: Mutex<Vec<Weak<LeaseTable>>>,
}

#[derive(Debug)]
struct IdleConnection {
    since: Instant,
    connection: Connection,
}

impl IdlePool {
    pub(super) fn new(settings: LiveSettings, drain: Drain) -> Self {
        Self {
            settings,
            drain,
            connections: Mutex::new(HashMap::new()),
            sweep_targets: Mutex::new(Vec::new()),
        }
    }

    /// How long a connection may stay idle. The apiserver closes connections that are idle for 90 s, and no request
    /// must be sent on a connection that is just being closed.
    pub(super) fn max_age(&self) -> Duration {
        self.settings.load().timeouts.upstream_idle
    }

    /// Takes the connection that became idle last, so that the others can grow old and close.
    pub(super) fn take(
        &self,
        cluster: u64,
        wants_h2: bool,
        client: &Arc<ClientSockets>,
    ) -> Option<Connection> {
        let max_age = self.max_age();
        let mut connections = lock(&self.connections);
        let idle = connections.get_mut(&cluster)?;
        while let Some(at) = idle
            .iter()
            .rposition(|idle| matches!(idle.connection, Connection::H2(_)) == wants_h2)
        {
            let mut found = idle.remove(at);
            if found.is_usable(max_age) {
                found.connection.stats().on_reuse();
                if let Some(permit) = found.connection.socket_permit() {
                    permit.move_to(client);
                }
                return Some(found.connection);
            }
        }
        None
    }

    /// Keeps a connection if it is reusable and a spare socket is free for it. The oldest one makes room for it.
    pub(super) fn put(&self, cluster: u64, mut connection: Connection) {
        let capacity = self.settings.load().limits.idle_upstream_connections;
        if capacity == 0 || self.drain.has_begun() || !connection.is_reusable() {
            return;
        }
        let has_socket = connection
            .socket_permit()
            .is_none_or(SocketPermit::move_to_idle_pool);
        if !has_socket {
            connection.stats().set_end_reason(LeaseEnd::Full);
            return;
        }
        let mut connections = lock(&self.connections);
        let idle = connections.entry(cluster).or_default();
        // More than one, if a reload has lowered the limit.
        while idle.len() >= capacity {
            let oldest = idle.remove(0).connection;
            oldest.stats().set_end_reason(LeaseEnd::Full);
        }
        idle.push(IdleConnection {
            since: connection.idle_since(),
            connection,
        });
    }

    /// Closes the connection that has been idle for longest. `false` if there is none.
    pub(super) fn close_oldest(&self) -> bool {
        let mut connections = lock(&self.connections);
        let oldest = connections
            .values_mut()
            .filter(|idle| !idle.is_empty())
            .min_by_key(|idle| idle.first().map(|oldest| oldest.since));
        let Some(idle) = oldest else { return false };
        let closed = idle.remove(0).connection;
        closed.stats().set_end_reason(LeaseEnd::Full);
        // The task of an HTTP/2 connection closes the socket a moment later. The reserve of open files covers that.
        if let Some(permit) = closed.socket_permit() {
            permit.give_up();
        }
        true
    }

    /// Closes connections that are too old or were closed by the apiserver. Called at intervals, because nothing else
    /// closes a connection that no client uses again.
    fn sweep(&self) {
        let max_age = self.max_age();
        let mut connections = lock(&self.connections);
        for idle in connections.values_mut() {
            idle.retain_mut(|idle| idle.is_usable(max_age));
        }
        connections.retain(|_, idle| !idle.is_empty());
        drop(connections);
        let tables: Vec<_> = lock(&self.sweep_targets)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for table in tables {
            table.sweep();
        }
    }

    /// Sweeps the idle connections of this client too: it may watch for days and send no other request.
    pub(super) fn register_for_sweep(&self, table: &Arc<LeaseTable>) {
        let mut targets = lock(&self.sweep_targets);
        if targets.len() == targets.capacity() {
            targets.retain(|table| table.strong_count() > 0);
            // Doubles the room, so that this clean-up is rare.
            let left = targets.len();
            targets.reserve(left.max(MIN_SWEEP_TARGETS));
        }
        targets.push(Arc::downgrade(table));
    }

    /// Closes all connections of the pool.
    pub(super) fn clear(&self) {
        lock(&self.connections).clear();
    }
}

impl IdleConnection {
    fn is_usable(&mut self, max_age: Duration) -> bool {
        if self.since.elapsed() >= max_age {
            self.connection.stats().set_end_reason(LeaseEnd::Age);
            return false;
        }
        self.connection.is_reusable()
    }
}

/// The smallest capacity of the list of sweep targets.
const MIN_SWEEP_TARGETS: usize = 16;
