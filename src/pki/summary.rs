//! The main fields of a certificate, in a form that is safe to print.
//!
//! The bytes may come from a hostile peer: nothing here panics, and no control character, bidi mark
//! or endless name reaches a log line.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::RsaParameters,
};
use rustls_pki_types::CertificateDer;
use x509_cert::{
    certificate::{CertificateInner, Profile, TbsCertificateInner, Version},
    der::{self, DateTime, Decode, Encode as _, oid::ObjectIdentifier},
    ext::pkix::{BasicConstraints, ExtendedKeyUsage, SubjectAltName, name::GeneralName},
    serial_number::SerialNumber,
};

use crate::text::escape;

/// Who a certificate is for, who issued it, and when it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertSummary {
    /// Distinguished name of the owner, as RFC 4514 writes it; may be empty.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// DNS names (lower case) and IP addresses of the subjectAltName extension. An IP address that is written as a DNS
    /// name matches no host; it begins with `DNS:`.
    pub sans: Vec<String>,
    /// Valid from here.
    pub not_before: SystemTime,
    /// Valid up to here.
    pub not_after: SystemTime,
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
    /// The issuer's name in DER.
    pub(crate) issuer_der: Vec<u8>,
    /// Whether the extended key usage allows TLS servers. A certificate without that extension allows everything.
    pub(super) server_auth: bool,
    /// Whether the extended key usage allows TLS clients.
    pub(super) client_auth: bool,
    /// Whether it may issue certificates. One of version 1 does not say, and may.
    pub(super) is_ca: bool,
    /// What is wrong with its key for verifying signatures, as the rest of a sentence.
    pub(super) unusable_key: Option<String>,
    /// Its critical extensions that webpki does not know.
    pub(super) unsupported_extensions: Vec<String>,
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
        let certificate =
            CertificateInner::<AnySerial>::from_der(der).map_err(UnreadableCertificate)?;
        let tbs = certificate.tbs_certificate();
        let sans = match tbs.get_extension::<SubjectAltName>() {
            Ok(Some((_critical, names))) => names.0.iter().filter_map(san).collect(),
            Ok(None) | Err(_) => Vec::new(),
        };
        let usage = tbs.get_extension::<ExtendedKeyUsage>();
        let allows = |purpose| match &usage {
            Ok(Some((_critical, usage))) => usage
                .0
                .iter()
                .any(|oid| *oid == purpose || *oid == ANY_USAGE),
            Ok(None) | Err(_) => true,
        };
        Ok(Self {
            subject: text_of(tbs.subject()),
            issuer: text_of(tbs.issuer()),
            sans,
            not_before: tbs.validity().not_before.to_system_time(),
            not_after: tbs.validity().not_after.to_system_time(),
            sha256: sha256(der),
            issuer_der: tbs.issuer().to_der().unwrap_or_default(),
            server_auth: allows(SERVER_AUTH),
            client_auth: allows(CLIENT_AUTH),
            is_ca: is_ca(tbs),
            unusable_key: unusable_key(tbs),
            unsupported_extensions: unsupported_extensions(tbs),
        })
    }

    /// Whether less than two weeks are left, for a CA a month, or less than a third of the lifetime if that is shorter:
    /// certificates that live for a week are renewed automatically, and never have two weeks left.
    #[must_use]
    pub fn expires_soon(&self, now: SystemTime) -> bool {
        let enough = if self.is_ca {
            MIN_CA_TIME_LEFT
        } else {
            MIN_TIME_LEFT
        };
        let lifetime = self.not_after.duration_since(self.not_before);
        let enough = lifetime.map_or(enough, |lifetime| enough.min(lifetime / 3));
        self.not_after.duration_since(now).unwrap_or_default() < enough
    }

    /// The fingerprint as OpenSSL prints it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint<'_> {
        Fingerprint(&self.sha256)
    }

    /// The time from `now` until the certificate expires; nothing if it has expired.
    #[must_use]
    pub fn time_left(&self, now: SystemTime) -> TimeLeft {
        TimeLeft(self.not_after.duration_since(now).unwrap_or_default())
    }
}

/// A name of a certificate, safe for logs and terminals.
pub(super) fn text_of(name: &impl fmt::Display) -> String {
    escape(&name.to_string(), MAX_NAME_CHARS).to_string()
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

/// A time in whole days or, below two days, in whole hours: some CAs and certificates live for a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLeft(pub Duration);

impl fmt::Display for TimeLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() / SECONDS_PER_HOUR {
            0 => f.write_str("less than an hour"),
            1 => f.write_str("1 hour"),
            hours if hours < 48 => write!(f, "{hours} hours"),
            hours => write!(f, "{} days", hours / 24),
        }
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "(none)" } else { text }
}

/// Reads serial numbers of any length: some CAs have one of 40 bytes, and Go and OpenSSL read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AnySerial;

