//! A TCP stream that reads ahead of TLS when there is much to read.

use std::{
    fmt::Debug,
    io,
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
pub(crate) struct Ahead {
    tcp: TcpStream,
    /// Read and not asked for yet.
    ahead: BytesMut,
    /// The last read found more than was asked for.
    is_bulk: bool,
    /// Dropped with the socket.
    rider: Option<Box<dyn Debug + Send + Sync>>,
}

impl Ahead {
    pub(crate) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            ahead: BytesMut::new(),
            is_bulk: false,
            rider: None,
        }
    }

    /// Keeps this for as long as the socket is open, whatever becomes of the layers above it.
    pub(crate) fn carrying(mut self, rider: Box<dyn Debug + Send + Sync>) -> Self {
        self.rider = Some(rider);
        self
    }

    /// The socket, for its settings.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn hand_over(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.ahead.len().min(buf.remaining());
        if let Some(part) = self.ahead.get(..length) {
            buf.put_slice(part);
        }
        self.ahead.advance(length);
    }
}

impl AsyncRead for Ahead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            this.hand_over(buf);
            return Poll::Ready(Ok(()));
        }
        if !this.is_bulk {
            let asked = buf.remaining();
            ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
            this.is_bulk = asked > 0 && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        // Asked first, so that no buffer is made or kept for a socket that has nothing.
        if this.tcp.poll_read_ready(cx)?.is_pending() {
            this.ahead = BytesMut::new();
            return Poll::Pending;
        }
        this.ahead.reserve(AHEAD);
        let read = poll_read_buf(Pin::new(&mut this.tcp), cx, &mut this.ahead);
        this.is_bulk = this.ahead.len() > buf.remaining();
        this.hand_over(buf);
        if !this.is_bulk {
            this.ahead = BytesMut::new();
        }
        read.map_ok(drop)
    }
}

impl AsyncWrite for Ahead {
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
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

/// Four full TLS records.
const AHEAD: usize = 64 * 1024;

#[cfg(test)]
impl Ahead {
    /// Bytes of memory held for what was read ahead.
    pub(super) fn held(&self) -> usize {
        self.ahead.capacity()
    }
}
