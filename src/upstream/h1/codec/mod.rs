//! HTTP/1.1 in bytes, without I/O: the head of a request, the head and the body of a response.
//!
//! A response whose length is ambiguous is refused (RFC 9112 §6 and §7), because bytes of one response could
//! be read as part of the next. httparse reads heads, sizes of chunks and trailers.

use std::mem::{self, MaybeUninit};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header,
    request::Parts, response,
};
use httparse::{ParserConfig, Status};
use hyper::body::Frame;
use memchr::memchr;

use super::H1Error;
use crate::{
    text::{list_contains, list_items},
    upstream::RequestBody,
};

/// How the end of a request body is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestFraming {
    /// This many bytes are still to be sent.
    Length(u64),
    Chunked,
}

impl RequestFraming {
    /// As the head of the request says. A body without a length is sent in chunks, whatever the method:
    /// a GET may have one.
    pub(super) fn new(head: &Parts, body: &RequestBody) -> Self {
        let announced = head.headers.get(header::CONTENT_LENGTH);
        match announced.and_then(|length| length.to_str().ok()?.parse().ok()) {
            // Also when the body is empty: then the upload fails, and nothing that follows on the
            // connection is taken for the body.
            Some(length) => Self::Length(length),
            None if body.is_end_stream() => Self::Length(0),
            None => Self::Chunked,
        }
    }
}

/// Encodes the head of a request. The target is path and query only (RFC 9112 §3.2.1), the authority goes
/// into `Host`.
pub(super) fn encode_head(head: &Parts, framing: RequestFraming) -> BytesMut {
    let target = head
        .uri
        .path_and_query()
        .map_or("/", |target| target.as_str());
    let authority = head.uri.authority().map(|authority| authority.as_str());
    let fields = head.headers.iter();
    let length: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    let method = head.method.as_str();
    let mut bytes = BytesMut::with_capacity(
        length + method.len() + target.len() + authority.map_or(0, str::len) + HEAD_OVERHEAD,
    );
    for part in [method, " ", target, " HTTP/1.1\r\n"] {
        bytes.put_slice(part.as_bytes());
    }
    if let Some(authority) = authority {
        put_field(&mut bytes, &header::HOST, &[authority.as_bytes()]);
    }
    let joins_cookies = head.version == Version::HTTP_2;
    for (name, value) in &head.headers {
        let is_replaced = match *name {
            header::COOKIE => joins_cookies,
            header::HOST => authority.is_some(),
            // A second field about the length is how two parsers come to disagree.
            header::TRANSFER_ENCODING => true,
            header::CONTENT_LENGTH => framing == RequestFraming::Chunked,
            _ => false,
        };
        if !is_replaced {
            put_field(&mut bytes, name, &[value.as_bytes()]);
        }
    }
    if joins_cookies {
        put_cookies(&mut bytes, head.headers.get_all(header::COOKIE).iter());
    }
    if framing == RequestFraming::Chunked {
        put_field(&mut bytes, &header::TRANSFER_ENCODING, &[b"chunked"]);
    }
    bytes.put_slice(b"\r\n");
    bytes
}

/// Joins the `Cookie` fields that HTTP/2 may split (RFC 9113 §8.2.3).
fn put_cookies<'a>(bytes: &mut BytesMut, crumbs: impl Iterator<Item = &'a HeaderValue>) {
    let mut pieces: Vec<&[u8]> = Vec::new();
    for crumb in crumbs {
        if !pieces.is_empty() {
            pieces.push(b"; ");
        }
        pieces.push(crumb.as_bytes());
    }
    if !pieces.is_empty() {
        put_field(bytes, &header::COOKIE, &pieces);
    }
}

fn put_field(bytes: &mut BytesMut, name: &HeaderName, value: &[&[u8]]) {
    bytes.put_slice(name.as_str().as_bytes());
    bytes.put_slice(b": ");
    for piece in value {
        bytes.put_slice(piece);
    }
    bytes.put_slice(b"\r\n");
}

/// The head of one response.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) parts: response::Parts,
    pub(super) body: BodyDecoder,
    /// Whether the response allows another request on the connection.
    pub(super) keep_alive: bool,
}

