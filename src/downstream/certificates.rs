//! The TLS settings of a snapshot: which certificate a client gets, by the name that it asks for.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    server::{
        ClientHello, NoClientAuth, ProducesTickets, ResolvesServerCert, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
};

use crate::{
    hosts::{HostMap, HostName},
    pki::{self, Identity},
};

/// Returns settings that present one of `identities`, chosen by SNI, or the first one without SNI or with an
/// unknown name. `tickets` outlives the settings, so that clients can resume their sessions after a reload.
///
/// # Panics
///
/// Never: aws-lc-rs supports both versions of TLS.
#[must_use]
pub fn server_config(identities: &[Identity], tickets: Arc<dyn ProducesTickets>) -> ServerConfig {
    let mut config = with_client_auth(identities, Arc::new(NoClientAuth));
    config.ticketer = tickets;
    config
}

/// Settings that present one of `identities` and treat the certificates of clients like this.
pub(super) fn with_client_auth(
    identities: &[Identity],
    verifier: Arc<dyn ClientCertVerifier>,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports TLS 1.2 and 1.3")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(CertificateBySni::new(identities)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Chooses the certificate for a name, by the SANs of the certificates.
#[derive(Debug)]
struct CertificateBySni {
    by_name: HostMap<Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl CertificateBySni {
    fn new(identities: &[Identity]) -> Self {
        let mut by_name = HostMap::default();
        for identity in identities {
            for name in identity.names() {
                // Of two certificates for one name the first wins, as it does for the default.
                by_name.insert(name, identity.certified_key());
            }
        }
        Self {
            by_name,
            default: identities.first().map(Identity::certified_key),
        }
    }
}

impl ResolvesServerCert for CertificateBySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(HostName::new);
        name.and_then(|name| self.by_name.get(&name))
            .or(self.default.as_ref())
            .cloned()
    }
}
