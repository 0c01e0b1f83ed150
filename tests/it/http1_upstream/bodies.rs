//! Where a response ends, by every way of saying so.

use super::{AfterResponse, Case, check_all};

/// A response with these lines behind its status line, and this behind its head.
fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n", body)
}

#[tokio::test]
async fn a_body_with_a_length_ends_there() {
    let large = "0123456789abcdef".repeat(20_000);
    let large_answer = ok(&format!("Content-Length: {}\r\n", large.len()), &large);
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
        Case::get("many records", large_answer)
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
async fn a_chunked_body_ends_with_its_last_chunk() {
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
            "the coding in other letters",
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

/// The end of TCP is no end of a body: only `close_notify` proves that nobody cut it.
#[tokio::test]
async fn a_body_without_a_length_ends_with_a_close_notify_alone() {
    let answers = [
        ok("", "hello"),
        "HTTP/1.0 200 OK\r\n\r\nhello".to_owned(),
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello".to_owned(),
    ];
    for answer in answers {
        check_all(&[
            Case::get("close_notify", &answer)
                .then(AfterResponse::Close)
                .is(200, "hello"),
            Case::get("close_notify, in pieces", &answer)
                .in_chunks_of(1)
                .then(AfterResponse::Close)
                .is(200, "hello"),
            Case::get("the end of TCP", &answer)
                .then(AfterResponse::CloseWithoutNotify)
                .aborted("hello"),
            Case::get("a reset", &answer)
                .then(AfterResponse::Reset)
                .aborted("hello"),
        ])
        .await;
    }
    check_all(&[
        Case::get("an empty body and close_notify", ok("", ""))
            .then(AfterResponse::Close)
            .is(200, ""),
        Case::get("an empty body and the end of TCP", ok("", ""))
            .then(AfterResponse::CloseWithoutNotify)
            .aborted(""),
    ])
    .await;
}

/// Not even `close_notify` ends a body before what its head promised.
#[tokio::test]
async fn a_body_that_stops_before_its_end_is_cut() {
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
            Case::get("in the line end of a size", chunked("5\r"))
                .aborted("")
                .then(then),
            Case::get("in a chunk", chunked("5\r\nhell"))
                .aborted("hell")
                .then(then),
            Case::get("behind a chunk", chunked("5\r\nhello"))
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
            Case::get("behind a trailer", chunked("5\r\nhello\r\n0\r\nX-A: 1\r\n"))
                .aborted("hello")
                .then(then),
            Case::get("in the last line end", chunked("5\r\nhello\r\n0\r\n\r"))
                .aborted("hello")
                .then(then),
        ])
        .await;
    }
}

/// A length in the head of such a response is not that of a body behind it.
#[tokio::test]
async fn a_response_without_a_body_ends_with_its_head() {
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
            "HEAD that is not found",
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

/// Bytes that belong to no response must never be taken for the next one.
#[tokio::test]
async fn bytes_behind_a_response_spoil_its_connection() {
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    let head = ok("Content-Length: 5\r\n", "");
    let no_content = "HTTP/1.1 204 No Content\r\n\r\n";
    check_all(&[
        Case::head("a body behind HEAD", format!("{head}hello")).is(200, ""),
        Case::head(
            "a chunked body behind HEAD",
            chunked("5\r\nhello\r\n0\r\n\r\n"),
        )
        .is(200, ""),
        Case::head("a response behind HEAD", format!("{head}{second}")).is(200, ""),
        Case::get("a body behind 204", format!("{no_content}hello")).is(204, ""),
        Case::get("a response behind 204", format!("{no_content}{second}")).is(204, ""),
        Case::get(
            "a body behind 304",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
        )
        .is(304, ""),
        Case::get("a response behind a length", format!("{head}hello{second}")).is(200, "hello"),
        Case::get(
            "a response behind no body",
            ok("Content-Length: 0\r\n", second),
        )
        .is(200, ""),
        Case::get(
            "a response behind a last chunk",
            chunked(&format!("5\r\nhello\r\n0\r\n\r\n{second}")),
        )
        .is(200, "hello"),
        Case::get("a byte behind a length", format!("{head}hello!")).is(200, "hello"),
        Case::get("a line end behind a length", format!("{head}hello\r\n")).is(200, "hello"),
        Case::get("a NUL behind a last chunk", chunked("0\r\n\r\n\0")).is(200, ""),
    ])
    .await;
}

/// The connection is as good behind trailers as behind none, whether or not the client takes them.
#[tokio::test]
async fn a_connection_is_used_again_behind_trailers() {
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
