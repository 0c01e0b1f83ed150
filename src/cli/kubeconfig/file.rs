//! Writes a file atomically, under the lock of kubectl, and keeps a backup of the file that it replaces.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    process,
};

use crate::{cli::messages::WriteError, quote};

/// The file of `--output`.
#[derive(Debug)]
pub(super) struct OutputFile {
    /// The path as `--output` has it.
    named: PathBuf,
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
                named: path.to_owned(),
                path: fs::canonicalize(path).map_err(failed)?,
                existing: Some(existing),
            }),
            // A new file, or symbolic links whose target does not exist yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut target = path.to_owned();
                for _ in 0..MAX_LINKS {
                    match fs::read_link(&target) {
                        Ok(next) => target = target.with_file_name(next),
                        Err(_no_link) => break,
                    }
                }
                Ok(Self {
                    named: path.to_owned(),
                    path: target,
                    existing: None,
                })
            }
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

    /// Whether other users can read the existing file.
    pub(super) fn is_open_to_others(&self) -> bool {
        self.existing
            .as_ref()
            .is_some_and(|old| is_open(old.mode()))
    }

    /// Locks the file against kubectl, which creates `FILE.lock` in the same way while it changes the file.
    ///
    /// # Errors
    ///
    /// When another program holds the lock, or the directory cannot be written to.
    pub(super) fn lock(&self) -> Result<FileLock, WriteError> {
        let lock = with_suffix(&self.named, ".lock");
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o000)
            .open(&lock);
        match created {
            Ok(_file) => Ok(FileLock(lock)),
            Err(error) => Err(WriteError {
                file: self.named.clone(),
                cause: if error.kind() == io::ErrorKind::AlreadyExists {
                    io::Error::other(format!(
                        "another program is changing it; try again, or remove {} if no such program runs",
                        quote::path(&lock)
                    ))
                } else {
                    error
                },
            }),
        }
    }

    /// Writes `text` after it has copied an existing file to a backup.
    pub(super) fn write(&self, text: &str, mode: FileMode) -> Result<WrittenFile, WriteError> {
        let failed = |file: &Path, cause| WriteError {
            file: file.to_owned(),
            cause,
        };
        let kept = self.existing.as_ref().map(|old| old.mode() & 0o7777);
        let backup = kept.map(|_| self.backup_path());
        if let (Some(kept), Some(backup)) = (kept, &backup) {
            fs::read(&self.path)
                .and_then(|old| self.replace(backup, &old, kept))
                .map_err(|error| failed(backup, error))?;
        }
        let bits = match (mode, kept) {
            (FileMode::Keep, Some(kept)) => kept,
            (FileMode::Keep, None) | (FileMode::OwnerOnly, _) => OWNER_ONLY,
        };
        self.replace(&self.path, text.as_bytes(), bits)
            .map_err(|error| failed(&self.path, error))?;
        Ok(WrittenFile {
            is_open: is_open(bits),
            backup,
        })
    }

    /// The first free of `FILE.bak`, `FILE.bak.1` and so on. `FILE.bak` may be the only file that still has comments,
    /// so only the last of them is overwritten.
    fn backup_path(&self) -> PathBuf {
        let mut backup = with_suffix(&self.path, ".bak");
        for number in 1..=MAX_NUMBERED_BACKUPS {
            if fs::symlink_metadata(&backup).is_err() {
                break;
            }
            backup = with_suffix(&self.path, &format!(".bak.{number}"));
        }
        backup
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
            // Only root can change the owner. Only root needs to, because root may write to the file of another user.
            drop(fchown(&file, Some(old.uid()), Some(old.gid())));
        }
        file.write_all(text)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    }
}

/// A written file.
#[derive(Debug)]
pub(super) struct WrittenFile {
    /// Whether other users can read it.
    pub(super) is_open: bool,
    /// The copy of the file that it replaced.
    pub(super) backup: Option<PathBuf>,
}

/// Removes the lock file when it is dropped.
#[derive(Debug)]
pub(super) struct FileLock(PathBuf);

impl Drop for FileLock {
    fn drop(&mut self) {
        // If this fails, the next run says which file to remove.
        drop(fs::remove_file(&self.0));
    }
}

const fn is_open(mode: u32) -> bool {
    mode & 0o077 != 0
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Linux follows at most 40 symbolic links, and so do we.
const MAX_LINKS: usize = 40;
/// Enough for a person to notice, and not too many for a script that renews a token.
const MAX_NUMBERED_BACKUPS: usize = 9;
const OWNER_ONLY: u32 = 0o600;
