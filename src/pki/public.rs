//! Whether clients accept the certificate of the proxy: clients with the public CAs, or with a private CA.
//!
//! This is the only place that uses the public CAs. They are never trusted for an apiserver.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    Error, RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier as _,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_cert::{
    Certificate,
    der::{Decode as _, oid::ObjectIdentifier},
    ext::pkix::CertificatePolicies,
};

use super::{Identity, RefusedChain, provider};
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
        /// Whether a public CA issued it. Public CAs always issue from an intermediate, so in that case the intermediate
        /// is missing.
        is_public: bool,
        /// Whether it is its own issuer.
        is_self_signed: bool,
    },
    /// Clients refuse it for another reason.
    Refused {
        /// What is wrong with it: the rest of a sentence that begins with "the certificate".
        reason: String,
        /// How to fix it.
        fix: &'static str,
    },
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
        let refused = |reason: &str, fix| Acceptance::Refused {
            reason: reason.to_owned(),
            fix,
        };
        let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()
        else {
            return refused(
                "cannot be verified, because there are no CAs to trust",
                "pass a file that contains a CA with --through-ca",
            );
        };
        let key = self.certified_key();
        let Some((leaf, issuers)) = key.cert.split_first() else {
            return refused(
                "is missing",
                "put the certificate of the server into its file",
            );
        };
        let Some(name) = self.example_name() else {
            return refused(
                "names no host",
                "issue it again with the public host name as subjectAltName",
            );
        };
        let time = now;
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(
            UnixTime::since_unix_epoch(std::time::Duration::ZERO),
            UnixTime::since_unix_epoch,
        );
        match verifier.verify_server_cert(leaf, issuers, &name, &[], now) {
            Ok(_) => Acceptance::Accepted,
            Err(Error::InvalidCertificate(error)) => {
                let refused = RefusedChain::new(&error, leaf, issuers, time);
                // A self-signed certificate that claims to be a CA has no path either.
                let is_own_ca = refused.cause == ChainError::CaForServer && !is_public(leaf);
                if refused.cause == ChainError::Untrusted || is_own_ca {
                    return self.no_path(leaf);
                }
                Acceptance::Refused {
                    reason: refused.to_string(),
                    fix: refused.cause.fix(),
                }
            }
            Err(_) => refused("cannot be verified", ChainError::Other.fix()),
        }
    }

    /// Why clients with the public CAs reject this certificate, as a sentence for the log; `None` if they accept it, or if
    /// it is of a private CA, which is a valid choice.
    #[must_use]
    pub fn client_warning(&self, now: SystemTime) -> Option<String> {
        let names = self.names().join(", ");
        match self.acceptance(public_roots(), now) {
            Acceptance::NoPath {
                is_self_signed: true,
                ..
            } => Some(format!(
                "the certificate for {names} is self-signed, so only clients that trust it itself accept it; use a certificate from a CA"
            )),
            Acceptance::NoPath {
                issuer,
                is_public: true,
                ..
            } => Some(format!(
                "the chain for {names} is incomplete, so clients reject it: {issuer} issued its last certificate, and this intermediate is missing; append the intermediate certificates of the issuer to the certificate file"
            )),
            // `warnings` names the expired issuer.
            Acceptance::Refused { reason, .. }
                if reason.starts_with(ChainError::IssuerExpired.phrase()) =>
            {
                None
            }
            Acceptance::Refused { reason, fix } => Some(format!(
                "the certificate for {names} {reason}, so clients reject it; {fix}"
            )),
            Acceptance::Accepted | Acceptance::NoPath { .. } => None,
        }
    }

    /// A name that this certificate covers and a client could ask for.
    #[must_use]
    pub fn example_name(&self) -> Option<ServerName<'static>> {
        self.names().first().and_then(|name| example(name))
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
