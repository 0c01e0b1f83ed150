//! Sends one request: its head, and its body as it comes in.

use std::{
    fmt::Write as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::request::Parts;
use tokio_util::io::poll_write_buf;

use super::request::{self, Framing};
use crate::{
    transport::Readable,
    upstream::{RequestBody, UploadError},
};

/// A request on its way out.
#[derive(Debug)]
pub(super) struct Sending {
    /// The head, then the sizes of chunks, as far as not written.
    line: BytesMut,
    data: Bytes,
    line_end: &'static [u8],
    body: RequestBody,
    framing: Framing,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not a byte was written, so that the head can leave with the beginning of the body.
    Fresh,
    Body,
    /// All was taken out of the body.
    Flush,
    /// No more of it is sent: the apiserver has all, or wants no more.
    Over,
}

/// Why a request was not sent to its end.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// The client cut its body.
    Upload(UploadError),
    /// The apiserver takes no more. It may have answered before it stopped.
    Refused(io::Error),
}

impl Sending {
    pub(super) fn new(head: &Parts, body: RequestBody) -> Self {
        let framing = Framing::of(head, &body);
        Self {
            line: request::encode(head, framing),
            data: Bytes::new(),
            line_end: b"",
            body,
            framing,
            state: State::Fresh,
        }
    }

    /// Whether nothing more is sent.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Sends as much as the apiserver takes now. Pending while there is more to come; once it is ready,
    /// nothing more is sent.
    pub(super) fn poll_send(
        &mut self,
        io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unfinished>> {
        let ended = ready!(self.poll_to_end(io, cx));
        self.state = State::Over;
        Poll::Ready(ended)
    }

    fn poll_to_end(
        &mut self,
        mut io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unfinished>> {
        loop {
            match self.state {
                State::Over => return Poll::Ready(Ok(())),
                State::Flush if self.is_written() => {
                    let flushed = ready!(Pin::new(io).poll_flush(cx));
                    return Poll::Ready(flushed.map_err(Unfinished::Refused));
                }
                State::Fresh => {
                    self.state = State::Body;
                    // Whether there is a piece or not, the head goes now.
                    if let Poll::Ready(Err(cut)) = self.poll_piece(cx) {
                        return Poll::Ready(Err(Unfinished::Upload(cut)));
                    }
                }
                State::Body if self.is_written() => match self.poll_piece(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(cut)) => {
                        return Poll::Ready(Err(Unfinished::Upload(cut)));
                    }
                    Poll::Pending => {
                        // The apiserver must not wait for what TLS has and nothing follows.
                        let flushed = ready!(Pin::new(io).poll_flush(cx));
                        return flushed.map_or_else(
                            |error| Poll::Ready(Err(Unfinished::Refused(error))),
                            |()| Poll::Pending,
                        );
                    }
                },
                State::Body | State::Flush => {
                    let mut all = (&mut self.line)
                        .chain(&mut self.data)
                        .chain(&mut self.line_end);
                    let written = ready!(poll_write_buf(Pin::new(&mut io), cx, &mut all));
                    if written.map_err(Unfinished::Refused)? == 0 {
                        let refused = io::Error::from(io::ErrorKind::WriteZero);
                        return Poll::Ready(Err(Unfinished::Refused(refused)));
                    }
                    if self.is_written() {
                        // Without the room that the head took.
                        self.line = BytesMut::new();
                    }
                }
            }
        }
    }

    fn is_written(&self) -> bool {
        self.line.is_empty() && self.data.is_empty() && self.line_end.is_empty()
    }

    /// Takes the next piece out of the body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        if self.framing == Framing::Length(0) {
            self.state = State::Flush;
            return Poll::Ready(Ok(()));
        }
        let piece = ready!(self.body.poll_data(cx)).transpose()?;
        match (&mut self.framing, piece) {
            (Framing::Chunked, Some(data)) => {
                write!(self.line, "{:x}\r\n", data.len()).expect("the line grows");
                self.data = data;
                self.line_end = b"\r\n";
            }
            (Framing::Chunked, None) => {
                self.line.put_slice(b"0\r\n\r\n");
                self.state = State::Flush;
            }
            (Framing::Length(left), Some(data)) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or(UploadError::Length)?;
                self.data = data;
            }
            (Framing::Length(_), None) => return Poll::Ready(Err(UploadError::Length)),
        }
        Poll::Ready(Ok(()))
    }
}
