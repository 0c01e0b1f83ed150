//! Why a TCP port cannot be opened, and how to fix it; the same words for all ports of the proxy.

use std::{fmt, io};

/// Why the kernel does not open a listening socket on an address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another socket has the port.
    #[error("another process uses this port; stop it or choose another with {0}{condition}", condition = .0.condition())]
    InUse(ListenFlag),
    /// The process may not open a low port.
    #[error(
        "permission denied; choose a port above 1023 with {0}{condition}, or grant CAP_NET_BIND_SERVICE",
        condition = .0.condition()
    )]
    Denied(ListenFlag),
    /// No interface has the address.
    #[error("this machine does not have this address; choose one that it has with {0}")]
    NoSuchAddress(ListenFlag),
    /// IPv6 is switched off, and the default address is `[::]`.
    #[error("this machine has no IPv6; listen on IPv4 with {0} {example}", example = .0.ipv4_example())]
    NoIpv6(ListenFlag),
    /// Anything else that the operating system reports.
    #[error("the operating system refused it")]
    Other(#[source] io::Error),
}

/// The flag that chooses the address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenFlag {
    /// The port for clients of the apiserver.
    Clients,
    /// The port for health, metrics and the status page.
    Admin,
    /// The port for the challenge `http-01` of ACME.
    Http01,
}

impl ListenError {
    /// Explains the error that opening a port returned.
    #[must_use]
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own words"
    )]
    pub fn new(flag: ListenFlag, error: io::Error) -> Self {
        if error.raw_os_error() == Some(EAFNOSUPPORT) {
            return Self::NoIpv6(flag);
        }
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(flag),
            io::ErrorKind::PermissionDenied => Self::Denied(flag),
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress(flag),
            _ => Self::Other(error),
        }
    }
}

impl ListenFlag {
    /// What else another port needs.
    fn condition(self) -> &'static str {
        match self {
            Self::Clients | Self::Admin => "",
            Self::Http01 => " or `http01Listen` and forward port 80 to it",
        }
    }

    fn ipv4_example(self) -> &'static str {
        match self {
            Self::Clients => "0.0.0.0:8443",
            Self::Admin => "127.0.0.1:9090",
            Self::Http01 => "0.0.0.0:80",
        }
    }
}

impl fmt::Display for ListenFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clients => "--listen",
            Self::Admin => "--admin-listen",
            Self::Http01 => "--acme-http01-listen",
        })
    }
}

/// `errno` of Linux for an address family that the kernel does not have; std has no kind for it.
const EAFNOSUPPORT: i32 = 97;
