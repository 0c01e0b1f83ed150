//! The configuration file as it is written: every key, all optional but what cannot be guessed.
//!
//! Values are parsed while the file is read, so that an error knows its line and column.

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
    LogFormat,
    error::SettingError,
    units::{Count, MaybeZeroDuration, Size, Timeout},
    url::{UpstreamUrl, expected_name},
};
use crate::{hosts::HostPattern, quote};

/// The file that `kube-tls-proxy serve --config` reads.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(title = "Configuration of kube-tls-proxy")]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    /// Addresses to listen on, ADDRESS:PORT.
    #[schemars(with = "Option<Vec<String>>")]
    pub(super) listen: Option<Spanned<Vec<Parsed<ListenAddr>>>>,
    /// Share the addresses with a running proxy of the same user, to replace it without downtime.
    pub(super) reuse_port: Option<bool>,
    /// Worker threads; by default the CPUs this process may use.
    pub(super) workers: Option<Count<1, 1024>>,
    /// Certificates to present; the first one also serves clients that send no name.
    pub(super) certificates: Option<Vec<CertificateEntry>>,
    /// The apiservers, by public host name.
    #[schemars(with = "Option<Vec<ClusterEntry>>")]
    pub(super) clusters: Option<Vec<Spanned<ClusterEntry>>>,
    /// How much of everything may be used.
    pub(super) limits: Option<LimitsEntry>,
    /// How long a peer is waited for.
    pub(super) timeouts: Option<TimeoutsEntry>,
    /// What is logged and how.
    pub(super) log: Option<LogEntry>,
    /// Health, metrics and the status page.
    pub(super) admin: Option<AdminEntry>,
}

/// One certificate chain and its key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CertificateEntry {
    /// PEM file with the server's certificate, then each issuer.
    #[schemars(with = "String")]
    pub(super) certificate: Parsed<GivenPath>,
    /// PEM file with its private key, not encrypted.
    #[schemars(with = "String")]
    pub(super) key: Parsed<GivenPath>,
}

/// One apiserver and the public host names that lead to it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClusterEntry {
    /// What log lines call it.
    pub(super) name: String,
    /// Public host names that lead to it; needed when there is more than one cluster.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) hosts: Vec<Spanned<Parsed<PublicHost>>>,
    /// Where it is and how it is verified.
    pub(super) upstream: Option<UpstreamEntry>,
    /// Or: the kubeconfig that says so.
    #[schemars(with = "Option<String>")]
    pub(super) kubeconfig: Option<Parsed<GivenPath>>,
    /// The context of that kubeconfig; by default its current one.
    pub(super) context: Option<String>,
    /// Or: the cluster of the pod that the proxy runs in.
    #[serde(default)]
    pub(super) in_cluster: bool,
}

/// Where an apiserver is and how it is verified.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct UpstreamEntry {
    /// `https://HOST[:PORT][/PREFIX]`
    #[schemars(with = "String", regex(pattern = "^https://"))]
    pub(super) url: Parsed<UpstreamUrl>,
    /// ADDRESS:PORT of each apiserver, in place of what the host of the URL resolves to.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) addresses: Vec<Parsed<EndpointAddr>>,
    /// PEM file with the only CAs that are trusted.
    #[schemars(with = "String")]
    pub(super) ca: Parsed<GivenPath>,
    /// Name or address that its certificate must carry; by default the host of the URL.
    #[schemars(with = "Option<String>")]
    pub(super) name: Option<Parsed<ExpectedName>>,
}

/// How much of everything may be used.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LimitsEntry {
    /// Client connections open at once; by default three eighths of the open files allowed.
    #[schemars(with = "Option<Count<1, 1_000_000>>")]
    pub(super) connections: Option<Spanned<Count<1, 1_000_000>>>,
    /// TLS handshakes under way at once; by default 128 for each worker.
    pub(super) handshakes: Option<Count<1, 1_000_000>>,
    /// Streams of one HTTP/2 client connection.
    pub(super) streams_per_connection: Option<Count<1, 10_000>>,
    /// Bytes of all header fields of one request.
    pub(super) header_bytes: Option<Size<8_192, 1_048_576>>,
    /// Header fields of one request.
    pub(super) header_fields: Option<Count<16, 10_000>>,
    /// Bytes of path and query of one request.
    pub(super) uri_bytes: Option<Size<1_024, 65_534>>,
    /// Bytes of a request body kept to send it again.
    pub(super) replay_bytes: Option<Size<0, 67_108_864>>,
    /// Unused apiserver connections that one worker keeps.
    pub(super) idle_upstream_connections: Option<Count<0, 10_000>>,
}

