//! Verifies the certificates of clients: against the CAs that issue them, for their purpose and dates, and against
//! revocation lists.
//!
//! A certificate is accepted only if all of it is known to be valid. One whose revocation status is unknown is refused:
//! an old list must not mean "not revoked".

use std::{path::Path, sync::Arc, time::SystemTime};

use rustls::{CertificateError, DistinguishedName, OtherError, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};

use super::{CertSummary, PkiError, RefusedChain, RevocationLists, TrustAnchors, provider};
use crate::tls_error::ChainError;

/// The CAs that issue the certificates of clients.
#[derive(Debug)]
pub struct ClientCa {
    anchors: TrustAnchors,
    roots: Arc<RootCertStore>,
    revoked: Option<RevocationLists>,
}

impl ClientCa {
    /// Reads the CAs, and the certificates that they have revoked.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file at fault, what is wrong, and how to fix it.
    pub fn load(ca: &Path, crl: Option<&Path>, now: SystemTime) -> Result<Self, PkiError> {
        let (anchors, _text) = TrustAnchors::load_file(ca, now)?;
        Ok(Self {
            roots: anchors.roots(),
            anchors,
            revoked: crl.map(RevocationLists::load).transpose()?,
        })
    }

    /// The CAs.
    #[must_use]
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// The certificates that they have revoked; `None` if that is not checked.
    #[must_use]
    pub fn revoked(&self) -> Option<&RevocationLists> {
        self.revoked.as_ref()
    }

    /// The CAs without a list, whose certificates are refused. None if revocation is not checked.
    pub fn without_list(&self) -> impl Iterator<Item = &CertSummary> {
        let lists = self.revoked.iter();
        lists.flat_map(|lists| {
            let has_list = |ca: &&CertSummary| lists.is_of(&ca.subject);
            let cas = self.anchors.summaries().iter();
            cas.filter(move |ca| !has_list(ca))
        })
    }

    /// The names of the CAs, for the request for a certificate.
    #[must_use]
    pub fn names(&self) -> Vec<DistinguishedName> {
        self.roots.subjects()
    }

