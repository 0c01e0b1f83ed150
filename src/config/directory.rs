//! Clusters from a directory: each kubeconfig in it is a cluster, whose name is that of its file.
//!
//! An error in one file is about that cluster alone, so it is not a [`ConfigError`] but an [`UnusableCluster`]. An
//! error about the directory itself is a [`ConfigError`]: an unreadable directory is not an empty one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_saphyr::Spanned;

use super::{
    AccessRule, ClusterConfig, ConfigError, FileKind, PublishConfig, SettingError, access,
    clusters::prefix_conflict,
    config_file::{ClusterEntry, ClustersFromEntry, PublicHost},
    kubeconfig,
    source::ConfigSource,
    url::PublicPrefix,
};
use crate::{quote, text::error_chain};

/// A directory whose files are clusters, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDirectory {
    /// Its path.
    pub path: PathBuf,
    /// The files in it that are read.
    pub files: Vec<PathBuf>,
    /// What else is in it: files of other kinds, and folders.
    pub skipped: Vec<String>,
    /// The files that give no cluster.
    pub unusable: Vec<UnusableCluster>,
    /// The rules of each of its clusters.
    pub access: Vec<AccessRule>,
}

impl ClusterDirectory {
    /// The paths whose changes cause a reload: the directory and its files.
    pub(super) fn sources(&self) -> impl Iterator<Item = PathBuf> {
        [&self.path].into_iter().chain(&self.files).cloned()
    }

    /// Warnings about a directory that works but needs attention.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.files.is_empty() {
            warnings.push(format!(
                "directory {} has no kubeconfig, so no client can use a cluster of it; put one there, such as prod.yaml",
                quote::path(&self.path)
            ));
        }
        if !self.access.is_empty() {
            warnings.extend(access::warnings("{name} of clustersFrom", &self.access));
        }
        warnings
    }
}

/// A file of the directory that gives no cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableCluster {
    /// Why, in one sentence with the path and the fix.
    pub problem: String,
    /// With what the last good state of its cluster stays in use; `None` if it must not.
    pub public: Option<PublicSide>,
}

/// What the configuration file says of a cluster of the directory, whatever the file of the cluster says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicSide {
    /// Its name.
    pub name: String,
    /// Its public host names.
    pub hosts: Vec<String>,
    /// The path below them that leads to it.
    pub public_prefix: Option<String>,
    /// Its access rules.
    pub access: Vec<AccessRule>,
    /// The kubeconfig that its hosts serve to everyone.
    pub publish: Option<PublishConfig>,
}

impl PublicSide {
    /// The public side of `cluster`.
    #[must_use]
    pub fn from_cluster(cluster: &ClusterConfig) -> Self {
        Self {
            name: cluster.name.clone(),
            hosts: cluster.hosts.clone(),
            public_prefix: cluster.public_prefix.clone(),
            access: cluster.access.clone(),
            publish: cluster.publish.clone(),
        }
    }

    /// `cluster` with this public side.
    #[must_use]
    pub fn apply_to(&self, cluster: ClusterConfig) -> ClusterConfig {
        let Self {
            name,
            hosts,
            public_prefix,
            access,
            publish,
        } = self.clone();
        ClusterConfig {
            name,
            hosts,
            public_prefix,
            access,
            publish,
            ..cluster
        }
    }
}

