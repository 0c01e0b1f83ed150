//! Reads where a cluster is out of a kubeconfig.
//!
//! The credentials in it have no field to go to: `users` is not part of these structs, so nothing
//! of it outlives the text of the file.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::{
    ClusterConfig, TrustSource,
    config_file::ExpectedName,
    error::{ConfigError, Fault, FileKind},
    host::shown,
    url::UpstreamUrl,
    yaml,
};

/// The cluster of one context in `file`; without `context`, of its current one. It has no hosts.
pub(super) fn load(file: &Path, context: Option<&str>) -> Result<ClusterConfig, ConfigError> {
    let kubeconfig: Kubeconfig = yaml::load(FileKind::Kubeconfig, file)?;
    resolve(kubeconfig, file, context).map_err(|source| ConfigError::File {
        kind: FileKind::Kubeconfig,
        file: file.to_owned(),
        at: None,
        source: Box::new(source),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: Option<String>,
    // client-go writes `null` for an empty list.
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    // Not in the configuration file of this project, which may be given by mistake: that has no contexts.
    #[serde(default)]
    cluster: Cluster,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

fn resolve(
    kubeconfig: Kubeconfig,
    file: &Path,
    context: Option<&str>,
) -> Result<ClusterConfig, Fault> {
    let contexts = kubeconfig.contexts.unwrap_or_default();
    if contexts.is_empty() {
        return Err(Fault::NoContexts);
    }
    let known = || known(&contexts);
    let wanted = context
        .or(kubeconfig.current_context.as_deref())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Fault::NoCurrentContext { known: known() })?;
    let context = contexts
        .iter()
        .find(|entry| entry.name == wanted)
        .ok_or_else(|| Fault::NoContext {
            name: shown(wanted),
            known: known(),
        })?;
    let cluster = kubeconfig
        .clusters
        .unwrap_or_default()
        .into_iter()
        .find(|entry| entry.name == context.context.cluster)
        .ok_or_else(|| Fault::NoCluster {
            context: shown(wanted),
            name: shown(&context.context.cluster),
        })?;
    complete(cluster, file)
}

fn complete(entry: NamedCluster, file: &Path) -> Result<ClusterConfig, Fault> {
    let NamedCluster { name, cluster } = entry;
    let shown_name = || shown(&name);
    if cluster.insecure_skip_tls_verify {
        return Err(Fault::SkipsVerification { name: shown_name() });
    }
    if cluster.proxy_url.is_some_and(|url| !url.is_empty()) {
        return Err(Fault::ProxyUrl { name: shown_name() });
    }
    let in_key = |key| {
        let name = shown_name();
        move |source| Fault::ClusterKey {
            key,
            name,
            source: Box::new(source),
        }
    };
    let server = cluster
        .server
        .ok_or_else(|| Fault::NoServer { name: shown_name() })?;
    let url: UpstreamUrl = server.parse().map_err(in_key("server"))?;
    let expected_name = match cluster.tls_server_name.filter(|name| !name.is_empty()) {
        Some(expected) => {
            let parsed: Result<ExpectedName, _> = expected.parse();
            parsed.map_err(in_key("tls-server-name"))?.0
        }
        None => url.name,
    };
    let data = cluster
        .certificate_authority_data
        .filter(|data| !data.is_empty());
    let trust = match (data, cluster.certificate_authority) {
        (Some(data), _) => TrustSource::Inline {
            // Folded YAML text keeps line breaks, which are no base64.
            pem: BASE64_STANDARD
                .decode(data.split_ascii_whitespace().collect::<String>())
                .map_err(|_not_base64| Fault::BadAuthorityData { name: shown_name() })?,
            origin: format!(
                "cluster `{}` in kubeconfig {}",
                shown_name(),
                file.display()
            ),
        },
        (None, Some(path)) if !path.as_os_str().is_empty() => {
            TrustSource::File(file.parent().unwrap_or_else(|| Path::new("")).join(path))
        }
        (None, _) => return Err(Fault::NoAuthority { name: shown_name() }),
    };
    Ok(ClusterConfig {
        hosts: Vec::new(),
        upstream_host: url.host,
        upstream_port: url.port,
        addresses: Vec::new(),
        path_prefix: url.prefix,
        expected_name,
        trust,
        // It goes into log lines.
        name: shown(&name),
    })
}

fn known(contexts: &[NamedContext]) -> String {
    contexts
        .iter()
        .map(|context| shown(&context.name))
        .collect::<Vec<_>>()
        .join(", ")
}
