//! Accepts TCP connections and limits how many are open.
//!
//! The accept loop never waits for a place: in the queue of the kernel the connections of one client would hide those
//! of all others. Only the drain ends the loop.

use std::{
    future::{Future as _, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
    time::{Instant, sleep, timeout_at},
};
use tracing::{debug, warn};

use crate::{
    clients::{ClientTable, Place},
    config::{Admission, LiveSettings},
    drain::Drain,
    hosts::PeerAddr,
    memory::MemoryPressure,
    metrics::{Counters, Limit},
    socket,
    text::error_chain,
};

/// One listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    owner: Owner,
    memory: Arc<MemoryPressure>,
    entrance: Entrance,
}

/// What a connection passes once it is accepted.
#[derive(Debug)]
struct Entrance {
    clients: Arc<ClientTable>,
    settings: LiveSettings,
    counters: Arc<Counters>,
}

/// Who closes a listening socket for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This process, when it ends.
    Proxy,
    /// The process that passed the socket on. The socket outlives this process, with the connections in its
    /// queue.
    Parent,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with its TCP settings made.
    pub stream: TcpStream,
    /// The client.
    pub peer: PeerAddr,
    /// Its place among all connections.
    pub place: Place,
}

/// Opens one socket per worker on one address; the kernel spreads connections over them.
///
/// # Errors
///
/// When the address cannot be listened on. With [`PortSharing::Exclusive`] a port in use is an error,
/// although `SO_REUSEPORT` alone would let two proxies share it without an error. With [`PortSharing::Reuse`] the
/// kernel gives each process a part of the connections until the other one has ended, and it does so only
/// for processes of one user.
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

/// Tests whether [`bind`] would get the address; returns it with the port that the kernel chose. The socket
/// never listens, so no client can connect to a socket that is closed at once.
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

impl PortSharing {
    /// The value for `--reuse-port`.
    #[must_use]
    pub fn new(reuse_port: bool) -> Self {
        if reuse_port {
            Self::Reuse
        } else {
            Self::Exclusive
        }
    }
}

