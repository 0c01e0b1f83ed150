//! The upstream connections that one client connection holds, by cluster.
//!
//! When the client is gone, its reusable connections go to the idle pool and the others are closed.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;

use crate::{
    metrics::LeaseEnd,
    upstream::{
        context::{Connection, IdlePool},
        endpoint::Endpoint,
        h1::H1Connection,
        h2::{H2Connection, H2Stream, RetiredH2},
        lock,
        sockets::ClientSockets,
    },
};

/// The connections of one client connection.
#[derive(Debug)]
pub(in crate::upstream) struct LeaseTable {
    idle: Arc<IdlePool>,
    pub(super) sockets: Arc<ClientSockets>,
    /// HTTP/2 connections that it may hold.
    max_h2: usize,
    by_cluster: Mutex<Vec<(u64, ClusterLeases)>>,
    /// The idle pool sweeps this table too.
    is_registered: AtomicBool,
}

#[derive(Debug, Default)]
struct ClusterLeases {
    h2: Vec<H2Connection>,
    /// Connections that take no new stream. Some may have ended.
    retired: Vec<RetiredH2>,
    /// Connections on which no request runs.
    h1: Vec<H1Connection>,
    /// The apiserver chose HTTP/1.1 although h2 was offered, so each stream leases one connection.
    speaks_h1: bool,
}

/// A stream or a connection for one request.
#[derive(Debug)]
pub(super) enum Leased {
    H2(H2Stream),
    H1(LeasedH1),
}

/// What a client connection has for its next request.
#[derive(Debug)]
pub(super) enum Lookup {
    Found(Leased),
    /// The same, of an endpoint with too many leases: the lease moves to another endpoint, if that works.
    Surplus(Leased),
    /// Nothing. Each new connection will speak HTTP/1.1 and serve one request, so dials need not wait for
    /// each other.
    MustDialH1,
    /// Nothing. One dial will serve all requests that wait for it.
    MustDial,
    /// Nothing, and the client holds all connections that it may hold.
    Full,
}

