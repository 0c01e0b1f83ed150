//! Writes a file that only its owner may read, whole or not at all.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process,
};

use crate::quote;

/// Why the file was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", quote::path(file))]
pub(super) struct WriteFault {
    file: PathBuf,
    #[source]
    source: Cause,
}

/// The cause, with the mend.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("its directory does not exist; make it, or name another with --output")]
    NoDirectory,
    #[error("permission denied; name a file in a directory of your own with --output")]
    Denied,
    #[error("is a directory; give the path of a file in it with --output")]
    Directory,
    #[error("the operating system refuses")]
    Other(#[source] io::Error),
}

impl From<io::Error> for Cause {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own words"
    )]
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoDirectory,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::IsADirectory => Self::Directory,
            _ => Self::Other(error),
        }
    }
}

/// Writes `text` beside `file` and then puts it into its place.
pub(super) fn write(file: &Path, text: &str) -> Result<(), WriteFault> {
    let failed = |error: io::Error| WriteFault {
        file: file.to_owned(),
        source: error.into(),
    };
    let Some(name) = file.file_name() else {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    };
    let beside = file.with_file_name(format!(".{}.{}", name.to_string_lossy(), process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut open| {
            open.write_all(text.as_bytes())?;
            open.sync_all()
        })
        .and_then(|()| fs::rename(&beside, file));
    written.map_err(|source| {
        // Nothing can be done about a file that stays; what is told is why it was not put in place.
        drop(fs::remove_file(&beside));
        failed(source)
    })
}
