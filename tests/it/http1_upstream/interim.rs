//! Responses before the response.

use standin::within;

use super::{
    AfterResponse, Case, ClientResult, TestClient,
    apiserver::{read_request, write},
    check_all,
};
use crate::{proxy::World, responses::BOTH};

const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-A: 1\r\n\r\n";

#[tokio::test]
async fn interim_responses_are_not_the_response() {
    let behind = |interim: &str| format!("{interim}{FINAL}");
    let many = behind(&CONTINUE.repeat(50));
    let hinted = "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n";
    let coded = "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n";
    let closing = "HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n";
    check_all(&[
        Case::get("one", behind(CONTINUE)).is(200, "hello").reused(),
        Case::get(
            "two of a kind each",
            behind(&[CONTINUE, HINTS, CONTINUE, HINTS].concat()),
        )
        .is(200, "hello")
        .reused(),
        Case::get("byte by byte", behind(&[CONTINUE, HINTS].concat()))
            .in_chunks_of(1)
            .is(200, "hello")
            .reused(),
        Case::get("fifty", many).is(200, "hello").reused(),
        Case::get("102", behind("HTTP/1.1 102 Processing\r\n\r\n"))
            .is(200, "hello")
            .reused(),
        Case::get("199", behind("HTTP/1.1 199 Odd\r\n\r\n"))
            .is(200, "hello")
            .reused(),
        Case::get("a length", behind(hinted))
            .is(200, "hello")
            .reused(),
        Case::get("a coding", behind(coded))
            .is(200, "hello")
            .reused(),
        Case::get(
            "the end of the connection, said of something else",
            behind(closing),
        )
        .is(200, "hello")
        .reused(),
        Case::head(
            "before the response to HEAD",
            behind(CONTINUE).replace("hello", ""),
        )
        .is(200, "")
        .reused(),
        Case::get(
            "before 204",
            format!("{HINTS}HTTP/1.1 204 No Content\r\n\r\n"),
        )
        .is(204, "")
        .reused(),
    ])
    .await;
}

/// An interim response alone is no answer.
#[tokio::test]
async fn an_interim_response_without_a_response_is_refused() {
    for then in [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ] {
        check_all(&[
            Case::get("100", CONTINUE).then(then),
            Case::get("103 twice", [HINTS, HINTS].concat()).then(then),
            Case::get("half of one", &HINTS[..30]).then(then),
        ])
        .await;
    }
    check_all(&[
        Case::get(
            "a body behind it",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello",
        ),
        Case::get(
            "a malformed one",
            format!("HTTP/1.1 103 Early Hints\r\nX A: 1\r\n\r\n{FINAL}"),
        ),
        Case::get("garbage behind it", format!("{CONTINUE}garbage\r\n\r\n")),
    ])
    .await;
}

/// Nothing may follow on a connection whose apiserver believes that it speaks something else.
#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_refused() {
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    check_all(&[
        Case::get("alone", format!("{switch}\r\n")),
        Case::get("with bytes behind it", format!("{switch}\r\nhello")),
        Case::get("with a response behind it", format!("{switch}\r\n{FINAL}")),
        Case::get(
            "with a length",
            format!("{switch}Content-Length: 5\r\n\r\nhello"),
        ),
        Case::get(
            "without a protocol",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ),
        Case::get(
            "behind an interim response",
            format!("{CONTINUE}{switch}\r\n"),
        ),
    ])
    .await;
}

/// No apiserver sends so many.
#[tokio::test]
async fn interim_responses_without_end_are_no_answer() {
    for protocol in BOTH {
        let world = World::new();
        let apiserver = world
            .apiserver()
            .alpn(&["http/1.1"])
            .raw(|mut raw| async move {
                read_request(&mut raw.stream).await.unwrap();
                while write(&mut raw.stream, HINTS).await {}
            });
        let upstream = apiserver.start().await;
        let proxy = world.proxy(upstream.address()).start();
        let mut client = TestClient::start(&proxy, protocol).await;
        let seen = within("a refusal", client.request("GET", "/")).await;
        assert!(
            matches!(&seen, ClientResult::Complete(answer) if answer.code == 502),
            "{protocol:?}: {seen:?}"
        );
        upstream.connection_end(0).await;
    }
}

/// RFC 9110 §9.3.2: no answer to HEAD has content, nor has one that the proxy wrote.
#[tokio::test]
async fn a_refused_answer_to_head_has_no_content() {
    check_all(&[
        Case::head(
            "an unasked switch",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        ),
        Case::head("a malformed answer", "HTTP/1.1 99 Low\r\n\r\n"),
        Case::head("no answer", "").then(AfterResponse::Close),
    ])
    .await;
}
