//! TLS to the apiserver: trust anchors, expected name, ALPN, and the verification of its certificate.
//!
//! webpki alone decides whether a certificate is accepted. The verifier here wraps webpki's only to keep
//! the presented certificate, which rustls drops when it refuses one; it cannot turn an error into a
//! success.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::pki::{self, CertSummary};

/// The TLS settings for the endpoints of one cluster. Built again when the trust anchors change, so that
/// no session of an older trust generation can be resumed.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Offers h2 and, if the apiserver does not want it, HTTP/1.1.
    pub(super) h2: Arc<ClientConfig>,
    /// Offers HTTP/1.1 only: for HTTP/1.1 clients and for every upgrade.
    pub(super) h1: Arc<ClientConfig>,
    /// The name or address that the certificate must carry. A DNS name also goes out as SNI, an IP
    /// address does not (RFC 6066 §3).
    pub(super) name: ServerName<'static>,
}

impl ClientTls {
    /// Settings that trust `roots` only, and only a server whose certificate carries `name`.
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
    ) -> Result<Self, VerifierBuilderError> {
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
    pub(crate) fn expected_name(&self) -> String {
        self.name.to_str().into_owned()
    }
}

/// webpki's verifier, which also reports the certificate that it refused.
#[derive(Debug)]
struct ExplainingVerifier {
    webpki: Arc<WebPkiServerVerifier>,
}

impl ExplainingVerifier {
    fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let webpki = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self { webpki })
    }
}

impl ServerCertVerifier for ExplainingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.webpki
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| {
                let Error::InvalidCertificate(cause) = error else {
                    return error;
                };
                let error = VerifyError {
                    expected: server_name.to_str().into_owned(),
                    presented: CertSummary::from_der(end_entity).ok(),
                    cause,
                };
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
            })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Why a certificate was refused, and which certificate it was.
#[derive(Debug)]
pub struct VerifyError {
    expected: String,
    presented: Option<CertSummary>,
    cause: CertificateError,
}

impl VerifyError {
    /// The error that webpki found.
    pub(crate) fn cause(&self) -> &CertificateError {
        &self.cause
    }

    /// Subject, names and validity of the refused certificate; `None` if it is not an X.509 certificate.
    pub(crate) fn presented(&self) -> Option<&CertSummary> {
        self.presented.as_ref()
    }

    /// The cause as a phrase that reveals no address or name, so that it can be sent to a client.
    #[must_use]
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls may add causes; an unknown cause still refuses"
    )]
    pub fn reason(&self) -> &'static str {
        match &self.cause {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "is for another name"
            }
            // webpki finds a bad signature when the issuer has the CA's name but another key: kubeadm
            // calls the CA of every cluster `kubernetes`.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "is not signed by the cluster CA"
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "is not a server certificate"
            }
            CertificateError::Revoked => "is revoked",
            _ => "cannot be verified",
        }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the certificate {} (expected {}; presented ",
            self.reason(),
            self.expected
        )?;
        match &self.presented {
            Some(summary) => write!(f, "{summary})"),
            None => f.write_str("something that is not an X.509 certificate)"),
        }
    }
}

impl std::error::Error for VerifyError {}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// The log text for a certificate of `a.test` when `name` is expected.
    fn refusal(roots: &standin::pki::Ca, name: &str, leaf: &CertificateDer<'_>) -> String {
        let roots = Arc::new(roots.roots());
        let verifier = ExplainingVerifier::new(roots, pki::provider()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let error = verifier
            .verify_server_cert(leaf, &[], &name, &[], now)
            .unwrap_err();
        let Error::InvalidCertificate(CertificateError::Other(cause)) = &error else {
            panic!("{error:?}");
        };
        assert!(cause.0.downcast_ref::<VerifyError>().is_some());
        assert!(error.source().is_none(), "Display holds everything");
        cause.to_string()
    }

    #[test]
    fn error_names_expected_and_presented_certificate() {
        let ca = standin::pki::Ca::new("cluster");
        let leaf = ca.server(&["a.test", "192.0.2.1"]).chain[0].clone();
        let message = refusal(&ca, "b.test", &leaf);
        for part in [
            "the certificate is for another name",
            "expected b.test",
            "a.test",
            "192.0.2.1",
            "cluster",
        ] {
            assert!(message.contains(part), "{part:?} in {message:?}");
        }
    }

    #[test]
    fn error_names_the_cause() {
        let ca = standin::pki::Ca::new("cluster");
        let leaf = || ca.leaf(&["a.test"]);
        let same_name = standin::pki::Ca::new("cluster");
        for (identity, reason) in [
            (leaf().expired().build(), "has expired"),
            (leaf().not_yet_valid().build(), "is not valid yet"),
            (leaf().client_auth().build(), "is not a server certificate"),
            (ca.leaf(&[]).build(), "is for another name"),
            (
                same_name.server(&["a.test"]),
                "is not signed by the cluster CA",
            ),
            (
                standin::pki::Ca::new("other").server(&["a.test"]),
                "is not signed by the cluster CA",
            ),
        ] {
            let message = refusal(&ca, "a.test", &identity.chain[0]);
            let expected = format!("the certificate {reason} (expected a.test; presented ");
            assert!(message.starts_with(&expected), "{message:?}");
        }
    }

    #[test]
    fn error_says_when_the_bytes_are_no_certificate() {
        let ca = standin::pki::Ca::new("cluster");
        let message = refusal(&ca, "a.test", &CertificateDer::from(vec![1, 2, 3]));
        assert!(
            message.ends_with(
                "(expected a.test; presented something that is not an X.509 certificate)"
            ),
            "{message:?}"
        );
    }
}
