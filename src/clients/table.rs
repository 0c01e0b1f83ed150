//! The places of all clients, and which connection closes when places are scarce.
//!
//! One client may take all places while no other client is connected. Once three quarters of the places are taken and
//! another client is connected, the client with the most connections loses two of them for each new connection of any
//! client. The connections that have been idle for the longest time close first. A connection in its TLS handshake, or
//! silent before it, is idle too, but only after a second while places are free. If no place is free, a new connection
//! waits. If its client has fewer connections than the largest client, the largest client then also loses a connection
//! with a running request, unless the apiserver has accepted a credential on it: no stranger ends the watch of a user.
//! No other client ever loses a connection.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::{
    Client, ClientPrefix,
    budget::BudgetSizes,
    place::{Place, PlaceState, Rank},
    resize,
};
use crate::{config::Limits, hosts::PeerAddr};

/// The places of all connections, for all workers.
#[derive(Debug)]
pub struct ClientTable {
    permits: Arc<Semaphore>,
    sizes: ArcSwap<TableSizes>,
    pub(super) budgets: ArcSwap<BudgetSizes>,
    /// Takes the part of the client for connections whose client is not known yet.
    unnamed: Arc<Client>,
    occupancy: Mutex<Occupancy>,
}

/// How many connections and handshakes there may be.
#[derive(Debug)]
struct TableSizes {
    max: usize,
    max_per_client: usize,
    max_waiting: usize,
    handshakes_per_client: usize,
    max_unnamed: usize,
}

impl TableSizes {
    fn new(limits: &Limits) -> Self {
        Self {
            max: limits.connections,
            max_per_client: limits.connections_per_client.unwrap_or(usize::MAX),
            max_waiting: (limits.connections / 8).clamp(MIN_WAITING, MAX_WAITING),
            // Rounded up: with one slot in all, each client may use it.
            handshakes_per_client: limits.handshakes.div_ceil(2),
            max_unnamed: (limits.connections / 4).clamp(MIN_WAITING, MAX_UNNAMED),
        }
    }
}

/// Why a connection gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connections` connections are open, and no more connections may wait.
    Connections,
    /// The client has `limits.connectionsPerClient` open.
    ClientConnections,
}

/// Which client has which places.
#[derive(Debug, Default)]
struct Occupancy {
    clients: HashMap<ClientPrefix, ClientPlaces>,
    /// The clients that have connections, by their number; the largest is the last.
    by_size: BTreeSet<(usize, ClientPrefix)>,
    /// The clients without connections whose budgets are in use. The client that left first comes first.
    absent: BTreeMap<u64, ClientPrefix>,
    total: usize,
    /// Connections that wait for a place.
    waiting: BTreeMap<u64, (ClientPrefix, Arc<PlaceState>)>,
    /// Connections of load balancers whose client is not known yet. The oldest is the first.
    unnamed: BTreeMap<u64, Arc<PlaceState>>,
    /// Connections that were asked to close and are still open.
    closing: usize,
    /// The requests of clients that have left.
    left: HashMap<ClientPrefix, u64>,
    next_id: u64,
}

/// The connections of one client, including connections that wait for a place.
#[derive(Debug)]
struct ClientPlaces {
    client: Arc<Client>,
    /// By age: the newest is the last.
    places: BTreeMap<u64, Arc<PlaceState>>,
    /// Requests on connections that have ended.
    requests: u64,
    waiting: usize,
    /// The connections to close next, the first one at the end. A scan of all connections finds many at once.
    candidates: Vec<(Rank, Arc<PlaceState>)>,
    next_scan: Option<Instant>,
    /// Its key in `absent`.
    absent: Option<u64>,
}

