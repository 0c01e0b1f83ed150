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
use tracing::{debug, warn};

use crate::{
    config::Timeouts,
    hosts::PeerAddr,
    metrics::{Counters, Limit},
    socket,
    text::error_chain,
};

/// One listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    owner: Owner,
    connections: Arc<Semaphore>,
    timeouts: Timeouts,
    counts: Arc<Counters>,
}

/// Who closes a listening socket for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This process, at its end.
    Proxy,
    /// Whoever passed it on; it outlives the process with all that waits in it.
    Parent,
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

/// A connection that has no place yet; nothing is done for it.
#[derive(Debug)]
pub struct Unplaced {
    stream: TcpStream,
    peer: PeerAddr,
}

impl Unplaced {
    /// The same at this place.
    #[must_use]
    pub fn at(self, permit: OwnedSemaphorePermit) -> Accepted {
        let Self { stream, peer } = self;
        Accepted {
            stream,
            peer,
            permit,
        }
    }
}

/// Sockets on one address, one for each worker; the kernel spreads connections over them.
///
/// # Errors
///
/// When the address cannot be listened on. That another process does so is an error too, although
/// `SO_REUSEPORT` alone would let two proxies share the port in silence; unless this one is there to
/// take over, when the kernel sends each of them a part of the connections until the other has ended.
/// It does so only for processes of the same user.
pub fn bind(
    address: SocketAddr,
    workers: usize,
    sharing: PortSharing,
) -> io::Result<Vec<std::net::TcpListener>> {
    let bound = claim(address, sharing)?;
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

/// Whether [`bind`] would get the address, which comes back with the port that the kernel chose. Nothing
/// listens for it, so that no client can come to what is gone at once.
///
/// # Errors
///
/// As [`bind`].
pub fn claim(address: SocketAddr, sharing: PortSharing) -> io::Result<SocketAddr> {
    let claim = open(address)?;
    if sharing == PortSharing::Reuse {
        claim.set_reuse_port(true)?;
    }
    claim.bind(&address.into())?;
    Ok(claim.local_addr()?.as_socket().unwrap_or(address))
}

/// Whether another process may listen on the same port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortSharing {
    /// No: a port in use is an error.
    Exclusive,
    /// Yes: this process replaces the other one (`--reuse-port`).
    Reuse,
}

/// The same socket once for each worker: one that was inherited, from systemd for instance. It
/// outlives the process, so not even a connection that nobody has accepted yet is lost at a restart.
///
/// # Errors
///
/// When there are too many open files.
pub fn share(
    socket: &std::net::TcpListener,
    workers: usize,
) -> io::Result<Vec<std::net::TcpListener>> {
    socket.set_nonblocking(true)?;
    (0..workers).map(|_| socket.try_clone()).collect()
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
        owner: Owner,
        connections: Arc<Semaphore>,
        timeouts: Timeouts,
        counts: Arc<Counters>,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::from_std(socket)?,
            owner,
            connections,
            timeouts,
            counts,
        })
    }

    /// The next connection, for which a place is still to be found. Errors of `accept`
    /// are waited out, not returned: they are either the client's or, like a lack of file descriptors,
    /// pass (Envoy CVE-2020-8663).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no connection is lost.
    pub async fn next(&self) -> Unplaced {
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = self.socket.accept().await;
            match accepted.and_then(|(stream, peer)| {
                socket::tune(&stream, &self.timeouts).map(|()| (stream, peer))
            }) {
                Ok((stream, peer)) => {
                    let peer = PeerAddr(peer);
                    return Unplaced { stream, peer };
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(error = %error_chain(&error), pause = ?pause, "accept failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits until there is a place for one more connection.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn place(&self) -> OwnedSemaphorePermit {
        place(&self.connections, &self.counts).await
    }

    /// A place for one more connection, if there is one now.
    #[must_use]
    pub fn free_place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// Begins the end: from now on the kernel finishes the handshakes under way, and
    /// [`Listener::next`] gives what comes of them, but begins no new one. Does nothing to a socket
    /// that others will use.
    pub fn wind_up(&self) {
        if self.owner == Owner::Proxy
            && let Err(error) = socket::drop_new_syns((&self.socket).into())
        {
            // Then a client that connects at the very moment of the end is refused.
            debug!(error = %error_chain(&error), "the end of a socket is not gentle");
        }
    }

    /// Stops to listen. Returns these connections, which were accepted and have no place yet, and those
    /// that the kernel has established and nobody has accepted: it would reset them with the socket.
    pub fn close(self, unplaced: Vec<Unplaced>) -> Rest {
        let mut waiting = Vec::new();
        // Asked directly: the runtime hears of a connection only when it next looks.
        if self.owner == Owner::Proxy
            && let Ok(socket) = self.socket.into_std()
        {
            loop {
                match socket.accept() {
                    Ok((stream, peer)) => waiting.push((stream, PeerAddr(peer))),
                    Err(error) if is_of_one_connection(&error) => {}
                    // Empty, or not to be had.
                    Err(_) => break,
                }
            }
        }
        Rest {
            unplaced: unplaced.into_iter(),
            waiting: waiting.into_iter(),
            connections: self.connections,
            timeouts: self.timeouts,
            counts: self.counts,
        }
    }
}

/// What was in the queue of a listener that was closed.
#[derive(Debug)]
pub struct Rest {
    unplaced: std::vec::IntoIter<Unplaced>,
    waiting: std::vec::IntoIter<(std::net::TcpStream, PeerAddr)>,
    connections: Arc<Semaphore>,
    timeouts: Timeouts,
    counts: Arc<Counters>,
}

impl Rest {
    /// The next of them, once there is a place for it.
    pub async fn next(&mut self) -> Option<Accepted> {
        let unplaced = self.unplaced.next().or_else(|| self.next_waiting())?;
        let permit = place(&self.connections, &self.counts).await;
        Some(unplaced.at(permit))
    }

    fn next_waiting(&mut self) -> Option<Unplaced> {
        self.waiting.find_map(|(stream, peer)| {
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream))
                .and_then(|stream| socket::tune(&stream, &self.timeouts).map(|()| stream));
            // One that fails here is dead.
            let stream = ready.ok()?;
            Some(Unplaced { stream, peer })
        })
    }
}

async fn place(connections: &Arc<Semaphore>, counts: &Counters) -> OwnedSemaphorePermit {
    if connections.available_permits() == 0 {
        counts.limits_hit.count(Limit::Connections);
    }
    loop {
        if let Ok(permit) = Arc::clone(connections).acquire_owned().await {
            return permit;
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
mod tests;
