//! The body of a request, read from the connection of its client by whatever sends it on.
//!
//! While it is read, the body has the unread bytes of the connection. The connection gets them back at the end
//! of the body, or when the body is dropped, and then knows whether another request may follow.

use std::{
    io,
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
        if !self.wire.unread.is_empty() {
            return Ok(());
        }
        let Some(expects) = self.expects_continue.take() else {
            return Ok(());
        };
        if !expects.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        self.wire.with_io(|mut io| {
            // All earlier responses were flushed, so TLS has room for these few bytes.
            match Pin::new(&mut io).poll_write(cx, CONTINUE) {
                Poll::Ready(Ok(written)) if written == CONTINUE.len() => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(_)) | Poll::Pending => return Err(io::ErrorKind::WriteZero.into()),
            }
            match Pin::new(&mut io).poll_flush(cx) {
                Poll::Ready(Err(error)) => Err(error),
                Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
            }
        })
    }

    fn give_back(&mut self) {
        if let Some(end) = self.end.take() {
            let unread = std::mem::take(&mut self.wire.unread);
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
