//! The servers that a check connects to: how they are reached, how they are verified, and what messages call them.

use std::net::SocketAddr;

use rustls::client::VerifierBuilderError;

use super::Through;
use crate::{
    config::{ClusterConfig, Config, Timeouts, TrustSource, authority},
    pki::{CertSummary, ClientIdentity, TrustAnchors, public_roots},
    quote,
    upstream::{ClientTls, OutboundRoute},
};

/// The role of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetRole {
    /// The apiserver, dialled as the proxy dials it.
    Apiserver,
    /// The proxy, dialled as clients dial it.
    Proxy,
}

/// A server to check.
#[derive(Debug, Clone)]
pub(super) struct CheckTarget {
    pub(super) role: TargetRole,
    pub(super) host: String,
    pub(super) port: u16,
    /// Used instead of the addresses that `host` resolves to; usually empty.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) tls: ClientTls,
    /// Prepended to every path; usually empty.
    pub(super) prefix: String,
    /// The host of the requests.
    pub(super) authority: String,
    /// Names the trust anchors in messages.
    pub(super) trusted: String,
    /// The certificates that clients of the proxy trust instead of the public CAs.
    pub(super) anchors: Vec<CertSummary>,
    /// The outbound proxy on the way to it, whose host and port are then those above.
    pub(super) outbound: Option<OutboundRoute>,
    /// Where the operator wrote host and port.
    pub(super) url: String,
    pub(super) timeouts: Timeouts,
}

impl CheckTarget {
    /// The apiserver of `cluster`; `certificate_names` are those that the proxy has certificates for.
    pub(super) fn from_cluster(
        cluster: &ClusterConfig,
        (tls, outbound): (ClientTls, Option<OutboundRoute>),
        certificate_names: &[String],
        config: &Config,
    ) -> Self {
        let (host, port, url) = match &cluster.outbound {
            Some(proxy) => (&proxy.host, proxy.port, "the URL of the outbound proxy"),
            None => (
                &cluster.upstream_host,
                cluster.upstream_port,
                &*cluster.url_place,
            ),
        };
        Self {
            role: TargetRole::Apiserver,
            addresses: cluster.addresses.clone(),
            tls,
            prefix: cluster.path_prefix.clone(),
            authority: cluster.own_request_host(certificate_names),
            trusted: match &cluster.trust {
                TrustSource::File(file) => format!("the CA in {}", quote::path(file)),
                TrustSource::Inline { origin, .. } => format!("the CA of {origin}"),
                TrustSource::Clients => "a CA that only clients know".to_owned(),
            },
            anchors: Vec::new(),
            url: url.to_owned(),
            timeouts: config.timeouts.clone(),
            host: host.clone(),
            port,
            outbound,
        }
    }

    /// The proxy at the URL of `--through`.
    ///
    /// # Errors
    ///
    /// As [`ClientTls::new`].
    pub(super) fn from_through(
        through: &Through,
        client_trust: Option<&(String, TrustAnchors)>,
    ) -> Result<Self, VerifierBuilderError> {
        let (roots, trusted) = match client_trust {
            Some((file, anchors)) => (anchors.roots(), format!("the CA in {file}")),
            None => (public_roots(), "a public CA".to_owned()),
        };
        let (host, port, place) = through.server();
        Ok(Self {
            role: TargetRole::Proxy,
            host,
            port,
            outbound: None,
            addresses: Vec::new(),
            tls: ClientTls::new(roots, through.server_name.clone())?,
            prefix: through.prefix.clone(),
            authority: authority(&through.host, through.port),
            trusted,
            anchors: client_trust
                .map_or_else(Vec::new, |(_, anchors)| anchors.summaries().to_vec()),
            url: place.to_owned(),
            timeouts: Timeouts::default(),
        })
    }

    /// The apiserver of a passthrough cluster, which `host` of the cluster leads to through the proxy at `through`.
    pub(super) fn passed(self, through: &Through) -> Self {
        let (host, port, place) = through.server();
        Self {
            host,
            port,
            outbound: None,
            addresses: Vec::new(),
            url: place.to_owned(),
            ..self
        }
    }

    /// The same server, to which the client presents this certificate.
    pub(super) fn presenting(&self, identity: &ClientIdentity) -> Self {
        Self {
            tls: self.tls.presenting(identity.certified_key()),
            ..self.clone()
        }
    }

    /// The server at an address in a sentence about its TLS.
    pub(super) fn place(&self, address: SocketAddr) -> String {
        match &self.outbound {
            Some(route) => format!("{} through {}", route.apiserver(), route.proxy()),
            None => address.to_string(),
        }
    }

    /// Returns the first text for an apiserver and the second for the proxy.
    pub(super) fn by_role(&self, apiserver: &'static str, proxy: &'static str) -> &'static str {
        match self.role {
            TargetRole::Apiserver => apiserver,
            TargetRole::Proxy => proxy,
        }
    }

    /// The server in a sentence.
    pub(super) fn server(&self) -> &'static str {
        self.by_role("the apiserver", "the proxy")
    }

    /// What to do when the server wants a client certificate.
    pub(super) fn client_certificate_fix(&self) -> &'static str {
        self.by_role(
            "check the port (an apiserver usually listens on 6443 or 443, etcd on 2379), and a service mesh or load balancer in front of the apiserver: it must not ask for a client certificate, because the proxy has none",
            "check the load balancer or service mesh in front of the proxy: it must not ask for a client certificate, or clients must have one for it",
        )
    }
}
