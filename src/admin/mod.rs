//! The admin port: health, metrics and the status page, on a thread that serves no clients.
//!
//! It is plain HTTP without authentication, so nothing here is a secret: of a request no header but
//! `User-Agent`, no query, no body. Text of clients is sent as JSON, and the page inserts it as text.

mod health;
mod history;
mod host;
mod page;
mod problems;
mod server;
mod sources;
mod view;

use std::net::SocketAddr;

pub use sources::Sources;

use crate::{
    drain::Drain,
    listen_error::{ListenError, ListenFlag},
};

/// The admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the admin port on {address}")]
pub struct AdminError {
    /// The configured address.
    pub address: SocketAddr,
    /// Why, and how to fix it.
    #[source]
    pub source: ListenError,
}

impl AdminError {
    fn new(address: SocketAddr, error: std::io::Error) -> Self {
        let source = ListenError::new(ListenFlag::Admin, error);
        Self { address, source }
    }
}

/// The admin port: bound, but not served yet.
#[derive(Debug)]
pub struct Admin {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

/// Serves the admin port until dropped.
#[derive(Debug)]
pub struct AdminServer {
    drain: Drain,
}

impl Admin {
    /// Opens the port.
    ///
    /// # Errors
    ///
    /// If the port cannot be opened.
    pub fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let bound = || {
            let socket = std::net::TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok(Self { socket, address })
        };
        bound().map_err(|error| AdminError::new(address, error))
    }

    /// The bound address, with the port that the kernel chose.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves on the current runtime until the returned value is dropped.
    ///
    /// # Errors
    ///
    /// If the runtime cannot register the socket.
    pub fn serve(self, sources: Sources) -> Result<AdminServer, AdminError> {
        let socket = tokio::net::TcpListener::from_std(self.socket)
            .map_err(|error| AdminError::new(self.address, error))?;
        let drain = Drain::new();
        let serving = server::serve(socket, sources, drain.clone());
        drain.spawn(serving);
        Ok(AdminServer { drain })
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.drain.begin();
    }
}
