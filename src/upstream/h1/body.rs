//! Where the body of a response ends, and what is in it (RFC 9112 §6 and §7).

use std::mem;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use httparse::Status;
use hyper::body::Frame;
use memchr::memchr;

use super::H1Error;

/// How much of a body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyDecoder {
    /// Nothing: it has come to its end.
    Nothing,
    /// So many bytes; never 0.
    Length(u64),
    /// Chunks, as far as the last one.
    Chunks(ChunkState),
    /// Whatever comes before the connection ends in order.
    UntilClose,
}

/// Where in a chunked body the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkState {
    /// The line that says how long the chunk is.
    Size,
    /// The chunk, of which so many bytes are still to come.
    Data(u64),
    /// The line end behind it.
    End,
    /// The lines behind the last chunk.
    Trailers,
}

impl BodyDecoder {
    /// A body of this length.
    pub(super) fn length(length: u64) -> Self {
        if length == 0 {
            Self::Nothing
        } else {
            Self::Length(length)
        }
    }

    /// The next piece of the body in `unread`, which is taken out. `None` if there is none: then the
    /// body has ended, or more has to be read.
    ///
    /// # Errors
    ///
    /// When the chunks are malformed; nothing behind that can be trusted.
    pub(super) fn decode(&mut self, unread: &mut Bytes) -> Result<Option<Frame<Bytes>>, H1Error> {
        loop {
            match self {
                Self::Nothing => return Ok(None),
                _ if unread.is_empty() => return Ok(None),
                Self::UntilClose => return Ok(Some(Frame::data(mem::take(unread)))),
                Self::Length(left) => {
                    let data = split(unread, left);
                    if *left == 0 {
                        *self = Self::Nothing;
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::Chunks(chunk) => match chunk {
                    ChunkState::Size => match size(unread)? {
                        Some(0) => *chunk = ChunkState::Trailers,
                        Some(size) => *chunk = ChunkState::Data(size),
                        None => return Ok(None),
                    },
                    ChunkState::Data(left) => {
                        let data = split(unread, left);
                        if *left == 0 {
                            *chunk = ChunkState::End;
                        }
                        return Ok(Some(Frame::data(data)));
                    }
                    ChunkState::End => {
                        if !b"\r\n".starts_with(unread.get(..2).unwrap_or(unread)) {
                            return Err(H1Error::Framing("a chunk goes on behind its end"));
                        }
                        if unread.len() < 2 {
                            return Ok(None);
                        }
                        drop(unread.split_to(2));
                        *chunk = ChunkState::Size;
                    }
                    ChunkState::Trailers => {
                        let Some(trailers) = trailers(unread)? else {
                            return Ok(None);
                        };
                        *self = Self::Nothing;
                        if !trailers.is_empty() {
                            return Ok(Some(Frame::trailers(trailers)));
                        }
                    }
                },
            }
        }
    }

    /// The connection has ended in order.
    ///
    /// # Errors
    ///
    /// When the body has not.
    pub(super) fn closed(&mut self) -> Result<(), H1Error> {
        match self {
            Self::Nothing | Self::UntilClose => {
                *self = Self::Nothing;
                Ok(())
            }
            Self::Length(_) | Self::Chunks(_) => Err(H1Error::Cut),
        }
    }
}

/// As much of the next `left` bytes as there is.
fn split(unread: &mut Bytes, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).map_or(unread.len(), |left| left.min(unread.len()));
    *left -= length as u64;
    if length == unread.len() {
        // Without a second handle of the buffer.
        return mem::take(unread);
    }
    unread.split_to(length)
}

/// Takes the line with the size of a chunk, once it is whole.
fn size(unread: &mut Bytes) -> Result<Option<u64>, H1Error> {
    // httparse takes a line without a digit for a 0, which is the end of the body.
    if !unread.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(H1Error::Framing("the size of a chunk is no number"));
    }
    let line = memchr(b'\n', unread).map_or(unread.len(), |at| at + 1);
    // Within what it takes for an extension, httparse would look past the end of the line.
    match httparse::parse_chunk_size(unread.get(..line).unwrap_or_default()) {
        Ok(Status::Partial) if unread.get(..line).is_some_and(|line| line.ends_with(b"\n")) => Err(
            H1Error::Framing("the size of a chunk ends without a carriage return"),
        ),
        Ok(Status::Complete((line, size))) if line <= MAX_LINE_BYTES => {
            drop(unread.split_to(line));
            Ok(Some(size))
        }
        Ok(Status::Partial) if unread.len() < MAX_LINE_BYTES => Ok(None),
        Ok(_) => Err(H1Error::Framing("the size of a chunk has no end")),
        Err(_) => Err(H1Error::Framing("the size of a chunk is no number")),
    }
}

