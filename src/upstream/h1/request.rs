//! A request as HTTP/1.1 carries it: its head, and how its body is marked off.

use bytes::{BufMut as _, BytesMut};
use http::{HeaderName, HeaderValue, Version, header, request::Parts};
use hyper::body::Body as _;

use crate::upstream::RequestBody;

/// How the body of a request is marked off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestFraming {
    /// So many bytes of it are still to be sent.
    Length(u64),
    Chunked,
}

impl RequestFraming {
    /// As the head of the request says it. A body without a length is sent in chunks, whatever the
    /// method: a GET may have one.
    pub(super) fn of(head: &Parts, body: &RequestBody) -> Self {
        let said = head.headers.get(header::CONTENT_LENGTH);
        match said.and_then(|length| length.to_str().ok()?.parse().ok()) {
            // Also when the body has none of it: then the upload is cut, and nothing that follows on the
            // connection is taken for the body.
            Some(length) => Self::Length(length),
            None if body.is_end_stream() => Self::Length(0),
            None => Self::Chunked,
        }
    }
}

/// The head of this request: path and query alone as target (RFC 9112 §3.2.1), the authority in `Host`.
pub(super) fn encode(head: &Parts, framing: RequestFraming) -> BytesMut {
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
        length + method.len() + target.len() + authority.map_or(0, str::len) + BESIDE,
    );
    for part in [method, " ", target, " HTTP/1.1\r\n"] {
        bytes.put_slice(part.as_bytes());
    }
    if let Some(authority) = authority {
        field(&mut bytes, &header::HOST, &[authority.as_bytes()]);
    }
    let joins_cookies = head.version == Version::HTTP_2;
    for (name, value) in &head.headers {
        let is_said_elsewhere = match *name {
            header::COOKIE => joins_cookies,
            header::HOST => authority.is_some(),
            // Whatever else might say where the body ends is how two parsers come to disagree.
            header::TRANSFER_ENCODING => true,
            header::CONTENT_LENGTH => framing == RequestFraming::Chunked,
            _ => false,
        };
        if is_said_elsewhere {
            continue;
        }
        field(&mut bytes, name, &[value.as_bytes()]);
    }
    if joins_cookies {
        cookies(&mut bytes, head.headers.get_all(header::COOKIE).iter());
    }
    if framing == RequestFraming::Chunked {
        field(&mut bytes, &header::TRANSFER_ENCODING, &[b"chunked"]);
    }
    bytes.put_slice(b"\r\n");
    bytes
}

/// Joins the `Cookie` lines that HTTP/2 may split (RFC 9113 §8.2.3).
fn cookies<'a>(bytes: &mut BytesMut, crumbs: impl Iterator<Item = &'a HeaderValue>) {
    let mut pieces: Vec<&[u8]> = Vec::new();
    for crumb in crumbs {
        if !pieces.is_empty() {
            pieces.push(b"; ");
        }
        pieces.push(crumb.as_bytes());
    }
    if !pieces.is_empty() {
        field(bytes, &header::COOKIE, &pieces);
    }
}

fn field(bytes: &mut BytesMut, name: &HeaderName, value: &[&[u8]]) {
    bytes.put_slice(name.as_str().as_bytes());
    bytes.put_slice(b": ");
    for piece in value {
        bytes.put_slice(piece);
    }
    bytes.put_slice(b"\r\n");
}

/// Room for ` HTTP/1.1`, the names that are added, and line ends.
const BESIDE: usize = 64;

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_head_has_its_target_its_host_and_its_fields() {
        for (version, cookies) in [
            (Version::HTTP_11, "cookie: a=1\r\ncookie: b=2\r\n"),
            (Version::HTTP_2, ""),
        ] {
            let (head, ()) = Request::put("https://kube.test:6443/a?b=%20")
                .version(version)
                .header("x-one", "1")
                .header("host", "another.test")
                .header("content-length", "3")
                .header("transfer-encoding", "gzip")
                .header("cookie", "a=1")
                .header("cookie", "b=2")
                .body(())
                .unwrap()
                .into_parts();
            let joined = if cookies.is_empty() {
                "cookie: a=1; b=2\r\n"
            } else {
                ""
            };
            let expected = format!(
                "PUT /a?b=%20 HTTP/1.1\r\nhost: kube.test:6443\r\nx-one: 1\r\n{cookies}{joined}transfer-encoding: chunked\r\n\r\n"
            );
            assert_eq!(encode(&head, RequestFraming::Chunked), expected);
        }
    }

    #[test]
    fn a_head_is_written_without_growing() {
        let (head, ()) = Request::get("https://kube.test/")
            .body(())
            .unwrap()
            .into_parts();
        let bytes = encode(&head, RequestFraming::Chunked);
        let room = bytes.capacity() - bytes.len();
        assert!(room <= BESIDE, "{room}");
    }
}
