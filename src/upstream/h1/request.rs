//! Sends one request: its head, and its body as it comes in.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::request::Parts;

use crate::{
    http1::{Outgoing, RequestFraming, encode_request_head},
    transport::Readable,
    upstream::{RequestBody, UploadError},
};

/// A request that is being sent.
#[derive(Debug)]
pub(super) struct RequestWriter {
    outgoing: Outgoing,
    body: RequestBody,
    framing: RequestFraming,
    state: SendState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    /// Nothing was written, so that the head can leave together with the beginning of the body.
    Start,
    Body,
    /// The body was read to its end, but a part of it is not written yet.
    Flush,
    /// Nothing more is sent: the apiserver has the whole request, or accepts no more of it.
    Done,
}

/// Why a request was not sent to its end.
#[derive(Debug)]
pub(super) enum SendError {
    /// The client did not complete its body.
    Upload(UploadError),
    /// The apiserver accepts no more. It may have sent its response before.
    Refused(io::Error),
}

impl RequestWriter {
    pub(super) fn new(head: &Parts, body: RequestBody) -> Self {
        let framing = RequestFraming::new(head, body.is_end_stream());
        Self {
            outgoing: Outgoing::new(encode_request_head(head, framing)),
            body,
            framing,
            state: SendState::Start,
        }
    }

    /// The rest of the request, which may come as slowly as the client likes.
    pub(super) fn without_pace(self) -> Self {
        Self {
            body: self.body.without_pace(),
            ..self
        }
    }

    /// Whether nothing more is sent.
    pub(super) fn is_done(&self) -> bool {
        self.state == SendState::Done
    }

    /// Sends as much as the apiserver accepts now. Pending while more is to be sent. After it was ready,
    /// nothing more is sent.
    pub(super) fn poll_send(
        &mut self,
        io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        let ended = ready!(self.poll_send_all(io, cx));
        self.state = SendState::Done;
        Poll::Ready(ended)
    }

    fn poll_send_all(
        &mut self,
        io: &mut dyn Readable,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), SendError>> {
        loop {
            match self.state {
                SendState::Done => return Poll::Ready(Ok(())),
                SendState::Flush if self.outgoing.is_empty() => {
                    let flushed = ready!(Pin::new(io).poll_flush(cx));
                    return Poll::Ready(flushed.map_err(SendError::Refused));
                }
                SendState::Start => {
                    self.state = SendState::Body;
                    // The head goes now, whether the body has data or not.
                    if let Poll::Ready(Err(error)) = self.poll_body(cx) {
                        return Poll::Ready(Err(SendError::Upload(error)));
                    }
                }
                SendState::Body if self.outgoing.is_empty() => match self.poll_body(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Err(SendError::Upload(error)));
                    }
                    Poll::Pending => {
                        // The client may send nothing more for a while; the apiserver must not wait for
                        // bytes that TLS still holds.
                        let flushed = ready!(Pin::new(io).poll_flush(cx));
                        return flushed.map_or_else(
                            |error| Poll::Ready(Err(SendError::Refused(error))),
                            |()| Poll::Pending,
                        );
                    }
                },
                SendState::Body | SendState::Flush => {
                    ready!(self.outgoing.poll_write(io, cx)).map_err(SendError::Refused)?;
                }
            }
        }
    }

    /// Reads the next piece of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        if self.framing == RequestFraming::Length(0) {
            self.state = SendState::Flush;
            return Poll::Ready(Ok(()));
        }
        let piece = ready!(self.body.poll_data(cx)).transpose()?;
        match (&mut self.framing, piece) {
            (RequestFraming::Chunked, Some(data)) => {
                self.outgoing.push_chunk(data);
            }
            (RequestFraming::Chunked, None) => {
                self.outgoing.push_last_chunk();
                self.state = SendState::Flush;
            }
            (RequestFraming::Length(left), Some(data)) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or(UploadError::Length)?;
                self.outgoing.push_data(data);
            }
            (RequestFraming::Length(_), None) => return Poll::Ready(Err(UploadError::Length)),
        }
        Poll::Ready(Ok(()))
    }
}
