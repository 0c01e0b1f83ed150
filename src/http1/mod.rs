//! HTTP/1.1 in bytes, for both legs: the heads of requests and responses, bodies, and the unread bytes of a
//! connection. Only [`Wire`], [`IncomingBody`] and [`Outgoing`] do I/O.
//!
//! A message whose length is ambiguous is refused (RFC 9112 §6 and §7), because bytes of one message could be
//! read as part of the next. httparse reads heads, sizes of chunks and trailers.

mod body;
mod fuzz;
mod incoming;
mod outgoing;
mod request;
mod response;
#[cfg(test)]
mod tests;
mod wire;

use std::io;

use bytes::{BufMut as _, BytesMut};
use http::HeaderName;

pub(crate) use body::{BodyDecoder, ChunkState};
pub use fuzz::{ParsedRequest, RequestEnd, requests};
pub(crate) use fuzz::{fuzz_chunks, fuzz_requests, fuzz_response_head};
pub(crate) use incoming::{BodyEnd, IncomingBody};
pub(crate) use outgoing::Outgoing;
pub(crate) use request::{
    RequestFraming, RequestHead, RequestHeadError, RequestParser, encode_request_head,
};
pub(crate) use response::{
    MAX_RESPONSE_HEAD, ResponseFraming, ResponseHead, encode_response_head, is_head_too_large,
    take_response_head,
};
pub use wire::Upgraded;
pub(crate) use wire::Wire;

/// Why a message is not complete.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The connection ended before the body was complete.
    #[error("the connection was closed in the middle of the body")]
    Cut,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The bytes received are not the head of a response.
    #[error("the head of the response is malformed")]
    Head(#[source] httparse::Error),
    /// The head of the response is too long.
    #[error("the head of the response is longer than {max} bytes")]
    HeadTooLong {
        /// Bytes that are accepted.
        max: usize,
    },
    /// The length of the body is ambiguous (RFC 9112 §6.3).
    #[error("ambiguous length of the body: {0}")]
    Framing(&'static str),
}

fn put_field(bytes: &mut BytesMut, name: &HeaderName, value: &[&[u8]]) {
    bytes.put_slice(name.as_str().as_bytes());
    bytes.put_slice(b": ");
    for piece in value {
        bytes.put_slice(piece);
    }
    bytes.put_slice(b"\r\n");
}

/// Digits only, and at most the value that Go accepts.
fn parse_length(text: &[u8]) -> Option<u64> {
    // `parse` would accept a sign.
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    u64::try_from(number).ok()
}
