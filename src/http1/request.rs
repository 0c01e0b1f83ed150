//! The head of a request: written for the apiserver, and parsed from the bytes of a client.
//!
//! The raw bytes of a client are judged here, before the `http` crate sees them: it cuts a target at `#`, so
//! that `DELETE …/configmaps/#y` would reach the apiserver as `DELETE …/configmaps/`, which deletes all config
//! maps.

use std::mem::MaybeUninit;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, request::Parts,
};
use httparse::{ParserConfig, Status};
use memchr::{memchr, memchr_iter};

use super::{BodyDecoder, ChunkState, parse_length, put_field};
use crate::text::list_contains;

/// How the end of a request body is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestFraming {
    /// This many bytes are still to be sent.
    Length(u64),
    Chunked,
}

impl RequestFraming {
    /// As the head of the request says. A body without a length is sent in chunks, whatever the method:
    /// a GET may have one.
    pub(crate) fn new(head: &Parts, body_is_empty: bool) -> Self {
        let announced = head.headers.get(header::CONTENT_LENGTH);
        match announced.and_then(|length| length.to_str().ok()?.parse().ok()) {
            // Also when the body is empty: then the upload fails, and nothing that follows on the
            // connection is taken for the body.
            Some(length) => Self::Length(length),
            None if body_is_empty => Self::Length(0),
            None => Self::Chunked,
        }
    }
}

/// Encodes the head of a request. The target is path and query only (RFC 9112 §3.2.1), the authority goes
/// into `Host`.
pub(crate) fn encode_request_head(head: &Parts, framing: RequestFraming) -> BytesMut {
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

/// The head of one request of a client.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) parts: Parts,
    /// Where its body ends, or why the request must be refused. After a refusal the end of the request may be
    /// unknown, so that no later byte is a request.
    pub(crate) body: Result<BodyDecoder, RequestHeadError>,
    /// Whether the client allows another request on the connection.
    pub(crate) keep_alive: bool,
    /// The client may wait for a 100 before it sends the body.
    pub(crate) expects_continue: bool,
    /// The response may have trailers.
    pub(crate) accepts_trailers: bool,
}

/// Why a request is refused by its bytes alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestHeadError {
    /// Not HTTP/1.0 or HTTP/1.1.
    Malformed,
    TargetTooLong,
    TooManyFields,
    FieldsTooLong,
    /// The target holds a `#`.
    HashInTarget,
    /// The target holds a character that a URI cannot hold.
    TargetCharacter,
    /// A coding other than `chunked`, or more than one.
    TransferEncoding,
    /// Two lengths, or a length and a coding (RFC 9112 §6.3).
    AmbiguousLength,
}

/// Takes the heads of requests out of the bytes of one connection.
#[derive(Debug)]
pub(crate) struct RequestParser {
    /// Fields of one head.
    max_fields: usize,
    /// Bytes of one head.
    max_bytes: usize,
    /// Bytes of the current head that hold no end of it. They are not parsed again: a client that sends a
    /// head byte by byte would cost the square of its length.
    scanned: usize,
}

impl RequestParser {
    /// Accepts heads with at most `max_fields` fields and at most `max_bytes` bytes.
    pub(crate) fn new(max_fields: usize, max_bytes: usize) -> Self {
        Self {
            max_fields,
            max_bytes,
            scanned: 0,
        }
    }

    /// Takes the next head out of `unread`, once it is complete. Empty lines before it are dropped (RFC 9112
    /// §2.2).
    ///
    /// # Errors
    ///
    /// When it is malformed or too long. The bytes after it cannot be trusted.
    pub(crate) fn take(
        &mut self,
        unread: &mut Bytes,
    ) -> Result<Option<RequestHead>, RequestHeadError> {
        if self.scanned == 0 {
            skip_empty_lines(unread);
        }
        // An empty buffer would keep its memory.
        if unread.is_empty() {
            *unread = Bytes::new();
            return Ok(None);
        }
        if self.scanned > 0 && unread.len() < self.max_bytes && !self.may_be_complete(unread) {
            self.scanned = unread.len();
            return Ok(None);
        }
        let head = unread.get(..self.max_bytes).unwrap_or(unread);
        let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
        let mut many = Vec::new();
        let fields = match few.get_mut(..self.max_fields) {
            Some(fields) => fields,
            None => {
                many.resize_with(self.max_fields, MaybeUninit::uninit);
                &mut many
            }
        };
        let mut request = httparse::Request::new(&mut []);
        let parsed =
            ParserConfig::default().parse_request_with_uninit_headers(&mut request, head, fields);
        match parsed {
            Ok(Status::Complete(length)) => {
                let taken = request_head(unread, &request)?;
                drop(unread.split_to(length));
                self.scanned = 0;
                Ok(Some(taken))
            }
            Ok(Status::Partial) if unread.len() < self.max_bytes => {
                self.scanned = unread.len();
                Ok(None)
            }
            Ok(Status::Partial) if memchr(b'\n', head).is_none() => {
                Err(RequestHeadError::TargetTooLong)
            }
            Ok(Status::Partial) => Err(RequestHeadError::FieldsTooLong),
            Err(httparse::Error::TooManyHeaders) => Err(RequestHeadError::TooManyFields),
            Err(_) => Err(RequestHeadError::Malformed),
        }
    }

