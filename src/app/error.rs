//! Why a proxy does not start, or ends.

use std::{io, net::SocketAddr};

use crate::{admin::AdminError, config::ConfigError, pki::PkiError, reload::ReloadError};

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
        source: ListenFault,
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

/// Why an address cannot be listened on, with the mend.
#[derive(Debug, thiserror::Error)]
pub enum ListenFault {
    /// Another socket has it.
    #[error("another process uses this port; stop it or choose another with --listen")]
    InUse,
    /// A low port without the capability.
    #[error(
        "permission denied; choose a port from 1024 with --listen, or grant CAP_NET_BIND_SERVICE"
    )]
    Denied,
    /// No interface has the address.
    #[error("this machine has no such address; choose one of its own with --listen")]
    NoSuchAddress,
    /// IPv6 is switched off, and the default address is `[::]`.
    #[error("this machine has no IPv6; listen on IPv4 with --listen 0.0.0.0:8443")]
    NoIpv6,
    /// Anything else the operating system says.
    #[error("the operating system refuses")]
    Other(#[source] io::Error),
}

impl From<io::Error> for ListenFault {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own words"
    )]
    fn from(error: io::Error) -> Self {
        if error.raw_os_error() == Some(EAFNOSUPPORT) {
            return Self::NoIpv6;
        }
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress,
            _ => Self::Other(error),
        }
    }
}

/// `errno` of Linux for an address family that the kernel does not have; std names no kind for it.
const EAFNOSUPPORT: i32 = 97;
