//! Stage 1: accepts TCP connections and bounds how many are open.
//!
//! A permit is taken before `accept`, so every connection that exists is already counted, but not before
//! a connection waits: a listener without clients must not hold what another one's client needs. The
//! loop has no way to end but the drain.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::warn;

use crate::{addr::PeerAddr, config::Timeouts, socket, telemetry::causes};

/// One listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<std::net::TcpListener>,
    connections: Arc<Semaphore>,
    timeouts: Timeouts,
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
    ) -> io::Result<Self> {
        Ok(Self {
            socket: AsyncFd::new(socket)?,
            connections,
            timeouts,
        })
    }

    /// The next connection. Errors of `accept` are waited out, not returned: they are either the
    /// client's or, like a lack of file descriptors, pass (Envoy CVE-2020-8663).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no connection is lost.
    pub async fn accept(&self) -> Accepted {
        let mut pause = FIRST_PAUSE;
        loop {
            let accepted = match self.socket.readable().await {
                Ok(mut ready) => {
                    let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
                        continue;
                    };
                    match ready.try_io(|socket| self.take(socket.get_ref())) {
                        Ok(accepted) => accepted.map(|(stream, peer)| Accepted {
                            stream,
                            peer,
                            permit,
                        }),
                        Err(_nobody_waits) => continue,
                    }
                }
                Err(error) => Err(error),
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    warn!(error = %causes(&error), pause = ?pause, "accept failed");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn take(&self, socket: &std::net::TcpListener) -> io::Result<(TcpStream, PeerAddr)> {
        let (stream, peer) = socket.accept()?;
        stream.set_nonblocking(true)?;
        let stream = TcpStream::from_std(stream)?;
        socket::tune(&stream, &self.timeouts)?;
        Ok((stream, PeerAddr(peer)))
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
