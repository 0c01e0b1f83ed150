//! The head of a response, and what it says of the body and of the connection.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, response::Parts,
};
use httparse::{ParserConfig, Status};

use super::{
    H1Error,
    body::{BodyDecoder, ChunkState},
};
use crate::text::{list_contains, list_items};

/// The head of one response.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) parts: Parts,
    pub(super) body: BodyDecoder,
    /// Whether another request may follow on the connection, if all else is well.
    pub(super) keep_alive: bool,
}

impl ResponseHead {
    /// Whether the answer is still to come (RFC 9110 §15.2). A 101 is one.
    pub(super) fn is_interim(&self) -> bool {
        let status = self.parts.status;
        status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Takes the head of the answer to a request with this method out of `unread`, once it is whole.
///
/// # Errors
///
/// When it is malformed, too long, or does not say for certain where its body ends.
pub(super) fn take(unread: &mut Bytes, method: &Method) -> Result<Option<ResponseHead>, H1Error> {
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
    let too_long = H1Error::HeadTooLong {
        most: MAX_HEAD_BYTES,
    };
    let length = match parsed.map_err(H1Error::Head)? {
        Status::Complete(length) if length <= MAX_HEAD_BYTES => length,
        Status::Partial if unread.len() < MAX_HEAD_BYTES => return Ok(None),
        Status::Complete(_) | Status::Partial => return Err(too_long),
    };
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(H1Error::Head(httparse::Error::Status))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| H1Error::Head(httparse::Error::HeaderName))?;
        // A part of what was read and no copy: it is written to the client soon.
        let value = HeaderValue::from_maybe_shared(unread.slice_ref(field.value))
            .map_err(|_| H1Error::Head(httparse::Error::HeaderValue))?;
        headers.append(name, value);
    }
    let is_newest = response.version == Some(1);
    drop(unread.split_to(length));
    let has_option = |name| field_contains(&headers, header::CONNECTION, name);
    let mut keep_alive = (is_newest || has_option("keep-alive")) && !has_option("close");
    let never_has_one = status.is_informational() || status == StatusCode::NO_CONTENT;
    if never_has_one {
        // RFC 9110 §8.6: a length must not be said here; some clients would wait for so much.
        headers.remove(header::CONTENT_LENGTH);
    }
    let body = if never_has_one || method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        BodyDecoder::Nothing
    } else {
        let (body, is_clean) = framing(&mut headers, is_newest)?;
        keep_alive &= is_clean;
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

/// Where the body ends, and whether the connection can be used behind it.
fn framing(headers: &mut HeaderMap, is_newest: bool) -> Result<(BodyDecoder, bool), H1Error> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if !is_newest {
            return Err(H1Error::Framing("transfer-encoding in HTTP/1.0"));
        }
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let only = codings.next().filter(|_| codings.next().is_none());
        // None was asked for (`TE`), and none but this could be taken off.
        if only.is_none_or(|only| !only.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(H1Error::Framing("transfer-encoding is not `chunked`"));
        }
        // RFC 9112 §6.3: the coding counts, and the length must not go on.
        let length = headers.remove(header::CONTENT_LENGTH);
        return Ok((BodyDecoder::Chunks(ChunkState::Size), length.is_none()));
    }
    let mut lengths = headers
        .get_all(header::CONTENT_LENGTH)
        .iter()
        .flat_map(|line| list_items(line.as_bytes()))
        .map(number);
    let Some(first) = lengths.next() else {
        return Ok((BodyDecoder::UntilClose, false));
    };
    let mut said_again = false;
    for other in lengths {
        said_again = true;
        if other != first {
            return Err(H1Error::Framing("two values of content-length"));
        }
    }
    let length = first.ok_or(H1Error::Framing("content-length is no number"))?;
    if said_again {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Ok((BodyDecoder::length(length), true))
}

/// Digits and nothing else; no more than Go takes.
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let number: i64 = text.parse().ok()?;
    // Refuses a sign, which `parse` takes.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    u64::try_from(number).ok().filter(|_| is_number)
}

/// Whether a list of names has this one.
fn field_contains(headers: &HeaderMap, list: HeaderName, name: &str) -> bool {
    headers
        .get_all(list)
        .iter()
        .any(|line| list_contains(line.as_bytes(), name))
}

/// The longest head of a response.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// kube-apiserver repeats `Warning` lines, and backends behind services/proxy set what they like.
const MAX_FIELDS: usize = 200;

/// Fuzz body: a head is the same however it was cut.
pub(super) fn fuzz(bytes: &[u8]) {
    let whole = parse_pieces([bytes]);
    let pieces = parse_pieces(bytes.chunks(1));
    assert_eq!(whole, pieces, "the head depends on the cut");
}

/// Status, fields, body and reuse of a head that came in these pieces, if it is one.
type ParsedHead = (StatusCode, HeaderMap, BodyDecoder, bool);

