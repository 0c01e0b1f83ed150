//! The kubeconfig of the demo: its text, and a file that no other demo and no user has.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{PUBLIC_NAME, TOKEN};

/// The first line of the file: a file without it belongs to the user.
const MARKER: &str = "# Written by the demo of kube-tls-proxy, which removes it when it ends.\n";

/// How many demos may run in one directory.
const MAX_FILES: u32 = 100;

/// A kubeconfig in the current directory. Drop removes it.
#[derive(Debug)]
pub(crate) struct KubeconfigFile {
    path: PathBuf,
    /// Locked until the demo ends, also if it is killed, so that the next demo knows whether the file is in use.
    file: File,
}

impl KubeconfigFile {
    /// Takes the first name in `folder` that no running demo uses: `demo.kubeconfig`, `demo-2.kubeconfig` and so on.
    pub(crate) fn claim(folder: &Path) -> io::Result<Self> {
        for number in 1..=MAX_FILES {
            let name = match number {
                1 => "demo.kubeconfig".to_owned(),
                number => format!("demo-{number}.kubeconfig"),
            };
            let path = folder.join(name);
            let claimed = Self::try_claim(&path).map_err(|error| {
                let path = path.display();
                io::Error::new(
                    error.kind(),
                    format!("{path}: {error}; start the demo in a directory that you can write to"),
                )
            })?;
            if let Some(file) = claimed {
                return Ok(Self { path, file });
            }
        }
        Err(io::Error::other(format!(
            "all names up to demo-{MAX_FILES}.kubeconfig are in use; start the demo in another directory"
        )))
    }

    /// The locked file, or `None` if it belongs to another demo or to the user.
    fn try_claim(path: &Path) -> io::Result<Option<File>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The demo that had the lock may have removed the file after it was opened here.
        let opened = file.metadata()?;
        let is_at_path = fs::metadata(path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (opened.dev(), opened.ino()));
        if !is_at_path {
            return Ok(None);
        }
        let mut start = Vec::new();
        (&mut file)
            .take(MARKER.len() as u64)
            .read_to_end(&mut start)?;
        Ok((start.is_empty() || start == MARKER.as_bytes()).then_some(file))
    }

    /// Replaces the content of the file.
    pub(crate) fn write(&mut self, text: &str) -> io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(MARKER.as_bytes())?;
        self.file.write_all(text.as_bytes())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the file, as a shell reads it.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

impl Drop for KubeconfigFile {
    fn drop(&mut self) {
        // Removed before the lock is released. A failure means that the user has removed it.
        drop(fs::remove_file(&self.path));
    }
}

/// The kubeconfig of a user. It contains the CA only because no machine trusts the demo's public CA.
pub(crate) fn text(address: SocketAddr, public_ca: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: demo
  cluster:
    server: https://{address}
    tls-server-name: {PUBLIC_NAME}
    certificate-authority-data: {ca}
users:
- name: jane
  user:
    token: {TOKEN}
contexts:
- name: demo
  context: {{cluster: demo, user: jane}}
current-context: demo
",
        ca = STANDARD.encode(public_ca),
    )
}

#[cfg(test)]
mod tests {
    use standin::TempDir;

    use super::*;

    fn names(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn two_demos_in_one_directory_have_two_files() {
        let folder = TempDir::new();
        let claim = || {
            let mut file = KubeconfigFile::claim(folder.path()).unwrap();
            file.write("x").unwrap();
            file
        };
        let (first, second) = (claim(), claim());
        assert_eq!(names(&folder), ["demo-2.kubeconfig", "demo.kubeconfig"]);
        drop(first);
        assert_eq!(names(&folder), ["demo-2.kubeconfig"]);
        drop(second);
        assert!(names(&folder).is_empty());
    }

    #[test]
    fn file_of_a_killed_demo_is_used_again() {
        let folder = TempDir::new();
        folder.write("demo.kubeconfig", format!("{MARKER}and much more\n"));
        let mut file = KubeconfigFile::claim(folder.path()).unwrap();
        file.write("new").unwrap();
        let text = fs::read_to_string(folder.path().join("demo.kubeconfig")).unwrap();
        assert_eq!(text, format!("{MARKER}new"));
    }

    #[test]
    fn file_of_the_user_is_left_alone() {
        let folder = TempDir::new();
        let own = folder.write("demo.kubeconfig", "apiVersion: v1\n");
        let file = KubeconfigFile::claim(folder.path()).unwrap();
        assert_eq!(file.name(), "demo-2.kubeconfig");
        drop(file);
        assert_eq!(fs::read_to_string(own).unwrap(), "apiVersion: v1\n");
    }

    #[test]
    fn only_the_user_can_read_the_token() {
        let folder = TempDir::new();
        let file = KubeconfigFile::claim(folder.path()).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn error_names_the_file_and_the_fix() {
        let folder = TempDir::new();
        let error = KubeconfigFile::claim(&folder.path().join("absent")).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("absent/demo.kubeconfig") && error.contains("write to"),
            "{error}"
        );
    }
}
