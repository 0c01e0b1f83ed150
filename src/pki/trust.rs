//! The certificates that an apiserver's chain may end at, and no others.
//!
//! A set of trust anchors is never empty: what would leave it empty is an error, because an empty
//! set must not stand for "could not read".

use std::{sync::Arc, time::SystemTime};

use rustls::RootCertStore;

use super::{
    CertSummary, UtcDate,
    error::{Flaw, PkiError, Wanted},
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
    /// [`PkiError::Trust`] says what is wrong with the source, and the mend.
    pub fn load(source: &TrustSource, now: SystemTime) -> Result<Self, PkiError> {
        let (loaded, origin) = match source {
            TrustSource::File(file) => (
                read_file(file)
                    .map_err(Flaw::Read)
                    .and_then(|text| parse(&text, now)),
                quote::path(file).to_string(),
            ),
            TrustSource::Inline { pem, origin } => (parse(pem, now), format!("of {origin}")),
        };
        loaded.map_err(|flaw| PkiError::Trust {
            origin,
            source: Box::new(flaw),
        })
    }

    /// The verifier's roots.
    #[must_use]
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// What each trusted CA says about itself. Never empty.
    #[must_use]
    pub fn summaries(&self) -> &[CertSummary] {
        &self.summaries
    }

    /// What works but should be mended, as sentences for the log.
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

fn parse(text: &[u8], now: SystemTime) -> Result<TrustAnchors, Flaw> {
    let mut roots = RootCertStore::empty();
    let mut summaries = Vec::new();
    let mut expired: Vec<CertSummary> = Vec::new();
    for (index, der) in pem::certificates(text, Wanted::Anchors)?
        .into_iter()
        .enumerate()
    {
        let position = index.saturating_add(1);
        let summary =
            CertSummary::of(&der).map_err(|cause| Flaw::Unreadable { position, cause })?;
        if summary.not_after < now {
            expired.push(summary);
            continue;
        }
        roots.add(der).map_err(|cause| Flaw::Unusable {
            position,
            subject: summary.subject.clone(),
            cause,
        })?;
        summaries.push(summary);
    }
    if summaries.is_empty() {
        return Err(match expired.iter().map(|ca| ca.not_after).max() {
            Some(on) => Flaw::AllExpired { on: UtcDate(on) },
            None => Flaw::Lacks {
                wanted: Wanted::Anchors,
            },
        });
    }
    Ok(TrustAnchors {
        roots: Arc::new(roots),
        summaries,
        expired,
    })
}
