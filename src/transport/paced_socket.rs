//! A TCP stream that pauses after 64 KiB per direction ([`Turn`]), so that the other connections of its thread are served
//! meanwhile.

use std::{
    any::Any,
    fmt::Debug,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use super::turn::Turn;

/// A TCP stream that lets others run.
#[derive(Debug)]
pub(crate) struct PacedSocket {
    tcp: TcpStream,
    turn: Turn,
    /// A guard that is dropped with the socket.
    on_close: Option<Box<dyn Any + Send + Sync>>,
}

impl PacedSocket {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
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
        &self.tcp
    }

    /// The socket without its guard.
    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    /// See [`Readable::poll_readable`].
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is dropped here, because the read that follows returns it.
        let ready = self.tcp.poll_read_ready(cx).map(drop);
        if ready.is_pending() {
            self.turn = Turn::default();
        }
        ready
    }

    /// See [`Readable::begin_turn`].
    pub(super) fn begin_turn(&mut self) {
        self.turn = Turn::default();
    }

    /// Reads at most `room` bytes to the end of `buffer`. Returns how many, and whether there may be more.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<(usize, bool)>> {
        let room = ready!(self.turn.poll_read_room(cx)).min(room);
        // Check first, so that an empty socket costs no buffer.
        ready!(self.poll_readable(cx));
        buffer.reserve(room);
        let mut tail = buffer.limit(room);
        let read = ready!(poll_read_buf(Pin::new(&mut self.tcp), cx, &mut tail))?;
        self.turn.read += read;
        Poll::Ready(Ok((read, read == room)))
    }

    /// Writes once. Returns how many bytes were taken.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.turn.poll_write_room(cx));
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        match &written {
            Poll::Ready(Ok(count)) => self.turn.written += count,
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.turn = Turn::default(),
        }
        written
    }

    /// Ends the stream to the peer.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.tcp).poll_shutdown(cx)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            ended => Poll::Ready(ended),
        }
    }
}

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
