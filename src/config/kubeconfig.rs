//! Reads contexts and clusters from a kubeconfig.
//!
//! The caller chooses what is kept of `users`. `serve` keeps nothing: no field holds the credentials, so nothing
//! of them outlives the text of the file.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::{
    ClusterConfig, ClusterOrigin, TrustSource,
    error::{ConfigError, FileKind, SettingError},
    source::check_path,
    url::{self, UpstreamUrl},
    yaml,
};
use crate::quote;

/// The cluster of `context` in `file`, by default of its current context. It has no hosts.
pub(super) fn load(file: &Path, context: Option<&str>) -> Result<ClusterConfig, ConfigError> {
    let kubeconfig = Kubeconfig::<IgnoredAny>::load(file)?;
    let NamedContext { name, context } = kubeconfig.context(file, context)?;
    let clusters = kubeconfig.clusters.unwrap_or_default();
    let cluster = clusters
        .into_iter()
        .find(|entry| entry.name == context.cluster)
        .ok_or_else(|| SettingError::NoCluster {
            context: quote::name(&name),
            name: quote::name(&context.cluster),
        });
    cluster
        .and_then(|cluster| complete(cluster, file))
        .map_err(|error| in_file(file, error))
}

/// A kubeconfig. `U` is what is kept of each user.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Kubeconfig<U> {
    current_context: Option<String>,
    // client-go writes `null` for an empty list.
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    pub(crate) users: Option<Vec<U>>,
}

/// A context and its name.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NamedContext {
    pub(crate) name: String,
    pub(crate) context: KubeconfigContext,
}

/// The names of a cluster, a user and a namespace that belong together.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KubeconfigContext {
    pub(crate) cluster: String,
    /// May be empty.
    #[serde(default)]
    pub(crate) user: String,
    pub(crate) namespace: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    // Missing in a configuration file of the proxy. If such a file is given by mistake, the error is about its
    // contexts.
    #[serde(default)]
    cluster: KubeconfigCluster,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct KubeconfigCluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

impl<U: DeserializeOwned> Kubeconfig<U> {
    /// The kubeconfig in `file`.
    pub(crate) fn load(file: &Path) -> Result<Self, ConfigError> {
        yaml::load(FileKind::Kubeconfig, file)
    }

    /// The context `name`, by default the current context. `file` is the path of this kubeconfig; only error messages
    /// use it.
    pub(crate) fn context(
        &self,
        file: &Path,
        name: Option<&str>,
    ) -> Result<NamedContext, ConfigError> {
        let contexts = self.contexts.as_deref().unwrap_or_default();
        let known = || known(contexts);
        let found = if contexts.is_empty() {
            Err(SettingError::NoContexts)
        } else {
            name.or(self.current_context.as_deref())
                .filter(|name| !name.is_empty())
                .ok_or_else(|| SettingError::NoCurrentContext { known: known() })
                .and_then(|name| {
                    let found = contexts.iter().find(|entry| entry.name == name);
                    found.ok_or_else(|| SettingError::NoContext {
                        name: quote::name(name),
                        known: known(),
                    })
                })
        };
        found.cloned().map_err(|error| in_file(file, error))
    }
}

fn in_file(file: &Path, error: SettingError) -> ConfigError {
    ConfigError::File {
        kind: FileKind::Kubeconfig,
        file: file.to_owned(),
        at: None,
        source: Box::new(error),
    }
}

fn complete(entry: NamedCluster, file: &Path) -> Result<ClusterConfig, SettingError> {
    let NamedCluster { name, cluster } = entry;
    // Errors and log lines repeat it.
    let name = quote::name(&name);
    if cluster.insecure_skip_tls_verify {
        return Err(SettingError::cluster(&name, SKIPS_VERIFICATION));
    }
    if cluster.proxy_url.is_some_and(|url| !url.is_empty()) {
        return Err(SettingError::cluster(&name, USES_PROXY));
    }
    let in_key = |key| {
        let name = name.clone();
        move |source| SettingError::ClusterKey {
            key,
            name,
            source: Box::new(source),
        }
    };
    let server = cluster
        .server
        .ok_or_else(|| SettingError::cluster(&name, "has no server; add its URL"))?;
    let mut url: UpstreamUrl = server.parse().map_err(in_key("server"))?;
    if let Some(name) = cluster.tls_server_name.filter(|name| !name.is_empty()) {
        url.name = url::expected_name(&name).map_err(in_key("tls-server-name"))?;
    }
    let data = cluster
        .certificate_authority_data
        .filter(|data| !data.is_empty());
    let trust = match (data, cluster.certificate_authority) {
        (Some(data), _) => TrustSource::Inline {
            // Folded YAML text keeps its line breaks, which are not base64.
            pem: BASE64_STANDARD
                .decode(data.split_ascii_whitespace().collect::<String>())
                .map_err(|_not_base64| SettingError::cluster(&name, BAD_CA_DATA))?,
            origin: format!("cluster `{name}` in kubeconfig {}", quote::path(file)),
        },
        (None, Some(path)) if !path.as_os_str().is_empty() => {
            check_path(&path).map_err(in_key("certificate-authority"))?;
            TrustSource::File(file.parent().unwrap_or_else(|| Path::new("")).join(path))
        }
        (None, _) => return Err(SettingError::cluster(&name, NO_CA)),
    };
    Ok(url.into_cluster(name, ClusterOrigin::Kubeconfig, trust))
}

fn known(contexts: &[NamedContext]) -> String {
    contexts
        .iter()
        .map(|context| quote::name(&context.name))
        .collect::<Vec<_>>()
        .join(", ")
}

const SKIPS_VERIFICATION: &str = "sets insecure-skip-tls-verify: true. Without verification any server could pose as the apiserver and read every token; remove that line and give the CA as certificate-authority";
const USES_PROXY: &str = "uses proxy-url, which is not supported; run this proxy where it reaches the apiserver directly";
const BAD_CA_DATA: &str =
    "has certificate-authority-data that is not base64; copy the whole value again";
const NO_CA: &str =
    "has no certificate-authority; add its CA, because public CAs are not trusted for an apiserver";
