//! The connections on which the proxy says who the user is.
//!
//! An apiserver believes every `X-Remote-*` field on a connection with the front-proxy certificate, and refuses every
//! request there that has none. So a request gets these fields only together with such a connection, and in no other
//! way: no code but `user_naming` sees the [`Cluster`] in a [`FrontProxy`].

use std::{sync::Arc, time::SystemTime};

use super::{ClientTls, Cluster};
use crate::pki::ClientIdentity;

/// The connections to one cluster on which the proxy says who the user is.
#[derive(Debug)]
pub struct FrontProxy {
    /// A generation of its own, so that no lease and no idle connection of it is found for other requests.
    pub(super) connections: Cluster,
    not_after: SystemTime,
    sha256: String,
}

impl FrontProxy {
    /// Connections to the endpoints of `cluster`, with this certificate.
    #[must_use]
    pub fn new(cluster: &Cluster, identity: &ClientIdentity) -> Self {
        let tls = cluster.tls.presenting(identity.certified_key());
        let leaf = identity.summary();
        Self {
            connections: cluster.with_tls(tls),
            not_after: leaf.not_after,
            sha256: leaf.sha256.clone(),
        }
    }

    /// Whether the certificate has expired.
    #[must_use]
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.not_after < now
    }

    /// Whether it presents this certificate.
    #[must_use]
    pub fn presents(&self, identity: &ClientIdentity) -> bool {
        self.sha256 == identity.summary().sha256
    }
}

impl Cluster {
    /// The same apiserver in a generation of its own, with these TLS settings.
    fn with_tls(&self, tls: ClientTls) -> Self {
        let (label, prefix) = (self.label.clone(), self.path_prefix.clone());
        Self::new(label, prefix, Arc::clone(&self.endpoints), tls)
            .with_hosts(self.authority.clone(), self.probe_host.clone())
    }
}
