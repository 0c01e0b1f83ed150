//! The keys of the configuration file. Only keys without a possible default are required.
//!
//! Values are parsed while the file is read, so that an error has line and column.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use schemars::{JsonSchema, generate::SchemaSettings};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_saphyr::Spanned;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{
    LogFormat, LoggedUser, OutboundProxy, RequestHost,
    access::AccessRuleEntry,
    acme::{SourceEntry, SourceForms},
    error::SettingError,
    in_cluster::InCluster,
    limits::{LimitsSection, TimeoutsSection},
    listen::{ListenAddr, ListenEntry},
    source::check_path,
    units::Count,
    url::{PublicPrefix, UpstreamUrl, expected_name},
};
use crate::{cidr::AddressList, hosts::HostPattern, quote};

/// The file that `kube-tls-proxy serve --config` reads.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(title = "Configuration of kube-tls-proxy")]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    /// Addresses to listen on, ADDRESS:PORT; or keys that also say which peers may connect.
    #[schemars(with = "Option<Vec<ListenEntry>>")]
    pub(super) listen: Option<Spanned<Vec<ListenEntry>>>,
    /// HTTP proxies in front, as ranges of addresses. `X-Forwarded-For` from them names the client.
    pub(super) trusted_proxies: Option<AddressList>,
    /// Share the addresses with a running proxy of the same user, to replace it without downtime.
    pub(super) reuse_port: Option<bool>,
    /// Worker threads; by default the CPUs this process may use.
    pub(super) workers: Option<Count<1, 1024>>,
    /// Certificates to present to clients; a client that sends no server name gets the first one.
    #[schemars(with = "Option<Vec<SourceForms>>")]
    pub(super) certificates: Option<Vec<Spanned<SourceEntry>>>,
    /// The apiservers, by public host name.
    #[schemars(with = "Option<Vec<ClusterEntry>>")]
    pub(super) clusters: Option<Vec<Spanned<ClusterEntry>>>,
    /// More apiservers, from a directory of kubeconfigs.
    pub(super) clusters_from: Option<ClustersFromEntry>,
    /// How much one process, connection or request may use.
    pub(super) limits: Option<LimitsSection>,
    /// How long the proxy waits for a peer, and how often it checks.
    pub(super) timeouts: Option<TimeoutsSection>,
    /// What the proxy logs, and how.
    pub(super) log: Option<LogSection>,
    /// Health, metrics and the status page.
    pub(super) admin: Option<AdminSection>,
    /// What the hosts of all clusters publish, except of those with a `publish` of their own.
    pub(super) publish: Option<PublishSection>,
    /// Whether a 401 or 403 of the apiserver gets a `Warning` that says what may be wrong with the credential.
    pub(super) hints: Option<bool>,
}

/// One certificate chain and its key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CertificateEntry {
    /// PEM file with the server's certificate, then each issuer.
    #[schemars(with = "String")]
    pub(super) certificate: Parsed<FilePath>,
    /// PEM file with its private key, not encrypted.
    #[schemars(with = "String")]
    pub(super) key: Parsed<FilePath>,
}