impl LeaseTable {
    pub(super) fn new(
        idle: Arc<IdlePool>,
        sockets: Arc<ClientSockets>,
        max_h2: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            idle,
            sockets,
            max_h2,
            by_cluster: Mutex::new(Vec::new()),
            is_registered: AtomicBool::new(false),
        })
    }

    /// Finds a free stream or connection in this table, otherwise in the idle pool. With `newer_than`, only a
    /// connection established after that time counts, and no lease moves.
    pub(super) fn find(
        self: &Arc<Self>,
        cluster: u64,
        wants_h2: bool,
        newer_than: Option<Instant>,
    ) -> Lookup {
        let own = self.with(cluster, |leases| {
            leases.drop_retired_h2();
            leases.drop_unusable_h1(&self.idle);
            if wants_h2 && !leases.speaks_h1 {
                let stream = leases.take_stream(newer_than);
                stream.map(|stream| Lookup::Found(Leased::H2(stream)))
            } else {
                Some(self.find_h1(cluster, leases, newer_than))
            }
        });
        match own.unwrap_or_else(|| self.find_idle_h2(cluster, newer_than)) {
            Lookup::Found(leased) if newer_than.is_none() && self.shall_move(cluster, &leased) => {
                Lookup::Surplus(leased)
            }
            found @ (Lookup::Found(_)
            | Lookup::Surplus(_)
            | Lookup::MustDialH1
            | Lookup::MustDial
            | Lookup::Full) => found,
        }
    }

    /// Whether this lease should move to another endpoint. A lease moves again only after the streams on its old
    /// connection have ended, so that a client holds one more connection for it at most.
    fn shall_move(&self, cluster: u64, leased: &Leased) -> bool {
        leased.endpoint().is_some_and(Endpoint::has_surplus)
            && self.with(cluster, |leases| {
                !leases.retired.iter().any(RetiredH2::is_open)
            })
    }

    /// Gives up the connection of this stream, or this connection, because the lease has moved to another endpoint.
    /// Streams that run on it continue.
    pub(super) fn give_up(&self, cluster: u64, leased: Leased) {
        match leased {
            Leased::H2(stream) => self.with(cluster, |ClusterLeases { h2, retired, .. }| {
                for connection in h2.extract_if(.., |one| one.carries(&stream)) {
                    connection.leave();
                    retired.push(connection.retired());
                }
            }),
            Leased::H1(leased) => {
                if let Some(connection) = leased.into_connection() {
                    connection.stats().set_end_reason(LeaseEnd::Balance);
                }
            }
        }
    }

    /// Finds an HTTP/1.1 connection in `leases`, otherwise in the idle pool.
    fn find_h1(
        self: &Arc<Self>,
        cluster: u64,
        leases: &mut ClusterLeases,
        newer_than: Option<Instant>,
    ) -> Lookup {
        if newer_than.is_some() {
            return Lookup::MustDialH1;
        }
        let found =
            leases
                .h1
                .pop()
                .or_else(|| match self.idle.take(cluster, false, &self.sockets) {
                    Some(Connection::H1(connection)) => Some(connection),
                    Some(Connection::H2(_)) | None => None,
                });
        found.map_or(Lookup::MustDialH1, |connection| {
            Lookup::Found(self.lease_h1(cluster, connection))
        })
    }

    /// Finds an HTTP/2 stream in the idle pool.
    fn find_idle_h2(&self, cluster: u64, newer_than: Option<Instant>) -> Lookup {
        if !self.make_room_for_h2() {
            return Lookup::Full;
        }
        if newer_than.is_none()
            && let Some(Connection::H2(connection)) = self.idle.take(cluster, true, &self.sockets)
            && let Some(stream) = connection.take_stream()
        {
            self.with(cluster, |leases| leases.h2.push(connection));
            return Lookup::Found(Leased::H2(stream));
        }
        Lookup::MustDial
    }

    /// Whether the client may have one more HTTP/2 connection. At the limit it gives up connections that no stream
    /// uses, such as those to another cluster.
    pub(super) fn make_room_for_h2(&self) -> bool {
        let mut by_cluster = lock(&self.by_cluster);
        for (_, leases) in by_cluster.iter_mut() {
            leases.drop_retired_h2();
            leases.retired.retain(RetiredH2::is_open);
        }
        let has_room = |by_cluster: &[(u64, ClusterLeases)]| {
            let held = by_cluster
                .iter()
                .map(|(_, leases)| leases.h2.len() + leases.retired.len())
                .sum::<usize>();
            held < self.max_h2
        };
        if has_room(&by_cluster) {
            return true;
        }
        for (cluster, leases) in by_cluster.iter_mut() {
            for connection in leases.h2.extract_if(.., |one| one.is_unused()) {
                self.idle.put(*cluster, Connection::H2(connection));
            }
        }
        has_room(&by_cluster)
    }

    /// Adds a new connection to the lease, and takes a stream or the connection itself for one request.
    pub(super) fn add(
        self: &Arc<Self>,
        cluster: u64,
        connection: Connection,
        wanted_h2: bool,
    ) -> Option<Leased> {
        self.with(cluster, |leases| match connection {
            Connection::H2(connection) => {
                leases.speaks_h1 = false;
                let stream = connection.take_stream();
                reserve_first(&mut leases.h2);
                leases.h2.push(connection);
                stream.map(Leased::H2)
            }
            Connection::H1(connection) => {
                leases.speaks_h1 |= wanted_h2;
                Some(self.lease_h1(cluster, connection))
            }
        })
    }

    /// Like [`LeaseTable::add`], but no other request gets a stream of this connection.
    pub(super) fn add_own(
        self: &Arc<Self>,
        cluster: u64,
        connection: Connection,
    ) -> Option<Leased> {
        match connection {
            Connection::H2(connection) => {
                self.with(cluster, |leases| leases.retired.push(connection.retired()));
                connection.take_stream().map(Leased::H2)
            }
            h1 @ Connection::H1(_) => self.add(cluster, h1, true),
        }
    }

    fn lease_h1(self: &Arc<Self>, cluster: u64, connection: H1Connection) -> Leased {
        Leased::H1(LeasedH1 {
            connection: Some(connection),
            table: Some((Arc::clone(self), cluster)),
        })
    }

    /// Takes an HTTP/1.1 connection back after a complete response.
    pub(super) fn give_back(self: &Arc<Self>, cluster: u64, connection: H1Connection) {
        self.with(cluster, |leases| leases.h1.push(connection));
        if !self.is_registered.load(Ordering::Relaxed) {
            self.is_registered.store(true, Ordering::Relaxed);
            self.idle.register_for_sweep(self);
        }
    }

    /// Closes idle connections that are too old or were closed by the apiserver.
    pub(in crate::upstream) fn sweep(&self) {
        let mut by_cluster = lock(&self.by_cluster);
        for (_, leases) in by_cluster.iter_mut() {
            leases.drop_unusable_h1(&self.idle);
        }
    }

    fn with<T>(&self, cluster: u64, use_leases: impl FnOnce(&mut ClusterLeases) -> T) -> T {
        let mut by_cluster = lock(&self.by_cluster);
        let at = by_cluster
            .iter()
            .position(|(id, _)| *id == cluster)
            .unwrap_or_else(|| {
                reserve_first(&mut by_cluster);
                by_cluster.push((cluster, ClusterLeases::default()));
                by_cluster.len() - 1
            });
        let (_, leases) = by_cluster
            .get_mut(at)
            .expect("the position was just found or made");
        use_leases(leases)
    }
}

