//! Decides what a message may repeat of a value, so that no message prints a key or a token by mistake.
//!
//! A private key, a token or a whole file is sometimes given where a path or a name belongs, as in
//! `KUBE_TLS_PROXY_KEY="$(cat tls.key)"`. More people read the logs and the status page than may read the key. Every
//! message that repeats a value of a flag, a variable or a file takes it from here. Proof: tests/it `binary::secrets`.
//!
//! Limits: a password has no typical form, so a short or pronounceable one is not recognized. The proxy refuses a
//! path only if it cannot be one. Any other value may be the path of a file that exists; for it the rules here only
//! hide the value in messages.

use std::{
    fmt::{self, Display, Formatter},
    path::Path,
};

use crate::text::escape;

/// What `text` is instead of a path, such as `the key itself`; `None` if it can be a path.
pub(crate) fn not_a_path(text: &str) -> Option<&'static str> {
    if text.contains("-----BEGIN") {
        return Some(if text.contains("KEY-----") {
            KEY
        } else if text.contains("CERTIFICATE-----") {
            CERTIFICATE
        } else {
            CONTENT
        });
    }
    let is_content = text.len() > MAX_PATH_BYTES || text.contains(['\n', '\r']);
    is_content.then_some(CONTENT)
}

/// What `text` probably is instead of a path or a name, such as `the key itself`; `None` if a message may repeat it.
pub(crate) fn pasted(text: &str) -> Option<&'static str> {
    if let Some(found) = not_a_path(text) {
        return Some(found);
    }
    if holds_token(text) {
        return Some(TOKEN);
    }
    let is_content = text.contains(PEM_IN_BASE64) || holds_base64(text);
    is_content.then_some(CONTENT)
}

/// `text` for a message: escaped and cut short, or [`HIDDEN`] if it may be a secret.
pub(crate) fn value(text: &str) -> String {
    if holds_pasted(text) {
        return HIDDEN.to_owned();
    }
    escape(text, MAX_CHARS).to_string()
}

/// As [`value`], for the name of a cluster, context or user. Names have long hexadecimal IDs, so they are not hidden.
pub(crate) fn name(text: &str) -> String {
    if pasted(text).is_some() {
        return HIDDEN.to_owned();
    }
    escape(text, MAX_CHARS).to_string()
}

/// Whether a key, a token or the like was pasted into this line of a file.
pub(crate) fn holds_pasted(line: &str) -> bool {
    pasted(line).is_some() || holds_bootstrap_token(line) || holds_long_hex(line)
}

/// Whether a message must not show this line of a file. Stricter than [`value`]: the line may have values that the
/// message is not about, such as a password, which has no typical form.
pub(crate) fn may_hold_secret(line: &str) -> bool {
    let lower = line.to_lowercase();
    holds_pasted(line)
        || SECRET_WORDS.iter().any(|word| lower.contains(word))
        || (line.contains("://") && line.contains('@'))
}

/// `path` for a message, escaped and whole, or [`HIDDEN`] if it may be a secret.
pub(crate) fn path(path: &Path) -> impl Display + '_ {
    QuotedPath(path)
}

struct QuotedPath<'a>(&'a Path);

impl Display for QuotedPath<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if pasted(&self.0.to_string_lossy()).is_some() {
            f.write_str(HIDDEN)
        } else {
            escape(&self.0.to_string_lossy(), usize::MAX).fmt(f)
        }
    }
}

/// Whether a part of a JSON Web Token is in `text`: its header, JSON in base64, begins with `eyJ`.
fn holds_token(text: &str) -> bool {
    text.split(|char: char| !is_base64(char) || matches!(char, '/' | '='))
        .any(|word| word.starts_with("eyJ") && word.len() >= MIN_TOKEN_HEADER)
}

/// Whether a bootstrap token of kubeadm is in `text`, such as `abcdef.0123456789abcdef`.
fn holds_bootstrap_token(text: &str) -> bool {
    let is_part = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    text.split(|char: char| !char.is_ascii_alphanumeric() && char != '.')
        .filter_map(|word| word.split_once('.'))
        .any(|(id, secret)| id.len() == 6 && secret.len() == 16 && is_part(id) && is_part(secret))
}

/// Whether a long hexadecimal number is in `text`, such as a static token.
fn holds_long_hex(text: &str) -> bool {
    text.split(|char: char| !char.is_ascii_hexdigit())
        .any(|run| run.len() >= MIN_HEX_TOKEN)
}