    /// Whether an empty line ends after the bytes that were scanned.
    fn may_be_complete(&self, unread: &[u8]) -> bool {
        let new = unread.get(self.scanned..).unwrap_or_default();
        memchr_iter(b'\n', new).any(|at| {
            let before = unread.get(..self.scanned + at).unwrap_or_default();
            before.ends_with(b"\n") || before.ends_with(b"\n\r")
        })
    }
}

fn skip_empty_lines(unread: &mut Bytes) {
    loop {
        let line_end = match **unread {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => return,
        };
        unread.advance(line_end);
    }
}

/// Judges the parsed fields of a head, which are slices of `unread`.
fn request_head(
    unread: &Bytes,
    request: &httparse::Request<'_, '_>,
) -> Result<RequestHead, RequestHeadError> {
    let (mut parts, ()) = Request::new(()).into_parts();
    let method = request.method.unwrap_or_default();
    let target = request.path.unwrap_or_default();
    parts.method =
        Method::from_bytes(method.as_bytes()).map_err(|_| RequestHeadError::Malformed)?;
    if target.len() > MAX_TARGET {
        return Err(RequestHeadError::TargetTooLong);
    }
    // Slices of the read buffer, not copies: they are written to the apiserver soon.
    let shared_target = unread.slice_ref(target.as_bytes());
    parts.uri = Uri::from_maybe_shared(shared_target).map_err(|_| {
        if target.starts_with('/') {
            RequestHeadError::TargetCharacter
        } else {
            RequestHeadError::Malformed
        }
    })?;
    let is_http11 = request.version == Some(1);
    parts.version = if is_http11 {
        Version::HTTP_11
    } else {
        Version::HTTP_10
    };
    let mut headers = HeaderMap::with_capacity(request.headers.len() + ADDED_FIELDS);
    let (mut lengths, mut length, mut codings) = (0, 0, 0);
    let (mut is_chunked, mut says_close, mut says_keep_alive) = (false, false, false);
    let (mut expects_continue, mut accepts_trailers) = (false, false);
    for field in request.headers.iter() {
        // httparse has checked its characters, so it can only be too long for the `http` crate.
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| RequestHeadError::FieldsTooLong)?;
        let value = HeaderValue::from_maybe_shared(unread.slice_ref(field.value))
            .map_err(|_| RequestHeadError::Malformed)?;
        match name {
            header::CONTENT_LENGTH => {
                lengths += 1;
                length = parse_length(field.value).ok_or(RequestHeadError::Malformed)?;
            }
            header::TRANSFER_ENCODING => {
                codings += 1;
                is_chunked = field.value.eq_ignore_ascii_case(b"chunked");
            }
            header::CONNECTION => {
                says_close |= list_contains(field.value, "close");
                says_keep_alive |= list_contains(field.value, "keep-alive");
            }
            header::EXPECT => {
                expects_continue = field.value.eq_ignore_ascii_case(b"100-continue");
            }
            header::TE => accepts_trailers |= list_contains(field.value, "trailers"),
            _ => {}
        }
        headers.append(name, value);
    }
    parts.headers = headers;
    let body = match (lengths, codings) {
        // HTTP/1.0 has no codings.
        (_, 1..) if !is_http11 => return Err(RequestHeadError::Malformed),
        _ if memchr(b'#', target.as_bytes()).is_some() => Err(RequestHeadError::HashInTarget),
        (0, 0) => Ok(BodyDecoder::Complete),
        (1, 0) => Ok(BodyDecoder::from_length(length)),
        (0, 1) if is_chunked => Ok(BodyDecoder::Chunked(ChunkState::Size)),
        (0, _) => Err(RequestHeadError::TransferEncoding),
        _ => Err(RequestHeadError::AmbiguousLength),
    };
    Ok(RequestHead {
        parts,
        body,
        keep_alive: (is_http11 || says_keep_alive) && !says_close,
        expects_continue: expects_continue && is_http11,
        accepts_trailers,
    })
}

/// Bytes for ` HTTP/1.1`, the names of added fields, and line ends.
pub(super) const HEAD_OVERHEAD: usize = 64;
/// The longest target that the `http` crate accepts.
const MAX_TARGET: usize = 65_534;
/// Fields of a head for which the stack has room; more than the default limit.
const USUAL_FIELDS: usize = 200;
/// Fields that the proxy adds for the apiserver. Without room for them the map would grow, and move, in nearly every
/// request. Proof: `fields_of_the_proxy_fit_into_a_parsed_head`.
const ADDED_FIELDS: usize = 4;
