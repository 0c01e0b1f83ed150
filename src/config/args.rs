//! The flags of `serve`, and their environment variables.
//!
//! Values stay text here, so that flag, variable and file get the same error for the same bad value. An empty
//! value counts as not given, because templates leave empty variables.

use std::path::PathBuf;

use clap::{
    ArgMatches, Args,
    builder::{OsStringValueParser, TypedValueParser},
    parser::ValueSource,
};

/// Flags of `kube-tls-proxy serve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(mut_args(|flag| flag.hide_env(true)))]
pub struct ServeArgs {
    /// Addresses to listen on.
    #[arg(
        help = "Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]"
    )]
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_LISTEN", help_heading = CLIENTS)]
    pub listen: Vec<String>,

    /// Load balancers, which must name the client in a PROXY header
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_PROXY_PROTOCOL_FROM", help_heading = CLIENTS)]
    pub proxy_protocol_from: Vec<String>,

    /// HTTP proxies in front, whose X-Forwarded-For names the client
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_TRUSTED_PROXIES", help_heading = CLIENTS)]
    pub trusted_proxies: Vec<String>,

    /// Certificate chain to present: PEM, the server certificate first; repeat for more
    #[arg(long = "cert", value_name = "FILE", value_parser = path(), value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_CERT", help_heading = CLIENTS)]
    pub certificates: Vec<PathBuf>,

    /// Private key: PEM, not encrypted; one per --cert, in the same order
    #[arg(long = "key", value_name = "FILE", value_parser = path(), value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_KEY", help_heading = CLIENTS)]
    pub keys: Vec<PathBuf>,

    /// Get a certificate for this name by ACME, on port 443 by default; repeat for more
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_ACME", help_heading = CLIENTS)]
    pub acme: Vec<String>,

    /// Email address for the ACME account
    #[arg(long, value_name = "ADDRESS")]
    #[arg(env = "KUBE_TLS_PROXY_ACME_EMAIL", help_heading = CLIENTS)]
    pub acme_email: Option<String>,

    /// ACME directory of the CA; its terms of service apply [default: Let's Encrypt]
    #[arg(long, value_name = "URL")]
    #[arg(env = "KUBE_TLS_PROXY_ACME_DIRECTORY", help_heading = CLIENTS)]
    pub acme_directory: Option<String>,

    /// PEM file with the CAs that verify the ACME directory [default: the public CAs]
    #[arg(long, value_name = "FILE", value_parser = path())]
    #[arg(env = "KUBE_TLS_PROXY_ACME_DIRECTORY_CA", help_heading = CLIENTS)]
    pub acme_directory_ca: Option<PathBuf>,

    /// Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[arg(env = "KUBE_TLS_PROXY_ACME_HTTP01_LISTEN", help_heading = CLIENTS)]
    pub acme_http01_listen: Option<String>,

    /// Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]
    #[arg(long, value_name = "DIR", value_parser = path())]
    #[arg(env = "KUBE_TLS_PROXY_ACME_STORE", help_heading = CLIENTS)]
    pub acme_store: Option<PathBuf>,

    /// Host name to serve, in addition to the names in the certificates; repeat for more
    #[arg(long = "host", value_name = "NAME", value_delimiter = ',')]
    #[arg(env = "KUBE_TLS_PROXY_HOST", help_heading = CLIENTS)]
    pub hosts: Vec<String>,

    /// URL of the apiserver.
    #[arg(help = "URL of the apiserver: https://HOST[:PORT][/PREFIX]")]
    #[arg(long, value_name = "URL")]
    #[arg(env = "KUBE_TLS_PROXY_UPSTREAM", help_heading = APISERVER)]
    pub upstream: Option<String>,

    /// PEM file with the CAs that verify the apiserver at --upstream; no others are trusted
    #[arg(long, value_name = "FILE", value_parser = path())]
    #[arg(env = "KUBE_TLS_PROXY_UPSTREAM_CA", help_heading = APISERVER)]
    pub upstream_ca: Option<PathBuf>,

    /// Name or address in the certificate of the apiserver [default: the host of the URL]
    #[arg(long, value_name = "NAME")]
    #[arg(env = "KUBE_TLS_PROXY_UPSTREAM_NAME", help_heading = APISERVER)]
    pub upstream_name: Option<String>,

    /// Host that requests ask the apiserver for: client or upstream [default: by the URL]
    #[arg(long, value_name = "CHOICE")]
    #[arg(env = "KUBE_TLS_PROXY_UPSTREAM_HOST", help_heading = APISERVER)]
    pub upstream_host: Option<String>,

    /// Proxy on the way to the apiserver: http, https or socks5 [default: none]
    #[arg(long, value_name = "URL")]
    #[arg(env = "KUBE_TLS_PROXY_UPSTREAM_PROXY_URL", hide_env_values = true, help_heading = APISERVER)]
    pub upstream_proxy_url: Option<String>,

    /// Kubeconfig with URL, CA and name of the apiserver; its credentials are not used
    #[arg(long, value_name = "FILE", value_parser = path())]
    #[arg(env = "KUBE_TLS_PROXY_KUBECONFIG", help_heading = APISERVER)]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig [default: its current-context]
    #[arg(long, value_name = "NAME")]
    #[arg(env = "KUBE_TLS_PROXY_CONTEXT", help_heading = APISERVER)]
    pub context: Option<String>,

    /// YAML file with several clusters, limits or timeouts
    #[arg(short = 'c', long, value_name = "FILE", value_parser = path())]
    #[arg(env = "KUBE_TLS_PROXY_CONFIG", help_heading = RUNNING)]
    pub config: Option<PathBuf>,

    /// Number of worker threads [default: the CPUs that this process may use]
    #[arg(long, value_name = "N")]
    #[arg(env = "KUBE_TLS_PROXY_WORKERS", help_heading = RUNNING)]
    pub workers: Option<String>,

    /// How long to serve new clients after SIGTERM [default: 5s]
    #[arg(long, value_name = "DURATION")]
    #[arg(env = "KUBE_TLS_PROXY_DRAIN_DELAY", help_heading = RUNNING)]
    pub drain_delay: Option<String>,

    /// How long running requests may take to finish after --drain-delay [default: 20s]
    #[arg(long, value_name = "DURATION")]
    #[arg(env = "KUBE_TLS_PROXY_DRAIN_TIMEOUT", help_heading = RUNNING)]
    pub drain_timeout: Option<String>,

    /// How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]
    #[arg(long, value_name = "DURATION")]
    #[arg(env = "KUBE_TLS_PROXY_DRAIN_TUNNELS", help_heading = RUNNING)]
    pub drain_tunnels: Option<String>,

    /// Address for health checks, metrics and status page, over plain HTTP [default: off]
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[arg(env = "KUBE_TLS_PROXY_ADMIN_LISTEN", help_heading = RUNNING)]
    pub admin_listen: Option<String>,

    /// Share the ports with a running proxy of the same user, to replace it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(env = "KUBE_TLS_PROXY_REUSE_PORT", help_heading = RUNNING)]
    pub reuse_port: Option<String>,

    /// Log format: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    #[arg(env = "KUBE_TLS_PROXY_LOG_FORMAT", help_heading = LOGGING)]
    pub log_format: Option<String>,

    /// Log filter: a level, or levels for modules [default: info]
    #[arg(long, value_name = "FILTER")]
    #[arg(env = "KUBE_TLS_PROXY_LOG_LEVEL", help_heading = LOGGING)]
    pub log_level: Option<String>,

    /// Turn off the log line per request
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(env = "KUBE_TLS_PROXY_NO_ACCESS_LOG", help_heading = LOGGING)]
    pub no_access_log: Option<String>,

    /// How log and status page name users: subject, hash or off [default: off]
    #[arg(long, value_name = "CHOICE")]
    #[arg(env = "KUBE_TLS_PROXY_LOG_USER", help_heading = LOGGING)]
    pub log_user: Option<String>,

    /// The flags whose value comes from their variable, with their dashes, for errors.
    #[arg(skip)]
    pub from_environment: Vec<String>,
}

