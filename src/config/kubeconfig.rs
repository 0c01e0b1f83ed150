//! Reads contexts, clusters and users from a kubeconfig, by the rules of kubectl.
//!
//! The caller chooses what is kept of clusters and users. `serve` keeps nothing of users: no field holds the
//! credentials, so nothing of them outlives the text of the file.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny},
};

use super::{
    ClusterConfig, TrustSource,
    error::{ConfigError, FileKind, SettingError},
    source::check_path,
    url::{self, UpstreamUrl},
    yaml,
};
use crate::quote;

/// The cluster of `context` in `file`, by default of its current context. It has no hosts.
pub(super) fn load(file: &Path, context: Option<&str>) -> Result<ClusterConfig, ConfigError> {
    let (name, cluster) = cluster_of(file, context)?;
    complete(&name, cluster, file).map_err(|error| in_file(file, error))
}

/// The CA of that cluster.
pub(crate) fn load_trust(file: &Path, context: Option<&str>) -> Result<TrustSource, ConfigError> {
    let (name, cluster) = cluster_of(file, context)?;
    trust(&quoted(&name), &cluster, file).map_err(|error| in_file(file, error))
}

/// The cluster of `context` in `file`, by default of its current context, and its name.
fn cluster_of(
    file: &Path,
    context: Option<&str>,
) -> Result<(String, KubeconfigCluster), ConfigError> {
    let kubeconfig = Kubeconfig::<KubeconfigCluster, IgnoredAny>::load(file)?;
    let NamedContext { name, context } = kubeconfig.context(file, context)?;
    let error = match kubeconfig.cluster(&context.cluster) {
        Some(cluster) => return Ok((context.cluster, cluster.clone())),
        None if context.cluster.is_empty() => SettingError::ContextWithoutCluster {
            context: quote::name(&name),
        },
        None => SettingError::NoCluster {
            context: quote::name(&name),
            name: quote::name(&context.cluster),
        },
    };
    Err(in_file(file, error))
}

/// A kubeconfig. `C` is what is kept of each cluster, `U` what is kept of each user.
///
/// As for kubectl, everything may be missing or `null`, the entries of the lists too: only what the chosen context
/// names has to be complete. Proof: `unused_parts_of_a_kubeconfig_do_not_decide`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
#[serde(bound = "C: Deserialize<'de> + Default, U: Deserialize<'de> + Default")]
pub(crate) struct Kubeconfig<C, U> {
    #[serde(default, deserialize_with = "or_default")]
    current_context: String,
    #[serde(default, deserialize_with = "or_default")]
    contexts: Vec<Option<NamedContext>>,
    #[serde(default, deserialize_with = "or_default")]
    clusters: Vec<Option<NamedCluster<C>>>,
    #[serde(default, deserialize_with = "or_default")]
    users: Vec<Option<NamedUser<U>>>,
}

/// A context and its name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NamedContext {
    #[serde(deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) context: KubeconfigContext,
}

/// The names of a cluster, a user and a namespace that belong together. Each may be empty.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct KubeconfigContext {
    #[serde(deserialize_with = "or_default")]
    pub(crate) cluster: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) user: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(default, bound = "C: Deserialize<'de> + Default")]
struct NamedCluster<C> {
    #[serde(deserialize_with = "or_default")]
    name: String,
    // Missing in a configuration file of the proxy. If such a file is given by mistake, the error is about its
    // contexts.
    #[serde(deserialize_with = "or_default")]
    cluster: C,
}

#[derive(Default, Deserialize)]
#[serde(default, bound = "U: Deserialize<'de> + Default")]
struct NamedUser<U> {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    user: U,
}

/// What `serve` needs of a cluster.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KubeconfigCluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

/// A value, or the default one in place of `null`.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl<C, U> Kubeconfig<C, U>
where
    C: DeserializeOwned + Default,
    U: DeserializeOwned + Default,
{
    /// The kubeconfig in `file`. Two entries of one list must not have the same name, not even an empty one.
    pub(crate) fn load(file: &Path) -> Result<Self, ConfigError> {
        let loaded: Self = yaml::load(FileKind::Kubeconfig, file)?;
        let contexts = loaded.contexts.iter().flatten().map(|entry| &*entry.name);
        let clusters = loaded.clusters.iter().flatten().map(|entry| &*entry.name);
        let users = loaded.users.iter().flatten().map(|entry| &*entry.name);
        let duplicate = duplicate(contexts)
            .map(|name| ("contexts", name))
            .or_else(|| duplicate(clusters).map(|name| ("clusters", name)))
            .or_else(|| duplicate(users).map(|name| ("users", name)));
        match duplicate {
            Some((list, name)) => {
                let name = quote::name(name);
                Err(in_file(file, SettingError::DuplicateName { list, name }))
            }
            None => Ok(loaded),
        }
    }

    /// The context `name`, by default the current context. `file` is the path of this kubeconfig; only error messages
    /// use it.
    pub(crate) fn context(
        &self,
        file: &Path,
        name: Option<&str>,
    ) -> Result<NamedContext, ConfigError> {
        let name = name.unwrap_or(&self.current_context);
        let mut contexts = self.contexts.iter().flatten();
        // kubectl takes a context without a name, if no current context is set.
        if let Some(found) = contexts.find(|entry| entry.name == name) {
            return Ok(found.clone());
        }
        let known = self.contexts.iter().flatten().map(|entry| &*entry.name);
        let known: Vec<_> = known
            .filter(|name| !name.is_empty())
            .map(quote::name)
            .collect();
        let known = known.join(", ");
        let error = if self.contexts.is_empty() {
            SettingError::NoContexts
        } else if name.is_empty() {
            SettingError::NoCurrentContext { known }
        } else {
            let name = quote::name(name);
            SettingError::NoContext { name, known }
        };
        Err(in_file(file, error))
    }

    /// What is kept of the cluster `name`.
    pub(crate) fn cluster(&self, name: &str) -> Option<&C> {
        let mut clusters = self.clusters.iter().flatten();
        clusters
            .find(|entry| entry.name == name)
            .map(|entry| &entry.cluster)
    }

    /// What is kept of the user `name`.
    pub(crate) fn user(&self, name: &str) -> Option<&U> {
        let mut users = self.users.iter().flatten();
        users
            .find(|entry| entry.name == name)
            .map(|entry| &entry.user)
    }
}

