//! The main fields of a certificate, in a form that is safe to print.
//!
//! The bytes may come from a hostile peer: nothing here panics, and no control character, bidi mark
//! or endless name reaches a log line.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::{self, DateTime, Decode, oid::ObjectIdentifier},
    ext::pkix::{ExtendedKeyUsage, SubjectAltName, name::GeneralName},
};

use crate::text::escape;

/// Who a certificate is for, who issued it, and when it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertSummary {
    /// Distinguished name of the owner, as RFC 4514 writes it; may be empty.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// DNS names (lower case) and IP addresses of the subjectAltName extension.
    pub sans: Vec<String>,
    /// Valid from here.
    pub not_before: SystemTime,
    /// Valid up to here.
    pub not_after: SystemTime,
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
    /// Whether the extended key usage allows TLS servers. A certificate without that extension allows everything.
    pub(super) server_auth: bool,
}

/// Bytes that are not an X.509 certificate.
#[derive(Debug, thiserror::Error)]
#[error("not an X.509 certificate ({0})")]
pub struct UnreadableCertificate(der::Error);

impl CertSummary {
    /// Reads the certificate in `der`.
    ///
    /// # Errors
    ///
    /// [`UnreadableCertificate`] when the bytes are not a certificate. Extensions that cannot be
    /// read count as absent.
    pub fn from_der(der: &CertificateDer<'_>) -> Result<Self, UnreadableCertificate> {
        let certificate = Certificate::from_der(der).map_err(UnreadableCertificate)?;
        let tbs = certificate.tbs_certificate();
        let sans = match tbs.get_extension::<SubjectAltName>() {
            Ok(Some((_critical, names))) => names.0.iter().filter_map(san).collect(),
            Ok(None) | Err(_) => Vec::new(),
        };
        let server_auth = match tbs.get_extension::<ExtendedKeyUsage>() {
            Ok(Some((_critical, usage))) => usage
                .0
                .iter()
                .any(|oid| *oid == SERVER_AUTH || *oid == ANY_USAGE),
            Ok(None) | Err(_) => true,
        };
        Ok(Self {
            subject: escape(&tbs.subject().to_string(), MAX_NAME_CHARS).to_string(),
            issuer: escape(&tbs.issuer().to_string(), MAX_NAME_CHARS).to_string(),
            sans,
            not_before: tbs.validity().not_before.to_system_time(),
            not_after: tbs.validity().not_after.to_system_time(),
            sha256: sha256(der),
            server_auth,
        })
    }

    /// The fingerprint as OpenSSL prints it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint<'_> {
        Fingerprint(&self.sha256)
    }

    /// Whole days from `now` until the certificate expires; 0 if it has expired.
    #[must_use]
    pub fn days_left(&self, now: SystemTime) -> u64 {
        self.not_after
            .duration_since(now)
            .map_or(0, |left| left.as_secs() / SECONDS_PER_DAY)
    }
}

impl fmt::Display for CertSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (issued by {}, for {}, valid {} to {}, SHA-256 {})",
            or_none(&self.subject),
            or_none(&self.issuer),
            or_none(&self.sans.join(", ")),
            UtcDate(self.not_before),
            UtcDate(self.not_after),
            self.fingerprint(),
        )
    }
}

/// A SHA-256 as upper-case hex pairs with colons, like `openssl x509 -fingerprint`.
#[derive(Debug, Clone, Copy)]
pub struct Fingerprint<'a>(&'a str);

impl fmt::Display for Fingerprint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, digit) in self.0.chars().enumerate() {
            if index > 0 && index % 2 == 0 {
                f.write_str(":")?;
            }
            write!(f, "{}", digit.to_ascii_uppercase())?;
        }
        Ok(())
    }
}

/// A point in time, written as `2026-11-24T02:10:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtcDate(pub SystemTime);

impl fmt::Display for UtcDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::from_system_time(self.0) {
            Ok(date) => write!(f, "{date}"),
            Err(_) => f.write_str("a date before 1970 or after 9999"),
        }
    }
}

/// A number of days, written as `1 day` or `61 days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days(pub u64);

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("1 day"),
            days => write!(f, "{days} days"),
        }
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "(none)" } else { text }
}

fn san(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => {
            let name = name.as_str().to_ascii_lowercase();
            Some(escape(&name, MAX_NAME_CHARS).to_string())
        }
        GeneralName::IpAddress(octets) => address(octets.as_bytes()).map(|ip| ip.to_string()),
        GeneralName::OtherName(_)
        | GeneralName::Rfc822Name(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::UniformResourceIdentifier(_)
        | GeneralName::RegisteredId(_) => None,
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(octets)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

fn sha256(der: &[u8]) -> String {
    digest(&SHA256, der)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
const MAX_NAME_CHARS: usize = 256;