/// The clusters of the directory that `section` names. `others` are those of the configuration file, and `publish` is
/// what all hosts publish.
pub(super) fn load(
    section: &ClustersFromEntry,
    publish: Option<PublishConfig>,
    others: &[Spanned<ClusterEntry>],
    source: &ConfigSource,
) -> Result<(Vec<ClusterConfig>, ClusterDirectory), ConfigError> {
    let (hosts, prefixes) = (&section.host_template, &section.path_prefix);
    check_templates(section, source)?;
    let rules = section.access.as_ref();
    let access = rules.map_or(Ok(Vec::new()), |rules| access::rules(rules, source))?;
    let path = source.path(&section.directory.value.0.0);
    let listing = Listing::read(&path).map_err(|error| {
        let path = path.clone();
        let error = if error.kind() == io::ErrorKind::NotADirectory {
            SettingError::NotADirectory { path }
        } else {
            let source = error.into();
            SettingError::ClusterDirectory { path, source }
        };
        source.error_at(&section.directory, error)
    })?;
    if listing.files.len() > MAX_FILES {
        let max = MAX_FILES;
        let error = SettingError::ManyClusterFiles { path, max };
        return Err(source.error_at(&section.directory, error));
    }
    let names: Vec<_> = listing.files.iter().map(|file| name_of(file)).collect();
    let (mut clusters, mut unusable) = (Vec::new(), Vec::new());
    for (file, name) in listing.files.iter().zip(&names) {
        let public = name.and_then(|name| {
            let host = hosts
                .as_ref()
                .map(|template| host(&template.value, name).ok_or(()));
            let prefix = prefixes.as_ref();
            let prefix = prefix.map(|template| prefix_of(&template.value, name).ok_or(()));
            Some((name, host.transpose().ok()?, prefix.transpose().ok()?))
        });
        let Some((name, host, prefix)) = public else {
            unusable.push(unusable_file(file, SettingError::ClusterFileName, None));
            continue;
        };
        if let Some(error) = conflict(name, host.as_deref(), prefix.as_ref(), others, source) {
            unusable.push(unusable_file(file, error, None));
            continue;
        }
        let public = PublicSide {
            name: name.to_owned(),
            hosts: host.into_iter().collect(),
            public_prefix: prefix.map(|prefix| prefix.0),
            access: access.clone(),
            publish: publish.clone(),
        };
        // A host has no capital letters, so `A` and `a` would have the same one. A choice between two files could send
        // tokens to the wrong apiserver.
        let same = names.iter().flatten();
        if same
            .filter(|other| other.eq_ignore_ascii_case(name))
            .count()
            > 1
        {
            let error = SettingError::cluster(name, SEVERAL_FILES);
            unusable.push(unusable_file(file, error, Some(public)));
            continue;
        }
        match kubeconfig::load(file, None) {
            Ok(upstream) => clusters.push(ClusterConfig {
                file: Some(file.clone()),
                ..public.apply_to(upstream)
            }),
            Err(error) => unusable.push(UnusableCluster {
                problem: error_chain(&error).to_string(),
                public: Some(public),
            }),
        }
    }
    let directory = ClusterDirectory {
        path,
        files: listing.files,
        skipped: listing.skipped,
        unusable,
        access,
    };
    Ok((clusters, directory))
}

/// Refuses templates that give several clusters one host, or no way at all.
fn check_templates(section: &ClustersFromEntry, source: &ConfigSource) -> Result<(), ConfigError> {
    let (hosts, prefixes) = (&section.host_template, &section.path_prefix);
    if let Some(template) = prefixes {
        let problem = if !template.value.contains(NAME) {
            PREFIX_WITHOUT_NAME
        } else if prefix_of(&template.value, "a").is_none() {
            NOT_A_PREFIX_TEMPLATE
        } else {
            ""
        };
        if !problem.is_empty() {
            let error = SettingError::invalid(&template.value, problem);
            return Err(source.error_at(template, error));
        }
    }
    let Some(template) = hosts else {
        let error = SettingError::MissingKey {
            key: "hostTemplate",
        };
        return match prefixes {
            Some(_) => Ok(()),
            None => Err(source.error_at(&section.directory, error)),
        };
    };
    let problem = if prefixes.is_none() && !template.value.contains(NAME) {
        WITHOUT_NAME
    } else if host(&template.value, "a").is_none() {
        NOT_A_TEMPLATE
    } else {
        return Ok(());
    };
    let error = SettingError::invalid(&template.value, problem);
    Err(source.error_at(template, error))
}

fn unusable_file(file: &Path, error: SettingError, public: Option<PublicSide>) -> UnusableCluster {
    let error = ConfigError::File {
        kind: FileKind::Kubeconfig,
        file: file.to_owned(),
        at: None,
        excerpt: None,
        source: Box::new(error),
    };
    let problem = error_chain(&error).to_string();
    UnusableCluster { problem, public }
}

