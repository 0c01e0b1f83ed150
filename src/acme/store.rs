//! The folder in which ACME keeps its account, the order in progress, and the certificate with its key.
//!
//! One process at a time uses a store. A file is replaced by a rename, so that a crash leaves the old one or the new
//! one, and only the owner can read it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{config::ReadError, config::read_file, quote};

/// A folder that this process alone uses until the value is dropped.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    _lock: File,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses it.
    #[error(
        "the ACME store {} is in use by another process; stop that one, or give each its own `store` (--acme-store)",
        quote::path(folder)
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder cannot be made or written.
    #[error(
        "cannot {doing} {}; set `store` (--acme-store) to a folder that this user may write",
        quote::path(path)
    )]
    Write {
        /// The action, as a lowercase fragment.
        doing: &'static str,
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {} of the ACME store", quote::path(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
}

impl Store {
    /// Opens a store, makes its folder if there is none, and locks it.
    ///
    /// # Errors
    ///
    /// When another process has it, or this user may not write it.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(FOLDER_MODE).create(folder);
        made.map_err(failed("make the ACME store", folder))?;
        let path = folder.join(LOCK);
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE);
        let lock = options
            .open(&path)
            .map_err(failed("open the ACME store", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                folder: folder.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
                folder: folder.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed("lock the ACME store", &path)(source)),
        }
    }

    /// The content of a file; `None` if there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.folder.join(name);
        match read_file(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadError::Missing) => Ok(None),
            Err(source) => Err(StoreError::Read { path, source }),
        }
    }

    /// Replaces a file. It is on the disk when this returns.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        let new = self.folder.join(format!("{name}.new"));
        let write = || {
            // Of a process that was killed. Without it, `create_new` gives the file its mode.
            remove(&new)?;
            let mut options = OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Removes a file, if there is one.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        remove(&path).map_err(failed("remove", &path))
    }
}

/// Checks a store, and changes nothing. Returns its state, as the rest of a sentence.
///
/// # Errors
///
/// When this user may not write it.
pub(crate) fn check(folder: &Path) -> Result<&'static str, StoreError> {
    let path = folder.join(LOCK);
    match OpenOptions::new().write(true).open(&path) {
        Ok(lock) => match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Ok("is in use, by the running proxy or another process")
            }
            Ok(()) | Err(TryLockError::Error(_)) => Ok("is ready"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok("has not been used yet; `serve` makes it")
        }
        Err(error) => Err(failed("open the ACME store", &path)(error)),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Write {
        doing,
        path: path.to_owned(),
        source,
    }
}

const LOCK: &str = "lock";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use standin::TempDir;

    use super::*;

    #[test]
    fn store_is_private_and_replaces_files_whole() {
        let dir = TempDir::new();
        let folder = dir.path().join("a/b");
        let store = Store::open(&folder).unwrap();
        assert!(store.read("x").unwrap().is_none());
        fs::write(folder.join("x.new"), "left by a crash").unwrap();
        store.write("x", b"one").unwrap();
        store.write("x", b"two").unwrap();
        assert_eq!(store.read("x").unwrap().unwrap(), b"two");
        assert!(!folder.join("x.new").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("x")), 0o600);
        assert_eq!(mode(&folder.join("lock")), 0o600);
        store.remove("x").unwrap();
        store.remove("x").unwrap();
        assert!(store.read("x").unwrap().is_none());
    }

    #[test]
    fn second_use_of_a_store_is_refused_until_the_first_ends() {
        let dir = TempDir::new();
        let store = Store::open(dir.path()).unwrap();
        let refused = Store::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("in use by another process"), "{refused}");
        drop(store);
        Store::open(dir.path()).unwrap();
    }
}
