//! One checked [`Identity`] from each source of certificates.
//!
//! A certificate that a CA issues by ACME is in one file with its key, because two files could be read between two
//! renames. Its dates are no error: an expired one says to clients what is wrong until the renewal works.

use std::{path::Path, time::SystemTime};

use x509_cert::{
    Certificate,
    der::{Decode as _, Encode as _},
    ext::pkix::AuthorityKeyIdentifier,
};

use super::{Identity, PkiError, PkiFileError, error::ExpectedPem, identity::ChainAndKey};
use crate::config::{AcmeConfig, CertificateSource, IdentityFiles, ReadError, read_file};

impl Identity {
    /// Reads and checks the certificate of one source. `None` if a CA has not issued it yet.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn from_source(
        source: &CertificateSource,
        now: SystemTime,
    ) -> Result<Option<Self>, PkiError> {
        match source {
            CertificateSource::Files(files) => Self::load(files, now).map(Some),
            CertificateSource::Acme(config) => Self::stored(config, now),
        }
    }

    /// Reads and checks the certificate in a store. `None` if there is none.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`], but never for the dates of the certificate.
    pub fn stored(config: &AcmeConfig, now: SystemTime) -> Result<Option<Self>, PkiError> {
        let file = config.certificate_file();
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(ReadError::Missing) => return Ok(None),
            Err(error) => {
                let source = Box::new(PkiFileError::read(&file, error));
                return Err(PkiError::Certificate { file, source });
            }
        };
        let parsed = match Self::from_key_and_chain(&text, &file, now) {
            Err(refused) => match refused.time_of_other_validity() {
                Some(valid) => Self::from_key_and_chain(&text, &file, valid),
                None => Err(refused),
            },
            parsed => parsed,
        };
        parsed.map(Some)
    }

    /// Checks PEM text with a private key and then its chain; `file` is for messages.
    ///
    /// # Errors
    ///
    /// As [`Identity::load`].
    pub fn from_key_and_chain(text: &[u8], file: &Path, now: SystemTime) -> Result<Self, PkiError> {
        let at = text.windows(CHAIN.len()).position(|part| part == CHAIN);
        let Some((key, chain)) = at.and_then(|at| text.split_at_checked(at)) else {
            return Err(PkiError::Certificate {
                file: file.to_owned(),
                source: Box::new(PkiFileError::Lacks {
                    expected: ExpectedPem::Chain,
                }),
            });
        };
        let files = IdentityFiles {
            certificate: file.to_owned(),
            key: file.to_owned(),
        };
        Self::from_chain_and_key(ChainAndKey::parse(&files, chain, key, now)?, file, now)
    }

    /// The parts of the name of the leaf towards its CA (RFC 9773 §4.1): the key identifier of the CA, and the bytes
    /// of the serial number.
    /// `None` if the certificate does not say which key of the CA has signed it.
    #[must_use]
    pub fn issuer_and_serial(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let key = self.certified_key();
        let certificate = Certificate::from_der(key.cert.first()?).ok()?;
        let tbs = certificate.tbs_certificate();
        let (_, issuer) = tbs.get_extension::<AuthorityKeyIdentifier>().ok()??;
        let issuer = issuer.key_identifier?.as_bytes().to_vec();
        let serial = tbs.serial_number().to_der().ok()?;
        Some((issuer, serial.get(DER_HEADER..)?.to_vec()))
    }
}

/// Tag and length of a serial number, which has at most 20 bytes.
const DER_HEADER: usize = 2;
/// Where the chain begins.
const CHAIN: &[u8] = b"-----BEGIN CERTIFICATE-----";
