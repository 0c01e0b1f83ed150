//! Why a proxy does not start, or ends.

use std::{io, net::SocketAddr};

use crate::{
    admin::AdminError, config::ConfigError, listen_error::ListenError, pki::PkiError,
    reload::ReloadError,
};

/// Everything that ends the process.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Flags, environment, configuration file or kubeconfig.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificate, key or CA.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS cannot be set up with material that was found good.
    #[error(transparent)]
    Setup(#[from] ReloadError),
    /// The log filter is malformed.
    #[error("--log-level is not a filter such as `info` or `info,kube_tls_proxy=debug`")]
    LogFilter(#[source] tracing_subscriber::filter::ParseError),
    /// A socket that cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address that was asked for.
        address: SocketAddr,
        /// Why, and the mend.
        #[source]
        source: ListenError,
    },
    /// A socket that was passed on and is of no use.
    #[error(
        "socket {number} of the socket unit does not listen on TCP; give it with ListenStream=ADDRESS:PORT"
    )]
    Inherited {
        /// Its place among those that were passed on, from 0.
        number: usize,
    },
    /// The admin port cannot be opened.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Anything that fails after the start.
    #[error("{doing}")]
    Run {
        /// What was being done, as a lowercase fragment: `start worker 3`.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
