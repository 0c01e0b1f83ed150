//! TLS towards the apiserver: trust anchors, expected name, ALPN.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;

use super::verify::ExplainingVerifier;
use crate::pki;

/// How one cluster's endpoints are spoken to. Built anew when the trust anchors change, so that no
/// session of an older trust generation can be resumed.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Offers h2 and, should the apiserver not want it, HTTP/1.1.
    pub(super) h2: Arc<ClientConfig>,
    /// Offers HTTP/1.1 only: for HTTP/1.1 clients and for every upgrade.
    pub(super) h1: Arc<ClientConfig>,
    /// What the certificate must carry. A DNS name also goes out as SNI, an IP address does not
    /// (RFC 6066 §3).
    pub(super) name: ServerName<'static>,
}

impl ClientTls {
    /// Settings that trust `roots` and nothing else, for a server that proves to be `name`.
    ///
    /// # Errors
    ///
    /// When `roots` is empty.
    ///
    /// # Panics
    ///
    /// Never: aws-lc-rs supports both versions of TLS.
    pub fn new(
        roots: Arc<RootCertStore>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        let provider = pki::provider();
        let verifier = Arc::new(ExplainingVerifier::new(roots, Arc::clone(&provider))?);
        let mut h1 = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs supports TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        h1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut h2 = h1.clone();
        h2.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            h2: Arc::new(h2),
            h1: Arc::new(h1),
            name,
        })
    }

    /// The name or address that the certificate must carry.
    pub(crate) fn expects(&self) -> String {
        self.name.to_str().into_owned()
    }
}
