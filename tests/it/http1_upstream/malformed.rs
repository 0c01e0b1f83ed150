//! Malformed responses, and responses that two parsers could read in two ways. The proxy refuses them, or aborts
//! them when the client already has a part.

use super::{AfterResponse, Case, check_all};

fn ok(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n")
}

fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n") + body
}

#[tokio::test]
async fn response_that_is_not_http1_is_refused() {
    check_all(&[
        Case::get("an HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        Case::get(
            "an HTTP/2 SETTINGS frame",
            b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        ),
        Case::get(
            "a TLS record",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ),
        Case::get("words", "Client sent an HTTP request to an HTTPS server.\n"),
        Case::get("a request", "GET / HTTP/1.1\r\nHost: kube.test\r\n\r\n"),
        Case::get("HTTP/0.9", "<html>hello</html>").then(AfterResponse::Close),
        Case::get("HTTP/1.2", "HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n"),
        Case::get("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        Case::get("HTTP/3", "HTTP/3 200 OK\r\nContent-Length: 0\r\n\r\n"),
        Case::get("another protocol", "ICAP/1.0 200 OK\r\n\r\n"),
        Case::get("lower case", "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ])
    .await;
}

#[tokio::test]
async fn invalid_status_is_refused() {
    let response = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    check_all(&[
        Case::get("99", response("99 Low")),
        Case::get("099", response("099 Low")),
        Case::get("000", response("000 None")),
        Case::get("1000", response("1000 High")),
        Case::get("+20", response("+20 OK")),
        Case::get("letters", response("OK 200")),
        Case::get("nothing", response("")),
        Case::get("two digits and a letter", response("20O OK")),
        Case::get("a NUL in the reason", response("200 O\0K")),
        Case::get("a bare CR in the reason", response("200 O\rK")),
    ])
    .await;
}

/// Unusual, but with one meaning only.
#[tokio::test]
async fn unusual_but_unambiguous_status_line_is_accepted() {
    let response = |line: &str| format!("{line}\r\nContent-Length: 5\r\n\r\nhello");
    check_all(&[
        Case::get("no reason", response("HTTP/1.1 200 "))
            .is(200, "hello")
            .reused(),
        Case::get("no reason and no space", response("HTTP/1.1 200"))
            .is(200, "hello")
            .reused(),
        Case::get(
            "a long reason",
            response("HTTP/1.1 200 All good: 100%, \"fine\""),
        )
        .is(200, "hello")
        .reused(),
        Case::get("an unregistered status", response("HTTP/1.1 799 Odd"))
            .is(799, "hello")
            .reused(),
        Case::get(
            "line endings without CR",
            "HTTP/1.1 200 OK\nContent-Length: 5\nX-A: 1\n\nhello",
        )
        .is(200, "hello")
        .reused(),
    ])
    .await;
}

#[tokio::test]
async fn malformed_header_field_is_refused() {
    let response = |line: &str| ok(&format!("X-A: 1\r\n{line}\r\nContent-Length: 0\r\n"));
    check_all(&[
        Case::get("a folded line", response("X-B: 2\r\n 3")),
        Case::get("a folded line with a tab", response("X-B: 2\r\n\t3")),
        Case::get("a space before the colon", response("X-B : 2")),
        Case::get("a tab before the colon", response("X-B\t: 2")),
        Case::get(
            "a space before the first name",
            ok(" X-A: 1\r\nContent-Length: 0\r\n"),
        ),
        Case::get("a space in the name", response("X B: 2")),
        Case::get("no name", response(": 2")),
        Case::get("no colon", response("X-B")),
        Case::get("a NUL in the name", response("X\0B: 2")),
        Case::get("a NUL in the value", response("X-B: 2\x003")),
        Case::get("a bare CR in the value", response("X-B: 2\r3")),
        Case::get("a DEL in the value", response("X-B: 2\x7f")),
        Case::get("a letter outside ASCII in the name", response("X-Ä: 2")),
    ])
    .await;
}

/// A parser that takes the first length and a parser that takes the second see two different responses.
#[tokio::test]
async fn content_length_that_is_not_one_number_is_refused() {
    let response = |length: &str| ok(&format!("Content-Length: {length}\r\n")) + "hello";
    let two = |first: &str, second: &str| {
        ok(&format!(
            "Content-Length: {first}\r\nContent-Length: {second}\r\n"
        )) + "hello"
    };
    check_all(&[
        Case::get("two lines that differ", two("5", "4")),
        Case::get("two lines, one of them not a number", two("5", "x")),
        Case::get("two lines, one of them empty", two("", "5")),
        Case::get("a list that differs", response("5, 4")),
        Case::get("a plus sign", response("+5")),
        Case::get("a minus sign", response("-5")),
        Case::get("hexadecimal", response("0x5")),
        Case::get("a letter after it", response("5a")),
        Case::get("two numbers", response("5 5")),
        Case::get("a fraction", response("5.0")),
        Case::get("nothing", response("")),
        Case::get("more than 64 bits", response("18446744073709551616")),
        Case::get("far more than 64 bits", response(&"9".repeat(100))),
        Case::get(
            "the largest 64-bit number",
            response("18446744073709551615"),
        ),
    ])
    .await;
}

/// Strict and lenient parsers disagree about these, so the proxy refuses them.
#[tokio::test]
async fn transfer_coding_in_http1_0_is_refused() {
    let body = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    check_all(&[
        Case::get("alone", format!("HTTP/1.0 200 OK\r\n{body}")),
        Case::get(
            "with a length",
            format!("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n{body}"),
        ),
        Case::get(
            "kept alive",
            format!("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n{body}"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn malformed_chunk_aborts_the_response() {
    check_all(&[
        Case::get("no size", chunked("\r\nhello\r\n0\r\n\r\n")).aborted(""),
        Case::get(
            "a size that is not a number",
            chunked("x\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "a letter after the size",
            chunked("5g\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "a prefix before the size",
            chunked("0x5\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get("a plus sign", chunked("+5\r\nhello\r\n0\r\n\r\n")).aborted(""),
        Case::get("a minus sign", chunked("-5\r\nhello\r\n0\r\n\r\n")).aborted(""),
        Case::get(
            "a space before the size",
            chunked(" 5\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "more than 64 bits",
            chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "far more than 64 bits",
            chunked(&format!("{}\r\nhello", "f".repeat(100))),
        )
        .aborted(""),
        Case::get("a bare CR after the size", chunked("5\rhello\r\n0\r\n\r\n")).aborted(""),
        Case::get("a bare LF after the size", chunked("5\nhello\r\n0\r\n\r\n")).aborted(""),
        Case::get(
            "a bare LF in an extension",
            chunked("5;a\n\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "no line ending after the data",
            chunked("5\r\nhello0\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get("a bare LF after the data", chunked("5\r\nhello\n0\r\n\r\n")).aborted("hello"),
        Case::get("a bare CR after the data", chunked("5\r\nhello\r0\r\n\r\n")).aborted("hello"),
        Case::get(
            "more data than the size",
            chunked("5\r\nhello!\r\n0\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "a bare LF after the last chunk",
            chunked("5\r\nhello\r\n0\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "a malformed trailer",
            chunked("5\r\nhello\r\n0\r\nX A: 1\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "a trailer without a colon",
            chunked("5\r\nhello\r\n0\r\nX-A\r\n\r\n"),
        )
        .aborted("hello"),
    ])
    .await;
}

/// The proxy must not allocate the announced size. It forwards the bytes that arrived, and aborts at the close.
#[tokio::test]
async fn huge_announced_size_is_aborted_at_the_close() {
    check_all(&[
        Case::get(
            "the largest 63-bit number",
            chunked("7fffffffffffffff\r\nhello"),
        )
        .then(AfterResponse::Close)
        .aborted("hello"),
        Case::get(
            "a large length",
            ok("Content-Length: 9223372036854775807\r\n") + "hello",
        )
        .then(AfterResponse::Close)
        .aborted("hello"),
    ])
    .await;
}

/// The memory that an apiserver can use in the proxy is bounded: about 32 KiB of head, and 200 fields.
#[tokio::test]
async fn long_head_is_accepted_up_to_a_limit() {
    let body = "Content-Length: 5\r\n";
    let fields = |count: usize| {
        let lines: String = (1..count)
            .map(|number| format!("X-{number}: 1\r\n"))
            .collect();
        ok(&(lines + body)) + "hello"
    };
    let long = |size: usize| {
        let rest = ok(&format!("X-A: \r\n{body}")).len();
        ok(&format!("X-A: {}\r\n{body}", "a".repeat(size - rest))) + "hello"
    };
    let reason = format!("HTTP/1.1 200 {}", "a".repeat(512 << 10));
    check_all(&[
        Case::get("200 fields", fields(200))
            .is(200, "hello")
            .reused(),
        Case::get("2000 fields", fields(2000))
            .is(200, "hello")
            .reused(),
        Case::get("20000 fields", fields(20_000)),
        Case::get("30 KiB", long(30 << 10))
            .is(200, "hello")
            .reused(),
        Case::get("30 KiB in pieces", long(30 << 10))
            .in_chunks_of(1000)
            .is(200, "hello")
            .reused(),
        Case::get("128 KiB in pieces", long(128 << 10))
            .in_chunks_of(1000)
            .is(200, "hello")
            .reused(),
        Case::get("300 KiB", long(300 << 10)),
        Case::get("300 KiB in pieces", long(300 << 10)).in_chunks_of(1000),
        Case::get("a line that never ends", reason),
        Case::get("1 MiB", long(1 << 20)),
    ])
    .await;
}

#[tokio::test]
async fn incomplete_head_is_refused() {
    for then in [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ] {
        check_all(&[
            Case::get("before the first byte", "").then(then),
            Case::get("in the status line", "HTTP/1.1 20").then(then),
            Case::get("after the status line", "HTTP/1.1 200 OK\r\n").then(then),
            Case::get("in a field", "HTTP/1.1 200 OK\r\nContent-Len").then(then),
            Case::get(
                "in the last line ending",
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r",
            )
            .then(then),
        ])
        .await;
    }
}
