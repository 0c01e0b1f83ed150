//! An outbound proxy, through which the proxy under test reaches an apiserver.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Identity, provider};

/// How an [`Outbound`] treats a connection.
#[derive(Debug, Clone)]
pub enum Script {
    /// Answers the head of a request with these bytes, and connects to the target.
    Connects(&'static str),
    /// SOCKS 5: this user name and password, and this reply code; connects to the target if it is 0.
    Socks(Option<(&'static str, &'static str)>, u8),
    /// Answers the first bytes with these, and keeps the connection open.
    Says(Vec<u8>),
    /// Answers the first bytes with these, and closes the connection.
    Ends(Vec<u8>),
}

/// The head with which a proxy says that the connection is open.
pub const CONNECTED: &str = "HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n";

/// A running outbound proxy; drop stops it.
#[derive(Debug)]
pub struct Outbound {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Outbound {
    /// Listens on a free port of 127.0.0.1, with TLS if there is an identity. Every connection leads to `target`,
    /// whatever the client asks for.
    ///
    /// # Panics
    ///
    /// When no port is available.
    pub async fn start(script: Script, target: SocketAddr, tls: Option<&Identity>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 is available");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let tls = tls.map(|identity| {
            let config = ServerConfig::builder_with_provider(provider())
                .with_safe_default_protocol_versions()
                .expect("the provider has both versions of TLS")
                .with_no_client_auth()
                .with_single_cert(identity.chain.clone(), identity.key())
                .expect("the key belongs to the certificate");
            TlsAcceptor::from(Arc::new(config))
        });
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (script, tls, seen) = (script.clone(), tls.clone(), Arc::clone(&seen));
                open.spawn(async move {
                    // A client may leave at any time.
                    let _ended = match tls {
                        Some(tls) => match tls.accept(tcp).await {
                            Ok(stream) => serve(stream, script, target, &seen).await,
                            Err(error) => Err(error),
                        },
                        None => serve(tcp, script, target, &seen).await,
                    };
                });
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What each client has asked for: the head of its request, or for SOCKS `USER:PASSWORD NAME:PORT`.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Outbound {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    script: Script,
    target: SocketAddr,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let note = |text: String| {
        let mut all = asked.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(text);
    };
    match script {
        Script::Connects(head) => {
            note(read_head(&mut stream).await?);
            let mut server = TcpStream::connect(target).await?;
            stream.write_all(head.as_bytes()).await?;
            stream.flush().await?;
            copy_bidirectional(&mut stream, &mut server).await?;
        }
        Script::Says(bytes) => {
            stream.read_u8().await?;
            // A client that has read enough closes the connection.
            stream.write_all(&bytes).await?;
            stream.flush().await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        }
        Script::Ends(bytes) => {
            note(read_head(&mut stream).await?);
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Script::Socks(login, reply) => {
            let Some(user) = socks_login(&mut stream, login).await? else {
                return Ok(());
            };
            let mut head = [0; 4];
            stream.read_exact(&mut head).await?;
            let name = match head {
                [5, 1, 0, 3] => {
                    let name = read_text(&mut stream).await?;
                    String::from_utf8_lossy(&name).into_owned()
                }
                [5, 1, 0, 1] => {
                    let mut address = [0; 4];
                    stream.read_exact(&mut address).await?;
                    std::net::Ipv4Addr::from(address).to_string()
                }
                _ => return Ok(()),
            };
            let port = stream.read_u16().await?;
            note(format!("{user} {name}:{port}"));
            // The address of a socket as a name, the rarest kind.
            stream.write_all(&[5, reply, 0, 3, 1, b'x', 0, 1]).await?;
            if reply == 0 {
                let mut server = TcpStream::connect(target).await?;
                copy_bidirectional(&mut stream, &mut server).await?;
            }
        }
    }
    Ok(())
}

/// Chooses a method and reads a login; `None` if the client may not go on.
async fn socks_login<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    login: Option<(&str, &str)>,
) -> io::Result<Option<String>> {
    stream.read_u8().await?;
    let methods = read_text(stream).await?;
    let method = if login.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        stream.write_all(&[5, 0xff]).await?;
        return Ok(None);
    }
    // In two pieces, as a network may deliver them.
    stream.write_all(&[5]).await?;
    tokio::task::yield_now().await;
    stream.write_all(&[method]).await?;
    let Some((user, password)) = login else {
        return Ok(Some(String::new()));
    };
    stream.read_u8().await?;
    let given = (read_text(stream).await?, read_text(stream).await?);
    let is_right = given.0 == user.as_bytes() && given.1 == password.as_bytes();
    stream.write_all(&[1, u8::from(!is_right)]).await?;
    Ok(is_right.then(|| format!("{user}:{password}")))
}

/// Bytes after their length.
async fn read_text<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut text = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut text).await?;
    Ok(text)
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
