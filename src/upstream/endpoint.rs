//! Which apiserver a new lease dials, and which ones are ill.
//!
//! The last good set of addresses is kept when a lookup fails: DNS being down must not take a
//! running cluster away.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{addr::UpstreamAddr, telemetry::causes};

/// All addresses of one apiserver name.
#[derive(Debug)]
pub struct Endpoints {
    host: String,
    port: u16,
    addresses: ArcSwap<Vec<SocketAddr>>,
    next: AtomicUsize,
    ill_until: Mutex<HashMap<SocketAddr, Instant>>,
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
    /// Connections to it that exist.
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
    Well,
    /// The last try failed; it is passed over while there is another.
    Ill,
}

impl Endpoints {
    /// Endpoints of `host` (a name, or an address without brackets). A name has none until
    /// [`Endpoints::resolve`] found some.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let literal = host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        Self {
            host: host.to_owned(),
            port,
            addresses: ArcSwap::from_pointee(literal.into_iter().collect()),
            next: AtomicUsize::new(0),
            ill_until: Mutex::new(HashMap::new()),
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

    /// The endpoints to try for one new connection, best first, at most three: healthy ones
    /// in turn, then, rather than none at all, the ill ones.
    #[must_use]
    pub fn pick(&self) -> Vec<UpstreamAddr> {
        let addresses = self.addresses.load();
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = addresses
            .iter()
            .cycle()
            .skip(start % addresses.len().max(1))
            .take(addresses.len());
        let ill_until = self
            .ill_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if ill_until.is_empty() {
            return in_turn.take(MAX_TRIES).copied().map(UpstreamAddr).collect();
        }
        let now = Instant::now();
        let (healthy, ill): (Vec<_>, Vec<_>) = in_turn
            .copied()
            .partition(|address| ill_until.get(address).is_none_or(|until| *until <= now));
        healthy
            .into_iter()
            .chain(ill)
            .take(MAX_TRIES)
            .map(UpstreamAddr)
            .collect()
    }

    /// What is known of each endpoint, in the order of their addresses.
    #[must_use]
    pub fn health(&self) -> Vec<EndpointHealth> {
        let ill_until = self
            .ill_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let addresses = self.addresses.load();
        let each = addresses.iter().map(|address| EndpointHealth {
            address: UpstreamAddr(*address),
            state: match ill_until.get(address) {
                Some(until) if *until > now => Health::Ill,
                Some(_) | None => Health::Unknown,
            },
            since: now,
            leases: 0,
            why: None,
        });
        each.collect()
    }

    /// Passes over an endpoint for a while after it failed.
    pub fn mark_ill(&self, endpoint: UpstreamAddr) {
        let mut ill_until = self
            .ill_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ill_until.insert(endpoint.0, Instant::now() + ILL_FOR);
    }

    /// Takes an endpoint back after it worked.
    pub fn mark_well(&self, endpoint: UpstreamAddr) {
        let mut ill_until = self
            .ill_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ill_until.remove(&endpoint.0);
    }

    /// Looks the name up once and publishes all its addresses.
    ///
    /// # Errors
    ///
    /// When the lookup fails or finds nothing; the addresses known so far stay.
    pub async fn resolve(&self) -> io::Result<()> {
        let mut found: Vec<_> = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await?
            .collect();
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the name has no address",
            ));
        }
        found.sort_unstable();
        found.dedup();
        if **self.addresses.load() != found {
            info!(server.address = self.host, addresses = ?found, "upstream addresses changed");
            self.ill_until
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|address, _| found.contains(address));
            self.addresses.store(Arc::new(found));
        }
        Ok(())
    }

    /// Resolves the name every `interval` for as long as somebody else holds the endpoints; faster
    /// while no address is known at all. An address literal needs none of this.
    pub async fn keep_resolved(self: Arc<Self>, interval: Duration) {
        if self.host.parse::<IpAddr>().is_ok() {
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
                        error = %causes(&error),
                        "upstream name not resolved"
                    );
                    !this.addresses.load().is_empty()
                }
            };
            drop(this);
            tokio::time::sleep(if known {
                interval
            } else {
                interval.min(FIRST_LOOKUP_RETRY)
            })
            .await;
        }
    }
}

/// How many endpoints one request tries before it is answered with an error.
const MAX_TRIES: usize = 3;
/// How long an endpoint is passed over after a failure; short, because all may be restarting.
const ILL_FOR: Duration = Duration::from_secs(5);
/// How soon to look again while no address is known.
const FIRST_LOOKUP_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    impl Endpoints {
        /// A name that resolved to these.
        pub(in crate::upstream) fn resolved(addresses: &[SocketAddr]) -> Self {
            let endpoints = Self::new("apiserver.test", 6443);
            endpoints.addresses.store(Arc::new(addresses.to_vec()));
            endpoints
        }
    }

    fn two() -> (Endpoints, UpstreamAddr, UpstreamAddr) {
        let (a, b) = (
            SocketAddr::from(([127, 0, 0, 1], 1)),
            SocketAddr::from(([127, 0, 0, 2], 2)),
        );
        let endpoints = Endpoints::resolved(&[a, b]);
        (endpoints, UpstreamAddr(a), UpstreamAddr(b))
    }

    #[test]
    fn takes_turns() {
        let (endpoints, a, b) = two();
        assert_eq!(
            [
                endpoints.pick()[0],
                endpoints.pick()[0],
                endpoints.pick()[0]
            ],
            [a, b, a]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn passes_over_an_ill_endpoint_until_it_had_time_to_recover() {
        let (endpoints, a, b) = two();
        endpoints.mark_ill(a);
        assert_eq!(
            [endpoints.pick(), endpoints.pick()],
            [vec![b, a], vec![b, a]],
            "the ill one comes last"
        );
        tokio::time::advance(ILL_FOR).await;
        assert_eq!(endpoints.pick()[0], a);
    }

    #[tokio::test]
    async fn keeps_the_last_good_addresses_when_a_lookup_fails() {
        let (mut endpoints, a, _) = two();
        endpoints.host = "name.invalid".into();
        endpoints.resolve().await.unwrap_err();
        assert_eq!(endpoints.pick()[0], a);
    }

    #[test]
    fn an_address_literal_needs_no_lookup() {
        assert_eq!(
            Endpoints::new("::1", 6443).pick(),
            [UpstreamAddr("[::1]:6443".parse().unwrap())]
        );
    }
}
