//! Reads the small text files that configuration and trust are made of, never more than a bound.
//!
//! The bound keeps a wrong path such as `/dev/zero` from filling memory.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Returns the bytes of the file at `path`.
///
/// # Errors
///
/// [`ReadError`] when the file cannot be opened or read, or is larger than [`MAX_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path).map_err(|error| {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        if is_missing && path.iter().any(|part| part == "~") {
            ReadError::Tilde
        } else {
            ReadError::from(error)
        }
    })?;
    let mut bytes = Vec::new();
    let read = file
        .take(MAX_BYTES.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(ReadError::from)?;
    match u64::try_from(read) {
        Ok(read) if read <= MAX_BYTES => Ok(bytes),
        Ok(_) | Err(_) => Err(ReadError::TooLarge),
    }
}

/// Why a file could not be read, with the mend.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Nothing is there.
    #[error("no such file; check the path")]
    Missing,
    /// Nothing is there, and a shell would have looked elsewhere.
    #[error("no such file, for only a shell replaces `~`; write the whole path")]
    Tilde,
    /// The user that the proxy runs as may not read it.
    #[error("permission denied; let the user that runs the proxy read it")]
    Denied,
    /// The path names a directory.
    #[error("is a directory; name a file in it")]
    Directory,
    /// No certificate, key or configuration is this large.
    #[error("larger than 4 MiB; this cannot be the file that was meant")]
    TooLarge,
    /// Anything else the operating system says.
    #[error("cannot be read")]
    Other(#[source] io::Error),
}

impl From<io::Error> for ReadError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own words"
    )]
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::IsADirectory => Self::Directory,
            _ => Self::Other(error),
        }
    }
}

/// No certificate bundle, key, kubeconfig or configuration that is meant comes near this size.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
