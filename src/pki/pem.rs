//! Takes a PEM text apart and refuses every block that does not belong there.
//!
//! The decoder below skips blocks that it does not know, and everything that is outside of a block. So the lines are
//! read here first: a block that the decoder would skip without a word is an error.

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::error::{Flaw, Wanted};

/// The certificates of `text`, in order, at least one.
pub(super) fn certificates(
    text: &[u8],
    wanted: Wanted,
) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    let text = without_bom(text);
    let blocks = blocks(text, wanted)?;
    for block in &blocks {
        match block.label {
            Some("CERTIFICATE") => {}
            // What `openssl dhparam` appends for other servers; it means nothing to TLS 1.3.
            Some("DH PARAMETERS") if wanted == Wanted::Chain => {}
            _ => return Err(block.wrong_kind(wanted)),
        }
    }
    let lines = blocks
        .iter()
        .filter(|block| block.label == Some("CERTIFICATE"))
        .map(|block| block.line);
    let mut found = Vec::new();
    let mut decoded = CertificateDer::pem_slice_iter(text);
    let mut last = 1;
    for line in lines {
        match decoded.next() {
            Some(Ok(certificate)) => found.push(certificate),
            Some(Err(_)) | None => return Err(Flaw::Damaged { line }),
        }
        last = line;
    }
    // A block that only the decoder sees, after an oddly written `BEGIN`, has not been judged.
    if decoded.next().is_some() {
        return Err(Flaw::Damaged { line: last });
    }
    if found.is_empty() {
        return Err(Flaw::Lacks { wanted });
    }
    Ok(found)
}

/// The one private key of `text`.
pub(super) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Flaw> {
    let wanted = Wanted::Key;
    let text = without_bom(text);
    let mut keys = Vec::new();
    for block in blocks(text, wanted)? {
        match block.label {
            Some("ENCRYPTED PRIVATE KEY") => return Err(Flaw::EncryptedKey { line: block.line }),
            Some("PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY") if block.encrypted => {
                return Err(Flaw::EncryptedKey { line: block.line });
            }
            Some("PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY") => keys.push(block.line),
            // `openssl ecparam -genkey` writes the curve before the key.
            Some("EC PARAMETERS") => {}
            _ => return Err(block.wrong_kind(wanted)),
        }
    }
    let line = match *keys.as_slice() {
        [] => return Err(Flaw::Lacks { wanted }),
        [line] => line,
        _ => return Err(Flaw::SeveralKeys { count: keys.len() }),
    };
    PrivateKeyDer::from_pem_slice(text).map_err(|_damaged| Flaw::Damaged { line })
}

/// One PEM block, as its first lines say.
struct Block {
    line: usize,
    /// `None` for a kind that is in none of the lists below.
    label: Option<&'static str>,
    encrypted: bool,
}

impl Block {
    fn wrong_kind(&self, wanted: Wanted) -> Flaw {
        Flaw::WrongKind {
            line: self.line,
            label: self.label,
            wanted,
        }
    }
}

/// The blocks of `text`, which must be whole: every `BEGIN` at the start of a line, and an `END` for each.
fn blocks(text: &[u8], wanted: Wanted) -> Result<Vec<Block>, Flaw> {
    if text.trim_ascii().is_empty() {
        return Err(Flaw::Empty { wanted });
    }
    // DER sequences: a PFX of version 3; then whatever is long, as all certificates and most keys; then a
    // short key, which begins with its version.
    match text {
        [0x30, 0x82, _, _, 0x02, 0x01, 0x03, ..] => return Err(Flaw::Pkcs12 { wanted }),
        [0x30, 0x81 | 0x82, ..] | [0x30, _, 0x02, 0x01, ..] => return Err(Flaw::Der { wanted }),
        _ => {}
    }
    let mut blocks: Vec<Block> = Vec::new();
    // The label of a block that has no `END` yet, with the dashes after it.
    let mut open: Option<&[u8]> = None;
    for (index, text) in text.split(|byte| *byte == b'\n').enumerate() {
        let (line, text) = (index.saturating_add(1), text.trim_ascii());
        let block = blocks.last_mut();
        if let Some(rest) = text.strip_prefix(BEGIN) {
            let begins = block.map_or(line, |block| block.line);
            if open.is_some() {
                return Err(Flaw::Damaged { line: begins });
            }
            let (label, after) = split_label(rest).ok_or(Flaw::Damaged { line })?;
            let known = known(label);
            if !after.is_empty() {
                let label = known.unwrap_or("…");
                return Err(Flaw::LineBreaksLost { line, label });
            }
            open = Some(label);
            blocks.push(Block {
                line,
                label: known,
                encrypted: false,
            });
        } else if let Some(rest) = text.strip_prefix(END) {
            let Some(block) = block.filter(|_| open.is_some()) else {
                return Err(Flaw::NoBegin { line });
            };
            match split_label(rest) {
                Some((label, b"")) if open.take() == Some(label) => {}
                Some((_, after)) if after.starts_with(BEGIN) => {
                    return Err(Flaw::JoinedBlocks { line });
                }
                Some(_) | None => return Err(Flaw::Damaged { line: block.line }),
            }
        } else if text.windows(BEGIN.len()).any(|part| part == BEGIN) {
            return Err(Flaw::BeginNotFirst { line });
        } else if text.starts_with(b"Proc-Type:") && text.ends_with(b"ENCRYPTED") {
            // The old form of an encrypted key (RFC 1421 header inside the block).
            if let Some(block) = block {
                block.encrypted = true;
            }
        }
    }
    match blocks.last() {
        None => Err(Flaw::NotPem { wanted }),
        Some(block) if open.is_some() => Err(Flaw::Damaged { line: block.line }),
        Some(_) => Ok(blocks),
    }
}

/// The label at the start of `rest`, and what follows the dashes after it.
fn split_label(rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = rest.windows(DASHES.len()).position(|part| part == DASHES)?;
    let (label, after) = rest.split_at_checked(at)?;
    Some((label, after.strip_prefix(DASHES)?))
}

/// The label, if it is a known one. No other bytes of the file get into a message: they may be those of a key.
fn known(label: &[u8]) -> Option<&'static str> {
    LABELS.into_iter().find(|known| known.as_bytes() == label)
}

/// `text` without the byte-order mark that some editors put before it, and that would hide the first block.
fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// Labels that RFC 7468, OpenSSL, OpenSSH and others write.
const LABELS: [&str; 20] = [
    "CERTIFICATE",
    "X509 CERTIFICATE",
    "TRUSTED CERTIFICATE",
    "CERTIFICATE REQUEST",
    "NEW CERTIFICATE REQUEST",
    "X509 CRL",
    "PKCS7",
    "CMS",
    "PRIVATE KEY",
    "ENCRYPTED PRIVATE KEY",
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "DSA PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
    "PUBLIC KEY",
    "RSA PUBLIC KEY",
    "EC PARAMETERS",
    "DH PARAMETERS",
    "DSA PARAMETERS",
    "PGP PRIVATE KEY BLOCK",
];