/// One apiserver and the public host names that lead to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClusterEntry {
    /// Its name in log lines.
    pub(super) name: String,
    /// Public host names that lead to it; needed when there is more than one cluster.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) hosts: Vec<Spanned<Parsed<PublicHost>>>,
    /// A path such as `/clusters/prod` below its hosts that leads to it, and is removed before the apiserver sees it.
    /// Clusters with a path may share hosts; without hosts, the names in the certificates lead to them.
    #[schemars(with = "Option<String>", regex(pattern = "^/"))]
    pub(super) path_prefix: Option<Spanned<Parsed<PublicPrefix>>>,
    /// Pass connections for these hosts on as they are: each client speaks TLS with the apiserver and verifies it
    /// itself, for example with the client certificate of an admin.conf.
    #[serde(default)]
    pub(super) passthrough: bool,
    /// Its URL, and how it is verified.
    #[schemars(with = "Option<UpstreamEntry>")]
    pub(super) upstream: Option<Spanned<UpstreamEntry>>,
    /// Or: a kubeconfig with URL, CA and name.
    #[schemars(with = "Option<String>")]
    pub(super) kubeconfig: Option<Parsed<FilePath>>,
    /// The context of that kubeconfig; by default its current one.
    pub(super) context: Option<String>,
    /// Or: true for the cluster of the pod that the proxy runs in, or keys that say how its apiservers are found.
    #[serde(default)]
    pub(super) in_cluster: InCluster,
    /// Users with client certificates, whom the proxy names to the apiserver.
    #[schemars(with = "Option<ClientCertificatesEntry>")]
    pub(super) client_certificates: Option<Spanned<ClientCertificatesEntry>>,
    /// Who may send what; the first rule that matches decides, and a request that none matches is denied. By default
    /// every request may pass.
    #[schemars(with = "Option<Vec<AccessRuleEntry>>")]
    pub(super) access: Option<Spanned<Vec<Spanned<AccessRuleEntry>>>>,
    /// What its hosts publish.
    #[schemars(with = "Option<PublishSection>")]
    pub(super) publish: Option<Spanned<PublishSection>>,
}

/// What everyone who reaches a host may read there.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PublishSection {
    /// The kubeconfig at `/.well-known/kubeconfig`; by default the path is forwarded like any other.
    pub(super) kubeconfig: Option<PublishedKubeconfigSection>,
}

/// The kubeconfig that a host publishes.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PublishedKubeconfigSection {
    /// The program that gets the token of the user; without it the kubeconfig has no credential.
    pub(super) exec: Option<ExecSection>,
    /// PEM file with the CAs against which clients verify the proxy; by default the public ones, or the last
    /// certificate of the chain if it is its own issuer.
    #[schemars(with = "Option<String>")]
    pub(super) ca: Option<Parsed<FilePath>>,
}

/// A program that clients run to get a token.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExecSection {
    /// Its name, which clients look up in their PATH, or its path.
    #[schemars(with = "String")]
    pub(super) command: Parsed<PublicText>,
    /// Its arguments.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) args: Vec<Parsed<PublicText>>,
}

/// A directory in which each kubeconfig is a cluster, named after its file. Files that are added, changed and removed
/// are taken up by a reload.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClustersFromEntry {
    /// The directory. Only server, CA, tls-server-name and proxy-url of each kubeconfig are used.
    #[schemars(with = "String")]
    pub(super) directory: Spanned<Parsed<FilePath>>,
    /// The public host name of each cluster; `{name}` stands for the name of the file without its extension. Needed,
    /// except with `pathPrefix`.
    #[schemars(with = "Option<String>")]
    pub(super) host_template: Option<Spanned<String>>,
    /// The path of each cluster, such as `/clusters/{name}`, below the host of `hostTemplate`, or below the names in
    /// the certificates.
    #[schemars(with = "Option<String>", regex(pattern = r"^/.*\{name\}"))]
    pub(super) path_prefix: Option<Spanned<String>>,
    /// The access rules of each of these clusters; by default every request may pass.
    #[schemars(with = "Option<Vec<AccessRuleEntry>>")]
    pub(super) access: Option<Spanned<Vec<Spanned<AccessRuleEntry>>>>,
}

/// Which client certificates count, and how the proxy names their owners to the apiserver: exactly one of `frontProxy`
/// and `impersonate`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClientCertificatesEntry {
    /// PEM file with the CAs that issue the certificates of clients.
    #[schemars(with = "String")]
    pub(super) ca: Parsed<FilePath>,
    /// PEM file with the revocation list of each of these CAs; without it nothing is checked for revocation.
    #[schemars(with = "Option<String>")]
    pub(super) crl: Option<Parsed<FilePath>>,
    /// The certificate of a front proxy, from the CA of `--requestheader-client-ca-file`, and its key.
    pub(super) front_proxy: Option<CertificateEntry>,
    /// Or: a token of the proxy that may impersonate users.
    pub(super) impersonate: Option<ImpersonateEntry>,
    /// Whether users and groups may have names that begin with `system:`.
    #[serde(default)]
    pub(super) allow_system: bool,
}

