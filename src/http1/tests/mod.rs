//! Heads and bodies: what is accepted, what is refused, and that reads of any size give the same result.

mod slow_io;

use bytes::Bytes;
use http::{Method, Request, Version, header};

use super::{
    body::{MAX_CHUNK_LINES, MAX_TRAILERS},
    fuzz::decode_pieces,
    request::{HEAD_OVERHEAD, RequestHeadError},
    *,
};

/// Limits of the request heads of these tests.
const MAX_FIELDS: usize = 200;
const MAX_HEAD_BYTES: usize = 32 * 1024;

#[test]
fn request_head_has_target_host_and_fields() {
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
        assert_eq!(
            encode_request_head(&head, RequestFraming::Chunked),
            expected
        );
    }
}

#[test]
fn request_head_fits_into_its_first_buffer() {
    let (head, ()) = Request::get("https://kube.test/")
        .body(())
        .unwrap()
        .into_parts();
    let bytes = encode_request_head(&head, RequestFraming::Chunked);
    let room = bytes.capacity() - bytes.len();
    assert!(room <= HEAD_OVERHEAD, "{room}");
}

fn head(text: &str) -> Result<ResponseHead, MessageError> {
    take_response_head(&mut text.to_owned().into(), &Method::GET)
        .map(|head| head.expect("a complete head"))
}

#[test]
fn head_gives_body_length_and_keep_alive() {
    for (fields, body, keep_alive) in [
        ("content-length: 5\r\n", BodyDecoder::Length(5), true),
        ("Content-Length: 0\r\n", BodyDecoder::Complete, true),
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
            BodyDecoder::Chunked(ChunkState::Size),
            true,
        ),
        (
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            BodyDecoder::Chunked(ChunkState::Size),
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
            BodyDecoder::Complete => assert_eq!(lengths, ["0"], "{fields:?}"),
            BodyDecoder::Chunked(_) | BodyDecoder::UntilClose => {
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
fn response_without_body_has_none_whatever_its_fields_say() {
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
            let head = take_response_head(&mut unread, &method).unwrap().unwrap();
            assert_eq!(
                (head.body, head.keep_alive),
                (BodyDecoder::Complete, true),
                "{status}"
            );
            assert_eq!(unread, "rest");
        }
    }
}

#[test]
fn ambiguous_body_length_is_refused() {
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
            matches!(refused, Err(MessageError::Framing(_))),
            "{fields:?}: {refused:?}"
        );
    }
    let old = head("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    assert!(matches!(old, Err(MessageError::Framing(_))), "{old:?}");
}

#[test]
fn malformed_head_is_refused() {
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
            matches!(refused, Err(MessageError::Head(_))),
            "{text:?}: {refused:?}"
        );
    }
}

#[test]
fn head_above_field_or_byte_limit_is_refused() {
    let head = |fields: &str| {
        let mut unread = Bytes::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
        take_response_head(&mut unread, &Method::GET)
    };
    // HTTP/2 counts 32 bytes more for each field.
    let most = MAX_RESPONSE_HEAD / (2 + 32);
    assert!(matches!(head(&"a: b\r\n".repeat(most)), Ok(Some(_))));
    let one = MAX_RESPONSE_HEAD - "a".len() - 32;
    let long = |length| format!("a: {}\r\n", "x".repeat(length));
    assert!(matches!(head(&long(one)), Ok(Some(_))));
    for fields in [
        "a: b\r\n".repeat(most + 1),
        "a: b\r\n".repeat(10 * most),
        long(one + 1),
        long(MAX_RESPONSE_HEAD),
    ] {
        let refused = head(&fields);
        assert!(
            matches!(refused, Err(MessageError::HeadTooLong { .. })),
            "{} bytes",
            fields.len()
        );
    }
    let mut endless =
        Bytes::from("HTTP/1.1 200 OK\r\na: ".to_owned() + &"x".repeat(MAX_RESPONSE_HEAD));
    let refused = take_response_head(&mut endless, &Method::GET);
    assert!(matches!(refused, Err(MessageError::HeadTooLong { .. })));
}

