//! Bytes of a message that are on their way to the peer.

use std::{
    fmt::Write as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use tokio_util::io::poll_write_buf;

use super::put_field;
use crate::transport::Readable;

/// A head, the framing of a body, and pieces of that body, as far as not written. It holds no memory while it
/// is empty.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Written first: the head, the sizes of chunks, and pieces that were copied.
    first: BytesMut,
    /// The last piece of the body, not copied.
    data: Bytes,
    /// Written after the data.
    line_end: &'static [u8],
}

impl Outgoing {
    /// A message that begins with this head.
    pub(crate) fn new(head: BytesMut) -> Self {
        Self {
            first: head,
            data: Bytes::new(),
            line_end: b"",
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.data.is_empty() && self.line_end.is_empty()
    }

    /// Whether more may be added before a write. Small pieces leave together, although that costs a copy: each
    /// write costs a TLS record and a system call.
    pub(crate) fn has_room(&self) -> bool {
        self.data.len() <= MAX_COPIED && self.first.len() <= MAX_GATHERED
    }

    /// Adds data of a body with a length.
    pub(crate) fn push_data(&mut self, data: Bytes) {
        self.copy_data();
        self.data = data;
    }

    /// Adds one chunk. An empty one would end the body.
    pub(crate) fn push_chunk(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.copy_data();
        write!(self.first, "{:x}\r\n", data.len()).expect("a `BytesMut` grows");
        self.data = data;
        self.line_end = b"\r\n";
    }

    /// Adds the last chunk.
    pub(crate) fn push_last_chunk(&mut self) {
        if self.data.is_empty() {
            // A write may have stopped before the line end of the last chunk.
            self.copy_data();
            self.first.put_slice(b"0\r\n\r\n");
        } else {
            self.line_end = b"\r\n0\r\n\r\n";
        }
    }

    /// Adds the last chunk with trailer fields.
    pub(crate) fn push_trailers(&mut self, trailers: &HeaderMap) {
        self.copy_data();
        self.first.put_slice(b"0\r\n");
        for (name, value) in trailers {
            put_field(&mut self.first, name, &[value.as_bytes()]);
        }
        self.first.put_slice(b"\r\n");
    }

    fn copy_data(&mut self) {
        self.first.put_slice(&self.data);
        self.first.put_slice(self.line_end);
        (self.data, self.line_end) = (Bytes::new(), b"");
    }

    /// Writes once. Returns how many bytes were taken.
    pub(crate) fn poll_write(
        &mut self,
        mut io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut all = (&mut self.first)
            .chain(&mut self.data)
            .chain(&mut self.line_end);
        let written = ready!(poll_write_buf(Pin::new(&mut io), cx, &mut all))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if self.first.is_empty() {
            self.first = BytesMut::new();
        }
        if self.data.is_empty() {
            self.data = Bytes::new();
        }
        Poll::Ready(Ok(written))
    }
}

/// A longer piece is written by reference.
const MAX_COPIED: usize = 4 * 1024;
/// Bytes that are gathered before they are written: one TLS record (RFC 8446 §5.1).
const MAX_GATHERED: usize = 12 * 1024;
