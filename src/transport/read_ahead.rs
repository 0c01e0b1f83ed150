//! Reads from the socket below TLS: ahead when there is much to read, and not at all when there is nothing.
//!
//! A connection on which nothing arrives holds no buffer here. A connection on which much arrives pauses after
//! 64 KiB ([`Turn`]), so that the others of its thread are served meanwhile.

use std::{
    any::Any,
    fmt::Debug,
    future::poll_fn,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};
use tokio_util::io::poll_read_buf;

use super::turn::Turn;

/// A TCP stream that reads more than it is asked for while the peer sends much.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    socket: Socket,
    /// Bytes that were read and not asked for yet.
    buffer: BytesMut,
    /// Whether the last read found more than was asked for.
    is_bulk: bool,
    /// Whether a read filled all the room that it was given, and no later read has found the socket empty.
    filled: bool,
    turn: Turn,
    /// A guard that is dropped with the socket.
    on_close: Option<Box<dyn Any + Send + Sync>>,
}

impl ReadAhead {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self::over(Socket::Tcp(tcp))
    }

    /// The same over TLS with a proxy on the way, which carries the bytes of this stream.
    pub(crate) fn in_tls(tls: client::TlsStream<TcpStream>) -> Self {
        Self::over(Socket::Tls(Box::new(tls)))
    }

    fn over(socket: Socket) -> Self {
        Self {
            socket,
            buffer: BytesMut::new(),
            is_bulk: false,
            filled: false,
            turn: Turn::default(),
            on_close: None,
        }
    }

    /// Drops `guard` when the socket closes, whatever happens to the layers above.
    pub(crate) fn with_on_close(mut self, guard: Box<dyn Any + Send + Sync>) -> Self {
        self.on_close = Some(guard);
        self
    }

    /// The socket, for its settings.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match &self.socket {
            Socket::Tcp(tcp) => tcp,
            Socket::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Reads the first bytes of a connection ahead and returns them. The next reads begin with them, so that this costs
    /// no system call. Empty at the end of the connection.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub(crate) async fn first_bytes(&mut self) -> io::Result<&[u8]> {
        if self.buffer.is_empty() {
            self.read_more().await?;
        }
        Ok(&self.buffer)
    }

    /// Reads ahead once more, and returns all bytes that were read ahead. No more of them at the end of the connection.
    ///
    /// # Errors
    ///
    /// When the connection fails.
    pub(crate) async fn read_more(&mut self) -> io::Result<&[u8]> {
        poll_fn(|cx| {
            // Check first, so that a silent client costs no buffer.
            ready!(self.socket.poll_read_ready(cx))?;
            self.buffer.reserve(FIRST_READ);
            let mut ahead = (&mut self.buffer).limit(FIRST_READ);
            poll_read_buf(Pin::new(&mut self.socket), cx, &mut ahead)
        })
        .await?;
        Ok(&self.buffer)
    }

    /// Drops bytes that were read ahead, so that the next reads begin after them.
    pub(crate) fn consume(&mut self, count: usize) {
        self.buffer.advance(count.min(self.buffer.len()));
    }

    /// Lets the next reads begin with `bytes`, which were read before.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            let unread = mem::take(&mut self.buffer);
            self.buffer.reserve(bytes.len() + unread.len());
            self.buffer.extend_from_slice(bytes);
            self.buffer.extend_from_slice(&unread);
        }
    }

    /// See [`Readable::poll_readable`].
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.buffer.is_empty() {
            return Poll::Ready(());
        }
        // An error is dropped here, because the read that follows returns it.
        let ready = self.socket.poll_read_ready(cx).map(drop);
        if ready.is_pending() {
            self.turn = Turn::default();
            self.buffer = BytesMut::new();
            // rustls frees the room for large records when it reads again. Proof: tests/it
            // `silent_http2_connection_holds_only_its_frame_buffers`.
            if mem::take(&mut self.filled) {
                return Poll::Ready(());
            }
        }
        ready
    }

    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.buffer.len().min(buf.remaining());
        if let Some(part) = self.buffer.get(..length) {
            buf.put_slice(part);
        }
        self.buffer.advance(length);
        if self.buffer.is_empty() && !self.is_bulk {
            // The first bytes of a connection were read ahead. Nothing else frees them under a tunnel without TLS.
            self.buffer = BytesMut::new();
        }
        self.filled |= buf.remaining() == 0;
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.buffer.is_empty() {
            this.hand_over(buf);
            return Poll::Ready(Ok(()));
        }
        let room = ready!(this.turn.poll_read_room(cx));
        if !this.is_bulk {
            let wanted = buf.remaining();
            if Pin::new(&mut this.socket).poll_read(cx, buf)?.is_pending() {
                this.turn = Turn::default();
                return Poll::Pending;
            }
            this.turn.read += wanted - buf.remaining();
            this.is_bulk = wanted > 0 && buf.remaining() == 0;
            this.filled |= this.is_bulk;
            return Poll::Ready(Ok(()));
        }
        // Check first, so that an empty socket costs no buffer.
        if this.socket.poll_read_ready(cx)?.is_pending() {
            this.turn = Turn::default();
            this.buffer = BytesMut::new();
            return Poll::Pending;
        }
        this.buffer.reserve(room);
        let mut ahead = (&mut this.buffer).limit(room);
        let read = poll_read_buf(Pin::new(&mut this.socket), cx, &mut ahead);
        this.turn.read += this.buffer.len();
        this.is_bulk = this.buffer.len() > buf.remaining();
        this.hand_over(buf);
        if !this.is_bulk {
            this.buffer = BytesMut::new();
        }
        read.map_ok(drop)
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.turn.poll_write_room(cx));
        let socket = Pin::new(&mut this.socket);
        // Usually there is one record, and the kernel writes one buffer faster than a list of one.
        let written = match bufs {
            [only] => socket.poll_write(cx, only),
            _ => socket.poll_write_vectored(cx, bufs),
        };
        match &written {
            Poll::Ready(Ok(count)) => this.turn.written += count,
            Poll::Ready(Err(_)) => {}
            Poll::Pending => this.turn = Turn::default(),
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// What a [`ReadAhead`] reads from.
#[derive(Debug)]
enum Socket {
    /// Every connection, except through an outbound proxy that speaks TLS.
    Tcp(TcpStream),
    /// TLS with such a proxy.
    Tls(Box<client::TlsStream<TcpStream>>),
}

impl Socket {
    /// Ready if a read may find something. TLS may need the rest of a record first: the read is then pending.
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(tcp) => tcp.poll_read_ready(cx),
            Self::Tls(tls) => {
                let (tcp, session) = tls.get_ref();
                if session.wants_read() {
                    tcp.poll_read_ready(cx)
                } else {
                    Poll::Ready(Ok(()))
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// As much as rustls asks for in its first read.
const FIRST_READ: usize = 4 * 1024;

/// A stream that knows whether a read would find something.
pub(crate) trait Readable: AsyncRead + AsyncWrite + Debug + Send + Unpin {
    /// Ready if a read would find data, the end or an error. Otherwise pending, and the task is woken
    /// as by a read.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// The socket, for its settings; `None` in tests.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }

    /// Begins a new turn: the next read and the next write are pending only if the socket is.
    fn begin_turn(&mut self) {}

    /// Reads if there is something to read. HTTP tries to read each time it is polled; a try that finds
    /// nothing would go down through TLS and come back as an error.
    fn poll_read_if_ready(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_readable(cx));
        Pin::new(self).poll_read(cx, buf)
    }
}

impl Readable for server::TlsStream<ReadAhead> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (io, session) = self.get_mut();
        poll_below_tls(io, session.wants_read(), cx)
    }

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0.tcp())
    }

    fn begin_turn(&mut self) {
        self.get_mut().0.turn = Turn::default();
    }
}

impl Readable for client::TlsStream<ReadAhead> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (io, session) = self.get_mut();
        poll_below_tls(io, session.wants_read(), cx)
    }

    fn begin_turn(&mut self) {
        self.get_mut().0.turn = Turn::default();
    }
}

/// TLS wants to read only when it has no plaintext left; then the socket decides.
fn poll_below_tls(io: &mut ReadAhead, wants_read: bool, cx: &mut Context<'_>) -> Poll<()> {
    if wants_read {
        io.poll_readable(cx)
    } else {
        Poll::Ready(())
    }
}

#[cfg(test)]
impl ReadAhead {
    /// Bytes of memory that the read-ahead buffer holds.
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}