impl Profile for AnySerial {
    fn check_serial_number(_serial: &SerialNumber<Self>) -> der::Result<()> {
        Ok(())
    }
}

fn is_ca(tbs: &TbsCertificateInner<AnySerial>) -> bool {
    match tbs.get_extension::<BasicConstraints>() {
        Ok(Some((_critical, constraints))) => constraints.ca,
        Ok(None) => tbs.version() != Version::V3,
        Err(_) => false,
    }
}

/// What is wrong with the key of a CA: rustls verifies nothing with it.
fn unusable_key(tbs: &TbsCertificateInner<AnySerial>) -> Option<String> {
    let info = tbs.subject_public_key_info();
    let bytes = info.subject_public_key.raw_bytes();
    let algorithm = &info.algorithm;
    if algorithm.oid == RSA {
        return match RsaParameters::public_modulus_len(bytes) {
            Ok(MIN_RSA_BITS..=MAX_RSA_BITS) => None,
            Ok(bits) => Some(format!("has an RSA key of {bits} bits")),
            Err(_) => Some("has an RSA key that cannot be read".to_owned()),
        };
    }
    if algorithm.oid == ELLIPTIC_CURVE {
        let curve = algorithm.parameters.as_ref();
        let curve = curve.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let is_known = curve.is_some_and(|curve| CURVES.contains(&curve));
        return (!is_known)
            .then(|| "has a key on an elliptic curve that is not supported".to_owned());
    }
    (algorithm.oid != ED25519).then(|| "has a key of a kind that is not supported".to_owned())
}

fn unsupported_extensions(tbs: &TbsCertificateInner<AnySerial>) -> Vec<String> {
    let extensions = tbs.extensions().into_iter().flatten();
    extensions
        .filter(|extension| {
            extension.critical && !SUPPORTED_EXTENSIONS.contains(&extension.extn_id)
        })
        .map(|extension| {
            let named = EXTENSION_NAMES
                .iter()
                .find(|(oid, _)| *oid == extension.extn_id);
            named.map_or_else(
                || extension.extn_id.to_string(),
                |(_, name)| (*name).to_owned(),
            )
        })
        .collect()
}

fn san(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => {
            let mut name = name.as_str().to_ascii_lowercase();
            if name.parse::<IpAddr>().is_ok() {
                name.insert_str(0, "DNS:");
            }
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

pub(super) fn sha256(der: &[u8]) -> String {
    digest(&SHA256, der)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ELLIPTIC_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// P-256, P-384 and P-521.
const CURVES: [ObjectIdentifier; 3] = [
    ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7"),
    ObjectIdentifier::new_unwrap("1.3.132.0.34"),
    ObjectIdentifier::new_unwrap("1.3.132.0.35"),
];
/// What rustls accepts of RSA keys.
const MIN_RSA_BITS: u32 = 2048;
const MAX_RSA_BITS: u32 = 8192;
/// Key usage, alternative name, basic constraints, name constraints, CRL distribution points, extended key usage.
const SUPPORTED_EXTENSIONS: [ObjectIdentifier; 6] = [
    ObjectIdentifier::new_unwrap("2.5.29.15"),
    ObjectIdentifier::new_unwrap("2.5.29.17"),
    ObjectIdentifier::new_unwrap("2.5.29.19"),
    ObjectIdentifier::new_unwrap("2.5.29.30"),
    ObjectIdentifier::new_unwrap("2.5.29.31"),
    ObjectIdentifier::new_unwrap("2.5.29.37"),
];
const EXTENSION_NAMES: [(ObjectIdentifier, &str); 6] = [
    (
        ObjectIdentifier::new_unwrap("2.5.29.14"),
        "subjectKeyIdentifier",
    ),
    (
        ObjectIdentifier::new_unwrap("2.5.29.32"),
        "certificatePolicies",
    ),
    (ObjectIdentifier::new_unwrap("2.5.29.33"), "policyMappings"),
    (
        ObjectIdentifier::new_unwrap("2.5.29.35"),
        "authorityKeyIdentifier",
    ),
    (
        ObjectIdentifier::new_unwrap("2.5.29.36"),
        "policyConstraints",
    ),
    (
        ObjectIdentifier::new_unwrap("2.5.29.54"),
        "inhibitAnyPolicy",
    ),
];
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
const SECONDS_PER_HOUR: u64 = 60 * 60;
const SECONDS_PER_DAY: u64 = 24 * SECONDS_PER_HOUR;
const MIN_TIME_LEFT: Duration = Duration::from_secs(14 * SECONDS_PER_DAY);
/// A CA is replaced by hand in most clusters, so there must be time to do it.
const MIN_CA_TIME_LEFT: Duration = Duration::from_secs(30 * SECONDS_PER_DAY);
const MAX_NAME_CHARS: usize = 256;