/// Takes the lines behind the last chunk, once they are whole.
fn trailers(unread: &mut Bytes) -> Result<Option<HeaderMap>, H1Error> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    match httparse::parse_headers(unread, &mut fields) {
        Ok(Status::Complete((length, fields))) if length <= MAX_LINE_BYTES => {
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(H1Error::Framing(
                        "a field behind the last chunk is malformed",
                    ));
                };
                trailers.append(name, value);
            }
            drop(unread.split_to(length));
            Ok(Some(trailers))
        }
        Ok(Status::Partial) if unread.len() < MAX_LINE_BYTES => Ok(None),
        Ok(_) => Err(H1Error::Framing("what is behind the last chunk has no end")),
        Err(_) => Err(H1Error::Framing(
            "a field behind the last chunk is malformed",
        )),
    }
}

/// Bytes that the line with a chunk's size and its extensions, or all trailers, may have; as hyper.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// kube-apiserver sends no trailers at all, backends behind services/proxy one or two.
const MAX_TRAILERS: usize = 64;

/// Fuzz body: what a chunked body is taken for does not depend on how it was cut.
pub(super) fn fuzz(bytes: &[u8]) {
    let whole = read([bytes]);
    let pieces = read(bytes.chunks(1));
    assert_eq!(whole, pieces, "the body depends on the cut");
}

/// What came out of a chunked body that came in in these pieces: data, trailers, what was left over, and
/// whether it ended; `None` if it is malformed.
type Read = (Vec<u8>, HeaderMap, Option<Bytes>);

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<Read> {
    let mut rest = BodyDecoder::Chunks(ChunkState::Size);
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        while let Some(frame) = rest.decode(&mut unread).ok()? {
            match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
    }
    Some((
        data,
        trailers,
        (rest == BodyDecoder::Nothing).then_some(unread),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Data and what is left over, if the body ended; however it is cut.
    fn chunked(text: &str) -> Option<(String, String)> {
        let mut seen: Vec<_> = (1..=text.len())
            .map(|size| {
                let (data, _, left) = read(text.as_bytes().chunks(size))?;
                let left = left?;
                Some((data, left))
            })
            .collect();
        seen.dedup();
        assert_eq!(seen.len(), 1, "{text:?} depends on how it is cut: {seen:?}");
        let (data, left) = seen.remove(0)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Some((text(&data), text(&left)))
    }

    #[test]
    fn chunks_end_where_they_say() {
        for (body, data) in [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            (
                "00A;x=\"y\"\r\n0123456789\r\n1 \r\nx\r\n000\r\n\r\n",
                "0123456789x",
            ),
            (
                "a\r\n0\r\n\r\n0\r\n\r\n\r\n0\r\na: b\r\n\r\n",
                "0\r\n\r\n0\r\n\r\n",
            ),
        ] {
            let expected = Some((data.to_owned(), String::new()));
            assert_eq!(chunked(body), expected, "{body:?}");
        }
    }

    #[test]
    fn what_is_behind_the_end_is_left_over() {
        for left in ["H", "\r\n", "HTTP/1.1 200 OK\r\n"] {
            let body = format!("1\r\nx\r\n0\r\n\r\n{left}");
            let (data, _, unread) = read([body.as_bytes()]).unwrap();
            assert_eq!(
                (data.as_slice(), unread.unwrap()),
                (b"x".as_slice(), left.into())
            );
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for body in [
            "\r\n\r\n",
            ";x\r\n\r\n",
            "-1\r\nx\r\n",
            "0x1\r\nx\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5;x\nhello\r\n0\r\n\r\n",
            "5\r\nhello!\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "11111111111111111\r\nx",
            "0\r\na b: c\r\n\r\n",
            "0\r\n: c\r\n\r\n",
        ] {
            for size in 1..=body.len() {
                let read = read(body.as_bytes().chunks(size));
                assert!(read.is_none(), "{body:?} in pieces of {size}: {read:?}");
            }
        }
    }

    #[test]
    fn lines_without_end_are_refused() {
        let endless = [
            format!("1;{}", "x".repeat(MAX_LINE_BYTES)),
            format!("0\r\na: {}", "x".repeat(MAX_LINE_BYTES)),
        ];
        for body in endless {
            assert!(read(body.as_bytes().chunks(1000)).is_none());
        }
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(MAX_TRAILERS + 1));
        assert!(read([many.as_bytes()]).is_none());
    }

    #[test]
    fn an_end_of_the_connection_ends_only_what_has_no_other_end() {
        for (mut rest, is_whole) in [
            (BodyDecoder::Nothing, true),
            (BodyDecoder::UntilClose, true),
            (BodyDecoder::length(0), true),
            (BodyDecoder::length(1), false),
            (BodyDecoder::Chunks(ChunkState::Size), false),
            (BodyDecoder::Chunks(ChunkState::Data(1)), false),
            (BodyDecoder::Chunks(ChunkState::End), false),
            (BodyDecoder::Chunks(ChunkState::Trailers), false),
        ] {
            assert_eq!(rest.closed().is_ok(), is_whole, "{rest:?}");
        }
    }
}
