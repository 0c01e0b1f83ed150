//! The certificates that an apiserver's chain may end at, and no others.
//!
//! A set of trust anchors is never empty. If no CA is usable, loading fails: an empty set must not mean "could not be
//! read".

use std::{sync::Arc, time::SystemTime};

use rustls::RootCertStore;

use super::{
    CertSummary, UtcDate,
    error::{ExpectedPem, PkiError, PkiFileError},
    pem,
};
use crate::{
    config::{TrustSource, read_file},
    quote,
};

/// The CAs of one cluster.
#[derive(Debug, Clone)]
pub struct TrustAnchors {
    roots: Arc<RootCertStore>,
    summaries: Vec<CertSummary>,
    expired: Vec<CertSummary>,
}

impl TrustAnchors {
    /// Reads the CAs of `source`. One that has expired before `now` is left out, as client-go would
    /// refuse it too; the public roots are never added.
    ///
    /// # Errors
    ///
    /// [`PkiError::Trust`] says what is wrong with the source, and how to fix it.
    pub fn load(source: &TrustSource, now: SystemTime) -> Result<Self, PkiError> {
        let (loaded, origin) = match source {
            TrustSource::File(file) => (
                read_file(file)
                    .map_err(PkiFileError::Read)
                    .and_then(|text| parse(&text, now)),
                quote::path(file).to_string(),
            ),
            TrustSource::Inline { pem, origin } => (parse(pem, now), format!("of {origin}")),
        };
        loaded.map_err(|error| PkiError::Trust {
            origin,
            source: Box::new(error),
        })
    }

    /// The verifier's roots.
    #[must_use]
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// The summary of each trusted CA. Never empty.
    #[must_use]
    pub fn summaries(&self) -> &[CertSummary] {
        &self.summaries
    }

    /// Problems that do not stop the proxy, as sentences for the log.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.expired
            .iter()
            .map(|ca| {
                format!(
                    "the CA {} expired on {} and is not trusted; remove it from the file",
                    ca.subject,
                    UtcDate(ca.not_after)
                )
            })
            .collect()
    }
}

fn parse(text: &[u8], now: SystemTime) -> Result<TrustAnchors, PkiFileError> {
    let mut roots = RootCertStore::empty();
    let mut summaries = Vec::new();
    let mut expired: Vec<CertSummary> = Vec::new();
    for (index, der) in pem::certificates(text, ExpectedPem::Anchors)?
        .into_iter()
        .enumerate()
    {
        let position = index.saturating_add(1);
        let summary = CertSummary::from_der(&der)
            .map_err(|cause| PkiFileError::Unreadable { position, cause })?;
        if summary.not_after < now {
            expired.push(summary);
            continue;
        }
        roots.add(der).map_err(|cause| PkiFileError::Unusable {
            position,
            subject: summary.subject.clone(),
            cause,
        })?;
        summaries.push(summary);
    }
    if summaries.is_empty() {
        return Err(match expired.iter().map(|ca| ca.not_after).max() {
            Some(on) => PkiFileError::AllExpired { on: UtcDate(on) },
            None => PkiFileError::Lacks {
                expected: ExpectedPem::Anchors,
            },
        });
    }
    Ok(TrustAnchors {
        roots: Arc::new(roots),
        summaries,
        expired,
    })
}