/// Whether a long piece of base64 is in `text`. Long paths have the same characters, but they consist of words and of
/// hashes. In base64, every second character is of another class than the one before it, and every second letter of
/// another case. Hashes and IDs change between letters and digits as often, but never between cases.
fn holds_base64(text: &str) -> bool {
    text.split(|char: char| !is_base64(char)).any(|run| {
        let classes: Vec<_> = run.chars().map(class).collect();
        classes.windows(BASE64_WINDOW).any(|window| {
            let pairs = window.iter().zip(window.iter().skip(1));
            let changes = pairs
                .filter(|(first, second)| first != second && first.is_some() && second.is_some());
            (0..3).all(|class| window.contains(&Some(class)))
                && changes.count() >= MIN_CLASS_CHANGES
                && case_changes(window) >= MIN_CASE_CHANGES
        })
    })
}

/// How often the case changes from one letter to the next. Digits between letters do not count. Any other character
/// starts a new sequence, so that a `/` between an upper-case and a lower-case word is no change.
fn case_changes(window: &[Option<u8>]) -> usize {
    window
        .split(Option::is_none)
        .map(|segment| {
            let letters = segment.iter().filter(|class| **class != Some(DIGIT));
            let next = letters.clone().skip(1);
            letters
                .zip(next)
                .filter(|(first, next)| first != next)
                .count()
        })
        .sum()
}

fn is_base64(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '+' | '/' | '-' | '_' | '=')
}

const fn class(char: char) -> Option<u8> {
    match char {
        'A'..='Z' => Some(0),
        'a'..='z' => Some(1),
        '0'..='9' => Some(DIGIT),
        _ => None,
    }
}

