//! Peers that fail below HTTP, and a relay that can be frozen or cut.

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

/// An address that refuses connections: a port that was free a moment ago.
///
/// # Panics
///
/// When no port can be had.
pub async fn refused() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port of 127.0.0.1 can be had");
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

/// Closes a connection with a reset.
///
/// # Panics
///
/// When the socket takes no options.
pub fn reset(tcp: TcpStream) {
    SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        .expect("a socket takes options");
}

/// What a [`Peer`] does with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Reads all that comes and says nothing.
    Silent,
    /// Resets once the first bytes have come, which are a `ClientHello`.
    ResetInHandshake,
    /// Closes without sending a byte, once the first bytes have arrived.
    CloseInHandshake,
    /// Answers the first bytes with these and closes, for instance a plain HTTP response.
    Says(Vec<u8>),
}

/// A TCP server that never gets as far as TLS.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    connections: Arc<watch::Sender<usize>>,
    task: JoinHandle<()>,
}

impl Peer {
    /// Listens on a free port of 127.0.0.1 until it is dropped.
    ///
    /// # Panics
    ///
    /// When no port can be had.
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 can be had");
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

    /// Where it listens.
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
            Behaviour::Says(words) => {
                // A client that is gone need not hear it.
                drop(tcp.write_all(&words).await);
                drop(tcp.shutdown().await);
                return;
            }
        }
    }
}

/// Passes TCP connections on to a target, until it is told to hold still or to cut them.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    frozen: Arc<watch::Sender<bool>>,
    cut: broadcast::Sender<()>,
    target: Arc<Mutex<SocketAddr>>,
    connections: Arc<watch::Sender<usize>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 until it is dropped.
    ///
    /// # Panics
    ///
    /// When no port can be had.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 can be had");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let frozen = Arc::new(watch::Sender::new(false));
        let cut = broadcast::Sender::new(1);
        let target = Arc::new(Mutex::new(target));
        let connections = Arc::new(watch::Sender::new(0));
        let task = {
            let (frozen, cut, target) = (Arc::clone(&frozen), cut.clone(), Arc::clone(&target));
            let counted = Arc::clone(&connections);
            tokio::spawn(async move {
                let mut open = JoinSet::new();
                while let Ok((tcp, _)) = listener.accept().await {
                    counted.send_modify(|count| *count += 1);
                    let target = *target.lock().unwrap_or_else(PoisonError::into_inner);
                    open.spawn(relay(tcp, target, frozen.subscribe(), cut.subscribe()));
                }
            })
        };
        Self {
            address,
            frozen,
            cut,
            target,
            connections,
            task,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.connections.borrow()
    }

    /// Passes nothing on any more, in neither direction, and says nothing: a network that lost its packets.
    /// New connections are accepted by the kernel and hang. The kernels still acknowledge what fits their
    /// buffers, so TCP itself notices nothing: this is a host that hangs rather than one that is gone.
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Passes everything on again, what was held back first.
    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Resets every connection, on both sides. New ones work.
    pub fn cut(&self) {
        // Fails only without connections.
        drop(self.cut.send(()));
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
    mut cut: broadcast::Receiver<()>,
) {
    if frozen.wait_for(|frozen| !frozen).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else {
        return reset(client);
    };
    for tcp in [&client, &server] {
        tcp.set_nodelay(true).expect("a fresh socket takes options");
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
            _ = cut.recv() => false,
        }
    };
    if !intact {
        reset(client);
        reset(server);
    }
}

/// Copies one direction until its end; while `frozen` holds, not a byte moves.
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
