//! Sends one request on an upstream connection that its client leases.
//!
//! [`ClientLeases::send`] finds a connection in the client's `lease::table`, in the idle pool of the worker
//! ([`UpstreamContext`]), or through `dial`, which picks an endpoint and verifies it (`tls`). `h2` or `h1`
//! then sends the request and returns the response, which becomes a [`ResponseBody`].

mod context;
mod dial;
mod discover;
mod endpoint;
mod error;
mod front_proxy;
mod h1;
mod h2;
mod handshake_turns;
mod http2_body;
mod lease;
mod outbound;
mod own_get;
mod passthrough;
mod probe;
mod request_body;
mod sockets;
mod tls;
mod upload_pace;
mod user_naming;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header, uri::Authority};

pub use crate::http1::{MessageError, Upgraded};
use crate::{metrics::ClusterLabel, text::error_chain};
pub use context::UpstreamContext;
pub(crate) use dial::{Offer, TcpConnected};
pub(crate) use discover::{DiscoveryError, ReadSlice};
pub use endpoint::{ConnectTimes, DiscoveryReport, EndpointHealth, Endpoints, Health};
pub use error::{DownloadError, H1Error, HttpError, UploadError, UpstreamError};
pub use front_proxy::FrontProxy;
pub(crate) use http2_body::UnreadBody;
pub use lease::{ClientLeases, Origin, ResponseBody};
pub use outbound::{OutboundError, OutboundRoute, SocksRefusal};
pub(crate) use passthrough::{NoAnswer, PassedHello};
pub use request_body::{ReplayBudget, RequestBody};
pub use sockets::SpareSockets;
pub use tls::{ClientTls, VerifyError, WrongKeyError};
pub use user_naming::{
    NamingError, NamingRight, RemoteUser, UpstreamRequest, UserNaming, is_impersonating,
};

/// The fuzz bodies of this module: the frames of HTTP/2, the addresses of apiservers, and the responses of outbound
/// proxies.
pub(crate) const FUZZ: [fn(&[u8]); 3] = [h2::fuzz, discover::fuzz, outbound::fuzz];

/// The apiserver of one cluster, in one trust generation.
#[derive(Debug)]
pub struct Cluster {
    /// The number of this generation; leases and idle connections are found by it.
    id: u64,
    label: ClusterLabel,
    path_prefix: String,
    endpoints: Arc<Endpoints>,
    tls: ClientTls,
    /// Replaces the host of each request; `None` keeps the client's.
    authority: Option<Authority>,
    /// The host that probes ask for, as the requests of clients do.
    probe_host: String,
    /// Whether clients speak TLS with the apiserver themselves. No request is then sent to this cluster.
    is_passthrough: bool,
    /// The proxy on the way to it, whose addresses are then those of `endpoints`.
    outbound: Option<OutboundRoute>,
    /// Dropped with this generation, so that a connection can tell whether a reload has replaced it.
    in_use: Arc<()>,
}

impl Cluster {
    /// A cluster of a new trust generation: connections of an older one are not used for it.
    #[must_use]
    pub fn new(
        label: ClusterLabel,
        path_prefix: String,
        endpoints: Arc<Endpoints>,
        tls: ClientTls,
    ) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            label,
            path_prefix,
            endpoints,
            probe_host: tls.expected_name(),
            tls,
            authority: None,
            is_passthrough: false,
            outbound: None,
            in_use: Arc::default(),
        }
    }

    /// This cluster, with the host that each request asks for, or `None` for the client's, and the host that probes ask
    /// for.
    #[must_use]
    pub fn with_hosts(mut self, authority: Option<Authority>, probe_host: String) -> Self {
        (self.authority, self.probe_host) = (authority, probe_host);
        self
    }

    /// This cluster, to which connections are passed as they are. `tls` is then for probes only.
    #[must_use]
    pub fn passed_through(mut self) -> Self {
        self.is_passthrough = true;
        self
    }

    /// This cluster, reached through an outbound proxy. Its endpoints are then the addresses of that proxy.
    #[must_use]
    pub fn reached_through(mut self, outbound: Option<OutboundRoute>) -> Self {
        self.outbound = outbound;
        self
    }

    /// Whether clients speak TLS with the apiserver themselves, so that the proxy sends no request to it.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.is_passthrough
    }

    /// The host that every request must ask for; `None` if it is the client's.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// The name in log lines and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        self.label.name()
    }

    /// The name as a label of its counters.
    #[must_use]
    pub fn label(&self) -> &ClusterLabel {
        &self.label
    }

    /// The prefix of every path.
    #[must_use]
    pub fn path_prefix(&self) -> &str {
        &self.path_prefix
    }

    /// An error of a dial with its causes, for the health of an endpoint. Beyond an outbound proxy the address is not
    /// that of an apiserver, so the text names the proxy.
    fn describe(&self, error: &UpstreamError) -> String {
        let chain = error_chain(error);
        match &self.outbound {
            Some(route) if !matches!(error, UpstreamError::Outbound { .. }) => {
                format!("through the outbound proxy {}: {chain}", route.proxy())
            }
            Some(_) | None => chain.to_string(),
        }
    }

    /// Its addresses and their health.
    #[must_use]
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }
}

/// The `Authorization` of a request, kept in the extensions of the 401 with which the apiserver has refused it.
#[derive(Debug, Clone)]
pub(crate) struct RefusedAuthorization(HeaderValue);

impl RefusedAuthorization {
    /// Keeps the credential of a request, if the response refuses it. Any other request costs nothing.
    fn keep_for<B>(response: &mut Response<B>, request: &HeaderMap) {
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(authorization) = request.get(header::AUTHORIZATION)
        {
            let mut authorization = authorization.clone();
            authorization.set_sensitive(true);
            response.extensions_mut().insert(Self(authorization));
        }
    }

    /// The field value.
    pub(crate) fn authorization(&self) -> &HeaderValue {
        &self.0
    }
}

/// Locks `mutex` even after a panic of another thread: no panic leaves the data of this module half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
