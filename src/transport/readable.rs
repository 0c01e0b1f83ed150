//! A TLS stream that is asked for nothing before the socket has something.

use std::{
    fmt::Debug,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use super::{ReadAhead, SharedIo};

/// A stream that knows whether a read would find something.
pub(crate) trait Readable: AsyncRead + AsyncWrite + Debug + Send + Unpin {
    /// Pending, and woken later as by a read, if a read would find nothing.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Another handle of the stream, if it has been divided.
    fn half(&self) -> Option<SharedIo> {
        None
    }

    /// Reads if there is something. HTTP tries to read each time it is polled, and a try that finds
    /// nothing costs a way down through TLS and an error on the way back up.
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
        poll_below(io, session.wants_read(), cx)
    }
}

impl Readable for client::TlsStream<ReadAhead> {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (io, session) = self.get_mut();
        poll_below(io, session.wants_read(), cx)
    }
}

/// Whether TLS has something already, or else the socket.
fn poll_below(io: &mut ReadAhead, wants_read: bool, cx: &mut Context<'_>) -> Poll<()> {
    if wants_read {
        io.poll_readable(cx)
    } else {
        Poll::Ready(())
    }
}
