//! Errors of rustls and webpki in plain words. Their own texts are names of Rust types and lists of bytes.
//!
//! Every stage and both legs take the words from here: `text::error_chain` does for the log, `check` for its
//! findings.

use std::borrow::Cow;

use rustls::{AlertDescription, CertificateError, Error};

/// Why a certificate chain is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the phrase of each variant is its documentation"
)]
pub enum ChainError {
    Expired,
    IssuerExpired,
    NotYetValid,
    IssuerNotYetValid,
    OtherName,
    Untrusted,
    OtherPurpose,
    Revoked,
    UnknownStatus,
    ListOutOfDate,
    CaForServer,
    IssuerIsNoCa,
    ChainTooLong,
    NameConstraint,
    CriticalExtension,
    SignatureAlgorithm,
    Version,
    SerialNumber,
    Malformed,
    TooComplex,
    Other,
}

impl ChainError {
    /// The reason as the rest of a sentence that begins with "the certificate". It has no name or address, so that it
    /// can be sent to a client.
    #[must_use]
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Expired => "has expired",
            Self::IssuerExpired => "has an issuer in its chain that has expired",
            Self::NotYetValid => "is not valid yet",
            Self::IssuerNotYetValid => "has an issuer in its chain that is not valid yet",
            Self::OtherName => "is for another name",
            Self::Untrusted => "is not signed by a trusted CA",
            Self::OtherPurpose => "is not a server certificate",
            Self::Revoked => "is revoked",
            Self::UnknownStatus => "may be revoked: no revocation list is from its issuer",
            Self::ListOutOfDate => "may be revoked: the revocation list is out of date",
            Self::CaForServer => "is a CA certificate, and those are not for servers",
            Self::IssuerIsNoCa => "has an issuer in its chain that is no CA",
            Self::ChainTooLong => "has more issuers in its chain than one of its CAs allows",
            Self::NameConstraint => "is for a name that one of its CAs must not issue for",
            Self::CriticalExtension => "has a critical extension that is not supported",
            Self::SignatureAlgorithm => {
                "is signed with an algorithm that is not supported, such as SHA-1"
            }
            Self::Version => "is not of version 3",
            Self::SerialNumber => "has a serial number that is not valid",
            Self::Malformed => "is malformed",
            Self::TooComplex => "has a chain that takes too long to verify",
            Self::Other => "cannot be verified",
        }
    }

    /// How the issuer or the owner of the certificate fixes it.
    #[must_use]
    pub const fn fix(self) -> &'static str {
        match self {
            Self::Expired => "renew it, or correct the clock of this machine",
            Self::IssuerExpired => "fetch the current chain of the issuer",
            Self::NotYetValid | Self::IssuerNotYetValid => {
                "correct the clock of this machine (NTP), or wait until then"
            }
            Self::OtherName => "issue it again with the name as subjectAltName",
            Self::Untrusted => "trust the CA that issued it, or issue it from a trusted CA",
            Self::OtherPurpose => "issue it again with the extended key usage serverAuth",
            Self::Revoked => "issue a new one",
            Self::UnknownStatus => {
                "add the current revocation list of each CA in the chain to the file"
            }
            Self::ListOutOfDate => "fetch the current revocation list of the CA",
            Self::CaForServer => "issue a certificate that is no CA (CA:FALSE) for the server",
            Self::IssuerIsNoCa => "issue it from a CA whose certificate says CA:TRUE",
            Self::ChainTooLong => {
                "issue it from a CA with fewer issuers above it, or raise the path length of the CA"
            }
            Self::NameConstraint => {
                "issue it from a CA whose name constraints allow the name, or change them"
            }
            Self::CriticalExtension => "issue it again with that extension not critical",
            Self::SignatureAlgorithm => {
                "issue it again, signed with SHA-256 and an ECDSA P-256 key or an RSA key of 2048 bits or more"
            }
            Self::Version => "issue it again as version 3",
            Self::SerialNumber => {
                "issue it again with a positive serial number of at most 20 bytes"
            }
            Self::Malformed | Self::Other => "issue it again, for example with openssl",
            Self::TooComplex => "send only the issuers between the certificate and its root",
        }
    }
}

impl From<&CertificateError> for ChainError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "rustls may add causes; an unknown cause still refuses"
    )]
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            // webpki looks for the issuer by name. If a trusted CA has the name but another key, the signature is
            // bad, or of a kind that does not fit the key: kubeadm calls the CA of every cluster `kubernetes`.
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                Self::Untrusted
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::OtherPurpose
            }
            CertificateError::Revoked => Self::Revoked,
            CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
                Self::SignatureAlgorithm
            }
            CertificateError::UnhandledCriticalExtension => Self::CriticalExtension,
            CertificateError::BadEncoding => Self::Malformed,
            CertificateError::Other(other) => {
                let webpki = other.0.downcast_ref::<webpki::Error>();
                webpki.map_or(Self::Other, Self::from)
            }
            _ => Self::Other,
        }
    }
}

