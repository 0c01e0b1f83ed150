//! The addresses of one apiserver: which one a new connection dials first, and which ones are ejected.
//!
//! The addresses known so far are kept when a lookup fails: a failure of DNS must not make a running cluster
//! unreachable. An unhealthy endpoint is ejected only while another one is healthy.
//!
//! Dials and probes tell the health of an endpoint. One that failed stays unhealthy for a time that doubles with each
//! failure, so that an endpoint that keeps failing and recovering does not cost a request each time. After a minute
//! without a failure the count starts again.

mod balance;
mod discovered;
mod failures;

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};
use tracing::{info, warn};

use crate::{
    hosts::UpstreamAddr,
    metrics::{Histogram, PerWorker},
    text::error_chain,
    upstream::{UpstreamError, lock},
};
pub(super) use balance::LeavingConnection;
use discovered::Discovery;
pub use discovered::DiscoveryReport;
use failures::{FailedDials, FailureLine};

/// All addresses of one apiserver.
#[derive(Debug)]
pub struct Endpoints {
    /// The name of their cluster, for the log.
    cluster: Option<String>,
    host: String,
    port: u16,
    source: AddressSource,
    list: ArcSwap<Vec<Arc<Endpoint>>>,
    /// Where the next [`Endpoints::pick`] starts, so that equal endpoints take turns.
    start: AtomicUsize,
    /// Held while [`Endpoints::update_ejections`] runs.
    ejection_update: Mutex<()>,
    /// Wakes the prober early.
    probe_requests: Notify,
}

/// Where the addresses come from.
#[derive(Debug)]
enum AddressSource {
    /// They were configured, or the host is an address.
    Fixed,
    /// The host is a name, which is looked up again and again.
    Name,
    /// The cluster itself names them.
    Cluster(Discovery),
}

/// The state of one endpoint, for metrics and the status page.
#[derive(Debug, Clone)]
pub struct EndpointHealth {
    /// Its address.
    pub address: UpstreamAddr,
    /// Whether it works.
    pub state: Health,
    /// When the state last changed.
    pub since: Instant,
    /// Connections to it, and dials in progress.
    pub connections: usize,
    /// The time to headers of the requests that it answered.
    pub time_to_headers: Arc<Histogram>,
    /// How long its connections took to open.
    pub connect_times: Arc<ConnectTimes>,
    /// The last error, with its causes and addresses, as a fragment for people. `None` once healthy.
    pub why: Option<String>,
    /// Whether the last error says that the apiserver is down or cannot be reached, and not that this proxy must not
    /// use what it reached.
    pub is_down: bool,
}

/// How long connections to an endpoint took to open, of all workers: a dial is rare.
#[derive(Debug, Default)]
pub struct ConnectTimes {
    /// TCP.
    pub tcp: Histogram,
    /// The TLS handshake after it, with the wait for its turns.
    pub tls: Histogram,
}

/// Whether an endpoint works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It was not tried yet.
    Unknown,
    /// The last attempt succeeded: a verified connection, or a response to a probe that is not a 5xx.
    Healthy,
    /// The last attempt failed. It is ejected while another endpoint is healthy.
    Unhealthy,
}

