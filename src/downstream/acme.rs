//! Decides about a `ClientHello` while certificates come from a CA by ACME: it gets the answer to a challenge, an alert
//! because the certificate does not exist yet, or the handshake that all other clients get.
//!
//! A challenge ends with its handshake. Its TLS settings offer no protocol of a client, and the connection is closed.

use std::sync::Arc;

use rustls::{ServerConfig, server::ClientHello};

use crate::{
    hosts::{HostMap, HostName},
    pki::{ACME_TLS, AcmeChallenges},
};

/// The names for which a snapshot answers challenges, and those without a certificate.
#[derive(Debug)]
pub struct AcmeNames {
    challenges: Arc<AcmeChallenges>,
    pending: HostMap<()>,
    has_certificate: bool,
}

/// What a `ClientHello` gets.
#[derive(Debug)]
pub(super) enum AcmeReply {
    /// The handshake that answers a challenge.
    Challenge(Arc<ServerConfig>),
    /// An alert.
    NoCertificate,
    /// The handshake of a client.
    Ordinary,
}

impl AcmeNames {
    /// `pending` are the names of the certificates that a CA has yet to issue; `has_certificate` says whether another
    /// one exists.
    #[must_use]
    pub fn new(challenges: Arc<AcmeChallenges>, pending: &[String], has_certificate: bool) -> Self {
        let mut names = HostMap::default();
        for name in pending {
            names.insert(name, ());
        }
        Self {
            challenges,
            pending: names,
            has_certificate,
        }
    }

    /// Decides by server name and ALPN. A CA offers `acme-tls/1` alone (RFC 8737 §3). Without a challenge for its name
    /// it gets the handshake of a client, which fails because no protocol fits.
    pub(super) fn reply(&self, hello: &ClientHello<'_>) -> AcmeReply {
        let name = hello.server_name();
        let mut protocols = hello.alpn().into_iter().flatten();
        if (protocols.next(), protocols.next()) == (Some(ACME_TLS), None)
            && let Some(answer) = name.and_then(|name| self.challenges.find(name))
        {
            return AcmeReply::Challenge(answer);
        }
        let is_pending = name.is_some_and(|name| self.pending.get(&HostName::new(name)).is_some());
        if is_pending || !self.has_certificate {
            AcmeReply::NoCertificate
        } else {
            AcmeReply::Ordinary
        }
    }
}
