//! Answers whose end two readers would find in two places.

use super::{AfterResponse, Apiserver, Case, ClientResult, TestClient, check_all};
use crate::{proxy::World, responses::BOTH};

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

fn ok(lines: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}")
}

/// RFC 9112 §6.3: the coding overrides the length, which is not passed on; and who sends both may be a relay
/// that was tricked, so nothing more is asked of it.
#[tokio::test]
async fn coding_with_length_uses_the_coding_and_poisons_connection() {
    let case = |what, length: &str| {
        let lines = format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n");
        Case::get(what, ok(&lines, CHUNKS))
            .is(200, "hello")
            .or_refused()
    };
    let behind = "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n";
    check_all(&[
        case("the length of the body", "5"),
        case("the length of the chunks", "15"),
        case("a shorter length", "3"),
        case("no length", "0"),
        case("a longer length", "500"),
        case("no number", "x"),
        Case::get("the length behind the coding", ok(behind, CHUNKS))
            .is(200, "hello")
            .or_refused(),
    ])
    .await;
}

/// A coding is between two neighbours: passed on without its name, the coded bytes would be taken for the
/// content.
#[tokio::test]
async fn a_coding_that_is_not_chunked_alone_is_refused() {
    let case = |what, coding: &str| {
        Case::get(
            what,
            ok(&format!("Transfer-Encoding: {coding}\r\n"), CHUNKS),
        )
        .then(AfterResponse::Close)
    };
    let two = "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n";
    check_all(&[
        case("gzip", "gzip"),
        case("gzip before chunked", "gzip, chunked"),
        case("gzip behind chunked", "chunked, gzip"),
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

/// RFC 9110 §8.6: several times the same length is one length, and so it is passed on; or it is refused.
#[tokio::test]
async fn the_same_length_twice_is_that_length_or_refused() {
    let two = "Content-Length: 5\r\nContent-Length: 5\r\n";
    let case = |what, lines: &str| {
        Case::get(what, ok(lines, "hello"))
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
async fn a_204_is_passed_on_without_a_length() {
    let world = World::new();
    let case = Case::get(
        "204",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    );
    let apiserver = Apiserver::start(&world, &[case]).await;
    let proxy = world.proxy(apiserver.address()).start();
    for protocol in BOTH {
        let mut client = TestClient::start(&proxy, protocol).await;
        let ClientResult::Complete(answer) = client.request("GET", "/0").await else {
            panic!("{protocol:?}: cut");
        };
        assert_eq!(answer.code, 204);
        assert_eq!(
            answer.lines("content-length"),
            Vec::<&str>::new(),
            "{protocol:?}"
        );
    }
}
