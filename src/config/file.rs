//! Reads the small text files that configuration and trust are made of, never more than a bound.
//!
//! The bound keeps a wrong path such as `/dev/zero` from filling memory. A pipe to which nobody writes, as
//! `--cert <(command)` is when it is read again, is empty and does not hold the process up.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::Duration,
};

/// Returns the bytes of the file at `path`.
///
/// # Errors
///
/// [`ReadError`] when the file cannot be opened or read, or is larger than [`MAX_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(|error| {
            let is_missing = error.kind() == io::ErrorKind::NotFound;
            if is_missing && path.iter().any(|part| part == "~") {
                ReadError::Tilde
            } else {
                ReadError::from(error)
            }
        })?;
    let mut bytes = Vec::new();
    let patience = SLOWEST_WRITER;
    let read = Patient { file, patience }
        .take(MAX_BYTES.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(ReadError::from)?;
    match u64::try_from(read) {
        Ok(read) if read <= MAX_BYTES => Ok(bytes),
        Ok(_) | Err(_) => Err(ReadError::TooLarge),
    }
}

/// A file that may be a pipe with a slow writer, who is waited for.
struct Patient {
    file: File,
    patience: Duration,
}

impl Read for Patient {
    #[expect(
        clippy::disallowed_methods,
        reason = "no worker reads files, and only a pipe with a slow writer comes to this"
    )]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.patience.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    thread::sleep(PAUSE);
                    self.patience = self.patience.saturating_sub(PAUSE);
                }
                read => return read,
            }
        }
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
/// How long somebody at the other end of a pipe may take, who may have to log in first.
const SLOWEST_WRITER: Duration = Duration::from_secs(60);
/// How often that pipe is looked at.
const PAUSE: Duration = Duration::from_millis(10);
/// Of `fcntl.h`; std has no name for it.
#[cfg(target_os = "linux")]
const O_NONBLOCK: i32 = 0o4000;
#[cfg(not(target_os = "linux"))]
const O_NONBLOCK: i32 = 0x4;
