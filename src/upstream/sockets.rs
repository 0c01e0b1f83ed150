//! The sockets that connections to apiservers may use, so that they never take the sockets of clients.
//!
//! Each client connection may always have one upstream socket: `config::capacity` leaves a socket for it. Its further
//! sockets, and the sockets of idle pools, come from the spare sockets of the process. So a client without an upstream
//! connection always gets one, whatever other clients hold. If a client wants more and no spare socket is free, only
//! its own request fails.

use std::{
    mem,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
};

use super::{UpstreamError, context::IdlePool, lock};

/// The spare sockets of one process.
#[derive(Debug)]
pub struct SpareSockets {
    /// Less than 0 after [`SpareSockets::resize`], until enough sockets have closed.
    free: AtomicIsize,
    count: AtomicUsize,
    /// The pools whose idle connections are closed first when no socket is free.
    idle: Mutex<Vec<Weak<IdlePool>>>,
}

/// The upstream sockets of one client connection. All but one are spare sockets.
#[derive(Debug)]
pub(super) struct ClientSockets {
    spare: Arc<SpareSockets>,
    open: AtomicUsize,
}

/// One upstream socket, which counts for its holder until [`SocketPermit::give_up`].
#[derive(Debug)]
pub(super) struct SocketPermit {
    spare: Arc<SpareSockets>,
    holder: Mutex<Holder>,
}

/// Gives up the permit when dropped, which is when the socket closes.
#[derive(Debug)]
pub(super) struct OpenSocket(pub(super) Arc<SocketPermit>);

#[derive(Debug)]
enum Holder {
    Client(Arc<ClientSockets>),
    IdlePool,
    Closed,
}

impl SpareSockets {
    /// This many spare sockets.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self {
            free: AtomicIsize::new(isize::try_from(count).unwrap_or(isize::MAX)),
            count: AtomicUsize::new(count),
            idle: Mutex::default(),
        }
    }

    /// Changes how many there are. No open socket closes for it.
    pub fn resize(&self, count: usize) {
        let before = self.count.swap(count, Ordering::Relaxed);
        let more = isize::try_from(count).unwrap_or(isize::MAX)
            - isize::try_from(before).unwrap_or(isize::MAX);
        self.free.fetch_add(more, Ordering::Relaxed);
    }

    /// Lets the process close idle connections of this pool when no spare socket is free.
    pub(super) fn register(&self, pool: &Arc<IdlePool>) {
        lock(&self.idle).push(Arc::downgrade(pool));
    }

    /// Closes the idle connections of all pools.
    pub fn close_idle(&self) {
        let pools = lock(&self.idle);
        pools
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|pool| pool.clear());
    }

    /// Whether a spare socket was free and is now taken.
    fn take(&self) -> bool {
        let take = |free: isize| (free > 0).then(|| free - 1);
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// As [`SpareSockets::take`]. If no spare socket is free, closes the oldest connection of an idle pool first.
    fn take_or_reclaim(&self) -> bool {
        loop {
            if self.take() {
                return true;
            }
            let pools = lock(&self.idle);
            let mut pools = pools.iter().filter_map(Weak::upgrade);
            if !pools.any(|pool| pool.close_oldest()) {
                return false;
            }
        }
    }

    fn give_back(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
    }
}

impl ClientSockets {
    pub(super) fn new(spare: Arc<SpareSockets>) -> Arc<Self> {
        Arc::new(Self {
            spare,
            open: AtomicUsize::new(0),
        })
    }

    /// A permit for one more socket.
    ///
    /// # Errors
    ///
    /// When the client already has a socket and no spare socket is free.
    pub(super) fn take(self: &Arc<Self>) -> Result<Arc<SocketPermit>, UpstreamError> {
        let has_one = self.open.load(Ordering::Relaxed) > 0;
        if has_one && !self.spare.take_or_reclaim() {
            return Err(UpstreamError::NoSocket);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(SocketPermit {
            spare: Arc::clone(&self.spare),
            holder: Mutex::new(Holder::Client(Arc::clone(self))),
        }))
    }

