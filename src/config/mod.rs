//! Reads flags, file, kubeconfig and pod into one complete, typed [`Config`].
//!
//! It returns only complete, checked values: no other module sees a missing setting, a relative path or an unchecked
//! value.

mod access;
mod acme;
mod args;
mod capacity;
mod clusters;
mod config_file;
mod directory;
mod environment;
mod error;
mod excerpt;
mod file;
mod in_cluster;
mod kubeconfig;
mod limits;
mod listen;
mod load;
mod outbound;
mod source;
mod units;
mod url;
mod yaml;

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
};

use rustls_pki_types::ServerName;

pub use crate::token_bucket::TokenBucketSize;
use crate::{cidr::AddressList, hosts::url_host, quote};

pub(crate) use access::CONNECTIONS;
pub use access::{
    AccessRule, NamespacePattern, PathPattern, ResourcePattern, RuleEffect, VerbPattern,
};
pub use acme::{AcmeConfig, CertificateSource, ExternalAccount};
pub use args::ServeArgs;
pub use capacity::{Capacity, ConnectionsBound};
pub use config_file::schema;
pub(crate) use directory::Listing;
pub use directory::{ClusterDirectory, PublicSide, UnusableCluster};
pub use environment::{Environment, has_no_colours};
pub use error::{ConfigError, FileKind, Position, SettingError, YamlError};
pub use excerpt::Excerpt;
pub use file::ReadError;
pub(crate) use file::read as read_file;
pub(crate) use kubeconfig::{Kubeconfig, NamedContext, duplicate, load_trust};
pub use limits::{Limits, LiveSettings, Settings, Timeouts};
pub use listen::{Admission, ListenConfig, PeerPolicy};
pub(crate) use listen::{overlap, peers_of};
pub use load::load;
pub use outbound::{OutboundProtocol, OutboundProxy};
pub(crate) use source::check_path_flag;
pub(crate) use units::duration;
pub(crate) use url::{ConnectTo, UpstreamUrl};
pub(crate) use yaml::{load as load_yaml, manifest_documents, manifest_text, position};

/// The checked configuration of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The files that this configuration comes from: the configuration file, kubeconfigs, and their directory.
    pub sources: Vec<PathBuf>,
    /// Addresses to listen on, and which peers may connect to each of them.
    pub listen: Vec<ListenConfig>,
    /// HTTP proxies whose `X-Forwarded-For` names the client.
    pub trusted_proxies: AddressList,
    /// Whether the addresses may be shared with another proxy that is running.
    pub reuse_port: bool,
    /// Worker threads, each with its own runtime and listening socket.
    pub workers: NonZeroUsize,
    /// Certificates to present; the first is the default one.
    pub identities: Vec<CertificateSource>,
    /// The apiservers, by public host name; empty only if the directory is.
    pub clusters: Vec<ClusterConfig>,
    /// The directory that some of them come from; `None` if there is none.
    pub directory: Option<ClusterDirectory>,
    /// How much may be used.
    pub limits: Limits,
    /// What the machine allows.
    pub capacity: Capacity,
    /// Timeouts and intervals.
    pub timeouts: Timeouts,
    /// What the proxy logs, and how.
    pub log: LogConfig,
    /// What works but needs attention, as sentences that end with the fix.
    pub warnings: Vec<String>,
    /// Address of health, metrics and the status page; `None` if they are off.
    pub admin: Option<SocketAddr>,
    /// Whether a response that refuses a credential says why that may be.
    pub hints: bool,
}

impl Config {
    /// The settings that connections and workers use.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            limits: self.limits.clone(),
            timeouts: self.timeouts.clone(),
            hints: self.hints,
        }
    }

    /// The only cluster whose requests the proxy sees, to which every name in the certificates leads. Beside a
    /// directory there is none: requests for a cluster whose file is gone would go to the one that is left.
    #[must_use]
    pub fn sole_cluster(&self) -> Option<&ClusterConfig> {
        let mut terminated = self.clusters.iter().filter(|cluster| !cluster.passthrough);
        let sole = terminated.next().filter(|_| self.directory.is_none());
        let sole = sole.filter(|sole| sole.public_prefix.is_none());
        sole.filter(|_| terminated.next().is_none())
    }
}

