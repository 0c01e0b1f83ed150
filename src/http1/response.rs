//! The head of a response: parsed from the bytes of an apiserver, and written for a client.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, response};
use httparse::{ParserConfig, Status};

use super::{BodyDecoder, ChunkState, MessageError, parse_length};
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
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        unread,
        &mut fields,
    );
    let length = match parsed.map_err(MessageError::Head)? {
        Status::Complete(length) if length <= MAX_HEAD_BYTES => length,
        Status::Partial if unread.len() < MAX_HEAD_BYTES => return Ok(None),
        Status::Complete(_) | Status::Partial => {
            return Err(MessageError::HeadTooLong {
                max: MAX_HEAD_BYTES,
            });
        }
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

/// Bytes of a response head.
pub(super) const MAX_HEAD_BYTES: usize = 32 * 1024;
/// kube-apiserver repeats `Warning`, and servers reached through services/proxy may set any field.
pub(super) const MAX_FIELDS: usize = 200;
