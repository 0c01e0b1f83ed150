//! What the proxy knows about each client: the places that its connections take, its share of the handshakes, and its
//! budgets of requests and of refused credentials.
//!
//! A client is an IPv4 address or the /64 of an IPv6 address, because one host can use all addresses of a /64.
//! A load balancer that names its clients in PROXY headers is no client: until the header has arrived, its connections
//! are unnamed. An HTTP proxy in front is the client of its connections, but not of its requests.
//! All state is shared by the workers. It is locked when a connection begins or ends. A request locks it only if the
//! apiserver has refused a credential of the same client before, if `limits.requestsPerClient` is set, or if a trusted
//! HTTP proxy names the client of the request.

mod budget;
mod place;
mod table;

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Semaphore;

use self::budget::{BudgetSizes, ClientBudget};
pub(crate) use budget::has_credential;
pub use budget::{BudgetCheck, CheckedCredential, Throttled};
pub use place::{Closing, Place};
pub use table::{ClientTable, Refusal};

/// The addresses that count as one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientPrefix(IpAddr);

impl ClientPrefix {
    /// The client with this address. An IPv4 client of a dual-stack socket is an IPv4 client.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let host_part = u128::from(u64::MAX);
                Ipv6Addr::from_bits(address.to_bits() & !host_part).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

impl fmt::Display for ClientPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

/// What all connections of one client share.
#[derive(Debug)]
pub struct Client {
    prefix: ClientPrefix,
    /// Slots for its TLS handshakes: half of `limits.handshakes`, so that the other half is free for others.
    pub handshakes: Semaphore,
    budget: ClientBudget,
    /// Requests that a proxy in front has sent for it, on connections of that proxy.
    forwarded: AtomicU64,
}

impl Client {
    fn new(prefix: ClientPrefix, handshakes: usize, budgets: &BudgetSizes) -> Arc<Self> {
        Arc::new(Self {
            prefix,
            handshakes: Semaphore::new(handshakes),
            budget: ClientBudget::new(budgets),
            forwarded: AtomicU64::new(0),
        })
    }

    /// Counts a request that a proxy in front has sent for this client.
    pub fn count_forwarded(&self) {
        self.forwarded.fetch_add(1, Ordering::Relaxed);
    }
}

/// Changes how many permits `semaphore` has. Permits that are in use are taken away when they come back: the result
/// waits for them, and no permit is free before that.
pub fn resize(
    semaphore: &Arc<Semaphore>,
    before: usize,
    now: usize,
) -> impl Future<Output = ()> + Send + 'static {
    semaphore.add_permits(now.saturating_sub(before));
    let less = before.saturating_sub(now);
    let in_use = less - semaphore.forget_permits(less);
    let semaphore = Arc::clone(semaphore);
    async move {
        let in_use = u32::try_from(in_use).unwrap_or(u32::MAX);
        // It fails only if the semaphore is closed, which none is.
        if let Ok(permits) = semaphore.acquire_many(in_use).await {
            permits.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_an_ipv4_address_or_an_ipv6_64() {
        for (address, client) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::", "2001:db8:1:3::/64"),
            ("::1", "::/64"),
        ] {
            let prefix = ClientPrefix::new(address.parse().unwrap());
            assert_eq!(prefix.to_string(), client);
        }
    }
}
