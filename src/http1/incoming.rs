//! The body of a request, read from the connection of its client by whatever sends it on.
//!
//! While it is read, the body has the unread bytes of the connection. The connection gets them back at the end
//! of the body, or when the body is dropped, and then knows whether another request may follow.

use std::{
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::{io::AsyncWrite as _, sync::oneshot};

use super::{BodyDecoder, MessageError, Wire};

/// The body of one request, without its trailers.
#[derive(Debug)]
pub(crate) struct IncomingBody {
    wire: Wire,
    decoder: BodyDecoder,
    /// `None` after the bytes went back.
    end: Option<oneshot::Sender<BodyEnd>>,
    /// Set while the client may wait for a 100. Cleared by the side that writes first, this one or the response.
    expects_continue: Option<Arc<AtomicBool>>,
    /// A 100 was written, but not all of it was flushed.
    flushes_continue: bool,
}

/// What the connection gets back.
#[derive(Debug)]
pub(crate) struct BodyEnd {
    pub(crate) unread: Bytes,
    /// Where in the body these bytes begin.
    pub(crate) decoder: BodyDecoder,
}

impl IncomingBody {
    /// A body on this wire. The receiver gets the unread bytes back.
    pub(crate) fn new(
        wire: Wire,
        decoder: BodyDecoder,
        expects_continue: Option<Arc<AtomicBool>>,
    ) -> (Self, oneshot::Receiver<BodyEnd>) {
        let (end, returned) = oneshot::channel();
        let body = Self {
            wire,
            decoder,
            end: Some(end),
            expects_continue,
            flushes_continue: false,
        };
        (body, returned)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.decoder == BodyDecoder::Complete
    }

    /// The next piece of data, never empty; `None` only at a complete end.
    ///
    /// # Errors
    ///
    /// When the body ended early or is malformed.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, MessageError>>> {
        loop {
            // Trailers are dropped: kube-apiserver reads none, and they could name fields that were checked in
            // the head.
            let data = match self.decoder.decode(&mut self.wire.unread)? {
                Some(frame) => frame.into_data().ok().filter(|data| !data.is_empty()),
                None => None,
            };
            if self.is_end_stream() {
                self.give_back();
            }
            if let Some(data) = data {
                return Poll::Ready(Some(Ok(data)));
            }
            if self.is_end_stream() {
                return Poll::Ready(None);
            }
            // The connection reads on itself then, to discard the rest.
            if self.end.as_ref().is_some_and(oneshot::Sender::is_closed) {
                return Poll::Ready(Some(Err(MessageError::Cut)));
            }
            self.write_continue(cx)?;
            let Poll::Ready(read) = self.wire.poll_more(cx) else {
                return self.poll_connection_ended(cx);
            };
            if read? == 0 {
                return Poll::Ready(Some(Err(MessageError::Cut)));
            }
        }
    }

    /// Ready with an error once the connection has ended. A task of its own may still read the body, and would
    /// keep the socket open.
    fn poll_connection_ended(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, MessageError>>> {
        let ended = self.end.as_mut().map(|end| end.poll_closed(cx));
        match ended {
            Some(Poll::Ready(())) => Poll::Ready(Some(Err(MessageError::Cut))),
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }

    /// Tells the client to send the body, if it waits for that.
    fn write_continue(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.flushes_continue && !self.wire.unread.is_empty() {
            return Ok(());
        }
        let Some(expects) = self.expects_continue.take() else {
            return Ok(());
        };
        // A response that has begun flushes what was written before it. A flush from here could take its wake-up.
        if !expects.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let flushes = mem::replace(&mut self.flushes_continue, true);
        let flushed = self.wire.with_io(|mut io| {
            if !flushes {
                // All earlier responses were flushed, so TLS has room for these few bytes.
                match Pin::new(&mut io).poll_write(cx, CONTINUE) {
                    Poll::Ready(Ok(written)) if written == CONTINUE.len() => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(_)) | Poll::Pending => {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                }
            }
            Pin::new(&mut io).poll_flush(cx)
        });
        let Poll::Ready(flushed) = flushed else {
            // The client still waits. The next call flushes again.
            expects.store(true, Ordering::Relaxed);
            self.expects_continue = Some(expects);
            return Ok(());
        };
        flushed
    }

    fn give_back(&mut self) {
        if let Some(end) = self.end.take() {
            let unread = mem::take(&mut self.wire.unread);
            let decoder = self.decoder;
            // An error means that the connection has ended.
            end.send(BodyEnd { unread, decoder }).ok();
        }
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// RFC 9110 §15.2.1.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
