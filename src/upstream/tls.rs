//! TLS to the apiserver: trust anchors, expected name, ALPN, and the verification of its certificate.
//!
//! webpki alone decides whether a certificate is accepted. The verifier here wraps webpki's only to keep
//! the presented certificate, which rustls drops when it refuses one; it cannot turn an error into a
//! success.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        Resumption, VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    pki::{self, CertSummary, RefusedChain},
    tls_error::ChainError,
};

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
    /// Whether there is a CA. Without one no server can be verified.
    has_anchors: bool,
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
            has_anchors: true,
        })
    }

    /// The same settings, with a certificate of the proxy. They resume no session that began without it.
    pub(crate) fn presenting(&self, identity: Arc<CertifiedKey>) -> Self {
        let resolver = Arc::new(SingleCertAndKey::from(identity));
        let with_identity = |config: &ClientConfig| {
            let mut config = config.clone();
            config.client_auth_cert_resolver = Arc::clone(&resolver) as _;
            config.resumption = Resumption::default();
            Arc::new(config)
        };
        Self {
            h2: with_identity(&self.h2),
            h1: with_identity(&self.h1),
            name: self.name.clone(),
            has_anchors: self.has_anchors,
        }
    }

    /// Settings that trust no server at all, for a passthrough cluster without a CA: a probe then learns whether a TLS
    /// server answers, and no request can ever be sent.
    ///
    /// # Panics
    ///
    /// Never: aws-lc-rs supports both versions of TLS.
    #[must_use]
    pub fn without_anchors(name: ServerName<'static>) -> Self {
        let config = ClientConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs supports TLS 1.2 and 1.3")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let config = Arc::new(config);
        Self {
            h2: Arc::clone(&config),
            h1: config,
            name,
            has_anchors: false,
        }
    }

    /// Whether a server can be verified with these settings.
    pub(crate) fn has_anchors(&self) -> bool {
        self.has_anchors
    }

    /// Whether the expected name goes out as SNI.
    pub(crate) fn has_sni(&self) -> bool {
        matches!(self.name, ServerName::DnsName(_))
    }

    /// The name or address that the certificate must carry.
    pub(crate) fn expected_name(&self) -> String {
        self.name.to_str().into_owned()
    }
}

/// The TLS settings for an outbound proxy, which the public CAs or `roots` must vouch for.
///
/// # Panics
///
/// Never: aws-lc-rs supports both versions of TLS.
pub(super) fn of_outbound_proxy(roots: &RootCertStore) -> Arc<ClientConfig> {
    let mut all = RootCertStore::clone(&pki::public_roots());
    all.extend(roots.roots.iter().cloned());
    let config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports TLS 1.2 and 1.3")
        .with_root_certificates(all)
        .with_no_client_auth();
    Arc::new(config)
}

/// webpki's verifier, which also reports the certificate that it refused.
#[derive(Debug)]
struct ExplainingVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

impl ExplainingVerifier {
    fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider).build()?;
        Ok(Self { webpki, roots })
    }

    /// Whether a trusted CA has this name.
    fn trusts_a_ca_named(&self, issuer_der: &[u8]) -> bool {
        // An anchor has the name without tag and length, which are at most four bytes.
        self.roots.roots.iter().any(|anchor| {
            let head = issuer_der.strip_suffix(anchor.subject.as_ref());
            head.is_some_and(|head| head.len() <= 4)
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
                let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs());
                let refused = RefusedChain::new(&cause, end_entity, intermediates, now);
                let issuer = refused.leaf.as_ref().map(|leaf| &*leaf.issuer_der);
                let error = VerifyError {
                    expected: server_name.to_str().into_owned(),
                    has_namesake: issuer.is_some_and(|issuer| self.trusts_a_ca_named(issuer)),
                    refused,
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
        self.webpki
            .verify_tls12_signature(message, cert, dss)
            .map_err(wrong_key)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki
            .verify_tls13_signature(message, cert, dss)
            .map_err(wrong_key)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Replaces the error about a signature of the handshake. Those about certificates have the same names.
fn wrong_key(error: Error) -> Error {
    if matches!(error, Error::InvalidCertificate(_)) {
        let error = CertificateError::Other(OtherError(Arc::new(WrongKeyError)));
        return Error::InvalidCertificate(error);
    }
    error
}

/// The server has signed the handshake with another key.
#[derive(Debug, thiserror::Error)]
#[error("the server does not have the key of the certificate that it presents")]
pub struct WrongKeyError;

/// Why a certificate was refused, and which certificate it was.
#[derive(Debug)]
pub struct VerifyError {
    expected: String,
    refused: RefusedChain,
    has_namesake: bool,
}

impl VerifyError {
    /// What is wrong with the chain.
    pub(crate) fn refused(&self) -> &RefusedChain {
        &self.refused
    }

    /// Subject, names and validity of the refused certificate; `None` if it is not an X.509 certificate.
    pub(crate) fn presented(&self) -> Option<&CertSummary> {
        self.refused.leaf.as_ref()
    }

    /// Whether a trusted CA has the name of the issuer, but another key.
    pub(crate) fn has_namesake(&self) -> bool {
        self.has_namesake
    }

    /// The cause as a phrase that reveals no address or name, so that it can be sent to a client.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if self.refused.cause == ChainError::Untrusted {
            "is not signed by the cluster CA"
        } else {
            self.refused.cause.phrase()
        }
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refused.cause == ChainError::Untrusted {
            write!(f, "the certificate {}", self.reason())?;
        } else {
            write!(f, "the certificate {}", self.refused)?;
        }
        write!(f, " (expected {}; presented ", self.expected)?;
        match self.presented() {
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
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
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

    /// kubeadm calls the CA of every cluster `kubernetes`, and two clusters may have keys of two types.
    #[test]
    fn ca_of_the_same_name_and_another_key_type_is_not_trusted() {
        let params = |name: &str| {
            let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            params
        };
        let mut ca = params("cluster");
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let rsa = rcgen::CertifiedIssuer::self_signed(ca, key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params("leaf").signed_by(&key, &rsa).unwrap();
        let trusted = standin::pki::Ca::new("cluster");
        let message = refusal(&trusted, "a.test", leaf.der());
        assert!(
            message
                .starts_with("the certificate is not signed by the cluster CA (expected a.test; "),
            "{message}"
        );
    }

    #[test]
    fn error_names_the_expired_issuer() {
        let ca = standin::pki::Ca::new("cluster");
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "old");
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let (root, leaf_key) = (
            rcgen::KeyPair::generate().unwrap(),
            rcgen::KeyPair::generate().unwrap(),
        );
        let mut root_params = params.clone();
        root_params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        root_params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "root");
        let root = rcgen::CertifiedIssuer::self_signed(root_params, root).unwrap();
        let old = rcgen::CertifiedIssuer::signed_by(params, key, &root).unwrap();
        let leaf = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &old).unwrap();
        let mut roots = ca.roots();
        roots.add(root.der().clone()).unwrap();
        let verifier = ExplainingVerifier::new(Arc::new(roots), pki::provider()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let name = ServerName::try_from("a.test").unwrap();
        let error = verifier
            .verify_server_cert(leaf.der(), &[old.der().clone()], &name, &[], now)
            .unwrap_err();
        let Error::InvalidCertificate(CertificateError::Other(cause)) = &error else {
            panic!("{error:?}");
        };
        let message = cause.to_string();
        assert!(
            message.starts_with(
                "the certificate has an issuer in its chain that has expired: CN=old expired on 2021-01-01T00:00:00Z (expected a.test"
            ),
            "{message}"
        );
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