/// Data and the bytes after the body, if it is complete; the same for reads of any size.
fn chunked(text: &str) -> Option<(String, String)> {
    let mut seen: Vec<_> = (1..=text.len())
        .map(|size| {
            let (data, _, left) = decode_pieces(text.as_bytes().chunks(size))?;
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
fn chunks_end_after_their_size() {
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
fn bytes_after_the_body_stay_unread() {
    for left in ["H", "\r\n", "HTTP/1.1 200 OK\r\n"] {
        let body = format!("1\r\nx\r\n0\r\n\r\n{left}");
        let (data, _, unread) = decode_pieces([body.as_bytes()]).unwrap();
        assert_eq!(
            (data.as_slice(), unread.unwrap()),
            (b"x".as_slice(), left.into())
        );
    }
}

#[test]
fn malformed_chunk_is_refused() {
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
        "0\r\na: b\n\n",
        "0\r\na: b\r\n\n",
        "0\r\n\n",
        "0\r\n: c\r\n\r\n",
    ] {
        for size in 1..=body.len() {
            let read = decode_pieces(body.as_bytes().chunks(size));
            assert!(read.is_none(), "{body:?} in pieces of {size}: {read:?}");
        }
    }
}

#[test]
fn endless_chunk_lines_are_refused() {
    let endless = [
        format!("1;{}", "x".repeat(MAX_CHUNK_LINES)),
        format!("0\r\na: {}", "x".repeat(MAX_CHUNK_LINES)),
    ];
    for body in endless {
        assert!(decode_pieces(body.as_bytes().chunks(1000)).is_none());
    }
    let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(MAX_TRAILERS + 1));
    assert!(decode_pieces([many.as_bytes()]).is_none());
}

#[test]
fn close_completes_only_a_body_without_length() {
    for (mut rest, is_whole) in [
        (BodyDecoder::Complete, true),
        (BodyDecoder::UntilClose, true),
        (BodyDecoder::from_length(0), true),
        (BodyDecoder::from_length(1), false),
        (BodyDecoder::Chunked(ChunkState::Size), false),
        (BodyDecoder::Chunked(ChunkState::Data(1)), false),
        (BodyDecoder::Chunked(ChunkState::DataEnd), false),
        (BodyDecoder::Chunked(ChunkState::Trailers(0)), false),
    ] {
        assert_eq!(rest.close().is_ok(), is_whole, "{rest:?}");
    }
}

/// Takes one head out of these bytes.
fn request(text: &str) -> Result<Option<RequestHead>, RequestHeadError> {
    RequestParser::new(MAX_FIELDS, MAX_HEAD_BYTES).take(&mut text.to_owned().into())
}

fn request_with(fields: &str) -> Result<Option<RequestHead>, RequestHeadError> {
    request(&format!("POST /a HTTP/1.1\r\nhost: a\r\n{fields}\r\n"))
}

#[test]
fn request_head_gives_target_fields_and_body() {
    let text = "\r\n\nPUT /a?b=%20 HTTP/1.1\r\nHost: kube.test\r\nX:  1 \r\nCookie:a\r\n\r\nbody";
    let mut unread = Bytes::from(text);
    let mut parser = RequestParser::new(MAX_FIELDS, MAX_HEAD_BYTES);
    let head = parser.take(&mut unread).unwrap().unwrap();
    assert_eq!(head.parts.method, Method::PUT);
    assert_eq!(head.parts.uri, "/a?b=%20");
    assert_eq!(head.parts.version, Version::HTTP_11);
    let fields = head.parts.headers.iter();
    let fields: Vec<_> = fields
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    assert_eq!(
        fields,
        [("host", &b"kube.test"[..]), ("x", b"1"), ("cookie", b"a")]
    );
    assert_eq!(head.body, Ok(BodyDecoder::Complete));
    assert_eq!(unread, "body");
}

#[test]
fn request_body_has_one_certain_end() {
    use RequestHeadError::{AmbiguousLength, Malformed, TransferEncoding};
    for (fields, body) in [
        ("content-length: 5", Ok(BodyDecoder::Length(5))),
        ("content-length:  \t 005 ", Ok(BodyDecoder::Length(5))),
        ("content-length: 0", Ok(BodyDecoder::Complete)),
        (
            "transfer-encoding: Chunked",
            Ok(BodyDecoder::Chunked(ChunkState::Size)),
        ),
        (
            "content-length: 5\r\ntransfer-encoding: chunked",
            Err(AmbiguousLength),
        ),
        (
            "transfer-encoding: chunked\r\ncontent-length: 0",
            Err(AmbiguousLength),
        ),
        (
            "content-length: 5\r\nx: y\r\ncontent-length: 5",
            Err(AmbiguousLength),
        ),
        (
            "content-length: 5\r\ncontent-length: 6",
            Err(AmbiguousLength),
        ),
        ("transfer-encoding: gzip, chunked", Err(TransferEncoding)),
        ("transfer-encoding: chunked, chunked", Err(TransferEncoding)),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            Err(TransferEncoding),
        ),
        ("transfer-encoding: chunked;q=1", Err(TransferEncoding)),
        ("transfer-encoding: xchunked", Err(TransferEncoding)),
        ("transfer-encoding:", Err(TransferEncoding)),
        ("content-length: +5", Err(Malformed)),
        ("content-length: -5", Err(Malformed)),
        ("content-length: 0x5", Err(Malformed)),
        ("content-length: 5 5", Err(Malformed)),
        ("content-length: 5, 5", Err(Malformed)),
        ("content-length:", Err(Malformed)),
        ("content-length: 99999999999999999999", Err(Malformed)),
    ] {
        let found = request_with(&format!("{fields}\r\n")).and_then(|head| head.unwrap().body);
        assert_eq!(found, body, "{fields:?}");
    }
    let old = request("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(old.unwrap_err(), Malformed);
}

#[test]
fn target_that_is_no_uri_has_its_own_error() {
    for target in ["/?q=\"a\"", "/?a<b", "/?a>b", "/<", "/a`", "/a\u{e9}"] {
        let parsed = request(&format!("GET {target} HTTP/1.1\r\n\r\n"));
        let expected = match target {
            // A character of more than one byte is passed on, as kube-apiserver takes it.
            "/a\u{e9}" => None,
            _ => Some(RequestHeadError::TargetCharacter),
        };
        assert_eq!(parsed.err(), expected, "{target}");
    }
}

#[test]
fn hash_in_a_request_target_is_found() {
    for (head, found) in [
        ("GET /a#b HTTP/1.1", Err(RequestHeadError::HashInTarget)),
        (
            "GET https://a/#b HTTP/1.1",
            Err(RequestHeadError::HashInTarget),
        ),
        ("GET /%23 HTTP/1.1\r\nx: #", Ok(BodyDecoder::Complete)),
    ] {
        let taken = request(&format!("{head}\r\n\r\n")).unwrap().unwrap();
        assert_eq!(taken.body, found, "{head:?}");
    }
}

#[test]
fn connection_and_version_decide_about_keep_alive() {
    for (version, fields, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "connection: keep-alive, Close\r\n", false),
        (
            "1.1",
            "connection: close\r\nconnection: keep-alive\r\n",
            false,
        ),
        ("1.1", "connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "connection: Keep-Alive\r\n", true),
        (
            "1.0",
            "connection: keep-alive\r\nconnection: close\r\n",
            false,
        ),
    ] {
        let head = request(&format!("GET / HTTP/{version}\r\n{fields}\r\n"));
        assert_eq!(
            head.unwrap().unwrap().keep_alive,
            keep_alive,
            "{version} {fields:?}"
        );
    }
}

#[test]
fn malformed_request_is_refused() {
    for text in [
        "PRI * HTTP/2.0\r\n\r\n",
        "\x16\x03\x01\r\n\r\n",
        "GET / HTTP/1.2\r\n\r\n",
        "GET /\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET /  HTTP/1.1\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        " GET / HTTP/1.1\r\n\r\n",
        "G(T / HTTP/1.1\r\n\r\n",
        "GET /\0 HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\r\n\r\n",
        "GET / HTTP/1.1\r\n x: a\r\n\r\n",
        "GET / HTTP/1.1\r\nx : a\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nx: a\0\r\n\r\n",
        "GET / HTTP/1.1\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nx\r\n\r\n",
    ] {
        let refused = request(text);
        assert_eq!(
            refused.unwrap_err(),
            RequestHeadError::Malformed,
            "{text:?}"
        );
    }
}

#[test]
fn request_above_a_limit_is_refused_however_it_is_cut() {
    let overhead = "GET / HTTP/1.1\r\na: \r\n\r\n".len();
    let field = |length| {
        format!(
            "GET / HTTP/1.1\r\na: {}\r\n\r\n",
            "x".repeat(length - overhead)
        )
    };
    let target = |length| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(length));
    let fields = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
    for (text, error) in [
        (field(MAX_HEAD_BYTES), None),
        (
            field(MAX_HEAD_BYTES + 1),
            Some(RequestHeadError::FieldsTooLong),
        ),
        (
            target(MAX_HEAD_BYTES),
            Some(RequestHeadError::TargetTooLong),
        ),
        (fields(MAX_FIELDS), None),
        (
            fields(MAX_FIELDS + 1),
            Some(RequestHeadError::TooManyFields),
        ),
    ] {
        for size in [1000, text.len()] {
            let mut parser = RequestParser::new(MAX_FIELDS, MAX_HEAD_BYTES);
            let mut unread = Bytes::new();
            let taken = text.as_bytes().chunks(size).find_map(|piece| {
                unread = [&unread, piece].concat().into();
                parser.take(&mut unread).transpose()
            });
            assert_eq!(taken.unwrap().err(), error, "in pieces of {size}");
        }
    }
    let mut wide = RequestParser::new(10_001, 1024 * 1024);
    let head = wide.take(&mut fields(10_001).into()).unwrap().unwrap();
    assert_eq!(head.parts.headers.len(), 10_001);
    let mut long = RequestParser::new(MAX_FIELDS, 144 * 1024);
    let refused = long.take(&mut target(70_000).into());
    assert_eq!(refused.unwrap_err(), RequestHeadError::TargetTooLong);
}

#[test]
fn requests_of_a_connection_are_found_in_order() {
    let text = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nGET /\
                POST /2 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nGET /\r\n0\r\nt: 1\r\n\r\n\r\n\
                GET /3 HTTP/1.0\r\n\r\nGET /4 HTTP/1.1\r\n\r\n";
    let found = requests(text.as_bytes());
    let found: Vec<_> = found
        .iter()
        .map(|request| {
            (
                request.target.as_str(),
                request.body.as_slice(),
                request.may_continue,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("/1", &b"GET /"[..], true),
            ("/2", b"GET /", true),
            ("/3", b"", false)
        ]
    );
    for (end, is_refused) in [("5\nhello", true), ("5\r\nhel", false)] {
        let text = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{end}");
        let found = requests(text.as_bytes());
        assert_eq!(found.len(), 1);
        assert!(!found[0].may_continue);
        let refused = matches!(found[0].end, RequestEnd::Refused(_));
        assert_eq!(refused, is_refused, "{:?}", found[0]);
    }
}
