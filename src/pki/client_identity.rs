//! A certificate with which a client authenticates: the proxy tells an apiserver with it that it is a front proxy, and
//! `check` tries that of a user.
//!
//! An attacker who has the key of a front proxy can be any user of the cluster. An expired certificate is loaded,
//! because it stops only the users of client certificates.

use std::{fmt, sync::Arc, time::SystemTime};

use rustls::sign::CertifiedKey;

use super::{CertSummary, PkiError, UtcDate, error::PkiFileError, identity::ChainAndKey};
use crate::config::IdentityFiles;

/// A chain for TLS clients, and its key.
pub struct ClientIdentity {
    certified_key: Arc<CertifiedKey>,
    leaf: CertSummary,
}

impl ClientIdentity {
    /// Reads and checks one pair of files.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file at fault, what is wrong, and how to fix it.
    pub fn load(files: &IdentityFiles, now: SystemTime) -> Result<Self, PkiError> {
        let loaded = ChainAndKey::load(files, now)?;
        let fault = if loaded.leaf.not_before > now {
            let from = UtcDate(loaded.leaf.not_before);
            Some(PkiFileError::NotYetValid { from })
        } else {
            (!loaded.leaf.client_auth).then_some(PkiFileError::NotForClients)
        };
        match fault {
            Some(fault) => Err(PkiError::Certificate {
                file: files.certificate.clone(),
                source: Box::new(fault),
            }),
            None => Ok(Self {
                certified_key: loaded.certified_key,
                leaf: loaded.leaf,
            }),
        }
    }

    /// The chain and key in the form that rustls uses for handshakes.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified_key)
    }

    /// The summary of the leaf.
    #[must_use]
    pub fn summary(&self) -> &CertSummary {
        &self.leaf
    }

    /// A sentence about a front-proxy certificate that has expired or will soon; `None` for any other.
    #[must_use]
    pub fn warning(&self, now: SystemTime) -> Option<String> {
        let (subject, on) = (&self.leaf.subject, UtcDate(self.leaf.not_after));
        if self.leaf.not_after < now {
            return Some(format!(
                "the front-proxy certificate {subject} expired on {on}, so users of client certificates get a 503; renew it"
            ));
        }
        self.leaf.expires_soon(now).then(|| {
            let left = self.leaf.time_left(now);
            format!("the front-proxy certificate {subject} expires in {left}, on {on}; renew it")
        })
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity")
            .field("leaf", &self.leaf)
            .field("key", &"<redacted>")
            .finish_non_exhaustive()
    }
}
