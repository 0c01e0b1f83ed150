//! Where a value comes from: a flag, or a place in the configuration file.
//!
//! Both make relative paths absolute and give errors a place, so that the code for flags and file is the same.

use std::{
    path::{Path, PathBuf, absolute},
    str::FromStr,
};

use serde_saphyr::Spanned;

use super::{ConfigError, FileKind, ServeArgs, SettingError, yaml};
use crate::quote;

/// The configuration file. Its relative paths begin at its own directory.
pub(super) struct ConfigSource {
    pub(super) file: PathBuf,
}

impl ConfigSource {
    /// A path of the file, as an absolute path.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.file
            .parent()
            .unwrap_or_else(|| Path::new(""))
            .join(path)
    }

    /// The place of a value, for messages.
    pub(super) fn place<T>(&self, at: &Spanned<T>) -> String {
        let file = quote::path(&self.file);
        let at = yaml::position(at.referenced);
        at.map_or_else(
            || format!("{} {file}", FileKind::Config),
            |at| format!("{} {file}, {at}", FileKind::Config),
        )
    }

    /// An error at the place of a value.
    pub(super) fn error_at<T>(&self, at: &Spanned<T>, source: SettingError) -> ConfigError {
        ConfigError::File {
            kind: FileKind::Config,
            file: self.file.clone(),
            at: yaml::position(at.referenced),
            excerpt: None,
            source: Box::new(source),
        }
    }
}

/// Parses the value of a flag.
pub(super) fn parse_flag<T: FromStr<Err: Into<SettingError>>>(
    flag: &'static str,
    text: &str,
) -> Result<T, ConfigError> {
    text.parse().map_err(|error: T::Err| {
        let source = error.into();
        ConfigError::Flag { flag, source }
    })
}

/// A path of the command line, made independent of the working directory.
pub(super) fn absolute_path(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_no_working_directory| path.to_owned())
}

/// Refuses flags that hold the content of a file instead of its path.
pub(super) fn check_path_flags(args: &ServeArgs) -> Result<(), ConfigError> {
    let lists = [("--cert", &args.certificates), ("--key", &args.keys)];
    let single = [
        ("--upstream-ca", &args.upstream_ca),
        ("--kubeconfig", &args.kubeconfig),
        ("--config", &args.config),
    ];
    let of_lists = lists
        .into_iter()
        .flat_map(|(flag, paths)| paths.iter().map(move |path| (flag, path)));
    let of_single = single
        .into_iter()
        .filter_map(|(flag, path)| path.as_ref().map(|path| (flag, path)));
    of_lists
        .chain(of_single)
        .try_for_each(|(flag, path)| check_path_flag(flag, path))
}

/// Checks a flag whose value must be a path.
///
/// # Errors
///
/// When it is the content of a file, such as PEM text.
pub(crate) fn check_path_flag(flag: &'static str, path: &Path) -> Result<(), ConfigError> {
    check_path(path).map_err(|source| ConfigError::Flag { flag, source })
}

/// Refuses text that cannot be a path, such as PEM: `--key="$(cat tls.key)"`.
pub(super) fn check_path(path: &Path) -> Result<(), SettingError> {
    quote::not_a_path(&path.to_string_lossy())
        .map_or(Ok(()), |found| Err(SettingError::NotAPath { found }))
}
