//! The head of a response: parsed from the bytes of an apiserver, and written for a client.

use std::{fmt::Write as _, mem::MaybeUninit, time::SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, response,
};
use httparse::{ParserConfig, Status};
use hyper::body::SizeHint;

use super::{BodyDecoder, ChunkState, MessageError, parse_length, put_field};
use crate::text::{list_contains, list_items};

/// The head of one response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) parts: response::Parts,
    pub(crate) body: BodyDecoder,
    /// Whether the response allows another request on the connection.
    pub(crate) keep_alive: bool,
}

impl ResponseHead {
    /// Whether the final response is still to come (RFC 9110 §15.2). A 101 is final.
    pub(crate) fn is_interim(&self) -> bool {
        let status = self.parts.status;
        status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Takes the head of the response to a `method` request out of `unread`, once it is complete.
///
/// # Errors
///
/// When it is malformed or too long, or when the length of its body is ambiguous.
pub(crate) fn take_response_head(
    unread: &mut Bytes,
    method: &Method,
) -> Result<Option<ResponseHead>, MessageError> {
    if unread.is_empty() {
        return Ok(None);
    }
    let too_long = || MessageError::HeadTooLong {
        max: MAX_RESPONSE_HEAD,
    };
    let (config, mut many) = (ParserConfig::default(), Vec::new());
    let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let mut parsed = config.parse_response_with_uninit_headers(&mut response, unread, &mut few);
    if parsed == Err(httparse::Error::TooManyHeaders) {
        many.resize_with(MAX_FIELDS, MaybeUninit::uninit);
        response = httparse::Response::new(&mut []);
        parsed = config.parse_response_with_uninit_headers(&mut response, unread, &mut many);
    }
    let length = match parsed {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if unread.len() < MAX_RESPONSE_HEAD => return Ok(None),
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(too_long()),
        Err(error) => return Err(MessageError::Head(error)),
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(MessageError::Head(httparse::Error::Status))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| MessageError::Head(httparse::Error::HeaderName))?;
        // A slice of the read buffer, not a copy: it is written to the client soon.
        let value = HeaderValue::from_maybe_shared(unread.slice_ref(field.value))
            .map_err(|_| MessageError::Head(httparse::Error::HeaderValue))?;
        headers.append(name, value);
    }
    // Most heads are far too small.
    if length > MAX_RESPONSE_HEAD / FIELD_OVERHEAD && is_head_too_large(&headers) {
        return Err(too_long());
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

/// Whether the fields of a response are larger than [`MAX_RESPONSE_HEAD`], counted as HTTP/2 counts them (RFC 9113
/// §6.5.2), so that both protocols have the same limit.
pub(crate) fn is_head_too_large(headers: &HeaderMap) -> bool {
    let fields = headers.iter();
    let bytes: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD)
        .sum();
    bytes > MAX_RESPONSE_HEAD
}

/// Where the body ends, and whether its end leaves the connection usable.
fn response_framing(
    headers: &mut HeaderMap,
    is_http11: bool,
) -> Result<(BodyDecoder, bool), MessageError> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if !is_http11 {
            return Err(MessageError::Framing("transfer-encoding in HTTP/1.0"));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let only = codings.next().filter(|_| codings.next().is_none());
        // The request asks for none (`TE`), and this is the only one that can be decoded.
        if only.is_none_or(|only| !only.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(MessageError::Framing("transfer-encoding is not `chunked`"));
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
            return Err(MessageError::Framing("two values of content-length"));
        }
    }
    let length = first.ok_or(MessageError::Framing("content-length is not a number"))?;
    if is_repeated {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok((BodyDecoder::from_length(length), true))
}

/// How the end of a response body is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseFraming {
    /// The response has no body, whatever its fields say.
    NoBody,
    /// This many bytes are still to be sent.
    Length(u64),
    Chunked,
    /// The end of the connection. For HTTP/1.0, which has no chunks.
    UntilClose,
}

impl ResponseFraming {
    /// The framing of a response; `is_head` says whether the request has the method HEAD.
    pub(crate) fn new(is_head: bool, head: &response::Parts, body: &SizeHint) -> Self {
        let has_no_body = head.status.is_informational()
            || matches!(
                head.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        if has_no_body || is_head {
            return Self::NoBody;
        }
        let mut announced = head.headers.get_all(header::CONTENT_LENGTH).iter();
        let announced = announced.next().filter(|_| announced.next().is_none());
        let announced = announced.and_then(|length| parse_length(length.as_bytes()));
        match announced.or_else(|| body.exact()) {
            Some(length) => Self::Length(length),
            None if head.version == Version::HTTP_11 => Self::Chunked,
            None => Self::UntilClose,
        }
    }
}

/// Encodes the head of a response. `closes` says whether the connection ends after it.
pub(crate) fn encode_response_head(
    head: &response::Parts,
    framing: ResponseFraming,
    closes: bool,
) -> BytesMut {
    let is_http11 = head.version == Version::HTTP_11;
    let is_switch = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let fields = head.headers.iter();
    let length: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    let mut bytes = BytesMut::with_capacity(length + HEAD_OVERHEAD);
    let version: &[u8] = if is_http11 {
        b"HTTP/1.1 "
    } else {
        b"HTTP/1.0 "
    };
    let reason = head.status.canonical_reason().unwrap_or_default();
    for part in [
        version,
        head.status.as_str().as_bytes(),
        b" ",
        reason.as_bytes(),
        b"\r\n",
    ] {
        bytes.put_slice(part);
    }
    let mut has_date = false;
    for (name, value) in &head.headers {
        let is_replaced = match *name {
            header::CONTENT_LENGTH => {
                framing != ResponseFraming::NoBody || head.status == StatusCode::NO_CONTENT
            }
            header::TRANSFER_ENCODING => true,
            header::CONNECTION => !is_switch,
            header::DATE => {
                has_date = true;
                false
            }
            _ => false,
        };
        if !is_replaced {
            put_field(&mut bytes, name, &[value.as_bytes()]);
        }
    }
    match framing {
        ResponseFraming::Length(length) => {
            write!(bytes, "content-length: {length}\r\n").expect("a `BytesMut` grows");
        }
        ResponseFraming::Chunked => {
            put_field(&mut bytes, &header::TRANSFER_ENCODING, &[b"chunked"]);
        }
        ResponseFraming::NoBody | ResponseFraming::UntilClose => {}
    }
    if !is_switch {
        if closes {
            put_field(&mut bytes, &header::CONNECTION, &[b"close"]);
        }
        if !has_date {
            // RFC 9110 §6.6.1. kube-apiserver sends one itself, so few responses need it.
            let date = httpdate::fmt_http_date(SystemTime::now());
            put_field(&mut bytes, &header::DATE, &[date.as_bytes()]);
        }
    }
    bytes.put_slice(b"\r\n");
    bytes
}

/// Bytes for the status line, the fields that are added, and the size of the first chunk.
const HEAD_OVERHEAD: usize = 192;
/// Bytes of the head of a response. Room for many `Warning` fields, which kube-apiserver caps at about 4 Ki characters
/// per response, and for what servers set that are reached through services/proxy.
pub(crate) const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// Bytes that HTTP/2 adds to each field when it counts the size of a head.
const FIELD_OVERHEAD: usize = 32;
/// More fields than a head of this size can have.
pub(super) const MAX_FIELDS: usize = MAX_RESPONSE_HEAD / FIELD_OVERHEAD;
/// Fields of a head for which the stack has room.
const USUAL_FIELDS: usize = 200;
