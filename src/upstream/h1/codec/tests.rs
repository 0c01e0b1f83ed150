//! Heads and bodies: what is accepted, what is refused, and that reads of any size give the same result.

use http::Request;

use super::*;

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
        assert_eq!(encode_head(&head, RequestFraming::Chunked), expected);
    }
}

#[test]
fn request_head_fits_into_its_first_buffer() {
    let (head, ()) = Request::get("https://kube.test/")
        .body(())
        .unwrap()
        .into_parts();
    let bytes = encode_head(&head, RequestFraming::Chunked);
    let room = bytes.capacity() - bytes.len();
    assert!(room <= HEAD_OVERHEAD, "{room}");
}

fn head(text: &str) -> Result<ResponseHead, H1Error> {
    take_head(&mut text.to_owned().into(), &Method::GET).map(|head| head.expect("a complete head"))
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
            let head = take_head(&mut unread, &method).unwrap().unwrap();
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
            matches!(refused, Err(H1Error::Framing(_))),
            "{fields:?}: {refused:?}"
        );
    }
    let old = head("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    assert!(matches!(old, Err(H1Error::Framing(_))), "{old:?}");
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
            matches!(refused, Err(H1Error::Head(_))),
            "{text:?}: {refused:?}"
        );
    }
}

#[test]
fn head_above_field_or_byte_limit_is_refused() {
    let head = |fields: &str| {
        let mut unread = Bytes::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
        take_head(&mut unread, &Method::GET)
    };
    assert!(matches!(head(&"a: b\r\n".repeat(MAX_FIELDS)), Ok(Some(_))));
    assert!(matches!(
        head(&"a: b\r\n".repeat(MAX_FIELDS + 1)),
        Err(H1Error::Head(_))
    ));
    let overhead = "HTTP/1.1 200 OK\r\na: \r\n\r\n".len();
    let long = |length| format!("a: {}\r\n", "x".repeat(length - overhead));
    assert!(matches!(head(&long(MAX_HEAD_BYTES)), Ok(Some(_))));
    assert!(matches!(
        head(&long(MAX_HEAD_BYTES + 1)),
        Err(H1Error::HeadTooLong { .. })
    ));
    let mut endless =
        Bytes::from("HTTP/1.1 200 OK\r\na: ".to_owned() + &"x".repeat(MAX_HEAD_BYTES));
    let refused = take_head(&mut endless, &Method::GET);
    assert!(matches!(refused, Err(H1Error::HeadTooLong { .. })));
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
        (BodyDecoder::Chunked(ChunkState::Trailers), false),
    ] {
        assert_eq!(rest.close().is_ok(), is_whole, "{rest:?}");
    }
}