impl ClientTable {
    /// A table without connections.
    #[must_use]
    pub fn new(limits: &Limits) -> Arc<Self> {
        let budgets = BudgetSizes::new(limits);
        let nowhere = ClientPrefix::new(Ipv6Addr::UNSPECIFIED.into());
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(limits.connections)),
            sizes: ArcSwap::from_pointee(TableSizes::new(limits)),
            unnamed: Client::new(nowhere, 0, &budgets),
            budgets: ArcSwap::from_pointee(budgets),
            occupancy: Mutex::default(),
        })
    }

    /// Uses these limits from now on. Connections stay, also if there are too many: the result waits until enough of
    /// them have ended, and until then no new one gets a place. A client that has connections keeps its share of the
    /// handshakes.
    pub fn configure(&self, limits: &Limits) -> impl Future<Output = ()> + Send + 'static {
        let before = self.sizes.swap(Arc::new(TableSizes::new(limits))).max;
        let budgets = self.budgets.load().resized(limits);
        let counts_requests = limits.requests_per_client.is_some();
        self.budgets.store(Arc::new(budgets));
        if counts_requests {
            // A client that connects now has the new budgets already.
            for places in self.lock().clients.values() {
                places.client.budget.check_from_now_on();
            }
        }
        resize(&self.permits, before, limits.connections)
    }

    /// The place of a connection that was just accepted. If no permit is free, the connection has to wait for one
    /// ([`Place::wait_for_permit`]). Only a few connections may wait, and only a quarter of them from one client.
    /// `lifts_client_share` lifts that share: during the drain, one client may take all the room to wait.
    ///
    /// # Errors
    ///
    /// When too many connections wait already, or the client has too many connections.
    pub fn enter(
        self: &Arc<Self>,
        peer: PeerAddr,
        lifts_client_share: bool,
    ) -> Result<Place, Refusal> {
        self.enter_with(&mut self.lock(), peer, None, lifts_client_share)
    }

    /// The place of a connection whose client is not known until its PROXY header has arrived. It counts for no client.
    /// Of too many the oldest closes: a header comes with the first packet, so that one is probably silent.
    pub fn enter_unnamed(self: &Arc<Self>) -> Place {
        let mut occupancy = self.lock();
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        let max = self.sizes.load().max_unnamed;
        let max = match permit {
            Some(_) => max,
            // It uses the reserve of open files.
            None => max.min(MAX_WAITING),
        };
        while occupancy.unnamed.len() >= max
            && let Some((_, oldest)) = occupancy.unnamed.pop_first()
        {
            oldest.close();
        }
        let id = occupancy.take_id();
        let state = PlaceState::new(self, &self.unnamed, id, permit.is_some());
        occupancy.unnamed.insert(id, Arc::clone(&state));
        Place::new(state, permit)
    }

    /// The place of an unnamed connection as one of this client, by the rules of [`ClientTable::enter`].
    pub(super) fn name(
        self: &Arc<Self>,
        unnamed: &PlaceState,
        permit: Option<OwnedSemaphorePermit>,
        client: PeerAddr,
    ) -> Result<Place, Refusal> {
        let mut occupancy = self.lock();
        if occupancy.unnamed.remove(&unnamed.id).is_none() {
            return Err(Refusal::Connections);
        }
        self.enter_with(&mut occupancy, client, permit, false)
    }

    fn enter_with(
        self: &Arc<Self>,
        occupancy: &mut Occupancy,
        peer: PeerAddr,
        permit: Option<OwnedSemaphorePermit>,
        lifts_client_share: bool,
    ) -> Result<Place, Refusal> {
        let sizes = self.sizes.load();
        let prefix = ClientPrefix::new(peer.0.ip());
        let size = occupancy.size(prefix);
        if size >= sizes.max_per_client {
            return Err(Refusal::ClientConnections);
        }
        let permit = permit.or_else(|| Arc::clone(&self.permits).try_acquire_owned().ok());
        let waits = permit.is_none();
        let has_room = lifts_client_share && occupancy.waiting.len() < sizes.max_waiting;
        if waits && !has_room && !occupancy.may_wait(prefix, sizes.max_waiting) {
            return Err(Refusal::Connections);
        }
        let waiting = occupancy.waiting.len() + usize::from(waits);
        occupancy.make_room(
            sizes.max,
            (size + 1, prefix),
            waiting,
            CLOSED_PER_CONNECTION,
        );
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

    /// The requests of each client that have ended. After many clients have left, their numbers start at 0 again.
    #[must_use]
    pub fn requests(&self) -> HashMap<ClientPrefix, u64> {
        let occupancy = self.lock();
        let mut requests = occupancy.left.clone();
        for (prefix, client) in &occupancy.clients {
            let open = client.places.values().map(|place| place.finished());
            let ended = client.requests + client.client.forwarded.load(Ordering::Relaxed);
            *requests.entry(*prefix).or_default() += ended + open.sum::<u64>();
        }
        requests
    }

    /// How many connections this client has.
    #[must_use]
    pub fn connections(&self, client: ClientPrefix) -> usize {
        self.lock().size(client)
    }

    /// How many responses to this client were 401, since it is known.
    #[must_use]
    pub fn unauthorized(&self, client: ClientPrefix) -> u64 {
        let occupancy = self.lock();
        let known = occupancy.clients.get(&client);
        known.map_or(0, |places| places.client.budget.unauthorized())
    }

    /// Asks connections of the largest client to end that have been idle for a while, because memory is short.
    pub fn close_idle(&self) {
        self.lock().close_idle(CLOSED_WHEN_SHORT);
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
        let (size, waiting) = (occupancy.size(prefix), occupancy.waiting.len());
        occupancy.make_room(self.sizes.load().max, (size, prefix), waiting, 0)
    }

    /// Notes that a connection has got its place. Returns `false` if another client has displaced it.
    pub(super) fn stop_waiting(&self, id: u64) -> bool {
        self.lock().stop_waiting(id).is_some()
    }

    /// Removes a connection.
    pub(super) fn leave(&self, state: &PlaceState) {
        let mut occupancy = self.lock();
        if self.is_unnamed(state) {
            occupancy.unnamed.remove(&state.id);
        } else {
            occupancy.remove(state.client.prefix, state.id);
        }
    }

    /// Whether the client of this connection is not known yet.
    pub(super) fn is_unnamed(&self, state: &PlaceState) -> bool {
        Arc::ptr_eq(&state.client, &self.unnamed)
    }

    /// A client that may have no connection, because a proxy in front sends its requests. It is remembered like a
    /// client that has left.
    pub(super) fn client(&self, address: IpAddr) -> Arc<Client> {
        let prefix = ClientPrefix::new(address);
        let mut occupancy = self.lock();
        let id = occupancy.take_id();
        let places = occupancy
            .clients
            .entry(prefix)
            .or_insert_with(|| ClientPlaces::new(prefix, self));
        let client = Arc::clone(&places.client);
        if places.places.is_empty() {
            if let Some(before) = places.absent.replace(id) {
                occupancy.absent.remove(&before);
            }
            // Before this one is added: no other client that came last may stay for it.
            occupancy.forget_absent(Instant::now(), None);
            occupancy.absent.insert(id, prefix);
        }
        client
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

    /// Whether one more connection of this client may wait. It gets a quarter of the room. If the room is full, the
    /// client with the most waiting connections loses the oldest of them, so that a few clients do not close it.
    fn may_wait(&mut self, prefix: ClientPrefix, max: usize) -> bool {
        let count = |prefix| self.clients.get(prefix).map_or(0, |client| client.waiting);
        let own = count(&prefix);
        let is_within_share = own < (max / 4).max(1);
        if !is_within_share || self.waiting.len() < max {
            return is_within_share;
        }
        let each = self.waiting.iter();
        let each = each.map(|(id, (prefix, _))| (count(prefix), std::cmp::Reverse(*id)));
        let Some((most, std::cmp::Reverse(id))) = each.max() else {
            return false;
        };
        // With a difference of one, two clients would displace each other without end.
        let displaced = if most > own + 1 {
            self.stop_waiting(id)
        } else {
            None
        };
        displaced.is_some_and(|state| {
            state.close();
            true
        })
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn add(
        &mut self,
        table: &Arc<ClientTable>,
        prefix: ClientPrefix,
        has_permit: bool,
    ) -> Arc<PlaceState> {
        let id = self.take_id();
        self.total += 1;
        let client = self
            .clients
            .entry(prefix)
            .or_insert_with(|| ClientPlaces::new(prefix, table));
        if let Some(id) = client.absent.take() {
            self.absent.remove(&id);
        }
        let state = PlaceState::new(table, &client.client, id, has_permit);
        self.by_size.remove(&(client.places.len(), prefix));
        client.places.insert(id, Arc::clone(&state));
        self.by_size.insert((client.places.len(), prefix));
        if !has_permit {
            client.waiting += 1;
            self.waiting.insert(id, (prefix, Arc::clone(&state)));
        }
        state
    }

    fn remove(&mut self, prefix: ClientPrefix, id: u64) {
        self.stop_waiting(id);
        let Some(client) = self.clients.get_mut(&prefix) else {
            return;
        };
        self.by_size.remove(&(client.places.len(), prefix));
        let state = client.places.remove(&id);
        client.requests += state.as_ref().map_or(0, |state| state.finished());
        self.closing -= usize::from(state.is_some_and(|state| state.end()));
        self.total -= 1;
        if !client.places.is_empty() {
            self.by_size.insert((client.places.len(), prefix));
            return;
        }
        client.candidates = Vec::new();
        client.absent = Some(id);
        self.absent.insert(id, prefix);
        self.forget_absent(Instant::now(), Some(prefix));
    }

    /// Removes clients without connections: the one that left last if its budgets are not in use, and of those that
    /// left first, one that is not in use or one too many.
    fn forget_absent(&mut self, now: Instant, leaving: Option<ClientPrefix>) {
        let is_in_use = |prefix| {
            let places: Option<&ClientPlaces> = self.clients.get(prefix);
            // A request of a proxy in front may be about to use the budgets. The place that leaves is still there.
            let held = 1 + usize::from(leaving == Some(*prefix));
            places.is_some_and(|places| {
                Arc::strong_count(&places.client) > held || places.client.budget.is_in_use(now)
            })
        };
        let last = self.absent.last_key_value();
        let last = last.filter(|(_, prefix)| !is_in_use(prefix));
        let first = self.absent.first_key_value();
        let is_full = self.absent.len() > MAX_ABSENT;
        let first = first.filter(|(_, prefix)| is_full || !is_in_use(prefix));
        let forgotten = [last, first].map(|client| client.map(|(id, prefix)| (*id, *prefix)));
        for (id, prefix) in forgotten.into_iter().flatten() {
            self.absent.remove(&id);
            let requests = self.clients.remove(&prefix).map_or(0, |places| {
                places.requests + places.client.forwarded.load(Ordering::Relaxed)
            });
            if requests > 0 {
                if self.left.len() >= MAX_LEFT {
                    self.left.clear();
                }
                *self.left.entry(prefix).or_default() += requests;
            }
        }
    }

    fn stop_waiting(&mut self, id: u64) -> Option<Arc<PlaceState>> {
        let (prefix, state) = self.waiting.remove(&id)?;
        if let Some(client) = self.clients.get_mut(&prefix) {
            client.waiting -= 1;
        }
        Some(state)
    }

    fn close_idle(&mut self, count: usize) {
        let now = Instant::now();
        let largest = self.by_size.last().filter(|(size, _)| *size > 1);
        let Some(client) = largest.and_then(|(_, prefix)| self.clients.get_mut(prefix)) else {
            return;
        };
        let is_idle = |rank| match rank {
            Rank::Idle(since) => now.duration_since(since) >= MIN_IDLE,
            Rank::FirstRequest(_) | Rank::LaterRequest(_) | Rank::Tunnel(_) => false,
        };
        let closed = (0..count).take_while(|_| client.close_one(now, is_idle));
        self.closing += closed.count();
    }

    /// Asks connections of the largest client to end if places are scarce: up to `idle` idle ones, and one more if
    /// fewer are ending than are `waiting`. `newcomer` is the client of a new connection, with its number of
    /// connections. Returns whether that client is the largest.
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
        let is_alone = self.by_size.len() == usize::from(self.size(newcomer.1) > 0);
        let is_scarce = self.total - self.closing >= max - max / 4 && !is_alone;
        let Some(client) = self.clients.get_mut(&prefix).filter(|_| size > 1) else {
            return false;
        };
        // Its own connections do not make it lose one that is busy.
        let of_others = waiting - if is_largest { 0 } else { client.waiting };
        let needs_place = of_others > self.closing;
        let now = Instant::now();
        let is_idle = |rank| match rank {
            Rank::Idle(since) => {
                waiting > 0 && !is_largest || now.duration_since(since) >= MIN_IDLE
            }
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
    fn new(prefix: ClientPrefix, table: &ClientTable) -> Self {
        Self {
            client: Client::new(
                prefix,
                table.sizes.load().handshakes_per_client,
                &table.budgets.load(),
            ),
            places: BTreeMap::new(),
            requests: 0,
            waiting: 0,
            candidates: Vec::new(),
            next_scan: None,
            absent: None,
        }
    }

    /// Asks the connection with the least rank to end, if that rank is allowed. Returns whether there is one.
    fn close_one(&mut self, now: Instant, is_allowed: impl Fn(Rank) -> bool) -> bool {
        loop {
            match self.candidates.last() {
                Some((rank, state)) if state.rank() != Some(*rank) => {
                    self.candidates.pop();
                }
                Some((rank, state)) if is_allowed(*rank) => {
                    state.close();
                    self.candidates.pop();
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

/// Connections that may wait for a place: an eighth of the places, within these bounds. They use the reserve of open
/// files (`config::capacity`).
const MIN_WAITING: usize = 16;
const MAX_WAITING: usize = 32;
/// Connections without a PROXY header at most: each may hold 4 KiB of one.
const MAX_UNNAMED: usize = 4096;
/// How often a connection that waits makes room again: connections that were busy may be idle now.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Clients without connections whose budgets are remembered, 1 KiB each at most.
const MAX_ABSENT: usize = 4096;
/// Clients that have left and whose requests are known.
const MAX_LEFT: usize = 1_000;
/// How long a connection is idle before it makes room for one of its own client, or for any while places are free.
/// Otherwise the connections of a burst would close each other during their handshakes, and each connection of another
/// client would close handshakes of a large NAT.
const MIN_IDLE: Duration = Duration::from_secs(1);
/// Two, so that places become free again although each new connection takes one.
const CLOSED_PER_CONNECTION: usize = 2;
/// Idle connections that close whenever memory is found short, ten times per second.
const CLOSED_WHEN_SHORT: usize = 64;
/// Connections that one scan finds. A client that connects 5,000 times per second is scanned 40 times per second.
const MAX_CANDIDATES: usize = 256;
/// The pause after a scan, per connection that was scanned: a scan of 10,000 takes less than 1 ms.
const SCAN_PAUSE: Duration = Duration::from_micros(2);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::{Request, StatusCode, header};
    use tokio::time::advance;

    use super::*;

    fn peer(client: u32) -> PeerAddr {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + client);
        PeerAddr((IpAddr::from(address), 1).into())
    }

    fn table(connections: usize) -> Arc<ClientTable> {
        ClientTable::new(&Limits {
            connections,
            ..Limits::default()
        })
    }

    #[tokio::test]
    async fn fewer_places_close_no_connection() {
        let table = table(10);
        let mut places = fill(&table, 1, 10);
        let fewer = Limits {
            connections: 4,
            ..Limits::default()
        };
        let mut settled = Box::pin(table.configure(&fewer));
        let now = timeout(Duration::ZERO, &mut settled).await;
        assert!(now.is_err(), "ten connections are open");
        places.truncate(5);
        assert!(table.enter(peer(2), false).unwrap().is_waiting());
        places.truncate(4);
        settled.await;
        assert!(table.enter(peer(2), false).unwrap().is_waiting());
        places.truncate(3);
        assert!(!table.enter(peer(2), false).unwrap().is_waiting());
        table.configure(&Limits::default()).await;
        assert_eq!(table.permits.available_permits(), 10_000 - 3);
    }

    fn fill(table: &Arc<ClientTable>, client: u32, count: usize) -> Vec<Place> {
        (0..count)
            .map(|_| table.enter(peer(client), false).unwrap())
            .collect()
    }

    fn closing(places: &[Place]) -> Vec<usize> {
        let each = places.iter().enumerate();
        each.filter(|(_, place)| place.is_closing())
            .map(|(at, _)| at)
            .collect()
    }

    /// The longest idle ones first, and a running request is no idleness.
    #[tokio::test(start_paused = true)]
    async fn longest_idle_places_of_the_largest_client_close() {
        let table = table(9);
        let mut greedy = Vec::new();
        for _ in 0..5 {
            advance(Duration::from_secs(1)).await;
            greedy.extend(fill(&table, 1, 1));
        }
        greedy[0].begin_request();
        greedy[1].begin_request();
        greedy[1].end_request(Instant::now());
        let small = fill(&table, 2, 2);
        assert_eq!(closing(&greedy), [0; 0]);
        let next = fill(&table, 3, 1);
        assert_eq!(closing(&greedy), [2, 3]);
        assert_eq!(closing(&small), [0; 0]);
        assert_eq!(
            table.largest(2),
            [
                (ClientPrefix::new(peer(1).0.ip()), 5),
                (ClientPrefix::new(peer(2).0.ip()), 2),
            ]
        );
        drop(next);
    }

    #[tokio::test(start_paused = true)]
    async fn shortage_closes_idle_places_of_the_largest_client() {
        let table = table(100);
        let greedy = fill(&table, 1, 3);
        let small = fill(&table, 2, 2);
        greedy[1].begin_request();
        table.close_idle();
        assert_eq!(closing(&greedy), [0; 0]);
        advance(MIN_IDLE).await;
        table.close_idle();
        assert_eq!(closing(&greedy), [0, 2]);
        assert_eq!(closing(&small), [0; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn busy_places_close_in_the_order_of_their_cost() {
        let table = table(4);
        let mut greedy = Vec::new();
        for _ in 0..4 {
            advance(Duration::from_secs(1)).await;
            greedy.extend(fill(&table, 1, 1));
        }
        greedy.iter().for_each(Place::begin_request);
        // A tunnel, two first requests, a second request.
        greedy[0].become_tunnel();
        greedy[3].end_request(Instant::now());
        greedy[3].begin_request();
        let mut waiting = Vec::new();
        for (client, closed) in (2..).zip([1, 2, 3, 4]) {
            advance(Duration::from_secs(1)).await;
            waiting.extend(fill(&table, client, 1));
            let expected = [&[2][..], &[1, 2], &[1, 2, 3], &[0, 1, 2, 3]];
            assert_eq!(closing(&greedy), expected[closed - 1]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_connections_wait_and_fewer_of_one_client() {
        let table = table(MIN_WAITING);
        let mut places = fill(&table, 1, MIN_WAITING);
        places.iter().for_each(Place::begin_request);
        let mut waiting = fill(&table, 1, MIN_WAITING / 4);
        let refused = table.enter(peer(1), false).unwrap_err();
        assert_eq!(refused, Refusal::Connections);
        assert!(table.enter(peer(1), true).unwrap().is_waiting());
        waiting.extend((2..14).map(|client| table.enter(peer(client), false).unwrap()));
        // Three take the room of the first client, which then has as many waiting connections as all others.
        waiting.extend((20..23).map(|client| table.enter(peer(client), false).unwrap()));
        assert!(waiting.iter().all(Place::is_waiting));
        assert_eq!(closing(&waiting), [0, 1, 2]);
        let refused = table.enter(peer(30), false).unwrap_err();
        assert_eq!(refused, Refusal::Connections);
        // Not even during the drain.
        table.enter(peer(30), true).unwrap_err();
        places.truncate(MIN_WAITING - 4);
        let long = Duration::from_secs(1);
        for place in &mut waiting[..3] {
            assert!(!place.wait_for_permit(long).await);
        }
        for place in &mut waiting[4..8] {
            assert!(place.wait_for_permit(long).await);
        }
        assert!(!waiting[8].wait_for_permit(long).await);
        drop((places, waiting));
        let occupancy = table.lock();
        assert_eq!((occupancy.total, occupancy.closing), (0, 0));
        assert!(occupancy.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn four_clients_do_not_close_the_room_to_wait() {
        let table = table(MIN_WAITING);
        let _places = fill(&table, 1, MIN_WAITING);
        let mut waiting = Vec::new();
        for client in 2..6 {
            waiting.extend(fill(&table, client, MIN_WAITING / 4));
        }
        let newcomer = table.enter(peer(6), false).unwrap();
        assert!(newcomer.is_waiting());
        let displaced = waiting.first_mut().unwrap();
        let wait = displaced.wait_for_permit(Duration::from_secs(3600));
        let wait = timeout(Duration::from_secs(1), wait).await;
        assert!(!wait.expect("it ends at once"));
    }

    /// A stranger without a credential must not end the watches of users.
    #[tokio::test(start_paused = true)]
    async fn accepted_credential_keeps_a_busy_place() {
        let table = table(3);
        let greedy = fill(&table, 1, 3);
        let answers = [Some(200), None, Some(401)];
        for (place, answer) in greedy.iter().zip(answers) {
            let request = Request::get("/").header(header::AUTHORIZATION, "Bearer x");
            let (head, ()) = request.body(()).unwrap().into_parts();
            place.begin_request();
            let check = place.check_budget(None, "main", &head, None).unwrap();
            if let Some(answer) = answer {
                place.answered(None, check, StatusCode::from_u16(answer).unwrap());
            }
        }
        let mut waiting = Vec::new();
        for client in 2..5 {
            advance(Duration::from_secs(1)).await;
            waiting.extend(table.enter(peer(client), false));
        }
        assert_eq!(closing(&greedy), [1, 2]);
        greedy[0].become_tunnel();
        greedy[0].end_request(Instant::now());
        advance(Duration::from_secs(1)).await;
        drop(table.enter(peer(9), true));
        assert_eq!(closing(&greedy), [1, 2]);
    }

    /// The handshakes of a large office, each time another client connects.
    #[tokio::test(start_paused = true)]
    async fn handshakes_are_not_idle_while_places_are_free() {
        let table = table(12);
        let office = fill(&table, 1, 9);
        let _other = fill(&table, 2, 1);
        assert_eq!(closing(&office), [0; 0]);
        advance(MIN_IDLE).await;
        let _other = fill(&table, 2, 1);
        assert_eq!(closing(&office).len(), 2);
    }

    /// Otherwise a client that connects again would have a full budget again.
    #[tokio::test(start_paused = true)]
    async fn budgets_outlive_connections_within_a_bound() {
        let table = table(10);
        let request = Request::get("/").header(header::AUTHORIZATION, "Bearer bad");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let refused = |client| {
            let place = table.enter(peer(client), false).unwrap();
            let Ok(check) = place.check_budget(None, "main", &head, None) else {
                return false;
            };
            place.answered(None, check, StatusCode::UNAUTHORIZED);
            true
        };
        let seen = (0..1000).filter(|_| refused(0)).count();
        assert_eq!(seen, 60);
        for client in 1..10_000 {
            assert!(refused(client));
        }
        let remembered = table.lock().clients.len();
        assert!((1..=MAX_ABSENT).contains(&remembered), "{remembered}");
        advance(Duration::from_secs(120)).await;
        for _ in 0..MAX_ABSENT {
            drop(table.enter(peer(1), false));
        }
        assert_eq!(table.lock().clients.len(), 0);
        assert_eq!(table.lock().absent.len(), 0);
    }

    /// The connections of a load balancer are those of many clients.
    #[tokio::test(start_paused = true)]
    async fn unnamed_connection_counts_for_its_client_once_named() {
        let table = ClientTable::new(&Limits {
            connections: 100,
            connections_per_client: Some(2),
            ..Limits::default()
        });
        let mut unnamed: Vec<_> = (0..10).map(|_| table.enter_unnamed()).collect();
        assert!(table.largest(10).is_empty());
        assert!(
            unnamed
                .iter()
                .all(|place| place.is_unnamed() && !place.is_waiting())
        );
        let named = unnamed.iter_mut().map(|place| place.rebind(peer(1)));
        let refused = Err(Refusal::ClientConnections);
        assert_eq!(named.take(3).collect::<Vec<_>>(), [Ok(()), Ok(()), refused]);
        unnamed[3].rebind(peer(2)).unwrap();
        assert!(!unnamed[3].is_unnamed());
        let sizes = [
            (ClientPrefix::new(peer(1).ip()), 2),
            (ClientPrefix::new(peer(2).ip()), 1),
        ];
        assert_eq!(table.largest(10), sizes);
        drop(unnamed);
        assert!(table.largest(10).is_empty());
        let occupancy = table.lock();
        assert_eq!((occupancy.total, occupancy.unnamed.len()), (0, 0));
        assert_eq!(table.permits.available_permits(), 100);
    }

    /// Silent connections from the addresses of load balancers leave places for clients and for other connections.
    #[tokio::test(start_paused = true)]
    async fn unnamed_connections_are_bounded_and_oldest_closes() {
        let table = table(100);
        let mut silent: Vec<_> = (0..30).map(|_| table.enter_unnamed()).collect();
        assert_eq!(closing(&silent), [0, 1, 2, 3, 4]);
        assert_eq!(silent[0].rebind(peer(1)), Err(Refusal::Connections));
        silent[29].rebind(peer(1)).unwrap();
        assert!(fill(&table, 2, 70).iter().all(|place| !place.is_waiting()));
        drop(silent);
        assert_eq!(table.permits.available_permits(), 100);
    }

    /// One client behind the load balancer has all places. The next connection of the load balancer may be of another
    /// one.
    #[tokio::test(start_paused = true)]
    async fn unnamed_connection_needs_no_place_to_name_its_client() {
        let table = table(MIN_WAITING);
        let mut greedy: Vec<_> = (0..MIN_WAITING).map(|_| table.enter_unnamed()).collect();
        for place in &mut greedy {
            place.rebind(peer(1)).unwrap();
        }
        advance(MIN_IDLE).await;
        let mut next = table.enter_unnamed();
        assert!(next.is_waiting());
        next.rebind(peer(2)).unwrap();
        assert!(next.is_waiting());
        let closed = closing(&greedy);
        assert!(!closed.is_empty());
        greedy.retain(|place| !place.is_closing());
        assert!(next.wait_for_permit(Duration::from_secs(1)).await);
    }

    /// A 401 may come after other requests have begun and ended.
    #[tokio::test(start_paused = true)]
    async fn budget_of_a_client_of_a_proxy_is_remembered() {
        let table = table(10);
        let proxy = table.enter(peer(1), false).unwrap();
        let request = Request::get("/").header(header::AUTHORIZATION, "Bearer bad");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let refused = |client| {
            let client = proxy.other_client(peer(client).ip());
            let check = proxy.check_budget(Some(&client), "main", &head, None);
            for other in 1000..1010 {
                drop(proxy.other_client(peer(other).ip()));
            }
            let Ok(check) = check else { return false };
            proxy.answered(Some(&client), check, StatusCode::UNAUTHORIZED);
            true
        };
        assert_eq!((0..1000).filter(|_| refused(7)).count(), 60);
        assert!(refused(8));
        assert!(proxy.check_budget(None, "main", &head, None).is_ok());
        for client in 1000..20_000 {
            drop(proxy.other_client(peer(client).ip()));
        }
        let remembered = table.lock().clients.len();
        assert!((3..10).contains(&remembered), "{remembered}");
    }
}
