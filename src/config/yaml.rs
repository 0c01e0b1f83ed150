//! Parses YAML files. Errors have line, column and the nearest known key.
//!
//! Files of Windows are read too: with a byte-order mark, or in UTF-16, as `>` of PowerShell writes it.

use std::{borrow::Cow, path::Path};

use serde::de::DeserializeOwned;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, Spanned};

use super::{
    error::{ConfigError, FileKind, Position, SettingError, YamlError},
    file,
};
use crate::quote;

/// Reads `file` and parses it; JSON is YAML too.
pub(crate) fn load<T: DeserializeOwned>(kind: FileKind, file: &Path) -> Result<T, ConfigError> {
    parse(kind, file, &read_text(kind, file)?)
}

/// The text of `file`.
pub(super) fn read_text(kind: FileKind, file: &Path) -> Result<String, ConfigError> {
    let bytes = file::read(file).map_err(|source| ConfigError::Read {
        kind,
        file: file.to_owned(),
        source,
    })?;
    let text = decode(&bytes).map(Cow::into_owned);
    text.ok_or_else(|| in_file(kind, file, None, SettingError::NotText))
}

fn in_file(kind: FileKind, file: &Path, at: Option<Position>, error: SettingError) -> ConfigError {
    ConfigError::File {
        kind,
        file: file.to_owned(),
        at,
        excerpt: None,
        source: Box::new(error),
    }
}

/// Parses the `text` of `file`.
pub(super) fn parse<T: DeserializeOwned>(
    kind: FileKind,
    file: &Path,
    text: &str,
) -> Result<T, ConfigError> {
    let in_file = |at, source| in_file(kind, file, at, source);
    let text = first_document(text).map_err(|line| {
        let at = Position { line, column: 1 };
        in_file(Some(at), SettingError::SeveralDocuments)
    })?;
    if text.trim_ascii().is_empty() {
        return Err(in_file(None, SettingError::EmptyFile));
    }
    if text.starts_with("-----BEGIN ") {
        return Err(in_file(None, SettingError::PemFile));
    }
    serde_saphyr::from_str_with_options(text, options(kind)).map_err(|error| {
        let at = error.location().and_then(position);
        in_file(at, setting_error(error))
    })
}

// No excerpts of the parser: a kubeconfig contains secrets. `Excerpt` decides what is shown.
fn options(kind: FileKind) -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        duplicate_keys: match kind {
            FileKind::Config | FileKind::Manifest => DuplicateKeyPolicy::Error,
            // As kubectl reads it.
            FileKind::Kubeconfig => DuplicateKeyPolicy::LastWins,
        },
    }
}

/// All YAML documents in the `text` of a manifest, without the empty ones.
pub(crate) fn manifest_documents<T: DeserializeOwned>(
    file: &Path,
    text: &str,
) -> Result<Vec<Spanned<T>>, ConfigError> {
    let kind = FileKind::Manifest;
    if text.starts_with("-----BEGIN ") {
        return Err(in_file(kind, file, None, SettingError::PemFile));
    }
    // A manifest becomes a tree, whose depth a hostile one chooses. A thread of 2 MiB has room for 50 levels in a debug
    // build, and an ingress has about 12. Proof: tests/translate.rs, `deep-nesting.yaml`.
    let mut options = options(kind);
    options.budget = serde_saphyr::budget! { max_depth: MAX_MANIFEST_DEPTH };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let at = error.location().and_then(position);
        let error = if text.contains("{{") {
            SettingError::Template
        } else {
            setting_error(error)
        };
        in_file(kind, file, at, error).with_excerpt(text)
    })
}

/// The text of a manifest; `-` is standard input.
pub(crate) fn manifest_text(file: &Path) -> Result<String, ConfigError> {
    let kind = FileKind::Manifest;
    if file.as_os_str() != "-" {
        return read_text(kind, file);
    }
    let bytes = file::read_stdin().map_err(|source| ConfigError::Read {
        kind,
        file: file.to_owned(),
        source,
    })?;
    let text = decode(&bytes).map(Cow::into_owned);
    text.ok_or_else(|| in_file(kind, file, None, SettingError::NotText))
}

/// The text of a file in UTF-8, or in UTF-16 with a byte-order mark; `None` if it is in neither.
fn decode(bytes: &[u8]) -> Option<Cow<'_, str>> {
    let unit: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => {
            let text = str::from_utf8(bytes).ok()?;
            return Some(text.strip_prefix(BOM).unwrap_or(text).into());
        }
    };
    let (pairs, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return None;
    }
    let units = pairs.iter().skip(1).map(|pair| unit(*pair));
    let text: Result<String, _> = char::decode_utf16(units).collect();
    text.ok().map(Cow::Owned)
}

