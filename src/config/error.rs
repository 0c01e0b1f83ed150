//! The errors of command line, configuration file and kubeconfig.
//!
//! The outer error says where, the inner one says what is wrong and, after a semicolon, how to fix it.

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use super::{Excerpt, file::ReadError};
use crate::{cidr::CidrError, quote, text::escape};

/// A configuration error and its place.
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
    /// An error of flags that come from environment variables.
    #[error("environment variable {names}")]
    Variable {
        /// The variables of these flags.
        names: String,
        /// What is wrong.
        #[source]
        source: Box<Self>,
    },
    /// A file that cannot be read.
    #[error("{kind} {}", quote::path(file))]
    Read {
        /// Its kind.
        kind: FileKind,
        /// Its path.
        file: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// An error at a place in a file.
    #[error("{0}", at.as_ref().map_or_else(|| format!("{kind} {}", quote::path(file)), |at| format!("{kind} {}, {at}", quote::path(file))))]
    File {
        /// Its kind.
        kind: FileKind,
        /// Its path.
        file: PathBuf,
        /// Where in it, if known.
        at: Option<Position>,
        /// The line there, if it may be shown.
        excerpt: Option<Excerpt>,
        /// What is wrong.
        #[source]
        source: Box<SettingError>,
    },
    /// The pod's environment variables, or the CA of its service account.
    #[error("{}", .0.part_of_pod())]
    Pod(#[source] SettingError),
    /// An error that has no single place, such as a missing flag.
    #[error(transparent)]
    Whole(SettingError),
}

impl ConfigError {
    /// This error, naming the variables of its flags that are in `from_environment`. The user typed none of
    /// these flags, and would not find them on the command line.
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

    /// This error with the line that it is about. `text` is that of the configuration file or of the manifest.
    pub(crate) fn with_excerpt(mut self, text: &str) -> Self {
        if let Self::File {
            kind: FileKind::Config | FileKind::Manifest,
            at: Some(at),
            excerpt,
            ..
        } = &mut self
        {
            *excerpt = Excerpt::new(text, *at);
        }
        self
    }

    /// The line that this error is about, for people.
    #[must_use]
    pub fn excerpt(&self) -> Option<&Excerpt> {
        match self {
            Self::File { excerpt, .. } => excerpt.as_ref(),
            Self::Flag { .. }
            | Self::Variable { .. }
            | Self::Read { .. }
            | Self::Pod(_)
            | Self::Whole(_) => None,
        }
    }

    /// The flags that this error is about.
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
            Self::Whole(SettingError::ListsDropped { .. }) => vec!["--listen"],
            Self::Whole(SettingError::SamePort { .. }) => {
                vec!["--listen", "--admin-listen", "--acme-http01-listen"]
            }
            Self::Whole(_)
            | Self::Variable { .. }
            | Self::Read { .. }
            | Self::File { .. }
            | Self::Pod(_) => Vec::new(),
        }
    }
}

impl SettingError {
    /// The part of the pod that the setting comes from.
    fn part_of_pod(&self) -> &'static str {
        if matches!(self, Self::NoPodCa { .. } | Self::PodCa { .. }) {
            "the pod's service account"
        } else {
            "the pod's environment"
        }
    }
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    let name = flag.trim_start_matches('-').replace('-', "_");
    format!("KUBE_TLS_PROXY_{}", name.to_uppercase())
}

/// The kind of file that an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `--config`.
    Config,
    /// A kubeconfig.
    Kubeconfig,
    /// Objects of Kubernetes, for `translate`.
    Manifest,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config file",
            Self::Kubeconfig => "kubeconfig",
            Self::Manifest => "manifest",
        })
    }
}

/// A place in a text file; both numbers begin at 1.
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