/// How long a peer is waited for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TimeoutsEntry {
    /// TLS handshake with a client.
    pub(super) handshake: Option<Timeout>,
    /// From the first byte of a request to the end of its head.
    pub(super) request_head: Option<Timeout>,
    /// Client connection without a request.
    pub(super) client_idle: Option<Timeout>,
    /// Silence before an HTTP/2 client is pinged.
    pub(super) client_ping_interval: Option<Timeout>,
    /// Wait for the answer to that ping.
    pub(super) client_ping_timeout: Option<Timeout>,
    /// TCP, TLS and HTTP set-up with the apiserver.
    pub(super) upstream_connect: Option<Timeout>,
    /// How long an unused apiserver connection is kept.
    pub(super) upstream_idle: Option<Timeout>,
    /// Silence before the apiserver is pinged.
    pub(super) upstream_ping_interval: Option<Timeout>,
    /// Wait for the answer to that ping.
    pub(super) upstream_ping_timeout: Option<Timeout>,
    /// Idle time before TCP probes a peer.
    pub(super) tcp_keepalive: Option<Timeout>,
    /// How long sent bytes may stay unacknowledged.
    pub(super) tcp_user_timeout: Option<Timeout>,
    /// How long one half of a tunnel may stay open after the other half closed.
    pub(super) half_close_timeout: Option<MaybeZeroDuration>,
    /// How often each address of an apiserver is probed; 0s does not probe.
    pub(super) probe_interval: Option<MaybeZeroDuration>,
    /// Wait for the answer to that probe.
    pub(super) probe_timeout: Option<Timeout>,
    /// How long new clients are still served after SIGTERM; 0s turns them away at once.
    pub(super) drain_delay: Option<MaybeZeroDuration>,
    /// How long running requests may take to finish after that; 0s ends them at once.
    pub(super) drain: Option<MaybeZeroDuration>,
    /// How long tunnels (exec, port-forward) may go on after `drainDelay`; never less than `drain`.
    pub(super) drain_tunnels: Option<MaybeZeroDuration>,
    /// How often the apiserver's name is resolved.
    pub(super) resolve: Option<Timeout>,
    /// How often files are read again.
    pub(super) reload: Option<Timeout>,
}

/// What is logged and how.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LogEntry {
    /// text or json.
    #[schemars(with = "Option<LogFormatName>")]
    pub(super) format: Option<Parsed<LogFormat>>,
    /// A filter such as `info` or `info,kube_tls_proxy=debug`.
    #[schemars(with = "Option<String>")]
    pub(super) filter: Option<Parsed<LogFilter>>,
    /// Whether each request is logged.
    pub(super) access: Option<bool>,
}

/// Health, metrics and the status page, on a port of their own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct AdminEntry {
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

/// Text of the file that became a `T`.
#[derive(Debug)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err = SettingError>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

/// A path; the empty one would be the directory of the file that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GivenPath(pub(super) PathBuf);

impl FromStr for GivenPath {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        if text.is_empty() {
            return Err(SettingError::EmptyPath);
        }
        check_path(Path::new(text))?;
        Ok(Self(text.into()))
    }
}

/// Refuses what no path is, such as PEM text: `--key="$(cat tls.key)"`.
pub(super) fn check_path(path: &Path) -> Result<(), SettingError> {
    quote::pasted(&path.to_string_lossy())
        .map_or(Ok(()), |found| Err(SettingError::NotAPath { found }))
}

/// ADDRESS:PORT, or :PORT for all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ListenAddr(pub(super) SocketAddr);

impl FromStr for ListenAddr {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let address = if text.starts_with(':') {
            format!("[::]{text}").parse()
        } else {
            text.parse()
        };
        address
            .map(Self)
            .map_err(|_not_an_address| SettingError::BadListen {
                text: quote::value(text),
            })
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
            .ok_or_else(|| SettingError::BadEndpoint {
                text: quote::value(text),
            })
    }
}

impl FromStr for LogFormat {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(SettingError::BadLogFormat {
                text: quote::value(text),
            }),
        }
    }
}

/// A filter that `tracing` understands.
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
            Ok(_) | Err(_) => Err(SettingError::BadLogFilter {
                text: quote::value(text),
            }),
        }
    }
}

/// Whether a part of a filter is a lone word that is neither a level nor a module of this crate. To
/// `tracing` such a word is a module, and `inof` would then silence everything else.
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

/// A name that clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicHost(pub(super) HostPattern);

impl FromStr for PublicHost {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let bad = || SettingError::BadHost {
            host: quote::value(text),
        };
        // A name that no message may repeat would be in every message about its cluster.
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
    schema.into()
}
