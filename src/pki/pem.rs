//! Takes a PEM text apart and refuses every block that does not belong there.
//!
//! The decoder below skips blocks it does not know, so the labels are read first: what would be
//! skipped in silence is an error here.

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::error::{Flaw, Wanted};
use crate::text::escape;

/// The certificates of `text`, in order, at least one.
pub(super) fn certificates(
    text: &[u8],
    wanted: Wanted,
) -> Result<Vec<CertificateDer<'static>>, Flaw> {
    let blocks = blocks(text, wanted)?;
    for block in &blocks {
        match block.label.as_str() {
            "CERTIFICATE" => {}
            // What `openssl dhparam` appends for other servers; it means nothing to TLS 1.3.
            "DH PARAMETERS" if wanted == Wanted::Chain => {}
            _ => return Err(block.wrong_kind(wanted)),
        }
    }
    let lines = blocks
        .iter()
        .filter(|block| block.label == "CERTIFICATE")
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
    let mut keys = Vec::new();
    for block in blocks(text, wanted)? {
        match block.label.as_str() {
            "ENCRYPTED PRIVATE KEY" => return Err(Flaw::EncryptedKey { line: block.line }),
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" if block.encrypted => {
                return Err(Flaw::EncryptedKey { line: block.line });
            }
            "PRIVATE KEY" | "RSA PRIVATE KEY" | "EC PRIVATE KEY" => keys.push(block.line),
            // `openssl ecparam -genkey` writes the curve before the key.
            "EC PARAMETERS" => {}
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
    label: String,
    encrypted: bool,
}

impl Block {
    fn wrong_kind(&self, wanted: Wanted) -> Flaw {
        Flaw::WrongKind {
            line: self.line,
            label: self.label.clone(),
            wanted,
        }
    }
}

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
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if let Some(label) = line
            .strip_prefix(b"-----BEGIN ")
            .and_then(|rest| rest.strip_suffix(b"-----"))
        {
            blocks.push(Block {
                line: index.saturating_add(1),
                label: escape(&String::from_utf8_lossy(label), MAX_LABEL_CHARS).to_string(),
                encrypted: false,
            });
        } else if line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED") {
            // The old form of an encrypted key (RFC 1421 header inside the block).
            if let Some(block) = blocks.last_mut() {
                block.encrypted = true;
            }
        }
    }
    if blocks.is_empty() {
        return Err(Flaw::NotPem { wanted });
    }
    Ok(blocks)
}

/// Characters of a label that go into a message.
const MAX_LABEL_CHARS: usize = 40;