impl Leased {
    /// Whether it may move to another endpoint now. A `true` is for one lease.
    pub(super) fn takes_surplus(&self) -> bool {
        self.endpoint().is_some_and(Endpoint::take_surplus)
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::H2(stream) => Some(stream.endpoint()),
            Self::H1(leased) => leased.connection.as_ref().map(H1Connection::endpoint),
        }
    }
}

/// Makes room for one element if there is none. Most clients have one connection to one cluster, and a `Vec` begins
/// with room for four.
fn reserve_first<T>(list: &mut Vec<T>) {
    if list.is_empty() {
        list.reserve_exact(1);
    }
}

impl ClusterLeases {
    /// A free stream of a connection that was established after `newer_than`.
    fn take_stream(&self, newer_than: Option<Instant>) -> Option<H2Stream> {
        let is_new = |at: &H2Connection| newer_than.is_none_or(|than| at.established() > than);
        let mut connections = self.h2.iter().filter(|connection| is_new(connection));
        connections.find_map(H2Connection::take_stream)
    }

    /// Forgets connections that take no new stream. Their open streams keep them alive.
    fn drop_retired_h2(&mut self) {
        let retired = &mut self.retired;
        self.h2.retain(|connection| {
            let is_open = connection.is_open();
            if !is_open {
                retired.push(connection.retired());
            }
            is_open
        });
    }

    fn drop_unusable_h1(&mut self, idle: &IdlePool) {
        if self.h1.is_empty() {
            return;
        }
        let max_age = idle.max_age();
        self.h1.retain_mut(|connection| {
            let is_young = connection.idle_since().elapsed() < max_age;
            if !is_young {
                connection.stats().set_end_reason(LeaseEnd::Age);
            }
            !connection.is_closed() && is_young
        });
    }
}

impl Drop for LeaseTable {
    fn drop(&mut self) {
        let by_cluster = mem::take(
            self.by_cluster
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (cluster, leases) in by_cluster {
            for connection in leases.h2 {
                self.idle.put(cluster, Connection::H2(connection));
            }
            for connection in leases.h1 {
                self.idle.put(cluster, Connection::H1(connection));
            }
        }
    }
}

/// An HTTP/1.1 connection in use. When dropped, it goes back to its table if another request may follow on
/// it; otherwise it is closed.
#[derive(Debug)]
pub(in crate::upstream) struct LeasedH1 {
    /// `None` only after [`LeasedH1::into_connection`].
    connection: Option<H1Connection>,
    table: Option<(Arc<LeaseTable>, u64)>,
}

impl LeasedH1 {
    /// A connection for one upgrade: in no table, closed when dropped.
    pub(super) fn without_table(connection: H1Connection) -> Self {
        Self {
            connection: Some(connection),
            table: None,
        }
    }

    /// The connection, which no longer goes back.
    pub(in crate::upstream) fn into_connection(mut self) -> Option<H1Connection> {
        self.connection.take()
    }
}

impl AsMut<H1Connection> for LeasedH1 {
    fn as_mut(&mut self) -> &mut H1Connection {
        self.connection
            .as_mut()
            .expect("only `into_connection` and `drop` take the connection")
    }
}

impl Drop for LeasedH1 {
    fn drop(&mut self) {
        if let Some((table, cluster)) = self.table.take()
            && let Some(connection) = self.connection.take_if(|it| it.keep_alive())
        {
            table.give_back(cluster, connection);
        }
    }
}
