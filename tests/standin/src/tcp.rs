//! Peers that fail below HTTP, and a TCP relay that a test can freeze or reset.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{broadcast, watch},
    task::{JoinHandle, JoinSet},
};

/// An address that refuses connections: a port that was just released.
///
/// # Panics
///
/// When no port is available.
pub async fn refused() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port of 127.0.0.1 is available");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

/// Closes a connection with a reset.
///
/// # Panics
///
/// When the socket option cannot be set.
pub fn reset(tcp: TcpStream) {
    SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        .expect("the socket accepts the option");
}

/// How a [`Peer`] treats a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Reads everything and writes nothing.
    Silent,
    /// Resets the connection after the first bytes, which are a `ClientHello`.
    ResetInHandshake,
    /// Closes the connection after the first bytes and writes nothing.
    CloseInHandshake,
    /// Responds to the first bytes with these bytes, for instance plain HTTP, and closes the connection.
    Responds(Vec<u8>),
}

/// A TCP server that never completes a TLS handshake.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    connections: Arc<watch::Sender<usize>>,
    task: JoinHandle<()>,
}

impl Peer {
    /// Listens on a free port of 127.0.0.1 until the value is dropped.
    ///
    /// # Panics
    ///
    /// When no port is available.
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 is available");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let connections = Arc::new(watch::Sender::new(0));
        let counted = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                counted.send_modify(|count| *count += 1);
                open.spawn(behave(tcp, behaviour.clone()));
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn behave(mut tcp: TcpStream, behaviour: Behaviour) {
    let mut space = [0; 4096];
    loop {
        match tcp.read(&mut space).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match behaviour {
            Behaviour::Silent => {}
            Behaviour::ResetInHandshake => return reset(tcp),
            Behaviour::CloseInHandshake => return,
            Behaviour::Responds(bytes) => {
                // The client may be gone.
                drop(tcp.write_all(&bytes).await);
                drop(tcp.shutdown().await);
                return;
            }
        }
    }
}

/// Forwards TCP connections to a target. A test can freeze the traffic or reset the connections.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    frozen: Arc<watch::Sender<bool>>,
    resets: broadcast::Sender<()>,
    target: Arc<Mutex<SocketAddr>>,
    connections: Arc<watch::Sender<usize>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 until the value is dropped.
    ///
    /// # Panics
    ///
    /// When no port is available.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 is available");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let frozen = Arc::new(watch::Sender::new(false));
        let resets = broadcast::Sender::new(1);
        let target = Arc::new(Mutex::new(target));
        let connections = Arc::new(watch::Sender::new(0));
        let task = {
            let (frozen, resets, target) =
                (Arc::clone(&frozen), resets.clone(), Arc::clone(&target));
            let counted = Arc::clone(&connections);
            tokio::spawn(async move {
                let mut open = JoinSet::new();
                while let Ok((tcp, _)) = listener.accept().await {
                    counted.send_modify(|count| *count += 1);
                    let target = *target.lock().unwrap_or_else(PoisonError::into_inner);
                    open.spawn(relay(tcp, target, frozen.subscribe(), resets.subscribe()));
                }
            })
        };
        Self {
            address,
            frozen,
            resets,
            target,
            connections,
            task,
        }
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Stops forwarding in both directions without closing anything, like a network that loses all packets.
    /// The kernel accepts new connections, and they hang. The kernels still acknowledge the bytes that fit
    /// their buffers, so TCP itself notices nothing: this simulates a host that hangs, not one that is gone.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Forwards again, beginning with the bytes that were held back.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Resets every open connection, on both sides. New connections work.
    pub fn reset_all(&self) {
        // Fails only if no connection is open.
        drop(self.resets.send(()));
    }

    /// Sends new connections to another target.
    pub fn retarget(&self, target: SocketAddr) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    mut client: TcpStream,
    target: SocketAddr,
    mut frozen: watch::Receiver<bool>,
    mut resets: broadcast::Receiver<()>,
) {
    if frozen.wait_for(|frozen| !frozen).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else {
        return reset(client);
    };
    for tcp in [&client, &server] {
        tcp.set_nodelay(true)
            .expect("a new socket accepts the option");
    }
    let intact = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let both = async {
            tokio::try_join!(
                pass(from_client, to_server, frozen.clone()),
                pass(from_server, to_client, frozen.clone())
            )
        };
        tokio::select! {
            ended = both => ended.is_ok(),
            _ = resets.recv() => false,
        }
    };
    if !intact {
        reset(client);
        reset(server);
    }
}

/// Copies one direction until its end. While `frozen` is true, no byte is forwarded.
async fn pass(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut frozen: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut space = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut space).await?;
        frozen
            .wait_for(|frozen| !frozen)
            .await
            .map_err(io::Error::other)?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&space[..count]).await?;
    }
}
