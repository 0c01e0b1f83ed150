//! Where a response ends, for every framing.

use super::{AfterResponse, Case, check_all};

/// A response with these header lines and this body.
fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n", body)
}

#[tokio::test]
async fn body_with_a_length_ends_at_that_length() {
    let large = "0123456789abcdef".repeat(20_000);
    let large_response = ok(&format!("Content-Length: {}\r\n", large.len()), &large);
    check_all(&[
        Case::get("five bytes", ok("Content-Length: 5\r\n", "hello"))
            .is(200, "hello")
            .reused(),
        Case::get("no byte", ok("Content-Length: 0\r\n", ""))
            .is(200, "")
            .reused(),
        Case::get("leading zeros", ok("Content-Length: 0005\r\n", "hello"))
            .is(200, "hello")
            .reused(),
        Case::get(
            "spaces around the length",
            ok("Content-Length: \t 5 \t\r\n", "hello"),
        )
        .is(200, "hello")
        .reused(),
        Case::get("many records", large_response)
            .is(200, large)
            .reused(),
        Case::get("byte by byte", ok("Content-Length: 5\r\n", "hello"))
            .in_chunks_of(1)
            .is(200, "hello")
            .reused(),
    ])
    .await;
}

#[tokio::test]
async fn chunked_body_ends_with_its_last_chunk() {
    let hello = "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let hex = format!("1A\r\n{0}\r\n1a\r\n{0}\r\n0\r\n\r\n", "x".repeat(26));
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(2000));
    check_all(&[
        Case::get("in one write", chunked(hello))
            .is(200, "hello world")
            .reused(),
        Case::get("byte by byte", chunked(hello))
            .in_chunks_of(1)
            .is(200, "hello world")
            .reused(),
        Case::get("three bytes at a time", chunked(hello))
            .in_chunks_of(3)
            .is(200, "hello world")
            .reused(),
        Case::get(
            "the coding in another case",
            ok("transfer-encoding: Chunked\r\n", hello),
        )
        .is(200, "hello world")
        .reused(),
        Case::get("no chunk but the last", chunked("0\r\n\r\n"))
            .is(200, "")
            .reused(),
        Case::get("digits in upper and lower case", chunked(&hex))
            .is(200, "x".repeat(52))
            .reused(),
        Case::get(
            "sizes with leading zeros",
            chunked("00000005\r\nhello\r\n000\r\n\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get(
            "extensions",
            chunked("5;a=1;b=\"2\"\r\nhello\r\n0;last\r\n\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get("a long extension", chunked(&long))
            .is(200, "hello")
            .reused(),
    ])
    .await;
}

/// A TCP close does not end a body: only `close_notify` proves that no attacker truncated it.
#[tokio::test]
async fn body_without_a_length_ends_only_with_close_notify() {
    let responses = [
        ok("", "hello"),
        "HTTP/1.0 200 OK\r\n\r\nhello".to_owned(),
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello".to_owned(),
    ];
    for response in responses {
        check_all(&[
            Case::get("close_notify", &response)
                .then(AfterResponse::Close)
                .is(200, "hello"),
            Case::get("close_notify, in pieces", &response)
                .in_chunks_of(1)
                .then(AfterResponse::Close)
                .is(200, "hello"),
            Case::get("a TCP close", &response)
                .then(AfterResponse::CloseWithoutNotify)
                .aborted("hello"),
            Case::get("a reset", &response)
                .then(AfterResponse::Reset)
                .aborted("hello"),
        ])
        .await;
    }
    check_all(&[
        Case::get("an empty body and close_notify", ok("", ""))
            .then(AfterResponse::Close)
            .is(200, ""),
        Case::get("an empty body and a TCP close", ok("", ""))
            .then(AfterResponse::CloseWithoutNotify)
            .aborted(""),
    ])
    .await;
}

/// A body that is shorter than its framing says is incomplete, even after `close_notify`.
#[tokio::test]
async fn body_that_stops_before_its_end_is_aborted() {
    for then in [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ] {
        check_all(&[
            Case::get("in a length", ok("Content-Length: 9\r\n", "hell"))
                .aborted("hell")
                .then(then),
            Case::get("before the first byte", ok("Content-Length: 9\r\n", ""))
                .aborted("")
                .then(then),
            Case::get("before a chunk", chunked(""))
                .aborted("")
                .then(then),
            Case::get("in a chunk size", chunked("5\r\nhello\r\n1"))
                .aborted("hello")
                .then(then),
            Case::get("in an extension", chunked("5;a="))
                .aborted("")
                .then(then),
            Case::get("in the line ending of a size", chunked("5\r"))
                .aborted("")
                .then(then),
            Case::get("in a chunk", chunked("5\r\nhell"))
                .aborted("hell")
                .then(then),
            Case::get("after a chunk", chunked("5\r\nhello"))
                .aborted("hello")
                .then(then),
            Case::get("before the last chunk", chunked("5\r\nhello\r\n"))
                .aborted("hello")
                .then(then),
            Case::get("in the last chunk", chunked("5\r\nhello\r\n0\r\n"))
                .aborted("hello")
                .then(then),
            Case::get("in a trailer", chunked("5\r\nhello\r\n0\r\nX-A: "))
                .aborted("hello")
                .then(then),
            Case::get("after a trailer", chunked("5\r\nhello\r\n0\r\nX-A: 1\r\n"))
                .aborted("hello")
                .then(then),
            Case::get("in the last line ending", chunked("5\r\nhello\r\n0\r\n\r"))
                .aborted("hello")
                .then(then),
        ])
        .await;
    }
}

/// The length in the head of such a response does not announce a body.
#[tokio::test]
async fn response_without_a_body_ends_with_its_head() {
    check_all(&[
        Case::head("HEAD with a length", ok("Content-Length: 5\r\n", ""))
            .is(200, "")
            .reused(),
        Case::head("HEAD with a coding", chunked(""))
            .is(200, "")
            .reused(),
        Case::head("HEAD with neither", ok("", ""))
            .is(200, "")
            .reused(),
        Case::head(
            "HEAD with a 404",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n",
        )
        .is(404, "")
        .reused(),
        Case::get("204", "HTTP/1.1 204 No Content\r\n\r\n")
            .is(204, "")
            .reused(),
        Case::get(
            "204 with a length",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        )
        .is(204, "")
        .reused(),
        Case::get(
            "204 with a coding",
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .is(204, "")
        .reused(),
        Case::get("304", "HTTP/1.1 304 Not Modified\r\n\r\n")
            .is(304, "")
            .reused(),
        Case::get(
            "304 with a length",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        )
        .is(304, "")
        .reused(),
        Case::get(
            "205 with a length",
            "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n",
        )
        .is(205, "")
        .reused(),
        Case::get(
            "205 with a coding",
            "HTTP/1.1 205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        )
        .is(205, "")
        .reused(),
    ])
    .await;
}

/// The proxy must never take extra bytes for the next response.
#[tokio::test]
async fn extra_bytes_after_a_response_poison_its_connection() {
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    let head = ok("Content-Length: 5\r\n", "");
    let no_content = "HTTP/1.1 204 No Content\r\n\r\n";
    check_all(&[
        Case::head("a body after HEAD", format!("{head}hello")).is(200, ""),
        Case::head(
            "a chunked body after HEAD",
            chunked("5\r\nhello\r\n0\r\n\r\n"),
        )
        .is(200, ""),
        Case::head("a response after HEAD", format!("{head}{second}")).is(200, ""),
        Case::get("a body after 204", format!("{no_content}hello")).is(204, ""),
        Case::get("a response after 204", format!("{no_content}{second}")).is(204, ""),
        Case::get(
            "a body after 304",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
        )
        .is(304, ""),
        Case::get("a response after a length", format!("{head}hello{second}")).is(200, "hello"),
        Case::get(
            "a response after an empty body",
            ok("Content-Length: 0\r\n", second),
        )
        .is(200, ""),
        Case::get(
            "a response after a last chunk",
            chunked(&format!("5\r\nhello\r\n0\r\n\r\n{second}")),
        )
        .is(200, "hello"),
        Case::get("a byte after a length", format!("{head}hello!")).is(200, "hello"),
        Case::get("a line ending after a length", format!("{head}hello\r\n")).is(200, "hello"),
        Case::get("a NUL after a last chunk", chunked("0\r\n\r\n\0")).is(200, ""),
    ])
    .await;
}

/// Trailers do not prevent the reuse of a connection, whether or not the client accepts them.
#[tokio::test]
async fn connection_is_reused_after_trailers() {
    check_all(&[
        Case::get(
            "trailers",
            chunked("5\r\nhello\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get(
            "trailers byte by byte",
            chunked("5\r\nhello\r\n0\r\nX-A: 1\r\n\r\n"),
        )
        .in_chunks_of(1)
        .is(200, "hello")
        .reused(),
        Case::get(
            "a trailer without a value",
            chunked("5\r\nhello\r\n0\r\nX-A:\r\n\r\n"),
        )
        .is(200, "hello")
        .reused(),
    ])
    .await;
}
