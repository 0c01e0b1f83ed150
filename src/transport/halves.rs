//! One stream in two hands: the rest of an upload is sent by a task of its own while the answer is read.

use std::{
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, Empty, ReadBuf, empty};

use super::Readable;

/// One of two handles of a stream; it is closed when both are gone. One of them reads and the other writes,
/// so that neither takes the wake-up of the other.
#[derive(Debug)]
pub(crate) struct SharedIo(Arc<Mutex<Box<dyn Readable>>>);

impl SharedIo {
    /// Divides this stream, unless it is one of two handles already; the other handle is what is returned.
    pub(crate) fn of(io: &mut Box<dyn Readable>) -> Self {
        if let Some(half) = io.half() {
            return half;
        }
        let whole = mem::replace(io, Box::new(empty()));
        let half = Self(Arc::new(Mutex::new(whole)));
        *io = Box::new(Self(Arc::clone(&half.0)));
        half
    }

    fn io(&self) -> MutexGuard<'_, Box<dyn Readable>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Readable for SharedIo {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.io().poll_readable(cx)
    }

    fn half(&self) -> Option<SharedIo> {
        Some(Self(Arc::clone(&self.0)))
    }
}

/// Stands in for a moment.
impl Readable for Empty {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl AsyncRead for SharedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.io()).poll_read(cx, buf)
    }
}

impl AsyncWrite for SharedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.io()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.io()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.io()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.io()).poll_shutdown(cx)
    }
}
