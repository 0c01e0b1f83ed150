//! A TCP stream that reads ahead of TLS when there is much to read.

use std::{
    fmt::Debug,
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// A TCP stream. What it has read ahead is kept only until it is asked for: a connection that says
/// nothing holds no buffer.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    tcp: TcpStream,
    /// Read and not asked for yet.
    buffer: BytesMut,
    /// The last read found more than was asked for.
    is_bulk: bool,
    /// A read took all that it had room for, and none has found nothing since.
    filled: bool,
    /// Dropped with the socket.
    on_close: Option<Box<dyn Debug + Send + Sync>>,
}

impl ReadAhead {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            buffer: BytesMut::new(),
            is_bulk: false,
            filled: false,
            on_close: None,
        }
    }

    /// Keeps this for as long as the socket is open, whatever becomes of the layers above it.
    pub(crate) fn with_on_close(mut self, on_close: Box<dyn Debug + Send + Sync>) -> Self {
        self.on_close = Some(on_close);
        self
    }

    /// The socket, for its settings.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Pending, and woken later as by a read, if a read would find nothing.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.buffer.is_empty() {
            return Poll::Ready(());
        }
        // An error is found by the read.
        let ready = self.tcp.poll_read_ready(cx).map(drop);
        if ready.is_pending() {
            self.buffer = BytesMut::new();
            // rustls gives the room for large records back when it reads again. Proof: tests/it
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
        if !this.is_bulk {
            let asked = buf.remaining();
            ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
            this.is_bulk = asked > 0 && buf.remaining() == 0;
            this.filled |= this.is_bulk;
            return Poll::Ready(Ok(()));
        }
        // Asked first, so that no buffer is made or kept for a socket that has nothing.
        if this.tcp.poll_read_ready(cx)?.is_pending() {
            this.buffer = BytesMut::new();
            return Poll::Pending;
        }
        this.buffer.reserve(MAX_READ_AHEAD);
        let read = poll_read_buf(Pin::new(&mut this.tcp), cx, &mut this.buffer);
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Mostly there is one record, and for one piece the kernel has a shorter way.
        if let [only] = bufs {
            return Pin::new(&mut self.tcp).poll_write(cx, only);
        }
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

/// Four full TLS records.
const MAX_READ_AHEAD: usize = 64 * 1024;

#[cfg(test)]
impl ReadAhead {
    /// Bytes of memory held for what was read ahead.
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}
