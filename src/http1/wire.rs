//! The stream below HTTP/1.1, with the bytes that were read and not used yet.
//!
//! There is a read buffer only while it holds data: a silent connection holds none.

use std::{
    future::{Future as _, poll_fn},
    io, mem,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, Empty, ReadBuf, empty},
    task::coop::unconstrained,
};
use tokio_util::io::poll_read_buf;

use super::Outgoing;
use crate::transport::Readable;

/// An established stream.
#[derive(Debug)]
pub(crate) struct Wire {
    io: Io,
    pub(crate) unread: Bytes,
    /// Bytes that the next read has room for.
    room: usize,
    /// No request runs on it, so closing it may look like an orderly end. False in a tunnel, so that an abort
    /// sends no `close_notify`.
    pub(crate) is_idle: bool,
}

/// The stream itself.
#[derive(Debug)]
enum Io {
    Owned(Box<dyn Readable>),
    /// The rest of an upload is sent by a task of its own while the response is read. One handle reads
    /// and the other writes, so that neither takes the wake-ups of the other.
    Shared(SharedIo),
}

/// A handle of a stream, which is closed when all handles are dropped.
#[derive(Debug, Clone)]
pub(crate) struct SharedIo(Arc<Mutex<Box<dyn Readable>>>);

impl SharedIo {
    /// Runs `use_io` with the stream.
    pub(crate) fn with<T>(&self, use_io: impl FnOnce(&mut dyn Readable) -> T) -> T {
        use_io(&mut **self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wire {
    pub(crate) fn new(io: Box<dyn Readable>) -> Self {
        Self {
            io: Io::Owned(io),
            unread: Bytes::new(),
            room: MIN_READ,
            is_idle: false,
        }
    }

    /// Runs `use_io` with the stream.
    pub(crate) fn with_io<T>(&mut self, use_io: impl FnOnce(&mut dyn Readable) -> T) -> T {
        match &mut self.io {
            Io::Owned(io) => use_io(&mut **io),
            Io::Shared(io) => io.with(use_io),
        }
    }

    /// A wire for the reader of a request body, which takes the unread bytes along. Until they come back, only
    /// that reader reads, and this side writes.
    pub(crate) fn lend_reader(&mut self) -> Self {
        Self {
            io: Io::Shared(self.share_io()),
            unread: mem::take(&mut self.unread),
            room: self.room,
            is_idle: false,
        }
    }

    /// A second handle of the stream.
    pub(crate) fn share_io(&mut self) -> SharedIo {
        let shared = match &mut self.io {
            Io::Shared(shared) => return shared.clone(),
            Io::Owned(io) => SharedIo(Arc::new(Mutex::new(mem::replace(io, Box::new(empty()))))),
        };
        self.io = Io::Shared(shared.clone());
        shared
    }

    /// Writes once. Returns how many bytes were taken.
    pub(crate) fn poll_write(
        &mut self,
        outgoing: &mut Outgoing,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.with_io(|io| outgoing.poll_write(io, cx))
    }

    /// Reads more bytes into `unread`. Returns how many; 0 after the peer closed the connection.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (unread, room) = (mem::take(&mut self.unread), self.room);
        let (unread, read) = self.with_io(|io| {
            if io.poll_readable(cx).is_pending() {
                return (unread, Poll::Pending);
            }
            let mut buffer = unread
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&*shared));
            buffer.reserve(room);
            let read = poll_read_buf(Pin::new(io), cx, &mut buffer);
            // An empty buffer would keep its memory.
            if buffer.is_empty() {
                return (Bytes::new(), read);
            }
            (buffer.freeze(), read)
        });
        self.unread = unread;
        let read = ready!(read)?;
        if read >= room {
            self.room = MAX_READ;
        } else if read <= MIN_READ {
            self.room = MIN_READ;
        }
        Poll::Ready(Ok(read))
    }

    /// The stream of bytes after a 101.
    pub(crate) fn into_upgraded(self) -> Upgraded {
        Upgraded(self)
    }

    /// Whether the connection is open and nothing was received. Data on a connection without a request is
    /// its end, or a response that belongs to no request.
    pub(crate) fn is_silent(&mut self) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        self.with_io(|io| io.begin_turn());
        let mut byte = [0; 1];
        let read = poll_fn(|cx| {
            self.with_io(|io| io.poll_read_if_ready(cx, &mut ReadBuf::new(&mut byte)))
        });
        // A task that did much without a pause gets "not ready" from tokio. Without `unconstrained` that
        // would look like silence, and a request would be sent on a connection that was closed, or that
        // holds a response to another request.
        let cx = &mut Context::from_waker(Waker::noop());
        pin!(unconstrained(read)).poll(cx).is_pending()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.is_idle {
            // Sends `close_notify` if the socket takes it now; the proxy does not wait for more.
            let cx = &mut Context::from_waker(Waker::noop());
            let _done = self.with_io(|io| {
                io.begin_turn();
                Pin::new(io).poll_shutdown(cx)
            });
        }
    }
}

/// Takes the place of a stream while [`Wire::share_io`] moves it.
impl Readable for Empty {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// The stream of bytes after a 101, on either side. Bytes that arrived before are read first.
#[derive(Debug)]
pub struct Upgraded(Wire);

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let unread = &mut self.0.unread;
        if unread.is_empty() {
            return self.0.with_io(|io| io.poll_read_if_ready(cx, buf));
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
        self.0.with_io(|io| Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with_io(|io| Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.with_io(|io| Pin::new(io).poll_shutdown(cx))
    }
}
/// Room for most heads and for the events of a watch. See `MIN_READ` in `transport/tls`.
const MIN_READ: usize = 5 * 1024;
/// Room for the most that rustls returns from one read: a full record (RFC 8446 §5.1).
const MAX_READ: usize = 16 * 1024;
