//! A bearer token from a file.
//!
//! It is never printed: its header value is marked as sensitive, and errors name only the file.

use std::path::{Path, PathBuf};

use http::HeaderValue;

use crate::{
    config::{ReadError, read_file},
    quote,
};

/// A bearer token and the file it came from.
#[derive(Debug, Clone)]
pub struct Token {
    pub(super) file: PathBuf,
    pub(super) header: HeaderValue,
}

/// Why no token could be read from a file.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum TokenError {
    #[error("--token-file {}", quote::path(file))]
    Read {
        file: PathBuf,
        #[source]
        source: ReadError,
    },
    #[error(
        "--token-file {}: the file is empty; write the token into it and nothing else",
        quote::path(file)
    )]
    Empty { file: PathBuf },
    #[error(
        "--token-file {}: the file does not contain one token; write the token into it as one line and nothing else",
        quote::path(file)
    )]
    NotAToken { file: PathBuf },
}

impl Token {
    /// Reads the token in `file`, without the white space around it.
    ///
    /// # Errors
    ///
    /// [`TokenError`] names the file and the fix, never the content.
    pub fn load(file: &Path) -> Result<Self, TokenError> {
        let file = file.to_owned();
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(source) => return Err(TokenError::Read { file, source }),
        };
        let token = text.trim_ascii();
        if token.is_empty() {
            return Err(TokenError::Empty { file });
        }
        let visible = token.iter().all(u8::is_ascii_graphic);
        match HeaderValue::from_bytes(&[b"Bearer ", token].concat()) {
            Ok(mut header) if visible => {
                header.set_sensitive(true);
                Ok(Self { file, header })
            }
            Ok(_) | Err(_) => Err(TokenError::NotAToken { file }),
        }
    }

    /// The token without the `Bearer` prefix.
    #[must_use]
    pub fn secret(&self) -> &str {
        let text = self.header.to_str().unwrap_or_default();
        text.strip_prefix("Bearer ").unwrap_or_default()
    }
}
