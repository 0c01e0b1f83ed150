//! The places of all clients, and who gives one up when they are scarce.
//!
//! One client may take all places while it is alone. Once three quarters are taken and another client is there, the
//! client with the most connections loses two for each new connection of any client: those first that have been
//! idle for the longest time. A connection in its TLS handshake, or silent before it, is idle too. Without a free
//! place a new connection waits. For a client that has fewer connections, the largest client then also loses a
//! connection with a running request. No other client ever loses one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::{
    Client, ClientPrefix,
    place::{Place, PlaceState, Rank},
};
use crate::{config::Limits, hosts::PeerAddr};

/// The places of all connections, for all workers.
#[derive(Debug)]
pub struct ClientTable {
    permits: Arc<Semaphore>,
    max: usize,
    max_per_client: usize,
    max_waiting: usize,
    handshakes_per_client: usize,
    occupancy: Mutex<Occupancy>,
}

/// Why a connection gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connections` are open, and as many more wait as may wait.
    Connections,
    /// The client has `limits.connectionsPerClient` open.
    ClientConnections,
}

/// Who has which places.
#[derive(Debug, Default)]
struct Occupancy {
    clients: HashMap<ClientPrefix, ClientPlaces>,
    /// The clients by their number of connections; the largest is the last.
    by_size: BTreeSet<(usize, ClientPrefix)>,
    total: usize,
    /// Those that wait for a place.
    waiting: usize,
    /// Those that were asked to end and have not ended.
    closing: usize,
    next_id: u64,
}

/// The connections of one client, those that wait included.
#[derive(Debug)]
struct ClientPlaces {
    client: Arc<Client>,
    /// By age: the newest is the last.
    places: BTreeMap<u64, Arc<PlaceState>>,
    waiting: usize,
    /// The connections to close next, the first one at the end. A scan of all connections finds many at once.
    candidates: Vec<(Rank, Arc<PlaceState>)>,
    next_scan: Option<Instant>,
}

impl ClientTable {
    /// A table without connections.
    #[must_use]
    pub fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(limits.connections)),
            max: limits.connections,
            max_per_client: usize::MAX,
            max_waiting: (limits.connections / 8).clamp(MIN_WAITING, MAX_WAITING),
            handshakes_per_client: limits.handshakes.div_ceil(2),
            occupancy: Mutex::default(),
        })
    }

    /// The place of a connection that was just accepted. If all places are taken it has to wait
    /// ([`Place::admitted`]), and only a few connections may. `may_wait` lifts that bound: the drain loses no
    /// connection that the kernel had established.
    ///
    /// # Errors
    ///
    /// When the connection gets no place and may not wait.
    pub fn enter(self: &Arc<Self>, peer: PeerAddr, may_wait: bool) -> Result<Place, Refusal> {
        let prefix = ClientPrefix::new(peer.0.ip());
        let mut occupancy = self.lock();
        let size = occupancy.size(prefix);
        if size >= self.max_per_client {
            return Err(Refusal::ClientConnections);
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        let waiting = occupancy.waiting + usize::from(permit.is_none());
        occupancy.make_room(self.max, (size + 1, prefix), waiting, CLOSED_PER_CONNECTION);
        if permit.is_none() {
            let waiting = occupancy.clients.get(&prefix);
            let waiting = waiting.map_or(0, |places| places.waiting);
            // A quarter for one client, so that it cannot keep others from waiting.
            let is_full = occupancy.waiting >= self.max_waiting || waiting >= self.max_waiting / 4;
            if is_full && !may_wait {
                return Err(Refusal::Connections);
            }
        }
        Ok(Place::new(
            occupancy.add(self, prefix, permit.is_some()),
            permit,
        ))
    }

    /// The clients with the most connections, and how many they have.
    #[must_use]
    pub fn largest(&self, count: usize) -> Vec<(ClientPrefix, usize)> {
        let occupancy = self.lock();
        let sizes = occupancy.by_size.iter().rev().take(count);
        sizes.map(|(size, prefix)| (*prefix, *size)).collect()
    }

    /// Waits for a permit for one more connection of this client.
    pub(super) async fn wait(&self, prefix: ClientPrefix) -> OwnedSemaphorePermit {
        loop {
            if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
                return permit;
            }
            // A connection of the largest client does not queue, so that it takes no permit before another client.
            if self.is_largest_after_making_room(prefix) {
                sleep(RETRY_INTERVAL).await;
                continue;
            }
            let permit = Arc::clone(&self.permits).acquire_owned();
            if let Ok(Ok(permit)) = timeout(RETRY_INTERVAL, permit).await {
                return permit;
            }
        }
    }

    fn is_largest_after_making_room(&self, prefix: ClientPrefix) -> bool {
        let mut occupancy = self.lock();
        let (size, waiting) = (occupancy.size(prefix), occupancy.waiting);
        occupancy.make_room(self.max, (size, prefix), waiting, 0)
    }

    /// Notes that a connection of this client waits no longer.
    pub(super) fn waited(&self, prefix: ClientPrefix) {
        self.lock().waited(prefix);
    }

    /// Removes a connection.
    pub(super) fn leave(&self, prefix: ClientPrefix, id: u64, is_waiting: bool) {
        let mut occupancy = self.lock();
        if is_waiting {
            occupancy.waited(prefix);
        }
        occupancy.remove(prefix, id);
    }

    fn lock(&self) -> MutexGuard<'_, Occupancy> {
        self.occupancy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Occupancy {
    fn size(&self, prefix: ClientPrefix) -> usize {
        self.clients
            .get(&prefix)
            .map_or(0, |client| client.places.len())
    }

    fn add(
        &mut self,
        table: &Arc<ClientTable>,
        prefix: ClientPrefix,
        is_admitted: bool,
    ) -> Arc<PlaceState> {
        let id = self.next_id;
        self.next_id += 1;
        self.total += 1;
        let client = self
            .clients
            .entry(prefix)
            .or_insert_with(|| ClientPlaces::new(prefix, table.handshakes_per_client));
        let state = PlaceState::new(table, &client.client, id, is_admitted);
        self.by_size.remove(&(client.places.len(), prefix));
        client.places.insert(id, Arc::clone(&state));
        self.by_size.insert((client.places.len(), prefix));
        if !is_admitted {
            client.waiting += 1;
            self.waiting += 1;
        }
        state
    }

    fn remove(&mut self, prefix: ClientPrefix, id: u64) {
        let Some(client) = self.clients.get_mut(&prefix) else {
            return;
        };
        self.by_size.remove(&(client.places.len(), prefix));
        let state = client.places.remove(&id);
        self.closing -= usize::from(state.is_some_and(|state| state.end()));
        self.total -= 1;
        if client.places.is_empty() {
            self.clients.remove(&prefix);
        } else {
            self.by_size.insert((client.places.len(), prefix));
        }
    }

    fn waited(&mut self, prefix: ClientPrefix) {
        self.waiting -= 1;
        if let Some(client) = self.clients.get_mut(&prefix) {
            client.waiting -= 1;
        }
    }

    /// Asks connections of the largest client to end if places are scarce: up to `idle` idle ones, and one more if fewer are
    /// ending than are `waiting`. `newcomer` is the client of a new connection, with its number of connections.
    /// Returns whether that client is the largest.
    fn make_room(
        &mut self,
        max: usize,
        newcomer: (usize, ClientPrefix),
        waiting: usize,
        idle: usize,
    ) -> bool {
        let largest = self.by_size.last().copied().unwrap_or(newcomer);
        let is_largest = newcomer.0 >= largest.0;
        let (size, prefix) = if is_largest { newcomer } else { largest };
        let is_alone = self.clients.len() == usize::from(self.clients.contains_key(&newcomer.1));
        let is_scarce = self.total - self.closing >= max - max / 4 && !is_alone;
        let Some(client) = self.clients.get_mut(&prefix).filter(|_| size > 1) else {
            return false;
        };
        // Its own connections do not make it lose one that is busy.
        let of_others = waiting - if is_largest { 0 } else { client.waiting };
        let needs_place = of_others > self.closing;
        let now = Instant::now();
        let is_idle = |rank| match rank {
            Rank::Idle(since) => !is_largest || now.duration_since(since) >= MIN_IDLE,
            Rank::FirstRequest(_) | Rank::LaterRequest(_) | Rank::Tunnel(_) => false,
        };
        if needs_place && client.close_one(now, |rank| is_idle(rank) || !is_largest) {
            self.closing += 1;
        }
        if is_scarce {
            let closed = (0..idle).take_while(|_| client.close_one(now, is_idle));
            self.closing += closed.count();
        }
        is_largest
    }
}

