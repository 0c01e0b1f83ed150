//! The stream below HTTP/1.1, and what was read of it and not used yet.

use std::{
    future::{Future as _, poll_fn},
    mem,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::{io::ReadBuf, task::coop::unconstrained};
use tokio_util::io::poll_read_buf;

use super::H1Error;
use crate::transport::Readable;

/// An established stream. There is a buffer only while there is something in it: a connection that says
/// nothing holds none.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) io: Box<dyn Readable>,
    pub(super) unread: Bytes,
    /// Bytes that the next read has room for.
    room: usize,
    /// Nothing runs on it, so that its end may look like one.
    pub(super) is_idle: bool,
}

impl Wire {
    pub(super) fn new(io: Box<dyn Readable>) -> Self {
        Self {
            io,
            unread: Bytes::new(),
            room: MIN_READ,
            is_idle: false,
        }
    }

    /// Reads more to what is unread; 0 bytes once the connection has ended in order.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, H1Error>> {
        ready!(self.io.poll_readable(cx));
        let mut buffer = mem::take(&mut self.unread)
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&*shared));
        buffer.reserve(self.room);
        let read = poll_read_buf(Pin::new(&mut *self.io), cx, &mut buffer);
        // An empty one would keep its room.
        if !buffer.is_empty() {
            self.unread = buffer.freeze();
        }
        match &read {
            Poll::Ready(Ok(read)) if *read >= self.room => self.room = MAX_READ,
            Poll::Ready(Ok(read)) if *read <= MIN_READ => self.room = MIN_READ,
            Poll::Ready(_) | Poll::Pending => {}
        }
        read.map_err(H1Error::Io)
    }

    /// Whether the connection is open and has nothing to say, as one that nothing runs on must be.
    pub(super) fn is_silent(&mut self) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        let mut one = [0; 1];
        let peer = poll_fn(|cx| self.io.poll_read_if_ready(cx, &mut ReadBuf::new(&mut one)));
        // tokio says "nothing yet" to a task that has done much without a pause. Taken for silence, it
        // would send a request on a connection that has ended, or that has an answer to another one.
        let cx = &mut Context::from_waker(Waker::noop());
        pin!(unconstrained(peer)).poll(cx).is_pending()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.is_idle {
            // `close_notify` as far as the socket takes it; nobody waits for more.
            let cx = &mut Context::from_waker(Waker::noop());
            let _done = Pin::new(&mut *self.io).poll_shutdown(cx);
        }
    }
}

/// Room for most heads and for the events of a watch.
const MIN_READ: usize = 4 * 1024;
/// Room for what rustls gives in one read: a full record (RFC 8446 §5.1).
const MAX_READ: usize = 16 * 1024;
