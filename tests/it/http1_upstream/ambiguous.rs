//! Responses with an ambiguous length: two parsers could find two different ends.

use super::{AfterResponse, Apiserver, Case, ClientResult, TestClient, check_all};
use crate::{proxy::World, responses::BOTH};

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

/// RFC 9112 §6.3: the coding overrides the length, and the proxy does not forward the length. A peer that sends
/// both may be an intermediary under a smuggling attack, so the proxy sends no more requests on the connection.
#[tokio::test]
async fn coding_with_length_uses_the_coding_and_poisons_connection() {
    let case = |name, length: &str| {
        let lines = format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n");
        Case::get(name, ok(&lines, CHUNKS))
            .is(200, "hello")
            .or_refused()
    };
    let length_last = "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n";
    check_all(&[
        case("the length of the body", "5"),
        case("the length of the chunks", "15"),
        case("a shorter length", "3"),
        case("no length", "0"),
        case("a longer length", "500"),
        case("no number", "x"),
        Case::get("the length after the coding", ok(length_last, CHUNKS))
            .is(200, "hello")
            .or_refused(),
    ])
    .await;
}

/// A transfer coding applies to one connection. If the proxy forwarded the coded bytes without the field, the
/// client would take them for the content.
#[tokio::test]
async fn coding_other_than_chunked_alone_is_refused() {
    let case = |name, coding: &str| {
        Case::get(
            name,
            ok(&format!("Transfer-Encoding: {coding}\r\n"), CHUNKS),
        )
        .then(AfterResponse::Close)
    };
    let two = "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n";
    check_all(&[
        case("gzip", "gzip"),
        case("gzip before chunked", "gzip, chunked"),
        case("gzip after chunked", "chunked, gzip"),
        case("chunked twice", "chunked, chunked"),
        case("identity", "identity"),
        case("something that ends with chunked", "xchunked"),
        case("something that begins with chunked", "chunkedx"),
        case("a parameter", "chunked;a=1"),
        case("nothing", ""),
        Case::get("two lines", ok(two, CHUNKS)).then(AfterResponse::Close),
        Case::get(
            "gzip with a length",
            ok("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", "hello"),
        ),
    ])
    .await;
}

/// RFC 9110 §8.6: a repeated equal length may be forwarded as one length, or the response may be refused.
#[tokio::test]
async fn repeated_equal_length_is_one_length_or_refused() {
    let two = "Content-Length: 5\r\nContent-Length: 5\r\n";
    let case = |name, lines: &str| {
        Case::get(name, ok(lines, "hello"))
            .is(200, "hello")
            .reused()
            .or_refused()
    };
    check_all(&[
        case("two lines", two),
        case("a list", "Content-Length: 5, 5\r\n"),
        case("three lines", &format!("{two}Content-Length: 5\r\n")),
    ])
    .await;
}

/// RFC 9110 §8.6: "A server MUST NOT send a Content-Length header field in any response with a status code of
/// 1xx (Informational) or 204 (No Content)".
#[tokio::test]
async fn content_length_of_a_204_is_not_forwarded() {
    let world = World::new();
    let case = Case::get(
        "204",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    );
    let apiserver = Apiserver::start(&world, &[case]).await;
    let proxy = world.proxy(apiserver.address()).start();
    for protocol in BOTH {
        let mut client = TestClient::start(&proxy, protocol).await;
        let ClientResult::Complete(response) = client.request("GET", "/0").await else {
            panic!("{protocol:?}: aborted");
        };
        assert_eq!(response.code, 204);
        assert_eq!(
            response.lines("content-length"),
            Vec::<&str>::new(),
            "{protocol:?}"
        );
    }
}