    /// Removes one permit from this client. Returns whether that permit used a spare socket. The last permit of a
    /// client does not: each client connection has one socket of its own.
    fn leave(&self) -> bool {
        self.open.fetch_sub(1, Ordering::Relaxed) > 1
    }
}

impl SocketPermit {
    /// Moves the permit from its client to an idle pool. `false` if no spare socket is free for it; the connection must
    /// then be closed.
    pub(super) fn move_to_idle_pool(&self) -> bool {
        let mut holder = lock(&self.holder);
        let has_spare = match &*holder {
            Holder::Client(client) => client.leave() || self.spare.take(),
            Holder::IdlePool => true,
            Holder::Closed => false,
        };
        *holder = if has_spare {
            Holder::IdlePool
        } else {
            Holder::Closed
        };
        has_spare
    }

    /// Moves the permit from an idle pool to a client.
    pub(super) fn move_to(&self, client: &Arc<ClientSockets>) {
        let mut holder = lock(&self.holder);
        if matches!(*holder, Holder::IdlePool) {
            if client.open.fetch_add(1, Ordering::Relaxed) == 0 {
                self.spare.give_back();
            }
            *holder = Holder::Client(Arc::clone(client));
        }
    }

    /// The socket is closed, or is about to be.
    pub(super) fn give_up(&self) {
        let holder = mem::replace(&mut *lock(&self.holder), Holder::Closed);
        let had_spare = match holder {
            Holder::Client(client) => client.leave(),
            Holder::IdlePool => true,
            Holder::Closed => false,
        };
        if had_spare {
            self.spare.give_back();
        }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(spare: &SpareSockets) -> isize {
        spare.free.load(Ordering::Relaxed)
    }

    #[test]
    fn client_gets_one_socket_when_no_spare_one_is_free() {
        let spare = Arc::new(SpareSockets::new(2));
        let greedy = ClientSockets::new(Arc::clone(&spare));
        let permits: Vec<_> = (0..3).map(|_| greedy.take().unwrap()).collect();
        let refused = greedy.take();
        assert!(
            matches!(refused, Err(UpstreamError::NoSocket)),
            "{refused:?}"
        );
        let other = ClientSockets::new(Arc::clone(&spare));
        let only = other.take().unwrap();
        assert!(other.take().is_err());
        // Whichever permit it gives up, one spare socket becomes free.
        permits[0].give_up();
        permits[0].give_up();
        let second = other.take().unwrap();
        for permit in permits.iter().chain([&only, &second]) {
            permit.give_up();
        }
        assert_eq!(free(&spare), 2);
    }

    #[test]
    fn fewer_spare_sockets_close_none_that_is_open() {
        let spare = Arc::new(SpareSockets::new(2));
        let client = ClientSockets::new(Arc::clone(&spare));
        let permits: Vec<_> = (0..3).map(|_| client.take().unwrap()).collect();
        spare.resize(1);
        assert_eq!(free(&spare), -1);
        permits[0].give_up();
        assert!(client.take().is_err(), "one more has to close");
        permits[1].give_up();
        let more = client.take().unwrap();
        spare.resize(3);
        assert_eq!(free(&spare), 2);
        more.give_up();
        permits[2].give_up();
        assert_eq!(free(&spare), 3);
    }

    #[test]
    fn idle_connection_uses_a_spare_socket() {
        let spare = Arc::new(SpareSockets::new(1));
        let client = ClientSockets::new(Arc::clone(&spare));
        let (first, second) = (client.take().unwrap(), client.take().unwrap());
        assert_eq!(free(&spare), 0);
        assert!(first.move_to_idle_pool(), "its spare socket moves with it");
        assert!(!second.move_to_idle_pool(), "no spare socket is left");
        let next = ClientSockets::new(Arc::clone(&spare));
        first.move_to(&next);
        assert_eq!(free(&spare), 1, "it is the first one of the next client");
        first.give_up();
        second.give_up();
        assert_eq!(free(&spare), 1);
        assert_eq!(next.open.load(Ordering::Relaxed), 0);
    }
}