/// The first name that occurs twice.
pub(crate) fn duplicate<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    names.find(|name| !seen.insert(*name))
}

fn in_file(file: &Path, error: SettingError) -> ConfigError {
    ConfigError::File {
        kind: FileKind::Kubeconfig,
        file: file.to_owned(),
        at: None,
        excerpt: None,
        source: Box::new(error),
    }
}

fn complete(
    name: &str,
    cluster: KubeconfigCluster,
    file: &Path,
) -> Result<ClusterConfig, SettingError> {
    let name = quoted(name);
    let trust = trust(&name, &cluster, file)?;
    let in_key = |key| in_key(key, &name);
    let server = cluster
        .server
        .filter(|server| !server.is_empty())
        .ok_or_else(|| SettingError::cluster(&name, "has no server; add its URL"))?;
    let mut url: UpstreamUrl = server.parse().map_err(in_key("server"))?;
    if let Some(name) = cluster.tls_server_name.filter(|name| !name.is_empty()) {
        url.name = url::expected_name(&name).map_err(in_key("tls-server-name"))?;
    }
    let outbound = cluster.proxy_url.filter(|url| !url.is_empty());
    let outbound = outbound.map(|url| url.parse().map_err(in_key("proxy-url")));
    Ok(ClusterConfig {
        outbound: outbound.transpose()?,
        ..url.into_cluster(name, trust, url::place_in(file))
    })
}

/// The name of a cluster, for errors and log lines.
fn quoted(name: &str) -> String {
    match quote::name(name) {
        empty if empty.is_empty() => "default".to_owned(),
        name => name,
    }
}

/// Names the key that an error is about.
fn in_key(key: &'static str, cluster: &str) -> impl FnOnce(SettingError) -> SettingError + use<> {
    let name = cluster.to_owned();
    move |source| SettingError::ClusterKey {
        key,
        name,
        source: Box::new(source),
    }
}

/// The CA of a cluster, which must have one.
fn trust(
    name: &str,
    cluster: &KubeconfigCluster,
    file: &Path,
) -> Result<TrustSource, SettingError> {
    if cluster.insecure_skip_tls_verify {
        return Err(SettingError::cluster(name, SKIPS_VERIFICATION));
    }
    let data = cluster.certificate_authority_data.as_ref();
    match (
        data.filter(|data| !data.is_empty()),
        &cluster.certificate_authority,
    ) {
        (Some(data), _) => Ok(TrustSource::Inline {
            pem: ca_data(data).map_err(|problem| SettingError::cluster(name, problem))?,
            origin: format!("cluster `{name}` in kubeconfig {}", quote::path(file)),
        }),
        (None, Some(path)) if !path.as_os_str().is_empty() => {
            check_path(path).map_err(in_key("certificate-authority", name))?;
            let folder = file.parent().unwrap_or_else(|| Path::new(""));
            Ok(TrustSource::File(folder.join(path)))
        }
        (None, _) => Err(SettingError::cluster(name, NO_CA)),
    }
}

/// The PEM text in `certificate-authority-data`, or what is wrong with the value, and the fix.
fn ca_data(data: &str) -> Result<Vec<u8>, &'static str> {
    let data = data.trim();
    if data == "DATA+OMITTED" {
        return Err(OMITTED_CA_DATA);
    }
    if data.starts_with(BEGIN) {
        return Err(PEM_CA_DATA);
    }
    // Folded YAML text keeps its line breaks, which are not base64.
    let decode = |text: &str| {
        let text: String = text.split_ascii_whitespace().collect();
        BASE64_STANDARD.decode(text)
    };
    let pem = decode(data).map_err(|_not_base64| BAD_CA_DATA)?;
    let inner = str::from_utf8(&pem).ok().and_then(|text| decode(text).ok());
    if inner.is_some_and(|inner| inner.starts_with(BEGIN.as_bytes())) {
        return Err(TWICE_ENCODED_CA_DATA);
    }
    Ok(pem)
}

const SKIPS_VERIFICATION: &str = "sets insecure-skip-tls-verify: true. Without verification any server could pose as the apiserver and read every token; remove that line and give the CA as certificate-authority";
const BAD_CA_DATA: &str = "has certificate-authority-data that is not base64; copy the whole value again (`kubectl config view --raw` prints it)";
const OMITTED_CA_DATA: &str = "has `DATA+OMITTED` in place of its certificate-authority-data; write the kubeconfig again with `kubectl config view --raw`";
const PEM_CA_DATA: &str = "has PEM text in its certificate-authority-data; base64 of that text belongs there, or write the text to a file and name that in certificate-authority";
const TWICE_ENCODED_CA_DATA: &str =
    "has certificate-authority-data that is encoded in base64 twice; decode the value once";
const NO_CA: &str =
    "has no certificate-authority; add its CA, because public CAs are not trusted for an apiserver";
const BEGIN: &str = "-----BEGIN ";
