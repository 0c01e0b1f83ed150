//! A file, flags or a kubeconfig become one complete, typed [`Config`].
//!
//! Past this module nothing is optional, relative or unchecked.

mod args;
mod clusters;
mod config_file;
mod environment;
mod error;
mod file;
mod kubeconfig;
mod limits;
mod load;
mod units;
mod url;
mod yaml;

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf};

use rustls_pki_types::ServerName;

use crate::hosts::url_host;

pub use args::ServeArgs;
pub use config_file::schema;
pub use environment::{Environment, is_colourless};
pub use error::{ConfigError, FileKind, Position, SettingError, YamlError};
pub use file::ReadError;
pub(crate) use file::read as read_file;
pub(crate) use kubeconfig::{Kubeconfig, NamedContext};
pub use limits::{Limits, Timeouts};
pub use load::load;
pub(crate) use load::path_flag;
pub(crate) use url::UpstreamUrl;
pub(crate) use yaml::load as load_yaml;

/// Everything the proxy needs to know, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The files that this was read from: the configuration file and kubeconfigs.
    pub sources: Vec<PathBuf>,
    /// Addresses to listen on; port 0 asks the kernel for one.
    pub listen: Vec<SocketAddr>,
    /// Whether the addresses may be shared with another proxy that is running.
    pub reuse_port: bool,
    /// Worker threads, each with a runtime and a listening socket of its own.
    pub workers: NonZeroUsize,
    /// Certificates to present; the first is the default one.
    pub identities: Vec<IdentityFiles>,
    /// The apiservers, by public host name; never empty.
    pub clusters: Vec<ClusterConfig>,
    /// Bounds.
    pub limits: Limits,
    /// Deadlines and intervals.
    pub timeouts: Timeouts,
    /// What is logged and how.
    pub log: LogConfig,
    /// Where health, metrics and the status page are; `None`: nowhere.
    pub admin: Option<SocketAddr>,
}

/// Where one certificate chain and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, unencrypted: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// One apiserver (or several endpoints behind one name) and who is sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// What log lines call it.
    pub name: String,
    /// Public host names served for it, besides the names in the certificates when it is the only
    /// cluster: lower case, without port; a name may begin with `*.`.
    pub hosts: Vec<String>,
    /// Host name or IP address of the apiserver, without brackets.
    pub upstream_host: String,
    /// TCP port of the apiserver.
    pub upstream_port: u16,
    /// Where it is in place of what the host resolves to; mostly empty.
    pub addresses: Vec<SocketAddr>,
    /// Put before every path, without a slash at its end; mostly empty.
    pub path_prefix: String,
    /// The name or address that the apiserver's certificate must carry.
    pub expected_name: ServerName<'static>,
    /// The only certificates that the apiserver's chain may end at.
    pub trust: TrustSource,
}

impl ClusterConfig {
    /// The URL of the apiserver.
    #[must_use]
    pub fn url(&self) -> String {
        let (host, port) = (url_host(&self.upstream_host), self.upstream_port);
        format!("https://{host}:{port}{}", self.path_prefix)
    }
}

/// Where the cluster's CA comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSource {
    /// A PEM file, read again when it changes.
    File(PathBuf),
    /// PEM that stood in another file, such as `certificate-authority-data` of a kubeconfig.
    Inline {
        /// The PEM text.
        pem: Vec<u8>,
        /// Where it stood, for messages: `cluster "prod" of /etc/kubeconfig`.
        origin: String,
    },
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// One JSON object per line, or text for a terminal.
    pub format: LogFormat,
    /// A `tracing` filter such as `info` or `info,kube_tls_proxy=debug`.
    pub filter: String,
    /// Whether each request is logged.
    pub access: bool,
}

/// The shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[cfg(test)]
mod tests;
