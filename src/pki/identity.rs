//! The certificate chain and key that the proxy presents.
//!
//! An [`Identity`] is checked when it is loaded: the leaf is first, the key matches it, and it names at least one host.
//! A chain that clients would refuse is refused here.

use std::{fmt, path::Path, sync::Arc, time::SystemTime};

use rustls::{
    SignatureAlgorithm,
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::CertificateDer;

use super::{
    CertSummary, RefusedChain, UtcDate,
    error::{ExpectedPem, PkiError, PkiFileError},
    pem, provider,
};
use crate::{
    config::{IdentityFiles, read_file},
    hosts::{HostMap, HostName, HostPattern},
};

/// A certificate chain and its private key.
pub struct Identity {
    certified_key: Arc<CertifiedKey>,
    names: Vec<String>,
    by_name: HostMap<()>,
    chain: Vec<CertSummary>,
    leaf: CertSummary,
}

impl Identity {
    /// Reads and checks one pair of files; `now` decides what has expired.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file at fault, what is wrong, and how to fix it.
    pub fn load(files: &IdentityFiles, now: SystemTime) -> Result<Self, PkiError> {
        let in_certificate = |error| PkiError::Certificate {
            file: files.certificate.clone(),
            source: Box::new(error),
        };
        let ChainAndKey {
            certified_key,
            leaf,
            chain,
        } = ChainAndKey::load(files, now)?;
        check_leaf(&leaf, now).map_err(in_certificate)?;
        let names = names(&leaf);
        if names.is_empty() {
            return Err(in_certificate(PkiFileError::NoNames));
        }
        let mut by_name = HostMap::default();
        for name in &names {
            by_name.insert(name, ());
        }
        Ok(Self {
            certified_key,
            names,
            by_name,
            chain,
            leaf,
        })
    }

    /// The chain and key in the form that rustls uses for handshakes.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified_key)
    }

    /// DNS names in lower case, perhaps with a leading `*.`, and IP addresses. Never empty.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a client that asks for `host` accepts this certificate's names; `host` may itself be a
    /// wildcard.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        self.by_name.get(&HostName::new(host)).is_some()
    }

    /// When the leaf expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// The summary of the leaf.
    #[must_use]
    pub fn summary(&self) -> &CertSummary {
        &self.leaf
    }

    /// How many certificates are presented, the leaf included.
    #[must_use]
    pub fn chain_length(&self) -> usize {
        self.chain.len().saturating_add(1)
    }

    /// The issuer of the last certificate of the chain.
    #[must_use]
    pub fn last_issuer(&self) -> &str {
        &self.chain.last().unwrap_or(&self.leaf).issuer
    }

    /// Whether the only certificate of the chain is its own issuer.
    #[must_use]
    pub fn is_self_signed(&self) -> bool {
        self.chain.is_empty() && self.leaf.issuer == self.leaf.subject
    }

    /// Whether the last certificate of the chain is its own issuer.
    pub(super) fn ends_with_root(&self) -> bool {
        let last = self.chain.last().unwrap_or(&self.leaf);
        last.issuer == last.subject
    }

    /// Problems that do not stop the proxy, as sentences for the log.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        let names = self.names.join(", ");
        if self.leaf.expires_soon(now) {
            warnings.push(format!(
                "the certificate for {names} expires in {}, on {}; renew it",
                self.leaf.time_left(now),
                UtcDate(self.leaf.not_after)
            ));
        }
        if self.certified_key.key.algorithm() == SignatureAlgorithm::RSA {
            warnings.push(format!(
                "the key for {names} is RSA, which makes each handshake several times more \
                 expensive for the proxy; prefer ECDSA P-256"
            ));
        }
        for issuer in self.chain.iter().filter(|issuer| issuer.not_after < now) {
            warnings.push(format!(
                "the chain for {names} holds {}, which expired on {}; fetch the chain again",
                issuer.subject,
                UtcDate(issuer.not_after)
            ));
        }
        warnings
    }
}

/// A sentence about the hosts that no certificate is valid for; `None` if there are none.
pub(crate) fn uncovered_hosts<'a>(
    hosts: impl IntoIterator<Item = &'a String>,
    identities: &[Identity],
) -> Option<String> {
    let hosts = hosts.into_iter();
    let uncovered: Vec<_> = hosts
        .filter(|host| !identities.iter().any(|identity| identity.covers(host)))
        .map(String::as_str)
        .collect();
    let names: Vec<_> = identities
        .iter()
        .flat_map(Identity::names)
        .cloned()
        .collect();
    (!uncovered.is_empty()).then(|| {
        format!(
            "no certificate is valid for {}, so clients refuse to connect; the certificates are valid for {}; add a certificate for this name (--cert and --key), or remove the name from --host or `hosts`",
            uncovered.join(", "),
            names.join(", ")
        )
    })
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("leaf", &self.leaf)
            .field("key", &"<redacted>")
            .finish_non_exhaustive()
    }
}

/// A chain whose order is right, and the key of its first certificate. Purpose and dates are not checked.
pub(super) struct ChainAndKey {
    pub(super) certified_key: Arc<CertifiedKey>,
    pub(super) leaf: CertSummary,
    /// The issuers.
    pub(super) chain: Vec<CertSummary>,
}

