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
    owner: Owner,
    connections: Arc<Semaphore>,
    timeouts: Timeouts,
    counts: Arc<Counts>,
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
    others: Others,
) -> io::Result<Vec<std::net::TcpListener>> {
    let bound = claim(address, others)?;
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
pub fn claim(address: SocketAddr, others: Others) -> io::Result<SocketAddr> {
    let claim = open(address)?;
    if others == Others::TakenOver {
        claim.set_reuse_port(true)?;
    }
    claim.bind(&address.into())?;
    Ok(claim.local_addr()?.as_socket().unwrap_or(address))
}

/// What it means when another process listens on an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// A mistake.
    Refused,
    /// The process to take over from.
    TakenOver,
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
        counts: Arc<Counts>,
    ) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::from_std(socket)?,
            owner,
            connections,
            timeouts,
            counts,
        })
    }

    /// The next connection, which waits for its place with [`Listener::admit`]. Errors of `accept`
    /// are waited out, not returned: they are either the client's or, like a lack of file descriptors,
    /// pass (Envoy CVE-2020-8663).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no connection is lost.
    pub async fn next(&self) -> (TcpStream, PeerAddr) {
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

    /// Waits until there is a place for one more connection.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the connection is closed.
    pub async fn admit(&self, (stream, peer): (TcpStream, PeerAddr)) -> Accepted {
        admit(&self.connections, &self.counts, stream, peer).await
    }

    /// Begins the end: from now on the kernel finishes the handshakes under way, and
    /// [`Listener::next`] gives what comes of them, but begins no new one. Does nothing to a socket
    /// that others will use.
    pub fn wind_up(&self) {
        if self.owner == Owner::Proxy
            && let Err(error) = socket::begin_no_more((&self.socket).into())
        {
            // Then a client that connects at the very moment of the end is refused.
            debug!(error = %causes(&error), "the end of a socket is not gentle");
        }
    }

    /// Stops to listen. Returns the connections that the kernel has established and nobody has
    /// accepted: it would reset them with the socket.
    pub fn close(self) -> Rest {
        let mut waiting = Vec::new();
        let (connections, timeouts, counts) = (self.connections, self.timeouts, self.counts);
        if self.owner == Owner::Parent {
            return Rest {
                waiting: waiting.into_iter(),
                connections,
                timeouts,
                counts,
            };
        }
        // Asked directly: the runtime hears of a connection only when it next looks.
        if let Ok(socket) = self.socket.into_std() {
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
            waiting: waiting.into_iter(),
            connections,
            timeouts,
            counts,
        }
    }
}

/// What was in the queue of a listener that was closed.
#[derive(Debug)]
pub struct Rest {
    waiting: std::vec::IntoIter<(std::net::TcpStream, PeerAddr)>,
    connections: Arc<Semaphore>,
    timeouts: Timeouts,
    counts: Arc<Counts>,
}

impl Rest {
    /// The next of them, once there is a place for it.
    pub async fn next(&mut self) -> Option<Accepted> {
        loop {
            let (stream, peer) = self.waiting.next()?;
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| TcpStream::from_std(stream))
                .and_then(|stream| socket::tune(&stream, &self.timeouts).map(|()| stream));
            // One that fails here is dead.
            if let Ok(stream) = ready {
                return Some(admit(&self.connections, &self.counts, stream, peer).await);
            }
        }
    }
}

async fn admit(
    connections: &Arc<Semaphore>,
    counts: &Counts,
    stream: TcpStream,
    peer: PeerAddr,
) -> Accepted {
    if connections.available_permits() == 0 {
        counts.limit_hit(Limit::Connections);
    }
    loop {
        if let Ok(permit) = Arc::clone(connections).acquire_owned().await {
            return Accepted {
                stream,
                peer,
                permit,
            };
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
    use std::{
        net::TcpStream as Client,
        sync::{
            Barrier,
            atomic::{AtomicBool, Ordering},
        },
    };

    use super::*;

    /// Two proxies that share a port in silence would each get a part of the connections.
    #[test]
    fn a_port_is_shared_with_another_proxy_only_to_take_over() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 2, Others::Refused).unwrap();
        let address = first[0].local_addr().unwrap();
        assert_eq!(first[1].local_addr().unwrap(), address);
        let second = bind(address, 2, Others::Refused).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        let third = bind(address, 2, Others::TakenOver).unwrap();
        assert_eq!(third[1].local_addr().unwrap(), address);
    }

    /// The kernel would hand clients to a socket that listens, if only for a moment, and reset them with it.
    #[test]
    fn a_look_whether_a_port_can_be_taken_over_takes_no_client_away() {
        let serving = bound("127.0.0.1:0");
        let address = serving.local_addr().unwrap();
        let (begun, is_over) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                begun.wait();
                while !is_over.load(Ordering::Relaxed) {
                    claim(address, Others::TakenOver).unwrap();
                }
            });
            begun.wait();
            let comes_through =
                |_: &_| Client::connect(address).is_ok() && serving.accept().is_ok();
            let through = (0..1000).filter(comes_through).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(through, 1000);
        });
    }

    fn bound(address: &str) -> std::net::TcpListener {
        let bound = bind(address.parse().unwrap(), 1, Others::Refused);
        bound.unwrap().remove(0)
    }

    fn listener(socket: std::net::TcpListener, owner: Owner) -> Listener {
        let connections = Arc::new(Semaphore::new(10));
        let (timeouts, counts) = (Timeouts::default(), Arc::default());
        Listener::new(socket, owner, connections, timeouts, counts).unwrap()
    }

    /// The kernel resets what is in the queue of a socket that is closed.
    #[tokio::test]
    async fn connections_that_nobody_accepted_are_served_behind_the_end() {
        let socket = bound("127.0.0.1:0");
        let address = socket.local_addr().unwrap();
        let listener = listener(socket, Owner::Proxy);
        let waiting: Vec<_> = (0..3).map(|_| Client::connect(address).unwrap()).collect();
        let mut rest = listener.close();
        Client::connect(address).unwrap_err();
        for client in waiting {
            let accepted = rest.next().await.unwrap();
            assert_eq!(accepted.peer.0, client.local_addr().unwrap());
        }
        assert!(rest.next().await.is_none());
    }

    /// Between the last look at the queue and the end of the socket there would always be a moment in
    /// which a client could still connect, only to be reset.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn whoever_connects_while_it_winds_up_is_left_to_the_next_listener() {
        let old = bound("127.0.0.1:0");
        let address = old.local_addr().unwrap();
        let old = listener(old, Owner::Proxy);
        old.wind_up();
        let connecting = TcpStream::connect(address);
        let mut connecting = std::pin::pin!(connecting);
        let early = tokio::time::timeout(Duration::from_millis(200), connecting.as_mut());
        early.await.unwrap_err();
        assert!(old.close().next().await.is_none());
        let new = listener(bound(&address.to_string()), Owner::Proxy);
        let (client, (_, peer)) = tokio::join!(connecting, new.next());
        assert_eq!(peer.0, client.unwrap().local_addr().unwrap());
    }

    /// Systemd keeps the socket; what is in its queue is for the process that comes next.
    #[tokio::test]
    async fn the_queue_of_an_inherited_socket_is_left_alone() {
        let socket = bound("127.0.0.1:0");
        let address = socket.local_addr().unwrap();
        let shared = share(&socket, 1).unwrap().remove(0);
        let listener = listener(shared, Owner::Parent);
        listener.wind_up();
        let client = Client::connect(address).unwrap();
        assert!(listener.close().next().await.is_none());
        let (_, peer) = socket.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }
}