impl ServeArgs {
    /// Whether no flag and no variable is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.without_empty() == Self::default()
    }

    /// These flags without empty values.
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
            proxy_protocol_from: texts(&self.proxy_protocol_from),
            trusted_proxies: texts(&self.trusted_proxies),
            certificates: paths(&self.certificates),
            keys: paths(&self.keys),
            acme: texts(&self.acme),
            acme_email: text(&self.acme_email),
            acme_directory: text(&self.acme_directory),
            acme_directory_ca: path(&self.acme_directory_ca),
            acme_http01_listen: text(&self.acme_http01_listen),
            acme_store: path(&self.acme_store),
            hosts: texts(&self.hosts),
            upstream: text(&self.upstream),
            upstream_ca: path(&self.upstream_ca),
            upstream_name: text(&self.upstream_name),
            upstream_host: text(&self.upstream_host),
            upstream_proxy_url: text(&self.upstream_proxy_url),
            kubeconfig: path(&self.kubeconfig),
            context: text(&self.context),
            config: path(&self.config),
            workers: text(&self.workers),
            drain_delay: text(&self.drain_delay),
            drain_timeout: text(&self.drain_timeout),
            drain_tunnels: text(&self.drain_tunnels),
            admin_listen: text(&self.admin_listen),
            reuse_port: text(&self.reuse_port),
            log_format: text(&self.log_format),
            log_level: text(&self.log_level),
            no_access_log: text(&self.no_access_log),
            log_user: text(&self.log_user),
            from_environment: Vec::new(),
        }
    }

    /// The variable of each flag.
    pub(super) fn variables() -> Vec<String> {
        let command = Self::augment_args(clap::Command::new("serve"));
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        variables
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    /// Records which flags come from a variable. `matches` are those of a subcommand that has all flags of `serve`.
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

/// Parses any path. Unlike clap's parser it accepts an empty path.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

const CLIENTS: &str = "Clients";
const RUNNING: &str = "Running";
const LOGGING: &str = "Logging";
const APISERVER: &str = "Apiserver (default: the cluster of the pod that the proxy runs in)";
