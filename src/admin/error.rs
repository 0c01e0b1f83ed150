//! Why the admin port cannot be opened, with the mend.

use std::{io, net::SocketAddr};

/// The admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the admin port on {address}")]
pub struct AdminError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// Why, and the mend.
    #[source]
    pub source: AdminFault,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum AdminFault {
    /// Another socket has it.
    #[error("another process uses this port; stop it or choose another with --admin-listen")]
    InUse,
    /// A low port without the capability.
    #[error("permission denied; choose a port from 1024 with --admin-listen")]
    Denied,
    /// No interface has the address.
    #[error("this machine has no such address; choose one of its own with --admin-listen")]
    NoSuchAddress,
    /// Anything else the operating system says.
    #[error("the operating system refuses")]
    Other(#[source] io::Error),
}

impl AdminError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "std adds kinds; an unknown one keeps its own words"
    )]
    pub(super) fn new(address: SocketAddr, error: io::Error) -> Self {
        let source = match error.kind() {
            io::ErrorKind::AddrInUse => AdminFault::InUse,
            io::ErrorKind::PermissionDenied => AdminFault::Denied,
            io::ErrorKind::AddrNotAvailable => AdminFault::NoSuchAddress,
            _ => AdminFault::Other(error),
        };
        Self { address, source }
    }
}