/// The credential with which the proxy impersonates users.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ImpersonateEntry {
    /// File with the token of a service account, read again when it changes.
    #[schemars(with = "String")]
    pub(super) token_file: Parsed<FilePath>,
}

/// Where an apiserver is and how it is verified.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct UpstreamEntry {
    /// `https://HOST[:PORT][/PREFIX]`
    #[schemars(with = "String", regex(pattern = "^https://"))]
    pub(super) url: Parsed<UpstreamUrl>,
    /// ADDRESS:PORT of each apiserver, instead of the addresses that the host of the URL resolves to.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) addresses: Vec<Parsed<EndpointAddr>>,
    /// A proxy on the way to it, such as the end of a tunnel: `http://[USER:PASSWORD@]HOST[:PORT]`, or with https or
    /// socks5. It resolves the host of `url`.
    #[schemars(with = "Option<String>", regex(pattern = "^(https?|socks5h?)://"))]
    pub(super) proxy_url: Option<Spanned<Parsed<OutboundProxy>>>,
    /// PEM file with the only trusted CAs. Needed, except with `passthrough`: there only health checks use it.
    #[schemars(with = "Option<String>")]
    pub(super) ca: Option<Parsed<FilePath>>,
    /// Name or address that its certificate must carry; by default the host of the URL.
    #[schemars(with = "Option<String>")]
    pub(super) name: Option<Spanned<Parsed<ExpectedName>>>,
    /// The host that requests ask it for: `client` for the one that the client asks for, `upstream` for that of the
    /// URL; by default `client` if the host of the URL is an IP address or begins with `kubernetes`.
    #[schemars(with = "Option<RequestHostName>")]
    pub(super) host: Option<Spanned<Parsed<RequestHost>>>,
}

/// What the proxy logs, and how.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LogSection {
    /// `text` or `json`.
    #[schemars(with = "Option<LogFormatName>")]
    pub(super) format: Option<Parsed<LogFormat>>,
    /// A filter such as `info` or `info,kube_tls_proxy=debug`.
    #[schemars(with = "Option<String>")]
    pub(super) filter: Option<Parsed<LogFilter>>,
    /// Whether each request is logged.
    pub(super) access: Option<bool>,
    /// How the log and the status page show the user whose token the apiserver has accepted: `subject`, `hash` or
    /// `off`.
    #[schemars(with = "Option<LoggedUserName>")]
    pub(super) user: Option<Parsed<LoggedUser>>,
}

/// Health, metrics and the status page, on their own port.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct AdminSection {
    /// Address to listen on, ADDRESS:PORT; plain HTTP without authentication.
    #[schemars(with = "Option<String>")]
    pub(super) listen: Option<Parsed<ListenAddr>>,
}

/// The spelling of [`LogFormat`] for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum LogFormatName {
    Text,
    Json,
}

/// The spelling of [`LoggedUser`] for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum LoggedUserName {
    Subject,
    Hash,
    Off,
}

/// The spelling of [`RequestHost`] for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum RequestHostName {
    Client,
    Upstream,
}

/// A `T`, parsed from text of the file.
#[derive(Debug, Clone)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err = SettingError>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// A path of the file. Not empty: that would be the directory of the file itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FilePath(pub(super) PathBuf);

impl FromStr for FilePath {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        if text.is_empty() {
            return Err(SettingError::EmptyPath);
        }
        check_path(Path::new(text))?;
        Ok(Self(text.into()))
    }
}

/// Text that everyone may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicText(pub(super) String);

impl FromStr for PublicText {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let problem = match quote::pasted(text) {
            _ if text.is_empty() => IS_EMPTY,
            Some(_) => IS_SECRET,
            None => return Ok(Self(text.to_owned())),
        };
        Err(SettingError::Malformed { problem })
    }
}

