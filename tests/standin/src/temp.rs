//! A temporary directory that is removed when the test ends.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// A new directory in the system's temporary directory. Drop removes it with its content.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates a directory that did not exist before.
    ///
    /// # Panics
    ///
    /// When the system's temporary directory cannot be written to.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("standin-{}-{number}", process::id()));
            // Private keys go here.
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Self(path),
                // A killed run with the same process id left this directory.
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => panic!("make {}: {err}", path.display()),
            }
        }
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the directory, replaces an older one, and returns its path. The name may contain
    /// folders.
    ///
    /// # Panics
    ///
    /// When the file cannot be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        let folder = path.parent().unwrap_or(&self.0);
        if let Err(err) = fs::create_dir_all(folder).and_then(|()| fs::write(&path, contents)) {
            panic!("write {}: {err}", path.display());
        }
        path
    }
}

impl Default for TempDir {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A failure here cannot be handled, and it must not hide the failure of the test.
        drop(fs::remove_dir_all(&self.0));
    }
}