fn parse_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<ParsedHead> {
    let mut unread = Bytes::new();
    for piece in pieces {
        unread = [&unread, piece].concat().into();
        if let Some(head) = take(&mut unread, &Method::GET).ok()? {
            return Some((
                head.parts.status,
                head.parts.headers,
                head.body,
                head.keep_alive,
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<ResponseHead, H1Error> {
        take(&mut text.to_owned().into(), &Method::GET).map(|head| head.expect("a whole head"))
    }

    #[test]
    fn says_where_the_body_ends_and_whether_another_request_may_follow() {
        for (fields, body, keep_alive) in [
            ("content-length: 5\r\n", BodyDecoder::Length(5), true),
            ("Content-Length: 0\r\n", BodyDecoder::Nothing, true),
            (
                "content-length: 5\r\nconnection: Keep-Alive, Close\r\n",
                BodyDecoder::Length(5),
                false,
            ),
            (
                "content-length: 5\r\ncontent-length: 5\r\n",
                BodyDecoder::Length(5),
                true,
            ),
            ("content-length: 5, 5\r\n", BodyDecoder::Length(5), true),
            (
                "transfer-encoding: Chunked\r\n",
                BodyDecoder::Chunks(ChunkState::Size),
                true,
            ),
            (
                "content-length: 5\r\ntransfer-encoding: chunked\r\n",
                BodyDecoder::Chunks(ChunkState::Size),
                false,
            ),
            ("", BodyDecoder::UntilClose, false),
        ] {
            let head = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).unwrap();
            assert_eq!(
                (head.body, head.keep_alive),
                (body, keep_alive),
                "{fields:?}"
            );
            let lengths = head.parts.headers.get_all(header::CONTENT_LENGTH).iter();
            let lengths: Vec<_> = lengths.collect();
            match body {
                BodyDecoder::Length(_) => assert_eq!(lengths, ["5"], "{fields:?}"),
                BodyDecoder::Nothing => assert_eq!(lengths, ["0"], "{fields:?}"),
                BodyDecoder::Chunks(_) | BodyDecoder::UntilClose => {
                    assert!(lengths.is_empty(), "{fields:?}")
                }
            }
        }
        let old = head("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n").unwrap();
        assert_eq!((old.body, old.keep_alive), (BodyDecoder::Length(5), false));
        let kept = head("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n");
        assert!(kept.unwrap().keep_alive);
    }

    #[test]
    fn a_response_without_body_has_none_whatever_it_says() {
        for (method, status) in [
            (Method::HEAD, 200),
            (Method::GET, 204),
            (Method::GET, 304),
            (Method::GET, 100),
            (Method::GET, 101),
        ] {
            for field in ["content-length: 5", "transfer-encoding: chunked", "a: b"] {
                let text = format!("HTTP/1.1 {status} x\r\n{field}\r\n\r\nrest");
                let mut unread = Bytes::from(text);
                let head = take(&mut unread, &method).unwrap().unwrap();
                assert_eq!(
                    (head.body, head.keep_alive),
                    (BodyDecoder::Nothing, true),
                    "{status}"
                );
                assert_eq!(unread, "rest");
            }
        }
    }

    #[test]
    fn an_uncertain_end_is_refused() {
        for fields in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 6\r\n",
            "content-length: +5\r\n",
            "content-length: 5x\r\n",
            "content-length: \r\n",
            "content-length: 9223372036854775808\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding:\r\n",
        ] {
            let refused = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            assert!(
                matches!(refused, Err(H1Error::Framing(_))),
                "{fields:?}: {refused:?}"
            );
        }
        let old = head("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert!(matches!(old, Err(H1Error::Framing(_))), "{old:?}");
    }

    #[test]
    fn malformed_heads_are_refused() {
        for text in [
            "PRI * HTTP/2.0\r\n\r\n",
            "\x15\x03\x01\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 99 x\r\n\r\n",
            "HTTP/1.1 1000 x\r\n\r\n",
            "HTTP/1.1 099 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\na : b\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
            "HTTP/1.1 200 OK\r\na: b\rc\r\n\r\n",
        ] {
            let refused = head(text);
            assert!(
                matches!(refused, Err(H1Error::Head(_))),
                "{text:?}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_head_may_have_so_many_fields_and_bytes_and_no_more() {
        let head = |fields: &str| {
            let mut unread = Bytes::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            take(&mut unread, &Method::GET)
        };
        assert!(matches!(head(&"a: b\r\n".repeat(MAX_FIELDS)), Ok(Some(_))));
        assert!(matches!(
            head(&"a: b\r\n".repeat(MAX_FIELDS + 1)),
            Err(H1Error::Head(_))
        ));
        let beside = "HTTP/1.1 200 OK\r\na: \r\n\r\n".len();
        let long = |length| format!("a: {}\r\n", "x".repeat(length - beside));
        assert!(matches!(head(&long(MAX_HEAD_BYTES)), Ok(Some(_))));
        assert!(matches!(
            head(&long(MAX_HEAD_BYTES + 1)),
            Err(H1Error::HeadTooLong { .. })
        ));
        let mut endless =
            Bytes::from("HTTP/1.1 200 OK\r\na: ".to_owned() + &"x".repeat(MAX_HEAD_BYTES));
        let refused = take(&mut endless, &Method::GET);
        assert!(matches!(refused, Err(H1Error::HeadTooLong { .. })));
    }
}