/// The files of one certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, unencrypted: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// One apiserver, perhaps with several endpoints, and its public host names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Its name in log lines.
    pub name: String,
    /// The kubeconfig that it comes from, if that is one of the directory.
    pub file: Option<PathBuf>,
    /// Its public host names: lower case, without port, perhaps beginning with `*.`. The names in the
    /// certificates are added if it is the only cluster.
    pub hosts: Vec<String>,
    /// The path below these hosts that leads to it, such as `/clusters/prod`, removed before the apiserver sees it.
    /// `None`: each of its hosts leads to it alone. With it and without hosts, the names in the certificates lead to
    /// it.
    pub public_prefix: Option<String>,
    /// Host name or IP address of the apiserver, without brackets.
    pub upstream_host: String,
    /// TCP port of the apiserver.
    pub upstream_port: u16,
    /// The place that names host and port, for messages: `the URL of --upstream`.
    pub url_place: String,
    /// The proxy through which it is reached, which resolves the host; usually `None`.
    pub outbound: Option<OutboundProxy>,
    /// Its addresses, instead of those that the host resolves to; usually empty.
    pub addresses: Vec<SocketAddr>,
    /// The file of the token with which the addresses of all apiservers are read from the cluster, and nothing else.
    /// `None`: they are not read, and no token is.
    pub discovery: Option<PathBuf>,
    /// Put before every path, without a final slash; usually empty.
    pub path_prefix: String,
    /// The name or address that the apiserver's certificate must carry.
    pub expected_name: ServerName<'static>,
    /// The host that requests ask the apiserver for.
    pub request_host: RequestHost,
    /// The only CAs that the chain of the apiserver may end at.
    pub trust: TrustSource,
    /// Who may send what to it. Empty: every request may pass.
    pub access: Vec<AccessRule>,
    /// Whether connections for its hosts are passed on as they are, so that each client speaks TLS with the apiserver.
    pub passthrough: bool,
    /// The kubeconfig that its hosts serve to everyone; `None` if they serve none.
    pub publish: Option<PublishConfig>,
    /// How client certificates are used; `None` if none is asked for.
    pub client_certificates: Option<ClientCertificatesConfig>,
}

/// The kubeconfig that everyone may read at `/.well-known/kubeconfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishConfig {
    /// The program that gets the token of the user, and its arguments. `None`: the user adds a credential.
    pub exec: Option<(String, Vec<String>)>,
    /// PEM, the CA against which clients verify the proxy. `None`: the public ones, or the last certificate of the
    /// chain if it is its own issuer.
    pub ca: Option<PathBuf>,
}

/// Which client certificates count, and how the apiserver is told who their owner is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificatesConfig {
    /// PEM, the CAs that issue them.
    pub ca: PathBuf,
    /// PEM, the certificates that these CAs have revoked.
    pub crl: Option<PathBuf>,
    /// The files with which the proxy names users.
    pub naming: NamingConfig,
    /// Whether users and groups may have names that begin with `system:`.
    pub allow_system: bool,
}

/// How an apiserver is told who the owner of a client certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamingConfig {
    /// On connections with this certificate of a front proxy.
    FrontProxy(IdentityFiles),
    /// By impersonation, with the token in this file.
    Impersonate(PathBuf),
}

/// The host that requests ask an apiserver for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestHost {
    /// The one that the client asks the proxy for.
    Client,
    /// Host and port of the apiserver's URL, as for a client without a proxy.
    Upstream,
}

