//! Whether clients accept the certificate of the proxy: clients with the public CAs, or with a private CA.
//!
//! This is the only place that uses the public CAs. They are never trusted for an apiserver.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, Error, RootCertStore, client::WebPkiServerVerifier,
    client::danger::ServerCertVerifier as _,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_cert::{
    Certificate,
    der::{Decode as _, oid::ObjectIdentifier},
    ext::pkix::CertificatePolicies,
};

use super::{Identity, RefusedChain, pem, provider};
use crate::tls_error::ChainError;

/// The verdict of clients on a certificate chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// Clients accept it.
    Accepted,
    /// The chain leads to none of the CAs that they trust.
    NoPath {
        /// The issuer of the last certificate of the chain.
        issuer: String,
        /// Whether a public CA issued it. Public CAs always issue from an intermediate, so in that case the
        /// intermediate is missing.
        is_public: bool,
        /// Whether it is its own issuer.
        is_self_signed: bool,
    },
    /// Clients refuse it for another reason.
    Refused(Box<RefusedChain>),
}

/// The CAs that clients trust by default: those of Mozilla.
#[must_use]
pub fn public_roots() -> Arc<RootCertStore> {
    Arc::new(RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    })
}

impl Identity {
    /// Returns the verdict of clients that trust `roots` on this chain at `now`.
    #[must_use]
    pub fn acceptance(&self, roots: Arc<RootCertStore>, now: SystemTime) -> Acceptance {
        let key = self.certified_key();
        let no_leaf = CertificateDer::from_slice(&[]);
        let (leaf, issuers) = key.cert.split_first().unwrap_or((&no_leaf, &[]));
        let time = now.duration_since(SystemTime::UNIX_EPOCH);
        let time = UnixTime::since_unix_epoch(time.unwrap_or_default());
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        // Loading has checked that there is a CA, a leaf and a name.
        let checked = verifier.ok().zip(self.example_name());
        let error = match checked
            .map(|(verifier, name)| verifier.verify_server_cert(leaf, issuers, &name, &[], time))
        {
            Some(Ok(_)) => return Acceptance::Accepted,
            Some(Err(Error::InvalidCertificate(error))) => error,
            Some(Err(_)) | None => CertificateError::ApplicationVerificationFailure,
        };
        let refused = RefusedChain::new(&error, leaf, issuers, now);
        // A self-signed certificate that claims to be a CA has no path either.
        let is_own_ca = refused.cause == ChainError::CaForServer && !is_public(leaf);
        if refused.cause == ChainError::Untrusted || is_own_ca {
            self.no_path(leaf)
        } else {
            Acceptance::Refused(Box::new(refused))
        }
    }

    /// Why clients with the public CAs reject this certificate, as a sentence for the log; `None` if they accept it, or
    /// if it is of a private CA, which is a valid choice.
    #[must_use]
    pub fn client_warning(&self, now: SystemTime) -> Option<String> {
        let names = self.names().join(", ");
        match self.acceptance(public_roots(), now) {
            Acceptance::NoPath {
                is_self_signed: true,
                ..
            } => Some(format!(
                "the certificate for {names} is self-signed, so only clients that trust this very certificate accept it; use a certificate from a CA"
            )),
            Acceptance::NoPath {
                issuer,
                is_public: true,
                ..
            } => Some(format!(
                "the chain for {names} is incomplete, so clients reject it: {issuer} issued its last certificate, and this intermediate is missing; append the intermediate certificates of the issuer to the certificate file"
            )),
            // `warnings` names the expired issuer.
            Acceptance::Refused(refused) if refused.cause == ChainError::IssuerExpired => None,
            Acceptance::Refused(refused) => Some(format!(
                "the certificate for {names} {refused}, so clients reject it; {}",
                refused.cause.fix()
            )),
            Acceptance::Accepted | Acceptance::NoPath { .. } => None,
        }
    }

    /// A name that this certificate covers and a client could ask for.
    #[must_use]
    pub fn example_name(&self) -> Option<ServerName<'static>> {
        self.names().first().and_then(|name| example(name))
    }

    /// The certificate against which clients verify this one if they do not trust the public CAs: the last one of the
    /// chain, if it is its own issuer. PEM; `None` if clients accept it without, or need another certificate.
    #[must_use]
    pub fn own_ca(&self, now: SystemTime) -> Option<String> {
        match self.acceptance(public_roots(), now) {
            Acceptance::NoPath {
                is_public: false, ..
            } if self.ends_with_root() => self.certified_key().cert.last().map(pem::text),
            Acceptance::Accepted | Acceptance::NoPath { .. } | Acceptance::Refused(_) => None,
        }
    }

    fn no_path(&self, leaf: &CertificateDer<'_>) -> Acceptance {
        Acceptance::NoPath {
            issuer: self.last_issuer().to_owned(),
            is_public: is_public(leaf),
            is_self_signed: self.is_self_signed(),
        }
    }
}

/// Returns a name that a certificate for `name` covers.
fn example(name: &str) -> Option<ServerName<'static>> {
    let name = match name.strip_prefix("*.") {
        Some(parent) => format!("any.{parent}"),
        None => name.to_owned(),
    };
    ServerName::try_from(name).ok()
}

/// Whether a public CA issued this leaf. The rules for public CAs require a policy that says how the owner was
/// validated, and browsers require certificate transparency.
fn is_public(leaf: &CertificateDer<'_>) -> bool {
    let Ok(certificate) = Certificate::from_der(leaf) else {
        return false;
    };
    let tbs = certificate.tbs_certificate();
    let logged = tbs
        .extensions()
        .is_some_and(|all| all.iter().any(|one| one.extn_id == CERTIFICATE_LOG));
    let validated = match tbs.get_extension::<CertificatePolicies>() {
        Ok(Some((_critical, policies))) => policies
            .0
            .iter()
            .any(|policy| VALIDATED.contains(&policy.policy_identifier)),
        Ok(None) | Err(_) => false,
    };
    logged || validated
}

/// Signed certificate timestamps (RFC 6962 §3.3).
const CERTIFICATE_LOG: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.2");
/// Domain, organization, individual and extended validation (CA/Browser Forum Baseline Requirements
/// §7.1.6.1).
const VALIDATED: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("2.23.140.1.2.1"),
    ObjectIdentifier::new_unwrap("2.23.140.1.2.2"),
    ObjectIdentifier::new_unwrap("2.23.140.1.2.3"),
    ObjectIdentifier::new_unwrap("2.23.140.1.1"),
];
