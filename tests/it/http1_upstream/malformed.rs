//! Answers that are none, or that two readers could take in two ways: refused, or cut where the client has
//! part of them already.

use super::{AfterResponse, Case, check_all};

fn ok(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n")
}

fn chunked(body: &str) -> String {
    ok("Transfer-Encoding: chunked\r\n") + body
}

#[tokio::test]
async fn an_answer_that_is_not_http1_is_refused() {
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
        Case::get(
            "small letters",
            "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_status_that_is_no_status_is_refused() {
    let answer = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
    check_all(&[
        Case::get("99", answer("99 Low")),
        Case::get("099", answer("099 Low")),
        Case::get("000", answer("000 None")),
        Case::get("1000", answer("1000 High")),
        Case::get("+20", answer("+20 OK")),
        Case::get("letters", answer("OK 200")),
        Case::get("nothing", answer("")),
        Case::get("two digits and a letter", answer("20O OK")),
        Case::get("a NUL in the reason", answer("200 O\0K")),
        Case::get("a bare CR in the reason", answer("200 O\rK")),
    ])
    .await;
}

/// Odd, and clear all the same.
#[tokio::test]
async fn an_odd_status_line_that_is_clear_is_taken() {
    let answer = |line: &str| format!("{line}\r\nContent-Length: 5\r\n\r\nhello");
    check_all(&[
        Case::get("no reason", answer("HTTP/1.1 200 "))
            .is(200, "hello")
            .reused(),
        Case::get("no reason and no space", answer("HTTP/1.1 200"))
            .is(200, "hello")
            .reused(),
        Case::get(
            "a long reason",
            answer("HTTP/1.1 200 All is well: 100%, \"fine\""),
        )
        .is(200, "hello")
        .reused(),
        Case::get("a status that nobody knows", answer("HTTP/1.1 799 Odd"))
            .is(799, "hello")
            .reused(),
        Case::get(
            "line ends without CR",
            "HTTP/1.1 200 OK\nContent-Length: 5\nX-A: 1\n\nhello",
        )
        .is(200, "hello")
        .reused(),
    ])
    .await;
}

#[tokio::test]
async fn a_malformed_field_is_refused() {
    let answer = |line: &str| ok(&format!("X-A: 1\r\n{line}\r\nContent-Length: 0\r\n"));
    check_all(&[
        Case::get("a folded line", answer("X-B: 2\r\n 3")),
        Case::get("a folded line with a tab", answer("X-B: 2\r\n\t3")),
        Case::get("a space before the colon", answer("X-B : 2")),
        Case::get("a tab before the colon", answer("X-B\t: 2")),
        Case::get(
            "a space before the first name",
            ok(" X-A: 1\r\nContent-Length: 0\r\n"),
        ),
        Case::get("a space in the name", answer("X B: 2")),
        Case::get("no name", answer(": 2")),
        Case::get("no colon", answer("X-B")),
        Case::get("a NUL in the name", answer("X\0B: 2")),
        Case::get("a NUL in the value", answer("X-B: 2\x003")),
        Case::get("a bare CR in the value", answer("X-B: 2\r3")),
        Case::get("a DEL in the value", answer("X-B: 2\x7f")),
        Case::get("a letter outside ASCII in the name", answer("X-Ä: 2")),
    ])
    .await;
}

/// Whoever takes one length and whoever takes the other would see two different responses.
#[tokio::test]
async fn a_length_that_is_not_one_number_is_refused() {
    let answer = |length: &str| ok(&format!("Content-Length: {length}\r\n")) + "hello";
    let two = |first: &str, second: &str| {
        ok(&format!(
            "Content-Length: {first}\r\nContent-Length: {second}\r\n"
        )) + "hello"
    };
    check_all(&[
        Case::get("two lines that differ", two("5", "4")),
        Case::get("two lines of which one is none", two("5", "x")),
        Case::get("two lines of which one is empty", two("", "5")),
        Case::get("a list that differs", answer("5, 4")),
        Case::get("a plus sign", answer("+5")),
        Case::get("a minus sign", answer("-5")),
        Case::get("hexadecimal", answer("0x5")),
        Case::get("a letter behind it", answer("5a")),
        Case::get("two numbers", answer("5 5")),
        Case::get("a fraction", answer("5.0")),
        Case::get("nothing", answer("")),
        Case::get("more than 64 bits", answer("18446744073709551616")),
        Case::get("far more than 64 bits", answer(&"9".repeat(100))),
        Case::get("the largest of 64 bits", answer("18446744073709551615")),
    ])
    .await;
}

/// What can be read in one way only, whichever is the stricter reader.
#[tokio::test]
async fn a_coding_in_http1_0_is_refused() {
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
async fn a_malformed_chunk_cuts_the_response() {
    check_all(&[
        Case::get("no size", chunked("\r\nhello\r\n0\r\n\r\n")).aborted(""),
        Case::get(
            "a size that is no number",
            chunked("x\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "a letter behind the size",
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
        Case::get(
            "a bare CR behind the size",
            chunked("5\rhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "a bare LF behind the size",
            chunked("5\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "a bare LF in an extension",
            chunked("5;a\n\r\nhello\r\n0\r\n\r\n"),
        )
        .aborted(""),
        Case::get(
            "no line end behind the data",
            chunked("5\r\nhello0\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "a bare LF behind the data",
            chunked("5\r\nhello\n0\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "a bare CR behind the data",
            chunked("5\r\nhello\r0\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "more data than the size",
            chunked("5\r\nhello!\r\n0\r\n\r\n"),
        )
        .aborted("hello"),
        Case::get(
            "a bare LF behind the last chunk",
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

/// The largest size that counts is not one that anybody can hold; what came of it comes down, and then waits.
#[tokio::test]
async fn the_largest_chunk_is_cut_where_it_ends() {
    check_all(&[
        Case::get(
            "the largest of 63 bits",
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

/// What the apiserver may make the proxy hold is bounded: about 32 KiB of a head, 200 fields.
#[tokio::test]
async fn a_head_may_be_long_but_not_endless() {
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
    let reason = format!("HTTP/1.1 200 {}", "a".repeat(128 << 10));
    check_all(&[
        Case::get("200 fields", fields(200))
            .is(200, "hello")
            .reused(),
        Case::get("201 fields", fields(201)),
        Case::get("2000 fields", fields(2000)),
        Case::get("30 KiB", long(30 << 10))
            .is(200, "hello")
            .reused(),
        Case::get("30 KiB in pieces", long(30 << 10))
            .in_chunks_of(1000)
            .is(200, "hello")
            .reused(),
        Case::get("128 KiB", long(128 << 10)),
        Case::get("128 KiB in pieces", long(128 << 10)).in_chunks_of(1000),
        Case::get("a line that never ends", reason),
        Case::get("1 MiB", long(1 << 20)),
    ])
    .await;
}

#[tokio::test]
async fn a_head_that_stops_before_its_end_is_refused() {
    for then in [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ] {
        check_all(&[
            Case::get("before the first byte", "").then(then),
            Case::get("in the status line", "HTTP/1.1 20").then(then),
            Case::get("behind the status line", "HTTP/1.1 200 OK\r\n").then(then),
            Case::get("in a field", "HTTP/1.1 200 OK\r\nContent-Len").then(then),
            Case::get(
                "in the last line end",
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r",
            )
            .then(then),
        ])
        .await;
    }
}