impl ResponseHead {
    /// Whether the final response is still to come (RFC 9110 §15.2). A 101 is final.
    pub(super) fn is_interim(&self) -> bool {
        let status = self.parts.status;
        status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Takes the head of the response to a `method` request out of `unread`, once it is complete.
///
/// # Errors
///
/// When it is malformed or too long, or when the length of its body is ambiguous.
pub(super) fn take_head(
    unread: &mut Bytes,
    method: &Method,
) -> Result<Option<ResponseHead>, H1Error> {
    if unread.is_empty() {
        return Ok(None);
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        unread,
        &mut fields,
    );
    let length = match parsed.map_err(H1Error::Head)? {
        Status::Complete(length) if length <= MAX_HEAD_BYTES => length,
        Status::Partial if unread.len() < MAX_HEAD_BYTES => return Ok(None),
        Status::Complete(_) | Status::Partial => {
            return Err(H1Error::HeadTooLong {
                max: MAX_HEAD_BYTES,
            });
        }
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(H1Error::Head(httparse::Error::Status))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| H1Error::Head(httparse::Error::HeaderName))?;
        // A slice of the read buffer, not a copy: it is written to the client soon.
        let value = HeaderValue::from_maybe_shared(unread.slice_ref(field.value))
            .map_err(|_| H1Error::Head(httparse::Error::HeaderValue))?;
        headers.append(name, value);
    }
    let is_http11 = response.version == Some(1);
    drop(unread.split_to(length));
    let connection_has = |option| {
        let lines = headers.get_all(header::CONNECTION);
        lines
            .iter()
            .any(|line| list_contains(line.as_bytes(), option))
    };
    let mut keep_alive = (is_http11 || connection_has("keep-alive")) && !connection_has("close");
    let never_has_body = status.is_informational() || status == StatusCode::NO_CONTENT;
    if never_has_body {
        // RFC 9110 §8.6: such a response must not have a length; some clients would wait for its bytes.
        headers.remove(header::CONTENT_LENGTH);
    }
    let body = if never_has_body || method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        BodyDecoder::Complete
    } else {
        let (body, is_reusable) = response_framing(&mut headers, is_http11)?;
        keep_alive &= is_reusable;
        body
    };
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.headers = headers;
    Ok(Some(ResponseHead {
        parts,
        body,
        keep_alive,
    }))
}

