//! The flags of `serve`, and the environment variable of each.
//!
//! Values stay text here, so that a bad one is reported in the same words whether it stood on the
//! command line, in a variable or in a file. An empty value is one that was not given: templates
//! leave empty variables behind.

use std::path::PathBuf;

use clap::{
    ArgMatches, Args,
    builder::{OsStringValueParser, TypedValueParser},
    parser::ValueSource,
};

/// Flags of `kube-tls-proxy serve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// Addresses to listen on.
    #[arg(
        long,
        help = "Listen here; repeat for more. Port 0 asks the kernel for one [default: [::]:8443]",
        value_name = "ADDRESS:PORT",
        env = "KUBE_TLS_PROXY_LISTEN",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub listen: Vec<String>,

    /// Present this certificate chain: PEM, the server's own first; repeat for more
    #[arg(
        long = "cert",
        value_name = "FILE",
        value_parser = path(),
        env = "KUBE_TLS_PROXY_CERT",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub certificates: Vec<PathBuf>,

    /// Its private key: PEM, not encrypted; one for each --cert, in the same order
    #[arg(
        long = "key",
        value_name = "FILE",
        value_parser = path(),
        env = "KUBE_TLS_PROXY_KEY",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub keys: Vec<PathBuf>,

    /// Answer to this name too, besides those in the certificates; repeat for more
    #[arg(
        long = "host",
        value_name = "NAME",
        env = "KUBE_TLS_PROXY_HOST",
        hide_env = true,
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub hosts: Vec<String>,

    /// URL of the apiserver.
    #[arg(
        long,
        help = "Forward to this apiserver: https://HOST[:PORT][/PREFIX]",
        value_name = "URL",
        env = "KUBE_TLS_PROXY_UPSTREAM",
        hide_env = true,
        help_heading = APISERVER
    )]
    pub upstream: Option<String>,

    /// Trust only the CAs in this PEM file; goes with --upstream
    #[arg(
        long,
        value_name = "FILE",
        value_parser = path(),
        env = "KUBE_TLS_PROXY_UPSTREAM_CA",
        hide_env = true,
        help_heading = APISERVER
    )]
    pub upstream_ca: Option<PathBuf>,

    /// Expect this name or address in its certificate, instead of the one dialled
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_TLS_PROXY_UPSTREAM_NAME",
        hide_env = true,
        help_heading = APISERVER
    )]
    pub upstream_name: Option<String>,

    /// Take URL, CA and name from this kubeconfig; its credentials are not read
    #[arg(
        long,
        value_name = "FILE",
        value_parser = path(),
        env = "KUBE_TLS_PROXY_KUBECONFIG",
        hide_env = true,
        help_heading = APISERVER
    )]
    pub kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig [default: its current-context]
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_TLS_PROXY_CONTEXT",
        hide_env = true,
        help_heading = APISERVER
    )]
    pub context: Option<String>,

    /// Read a YAML file: several clusters, limits, timeouts
    #[arg(
        long,
        value_name = "FILE",
        value_parser = path(),
        env = "KUBE_TLS_PROXY_CONFIG",
        hide_env = true,
        help_heading = "Running"
    )]
    pub config: Option<PathBuf>,

    /// Worker threads [default: the CPUs this process may use]
    #[arg(
        long,
        value_name = "N",
        env = "KUBE_TLS_PROXY_WORKERS",
        hide_env = true,
        help_heading = "Running"
    )]
    pub workers: Option<String>,

    /// After SIGTERM, still serve new clients for this long [default: 5s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_TLS_PROXY_DRAIN_DELAY",
        hide_env = true,
        help_heading = "Running"
    )]
    pub drain_delay: Option<String>,

    /// After that, let running requests finish for this long [default: 20s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_TLS_PROXY_DRAIN_TIMEOUT",
        hide_env = true,
        help_heading = "Running"
    )]
    pub drain_timeout: Option<String>,

    /// And let tunnels (exec, port-forward) go on for this long [default: 60s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_TLS_PROXY_DRAIN_TUNNELS",
        hide_env = true,
        help_heading = "Running"
    )]
    pub drain_tunnels: Option<String>,

    /// Serve health, metrics and the status page here, as plain HTTP [default: nowhere]
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "KUBE_TLS_PROXY_ADMIN_LISTEN",
        hide_env = true,
        help_heading = "Running"
    )]
    pub admin_listen: Option<String>,

    /// Share the listening ports with a running proxy of the same user, to replace it
    #[arg(
        long,
        env = "KUBE_TLS_PROXY_REUSE_PORT",
        hide_env = true,
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Running"
    )]
    pub reuse_port: bool,

    /// Log as text or json [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "KUBE_TLS_PROXY_LOG_FORMAT",
        hide_env = true,
        help_heading = "Logging"
    )]
    pub log_format: Option<String>,

    /// Log what this filter lets through: a level, or levels for modules [default: info]
    #[arg(
        long,
        value_name = "FILTER",
        env = "KUBE_TLS_PROXY_LOG_LEVEL",
        hide_env = true,
        help_heading = "Logging"
    )]
    pub log_level: Option<String>,

    /// Do not log each request
    #[arg(
        long,
        env = "KUBE_TLS_PROXY_NO_ACCESS_LOG",
        hide_env = true,
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Logging"
    )]
    pub no_access_log: bool,

    /// Flags, with their dashes, that were not typed but stand in their variable; for messages.
    #[arg(skip)]
    pub from_environment: Vec<String>,
}

impl ServeArgs {
    /// Whether nothing at all is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.without_empty() == Self::default()
    }

    /// The same, without the values that are empty.
    pub(super) fn without_empty(&self) -> Self {
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        let path =
            |value: &Option<PathBuf>| value.clone().filter(|value| !value.as_os_str().is_empty());
        let texts = |values: &[String]| {
            let given = values.iter().filter(|value| !value.is_empty());
            given.cloned().collect()
        };
        let paths = |values: &[PathBuf]| {
            let given = values.iter().filter(|value| !value.as_os_str().is_empty());
            given.cloned().collect()
        };
        Self {
            listen: texts(&self.listen),
            certificates: paths(&self.certificates),
            keys: paths(&self.keys),
            hosts: texts(&self.hosts),
            upstream: text(&self.upstream),
            upstream_ca: path(&self.upstream_ca),
            upstream_name: text(&self.upstream_name),
            kubeconfig: path(&self.kubeconfig),
            context: text(&self.context),
            config: path(&self.config),
            workers: text(&self.workers),
            drain_delay: text(&self.drain_delay),
            drain_timeout: text(&self.drain_timeout),
            drain_tunnels: text(&self.drain_tunnels),
            admin_listen: text(&self.admin_listen),
            reuse_port: self.reuse_port,
            log_format: text(&self.log_format),
            log_level: text(&self.log_level),
            no_access_log: self.no_access_log,
            from_environment: Vec::new(),
        }
    }

    /// Notes which flags of `matches`, those of a subcommand that has them all, come from a variable.
    pub fn note_variables(&mut self, matches: &ArgMatches) {
        let command = Self::augment_args(clap::Command::new("serve"));
        let flags = command
            .get_arguments()
            .filter(|flag| flag.get_env().is_some());
        self.from_environment = flags
            .filter(|flag| {
                matches.value_source(flag.get_id().as_str()) == Some(ValueSource::EnvVariable)
            })
            .filter_map(|flag| flag.get_long().map(|long| format!("--{long}")))
            .collect();
    }
}

/// Any path, the empty one too, which clap's own parser refuses.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

const APISERVER: &str = "Apiserver (without these: the cluster of the pod that the proxy runs in)";
