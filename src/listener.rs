//! Stage 1: accepts TCP connections and bounds how many are open.
//!
//! Nothing is done for a connection before it has a permit, and a listener holds none while it waits for
//! clients: what it held would be missing to the client of another listener. Beyond the limit each
//! listener holds one connection at most, the next ones wait in the kernel. The loop has no way to end
//! but the drain.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::warn;

use crate::{
    addr::PeerAddr,
    config::Timeouts,
    metrics::{Counts, Limit},
    socket,
    telemetry::causes,
};

/// One listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    connections: Arc<Semaphore>,
    timeouts: Timeouts,
    counts: Arc<Counts>,
}

/// A connection and its place among those that may be open.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with its TCP settings made.
    pub stream: TcpStream,
    /// The client.
    pub peer: PeerAddr,
    /// Given back when dropped.
    pub permit: OwnedSemaphorePermit,
}

/// Sockets on one address, one for each worker; the kernel spreads connections over them.
///
/// # Errors
///
/// When the address cannot be listened on. That another process does so is an error too, although
/// `SO_REUSEPORT` alone would let two proxies share the port in silence.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let claim = open(address)?;
    claim.bind(&address.into())?;
    let bound = claim.local_addr()?.as_socket().unwrap_or(address);
    drop(claim);
    (0..workers)
        .map(|_| {
            let socket = open(bound)?;
            socket.set_reuse_port(true)?;
            socket.bind(&bound.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
        .collect()
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 clients too.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Listener {
    /// A listener on a socket of [`bind`], for the current runtime.
    ///
    /// # Errors
    ///
    /// When the socket cannot be watched.
    pub fn new(
        socket: std::net::TcpListener,
        connections: Arc<Semaphore>,
        timeouts: Timeouts,
        counts: Arc<Counts>,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::from_std(socket)?,
            connections,
            timeouts,
            counts,
        })
    }

    /// The next connection. Errors of `accept` are waited out, not returned: they are either the
    /// client's or, like a lack of file descriptors, pass (Envoy CVE-2020-8663).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but that a connection which waits for its permit is closed.
    pub async fn accept(&self) -> Accepted {
        let (stream, peer) = self.next().await;
        if self.connections.available_permits() == 0 {
            self.counts.limit_hit(Limit::Connections);
        }
        loop {
            if let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await {
                return Accepted {
                    stream,
                    peer,
                    permit,
                };
            }
        }
    }

    async fn next(&self) -> (TcpStream, PeerAddr) {
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = self.socket.accept().await;
            match accepted.and_then(|(stream, peer)| {
                socket::tune(&stream, &self.timeouts).map(|()| (stream, peer))
            }) {
                Ok((stream, peer)) => return (stream, PeerAddr(peer)),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(error = %causes(&error), pause = ?pause, "accept failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Whether only the connection just accepted is at fault.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected
    )
}

const BACKLOG: i32 = 4096;
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    /// Two proxies that share a port in silence would each get a part of the connections.
    #[test]
    fn a_port_is_not_shared_with_another_proxy() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), address);
        let second = bind(address, 2).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }
}
