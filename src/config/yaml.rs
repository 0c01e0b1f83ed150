//! Parses YAML files. Errors have line, column and the nearest known key.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, Location};

use super::{
    error::{ConfigError, FileKind, Position, SettingError, YamlError},
    file,
};
use crate::quote;

/// Reads `file` and parses it; JSON is YAML too.
pub(crate) fn load<T: DeserializeOwned>(kind: FileKind, file: &Path) -> Result<T, ConfigError> {
    let text = file::read(file).map_err(|source| ConfigError::Read {
        kind,
        file: file.to_owned(),
        source,
    })?;
    let in_file = |at, source| ConfigError::File {
        kind,
        file: file.to_owned(),
        at,
        source: Box::new(source),
    };
    if text.trim_ascii().is_empty() {
        return Err(in_file(None, SettingError::EmptyFile));
    }
    if text.starts_with(b"-----BEGIN ") {
        return Err(in_file(None, SettingError::PemFile));
    }
    // No excerpts in errors: a kubeconfig contains secrets.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_slice_with_options(&text, options).map_err(|error| {
        let at = error.location().and_then(position);
        in_file(at, setting_error(error))
    })
}

/// The place of a parsed value.
pub(super) fn position(location: Location) -> Option<Position> {
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

/// Keys that every Kubernetes object has and no configuration file of the proxy has.
const OBJECT_KEYS: [&str; 2] = ["apiVersion", "kind"];
