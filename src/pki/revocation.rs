//! The certificate revocation lists of the CA of clients.
//!
//! A set of lists is never empty, and each list says until when it is valid: an empty set must not mean "nothing is
//! revoked".

use std::{path::Path, time::SystemTime};

use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_cert::{crl::CertificateList, der::Decode as _};

use super::{
    UtcDate,
    error::{PkiError, PkiFileError},
    pem,
    summary::{AnySerial, sha256, text_of},
};
use crate::config::read_file;

/// The lists of one file.
#[derive(Debug)]
pub struct RevocationLists {
    lists: Vec<CertRevocationList<'static>>,
    summaries: Vec<ListSummary>,
    sha256: String,
}

/// What a status page says of one list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListSummary {
    /// The CA that has signed it.
    pub issuer: String,
    /// When it is out of date.
    pub next_update: SystemTime,
    /// How many certificates are revoked.
    pub revoked: usize,
}

impl RevocationLists {
    /// Reads the lists of a file. One that is out of date is read, too: it refuses all certificates of its CA.
    ///
    /// # Errors
    ///
    /// [`PkiError::Revocation`] says what is wrong with the file, and how to fix it.
    pub fn load(file: &Path) -> Result<Self, PkiError> {
        let text = read_file(file).map_err(|error| PkiFileError::read(file, error));
        let lists = text.and_then(|text| Self::parse(&text).map_err(|error| error.of_file(file)));
        lists.map_err(|error| PkiError::Revocation {
            file: file.to_owned(),
            source: Box::new(error),
        })
    }

    fn parse(text: &[u8]) -> Result<Self, PkiFileError> {
        let mut parsed = Self {
            lists: Vec::new(),
            summaries: Vec::new(),
            sha256: sha256(text),
        };
        for (index, der) in pem::revocation_lists(text)?.into_iter().enumerate() {
            let position = index.saturating_add(1);
            let unusable = |problem| PkiFileError::UnusableList { position, problem };
            let list = OwnedCertRevocationList::from_der(&der)
                .map_err(|error| unusable(problem_of(&error)))?;
            // webpki checks this date, but does not tell it.
            let fields = CertificateList::<AnySerial>::from_der(&der)
                .map_err(|_unreadable| unusable(DAMAGED))?
                .tbs_cert_list;
            let next = fields
                .next_update
                .ok_or_else(|| unusable("has no date of the next update"))?
                .to_system_time();
            parsed.summaries.push(ListSummary {
                issuer: text_of(&fields.issuer),
                next_update: next,
                revoked: fields.revoked_certificates.map_or(0, |all| all.len()),
            });
            parsed.lists.push(CertRevocationList::Owned(list));
        }
        Ok(parsed)
    }

    /// The lists, in the form that webpki checks.
    pub(super) fn lists(&self) -> impl Iterator<Item = &CertRevocationList<'static>> {
        self.lists.iter()
    }

    /// When the first list is out of date.
    #[must_use]
    pub fn valid_until(&self) -> SystemTime {
        let dates = self.summaries.iter().map(|list| list.next_update);
        // Loading has checked that there is a list.
        dates.min().unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Issuer, date and size of each list.
    #[must_use]
    pub fn summaries(&self) -> &[ListSummary] {
        &self.summaries
    }

    /// Whether one of the lists is from this issuer.
    pub(super) fn is_of(&self, issuer: &str) -> bool {
        self.summaries.iter().any(|list| list.issuer == issuer)
    }

    /// How many certificates are revoked.
    #[must_use]
    pub fn revoked(&self) -> usize {
        self.summaries.iter().map(|list| list.revoked).sum()
    }

    /// Whether both come from the same text.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
    }

    /// A sentence about lists that are out of date; `None` if they are not.
    #[must_use]
    pub fn problem(&self, now: SystemTime) -> Option<String> {
        (self.valid_until() < now).then(|| {
            format!(
                "the revocation list is out of date since {}, so client certificates are refused; write the current list of the CA to the file",
                UtcDate(self.valid_until())
            )
        })
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other error says that the bytes are no list"
)]
fn problem_of(error: &webpki::Error) -> &'static str {
    use webpki::Error as E;
    match error {
        E::UnsupportedDeltaCrl => "is a delta list, which holds only changes",
        E::UnsupportedIndirectCrl => "is an indirect list, which holds certificates of other CAs",
        E::UnsupportedCrlVersion => "is not of version 2",
        E::UnsupportedCriticalExtension => "has a critical extension that is not supported",
        _ => DAMAGED,
    }
}

// Without extensions openssl writes version 1, which webpki cannot tell from damage.
const DAMAGED: &str = "is damaged, or not of version 2";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use standin::{TempDir, pki::Ca};

    use super::*;
    use crate::text::error_chain;

    fn load(text: &str) -> Result<RevocationLists, String> {
        let dir = TempDir::new();
        let file = dir.write("users.crl", text);
        RevocationLists::load(&file).map_err(|error| error_chain(&error).to_string())
    }

    #[test]
    fn first_list_to_be_out_of_date_counts() {
        let at =
            |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000 + hours * 3600);
        let lists = [(at(2), 2), (at(1), 1), (at(3), 0)].map(|(next, revoked)| {
            let serials: Vec<u64> = (1..=revoked).collect();
            Ca::new("users").revocation_list(&serials, next)
        });
        let loaded = load(&lists.concat()).unwrap();
        assert_eq!((loaded.valid_until(), loaded.revoked()), (at(1), 3));
        assert_eq!(loaded.problem(at(1)), None);
        let problem = loaded.problem(at(2)).unwrap();
        assert!(
            problem.starts_with("the revocation list is out of date since 2033-"),
            "{problem}"
        );
    }

    /// None of these may look like a list without entries.
    #[test]
    fn file_without_usable_list_is_refused() {
        let list =
            Ca::new("users").revocation_list(&[1], SystemTime::now() + Duration::from_secs(60));
        let other = Ca::new("users").pem();
        for (text, why) in [
            (
                String::new(),
                "is empty; put the certificate revocation list",
            ),
            ("text".to_owned(), "contains no PEM block"),
            (
                other.clone(),
                "line 1: a PEM block `CERTIFICATE` does not belong here; keep only certificate revocation lists",
            ),
            (
                list.clone() + &other,
                "a PEM block `CERTIFICATE` does not belong here",
            ),
            (
                list.replace("\nMI", "\nMJ"),
                "revocation list 1 of the file is damaged",
            ),
            (list.replace("-----END X509 CRL-----", ""), "is damaged"),
            (
                VERSION_1.to_owned(),
                "is damaged, or not of version 2; give the complete list of the CA, such as `openssl ca -gencrl` writes it with `crl_extensions`",
            ),
        ] {
            let error = load(&text).unwrap_err();
            assert!(
                error.contains(why) && error.starts_with("revocation list "),
                "{why}: {error}"
            );
        }
    }

    /// A list of `openssl ca -gencrl` without `crl_extensions`.
    const VERSION_1: &str = "-----BEGIN X509 CRL-----
MIGTMDwwCgYIKoZIzj0EAwIwEDEOMAwGA1UEAwwFdXNlcnMXDTI2MTEzMDIyMzgy
MloXDTI2MTIzMDIyMzgyMlowCgYIKoZIzj0EAwIDRwAwRAIgCUbQHP1mkD7zDiYP
gdSI41KOYfrzF7HzuDLVvUVvS5UCIDRDnXdHaauEj13yWXPiwEaOHiFwHUx3YC/J
PAW5k43E
-----END X509 CRL-----
";
}
