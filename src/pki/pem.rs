//! Splits PEM text into blocks, and refuses every block that does not belong there.
//!
//! The decoder of rustls skips blocks that it does not know, and everything outside of blocks. This module reads the
//! lines first, so that a block that the decoder would skip silently is an error.

use std::{borrow::Cow, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject,
};

use super::error::{ExpectedPem, PkiFileError};

/// Returns the certificates of `text` in order, at least one.
pub(super) fn certificates(
    text: &[u8],
    expected: ExpectedPem,
) -> Result<Vec<CertificateDer<'static>>, PkiFileError> {
    all_of("CERTIFICATE", text, expected)
}

/// Returns the certificate revocation lists of `text` in order, at least one.
pub(super) fn revocation_lists(
    text: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, PkiFileError> {
    all_of("X509 CRL", text, ExpectedPem::RevocationLists)
}

/// Returns the blocks with this label in order, at least one.
fn all_of<T: PemObject>(
    label: &str,
    text: &[u8],
    expected: ExpectedPem,
) -> Result<Vec<T>, PkiFileError> {
    let text = &*without_bom(text);
    let blocks = blocks(text, expected)?;
    for block in &blocks {
        match block.label {
            Some(found) if found == label => {}
            // `openssl dhparam` output, appended for other servers; TLS 1.3 does not use it.
            Some("DH PARAMETERS") if expected == ExpectedPem::Chain => {}
            _ => return Err(block.wrong_kind(expected)),
        }
    }
    let lines = blocks
        .iter()
        .filter(|block| block.label == Some(label))
        .map(|block| block.line);
    let mut found = Vec::new();
    let mut decoded = T::pem_slice_iter(text);
    let mut last = 1;
    for line in lines {
        match decoded.next() {
            Some(Ok(block)) => found.push(block),
            Some(Err(_)) | None => return Err(PkiFileError::Damaged { line }),
        }
        last = line;
    }
    // A block that only the decoder finds was not checked above.
    if decoded.next().is_some() {
        return Err(PkiFileError::Damaged { line: last });
    }
    if found.is_empty() {
        return Err(PkiFileError::Lacks { expected });
    }
    Ok(found)
}

/// Returns the private key of `text`, which must hold exactly one.
pub(super) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PkiFileError> {
    let expected = ExpectedPem::Key;
    let text = &*without_bom(text);
    let mut keys = Vec::new();
    for block in blocks(text, expected)? {
        match block.label {
            Some("ENCRYPTED PRIVATE KEY") => return Err(block.encrypted_key()),
            Some("PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY") if block.encrypted => {
                return Err(block.encrypted_key());
            }
            Some("PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY") => keys.push(block.line),
            // `openssl ecparam -genkey` writes the curve before the key.
            Some("EC PARAMETERS") => {}
            _ => return Err(block.wrong_kind(expected)),
        }
    }
    let line = match *keys.as_slice() {
        [] => return Err(PkiFileError::Lacks { expected }),
        [line] => line,
        _ => return Err(PkiFileError::SeveralKeys { count: keys.len() }),
    };
    PrivateKeyDer::from_pem_slice(text).map_err(|_damaged| PkiFileError::Damaged { line })
}

/// A certificate as PEM, in lines of 64 characters (RFC 7468 §2).
pub(super) fn text(certificate: &CertificateDer<'_>) -> String {
    let encoded = BASE64_STANDARD.encode(certificate);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// One PEM block, as its first lines describe it.
struct Block {
    line: usize,
    /// `None` if it is not one of [`LABELS`].
    label: Option<&'static str>,
    encrypted: bool,
}

impl Block {
    fn encrypted_key(&self) -> PkiFileError {
        PkiFileError::EncryptedKey {
            line: self.line,
            file: PathBuf::from("FILE"),
        }
    }

    fn wrong_kind(&self, expected: ExpectedPem) -> PkiFileError {
        PkiFileError::WrongKind {
            line: self.line,
            label: self.label,
            expected,
        }
    }
}

/// Returns the blocks of `text`. Every `BEGIN` must be at the start of a line and have its `END`.
fn blocks(text: &[u8], expected: ExpectedPem) -> Result<Vec<Block>, PkiFileError> {
    if text.trim_ascii().is_empty() {
        return Err(PkiFileError::Empty { expected });
    }
    // DER sequences: a PFX of version 3; a long sequence, as every certificate and most keys are; a short key,
    // which begins with its version.
    let file = PathBuf::from("FILE");
    match text {
        [0x30, 0x82, _, _, 0x02, 0x01, 0x03, ..] => {
            return Err(PkiFileError::Pkcs12 { expected, file });
        }
        [0x30, 0x81 | 0x82, ..] | [0x30, _, 0x02, 0x01, ..] => {
            return Err(PkiFileError::Der { expected, file });
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(PkiFileError::Utf16),
        _ => {}
    }
    let mut blocks: Vec<Block> = Vec::new();
    // The label of the block that has no `END` yet.
    let mut open: Option<&[u8]> = None;
    for (index, text) in text.split(|byte| *byte == b'\n').enumerate() {
        let (line, text) = (index.saturating_add(1), text.trim_ascii());
        let block = blocks.last_mut();
        if let Some(rest) = text.strip_prefix(BEGIN) {
            let begins = block.map_or(line, |block| block.line);
            if open.is_some() {
                return Err(PkiFileError::Damaged { line: begins });
            }
            let (label, after) = split_label(rest).ok_or(PkiFileError::Damaged { line })?;
            let known = known(label);
            if !after.is_empty() {
                let label = known.unwrap_or("…");
                return Err(PkiFileError::LineBreaksLost { line, label });
            }
            open = Some(label);
            blocks.push(Block {
                line,
                label: known,
                encrypted: false,
            });
        } else if let Some(rest) = text.strip_prefix(END) {
            let Some(block) = block.filter(|_| open.is_some()) else {
                return Err(PkiFileError::NoBegin { line });
            };
            match split_label(rest) {
                Some((_, after)) if after.starts_with(BEGIN) => {
                    return Err(PkiFileError::JoinedBlocks { line });
                }
                Some((label, after)) if open.take() == Some(label) => {
                    if !after.is_empty() {
                        return Err(PkiFileError::TextAfterEnd { line });
                    }
                }
                Some(_) | None => return Err(PkiFileError::Damaged { line: block.line }),
            }
        } else if open.is_none() && is_almost_marker(text) {
            return Err(PkiFileError::AlmostMarker { line });
        } else if text.windows(BEGIN.len()).any(|part| part == BEGIN) {
            return Err(PkiFileError::BeginNotFirst { line });
        } else if text.starts_with(b"Proc-Type:") && text.ends_with(b"ENCRYPTED") {
            // The old form of an encrypted key: an RFC 1421 header inside the block.
            if let Some(block) = block {
                block.encrypted = true;
            }
        }
    }
    match blocks.last() {
        None => Err(PkiFileError::NotPem { expected }),
        Some(block) if open.is_some() => Err(PkiFileError::Damaged { line: block.line }),
        Some(_) => Ok(blocks),
    }
}

/// Splits `rest` into the label at its start and the text after the closing dashes.
fn split_label(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = rest.windows(DASHES.len()).position(|part| part == DASHES)?;
    let (label, after) = rest.split_at_checked(at)?;
    Some((label, after.strip_prefix(DASHES)?))
}

/// Returns the label if it is a known one. No other bytes of the file may get into a message: they can be part of a
/// key.
fn known(label: &[u8]) -> Option<&'static str> {
    LABELS.into_iter().find(|known| known.as_bytes() == label)
}

/// Returns `text` without the byte-order marks that some editors write at the start of a file. The rustls decoder would
/// skip the block that follows. Joined files have one within the text.
fn without_bom(text: &[u8]) -> Cow<'_, [u8]> {
    let is_begin = |line: &[u8]| {
        line.strip_prefix(BOM)
            .is_some_and(|line| line.starts_with(BEGIN))
    };
    if !text.split(|byte| *byte == b'\n').skip(1).any(is_begin) {
        return text.strip_prefix(BOM).unwrap_or(text).into();
    }
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let lines = lines.map(|line| line.strip_prefix(BOM).unwrap_or(line));
    lines.flatten().copied().collect()
}

/// Whether a line outside of the blocks was meant as `-----BEGIN …` or `-----END …`: a hyphen is missing or too many,
/// or a word processor made dashes of them. A decoder skips such a block without a word.
fn is_almost_marker(line: &[u8]) -> bool {
    let is_dash = |char| matches!(char, '-' | '‐' | '‑' | '–' | '—' | '−');
    let line = String::from_utf8_lossy(line);
    let text = line.trim_start_matches(|char| is_dash(char) || char == ' ');
    let word = text.split(' ').next().unwrap_or_default();
    line.starts_with(is_dash)
        && line.ends_with(is_dash)
        && (word.eq_ignore_ascii_case("BEGIN") || word.eq_ignore_ascii_case("END"))
}

const BOM: &[u8] = "\u{feff}".as_bytes();
const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// Labels that RFC 7468, OpenSSL, OpenSSH and others write.
const LABELS: [&str; 14] = [
    "CERTIFICATE",
    "TRUSTED CERTIFICATE",
    "CERTIFICATE REQUEST",
    "X509 CRL",
    "PKCS7",
    "PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
    "PUBLIC KEY",
    "RSA PUBLIC KEY",
    "EC PARAMETERS",
    "DH PARAMETERS",
];