/// The errors that rustls passes on as they are.
impl From<&webpki::Error> for ChainError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "webpki may add causes; an unknown cause still refuses"
    )]
    fn from(error: &webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } => Self::Expired,
            E::CertNotValidYet { .. } => Self::NotYetValid,
            E::CertRevoked => Self::Revoked,
            E::CrlExpired { .. } => Self::ListOutOfDate,
            E::UnknownRevocationStatus
            | E::InvalidCrlSignatureForPublicKey
            | E::IssuerNotCrlSigner => Self::UnknownStatus,
            E::UnknownIssuer
            | E::InvalidSignatureForPublicKey
            | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Self::Untrusted,
            E::UnsupportedSignatureAlgorithmContext(_) => Self::SignatureAlgorithm,
            E::RequiredEkuNotFoundContext(_) => Self::OtherPurpose,
            E::CaUsedAsEndEntity => Self::CaForServer,
            E::EndEntityUsedAsCa => Self::IssuerIsNoCa,
            E::PathLenConstraintViolated => Self::ChainTooLong,
            E::NameConstraintViolation => Self::NameConstraint,
            E::UnsupportedCriticalExtension => Self::CriticalExtension,
            E::SignatureAlgorithmMismatch => Self::Malformed,
            E::UnsupportedCertVersion => Self::Version,
            E::InvalidSerialNumber => Self::SerialNumber,
            E::EmptyEkuExtension => Self::OtherPurpose,
            E::CertDistrusted => Self::Untrusted,
            E::MaximumPathBuildCallsExceeded
            | E::MaximumPathDepthExceeded
            | E::MaximumSignatureChecksExceeded
            | E::MaximumNameConstraintComparisonsExceeded => Self::TooComplex,
            E::BadDer
            | E::BadDerTime
            | E::TrailingData(_)
            | E::ExtensionValueInvalid
            | E::InvalidNetworkMaskConstraint
            | E::MalformedDnsIdentifier
            | E::MalformedExtensions
            | E::MalformedNameConstraint
            | E::UnsupportedNameType => Self::Malformed,
            _ => Self::Other,
        }
    }
}

/// An error of rustls, as a clause.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls may add kinds; an unknown one is still a failure of TLS"
)]
pub(crate) fn describe(error: &Error) -> Cow<'static, str> {
    match error {
        Error::AlertReceived(alert) => describe_alert(*alert),
        Error::InvalidCertificate(error) => {
            let reason = ChainError::from(error).phrase();
            format!("the certificate of the peer {reason}").into()
        }
        Error::NoCertificatesPresented => "the peer presents no certificate".into(),
        Error::InvalidMessage(_) => "the peer sends data that is not valid TLS".into(),
        Error::PeerSentOversizedRecord => "the peer sends a TLS record that is too large".into(),
        Error::PeerIncompatible(_) => {
            "the peer has no TLS version, cipher suite or key exchange in common with the proxy"
                .into()
        }
        Error::NoApplicationProtocol => {
            "the peer offers neither HTTP/2 nor HTTP/1.1 in ALPN".into()
        }
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidEncryptedClientHello(_) => "the peer violates the TLS protocol".into(),
        Error::DecryptError => {
            "a TLS record cannot be decrypted; it was changed on the way, or belongs to another connection"
                .into()
        }
        _ => "TLS failed".into(),
    }
}

/// A fatal alert of the peer. The name in parentheses is that of RFC 8446 §6.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the name says enough about the other alerts"
)]
fn describe_alert(alert: AlertDescription) -> Cow<'static, str> {
    use AlertDescription as A;
    let meaning = match alert {
        A::UnknownCA => "the peer does not trust the CA of the certificate",
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateUnknown
        | A::CertificateRevoked => "the peer refuses the certificate",
        A::CertificateExpired => "the peer finds the certificate expired",
        A::CertificateRequired => "the peer requires a client certificate",
        A::ProtocolVersion => "the peer does not speak TLS 1.2 or 1.3",
        A::HandshakeFailure | A::InsufficientSecurity => "the peer finds no TLS settings in common",
        A::UnrecognisedName => "the peer does not serve the requested name",
        A::NoApplicationProtocol => "the peer has no ALPN protocol in common",
        A::AccessDenied => "the peer denies access",
        A::InternalError => "the peer has an internal error",
        A::UserCanceled => "the peer cancelled the handshake",
        _ => "the peer ended the connection",
    };
    match alert_name(alert) {
        Some(name) => format!("{meaning} (TLS alert {name})").into(),
        None => format!("{meaning} (TLS alert {})", u8::from(alert)).into(),
    }
}

