//! The certificates that an apiserver's chain may end at, and no others.
//!
//! If no CA is usable, loading fails: an empty set must not mean "could not be read". Only a passthrough cluster
//! without a CA has an empty set, which trusts no server.

use std::{path::Path, sync::Arc, time::SystemTime};

use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::CertificateDer;

use super::{
    CertSummary, RefusedChain, UtcDate,
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
    warnings: Vec<String>,
}

impl TrustAnchors {
    /// Reads the CAs of `source`. One that cannot verify anything is left out, with a warning, while another one is
    /// left: an expired one (client-go refuses it too), one that is no CA or cannot be read, and one whose key is too
    /// short. The public roots are never added.
    ///
    /// # Errors
    ///
    /// [`PkiError::Trust`] says what is wrong with the source, and how to fix it.
    pub fn load(source: &TrustSource, now: SystemTime) -> Result<Self, PkiError> {
        match source {
            TrustSource::File(file) => Self::load_file(file, now).map(|(anchors, _text)| anchors),
            TrustSource::Inline { pem, origin } => {
                let loaded = parse(pem, ExpectedPem::InlineAnchors, now);
                Self::new(loaded, format!("of {origin}"), now)
            }
            TrustSource::Clients => Ok(Self {
                roots: Arc::new(RootCertStore::empty()),
                summaries: Vec::new(),
                warnings: Vec::new(),
            }),
        }
    }

    /// As [`TrustAnchors::load`], with the content of the file. A pipe, such as `--ca <(command)`, cannot be read
    /// twice.
    ///
    /// # Errors
    ///
    /// As [`TrustAnchors::load`].
    pub(crate) fn load_file(file: &Path, now: SystemTime) -> Result<(Self, Vec<u8>), PkiError> {
        let read = read_file(file).map_err(|error| PkiFileError::read(file, error));
        let (loaded, text) = match read {
            Ok(text) => (parse(&text, ExpectedPem::Anchors, now), text),
            Err(error) => (Err(error), Vec::new()),
        };
        let loaded = loaded.map_err(|error| error.of_file(file));
        let anchors = Self::new(loaded, quote::path(file).to_string(), now)?;
        Ok((anchors, text))
    }

    fn new(
        loaded: Result<UsableAnchors, PkiFileError>,
        origin: String,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        match loaded {
            Ok((roots, summaries, left_out)) => {
                let left_out = left_out.into_iter().map(|one| one.warning(&origin));
                Ok(Self {
                    roots: Arc::new(roots),
                    warnings: left_out.chain(expiry_warning(&summaries, now)).collect(),
                    summaries,
                })
            }
            Err(error) => Err(PkiError::Trust {
                origin,
                source: Box::new(error),
            }),
        }
    }

    /// The verifier's roots.
    #[must_use]
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// The summary of each trusted CA. Empty only for [`TrustSource::Clients`].
    #[must_use]
    pub fn summaries(&self) -> &[CertSummary] {
        &self.summaries
    }

    /// Whether both trust the same CAs, in the same order.
    pub(crate) fn has_same_cas(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.summaries.iter(), other.summaries.iter());
        ours.map(|ca| &ca.sha256).eq(theirs.map(|ca| &ca.sha256))
    }

    /// Problems that do not stop the proxy, as sentences for the log.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// A sentence about the CA that expires last, if that is soon. An older one may expire while its successor is trusted
/// too.
fn expiry_warning(summaries: &[CertSummary], now: SystemTime) -> Option<String> {
    let last = summaries.iter().max_by_key(|ca| ca.not_after)?;
    last.expires_soon(now).then(|| {
        format!(
            "the last CA of the cluster, {}, expires in {}, on {}; add the next CA of the cluster to the file",
            last.subject,
            last.time_left(now),
            UtcDate(last.not_after)
        )
    })
}

/// A CA that is not trusted, although the file names it.
enum LeftOut {
    Expired(CertSummary),
    Unusable(PkiFileError),
}

impl LeftOut {
    fn warning(self, origin: &str) -> String {
        match self {
            Self::Expired(ca) => format!(
                "the CA {} expired on {} and is not trusted; remove it from the file",
                ca.subject,
                UtcDate(ca.not_after)
            ),
            Self::Unusable(error) => format!("CA {origin}, a part is not trusted: {error}"),
        }
    }
}

type UsableAnchors = (RootCertStore, Vec<CertSummary>, Vec<LeftOut>);

fn parse(
    text: &[u8],
    expected: ExpectedPem,
    now: SystemTime,
) -> Result<UsableAnchors, PkiFileError> {
    let mut roots = RootCertStore::empty();
    let (mut summaries, mut left_out) = (Vec::new(), Vec::new());
    for (index, der) in pem::certificates(text, expected)?.into_iter().enumerate() {
        match add(&mut roots, der, index.saturating_add(1), now) {
            Ok(summary) => summaries.push(summary),
            Err(refused) => left_out.push(refused),
        }
    }
    if !summaries.is_empty() {
        return Ok((roots, summaries, left_out));
    }
    let mut last = None;
    for refused in left_out {
        match refused {
            LeftOut::Unusable(error) => return Err(error),
            LeftOut::Expired(ca) => last = last.max(Some(ca.not_after)),
        }
    }
    Err(match last {
        Some(on) => PkiFileError::AllExpired { on: UtcDate(on) },
        None => PkiFileError::Lacks { expected },
    })
}

/// Adds one CA to the roots, or says why it cannot verify anything.
fn add(
    roots: &mut RootCertStore,
    der: CertificateDer<'static>,
    position: usize,
    now: SystemTime,
) -> Result<CertSummary, LeftOut> {
    let summary = CertSummary::from_der(&der)
        .map_err(|cause| LeftOut::Unusable(PkiFileError::Unreadable { position, cause }))?;
    if summary.not_after < now {
        return Err(LeftOut::Expired(summary));
    }
    let subject = || summary.subject.clone();
    if !summary.is_ca {
        return Err(LeftOut::Unusable(PkiFileError::NotACa {
            position,
            subject: subject(),
        }));
    }
    let unusable = |problem, fix| {
        LeftOut::Unusable(PkiFileError::Unusable {
            position,
            subject: subject(),
            problem,
            fix,
        })
    };
    if let Some(problem) = &summary.unusable_key {
        return Err(unusable(
            format!("{problem}, so it can verify no other certificate"),
            WEAK_KEY,
        ));
    }
    if let Err(error) = roots.add(der.clone()) {
        let cause = if let rustls::Error::InvalidCertificate(cause) = &error {
            cause
        } else {
            &CertificateError::BadEncoding
        };
        let refused = RefusedChain::new(cause, &der, &[], now);
        return Err(unusable(refused.to_string(), refused.cause.fix()));
    }
    Ok(summary)
}

const WEAK_KEY: &str =
    "give the cluster a CA with an ECDSA P-256 key or an RSA key of 2048 bits or more";