impl Endpoints {
    /// Endpoints of `host` (a name, or an address without brackets). A name has no addresses until
    /// [`Endpoints::resolve`] has found some.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let literal = host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        let addresses: Vec<_> = literal.into_iter().collect();
        let source = match addresses.is_empty() {
            true => AddressSource::Name,
            false => AddressSource::Fixed,
        };
        Self::with(host, port, source, &addresses)
    }

    /// Endpoints at these addresses and no others; `host` is not looked up.
    #[must_use]
    pub fn fixed(host: &str, port: u16, addresses: &[SocketAddr]) -> Self {
        Self::with(host, port, AddressSource::Fixed, addresses)
    }

    fn with(host: &str, port: u16, source: AddressSource, addresses: &[SocketAddr]) -> Self {
        let endpoints = addresses.iter().map(|address| UpstreamAddr(*address));
        Self {
            cluster: None,
            host: host.to_owned(),
            port,
            source,
            list: ArcSwap::from_pointee(
                endpoints
                    .map(|address| Arc::new(Endpoint::new(address)))
                    .collect(),
            ),
            start: AtomicUsize::new(0),
            ejection_update: Mutex::new(()),
            probe_requests: Notify::new(),
        }
    }

    /// The same, as the endpoints of this cluster.
    #[must_use]
    pub fn of_cluster(self, name: &str) -> Self {
        Self {
            cluster: Some(name.to_owned()),
            ..self
        }
    }

    /// The configured host name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The configured port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The state of each endpoint, in the order of their addresses.
    #[must_use]
    pub fn health(&self) -> Vec<EndpointHealth> {
        let list = self.list.load();
        list.iter().map(|endpoint| endpoint.health()).collect()
    }

    /// The endpoints to try for one new connection, best first, at most three. Unhealthy ones come last;
    /// otherwise the one with the fewest leases comes first, and equal ones take turns.
    pub(super) fn pick(&self) -> Vec<Arc<Endpoint>> {
        let list = self.list.load();
        if let [only] = list.as_slice() {
            return vec![Arc::clone(only)];
        }
        let start = self.start.fetch_add(1, Ordering::Relaxed) % list.len().max(1);
        let in_turn = list.iter().cycle().skip(start).take(list.len());
        // Read each once: health and counts can change while the list is sorted.
        let mut ranked: Vec<_> = in_turn
            .map(|endpoint| {
                (
                    endpoint.state() == Health::Unhealthy,
                    endpoint.leases(),
                    Arc::clone(endpoint),
                )
            })
            .collect();
        ranked.sort_by_key(|(is_unhealthy, leases, _)| (*is_unhealthy, *leases));
        ranked.truncate(MAX_TRIES);
        ranked
            .into_iter()
            .map(|(_, _, endpoint)| endpoint)
            .collect()
    }

    /// Records that an endpoint worked.
    pub(super) fn mark_healthy(&self, endpoint: &Endpoint) {
        if endpoint.set_healthy() {
            self.update_ejections();
            let failures = endpoint.with(|record| record.failed_dials.reset());
            info!(
                cluster = self.cluster,
                server.address = self.host,
                upstream.address = %endpoint.address(),
                failed_dials = Some(failures).filter(|failures| *failures > 0),
                "upstream endpoint healthy"
            );
        }
    }

    /// Records that a dial of an endpoint failed, and logs it unless the same was logged before.
    pub(super) fn dial_failed(&self, endpoint: &Endpoint, error: &UpstreamError, why: String) {
        let (now, reason) = (Instant::now(), error.as_dialled());
        let line = endpoint.with(|record| record.failed_dials.add(reason, now));
        let (address, label) = (endpoint.address(), reason.label());
        match line {
            FailureLine::First => warn!(
                cluster = self.cluster,
                upstream.address = %address,
                reason = label,
                error = why,
                "upstream connection failed"
            ),
            FailureLine::Still(failures) => warn!(
                cluster = self.cluster,
                upstream.address = %address,
                reason = label,
                failures,
                "upstream connection still failing"
            ),
            FailureLine::Nothing => {}
        }
        self.mark_unhealthy(endpoint, label, why, error.is_outage());
    }

    /// Records that an endpoint failed, and requests a probe. `is_down` is that of [`EndpointHealth`].
    pub(super) fn mark_unhealthy(
        &self,
        endpoint: &Endpoint,
        reason: &'static str,
        why: String,
        is_down: bool,
    ) {
        if endpoint.set_unhealthy(why, is_down) {
            self.update_ejections();
            warn!(
                cluster = self.cluster,
                server.address = self.host,
                upstream.address = %endpoint.address(),
                reason,
                "upstream endpoint unhealthy"
            );
            // A probe ends a short failure soon.
            self.probe_requests.notify_waiters();
        }
    }

    /// Asks for an early probe, because an endpoint is slow.
    pub(super) fn request_probe(&self) {
        self.probe_requests.notify_waiters();
    }

    /// Resolves at the first request for a probe from now on. Probes can make requests too.
    pub(super) fn probe_requests(&self) -> Notified<'_> {
        self.probe_requests.notified()
    }

    /// Waits for the next round of probes: for `interval`, or less if a probe is requested.
    pub(super) async fn next_round(&self, requested: Notified<'_>, interval: Duration) {
        if tokio::time::timeout(with_jitter(interval), requested)
            .await
            .is_ok()
        {
            // An endpoint stays unhealthy for a short time after a failure, and a successful probe in that time does
            // not count. So wait until it is over (see `REPROBE_DELAY`).
            tokio::time::sleep(with_jitter(REPROBE_DELAY).min(interval)).await;
        }
    }

    /// All endpoints.
    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.list.load().to_vec()
    }

    /// The endpoints to probe: all of them, so that a probe finds a failure before a request does. A
    /// single endpoint is probed only while it is not healthy, because there is no other to use.
    pub(super) fn probe_targets(&self) -> Vec<Arc<Endpoint>> {
        let list = self.list.load();
        let is_single = list.len() == 1;
        list.iter()
            .filter(|endpoint| !is_single || endpoint.state() != Health::Healthy)
            .cloned()
            .collect()
    }

    /// Recomputes which endpoints are ejected. Serialized, because a stale result written last would
    /// stay until the next change.
    fn update_ejections(&self) {
        let _alone = lock(&self.ejection_update);
        let list = self.list.load();
        let any_healthy = list
            .iter()
            .any(|endpoint| endpoint.state() == Health::Healthy);
        for endpoint in list.iter() {
            endpoint.set_ejected(any_healthy && endpoint.state() == Health::Unhealthy);
        }
    }

    /// Looks the name up once, and uses all its addresses from then on.
    ///
    /// # Errors
    ///
    /// When the lookup fails or finds no address; the addresses known so far are kept.
    pub async fn resolve(&self) -> io::Result<()> {
        if !matches!(self.source, AddressSource::Name) {
            return Ok(());
        }
        let found = self.look_up().await?;
        self.publish(&found);
        Ok(())
    }

    /// The addresses of the host, at least one.
    async fn look_up(&self) -> io::Result<Vec<UpstreamAddr>> {
        let mut found: Vec<_> = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await?
            .map(UpstreamAddr)
            .collect();
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            ));
        }
        found.sort_unstable_by_key(|address| address.0);
        found.dedup();
        Ok(found)
    }

    /// Replaces the addresses. Those that stay keep their health. Returns whether they have changed.
    fn publish(&self, found: &[UpstreamAddr]) -> bool {
        let old = self.list.load();
        if old
            .iter()
            .map(|known| known.address())
            .eq(found.iter().copied())
        {
            return false;
        }
        let list = found.iter().map(|address| {
            let known = old.iter().find(|known| known.address() == *address);
            known.map_or_else(|| Arc::new(Endpoint::new(*address)), Arc::clone)
        });
        self.list.store(Arc::new(list.collect()));
        self.update_ejections();
        self.probe_requests.notify_waiters();
        let addresses: Vec<_> = found.iter().map(ToString::to_string).collect();
        info!(
            cluster = self.cluster,
            server.address = self.host,
            addresses = addresses.join(", "),
            "upstream addresses changed"
        );
        true
    }

    /// Resolves the name every `interval` until all other handles of the endpoints are dropped; more often
    /// while no address is known. Returns at once if there is no name to look up.
    pub async fn keep_resolved(self: Arc<Self>, interval: impl Fn() -> Duration) {
        if !matches!(self.source, AddressSource::Name) {
            return;
        }
        let endpoints = Arc::downgrade(&self);
        drop(self);
        while let Some(this) = endpoints.upgrade() {
            let known = match this.resolve().await {
                Ok(()) => true,
                Err(error) => {
                    warn!(
                        cluster = this.cluster,
                        server.address = this.host,
                        error = %error_chain(&error),
                        "upstream name not resolved"
                    );
                    !this.list.load().is_empty()
                }
            };
            drop(this);
            tokio::time::sleep(if known {
                interval()
            } else {
                interval().min(UNRESOLVED_RETRY)
            })
            .await;
        }
    }
}

