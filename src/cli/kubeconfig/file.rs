//! Writes a file atomically and keeps a backup of the file that it replaces.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    process,
};

use crate::quote;

/// A file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {}", quote::path(file), reason(cause))]
pub(super) struct WriteError {
    file: PathBuf,
    cause: io::Error,
}

/// What is wrong, and how to fix it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "std adds kinds; an unknown one keeps its own words"
)]
fn reason(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => {
            "its directory does not exist; create it, or name another with --output".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; name a file in a directory of your own with --output".to_owned()
        }
        io::ErrorKind::IsADirectory => {
            "is a directory; give the path of a file in it with --output".to_owned()
        }
        _ => cause.to_string(),
    }
}

/// The file of `--output`.
#[derive(Debug)]
pub(super) struct OutputFile {
    /// The target if `--output` names a symbolic link, so that the link stays.
    path: PathBuf,
    existing: Option<Metadata>,
}

/// The permissions of the written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileMode {
    /// Those of the existing file; readable for its owner only if the file is new.
    Keep,
    /// Readable for its owner only.
    OwnerOnly,
}

impl OutputFile {
    /// Finds the file at `path`, which need not exist.
    ///
    /// # Errors
    ///
    /// When `path` is not a regular file, or cannot be examined.
    pub(super) fn find(path: &Path) -> Result<Self, WriteError> {
        let failed = |cause| WriteError {
            file: path.to_owned(),
            cause,
        };
        match fs::metadata(path) {
            Ok(existing) if existing.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
            Ok(existing) if !existing.is_file() => {
                Err(failed(io::Error::other("is not a regular file")))
            }
            Ok(existing) => Ok(Self {
                path: fs::canonicalize(path).map_err(failed)?,
                existing: Some(existing),
            }),
            // A new file, or a symbolic link whose target does not exist yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self {
                path: fs::read_link(path).map_or_else(
                    |_no_link| path.to_owned(),
                    |target| path.with_file_name(target),
                ),
                existing: None,
            }),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether the file exists.
    pub(super) const fn exists(&self) -> bool {
        self.existing.is_some()
    }

    /// Whether there is nothing to merge into: no file, or only white space.
    pub(super) fn is_empty(&self) -> bool {
        !self.exists() || fs::read(&self.path).is_ok_and(|text| text.trim_ascii().is_empty())
    }

    /// Writes `text` after it has copied an existing file to `FILE.bak`. Returns whether other users can read the file.
    pub(super) fn write(&self, text: &str, mode: FileMode) -> Result<bool, WriteError> {
        let failed = |file: &Path, cause| WriteError {
            file: file.to_owned(),
            cause,
        };
        let kept = self.existing.as_ref().map(|old| old.mode() & 0o7777);
        if let Some(kept) = kept {
            let mut backup = self.path.clone().into_os_string();
            backup.push(BACKUP);
            let backup = PathBuf::from(backup);
            fs::read(&self.path)
                .and_then(|old| self.replace(&backup, &old, kept))
                .map_err(|error| failed(&backup, error))?;
        }
        let bits = match (mode, kept) {
            (FileMode::Keep, Some(kept)) => kept,
            (FileMode::Keep, None) | (FileMode::OwnerOnly, _) => OWNER_ONLY,
        };
        self.replace(&self.path, text.as_bytes(), bits)
            .map_err(|error| failed(&self.path, error))?;
        Ok(bits & 0o077 != 0)
    }

    /// Writes a temporary file next to `path` and renames it. It keeps the owner of the existing file if possible.
    fn replace(&self, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}", process::id()));
        let temporary = path.with_file_name(temporary);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(OWNER_ONLY)
            .open(&temporary)
            .and_then(|file| self.fill(file, text, mode))
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // If this fails too, the temporary file stays; the first error is the one to report.
            drop(fs::remove_file(&temporary));
        }
        written
    }

    fn fill(&self, mut file: File, text: &[u8], mode: u32) -> io::Result<()> {
        if let Some(old) = &self.existing {
            // Only root can change the owner, and only root needs to: it may write to the file of another user.
            drop(fchown(&file, Some(old.uid()), Some(old.gid())));
        }
        file.write_all(text)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    }
}

const BACKUP: &str = ".bak";
const OWNER_ONLY: u32 = 0o600;
