//! Reads the small files that configuration, certificates and CAs come from.
//!
//! A size limit keeps a wrong path such as `/dev/zero` from filling memory. A pipe without a writer, such as
//! `--cert <(command)` when it is read again, counts as empty and does not block the process.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread,
    time::Duration,
};

use crate::quote;

/// Returns the bytes of the file at `path`.
///
/// # Errors
///
/// [`ReadError`] when the file cannot be opened or read, or is larger than [`MAX_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    if let Some(found) = quote::not_a_path(&path.to_string_lossy()) {
        return Err(ReadError::NotAPath { found });
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NONBLOCK)
        .open(path)
        .map_err(|error| {
            let is_missing = matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::InvalidFilename
            );
            // Only a path that names no file may be a key: hashes and IDs in paths can look like one.
            if is_missing && let Some(found) = quote::pasted(&path.to_string_lossy()) {
                ReadError::NotAPath { found }
            } else if is_missing && path.iter().any(|part| part == "~") {
                ReadError::Tilde
            } else {
                ReadError::from(error)
            }
        })?;
    let mut bytes = Vec::new();
    let patience = WRITER_TIMEOUT;
    let read = PatientFile { file, patience }
        .take(MAX_BYTES.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(ReadError::from)?;
    match u64::try_from(read) {
        Ok(read) if read <= MAX_BYTES => Ok(bytes),
        Ok(_) | Err(_) => Err(ReadError::TooLarge),
    }
}

/// As [`read`], from standard input.
pub(super) fn read_stdin() -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    let stdin = io::stdin().lock();
    let read = stdin
        .take(MAX_BYTES.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match u64::try_from(read) {
        Ok(read) if read <= MAX_BYTES => Ok(bytes),
        Ok(_) | Err(_) => Err(ReadError::TooLarge),
    }
}

/// A file that may be a pipe with a slow writer; reads wait for it, up to `patience`.
struct PatientFile {
    file: File,
    patience: Duration,
}

impl Read for PatientFile {
    #[expect(
        clippy::disallowed_methods,
        reason = "workers read no files, and only a pipe with a slow writer waits here"
    )]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.patience.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    thread::sleep(RETRY_INTERVAL);
                    self.patience = self.patience.saturating_sub(RETRY_INTERVAL);
                }
                read => return read,
            }
        }
    }
}

/// Why a file could not be read, and how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file does not exist.
    #[error("no such file; check the path")]
    Missing,
    /// The file does not exist; the path has a `~` that no shell expanded.
    #[error("no such file: only a shell expands `~`; write the full path")]
    Tilde,
    /// The user that the proxy runs as may not read it.
    #[error("permission denied; give read permission to the user that runs the proxy")]
    Denied,
    /// The path names a directory.
    #[error("is a directory; give the path of a file in it")]
    Directory,
    /// No certificate, key or configuration is this large.
    #[error("larger than 4 MiB; check the path")]
    TooLarge,
    /// The path is the content of a file.
    #[error("a path belongs here, not {found}; write it to a file and give the path of that file")]
    NotAPath {
        /// What was given instead, such as `the key itself`.
        found: &'static str,
    },
    /// Any other error of the operating system.
    #[error("cannot be read")]
    Other(#[source] io::Error),
}

impl From<io::Error> for ReadError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own message"
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

/// Far more than any real certificate bundle, key, kubeconfig or configuration.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// How long the writer of a pipe may take. A person may have to log in first.
const WRITER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait before the next read of that pipe.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// From `fcntl.h`; std does not define it.
#[cfg(target_os = "linux")]
const O_NONBLOCK: i32 = 0o4000;
#[cfg(not(target_os = "linux"))]
const O_NONBLOCK: i32 = 0x4;