/// Why a cluster with this name, host and prefix cannot exist beside those of the configuration file.
fn conflict(
    name: &str,
    host: Option<&str>,
    prefix: Option<&PublicPrefix>,
    others: &[Spanned<ClusterEntry>],
    source: &ConfigSource,
) -> Option<SettingError> {
    for entry in others {
        let cluster = quote::name(&entry.value.name);
        if cluster == name {
            let place = source.place(entry);
            return Some(SettingError::ClusterNameTaken { cluster, place });
        }
        // Clusters with prefixes may share a host.
        let may_share = prefix.is_some() && entry.value.path_prefix.is_some();
        let Some(host) = host.filter(|_| !may_share) else {
            continue;
        };
        let (_, parent) = host.split_once('.').unwrap_or_default();
        for taken in &entry.value.hosts {
            let pattern = taken.value.0.0.to_string();
            // Under a wildcard of another cluster, the requests would go there when this file is gone.
            if pattern == host || pattern.strip_prefix("*.") == Some(parent) {
                return Some(SettingError::ClusterHostTaken {
                    host: host.to_owned(),
                    pattern,
                    cluster,
                    place: source.place(taken),
                });
            }
        }
    }
    prefix_conflict(prefix?, others, source)
}

/// The name of the cluster in `file`: the name of the file without its extension.
fn name_of(file: &Path) -> Option<&str> {
    let name = file.file_stem()?.to_str()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_name = name.bytes().all(is_plain) && quote::pasted(name).is_none();
    is_name.then_some(name)
}

/// The host of the cluster `name`; `None` if it is not a host name.
fn host(template: &str, name: &str) -> Option<String> {
    let host: PublicHost = template.replace(NAME, name).parse().ok()?;
    Some(host.0.to_string()).filter(|host| !host.starts_with('*') && host.contains('.'))
}

/// The prefix of the cluster `name`; `None` if it is not one.
fn prefix_of(template: &str, name: &str) -> Option<PublicPrefix> {
    template.replace(NAME, name).parse().ok()
}

/// The content of a directory of clusters, in order.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// The files that are read.
    pub(crate) files: Vec<PathBuf>,
    skipped: Vec<String>,
}

impl Listing {
    /// Lists `directory`. A file whose kind is unknown is one to read, so that the error names it.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (file, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            // Editors and the kubelet (`..data`) hide theirs.
            if name.starts_with('.') {
                continue;
            }
            let is_file = fs::metadata(&file).map_or(true, |metadata| metadata.is_file());
            if is_file && is_kubeconfig(&file) {
                listing.files.push(file);
            } else {
                listing.skipped.push(quote::name(&name));
            }
        }
        listing.files.sort_unstable();
        listing.skipped.sort_unstable();
        Ok(listing)
    }
}

/// Whether the name of the file is one of a kubeconfig. A key of a Secret may have no extension.
fn is_kubeconfig(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match file.extension() {
        Some(extension) => EXTENSIONS.iter().any(|known| extension == *known),
        None => !name.ends_with('~') && !name.starts_with('#'),
    }
}

/// The placeholder for the cluster name in a template.
const NAME: &str = "{name}";
const EXTENSIONS: [&str; 6] = ["conf", "config", "json", "kubeconfig", "yaml", "yml"];
/// As many clusters have metrics of their own.
const MAX_FILES: usize = 999;

const WITHOUT_NAME: &str =
    "has no `{name}`, so all clusters would have one host; write it, as in {name}.kube.example.com";
const NOT_A_TEMPLATE: &str = "does not become a host name when a name stands for `{name}`; write one such as {name}.kube.example.com";
const PREFIX_WITHOUT_NAME: &str =
    "has no `{name}`, so all clusters would have one path; write it, as in /clusters/{name}";
const NOT_A_PREFIX_TEMPLATE: &str = "does not become a path prefix when a name stands for `{name}`; write one such as /clusters/{name}";
const SEVERAL_FILES: &str = "has several files, whose names differ at most in extension and capital letters; remove or rename all but one";
