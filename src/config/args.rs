//! The flags of `serve`, and the environment variable of each.
//!
//! Values stay text here, so that a bad one is reported in the same words whether it stood on the
//! command line, in a variable or in a file.

use std::path::PathBuf;

use clap::Args;

/// Flags of `kube-tls-proxy serve`.
#[expect(
    clippy::doc_markdown,
    reason = "the comments are the help text, which is not Markdown"
)]
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// Listen here; repeat for more. Port 0 asks the kernel for one [default: [::]:8443]
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "KUBE_TLS_PROXY_LISTEN",
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub listen: Vec<String>,

    /// Present this certificate chain: PEM, the server's own first; repeat for more
    #[arg(
        long = "cert",
        value_name = "FILE",
        env = "KUBE_TLS_PROXY_CERT",
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub certificates: Vec<PathBuf>,

    /// Its private key: PEM, not encrypted; one for each --cert, in the same order
    #[arg(
        long = "key",
        value_name = "FILE",
        env = "KUBE_TLS_PROXY_KEY",
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub keys: Vec<PathBuf>,

    /// Answer to this name too, besides those in the certificates; repeat for more
    #[arg(
        long = "host",
        value_name = "NAME",
        env = "KUBE_TLS_PROXY_HOST",
        value_delimiter = ',',
        help_heading = "Clients"
    )]
    pub hosts: Vec<String>,

    /// Forward to this apiserver: https://HOST[:PORT][/PREFIX]
    #[arg(
        long,
        value_name = "URL",
        env = "KUBE_TLS_PROXY_UPSTREAM",
        help_heading = "Apiserver (without any of these: the cluster of the pod it runs in)"
    )]
    pub upstream: Option<String>,

    /// Trust only the CAs in this PEM file; goes with --upstream
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_TLS_PROXY_UPSTREAM_CA",
        help_heading = "Apiserver (without any of these: the cluster of the pod it runs in)"
    )]
    pub upstream_ca: Option<PathBuf>,

    /// Expect this name or address in its certificate, instead of the one dialled
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_TLS_PROXY_UPSTREAM_NAME",
        help_heading = "Apiserver (without any of these: the cluster of the pod it runs in)"
    )]
    pub upstream_name: Option<String>,

    /// Take URL, CA and name from this kubeconfig; its credentials are not read
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_TLS_PROXY_KUBECONFIG",
        help_heading = "Apiserver (without any of these: the cluster of the pod it runs in)"
    )]
    pub kubeconfig: Option<PathBuf>,

    /// Use this context of the kubeconfig [default: its current-context]
    #[arg(
        long,
        value_name = "NAME",
        env = "KUBE_TLS_PROXY_CONTEXT",
        help_heading = "Apiserver (without any of these: the cluster of the pod it runs in)"
    )]
    pub context: Option<String>,

    /// Read a YAML file: several clusters, limits, timeouts
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBE_TLS_PROXY_CONFIG",
        help_heading = "Running"
    )]
    pub config: Option<PathBuf>,

    /// Worker threads [default: the CPUs this process may use]
    #[arg(
        long,
        value_name = "N",
        env = "KUBE_TLS_PROXY_WORKERS",
        help_heading = "Running"
    )]
    pub workers: Option<String>,

    /// After SIGTERM, let running requests finish for this long [default: 25s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "KUBE_TLS_PROXY_DRAIN_TIMEOUT",
        help_heading = "Running"
    )]
    pub drain_timeout: Option<String>,

    /// Log as text or json [default: text]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "KUBE_TLS_PROXY_LOG_FORMAT",
        help_heading = "Logging"
    )]
    pub log_format: Option<String>,

    /// Log what this filter lets through, such as info or info,kube_tls_proxy=debug [default: info]
    #[arg(
        long,
        value_name = "FILTER",
        env = "KUBE_TLS_PROXY_LOG_LEVEL",
        help_heading = "Logging"
    )]
    pub log_level: Option<String>,

    /// Do not log each request
    #[arg(
        long,
        env = "KUBE_TLS_PROXY_NO_ACCESS_LOG",
        value_parser = clap::builder::FalseyValueParser::new(),
        help_heading = "Logging"
    )]
    pub no_access_log: bool,
}