impl ChainAndKey {
    /// Reads one pair of files.
    pub(super) fn load(files: &IdentityFiles, now: SystemTime) -> Result<Self, PkiError> {
        let in_certificate = |error| PkiError::Certificate {
            file: files.certificate.clone(),
            source: Box::new(error),
        };
        let in_key = |error| PkiError::Key {
            file: files.key.clone(),
            source: Box::new(error),
        };
        let certificates = read_chain(&files.certificate).map_err(in_certificate)?;
        let key = read_key(&files.key).map_err(in_key)?;
        let (leaf, chain) = summarize(&certificates).map_err(in_certificate)?;
        // The key is checked first, because it distinguishes a wrong file from a wrong order, and each has its own
        // fix.
        match owner_of(&key, &certificates, &leaf, now).map_err(in_certificate)? {
            Some(1) => {}
            Some(position) => return Err(in_certificate(PkiFileError::LeafNotFirst { position })),
            None => {
                return Err(in_key(PkiFileError::KeyMismatch {
                    certificate: files.certificate.clone(),
                }));
            }
        }
        check_order(&leaf, &chain).map_err(in_certificate)?;
        Ok(Self {
            certified_key: Arc::new(CertifiedKey::new(certificates, key)),
            leaf,
            chain,
        })
    }
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, PkiFileError> {
    let text = read_file(file).map_err(|error| PkiFileError::read(file, error))?;
    pem::certificates(&text, ExpectedPem::Chain).map_err(|error| error.of_file(file))
}

fn read_key(file: &Path) -> Result<Arc<dyn SigningKey>, PkiFileError> {
    let text = read_file(file).map_err(|error| PkiFileError::read(file, error))?;
    let der = pem::private_key(&text).map_err(|error| error.of_file(file))?;
    provider()
        .key_provider
        .load_private_key(der)
        .map_err(|_only_says_that_no_kind_fits| PkiFileError::UnusableKey)
}

/// Returns the summary of the leaf and those of the certificates after it.
fn summarize(
    certificates: &[CertificateDer<'_>],
) -> Result<(CertSummary, Vec<CertSummary>), PkiFileError> {
    let mut summaries = Vec::with_capacity(certificates.len());
    for (index, der) in certificates.iter().enumerate() {
        let position = index.saturating_add(1);
        let summary = CertSummary::from_der(der)
            .map_err(|cause| PkiFileError::Unreadable { position, cause })?;
        summaries.push(summary);
    }
    let mut summaries = summaries.into_iter();
    match summaries.next() {
        Some(leaf) => Ok((leaf, summaries.collect())),
        None => Err(PkiFileError::Lacks {
            expected: ExpectedPem::Chain,
        }),
    }
}

/// Checks that each certificate is issued by the next one.
fn check_order(leaf: &CertSummary, issuers: &[CertSummary]) -> Result<(), PkiFileError> {
    let mut below = leaf;
    for (index, above) in issuers.iter().enumerate() {
        if below.issuer != above.subject {
            return Err(PkiFileError::ChainOrder {
                position: index.saturating_add(2),
                subject: above.subject.clone(),
                issuer: below.issuer.clone(),
            });
        }
        below = above;
    }
    Ok(())
}

fn check_leaf(leaf: &CertSummary, now: SystemTime) -> Result<(), PkiFileError> {
    if leaf.not_after < now {
        return Err(PkiFileError::Expired {
            on: UtcDate(leaf.not_after),
        });
    }
    if leaf.not_before > now {
        return Err(PkiFileError::NotYetValid {
            from: UtcDate(leaf.not_before),
        });
    }
    if !leaf.server_auth {
        return Err(PkiFileError::NotForServers);
    }
    Ok(())
}

/// Returns the names of the certificate that a host name can match.
fn names(leaf: &CertSummary) -> Vec<String> {
    leaf.sans
        .iter()
        .filter_map(|san| san.parse::<HostPattern>().ok())
        .map(|host| host.to_string())
        .collect()
}

/// Returns the position, from 1, of the certificate that `key` matches.
fn owner_of(
    key: &Arc<dyn SigningKey>,
    certificates: &[CertificateDer<'static>],
    leaf: &CertSummary,
    now: SystemTime,
) -> Result<Option<usize>, PkiFileError> {
    let mut unusable = None;
    for (index, der) in certificates.iter().enumerate() {
        let position = index.saturating_add(1);
        match CertifiedKey::new(vec![der.clone()], Arc::clone(key)).keys_match() {
            Ok(()) => return Ok(Some(position)),
            Err(rustls::Error::InconsistentKeys(_)) => {}
            // rustls cannot read the key of every certificate. This matters only for the first certificate.
            Err(rustls::Error::InvalidCertificate(cause)) if position == 1 => {
                unusable = Some(RefusedChain::new(&cause, der, &[], now));
            }
            Err(_) => {}
        }
    }
    match unusable {
        Some(refused) => Err(PkiFileError::Unusable {
            position: 1,
            subject: leaf.subject.clone(),
            problem: refused.to_string(),
            fix: refused.cause.fix(),
        }),
        None => Ok(None),
    }
}
