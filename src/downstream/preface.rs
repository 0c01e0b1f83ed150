//! Ends an HTTP/2 connection whose client sends no preface: hyper waits for it without any limit.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A stream whose first bytes must come in time.
#[derive(Debug)]
pub(super) struct Preface<S> {
    stream: S,
    /// Bytes still missing, and until when; `None` once they have come.
    missing: Option<(usize, Pin<Box<Sleep>>)>,
}

impl<S> Preface<S> {
    pub(super) fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            missing: Some((PREFACE, Box::pin(sleep(limit)))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Preface<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some((missing, deadline)) = &mut this.missing else {
            return read;
        };
        if read.is_ready() {
            *missing = missing.saturating_sub(buf.filled().len() - before);
            if *missing == 0 {
                this.missing = None;
            }
            return read;
        }
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no HTTP/2 preface in time",
        )))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Preface<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// `PRI * HTTP/2.0…` and the header of the SETTINGS frame behind it (RFC 9113 §3.4).
const PREFACE: usize = 24 + 9;
