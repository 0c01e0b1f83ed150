//! A connection that has left HTTP: a plain stream of bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Buf as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::wire::Wire;

/// The connection behind a 101. What came in one piece with the 101 is read first.
#[derive(Debug)]
pub struct Upgraded(pub(super) Wire);

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Wire { io, unread, .. } = &mut self.0;
        if unread.is_empty() {
            return io.poll_read_if_ready(cx, buf);
        }
        let length = unread.len().min(buf.remaining());
        if let Some(part) = unread.get(..length) {
            buf.put_slice(part);
        }
        unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.io).poll_shutdown(cx)
    }
}
