//! Writes a file whole or not at all, and keeps what it replaces.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    process,
};

use crate::quote;

/// The file was not written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", quote::path(file))]
pub(super) struct WriteError {
    file: PathBuf,
    #[source]
    source: WriteErrorCause,
}

/// Why a file was not written, and how to fix it.
#[derive(Debug, thiserror::Error)]
enum WriteErrorCause {
    #[error("its directory does not exist; make it, or name another with --output")]
    NoDirectory,
    #[error("permission denied; name a file in a directory of your own with --output")]
    Denied,
    #[error("is a directory; give the path of a file in it with --output")]
    Directory,
    #[error("is not a regular file; name another with --output")]
    NotAFile,
    #[error("the operating system refuses")]
    Other(#[source] io::Error),
}

impl From<io::Error> for WriteErrorCause {
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

/// A file to write to.
#[derive(Debug)]
pub(super) struct OutputFile {
    /// The file itself where `--output` names a link to it: the link stays.
    path: PathBuf,
    existing: Option<Metadata>,
}

/// Which permissions the file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Those that it has; for its owner alone if it is new.
    Keep,
    /// For its owner alone.
    OwnerOnly,
}

impl OutputFile {
    /// Looks whether there is a file at `path`.
    ///
    /// # Errors
    ///
    /// When that cannot be told, or when something else is there.
    pub(super) fn find(path: &Path) -> Result<Self, WriteError> {
        let failed = |source| WriteError {
            file: path.to_owned(),
            source,
        };
        match fs::metadata(path) {
            Ok(existing) if existing.is_dir() => Err(failed(WriteErrorCause::Directory)),
            Ok(existing) if !existing.is_file() => Err(failed(WriteErrorCause::NotAFile)),
            Ok(existing) => Ok(Self {
                path: fs::canonicalize(path).map_err(|error| failed(error.into()))?,
                existing: Some(existing),
            }),
            // A new file, or a link to none, whose target is then made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self {
                path: fs::read_link(path).map_or_else(
                    |_no_link| path.to_owned(),
                    |target| path.with_file_name(target),
                ),
                existing: None,
            }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Whether the file is there already.
    pub(super) const fn exists(&self) -> bool {
        self.existing.is_some()
    }

    /// Whether there is no file, or one of white space: nothing to merge into.
    pub(super) fn is_empty(&self) -> bool {
        !self.exists() || fs::read(&self.path).is_ok_and(|text| text.trim_ascii().is_empty())
    }

    /// Writes `text`; what was there before goes to `FILE.bak`. Returns whether others can read the file now.
    pub(super) fn write(&self, text: &str, mode: Mode) -> Result<bool, WriteError> {
        let failed = |file: &Path, error: io::Error| WriteError {
            file: file.to_owned(),
            source: error.into(),
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
            (Mode::Keep, Some(kept)) => kept,
            (Mode::Keep, None) | (Mode::OwnerOnly, _) => OWNER_ONLY,
        };
        self.replace(&self.path, text.as_bytes(), bits)
            .map_err(|error| failed(&self.path, error))?;
        Ok(bits & 0o077 != 0)
    }

    /// Writes a new file beside `path` and renames it. It belongs to the owner of the existing one, if possible.
    fn replace(&self, path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{}", process::id()));
        let beside = path.with_file_name(beside);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(OWNER_ONLY)
            .open(&beside)
            .and_then(|file| self.fill(file, text, mode))
            .and_then(|()| fs::rename(&beside, path));
        if written.is_err() {
            // Nothing can be done about a file that stays; the error says why it was not put in place.
            drop(fs::remove_file(&beside));
        }
        written
    }

    fn fill(&self, mut file: File, text: &[u8], mode: u32) -> io::Result<()> {
        if let Some(old) = &self.existing {
            // Only root may give a file away, and only root needs to: the file of another user is merged into.
            drop(fchown(&file, Some(old.uid()), Some(old.gid())));
        }
        file.write_all(text)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    }
}

const BACKUP: &str = ".bak";
const OWNER_ONLY: u32 = 0o600;