impl RequestHost {
    /// The default for an apiserver at `host`. A server that is found by name may serve several names, as Rancher or an
    /// ingress does, and knows only its own. Every kube-apiserver has `kubernetes` and its longer forms.
    fn default_for(host: &str) -> Self {
        let is_generic = host == "kubernetes" || host.starts_with("kubernetes.");
        if is_generic || host.parse::<IpAddr>().is_ok() {
            Self::Client
        } else {
            Self::Upstream
        }
    }
}

impl ClusterConfig {
    /// The URL of the apiserver, for messages.
    #[must_use]
    pub fn url(&self) -> String {
        let (host, port) = (url_host(&self.upstream_host), self.upstream_port);
        let prefix = quote::path(self.path_prefix.as_ref());
        format!("https://{host}:{port}{prefix}")
    }

    /// Its hosts, each with the prefix if there is one.
    #[must_use]
    pub fn public_names(&self) -> Vec<String> {
        let prefix = self.public_prefix.as_deref().unwrap_or_default();
        if self.hosts.is_empty() && !prefix.is_empty() {
            return vec![prefix.to_owned()];
        }
        let hosts = self.hosts.iter();
        hosts.map(|host| format!("{host}{prefix}")).collect()
    }

    /// Host and port of the URL, as a `Host` header has them.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.upstream_host, self.upstream_port)
    }

    /// The host that a request of the proxy itself asks for: the same as that of a client. `certificate_names` lead to
    /// this cluster as well as its hosts.
    pub(crate) fn own_request_host<'a>(
        &'a self,
        certificate_names: impl IntoIterator<Item = &'a String>,
    ) -> String {
        let mut public = self.hosts.iter().chain(certificate_names);
        let public = public.find(|name| !name.contains(['*', ':']));
        match (self.request_host, public) {
            (RequestHost::Client, Some(name)) => name.clone(),
            (RequestHost::Client, None) | (RequestHost::Upstream, _) => self.authority(),
        }
    }
}

/// Host and port as a URL has them.
pub(crate) fn authority(host: &str, port: u16) -> String {
    let host = url_host(host);
    match port {
        443 => host.into_owned(),
        port => format!("{host}:{port}"),
    }
}

/// Where the CA of the cluster comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSource {
    /// A PEM file; read again when it changes.
    File(PathBuf),
    /// PEM inside another file, such as `certificate-authority-data` of a kubeconfig.
    Inline {
        /// The PEM text.
        pem: Vec<u8>,
        /// Its place, for messages: ``cluster `prod` in kubeconfig /etc/kubeconfig``.
        origin: String,
    },
    /// A passthrough cluster without a CA: each client verifies the apiserver, and the proxy trusts no server.
    Clients,
}

/// The kind of a credential, as access rules name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// No credential that kube-apiserver reads.
    None,
    /// A client certificate.
    Certificate,
    /// A JWT of a service account.
    ServiceAccount,
    /// Any other JWT.
    Jwt,
    /// A bearer token that is no JWT.
    Opaque,
    /// User name and password.
    Basic,
}

impl CredentialKind {
    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Certificate => "certificate",
            Self::ServiceAccount => "serviceAccount",
            Self::Jwt => "jwt",
            Self::Opaque => "opaque",
            Self::Basic => "basic",
        }
    }
}

/// What the proxy logs, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The format of log lines.
    pub format: LogFormat,
    /// A `tracing` filter such as `info` or `info,kube_tls_proxy=debug`.
    pub filter: String,
    /// Whether each request is logged.
    pub access: bool,
    /// How the log and the status page show the user of a request.
    pub user: LoggedUser,
}

/// How the log and the status page show the user of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoggedUser {
    /// The subject of the token.
    Subject,
    /// A hash of it.
    Hash,
    /// Not at all. No token is read for it.
    #[default]
    Off,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of logfmt per event.
    Text,
    /// One JSON object per line.
    Json,
}

#[cfg(test)]
mod tests;