/// What is wrong with a setting, and how to fix it.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum SettingError {
    #[error("the file is a template, not YAML; render it first, for example with `helm template`")]
    Template,
    #[error("{field}: {problem}")]
    Manifest { field: String, problem: String },
    #[error("`{text}` {problem}")]
    Invalid { text: String, problem: &'static str },
    #[error("the value {problem}")]
    Malformed { problem: &'static str },
    #[error("cluster `{name}` {problem}")]
    Cluster { name: String, problem: &'static str },
    #[error("the duration must be longer than 0; write one such as 5s")]
    ZeroDuration,
    #[error("{found} is out of range; write a value from {min} to {max}")]
    OutOfRange {
        found: String,
        min: String,
        max: String,
    },
    #[error(
        "the URL contains a user name or password; remove `USER:PASSWORD@`, because each client sends its own credentials"
    )]
    UrlUser,
    #[error("unknown key `{key}`{}", nearest.as_ref().map_or_else(|| format!("; possible keys: {known}"), |nearest| format!("; did you mean `{nearest}`?")))]
    UnknownKey {
        key: String,
        nearest: Option<String>,
        known: String,
    },
    #[error("`{key}` is missing; add it, with the same indentation as the other keys")]
    MissingKey { key: &'static str },
    #[error("`{key}` is given twice; remove one")]
    DuplicateKey { key: String },
    #[error("the file is empty; check the path")]
    EmptyFile,
    #[error("the file contains PEM instead of YAML; check the path")]
    PemFile,
    #[error("the file is neither UTF-8 nor UTF-16 text; save it as UTF-8")]
    NotText,
    #[error(
        "a second YAML document begins here, but only the first one is used; remove one of them"
    )]
    SeveralDocuments,
    #[error(
        "`{key}` is a key of Kubernetes objects, so this is not a configuration file of the proxy; give a kubeconfig with --kubeconfig, or translate an HTTPProxy, an Ingress or a route with `kube-tls-proxy translate`"
    )]
    KubernetesObject { key: String },
    #[error("the path is empty; name a file, or remove the key")]
    EmptyPath,
    #[error("a path belongs here, not {found}; write it to a file and give the path of that file")]
    NotAPath { found: &'static str },
    #[error("{0}; fix the YAML there")]
    Yaml(YamlError),
    #[error("{0}")]
    Value(YamlError),
    #[error("this must be a list; write each item on its own line, after a dash")]
    NotAList,
    #[error("expected keys with values; write each as `key: value` on its own line")]
    NotKeys,
    #[error("this must be a boolean; write true or false")]
    NotABool,
    #[error("host `{host}` is already listed for cluster `{first}`; remove one of the two")]
    DuplicateHost { host: String, first: String },
    #[error("directory {}", quote::path(path))]
    ClusterDirectory {
        path: PathBuf,
        #[source]
        source: ReadError,
    },
    #[error(
        "{} is not a directory; give the directory in which the kubeconfigs are",
        quote::path(path)
    )]
    NotADirectory { path: PathBuf },
    #[error(
        "directory {} has more than {max} kubeconfigs; check the path, or spread the clusters over several proxies",
        quote::path(path)
    )]
    ManyClusterFiles { path: PathBuf, max: usize },
    #[error(
        "the file name is not a valid cluster name; use letters, digits and `-`, as in prod-eu.yaml"
    )]
    ClusterFileName,
    #[error(
        "there is already a cluster `{cluster}` ({place}); rename this file, or remove one of the two"
    )]
    ClusterNameTaken { cluster: String, place: String },
    #[error(
        "host `{host}` of this file belongs to cluster `{cluster}`, which has `{pattern}` ({place}); rename this file, or remove the other host"
    )]
    ClusterHostTaken {
        host: String,
        pattern: String,
        cluster: String,
        place: String,
    },
    #[error(
        "path prefix `{prefix}` overlaps with `{other}` of cluster `{cluster}` ({place}); choose one that lies neither below nor above it"
    )]
    PrefixTaken {
        prefix: String,
        other: String,
        cluster: String,
        place: String,
    },
    #[error("{problem}")]
    Access { problem: &'static str },
    #[error("{problem}")]
    Acme { problem: &'static str },
    #[error("the `name` of the cluster is empty; give it a short one for the logs")]
    EmptyName,
    #[error(
        "the `name` of the cluster may be a secret and must not be logged; give it a short name without secrets"
    )]
    SecretName,
    #[error("`listen` is an empty list; add an address, or remove the key")]
    EmptyListen,
    #[error("`{key}` is an empty list; add a range of addresses, or remove the key")]
    EmptyAddresses { key: &'static str },
    #[error(transparent)]
    Addresses(#[from] CidrError),
    #[error(
        "the inherited socket {address} has no entry in `listen`, so its address lists are unknown; add an entry with this address"
    )]
    UnknownSocket { address: SocketAddr },
    #[error(
        "--listen would replace `listen` in {} together with its address lists; change the address there, or remove --listen",
        quote::path(file)
    )]
    ListsDropped { file: PathBuf },
    #[error(
        "{first} and {second} overlap; give each of --listen, --admin-listen and --acme-http01-listen (`listen`, `admin` and `http01Listen` in the file) its own port"
    )]
    SamePort {
        first: SocketAddr,
        second: SocketAddr,
    },
    #[error(
        "{connections} connections need {needed} open files, but this process may open {open_files}; lower the number, or raise the limit (`ulimit -n`, LimitNOFILE= in a systemd unit)"
    )]
    TooManyConnections {
        connections: usize,
        needed: usize,
        open_files: usize,
    },
    #[error(
        "--cert and --key come in pairs, but there are {certificates} and {keys} of them; give one --key per --cert, in the same order"
    )]
    UnevenPairs { certificates: usize, keys: usize },
    #[error(
        "no certificate is given; add --cert FILE and --key FILE, or --acme NAME to get one from a CA, or `certificates` in a --config file"
    )]
    NoCertificate,
    #[error(
        "no apiserver is given; add --upstream URL with --upstream-ca FILE, or --kubeconfig FILE (or `clusters` in a --config file), or run in a pod with its service account mounted"
    )]
    NoUpstream,
    #[error(
        "no apiserver is given, and the variable KUBECONFIG is for clients only; name the file with --kubeconfig FILE, or give --upstream URL with --upstream-ca FILE"
    )]
    OnlyKubeconfigVariable,
    #[error(
        "{flag} and `{key}` in {} both select the apiserver; remove one of them",
        quote::path(file)
    )]
    FlagAgainstFile {
        flag: &'static str,
        key: &'static str,
        file: PathBuf,
    },
    #[error("{first} and {second} exclude each other; remove one of them")]
    Exclusive {
        first: &'static str,
        second: &'static str,
    },
    #[error("{flag} needs {needed}; add it, or remove {flag}")]
    Needs {
        flag: &'static str,
        needed: &'static str,
    },
    #[error("no current-context is set; {}", if known.is_empty() { "give a context a `name`, and set current-context to it".to_owned() } else { format!("choose a context with --context, one of: {known}") })]
    NoCurrentContext { known: String },
    #[error(
        "two {list} have the name `{name}`, so kubectl refuses this file too; rename or remove one of them"
    )]
    DuplicateName { list: &'static str, name: String },
    #[error("the file has no contexts; check the path")]
    NoContexts,
    #[error("there is no context `{name}`; {}", if known.is_empty() { "no context of the file has a name, so give it one".to_owned() } else { format!("choose one of: {known}") })]
    NoContext { name: String, known: String },
    #[error(
        "context `{context}` names cluster `{name}`, which the file does not have; choose another context, or fix the file"
    )]
    NoCluster { context: String, name: String },
    #[error("context `{context}` names no cluster; add its `cluster`, or choose another context")]
    ContextWithoutCluster { context: String },
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
    #[error("`{value}` in {variable} is not valid; it must be {expected}")]
    BadPodVariable {
        variable: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error(
        "this process does not run in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set); run it in one, or give `upstream` or `kubeconfig`"
    )]
    NotInPod,
    #[error(
        "there is no CA at {}; mount the ConfigMap kube-root-ca.crt there, as config/kubernetes does, or name the apiserver with --upstream and its CA with --upstream-ca",
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

impl SettingError {
    /// An invalid value. `problem` follows it in the message and ends with the fix.
    pub(super) fn invalid(text: &str, problem: &'static str) -> Self {
        let text = quote::value(text);
        Self::Invalid { text, problem }
    }

    /// A problem of the cluster with this name.
    pub(super) fn cluster(name: &str, problem: &'static str) -> Self {
        let name = quote::name(name);
        Self::Cluster { name, problem }
    }
}

/// The message of the YAML parser, without place and excerpt.
#[derive(Debug)]
pub struct YamlError(Box<serde_saphyr::Error>);

impl YamlError {
    /// Wraps `error`. It must have no excerpt, because an excerpt could contain a secret.
    pub(super) fn new(error: serde_saphyr::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for YamlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The message may repeat bytes of the file.
        let message = UserMessageFormatter.format_message(&self.0);
        if quote::pasted(&message).is_some() {
            return f.write_str("a value of the wrong kind, hidden because it may be a secret");
        }
        escape(&message, MAX_PARSER_CHARS).fmt(f)
    }
}

const MAX_PARSER_CHARS: usize = 400;
