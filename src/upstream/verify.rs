//! Verifies the apiserver's certificate, and on failure says what was presented.
//!
//! The verdict is webpki's alone: this type wraps its verifier only to keep the presented certificate,
//! which rustls forgets when it refuses one. It can turn no error into a success.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::pki::CertSummary;

/// webpki's verifier with a memory for what it refused.
#[derive(Debug)]
pub(super) struct ExplainingVerifier {
    webpki: Arc<WebPkiServerVerifier>,
}

/// Why a certificate was refused, and which certificate it was.
#[derive(Debug)]
pub struct VerifyFailure {
    expected: String,
    presented: Option<CertSummary>,
    cause: CertificateError,
}

impl ExplainingVerifier {
    /// A verifier that accepts chains to `roots` and nothing else.
    ///
    /// # Errors
    ///
    /// When `roots` is empty.
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, rustls::client::VerifierBuilderError> {
        Ok(Self {
            webpki: WebPkiServerVerifier::builder_with_provider(roots, provider).build()?,
        })
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
                let failure = VerifyFailure {
                    expected: server_name.to_str().into_owned(),
                    presented: CertSummary::of(end_entity).ok(),
                    cause,
                };
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(failure))))
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

impl VerifyFailure {
    /// What is wrong, in words that give nothing away; fit for a client.
    #[must_use]
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls adds causes; an unknown one is still a refusal"
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
            CertificateError::UnknownIssuer => "is not signed by the cluster CA",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "is not a server certificate"
            }
            CertificateError::Revoked => "is revoked",
            _ => "cannot be verified",
        }
    }
}

impl fmt::Display for VerifyFailure {
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

impl std::error::Error for VerifyFailure {}