const DIGIT: u8 = 2;
const KEY: &str = "the key itself";
const CERTIFICATE: &str = "the certificate itself";
const TOKEN: &str = "the token itself";
const CONTENT: &str = "the content of the file";
/// Replaces a value in a message that must not repeat it.
pub(crate) const HIDDEN: &str = "(hidden: may be a secret)";
/// Words beside a secret in a file.
const SECRET_WORDS: [&str; 11] = [
    "proxyurl",
    "proxy-url",
    "password",
    "passwd",
    "secret",
    "token",
    "bearer",
    "basic ",
    "credential",
    "apikey",
    "api-key",
];
/// How much of a value a message repeats; a path is repeated whole.
const MAX_CHARS: usize = 100;
/// `PATH_MAX` of Linux.
const MAX_PATH_BYTES: usize = 4096;
/// `-----BEGIN` in base64, as the `…-data` keys of a kubeconfig have it.
const PEM_IN_BASE64: &str = "LS0tLS1CRUdJTi";
/// The shortest header of a JSON Web Token, `{"alg":"none"}`, has 19 characters.
const MIN_TOKEN_HEADER: usize = 19;
/// 16 bytes, the least that a token should have.
const MIN_HEX_TOKEN: usize = 32;
/// A key of 32 bytes has 43 characters or more.
const BASE64_WINDOW: usize = 40;
/// Random base64 has 25 changes in 40 characters, with a standard deviation of 3.
const MIN_CLASS_CHANGES: usize = 16;
/// Random base64 has 15 changes of case in 40 characters, with a standard deviation of 3.
const MIN_CASE_CHANGES: usize = 8;

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};

    use super::{CERTIFICATE, CONTENT, HIDDEN, KEY, TOKEN, not_a_path, pasted, path, value};

    /// A sequence of bytes that looks random and is the same in each run (xorshift).
    fn random_bytes(seed: &mut u64, count: usize) -> Vec<u8> {
        let next = |_| {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            seed.to_be_bytes()[3]
        };
        (0..count).map(next).collect()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn paths_with_hashes_and_ids_are_not_taken_for_secrets() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..2000 {
            let (sha256, sha1) = (
                hex(&random_bytes(&mut seed, 32)),
                hex(&random_bytes(&mut seed, 20)),
            );
            let upper = hex(&random_bytes(&mut seed, 16)).to_uppercase();
            let uuid = [
                &upper[..8],
                &upper[8..12],
                &upper[12..16],
                &upper[16..20],
                &upper[20..],
            ]
            .join("-");
            let ulid: String = random_bytes(&mut seed, 26)
                .iter()
                .map(|byte| char::from(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[usize::from(byte % 32)]))
                .collect();
            for text in [
                format!("/Tls/{sha256}/ca.crt"),
                format!("/My/KubeProxy/TlsFiles/{sha256}/ca.crt"),
                format!("/Home/x/{sha1}/ca.crt"),
                format!("/home/jane/kube/{upper}/ca.crt"),
                format!("/tmp/{uuid}/tls.key"),
                format!("/tmp/{}/{uuid}/Tls.key", uuid.to_lowercase()),
                format!("/Users/Jane/{ulid}/{ulid}.pem"),
            ] {
                assert_eq!(pasted(&text), None, "{text}");
            }
            let base64 = BASE64_STANDARD.encode(random_bytes(&mut seed, 64));
            assert_eq!(not_a_path(&base64), None, "{base64}");
        }
    }

    #[test]
    fn random_base64_is_hidden() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        for (length, least) in [(32, 1960), (64, 2000), (121, 2000)] {
            let hidden = (0..2000)
                .map(|_| BASE64_STANDARD.encode(random_bytes(&mut seed, length)))
                .filter(|text| pasted(text).is_some());
            assert!(hidden.count() >= least, "{length} bytes");
        }
    }

    #[test]
    fn names_what_was_pasted() {
        for (text, expected) in [
            ("-----BEGIN EC PRIVATE KEY-----\nMHc", KEY),
            ("-----BEGIN PRIVATE KEY----- MHc", KEY),
            ("x\n-----BEGIN CERTIFICATE-----\nMII", CERTIFICATE),
            ("-----BEGIN", CONTENT),
            ("Bearer eyJhbGciOiJub25lIn0.eyJhIjoxfQ.", TOKEN),
            ("https://a/?token=eyJhbGciOiJub25lIn0", TOKEN),
            ("two\nlines", CONTENT),
            ("two\rlines", CONTENT),
            ("LS0tLS1CRUdJTiBDRVJU", CONTENT),
            ("/+bFqb8xE1mJ0y0H3cYwQmZlKp5vS9nT2aRrX7uDk4g=", CONTENT),
            (
                "MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF",
                CONTENT,
            ),
        ] {
            assert_eq!(pasted(text), Some(expected), "{text}");
            assert_eq!(value(text), HIDDEN, "{text}");
            assert_eq!(path(text.as_ref()).to_string(), HIDDEN, "{text}");
        }
        assert_eq!(pasted(&"a/".repeat(2049)), Some(CONTENT));
    }

    #[test]
    fn values_hide_bootstrap_and_hex_tokens() {
        for text in [
            "abcdef.0123456789abcdef",
            "token=abcdef.0123456789abcdef",
            "31ada4fd-adec460c809a0f3b5e1d7c2a9e8f4b6d",
            "D41D8CD98F00B204E9800998ECF8427E",
        ] {
            assert_eq!(value(text), HIDDEN, "{text}");
            assert_eq!(path(text.as_ref()).to_string(), text);
        }
        for text in [
            "kube.0123456789abcdef",
            "abcdef.0123456789abcdeF",
            "31ada4fd-adec-460c-809a-9e56ceb75269",
        ] {
            assert_eq!(value(text), text);
        }
    }

    #[test]
    fn paths_are_escaped_and_whole() {
        let long = "a".repeat(300);
        for (text, expected) in [("/tls\u{1b}[2J.key", "/tls\\u{1b}[2J.key"), (&long, &long)] {
            assert_eq!(path(text.as_ref()).to_string(), expected);
        }
    }

    #[test]
    fn ordinary_paths_and_names_are_repeated() {
        for text in [
            "",
            "tls.key",
            "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
            "/home/User1/Documents/Projects/Kubernetes/Certificates/Production2026/tls.key",
            "/nix/store/0c0y3mpvszjzzvxhhd4c3a2mkq7lp5wz-kube-tls-proxy-0.1.0/share/config.yaml",
            "/var/lib/docker/overlay2/0b3e9f1c5d7a48e2b6c4f0a1938d7e5c2b4a6f8091e3d5c7b9a1f2e4d6c8b0a9/merged",
            "/var/lib/kubelet/pods/123E4567-e89b-12d3-a456-426614174000/volumes/kubernetes.io~projected/token",
            "https://A1B2C3D4E5F6A7B8C9D0E1F2A3B4C5D6.gr7.eu-west-1.eks.amazonaws.com",
            "arn:aws:eks:eu-west-1:123456789012:cluster/MyProductionCluster2",
            "kubernetes.default.svc",
            "info,kube_tls_proxy=debug",
        ] {
            assert_eq!(pasted(text), None, "{text}");
            assert_eq!(path(text.as_ref()).to_string(), text);
        }
        assert_eq!(value("a\tb"), "a\\tb");
        assert_eq!(value(&"x".repeat(101)), format!("{}…", "x".repeat(100)));
    }
}