/// `text` with the alert of rustls in it, if there is one, in plain words. Errors of HTTP/2 keep only the text of their
/// cause.
pub(crate) fn plain(text: String) -> String {
    let Some((before, rest)) = text.split_once(ALERT) else {
        return text;
    };
    let end = rest.find(|char: char| !char.is_ascii_alphanumeric());
    let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
    let found = (0..=u8::MAX)
        .map(AlertDescription::from)
        .find(|alert| format!("{alert:?}") == name);
    match found {
        Some(alert) => format!("{before}{}{after}", describe_alert(alert)),
        None => text,
    }
}

/// The name of an alert in RFC 8446 §6 and the RFCs before it; `None` for one that rustls does not know.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls may add alerts; their number is enough"
)]
const fn alert_name(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as A;
    Some(match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::DecryptionFailed => "decryption_failed",
        A::RecordOverflow => "record_overflow",
        A::DecompressionFailure => "decompression_failure",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ExportRestriction => "export_restriction",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::NoRenegotiation => "no_renegotiation",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::CertificateUnobtainable => "certificate_unobtainable",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::BadCertificateHashValue => "bad_certificate_hash_value",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        A::EncryptedClientHelloRequired => "ech_required",
        _ => return None,
    })
}

const ALERT: &str = "received fatal alert: ";

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use rustls::{InvalidMessage, OtherError, PeerIncompatible, PeerMisbehaved};

    use super::*;
    use crate::text::error_chain;

    fn other(error: webpki::Error) -> CertificateError {
        CertificateError::Other(OtherError(Arc::new(error)))
    }

    #[test]
    fn every_reason_of_a_refusal_has_words_of_its_own() {
        use webpki::Error as E;
        for (error, expected) in [
            (CertificateError::BadEncoding, ChainError::Malformed),
            (CertificateError::BadSignature, ChainError::Untrusted),
            (
                CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                    signature_algorithm_id: vec![6, 8, 42],
                    public_key_algorithm_id: vec![6, 9, 42],
                },
                ChainError::Untrusted,
            ),
            (
                CertificateError::UnsupportedSignatureAlgorithmContext {
                    signature_algorithm_id: vec![6, 8, 42],
                    supported_algorithms: Vec::new(),
                },
                ChainError::SignatureAlgorithm,
            ),
            (other(E::CaUsedAsEndEntity), ChainError::CaForServer),
            (other(E::EndEntityUsedAsCa), ChainError::IssuerIsNoCa),
            (
                other(E::PathLenConstraintViolated),
                ChainError::ChainTooLong,
            ),
            (
                other(E::NameConstraintViolation),
                ChainError::NameConstraint,
            ),
            (
                other(E::UnsupportedCriticalExtension),
                ChainError::CriticalExtension,
            ),
            (other(E::UnsupportedCertVersion), ChainError::Version),
            (other(E::InvalidSerialNumber), ChainError::SerialNumber),
            (other(E::MaximumPathDepthExceeded), ChainError::TooComplex),
            (other(E::MalformedExtensions), ChainError::Malformed),
        ] {
            let found = ChainError::from(&error);
            assert_eq!(found, expected, "{error:?}");
            let text = format!("{}; {}", found.phrase(), found.fix());
            assert!(!text.contains(['[', '{']), "{text}");
        }
    }

    #[test]
    fn no_error_of_rustls_reaches_a_message_as_debug_text() {
        for (error, part) in [
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                "does not trust the CA of the certificate (TLS alert unknown_ca)",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateRequired),
                "requires a client certificate (TLS alert certificate_required)",
            ),
            (
                Error::AlertReceived(AlertDescription::Unknown(200)),
                "(TLS alert 200)",
            ),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                "not valid TLS",
            ),
            (
                Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
                "in common",
            ),
            (
                Error::PeerMisbehaved(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec),
                "violates the TLS protocol",
            ),
            (
                Error::InvalidCertificate(CertificateError::BadEncoding),
                "the certificate of the peer is malformed",
            ),
            (Error::General("General".into()), "TLS failed"),
        ] {
            let debug = format!("{error:?}");
            let inside = debug
                .trim_end_matches(')')
                .rsplit(['(', '"'])
                .find(|word| !word.is_empty());
            let inside = inside.unwrap_or_default().to_owned();
            let direct = error_chain(&error).to_string();
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error.clone());
            assert_eq!(error_chain(&wrapped).to_string(), direct);
            assert!(
                direct.contains(part) && !direct.contains(&inside),
                "{direct}"
            );
        }
    }

    #[test]
    fn alert_in_the_text_of_an_http2_error_is_translated() {
        let error =
            io::Error::other("connection error: received fatal alert: CertificateRequired: end");
        assert_eq!(
            error_chain(&error).to_string(),
            "connection error: the peer requires a client certificate (TLS alert certificate_required): end"
        );
        let error = io::Error::other("received fatal alert: Nonsense");
        assert_eq!(
            error_chain(&error).to_string(),
            "received fatal alert: Nonsense"
        );
    }
}
