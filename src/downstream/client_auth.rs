//! Asks clients for a certificate in the handshake, and accepts any that the client has the key of.
//!
//! Whether the certificate counts is decided for each request (`proxy::identity`): one that does not count must not
//! break a token, and an expired one must stop counting while its connection is open.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, ServerConfig,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::certificates::with_client_auth;
use crate::pki::{self, Identity};

/// Settings that present one of `identities` and ask for a certificate of one of these CAs. No session is resumed: a
/// resumed one would bring a certificate without the proof that the client has its key.
#[must_use]
pub fn asking_server_config(identities: &[Identity], cas: Vec<DistinguishedName>) -> ServerConfig {
    let verifier = AnyOwnedCertificate {
        cas,
        provider: pki::provider(),
    };
    let mut config = with_client_auth(identities, Arc::new(verifier));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// Asks for a certificate, and checks only that the client has its key.
#[derive(Debug)]
struct AnyOwnedCertificate {
    cas: Vec<DistinguishedName>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyOwnedCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.cas
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bytes = issuers.iter().map(|issuer| issuer.len()).sum::<usize>() + leaf.len();
        if bytes > MAX_CHAIN_BYTES || issuers.len() > MAX_ISSUERS {
            let error = OtherError(Arc::new(ChainTooLargeError));
            return Err(CertificateError::Other(error).into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The connection would hold the chain to its end, and verifying it would cost too much.
#[derive(Debug, thiserror::Error)]
#[error("the chain of the client certificate is too large")]
struct ChainTooLargeError;

/// A certificate of kubeadm has less than 2 KiB.
const MAX_CHAIN_BYTES: usize = 16 * 1024;
const MAX_ISSUERS: usize = 4;
