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

use super::{Identity, provider};

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
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(
            UnixTime::since_unix_epoch(std::time::Duration::ZERO),
            UnixTime::since_unix_epoch,
        );
        match verifier.verify_server_cert(leaf, issuers, &name, &[], now) {
            Ok(_) => Acceptance::Accepted,
            // A self-signed certificate that claims to be a CA has no path either.
            Err(Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => self.no_path(leaf),
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if !is_public(leaf) => {
                self.no_path(leaf)
            }
            Err(error) => Acceptance::Refused {
                reason: format!("is refused: {error}"),
                fix: fix(&error),
            },
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
        }
    }
}

/// Returns how to fix a certificate that clients refuse with `error`.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls has many kinds; the others are about the form of the certificate"
)]
fn fix(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "renew each certificate of the chain that has expired",
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => {
            "check the clock of this machine, or wait until each certificate of the chain is valid"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "issue it again with the public host name as subjectAltName",
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "issue it again with the extended key usage serverAuth",
        _ => {
            "issue it again as version 3, signed with SHA-256, with an ECDSA P-256 key or an RSA key of 2048 bits or more"
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