/// One address of an apiserver.
#[derive(Debug)]
pub(super) struct Endpoint {
    address: UpstreamAddr,
    /// Connections to it, of all workers.
    connections: AtomicUsize,
    /// Those of them that only finish their streams, because their lease has moved.
    leaving: AtomicUsize,
    /// How many leases may move to other endpoints now.
    surplus: AtomicUsize,
    /// It is unhealthy and another endpoint is healthy: no new request goes to it, not even on a
    /// connection that exists.
    ejected: AtomicBool,
    record: Mutex<HealthRecord>,
    time_to_headers: PerWorker<Histogram>,
    connect_times: Arc<ConnectTimes>,
}

#[derive(Debug)]
struct HealthRecord {
    state: Health,
    since: Instant,
    why: Option<String>,
    is_down: bool,
    /// Times it became unhealthy since it was last healthy for [`FORGIVE_AFTER`].
    failures: u32,
    /// Until then, a success does not make it healthy.
    unhealthy_until: Instant,
    failed_dials: FailedDials,
}

/// Counts one connection to an endpoint, or one dial, until dropped.
#[derive(Debug)]
pub(super) struct CountedConnection(Arc<Endpoint>);

impl Endpoint {
    pub(super) fn new(address: UpstreamAddr) -> Self {
        let now = Instant::now();
        Self {
            address,
            connections: AtomicUsize::new(0),
            leaving: AtomicUsize::new(0),
            surplus: AtomicUsize::new(0),
            ejected: AtomicBool::new(false),
            record: Mutex::new(HealthRecord {
                state: Health::Unknown,
                since: now,
                why: None,
                is_down: false,
                failures: 0,
                unhealthy_until: now,
                failed_dials: FailedDials::default(),
            }),
            time_to_headers: PerWorker::default(),
            connect_times: Arc::default(),
        }
    }

