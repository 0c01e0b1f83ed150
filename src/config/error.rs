//! Why a command line, file or kubeconfig is not a configuration, in words that carry the mend.
//!
//! The outer error says where, the inner one what is wrong and, at its end, what to do.

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use super::file::ReadError;
use crate::{quote, text::escape};

/// Where the configuration is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value on the command line or in its environment variable.
    #[error("{flag}")]
    Flag {
        /// The flag, with its dashes.
        flag: &'static str,
        /// What is wrong.
        #[source]
        source: SettingError,
    },
    /// What is wrong with a flag that nobody typed.
    #[error("environment variable {names}")]
    Variable {
        /// The variables that say the flags at fault.
        names: String,
        /// What is wrong.
        #[source]
        source: Box<Self>,
    },
    /// A file that cannot be read.
    #[error("{kind} {}", quote::path(file))]
    Read {
        /// Which sort of file.
        kind: FileKind,
        /// Its path.
        file: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A place in a file.
    #[error("{0}", at.as_ref().map_or_else(|| format!("{kind} {}", quote::path(file)), |at| format!("{kind} {}, {at}", quote::path(file))))]
    File {
        /// Which sort of file.
        kind: FileKind,
        /// Its path.
        file: PathBuf,
        /// Where in it, if known.
        at: Option<Position>,
        /// What is wrong.
        #[source]
        source: Box<SettingError>,
    },
    /// The pod's service account or environment.
    #[error("the pod's service account")]
    Pod(#[source] SettingError),
    /// Several things at once, or nothing at all.
    #[error(transparent)]
    Whole(SettingError),
}

impl ConfigError {
    /// The same, with the variables of those flags at fault that are among `from_environment`: who typed
    /// none of them would look for them in vain.
    pub(super) fn naming_variables(self, from_environment: &[String]) -> Self {
        let names: Vec<_> = self
            .flags()
            .into_iter()
            .filter(|flag| from_environment.iter().any(|from| from == flag))
            .map(variable)
            .collect();
        if names.is_empty() {
            self
        } else {
            let names = names.join(" and ");
            let source = Box::new(self);
            Self::Variable { names, source }
        }
    }

    /// The flags that are at fault.
    fn flags(&self) -> Vec<&'static str> {
        match self {
            Self::Flag { flag, .. } => vec![flag],
            Self::Whole(SettingError::Exclusive { first, second }) => vec![first, second],
            Self::Whole(
                SettingError::Needs { flag, .. } | SettingError::FlagAgainstFile { flag, .. },
            ) => {
                vec![flag]
            }
            Self::Whole(SettingError::UnevenPairs { .. }) => vec!["--cert", "--key"],
            Self::Whole(SettingError::SamePort { .. }) => vec!["--listen", "--admin-listen"],
            Self::Whole(_)
            | Self::Variable { .. }
            | Self::Read { .. }
            | Self::File { .. }
            | Self::Pod(_) => Vec::new(),
        }
    }
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("KUBE_TLS_PROXY_{}", name.to_uppercase())
}

/// Which sort of file an error speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `--config`.
    Config,
    /// A kubeconfig.
    Kubeconfig,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config file",
            Self::Kubeconfig => "kubeconfig",
        })
    }
}

