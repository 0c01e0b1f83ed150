//! Turns PEM files into checked rustls types: the certificates that the proxy presents and the CAs that it trusts, for
//! apiservers and for clients.
//!
//! Nothing leaves this module unchecked: a key matches its certificate, and a list of trust anchors is never empty.
//! This module also chooses the only crypto provider.

mod challenge;
mod client_ca;
mod client_identity;
mod error;
mod identity;
mod pem;
mod public;
mod refusal;
mod revocation;
mod source;
mod subject;
mod summary;
mod token;
mod trust;

use std::sync::Arc;

use rustls::crypto::{
    CryptoProvider,
    aws_lc_rs::{default_provider, kx_group},
};

pub(crate) use challenge::ACME_TLS;
pub use challenge::{AcmeChallenges, ChallengeAnswer, ChallengeError};
pub use client_ca::ClientCa;
pub use client_identity::ClientIdentity;
pub use error::{ExpectedPem, PkiError, PkiFileError};
pub use identity::Identity;
pub(crate) use identity::uncovered_hosts;
pub use public::{Acceptance, public_roots};
pub use refusal::RefusedChain;
pub use revocation::{ListSummary, RevocationLists};
pub use subject::{CertificateSubject, SubjectError};
pub use summary::{CertSummary, Fingerprint, TimeLeft, UnreadableCertificate, UtcDate};
pub use token::TokenFile;
pub(crate) use token::pod_authorization;
pub use trust::TrustAnchors;

/// The crypto provider of every TLS connection: aws-lc-rs with the post-quantum hybrid first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..default_provider()
    })
}

#[cfg(test)]
pub(crate) mod tests;
