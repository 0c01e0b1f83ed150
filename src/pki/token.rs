//! The file with the token with which the proxy impersonates the owners of client certificates, and that of its pod.
//!
//! A token in a pod changes about every hour, so the file is read again at every reload, whatever has become of the
//! other files. A file that cannot be used is no error of the configuration: it stops only the users of client
//! certificates. The last token is not kept then, because its owner may have taken it away. No message repeats any part
//! of the file.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::{
    config::{ReadError, read_file},
    quote,
    text::error_chain,
};

/// A token file, and what was last read from it.
pub struct TokenFile {
    path: PathBuf,
    /// `Bearer` and the token, or why there is none.
    authorization: ArcSwap<Result<HeaderValue, String>>,
}

impl TokenFile {
    /// Reads this file.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            authorization: ArcSwap::from_pointee(read(path)),
        }
    }

    /// Reads the file again. Returns whether anything has changed.
    pub fn renew(&self) -> bool {
        let read = Arc::new(read(&self.path));
        self.authorization.swap(Arc::clone(&read)) != read
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `Authorization`. Only `UserNaming` (`upstream`) may call it (tests/tidy.rs): it sends the token
    /// together with the name of a user, and in no other way.
    pub(crate) fn bearer(&self) -> Option<HeaderValue> {
        (**self.authorization.load()).as_ref().ok().cloned()
    }

    /// A sentence about a file that cannot be used; `None` for any other.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let reason = (**self.authorization.load()).as_ref().err().cloned()?;
        let path = quote::path(&self.path);
        Some(format!(
            "users of client certificates get a 503, because the token file {path} cannot be used: {reason}"
        ))
    }
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile")
            .field("path", &self.path)
            .field("authorization", &"<redacted>")
            .finish()
    }
}

/// Why the content of a file is no token, and how to fix it.
#[derive(Debug, thiserror::Error)]
enum TokenFileError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("it is empty; write the token of the proxy's ServiceAccount there")]
    Empty,
    #[error("it has several lines; write only the token there")]
    LineBreak,
    #[error(
        "it has a blank, or a character that no token has; write only the token there, without `Bearer`"
    )]
    Character,
    #[error("it is larger than {MAX_TOKEN_BYTES} bytes; write only the token there")]
    TooLarge,
}

/// The value of `Authorization` for the pod's own token in this file. Only `upstream/discover.rs` may call it
/// (tests/tidy.rs): it sends the token with the request for the addresses of the apiservers, and in no other way.
///
/// # Errors
///
/// A sentence, if the file has no token that can be used.
pub(crate) fn pod_authorization(path: &Path) -> Result<HeaderValue, String> {
    read(path).map_err(|reason| {
        let path = quote::path(path);
        format!("the token file {path} cannot be used: {reason}")
    })
}

fn read(path: &Path) -> Result<HeaderValue, String> {
    let value = read_file(path).map_err(TokenFileError::from);
    let value = value.and_then(|bytes| authorization(&bytes));
    value.map_err(|error| error_chain(&error).to_string())
}

/// The value of `Authorization` for this content of a file. Blanks and line breaks around the token do not count, as
/// for client-go: `kubectl create token` writes one after it.
fn authorization(bytes: &[u8]) -> Result<HeaderValue, TokenFileError> {
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(TokenFileError::Empty);
    }
    if token.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Err(TokenFileError::LineBreak);
    }
    if token.len() > MAX_TOKEN_BYTES {
        return Err(TokenFileError::TooLarge);
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(TokenFileError::Character);
    }
    let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_no_value| TokenFileError::Character)?;
    // HTTP/2 then keeps it out of the table of fields that a connection shares, and no `Debug` prints it.
    value.set_sensitive(true);
    Ok(value)
}

/// Far more than any token of Kubernetes has, and less than an apiserver takes in a header.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use standin::TempDir;

    use super::*;

    #[test]
    fn only_one_line_without_blanks_is_a_token() {
        for (content, expected) in [
            (&b"a.b-c_d~e+f/g=="[..], Ok("Bearer a.b-c_d~e+f/g==")),
            (b"abc\n", Ok("Bearer abc")),
            (b" abc\r\n\n", Ok("Bearer abc")),
            (b"", Err("it is empty")),
            (b" \r\n", Err("it is empty")),
            (b"abc\ndef", Err("it has several lines")),
            (b"abc\rdef", Err("it has several lines")),
            (b"Bearer abc", Err("it has a blank")),
            (b"a\tb", Err("it has a blank")),
            (b"a\0b", Err("it has a blank")),
            (b"a\x7fb", Err("it has a blank")),
            ("t\u{f6}ken".as_bytes(), Err("it has a blank")),
            (b"\xff\xfe", Err("it has a blank")),
            (&[b'a'; MAX_TOKEN_BYTES + 1], Err("it is larger than")),
        ] {
            let shown = String::from_utf8_lossy(content);
            match (authorization(content), expected) {
                (Ok(value), Ok(expected)) => {
                    assert_eq!(value.to_str().unwrap(), expected, "{shown}");
                    assert!(value.is_sensitive());
                }
                (Err(error), Err(beginning)) => {
                    let text = error.to_string();
                    assert!(text.starts_with(beginning), "{shown}: {text}");
                }
                (found, _) => panic!("{shown}: {found:?}"),
            }
        }
    }

    #[test]
    fn file_is_read_again_and_never_shown() {
        let dir = TempDir::new();
        let path = dir.path().join("token");
        let token = TokenFile::load(&path);
        assert_eq!(TokenFile::bearer(&token), None);
        assert!(token.problem().unwrap().ends_with("check the path"));
        dir.write("token", "secret-one");
        assert_eq!((token.renew(), token.renew()), (true, false));
        assert_eq!(TokenFile::bearer(&token).unwrap(), "Bearer secret-one");
        assert_eq!(token.problem(), None);
        dir.write("token", "secret-two");
        assert!(token.renew());
        assert_eq!(TokenFile::bearer(&token).unwrap(), "Bearer secret-two");
        assert!(!format!("{token:?}").contains("secret"));
        for broken in ["", "secret three", "secret\nfour"] {
            dir.write("token", broken);
            assert!(token.renew(), "{broken:?}");
            assert_eq!(TokenFile::bearer(&token), None, "the last one is not kept");
            let problem = token.problem().unwrap();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
