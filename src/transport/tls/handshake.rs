//! The TLS handshake, as a server and as a client.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use rustls::{
    ClientConfig, ServerConfig, client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
};
use rustls_pki_types::ServerName;
use tokio::{io::ReadBuf, net::TcpStream};

use super::{MAX_INCOMING, MIN_READ, PacedSocket, Step, TlsSession, TlsStream, invalid};

/// A connection whose client has not sent its whole `ClientHello` yet.
#[derive(Debug)]
pub(crate) struct ClientHelloReader {
    socket: PacedSocket,
    incoming: BytesMut,
}

impl ClientHelloReader {
    pub(crate) fn new(socket: PacedSocket) -> Self {
        Self {
            socket,
            incoming: BytesMut::new(),
        }
    }

    /// Waits for the first bytes of the connection and returns them. The handshake begins with them. Empty at the end of the
    /// connection.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub(crate) async fn first_bytes(&mut self) -> io::Result<&[u8]> {
        poll_fn(|cx| self.socket.poll_read(cx, &mut self.incoming, MIN_READ)).await?;
        Ok(&self.incoming)
    }

    /// The socket of a client that does not speak TLS.
    pub(crate) fn into_tcp(self) -> TcpStream {
        self.socket.into_tcp()
    }

    /// Reads until the `ClientHello` is complete, or cannot be one. It is judged by [`ClientHelloReader::accept`].
    ///
    /// # Errors
    ///
    /// When the client leaves first.
    pub(crate) async fn read(&mut self) -> io::Result<()> {
        let mut progress = HelloProgress::default();
        while !progress.is_complete(&self.incoming) {
            let read = poll_fn(|cx| self.socket.poll_read(cx, &mut self.incoming, MIN_READ));
            if let (0, _) = read.await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Runs the handshake with these settings.
    ///
    /// # Errors
    ///
    /// When the client breaks TLS, refuses the certificate, or leaves.
    pub(crate) async fn accept(
        self,
        config: Arc<ServerConfig>,
    ) -> io::Result<TlsStream<UnbufferedServerConnection>> {
        let session = UnbufferedServerConnection::new(config).map_err(invalid)?;
        TlsStream::new(self.socket, session, self.incoming)
            .with_handshake()
            .await
    }
}

impl TlsStream<UnbufferedClientConnection> {
    /// Runs the handshake with the server of this name.
    ///
    /// # Errors
    ///
    /// When the server breaks TLS, does not prove its name, or leaves.
    pub(crate) async fn connect(
        socket: PacedSocket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
        Self::new(socket, session, BytesMut::new())
            .with_handshake()
            .await
    }
}

impl<C: TlsSession> TlsStream<C> {
    async fn with_handshake(mut self) -> io::Result<Self> {
        poll_fn(|cx| self.poll_handshake(cx)).await?;
        Ok(self)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let state = self.state();
            if !state.is_handshaking() && !state.wants_write() {
                return self.poll_send(cx);
            }
            // Data that follows the handshake is kept for the first read.
            let step = self.step(&mut ReadBuf::new(&mut []));
            match step {
                Ok(Step::Moved | Step::Data) => {}
                // A resumed session may end with a message of the peer.
                Ok(Step::NeedsMore) if !self.state().is_handshaking() => {
                    return self.poll_send(cx);
                }
                Ok(Step::NeedsMore) => {
                    ready!(self.poll_send(cx))?;
                    if ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(Err(left()));
                    }
                }
                Ok(Step::Closed) => return Poll::Ready(Err(left())),
                Err(error) => {
                    self.send_alert(cx);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

fn left() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the peer left during the TLS handshake",
    )
}

/// How much of a `ClientHello` has arrived, which may come in several records. Decides only when the handshake begins: rustls
/// judges the bytes.
#[derive(Debug, Default)]
pub(super) struct HelloProgress {
    /// Where the first record begins that is not complete.
    at: usize,
    /// Bytes of the message so far.
    received: usize,
    /// The first of them: the type of the message, and its length.
    header: [u8; 4],
}

impl HelloProgress {
    /// Whether all of it is among these bytes, or rustls refuses what is among them.
    pub(super) fn is_complete(&mut self, bytes: &[u8]) -> bool {
        while let Some((&[kind, _, _, high, low], rest)) =
            bytes.get(self.at..).and_then(<[u8]>::split_first_chunk)
        {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if kind != HANDSHAKE || length == 0 {
                return true;
            }
            let Some(payload) = rest.get(..length) else {
                return false;
            };
            let missing = self.header.iter_mut().skip(self.received);
            missing.zip(payload).for_each(|(to, from)| *to = *from);
            self.received += length;
            self.at += RECORD_HEADER + length;
            let [_, a, b, c] = self.header.map(usize::from);
            let message = a << 16 | b << 8 | c;
            if self.received >= MESSAGE_HEADER
                && (message > MAX_MESSAGE || self.received >= MESSAGE_HEADER + message)
            {
                return true;
            }
        }
        bytes.len() >= MAX_INCOMING
    }
}

/// The type of a record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
const RECORD_HEADER: usize = 5;
/// Type and length of a message (RFC 8446 §4).
const MESSAGE_HEADER: usize = 4;
/// rustls refuses longer messages.
const MAX_MESSAGE: usize = 0xffff;