impl ClientPlaces {
    fn new(prefix: ClientPrefix, handshakes: usize) -> Self {
        Self {
            client: Arc::new(Client {
                prefix,
                handshakes: Semaphore::new(handshakes),
            }),
            places: BTreeMap::new(),
            waiting: 0,
            candidates: Vec::new(),
            next_scan: None,
        }
    }

    /// Asks the connection with the least rank to end, if that rank is allowed. Returns whether there is one.
    fn close_one(&mut self, now: Instant, is_allowed: impl Fn(Rank) -> bool) -> bool {
        loop {
            match self.candidates.pop() {
                Some((rank, state)) if state.rank() != Some(rank) => {}
                Some((rank, state)) if is_allowed(rank) => {
                    state.close();
                    return true;
                }
                // A connection may have become idle since the last scan.
                Some(_) | None => {
                    if self.next_scan.is_some_and(|next| now < next) {
                        return false;
                    }
                    self.scan(now);
                    let least = self.candidates.last();
                    if !least.is_some_and(|(rank, _)| is_allowed(*rank)) {
                        return false;
                    }
                }
            }
        }
    }

    /// Finds the connections to close next.
    fn scan(&mut self, now: Instant) {
        let scanned = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
        self.next_scan = Some(now + SCAN_PAUSE * scanned);
        let ranked = |state: &Arc<PlaceState>| Some((state.rank()?, Arc::clone(state)));
        let mut found: Vec<_> = self.places.values().filter_map(ranked).collect();
        if found.len() > MAX_CANDIDATES {
            found.select_nth_unstable_by_key(MAX_CANDIDATES, |(rank, _)| *rank);
            found.truncate(MAX_CANDIDATES);
        }
        found.sort_unstable_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        found.shrink_to_fit();
        self.candidates = found;
    }
}

/// Connections that may wait for a place: an eighth of the places, within these bounds. They need descriptors.
const MIN_WAITING: usize = 16;
const MAX_WAITING: usize = 64;
/// How often a connection that waits makes room again: what was busy may be idle now.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a connection is idle before it makes room for one of its own client. Otherwise the connections of a burst
/// would close each other during their handshakes.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// Two, so that places become free again although each new connection takes one.
const CLOSED_PER_CONNECTION: usize = 2;
/// Connections that one scan finds. A client that connects 5,000 times a second is scanned 40 times.
const MAX_CANDIDATES: usize = 256;
/// The pause after a scan, per connection that was scanned: a scan of 10,000 takes less than 1 ms.
const SCAN_PAUSE: Duration = Duration::from_micros(2);
