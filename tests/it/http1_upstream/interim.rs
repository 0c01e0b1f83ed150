//! Interim (1xx) responses.

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
async fn interim_responses_are_skipped() {
    let then_final = |interim: &str| format!("{interim}{FINAL}");
    let many = then_final(&CONTINUE.repeat(50));
    let hinted = "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n";
    let coded = "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n";
    let closing = "HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n";
    check_all(&[
        Case::get("one", then_final(CONTINUE))
            .is(200, "hello")
            .reused(),
        Case::get(
            "two of each kind",
            then_final(&[CONTINUE, HINTS, CONTINUE, HINTS].concat()),
        )
        .is(200, "hello")
        .reused(),
        Case::get("byte by byte", then_final(&[CONTINUE, HINTS].concat()))
            .in_chunks_of(1)
            .is(200, "hello")
            .reused(),
        Case::get("fifty", many).is(200, "hello").reused(),
        Case::get("102", then_final("HTTP/1.1 102 Processing\r\n\r\n"))
            .is(200, "hello")
            .reused(),
        Case::get("199", then_final("HTTP/1.1 199 Odd\r\n\r\n"))
            .is(200, "hello")
            .reused(),
        Case::get("a length", then_final(hinted))
            .is(200, "hello")
            .reused(),
        Case::get("a coding", then_final(coded))
            .is(200, "hello")
            .reused(),
        Case::get("close in an interim response", then_final(closing))
            .is(200, "hello")
            .reused(),
        Case::head(
            "before the response to HEAD",
            then_final(CONTINUE).replace("hello", ""),
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

/// An interim response does not complete the exchange.
#[tokio::test]
async fn interim_response_without_a_final_one_is_refused() {
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
            "a body after it",
            "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello",
        ),
        Case::get(
            "a malformed one",
            format!("HTTP/1.1 103 Early Hints\r\nX A: 1\r\n\r\n{FINAL}"),
        ),
        Case::get("garbage after it", format!("{CONTINUE}garbage\r\n\r\n")),
    ])
    .await;
}

/// After an unsolicited 101 the apiserver speaks another protocol, so the proxy sends no more requests to it.
#[tokio::test]
async fn unsolicited_101_is_refused() {
    let switch =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    check_all(&[
        Case::get("alone", format!("{switch}\r\n")),
        Case::get("with bytes after it", format!("{switch}\r\nhello")),
        Case::get("with a response after it", format!("{switch}\r\n{FINAL}")),
        Case::get(
            "with a length",
            format!("{switch}Content-Length: 5\r\n\r\nhello"),
        ),
        Case::get(
            "without a protocol",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        ),
        Case::get(
            "after an interim response",
            format!("{CONTINUE}{switch}\r\n"),
        ),
    ])
    .await;
}

/// No real apiserver sends this many.
#[tokio::test]
async fn endless_interim_responses_are_refused() {
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
            matches!(&seen, ClientResult::Complete(response) if response.code == 502),
            "{protocol:?}: {seen:?}"
        );
        upstream.connection_end(0).await;
    }
}

/// RFC 9110 §9.3.2: a response to HEAD has no content, also when the proxy writes it.
#[tokio::test]
async fn refused_response_to_head_has_no_content() {
    check_all(&[
        Case::head(
            "an unsolicited 101",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        ),
        Case::head("a malformed response", "HTTP/1.1 99 Low\r\n\r\n"),
        Case::head("no response", "").then(AfterResponse::Close),
    ])
    .await;
}