/// Clones an inherited socket, such as one of systemd, for each worker. The socket outlives this process, so
/// a restart does not even lose a connection that is not yet accepted.
///
/// # Errors
///
/// When the process has too many open files.
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
    /// A listener on a socket of [`bind`] or [`share`], for the current runtime. All listeners share `clients`.
    ///
    /// # Errors
    ///
    /// When the runtime cannot watch the socket.
    pub fn new(
        socket: std::net::TcpListener,
        owner: Owner,
        clients: Arc<ClientTable>,
        memory: Arc<MemoryPressure>,
        settings: LiveSettings,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::from_std(socket)?,
            owner,
            memory,
            entrance: Entrance {
                clients,
                settings,
                counters,
            },
        })
    }

    /// Accepts connections until the drain begins, then closes the socket. Returns once every connection
    /// that the kernel had established was handed to `on_accept`: the kernel resets the others.
    ///
    /// `judge` decides about each peer before its connection takes a place or a task.
    pub async fn run(
        self,
        drain: Drain,
        judge: impl Fn(PeerAddr) -> Admission,
        mut on_accept: impl FnMut(Accepted),
    ) {
        let enter =
            |stream, peer, is_draining| self.entrance.enter(stream, peer, judge(peer), is_draining);
        let mut has_refused = false;
        loop {
            let (mut accept, mut has_waited) = (pin!(self.accept_with_memory()), false);
            let accepted = poll_fn(|cx| {
                let accepted = accept.as_mut().poll(cx);
                has_waited |= accepted.is_pending();
                if accepted.is_pending() && has_refused {
                    return Poll::Ready(None);
                }
                accepted.map(Some)
            });
            let accepted = tokio::select! {
                biased;
                // First, so that a flood of connections cannot hide it.
                () = drain.begun() => break,
                accepted = accepted => accepted,
            };
            let Some((stream, peer)) = accepted else {
                // The queue is empty, or the turn of the task is over. In a flood of refused connections the kernel
                // would wake the worker for each.
                has_refused = false;
                sleep(PAUSE_OF_REFUSALS).await;
                continue;
            };
            let Some(accepted) = enter(stream, peer, false) else {
                has_refused = true;
                continue;
            };
            on_accept(accepted);
            // Open connections have priority over those of a full queue. `accept` alone would continue for 128 of
            // them.
            if !has_waited {
                yield_now().await;
            }
        }
        self.stop_syn();
        let until = Instant::now() + HANDSHAKE_TIMEOUT;
        while let Ok((stream, peer)) = timeout_at(until, self.accept()).await {
            enter(stream, peer, true).map(&mut on_accept);
        }
        self.close(judge).into_iter().for_each(on_accept);
    }

    /// The next connection, once there is memory for it.
    async fn accept_with_memory(&self) -> (TcpStream, PeerAddr) {
        if self.memory.is_short() {
            self.entrance.counters.limits_hit.count(Limit::Memory);
            self.memory.may_accept().await;
        }
        self.accept().await
    }

    /// The next connection. The loop skips an error that concerns only one connection. Any other error passes,
    /// such as a lack of file descriptors: the loop logs it and waits (Envoy CVE-2020-8663).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no connection is lost.
    async fn accept(&self) -> (TcpStream, PeerAddr) {
        let mut pause = MIN_PAUSE;
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => return (stream, PeerAddr::new(peer)),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(error = %error_chain(&error), pause = ?pause, "accept failed");
                    sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// Makes the kernel drop new handshakes and finish those in progress. It does nothing to a socket that
    /// outlives this process.
    fn stop_syn(&self) {
        if self.owner == Owner::Proxy
            && let Err(error) = socket::drop_new_syns((&self.socket).into())
        {
            debug!(
                error = %error_chain(&error),
                "could not stop new TCP handshakes on the listening socket; a client that connects now may be refused"
            );
        }
    }

    /// Closes the socket; returns the connections in its queue, which the kernel would reset. A socket
    /// that outlives this process keeps its queue.
    fn close(self, judge: impl Fn(PeerAddr) -> Admission) -> Vec<Accepted> {
        let mut backlog = Vec::new();
        // Directly, because the runtime learns of a connection only when it next polls the kernel.
        if self.owner == Owner::Proxy
            && let Ok(socket) = self.socket.into_std()
        {
            loop {
                match socket.accept() {
                    Ok((stream, peer)) => {
                        let stream = stream
                            .set_nonblocking(true)
                            .and_then(|()| TcpStream::from_std(stream));
                        // An error means that the connection is dead.
                        let peer = PeerAddr::new(peer);
                        let enter = |stream| self.entrance.enter(stream, peer, judge(peer), true);
                        backlog.extend(stream.ok().and_then(enter));
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    // The queue is empty, or it cannot be read.
                    Err(_) => break,
                }
            }
        }
        backlog
    }
}

impl Entrance {
    /// The connection with its place and its TCP settings. `None` if the connection was refused, or is dead.
    fn enter(
        &self,
        stream: TcpStream,
        peer: PeerAddr,
        admission: Admission,
        lifts_client_share: bool,
    ) -> Option<Accepted> {
        let limits_hit = &self.counters.limits_hit;
        let entered = match admission {
            Admission::Client => self.clients.enter(peer, lifts_client_share),
            Admission::Balancer => Ok(self.clients.enter_unnamed()),
            Admission::Denied => {
                socket::reset_when_closed(&stream);
                return None;
            }
        };
        let place = match entered {
            Ok(place) => place,
            Err(refusal) => {
                limits_hit.count(refusal.into());
                socket::reset_when_closed(&stream);
                return None;
            }
        };
        if place.is_waiting() && !place.is_unnamed() {
            limits_hit.count(Limit::Connections);
        }
        socket::tune(&stream, &self.settings.load().timeouts).ok()?;
        Some(Accepted {
            stream,
            peer,
            place,
        })
    }
}

/// Whether the error concerns only the connection that was just accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected
    )
}

/// Connections that the kernel queues per socket.
const BACKLOG: i32 = 4096;
/// Pauses after an error of `accept`.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long refused connections collect in the queue of the kernel, so that one turn of the worker refuses many.
const PAUSE_OF_REFUSALS: Duration = Duration::from_millis(1);
/// How long handshakes in progress may take after the drain begins: a round trip to a far client.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests;