    /// The time to headers of the requests of this worker.
    pub(super) fn time_to_headers(&self, worker: usize) -> Arc<Histogram> {
        self.time_to_headers.of(worker)
    }

    pub(super) fn connect_times(&self) -> &ConnectTimes {
        &self.connect_times
    }

    pub(super) fn address(&self) -> UpstreamAddr {
        self.address
    }

    /// Counts one connection until the result is dropped.
    pub(super) fn count(self: &Arc<Self>) -> CountedConnection {
        self.connections.fetch_add(1, Ordering::Relaxed);
        CountedConnection(Arc::clone(self))
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether this endpoint gets no new requests, because it is unhealthy and another endpoint is healthy.
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    fn set_ejected(&self, ejected: bool) {
        self.ejected.store(ejected, Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> Health {
        self.with(|record| record.state)
    }

    /// Records a success. Returns whether the state changed. An endpoint that failed recently stays unhealthy
    /// until `unhealthy_until`.
    fn set_healthy(&self) -> bool {
        let now = Instant::now();
        self.with(|record| match record.state {
            Health::Unhealthy if now < record.unhealthy_until => false,
            Health::Healthy => {
                if now.duration_since(record.since) >= FORGIVE_AFTER {
                    record.failures = 0;
                }
                false
            }
            Health::Unknown | Health::Unhealthy => {
                (record.state, record.since) = (Health::Healthy, now);
                (record.why, record.is_down) = (None, false);
                true
            }
        })
    }

    /// Records a failure. Returns whether the state changed.
    fn set_unhealthy(&self, why: String, is_down: bool) -> bool {
        let now = Instant::now();
        self.with(|record| {
            (record.why, record.is_down) = (Some(why), is_down);
            if record.state == Health::Unhealthy {
                return false;
            }
            if record.state == Health::Healthy && now.duration_since(record.since) >= FORGIVE_AFTER
            {
                record.failures = 0;
            }
            let doubled =
                MIN_UNHEALTHY_TIME * 2_u32.saturating_pow(record.failures.min(MAX_DOUBLINGS));
            record.failures = record.failures.saturating_add(1);
            record.unhealthy_until = now + with_jitter(doubled.min(MAX_UNHEALTHY_TIME));
            (record.state, record.since) = (Health::Unhealthy, now);
            true
        })
    }

    fn health(&self) -> EndpointHealth {
        self.with(|record| EndpointHealth {
            address: self.address,
            state: record.state,
            since: record.since,
            connections: self.connections(),
            time_to_headers: Arc::new(self.time_to_headers.sum()),
            connect_times: Arc::clone(&self.connect_times),
            why: record.why.clone(),
            is_down: record.is_down,
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut HealthRecord) -> T) -> T {
        look(&mut lock(&self.record))
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The same time, changed by up to a fifth, so that many proxies do not return to an apiserver at once.
pub(super) fn with_jitter(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(0) % 401;
    time * u32::try_from(800 + random).unwrap_or(1000) / 1000
}

/// How many endpoints one request tries before it fails.
const MAX_TRIES: usize = 3;
/// How soon to resolve again while no address is known.
const UNRESOLVED_RETRY: Duration = Duration::from_secs(1);
/// How soon an endpoint that failed is probed: longer than the unhealthy time of a first failure, in which
/// a success does not count, whatever the jitter of both.
const REPROBE_DELAY: Duration = Duration::from_millis(1500);
/// How long an endpoint stays unhealthy after its first failure, and at most.
const MIN_UNHEALTHY_TIME: Duration = Duration::from_secs(1);
const MAX_UNHEALTHY_TIME: Duration = Duration::from_secs(30);
const MAX_DOUBLINGS: u32 = 5;
/// After this time without a failure, earlier failures no longer count.
const FORGIVE_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
