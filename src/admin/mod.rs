//! Health, metrics and the status page, on a port of their own and away from the workers.
//!
//! It is plain HTTP and asks nobody who they are, so nothing here is a secret: no header of a request but
//! the user agent, no query, no body. Text of clients goes out as JSON and is put into the page as text.

mod health;
mod host;
mod page;
mod server;
mod sources;
mod view;

use std::{net::SocketAddr, sync::Arc};

pub use sources::Sources;

use crate::{
    config::Timeouts,
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

/// The admin port, bound and not served yet.
#[derive(Debug)]
pub struct Admin {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

/// The admin port, served until dropped.
#[derive(Debug)]
pub struct Serving {
    drain: Drain,
}

impl Admin {
    /// Opens the port.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
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

    /// Serves on the current runtime, until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// When the socket cannot be watched.
    pub fn serve(self, sources: Sources, timeouts: &Timeouts) -> Result<Serving, AdminError> {
        let socket = tokio::net::TcpListener::from_std(self.socket)
            .map_err(|error| AdminError::new(self.address, error))?;
        let drain = Drain::new();
        let serving = server::serve(socket, Arc::new(sources), timeouts.clone(), drain.clone());
        drain.spawn(serving);
        Ok(Serving { drain })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.drain.begin();
    }
}
