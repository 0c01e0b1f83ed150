//! The body of a message: how much of it is still to come, and where it ends.

use std::mem;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Status;
use hyper::body::Frame;
use memchr::memchr;

use super::MessageError;

/// How much of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyDecoder {
    /// The body is complete.
    Complete,
    /// This many bytes, never 0.
    Length(u64),
    /// Chunks, up to the last one.
    Chunked(ChunkState),
    /// All bytes until the connection is closed.
    UntilClose,
}

/// The part of a chunked body that the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkState {
    /// The line with the size of a chunk.
    Size,
    /// The data of a chunk, of which this many bytes are still to come.
    Data(u64),
    /// The line end after the data.
    DataEnd,
    /// The trailer fields after the last chunk, of which this many unread bytes are complete lines. Without that
    /// count, a client that sends them byte by byte would have all of them read again for each byte.
    Trailers(usize),
}

impl BodyDecoder {
    pub(super) fn from_length(length: u64) -> Self {
        if length == 0 {
            Self::Complete
        } else {
            Self::Length(length)
        }
    }

    /// Takes the next piece of the body out of `unread`. `None` if the body is complete or more bytes are
    /// needed.
    ///
    /// # Errors
    ///
    /// When a chunk is malformed. The bytes after it cannot be trusted.
    pub(crate) fn decode(
        &mut self,
        unread: &mut Bytes,
    ) -> Result<Option<Frame<Bytes>>, MessageError> {
        loop {
            match self {
                Self::Complete => return Ok(None),
                _ if unread.is_empty() => return Ok(None),
                Self::UntilClose => return Ok(Some(Frame::data(mem::take(unread)))),
                Self::Length(left) => {
                    let data = take_data(unread, left);
                    if *left == 0 {
                        *self = Self::Complete;
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunked(chunk) => match chunk {
                    ChunkState::Size => match take_chunk_size(unread)? {
                        Some(0) => *chunk = ChunkState::Trailers(0),
                        Some(size) => *chunk = ChunkState::Data(size),
                        None => return Ok(None),
                    },
                    ChunkState::Data(left) => {
                        let data = take_data(unread, left);
                        if *left == 0 {
                            *chunk = ChunkState::DataEnd;
                        }
                        return Ok(Some(Frame::data(data)));
                    }
                    ChunkState::DataEnd => {
                        if !b"\r\n".starts_with(unread.get(..2).unwrap_or(unread)) {
                            return Err(MessageError::Framing("a chunk is longer than its size"));
                        }
                        if unread.len() < 2 {
                            return Ok(None);
                        }
                        drop(unread.split_to(2));
                        *chunk = ChunkState::Size;
                    }
                    ChunkState::Trailers(seen) => {
                        let Some(trailers) = take_trailers(unread, seen)? else {
                            return Ok(None);
                        };
                        *self = Self::Complete;
                        if !trailers.is_empty() {
                            return Ok(Some(Frame::trailers(trailers)));
                        }
                    }
                },
            }
        }
    }

    /// Records that the connection was closed in order.
    ///
    /// # Errors
    ///
    /// When the body is not complete.
    pub(crate) fn close(&mut self) -> Result<(), MessageError> {
        match self {
            Self::Complete | Self::UntilClose => {
                *self = Self::Complete;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(MessageError::Cut),
        }
    }
}

/// Takes up to `left` bytes, as many as there are.
fn take_data(unread: &mut Bytes, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).map_or(unread.len(), |left| left.min(unread.len()));
    *left -= length as u64;
    if length == unread.len() {
        // `split_to` would keep a second handle of the buffer.
        return mem::take(unread);
    }
    unread.split_to(length)
}

/// Takes the line with the size of a chunk, once it is complete.
fn take_chunk_size(unread: &mut Bytes) -> Result<Option<u64>, MessageError> {
    // httparse reads a line without a digit as 0, which would end the body.
    if !unread.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(MessageError::Framing("the size of a chunk is not a number"));
    }
    // Parsed once, and only this line: in a chunk extension, httparse reads past the line end.
    let Some(end) = memchr(b'\n', unread) else {
        if unread.len() < MAX_CHUNK_LINES {
            return Ok(None);
        }
        return Err(MessageError::Framing("the size of a chunk is too long"));
    };
    match httparse::parse_chunk_size(unread.get(..=end).unwrap_or_default()) {
        Ok(Status::Partial) => Err(MessageError::Framing(
            "the size of a chunk ends without a carriage return",
        )),
        Ok(Status::Complete((line, size))) if line <= MAX_CHUNK_LINES => {
            drop(unread.split_to(line));
            Ok(Some(size))
        }
        Ok(_) => Err(MessageError::Framing("the size of a chunk is too long")),
        Err(_) => Err(MessageError::Framing("the size of a chunk is not a number")),
    }
}

/// Takes the fields after the last chunk, once they are complete. The first `seen` bytes are complete lines.
fn take_trailers(unread: &mut Bytes, seen: &mut usize) -> Result<Option<HeaderMap>, MessageError> {
    while let Some(rest) = unread.get(*seen..)
        && let Some(end) = memchr(b'\n', rest)
    {
        let line = rest.get(..=end).unwrap_or_default();
        // httparse also takes a bare LF for a line end. A parser that does not would find the end of the
        // body elsewhere. Proof: `tests/differential`.
        if !line.ends_with(b"\r\n") {
            return Err(MessageError::Framing(
                "a trailer ends without a carriage return",
            ));
        }
        *seen += line.len();
        if *seen > MAX_CHUNK_LINES {
            return Err(MessageError::Framing("the trailer fields are too long"));
        }
        if line == b"\r\n" {
            return parse_trailers(&unread.split_to(*seen)).map(Some);
        }
    }
    if unread.len() < MAX_CHUNK_LINES {
        return Ok(None);
    }
    Err(MessageError::Framing("the trailer fields are too long"))
}

fn parse_trailers(lines: &[u8]) -> Result<HeaderMap, MessageError> {
    let malformed = || MessageError::Framing("a trailer field is malformed");
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let Ok(Status::Complete((length, fields))) = httparse::parse_headers(lines, &mut fields) else {
        return Err(malformed());
    };
    // Both must find the end of the body at the same place.
    if length != lines.len() {
        return Err(malformed());
    }
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(malformed());
        };
        trailers.append(name, value);
    }
    Ok(trailers)
}

/// Bytes of the line with a chunk's size and its extensions, or of all trailers.
pub(super) const MAX_CHUNK_LINES: usize = 16 * 1024;
/// kube-apiserver sends no trailers, servers reached through services/proxy one or two.
pub(super) const MAX_TRAILERS: usize = 64;
