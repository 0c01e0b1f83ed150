//! Collects the frames that HTTP/2 writes during one poll, and then sends them as few TLS records in one
//! system call.
//!
//! h2 flushes after every frame that carries a body. Sixteen small responses that are ready together
//! would cost sixteen TLS records and sixteen system calls; with this type they cost one record and one call.

use std::{
    future::Future,
    io::{self, Write as _},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{client, server};

use super::{
    ReadAhead, Readable,
    turn::{MAX_BYTES_PER_TURN, yield_turn},
};
use crate::ending::EndReason;

/// A TLS stream that can encrypt plaintext without sending it.
pub(crate) trait TlsWriter: Readable {
    /// Encrypts these two pieces into one TLS record, to be sent by the next flush. Returns how many
    /// bytes were taken.
    ///
    /// # Errors
    ///
    /// When the TLS session cannot write.
    fn write_record(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize>;

    /// Bounds the bytes of records that wait to be sent.
    fn set_buffer_limit(&mut self, bytes: usize);
}

impl TlsWriter for server::TlsStream<ReadAhead> {
    fn write_record(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize> {
        let mut writer = self.get_mut().1.writer();
        writer.write_vectored(&pieces.map(io::IoSlice::new))
    }

    fn set_buffer_limit(&mut self, bytes: usize) {
        self.get_mut().1.set_buffer_limit(Some(bytes));
    }
}

impl TlsWriter for client::TlsStream<ReadAhead> {
    fn write_record(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize> {
        let mut writer = self.get_mut().1.writer();
        writer.write_vectored(&pieces.map(io::IoSlice::new))
    }

    fn set_buffer_limit(&mut self, bytes: usize) {
        self.get_mut().1.set_buffer_limit(Some(bytes));
    }
}

/// A TLS stream whose writes are sent after [`WriteBatcher::drive`] has polled its user.
///
/// It is a handle, cloned once: h2 owns its stream and does not give it out, so the user reads
/// and writes through one handle, and the driver sends through the other.
#[derive(Debug)]
pub(crate) struct WriteBatcher<S>(Arc<Mutex<BatchState<S>>>);

#[derive(Debug)]
struct BatchState<S> {
    stream: S,
    /// Small writes that will share a record. It holds no memory while it is empty.
    small: Vec<u8>,
    /// Bytes in records that were not flushed yet.
    unsent: usize,
    /// Whether the user waits for room, and may have written a part of a frame.
    is_full: bool,
    /// Whether the user was told to wait, and must be polled again.
    turned_away: bool,
    /// Why sending failed, kept until the user's next read or write returns it.
    failed: Option<io::Error>,
    /// How the peer has ended the connection.
    read_end: Option<EndReason>,
}

impl<S> Clone for WriteBatcher<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: TlsWriter> WriteBatcher<S> {
    pub(crate) fn new(mut stream: S) -> Self {
        stream.set_buffer_limit(MAX_TLS_BUFFER);
        Self(Arc::new(Mutex::new(BatchState {
            stream,
            small: Vec::new(),
            unsent: 0,
            is_full: false,
            turned_away: false,
            failed: None,
            read_end: None,
        })))
    }

    /// Polls the user of this stream, then sends the bytes that it wrote, at most one batch. If it has more to write,
    /// it is polled again after the other tasks of this thread.
    pub(crate) fn drive<F: Future>(
        &self,
        user: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let mut state = self.lock();
        if state.is_full {
            state.send(cx);
        }
        drop(state);
        let polled = user.poll(cx);
        let mut state = self.lock();
        if state.send(cx) && mem::take(&mut state.turned_away) {
            let _pending: Poll<()> = yield_turn(cx);
        }
        polled
    }

    /// Whether the user waits for room, and may have written a part of a frame.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().is_full
    }

    /// How the peer has ended the connection. h2 does not pass that on in every case. `None` while it is open.
    pub(crate) fn read_end(&self) -> Option<EndReason> {
        self.lock().read_end
    }

    fn lock(&self) -> MutexGuard<'_, BatchState<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: TlsWriter> BatchState<S> {
    fn gather(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        self.is_full = self.unsent + self.small.len() >= MAX_BYTES_PER_TURN;
        if self.is_full {
            // The driver polls the user again when there is room.
            self.turned_away = true;
            return Poll::Pending;
        }
        // A full record is encrypted from where the bytes are; only a remainder is copied.
        let room = MAX_RECORD - self.small.len();
        if let Some(first) = bytes.get(..room) {
            self.write_record(first)?;
            return Poll::Ready(Ok(room));
        }
        if self.small.capacity() == 0 {
            self.small.reserve_exact(MAX_RECORD);
        }
        self.small.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Encrypts the small writes and `more` into one record.
    fn write_record(&mut self, more: &[u8]) -> io::Result<()> {
        let length = self.small.len() + more.len();
        if length == 0 {
            return Ok(());
        }
        let taken = self.stream.write_record([&self.small, more])?;
        self.small = Vec::new();
        self.unsent += taken;
        if taken < length {
            return Err(io::Error::other("the TLS buffer is full"));
        }
        Ok(())
    }

    /// Sends what was written. Returns whether there is room again, or an error to tell the user.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let sent = self.poll_send(cx);
        let is_pending = sent.is_pending();
        if let Poll::Ready(Err(error)) = sent
            && self.failed.is_none()
        {
            self.failed = Some(error);
            // The user learns of the error in its next read or write, so it must be polled again.
            cx.waker().wake_by_ref();
        }
        !is_pending
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write_record(&[])?;
        if self.unsent > 0 {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unsent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: TlsWriter> AsyncRead for WriteBatcher<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        let before = buf.filled().len();
        let read = match state.failed.take() {
            Some(error) => Err(error),
            None => ready!(state.stream.poll_read_if_ready(cx, buf)),
        };
        match &read {
            Ok(()) if buf.filled().len() > before => {}
            Ok(()) => state.read_end = Some(EndReason::Eof),
            Err(error) => state.read_end = Some(EndReason::from_io(error)),
        }
        Poll::Ready(read)
    }
}

impl<S: TlsWriter> AsyncWrite for WriteBatcher<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lock().gather(buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.lock();
        let mut taken = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match state.gather(buf) {
                Poll::Ready(Ok(part)) => {
                    taken += part;
                    if part < buf.len() {
                        break;
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if taken == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does not wait: the driver sends as soon as the user was polled.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let failed = self.lock().failed.take();
        Poll::Ready(failed.map_or(Ok(()), Err))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        state.write_record(&[])?;
        Pin::new(&mut state.stream).poll_shutdown(cx)
    }
}

/// Plaintext bytes that one TLS record carries (RFC 8446 §5.1).
const MAX_RECORD: usize = 16 * 1024;
/// Room for a batch, for one more record, and for the overhead of small records.
const MAX_TLS_BUFFER: usize = 2 * MAX_BYTES_PER_TURN;

#[cfg(test)]
impl<S> WriteBatcher<S> {
    /// Passes the stream and the size of the buffer for small writes.
    pub(super) fn inspect(&self, look: impl FnOnce(&S, usize)) {
        let state = self.0.lock().unwrap();
        look(&state.stream, state.small.capacity());
    }
}
