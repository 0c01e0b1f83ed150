//! Which apiserver a new lease dials, and which ones are ill.
//!
//! The last good set of addresses is kept when a lookup fails: DNS being down must not take a
//! running cluster away. An endpoint that is ill is passed over only while another one is not.

mod health;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};
use tracing::{info, warn};

pub(super) use health::Endpoint;

use crate::{hosts::UpstreamAddr, text::error_chain};
use health::with_jitter;

/// All addresses of one apiserver.
#[derive(Debug)]
pub struct Endpoints {
    host: String,
    port: u16,
    /// The addresses were configured, or the host is one: nothing is looked up.
    is_fixed: bool,
    list: ArcSwap<Vec<Arc<Endpoint>>>,
    turn: AtomicUsize,
    /// Held while the list is looked at as a whole and the outcome is written down.
    ejection_update: Mutex<()>,
    /// Somebody had reason to doubt an endpoint.
    request_probe: Notify,
}

/// What is known of one endpoint.
#[derive(Debug, Clone)]
pub struct EndpointHealth {
    /// Where it is.
    pub address: UpstreamAddr,
    /// How it is.
    pub state: Health,
    /// Since when it is so.
    pub since: Instant,
    /// Connections to it that exist, or are being made.
    pub leases: usize,
    /// Why it is ill, as a fragment for people; causes and addresses are in it.
    pub why: Option<String>,
}

/// Whether an endpoint works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Nobody has tried it yet.
    Unknown,
    /// The last try worked: a verified connection, or an answer to a probe.
    Healthy,
    /// The last try failed; it is passed over while there is another.
    Unhealthy,
}