/// A place in a text file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// What is wrong, and the mend.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum SettingError {
    #[error(
        "`{text}` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443"
    )]
    BadListen { text: String },
    #[error(
        "`{text}` is not the address of an apiserver; write ADDRESS:PORT with an IP address, such as 10.0.0.1:6443"
    )]
    BadEndpoint { text: String },
    #[error(
        "`{text}` is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m"
    )]
    BadDuration { text: String },
    #[error("`{text}` is longer than a year; write a shorter duration")]
    DurationTooLong { text: String },
    #[error("0 would give up before anything could happen; write a longer duration, such as 5s")]
    ZeroDuration,
    #[error("`{text}` is not a size; write a number of bytes with a unit, such as 64KiB or 1MiB")]
    BadSize { text: String },
    #[error("`{text}` is not a whole number; write one without sign, unit or quotes")]
    BadCount { text: String },
    #[error("{found} is out of range; choose from {min} to {max}")]
    OutOfRange {
        found: String,
        min: String,
        max: String,
    },
    #[error("`{text}` is not a log format; write text or json")]
    BadLogFormat { text: String },
    #[error(
        "`{text}` is not a log filter; write a level, or levels for modules, such as info or info,kube_tls_proxy=debug"
    )]
    BadLogFilter { text: String },
    #[error(
        "`{host}` is not a host name; write it without scheme, port and path, such as kube.example.com or *.example.com"
    )]
    BadHost { host: String },
    #[error(
        "`{name}` is not a name or address that a certificate can carry; write one such as kubernetes.default.svc"
    )]
    BadName { name: String },
    #[error(
        "`{url}` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT"
    )]
    UrlScheme { url: String },
    #[error(
        "the URL carries a user name or password; remove everything before the `@`, since each client sends its own credentials"
    )]
    UrlUser,
    #[error("`{url}` has a query or fragment; remove everything from the `?` or `#` on")]
    UrlQuery { url: String },
    #[error("`{url}` has no usable host; write https://HOST:PORT, an IPv6 address in brackets")]
    UrlHost { url: String },
    #[error("`{url}` has no usable port; write a number from 1 to 65535 after the colon")]
    UrlPort { url: String },
    #[error(
        "`{url}` has a path that cannot stand before others; write /PREFIX of plain segments, without `..`, `//` or spaces"
    )]
    UrlPath { url: String },

    #[error("unknown key `{key}`{}", nearest.as_ref().map_or_else(|| format!("; keys that may stand here: {known}"), |nearest| format!("; did you mean `{nearest}`?")))]
    UnknownKey {
        key: String,
        nearest: Option<String>,
        known: String,
    },
    #[error("`{key}` is missing; add it, indented as the keys beside it")]
    MissingKey { key: &'static str },
    #[error("`{key}` is given twice; remove one")]
    TwiceTheKey { key: String },
    #[error("is empty; check that it is the file that was meant")]
    EmptyFile,
    #[error("holds PEM and not YAML; check that it is the file that was meant")]
    PemFile,
    #[error(
        "`{key}` belongs to a Kubernetes object, and this is no configuration file; a kubeconfig goes with --kubeconfig, and docs/from-contour.md has what takes the place of an HTTPProxy"
    )]
    KubernetesObject { key: String },
    #[error("the path is empty; name a file, or remove the key")]
    EmptyPath,
    #[error("a path belongs here, not {found}; write it to a file and name that")]
    NotAPath { found: &'static str },
    #[error("{0}; mend the YAML there")]
    Yaml(YamlError),
    #[error("{0}")]
    Value(YamlError),
    #[error("a list belongs here; write each item on a line of its own, after a dash")]
    NotAList,
    #[error("keys belong here; write each as `key: value` on a line of its own")]
    NotKeys,
    #[error("true or false belongs here; write one of them")]
    NotABool,

    #[error(
        "cluster `{name}` must say once where its apiserver is; give exactly one of `upstream`, `kubeconfig` and `inCluster: true`"
    )]
    ClusterSource { name: String },
    #[error(
        "cluster `{name}` has a `context` without a `kubeconfig`; add the one or remove the other"
    )]
    ClusterContext { name: String },
    #[error(
        "there is more than one cluster and `{name}` has no `hosts`; add the public host names that lead to it"
    )]
    NoHosts { name: String },
    #[error("host `{host}` is listed for cluster `{first}` already; remove one of the two")]
    DuplicateHost { host: String, first: String },
    #[error("there is another cluster `{name}` already; give each a name of its own")]
    DuplicateCluster { name: String },
    #[error("a cluster has an empty `name`; give it a short one for the logs")]
    EmptyName,
    #[error(
        "the `name` of a cluster may be a secret, so that it must not be logged; give it a short one for the logs"
    )]
    SecretName,
    #[error("`listen` is an empty list; name an address or remove the key")]
    EmptyListen,
    #[error(
        "{first} and {second} cannot both be listened on; give each of --listen and --admin-listen (`listen` and `admin` in the file) a port of its own"
    )]
    SamePort {
        first: SocketAddr,
        second: SocketAddr,
    },
    #[error(
        "{connections} connections need {needed} open files and this process may open {open_files}; lower the number, or raise the limit (`ulimit -n`, LimitNOFILE= in a systemd unit)"
    )]
    TooManyConnections {
        connections: usize,
        needed: usize,
        open_files: usize,
    },

    #[error(
        "--cert and --key come in pairs, and there are {certificates} and {keys} of them; give one --key for each --cert, in the same order"
    )]
    UnevenPairs { certificates: usize, keys: usize },
    #[error(
        "there is no certificate to present; give --cert FILE and --key FILE, or `certificates` in a --config file"
    )]
    NoCertificate,
    #[error(
        "there is no apiserver to forward to; give --upstream URL with --upstream-ca FILE, or --kubeconfig FILE (or `clusters` in a --config file), or run in a pod with its service account mounted"
    )]
    NoUpstream,
    #[error(
        "{flag} and `{key}` in {} both say which apiserver serves whom; remove one of them",
        quote::path(file)
    )]
    FlagAgainstFile {
        flag: &'static str,
        key: &'static str,
        file: PathBuf,
    },
    #[error("{first} and {second} exclude each other; keep the one you mean")]
    Exclusive {
        first: &'static str,
        second: &'static str,
    },
    #[error("{flag} goes with {needed}, which is missing; add it, or remove {flag}")]
    Needs {
        flag: &'static str,
        needed: &'static str,
    },

    #[error("has no current-context; name the context with --context, one of: {known}")]
    NoCurrentContext { known: String },
    #[error("has no contexts; check that it is the file that was meant")]
    NoContexts,
    #[error("there is no context `{name}`; choose one of: {known}")]
    NoContext { name: String, known: String },
    #[error(
        "context `{context}` names cluster `{name}`, which is not in it; choose another context or mend the file"
    )]
    NoCluster { context: String, name: String },
    #[error(
        "cluster `{name}` sets insecure-skip-tls-verify: true, and an apiserver that is not verified could be anyone reading every token; remove that line and give its CA as certificate-authority"
    )]
    SkipsVerification { name: String },
    #[error(
        "cluster `{name}` is reached through proxy-url, which is not supported; run this proxy where it reaches the apiserver directly"
    )]
    ProxyUrl { name: String },
    #[error(
        "cluster `{name}` has no certificate-authority; add its CA, since the public CAs are not trusted for an apiserver"
    )]
    NoAuthority { name: String },
    #[error("certificate-authority-data of cluster `{name}` is not base64; copy it again, whole")]
    BadAuthorityData { name: String },
    #[error("cluster `{name}` has no server; add its URL")]
    NoServer { name: String },
    #[error("{key} of cluster `{name}`")]
    ClusterKey {
        key: &'static str,
        name: String,
        #[source]
        source: Box<Self>,
    },

    #[error("{variable} is not set, but {other} is; set both or neither")]
    HalfPod {
        variable: &'static str,
        other: &'static str,
    },
    #[error("{variable} `{value}` is not usable; it must be {wanted}")]
    BadPodVariable {
        variable: &'static str,
        value: String,
        wanted: &'static str,
    },
    #[error(
        "this process is not in a pod, for KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; run it in one, or say where the apiserver is"
    )]
    NotInPod,
    #[error(
        "there is no CA at {}; mount the ConfigMap kube-root-ca.crt there, as config/kubernetes does, or say where the apiserver and its CA are",
        quote::path(file)
    )]
    NoPodCa { file: PathBuf },
    #[error("CA {}", quote::path(file))]
    PodCa {
        file: PathBuf,
        #[source]
        source: ReadError,
    },
}

/// What the YAML parser said, without place and excerpt.
#[derive(Debug)]
pub struct YamlError(Box<serde_saphyr::Error>);

impl YamlError {
    /// Keeps `error`, which must have been made without an excerpt: that could hold a secret.
    pub(super) fn new(error: serde_saphyr::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The parser's text may repeat bytes of the file.
        let message = UserMessageFormatter.format_message(&self.0);
        if quote::pasted(&message).is_some() {
            return f.write_str("a value of the wrong kind, hidden because it may be a secret");
        }
        escape(&message, MAX_PARSER_CHARS).fmt(f)
    }
}

const MAX_PARSER_CHARS: usize = 400;
