//! Why a certificate chain was refused, and which certificate of it is at fault.

use std::{fmt, time::SystemTime};

use rustls::CertificateError;
use rustls_pki_types::CertificateDer;

use super::{CertSummary, UtcDate};
use crate::tls_error::ChainError;

/// A chain that a verifier refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedChain {
    /// Why.
    pub cause: ChainError,
    /// The first certificate; `None` if it is not an X.509 certificate.
    pub leaf: Option<CertSummary>,
    /// The issuer at fault, if it is not the leaf.
    culprit: Option<CertSummary>,
}

impl RefusedChain {
    /// Explains `error`, which webpki found at `now` in the chain of `leaf` and `issuers`.
    #[must_use]
    pub fn new(
        error: &CertificateError,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Self {
        let leaf = CertSummary::from_der(leaf).ok();
        let mut cause = ChainError::from(error);
        // webpki does not say which certificate it is.
        let is_at_fault = |certificate: &CertSummary| {
            (cause == ChainError::Expired && certificate.not_after < now)
                || (cause == ChainError::NotYetValid && certificate.not_before > now)
                || (cause == ChainError::CriticalExtension
                    && !certificate.unsupported_extensions.is_empty())
        };
        let culprit = if leaf.as_ref().is_some_and(is_at_fault) {
            None
        } else {
            let issuers = issuers
                .iter()
                .filter_map(|der| CertSummary::from_der(der).ok());
            issuers.into_iter().find(is_at_fault)
        };
        if culprit.is_some() && cause == ChainError::Expired {
            cause = ChainError::IssuerExpired;
        } else if culprit.is_some() && cause == ChainError::NotYetValid {
            cause = ChainError::IssuerNotYetValid;
        }
        Self {
            cause,
            leaf,
            culprit,
        }
    }

    /// The chain of `leaf` ends at this trust anchor, which is not valid now. webpki does not know the dates of
    /// anchors.
    pub(super) fn by_anchor(
        cause: ChainError,
        leaf: &CertificateDer<'_>,
        anchor: &CertSummary,
    ) -> Self {
        Self {
            cause,
            leaf: CertSummary::from_der(leaf).ok(),
            culprit: Some(anchor.clone()),
        }
    }
}

/// The rest of a sentence that begins with "the certificate".
impl fmt::Display for RefusedChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause.phrase())?;
        if let Some(culprit) = &self.culprit {
            if self.cause == ChainError::IssuerExpired {
                let on = UtcDate(culprit.not_after);
                return write!(f, ": {} expired on {on}", culprit.subject);
            }
            if self.cause == ChainError::IssuerNotYetValid {
                let from = UtcDate(culprit.not_before);
                return write!(f, ": {} is not valid before {from}", culprit.subject);
            }
        }
        let at_fault = self.culprit.as_ref().or(self.leaf.as_ref());
        if self.cause == ChainError::CriticalExtension
            && let Some(certificate) = at_fault
        {
            write!(f, ": {}", certificate.unsupported_extensions.join(", "))?;
        }
        Ok(())
    }
}