    /// Whether both accept the same certificates.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let has_same_lists = match (&self.revoked, &other.revoked) {
            (Some(one), Some(other)) => one.is_same(other),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        has_same_lists && self.anchors.has_same_cas(&other.anchors)
    }

    /// Verifies the chain of a client, leaf first. Returns until when nothing in it expires.
    ///
    /// # Errors
    ///
    /// [`RefusedChain`] says what is wrong with the chain.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<SystemTime, Box<RefusedChain>> {
        let no_leaf = CertificateDer::from_slice(&[]);
        let (leaf, issuers) = chain.split_first().unwrap_or((&no_leaf, &[]));
        let refused = |error: webpki::Error| {
            let error = CertificateError::Other(OtherError(Arc::new(error)));
            Box::new(RefusedChain::new(&error, leaf, issuers, now))
        };
        let time = now.duration_since(SystemTime::UNIX_EPOCH);
        let time = UnixTime::since_unix_epoch(time.unwrap_or_default());
        let lists: Vec<_> = self
            .revoked
            .iter()
            .flat_map(RevocationLists::lists)
            .collect();
        let revocation = match &self.revoked {
            None => None,
            // Without a list this is an error, so that the check cannot get lost.
            Some(_) => Some(
                RevocationOptionsBuilder::new(&lists)
                    .map_err(|_no_list| refused(webpki::Error::UnknownRevocationStatus))?
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build(),
            ),
        };
        let certificate = EndEntityCert::try_from(leaf).map_err(refused)?;
        let path = certificate
            .verify_for_usage(
                provider().signature_verification_algorithms.all,
                &self.roots.roots,
                issuers,
                time,
                KeyUsage::client_auth(),
                revocation,
                None,
            )
            .map_err(refused)?;
        self.valid_until(&path, leaf, now)
    }

    /// The first expiry of a certificate on this path, or of a revocation list.
    fn valid_until(
        &self,
        path: &VerifiedPath<'_>,
        leaf: &CertificateDer<'_>,
        now: SystemTime,
    ) -> Result<SystemTime, Box<RefusedChain>> {
        let mut anchors = self.roots.roots.iter().zip(self.anchors.summaries());
        let anchor = anchors.find(|(anchor, _)| *anchor == path.anchor());
        let malformed = || {
            Box::new(RefusedChain::new(
                &CertificateError::BadEncoding,
                leaf,
                &[],
                now,
            ))
        };
        let (_, anchor) = anchor.ok_or_else(malformed)?;
        let anchor_error = if anchor.not_after < now {
            Some(ChainError::IssuerExpired)
        } else {
            (anchor.not_before > now).then_some(ChainError::IssuerNotYetValid)
        };
        if let Some(cause) = anchor_error {
            return Err(Box::new(RefusedChain::by_anchor(cause, leaf, anchor)));
        }
        let mut valid_until = anchor.not_after;
        if let Some(lists) = &self.revoked {
            valid_until = valid_until.min(lists.valid_until());
        }
        let issuers = path.intermediate_certificates().map(|issuer| issuer.der());
        for der in issuers.chain([leaf.clone()]) {
            let summary = CertSummary::from_der(&der).map_err(|_unreadable| malformed())?;
            valid_until = valid_until.min(summary.not_after);
        }
        Ok(valid_until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use standin::{TempDir, pki::Ca};

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn load(dir: &TempDir, ca: &Ca, list: Option<String>) -> ClientCa {
        let list = list.map(|list| dir.write("users.crl", list));
        ClientCa::load(&dir.write("ca.crt", ca.pem()), list.as_deref(), now()).unwrap()
    }

    /// A time whose fraction of a second is zero, as in certificates.
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_478_400)
    }

    /// A certificate that is accepted once is accepted until the first of these dates.
    #[test]
    fn earliest_date_limits_the_result() {
        let (dir, ca) = (TempDir::new(), Ca::new("users"));
        let leaf = |until| ca.leaf(&[]).client_auth().valid_until(until).build();
        let until = |list: Option<SystemTime>, leaf: &standin::pki::Identity| {
            let list = list.map(|next| ca.revocation_list(&[], next));
            load(&dir, &ca, list).verify(&leaf.chain, now()).unwrap()
        };
        let (soon, late) = (now() + HOUR, now() + HOUR * 2);
        assert_eq!(until(None, &leaf(soon)), soon);
        assert_eq!(until(Some(late), &leaf(soon)), soon);
        assert_eq!(until(Some(soon), &leaf(late)), soon);
    }

    /// webpki does not know the dates of trust anchors, and a file is not read again at once.
    #[test]
    fn expired_ca_refuses_its_certificates() {
        let (dir, ca) = (TempDir::new(), Ca::new("users"));
        let loaded = load(&dir, &ca, None);
        let leaf = ca.client("jane", &[]);
        loaded.verify(&leaf.chain, now()).unwrap();
        let year = HOUR * 24 * 366;
        let ever = ca
            .leaf(&[])
            .client_auth()
            .valid_until(now() + year * 200)
            .build();
        for (at, cause) in [
            (now() + year * 90, ChainError::IssuerExpired),
            (SystemTime::UNIX_EPOCH + year * 40, ChainError::NotYetValid),
        ] {
            let refused = loaded.verify(&ever.chain, at).unwrap_err();
            assert_eq!(refused.cause, cause);
        }
    }

    #[test]
    fn empty_chain_is_refused() {
        let (dir, ca) = (TempDir::new(), Ca::new("users"));
        let refused = load(&dir, &ca, None).verify(&[], now()).unwrap_err();
        assert_eq!(refused.cause, ChainError::Malformed);
    }

    #[test]
    fn same_files_are_the_same_and_others_are_not() {
        let (dir, ca) = (TempDir::new(), Ca::new("users"));
        let list = |serial| Some(ca.revocation_list(&[serial], now() + HOUR));
        let (one, first, second) = (load(&dir, &ca, None), list(1), list(2));
        assert!(one.is_same(&load(&dir, &ca, None)));
        assert!(!one.is_same(&load(&dir, &Ca::new("users"), None)));
        assert!(!one.is_same(&load(&dir, &ca, first.clone())));
        let with_first = load(&dir, &ca, first.clone());
        assert!(with_first.is_same(&load(&dir, &ca, first)));
        assert!(!with_first.is_same(&load(&dir, &ca, second)));
        assert_eq!(with_first.revoked().map(RevocationLists::revoked), Some(1));
    }
}
