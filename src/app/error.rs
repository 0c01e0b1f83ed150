//! Why a proxy does not start, or ends by itself.

use std::{io, net::SocketAddr};

use crate::{
    acme::StoreError, admin::AdminError, config::ConfigError, listen_error::ListenError,
    pki::PkiError, reload::ReloadError,
};

/// An error that ends the process.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Flags, environment, configuration file or kubeconfig.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificate, key or CA.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS refuses certificates and keys that were valid when they were read.
    #[error(transparent)]
    Setup(#[from] ReloadError),
    /// The log filter is malformed.
    #[error("--log-level is not a filter such as `info` or `info,kube_tls_proxy=debug`")]
    LogFilter(#[source] tracing_subscriber::filter::ParseError),
    /// The store of a certificate by ACME.
    #[error(transparent)]
    Acme(#[from] StoreError),
    /// A listening socket cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why, and how to fix it.
        #[source]
        source: ListenError,
    },
    /// An inherited socket that cannot be used.
    #[error(
        "socket {number} of the socket unit does not listen on TCP; give it with ListenStream=ADDRESS:PORT"
    )]
    Inherited {
        /// Its position among the inherited sockets, from 0.
        number: usize,
    },
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// An error after the start.
    #[error("cannot {doing}")]
    Run {
        /// The action that failed, as a lowercase fragment: `start worker 3`.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