/// Where the body ends, and whether its end leaves the connection usable.
fn response_framing(
    headers: &mut HeaderMap,
    is_http11: bool,
) -> Result<(BodyDecoder, bool), H1Error> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if !is_http11 {
            return Err(H1Error::Framing("transfer-encoding in HTTP/1.0"));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let only = codings.next().filter(|_| codings.next().is_none());
        // The request asks for none (`TE`), and this is the only one that can be decoded.
        if only.is_none_or(|only| !only.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(H1Error::Framing("transfer-encoding is not `chunked`"));
        }
        // RFC 9112 §6.3: the coding decides, and the length must not be forwarded.
        let length = headers.remove(header::CONTENT_LENGTH);
        return Ok((BodyDecoder::Chunked(ChunkState::Size), length.is_none()));
    }
    let mut lengths = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|line| list_items(line.as_bytes()))
        .map(parse_length);
    let Some(first) = lengths.next() else {
        return Ok((BodyDecoder::UntilClose, false));
    };
    let mut is_repeated = false;
    for other in lengths {
        is_repeated = true;
        if other != first {
            return Err(H1Error::Framing("two values of content-length"));
        }
    }
    let length = first.ok_or(H1Error::Framing("content-length is not a number"))?;
    if is_repeated {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok((BodyDecoder::from_length(length), true))
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

/// How much of a response body is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyDecoder {
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
pub(super) enum ChunkState {
    /// The line with the size of a chunk.
    Size,
    /// The data of a chunk, of which this many bytes are still to come.
    Data(u64),
    /// The line end after the data.
    DataEnd,
    /// The trailer fields after the last chunk.
    Trailers,
}

impl BodyDecoder {
    fn from_length(length: u64) -> Self {
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
    pub(super) fn decode(&mut self, unread: &mut Bytes) -> Result<Option<Frame<Bytes>>, H1Error> {
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
                        Some(0) => *chunk = ChunkState::Trailers,
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
                            return Err(H1Error::Framing("a chunk is longer than its size"));
                        }
                        if unread.len() < 2 {
                            return Ok(None);
                        }
                        drop(unread.split_to(2));
                        *chunk = ChunkState::Size;
                    }
                    ChunkState::Trailers => {
                        let Some(trailers) = take_trailers(unread)? else {
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
    pub(super) fn close(&mut self) -> Result<(), H1Error> {
        match self {
            Self::Complete | Self::UntilClose => {
                *self = Self::Complete;
                Ok(())
            }
            Self::Length(_) | Self::Chunked(_) => Err(H1Error::Cut),
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
fn take_chunk_size(unread: &mut Bytes) -> Result<Option<u64>, H1Error> {
    // httparse reads a line without a digit as 0, which would end the body.
    if !unread.first().is_some_and(u8::is_ascii_hexdigit) {
        return Err(H1Error::Framing("the size of a chunk is not a number"));
    }
    let line = memchr(b'\n', unread).map_or(unread.len(), |at| at + 1);
    // Only this line: in a chunk extension, httparse reads past the line end.
    match httparse::parse_chunk_size(unread.get(..line).unwrap_or_default()) {
        Ok(Status::Partial) if unread.get(..line).is_some_and(|line| line.ends_with(b"\n")) => Err(
            H1Error::Framing("the size of a chunk ends without a carriage return"),
        ),
        Ok(Status::Complete((line, size))) if line <= MAX_CHUNK_LINES => {
            drop(unread.split_to(line));
            Ok(Some(size))
        }
        Ok(Status::Partial) if unread.len() < MAX_CHUNK_LINES => Ok(None),
        Ok(_) => Err(H1Error::Framing("the size of a chunk is too long")),
        Err(_) => Err(H1Error::Framing("the size of a chunk is not a number")),
    }
}

/// Takes the fields after the last chunk, once they are complete.
fn take_trailers(unread: &mut Bytes) -> Result<Option<HeaderMap>, H1Error> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    match httparse::parse_headers(unread, &mut fields) {
        Ok(Status::Complete((length, fields))) if length <= MAX_CHUNK_LINES => {
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value);
                let (Ok(name), Ok(value)) = (name, value) else {
                    return Err(H1Error::Framing("a trailer field is malformed"));
                };
                trailers.append(name, value);
            }
            drop(unread.split_to(length));
            Ok(Some(trailers))
        }
        Ok(Status::Partial) if unread.len() < MAX_CHUNK_LINES => Ok(None),
        Ok(_) => Err(H1Error::Framing("the trailer fields are too long")),
        Err(_) => Err(H1Error::Framing("a trailer field is malformed")),
    }
}

/// Bytes for ` HTTP/1.1`, the names of added fields, and line ends.
const HEAD_OVERHEAD: usize = 64;
/// Bytes of a response head.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// kube-apiserver repeats `Warning`, and servers reached through services/proxy may set any field.
const MAX_FIELDS: usize = 200;
/// Bytes of the line with a chunk's size and its extensions, or of all trailers; the limit of hyper.
const MAX_CHUNK_LINES: usize = 16 * 1024;
/// kube-apiserver sends no trailers, servers reached through services/proxy one or two.
const MAX_TRAILERS: usize = 64;

/// Fuzz target: the size of the reads of a head does not change what is parsed.
pub(super) fn fuzz_head(bytes: &[u8]) {
    let whole = parse_pieces([bytes]);
    let pieces = parse_pieces(bytes.chunks(1));
    assert_eq!(whole, pieces, "the head depends on the cut");
}

/// Status, fields, body and `keep_alive` of a head.
type ParsedHead = (StatusCode, HeaderMap, BodyDecoder, bool);

/// Parses a head that was read in these pieces; `None` if it is malformed or incomplete.
fn parse_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<ParsedHead> {
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        if let Some(head) = take_head(&mut unread, &Method::GET).ok()? {
            let parts = head.parts;
            return Some((parts.status, parts.headers, head.body, head.keep_alive));
        }
    }
    None
}

/// Fuzz target: the size of the reads of a chunked body does not change what is decoded.
pub(super) fn fuzz_chunks(bytes: &[u8]) {
    let whole = decode_pieces([bytes]);
    let pieces = decode_pieces(bytes.chunks(1));
    assert_eq!(whole, pieces, "the body depends on the cut");
}

/// Data and trailers of a chunked body, and the bytes after it if it is complete.
type DecodedBody = (Vec<u8>, HeaderMap, Option<Bytes>);

/// Decodes a chunked body that was read in these pieces; `None` if it is malformed.
fn decode_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<DecodedBody> {
    let mut body = BodyDecoder::Chunked(ChunkState::Size);
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        while let Some(frame) = body.decode(&mut unread).ok()? {
            match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
    }
    let is_complete = body == BodyDecoder::Complete;
    Some((data, trailers, is_complete.then_some(unread)))
}

#[cfg(test)]
mod tests;
