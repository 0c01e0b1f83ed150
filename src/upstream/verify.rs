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
pub struct VerifyError {
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
                let failure = VerifyError {
                    expected: server_name.to_str().into_owned(),
                    presented: CertSummary::from_der(end_entity).ok(),
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

impl VerifyError {
    /// What webpki found.
    pub(crate) fn cause(&self) -> &CertificateError {
        &self.cause
    }

    /// What the refused certificate says about itself, if it is one.
    pub(crate) fn presented(&self) -> Option<&CertSummary> {
        self.presented.as_ref()
    }

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
            // A bad signature is what webpki finds when the issuer has the CA's name and not its key:
            // kubeadm calls the CA of every cluster `kubernetes`.
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

    /// What the log says of a certificate for `a.test` that was expected to be for `name`.
    fn refusal(roots: &standin::pki::Ca, name: &str, leaf: &CertificateDer<'_>) -> String {
        let roots = Arc::new(roots.roots());
        let verifier = ExplainingVerifier::new(roots, crate::pki::provider()).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        let error = verifier
            .verify_server_cert(leaf, &[], &name, &[], now)
            .unwrap_err();
        let Error::InvalidCertificate(CertificateError::Other(cause)) = &error else {
            panic!("{error:?}");
        };
        assert!(cause.0.downcast_ref::<VerifyError>().is_some());
        assert!(error.source().is_none(), "the whole story is in Display");
        cause.to_string()
    }

    #[test]
    fn says_what_was_expected_and_what_was_presented() {
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
    fn says_what_is_wrong() {
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
    fn says_so_when_there_is_no_certificate_at_all() {
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