/// ADDRESS:PORT of one apiserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndpointAddr(pub(super) SocketAddr);

impl FromStr for EndpointAddr {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let address: Option<SocketAddr> = text.parse().ok();
        address
            .filter(|address| address.port() != 0)
            .map(Self)
            .ok_or_else(|| SettingError::invalid(text, NOT_AN_ENDPOINT))
    }
}

impl FromStr for LogFormat {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(SettingError::Malformed {
                problem: NOT_A_LOG_FORMAT,
            }),
        }
    }
}

impl FromStr for LoggedUser {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "subject" => Ok(Self::Subject),
            "hash" => Ok(Self::Hash),
            // For YAML 1.1, which Helm reads and writes, `off` is a boolean.
            "off" | "false" => Ok(Self::Off),
            _ => Err(SettingError::invalid(text, NOT_A_LOGGED_USER)),
        }
    }
}

impl FromStr for RequestHost {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "client" => Ok(Self::Client),
            "upstream" => Ok(Self::Upstream),
            _ => Err(SettingError::invalid(text, NOT_A_REQUEST_HOST)),
        }
    }
}

/// A filter that `tracing` can parse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogFilter(pub(super) String);

impl FromStr for LogFilter {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let misspelt = text.trim().is_empty()
            || text.split(',').any(is_misspelt_level)
            || quote::pasted(text).is_some();
        match EnvFilter::builder().parse(text) {
            Ok(_) if !misspelt => Ok(Self(text.to_owned())),
            Ok(_) | Err(_) => Err(SettingError::invalid(text, NOT_A_LOG_FILTER)),
        }
    }
}

/// Whether a part of a filter is a single word that is neither a level nor a module of this crate. `tracing` treats
/// such a word as a module, so `inof` would silence everything else.
fn is_misspelt_level(part: &str) -> bool {
    let part = part.trim();
    let is_word = part
        .chars()
        .all(|char| char.is_alphanumeric() || matches!(char, '_' | ':'));
    !part.is_empty()
        && is_word
        && part.parse::<LevelFilter>().is_err()
        && !part.starts_with(env!("CARGO_CRATE_NAME"))
}

/// A public host name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicHost(pub(super) HostPattern);

impl FromStr for PublicHost {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let bad = || SettingError::invalid(text, NOT_A_HOST);
        // The name would be in every message about its cluster.
        if quote::pasted(text).is_some() {
            return Err(bad());
        }
        text.parse().map(Self).map_err(|_no_pattern| bad())
    }
}

/// The name that an apiserver's certificate must carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExpectedName(pub(super) rustls_pki_types::ServerName<'static>);

impl FromStr for ExpectedName {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        expected_name(text).map(Self)
    }
}

/// The JSON Schema of the configuration file.
#[must_use]
pub fn schema() -> serde_json::Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = false;
    let schema = settings
        .into_generator()
        .into_root_schema_for::<ConfigFile>();
    let mut schema = serde_json::Value::from(schema);
    schema.sort_all_objects();
    schema
}

const IS_EMPTY: &str = "is empty; give a text, or remove it";
const IS_SECRET: &str =
    "looks like a key or a token, and everyone can read the published kubeconfig; remove it";
const NOT_AN_ENDPOINT: &str = "is not the address of an apiserver; write ADDRESS:PORT with an IP address, such as 10.0.0.1:6443";
const NOT_A_LOG_FORMAT: &str = "is not a log format; write text or json";
const NOT_A_LOGGED_USER: &str =
    "is not a choice; write subject, for the name in the token, hash, for a pseudonym, or off";
const NOT_A_REQUEST_HOST: &str = "is not a choice; write client, for the host that clients ask for, or upstream, for the host of the apiserver's URL";
const NOT_A_LOG_FILTER: &str = "is not a log filter; write a level (error, warn, info, debug, trace), or levels for modules, such as info,kube_tls_proxy=debug";
const NOT_A_HOST: &str = "is not a host name; write it without scheme, port and path, such as kube.example.com or *.example.com";