impl Endpoints {
    /// Endpoints of `host` (a name, or an address without brackets). A name has none until
    /// [`Endpoints::resolve`] found some.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let literal = host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        let addresses: Vec<_> = literal.into_iter().collect();
        Self::with(host, port, !addresses.is_empty(), &addresses)
    }

    /// Endpoints at these addresses and no others; `host` is not looked up.
    #[must_use]
    pub fn fixed(host: &str, port: u16, addresses: &[SocketAddr]) -> Self {
        Self::with(host, port, true, addresses)
    }

    fn with(host: &str, port: u16, is_fixed: bool, addresses: &[SocketAddr]) -> Self {
        let endpoints = addresses.iter().map(|address| UpstreamAddr(*address));
        Self {
            host: host.to_owned(),
            port,
            is_fixed,
            list: ArcSwap::from_pointee(
                endpoints
                    .map(|address| Arc::new(Endpoint::new(address)))
                    .collect(),
            ),
            turn: AtomicUsize::new(0),
            ejection_update: Mutex::new(()),
            request_probe: Notify::new(),
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

    /// What is known of each endpoint, in the order of their addresses.
    #[must_use]
    pub fn health(&self) -> Vec<EndpointHealth> {
        let list = self.list.load();
        list.iter().map(|endpoint| endpoint.health()).collect()
    }

    /// The endpoints to try for one new connection, best first, at most three: those that are not ill,
    /// the one with the fewest connections first and equal ones in turn; then, rather than none at
    /// all, the ill ones.
    pub(super) fn pick(&self) -> Vec<Arc<Endpoint>> {
        let list = self.list.load();
        if let [only] = list.as_slice() {
            return vec![Arc::clone(only)];
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % list.len().max(1);
        let in_turn = list.iter().cycle().skip(start).take(list.len());
        // Looked at once each, because both can change while they are compared.
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

    /// Takes an endpoint back after it worked.
    pub(super) fn mark_healthy(&self, endpoint: &Endpoint) {
        if endpoint.set_healthy() {
            self.update_ejections();
            info!(
                server.address = self.host,
                upstream.address = %endpoint.address(),
                "upstream endpoint healthy"
            );
        }
    }

    /// Passes over an endpoint after it failed, if there is another.
    pub(super) fn mark_unhealthy(&self, endpoint: &Endpoint, why: String) {
        if endpoint.set_unhealthy(why) {
            self.update_ejections();
            // So that it is taken back soon after what was only a moment.
            self.request_probe.notify_waiters();
        }
    }

    /// Says that an endpoint is slower than it should be, so that it is probed now.
    pub(super) fn request_probe(&self) {
        self.request_probe.notify_waiters();
    }

    /// Every doubt from now on; the probes of a round have some too.
    pub(super) fn probe_requests(&self) -> Notified<'_> {
        self.request_probe.notified()
    }

    /// Waits for the next round of probes: an interval, or one of these probe_requests to look into.
    pub(super) async fn next_round(&self, probe_requests: Notified<'_>, interval: Duration) {
        if tokio::time::timeout(with_jitter(interval), probe_requests)
            .await
            .is_ok()
        {
            // The endpoint that failed a moment ago, not the very moment.
            tokio::time::sleep(with_jitter(REPROBE_DELAY).min(interval)).await;
        }
    }

    /// All endpoints there are now.
    pub(super) fn all(&self) -> Vec<Arc<Endpoint>> {
        self.list.load().to_vec()
    }

    /// Which endpoints are worth a probe: all, so that illness is found before a request finds it; a
    /// single one only as long as it is not known to be well, for there is no other to turn to.
    pub(super) fn probe_targets(&self) -> Vec<Arc<Endpoint>> {
        let list = self.list.load();
        let is_single = list.len() == 1;
        let worth = list
            .iter()
            .filter(|endpoint| !is_single || endpoint.state() != Health::Healthy);
        worth.cloned().collect()
    }

    /// Says of each endpoint whether it is passed over. One thread after the other: what an older look has
    /// found, written behind what a newer one has, would stay until the next change.
    fn update_ejections(&self) {
        let _alone = self
            .ejection_update
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let list = self.list.load();
        let any_healthy = list
            .iter()
            .any(|endpoint| endpoint.state() == Health::Healthy);
        for endpoint in list.iter() {
            endpoint.set_ejected(any_healthy && endpoint.state() == Health::Unhealthy);
        }
    }

    /// Looks the name up once and publishes all its addresses.
    ///
    /// # Errors
    ///
    /// When the lookup fails or finds nothing; the addresses known so far stay.
    pub async fn resolve(&self) -> io::Result<()> {
        if self.is_fixed {
            return Ok(());
        }
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
        self.publish(&found);
        Ok(())
    }

    /// Takes these addresses in place of the old ones; what is known of those that stay is kept.
    fn publish(&self, found: &[UpstreamAddr]) {
        let old = self.list.load();
        if old
            .iter()
            .map(|known| known.address())
            .eq(found.iter().copied())
        {
            return;
        }
        let list = found.iter().map(|address| {
            let known = old.iter().find(|known| known.address() == *address);
            known.map_or_else(|| Arc::new(Endpoint::new(*address)), Arc::clone)
        });
        self.list.store(Arc::new(list.collect()));
        self.update_ejections();
        self.request_probe.notify_waiters();
        let addresses: Vec<_> = found.iter().map(ToString::to_string).collect();
        info!(
            server.address = self.host,
            addresses = addresses.join(", "),
            "upstream addresses changed"
        );
    }

    /// Resolves the name every `interval` for as long as somebody else holds the endpoints; faster
    /// while no address is known at all. Fixed addresses need none of this.
    pub async fn keep_resolved(self: Arc<Self>, interval: Duration) {
        if self.is_fixed {
            return;
        }
        let endpoints = Arc::downgrade(&self);
        drop(self);
        while let Some(this) = endpoints.upgrade() {
            let known = match this.resolve().await {
                Ok(()) => true,
                Err(error) => {
                    warn!(
                        server.address = this.host,
                        error = %error_chain(&error),
                        "upstream name not resolved"
                    );
                    !this.list.load().is_empty()
                }
            };
            drop(this);
            tokio::time::sleep(if known {
                interval
            } else {
                interval.min(UNRESOLVED_RETRY)
            })
            .await;
        }
    }
}

/// How many endpoints one request tries before it is answered with an error.
const MAX_TRIES: usize = 3;
/// How soon to look again while no address is known.
const UNRESOLVED_RETRY: Duration = Duration::from_secs(1);
/// How soon an endpoint that failed is probed: behind the pause of its first failure, in which it would not
/// be taken back, whatever the jitter of both.
const REPROBE_DELAY: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests;
