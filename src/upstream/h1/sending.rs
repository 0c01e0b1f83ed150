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

use super::request::{self, RequestFraming};
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
    framing: RequestFraming,
    state: SendState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
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
pub(super) enum SendError {
    /// The client cut its body.
    Upload(UploadError),
    /// The apiserver takes no more. It may have answered before it stopped.
    Refused(io::Error),
}

impl Sending {
    pub(super) fn new(head: &Parts, body: RequestBody) -> Self {
        let framing = RequestFraming::of(head, &body);
        Self {
            line: request::encode(head, framing),
            data: Bytes::new(),
            line_end: b"",
            body,
            framing,
            state: SendState::Fresh,
        }
    }

    /// Whether nothing more is sent.
    pub(super) fn is_over(&self) -> bool {
        self.state == SendState::Over
    }

    /// Sends as much as the apiserver takes now. Pending while there is more to come; once it is ready,
    /// nothing more is sent.
    pub(super) fn poll_send(
        &mut self,
        io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        let ended = ready!(self.poll_to_end(io, cx));
        self.state = SendState::Over;
        Poll::Ready(ended)
    }

    fn poll_to_end(
        &mut self,
        mut io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            match self.state {
                SendState::Over => return Poll::Ready(Ok(())),
                SendState::Flush if self.is_written() => {
                    let flushed = ready!(Pin::new(io).poll_flush(cx));
                    return Poll::Ready(flushed.map_err(SendError::Refused));
                }
                SendState::Fresh => {
                    self.state = SendState::Body;
                    // Whether there is a piece or not, the head goes now.
                    if let Poll::Ready(Err(cut)) = self.poll_piece(cx) {
                        return Poll::Ready(Err(SendError::Upload(cut)));
                    }
                }
                SendState::Body if self.is_written() => match self.poll_piece(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(cut)) => {
                        return Poll::Ready(Err(SendError::Upload(cut)));
                    }
                    Poll::Pending => {
                        // The apiserver must not wait for what TLS has and nothing follows.
                        let flushed = ready!(Pin::new(io).poll_flush(cx));
                        return flushed.map_or_else(
                            |error| Poll::Ready(Err(SendError::Refused(error))),
                            |()| Poll::Pending,
                        );
                    }
                },
                SendState::Body | SendState::Flush => {
                    let mut all = (&mut self.line)
                        .chain(&mut self.data)
                        .chain(&mut self.line_end);
                    let written = ready!(poll_write_buf(Pin::new(&mut io), cx, &mut all));
                    if written.map_err(SendError::Refused)? == 0 {
                        let refused = io::Error::from(io::ErrorKind::WriteZero);
                        return Poll::Ready(Err(SendError::Refused(refused)));
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
        if self.framing == RequestFraming::Length(0) {
            self.state = SendState::Flush;
            return Poll::Ready(Ok(()));
        }
        let piece = ready!(self.body.poll_data(cx)).transpose()?;
        match (&mut self.framing, piece) {
            (RequestFraming::Chunked, Some(data)) => {
                write!(self.line, "{:x}\r\n", data.len()).expect("the line grows");
                self.data = data;
                self.line_end = b"\r\n";
            }
            (RequestFraming::Chunked, None) => {
                self.line.put_slice(b"0\r\n\r\n");
                self.state = SendState::Flush;
            }
            (RequestFraming::Length(left), Some(data)) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or(UploadError::Length)?;
                self.data = data;
            }
            (RequestFraming::Length(_), None) => return Poll::Ready(Err(UploadError::Length)),
        }
        Poll::Ready(Ok(()))
    }
}
