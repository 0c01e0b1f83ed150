//! Writes a file that only its owner may read, whole or not at all.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process,
};

/// Why the file was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", file.display())]
pub(super) struct WriteFault {
    file: PathBuf,
    #[source]
    source: io::Error,
}

/// Writes `text` beside `file` and then puts it into its place.
pub(super) fn write(file: &Path, text: &str) -> Result<(), WriteFault> {
    let failed = |source| WriteFault {
        file: file.to_owned(),
        source,
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