/// The first YAML document of `text`. More documents may follow only if they are empty: kubectl ignores them, and
/// a part of a file must not be ignored without a word.
///
/// # Errors
///
/// The line on which another document begins.
fn first_document(text: &str) -> Result<&str, u64> {
    let (mut end, mut has_begun, mut at) = (None, false, 0_usize);
    for (line, index) in text.split_inclusive('\n').zip(1..) {
        // A marker ends a document even within a quoted or a block scalar (YAML 1.2.2 §9.1.2).
        let marker = ["---", "..."].into_iter().find(|marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        });
        let rest = marker.and_then(|marker| line.strip_prefix(marker));
        let rest = rest.unwrap_or(line).trim_start();
        let is_content = !(rest.is_empty() || rest.starts_with('#'));
        match (marker, end) {
            (_, Some(_)) if is_content => return Err(index),
            (Some(_), None) if has_begun => {
                if is_content {
                    return Err(index);
                }
                end = Some(at);
            }
            (Some("..."), None) => {}
            (Some(_), None) => has_begun = true,
            (None, None) => has_begun |= is_content && !rest.starts_with('%'),
            (_, Some(_)) => {}
        }
        at = at.saturating_add(line.len());
    }
    Ok(end.and_then(|end| text.get(..end)).unwrap_or(text))
}

/// The place of a parsed value.
pub(crate) fn position(location: Location) -> Option<Position> {
    (location != Location::UNKNOWN).then(|| Position {
        line: location.line(),
        column: location.column(),
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser has dozens of kinds, and most of its messages are good"
)]
fn setting_error(error: Error) -> SettingError {
    match &error {
        Error::SerdeUnknownField { field, .. } if OBJECT_KEYS.contains(&field.as_str()) => {
            let key = field.clone();
            SettingError::KubernetesObject { key }
        }
        Error::SerdeUnknownField {
            field, expected, ..
        } => SettingError::UnknownKey {
            key: quote::value(field),
            nearest: nearest(field, expected),
            known: expected.join(", "),
        },
        Error::SerdeMissingField { field, .. } => SettingError::MissingKey { key: field },
        Error::DuplicateMappingKey { key, .. } => SettingError::DuplicateKey {
            key: quote::value(key.as_deref().unwrap_or_default()),
        },
        Error::Unexpected { expected, .. } if expected.contains("sequence") => {
            SettingError::NotAList
        }
        Error::Unexpected { expected, .. } if expected.contains("mapping") => SettingError::NotKeys,
        Error::InvalidBooleanStrict { .. } | Error::InvalidScalar { ty: "boolean", .. } => {
            SettingError::NotABool
        }
        Error::Message { .. } => SettingError::Value(YamlError::new(error)),
        _ => SettingError::Yaml(YamlError::new(error)),
    }
}

/// The known key that `key` is probably a misspelling of, or another word for.
fn nearest(key: &str, known: &[&'static str]) -> Option<String> {
    let meant = OTHER_WORDS
        .iter()
        .find(|(other, meant)| other.eq_ignore_ascii_case(key) && known.contains(meant));
    if let Some((_, meant)) = meant {
        return Some((*meant).to_owned());
    }
    known
        .iter()
        .map(|known| {
            (
                strsim::jaro_winkler(&key.to_lowercase(), &known.to_lowercase()),
                known,
            )
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| (*known).to_owned())
}

/// What people write who know the flags, or other proxies, and the key that they mean.
const OTHER_WORDS: [(&str, &str); 15] = [
    ("level", "filter"),
    ("logLevel", "log"),
    ("accessLog", "access"),
    ("noAccessLog", "access"),
    ("drainTimeout", "drain"),
    ("adminListen", "admin"),
    ("port", "listen"),
    ("cert", "certificate"),
    ("cert", "certificates"),
    ("certs", "certificates"),
    ("tls", "certificates"),
    ("host", "hosts"),
    ("upstreams", "clusters"),
    ("server", "url"),
    ("upstreamName", "name"),
];

/// Levels of lists and keys in a manifest.
const MAX_MANIFEST_DEPTH: usize = 40;
/// The byte-order mark that some editors write at the start of a file.
const BOM: char = '\u{feff}';
/// Keys that every Kubernetes object has and no configuration file of the proxy has.
const OBJECT_KEYS: [&str; 2] = ["apiVersion", "kind"];
