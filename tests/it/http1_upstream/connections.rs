//! Who may use a connection again, and what its end is to whoever asks next.

use std::sync::Arc;

use standin::{tcp, upstream::Raw, within};
use tokio::sync::{Notify, mpsc};

use super::{
    AfterResponse, Case, ClientResult, Protocol, TestClient,
    apiserver::{self, NEXT, read_request, write},
    check_all,
};
use crate::{proxy::World, responses::BOTH};

const HELLO: &str = "Content-Length: 5\r\n\r\nhello";

#[tokio::test]
async fn the_apiserver_says_whether_a_connection_goes_on() {
    let modern = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}{HELLO}");
    let old = |lines: &str| format!("HTTP/1.0 200 OK\r\n{lines}{HELLO}");
    let chunks = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    check_all(&[
        Case::get("nothing said", modern(""))
            .is(200, "hello")
            .reused(),
        Case::get(
            "keep-alive",
            modern("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get(
            "an option of another name",
            modern("Connection: x-a\r\nX-A: close\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get("close", modern("Connection: close\r\n")).is(200, "hello"),
        Case::get("close, and it does", modern("Connection: close\r\n"))
            .then(AfterResponse::Close)
            .is(200, "hello"),
        Case::get(
            "close, without close_notify",
            modern("Connection: close\r\n"),
        )
        .then(AfterResponse::CloseWithoutNotify)
        .is(200, "hello"),
        Case::get("close in capitals", modern("CONNECTION: CLOSE\r\n")).is(200, "hello"),
        Case::get("close in a list", modern("Connection: x-a, close\r\n")).is(200, "hello"),
        Case::get(
            "close on the second line",
            modern("Connection: x-a\r\nConnection: close\r\n"),
        )
        .is(200, "hello"),
        Case::get(
            "close and then keep-alive",
            modern("Connection: close\r\nConnection: keep-alive\r\n"),
        )
        .is(200, "hello"),
        Case::get(
            "close behind chunks",
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{chunks}"),
        )
        .is(200, "hello"),
        Case::get(
            "close without a body",
            "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        )
        .is(204, ""),
        Case::head(
            "close for HEAD",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
        )
        .is(200, ""),
        Case::get("nothing said by HTTP/1.0", old("")).is(200, "hello"),
        Case::get("keep-alive by HTTP/1.0", old("Connection: keep-alive\r\n"))
            .is(200, "hello")
            .reused(),
        Case::get(
            "keep-alive in capitals by HTTP/1.0",
            old("Connection: Keep-Alive\r\n"),
        )
        .is(200, "hello")
        .reused(),
    ])
    .await;
}

/// What the apiserver does behind its first answer on its first connection.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// Says this and goes on, while nobody has asked anything.
    SaysIdle(&'static str),
    /// Ends while nobody has asked anything.
    EndsIdle(AfterResponse),
    /// Ends once it has read the next request, without a word.
    EndsAsked(AfterResponse),
    /// Likewise, behind these words.
    BreaksOff(&'static str, AfterResponse),
}

impl Scene {
    fn is_idle(self) -> bool {
        matches!(self, Self::SaysIdle(_) | Self::EndsIdle(_))
    }

    async fn play(
        self,
        mut raw: Raw,
        acted: &Notify,
        tell: &mpsc::UnboundedSender<(usize, String)>,
    ) {
        let then = match self {
            Self::SaysIdle(words) => {
                write(&mut raw.stream, words).await;
                acted.notify_one();
                AfterResponse::KeepOpen
            }
            Self::EndsIdle(then) => then,
            Self::EndsAsked(then) | Self::BreaksOff(_, then) => {
                tell.send((0, read_request(&mut raw.stream).await.unwrap()))
                    .unwrap();
                if let Self::BreaksOff(words, _) = self {
                    write(&mut raw.stream, words).await;
                }
                then
            }
        };
        match then {
            AfterResponse::KeepOpen => {
                // Whatever comes is a request too many.
                while let Some(request) = read_request(&mut raw.stream).await {
                    tell.send((0, request)).ok();
                }
            }
            AfterResponse::Close => {
                raw.stream.get_mut().1.send_close_notify();
                write(&mut raw.stream, "").await;
                acted.notify_one();
                apiserver::close(raw.stream).await;
            }
            AfterResponse::CloseWithoutNotify => drop(raw),
            AfterResponse::Reset => tcp::reset(raw.stream.into_inner().0),
        }
        acted.notify_one();
    }
}

/// Asks twice around the scene, and once more; returns the second answer and on which connections which
/// requests came.
async fn second_answer(
    protocol: Protocol,
    scene: Scene,
    method: &'static str,
    body: &str,
) -> (ClientResult, Vec<(usize, String)>) {
    let world = World::new();
    let (go, acted) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, mut told) = mpsc::unbounded_channel();
    let apiserver = {
        let (go, acted) = (Arc::clone(&go), Arc::clone(&acted));
        world.apiserver().alpn(&["http/1.1"]).raw(move |mut raw| {
            let (tell, go, acted) = (tell.clone(), Arc::clone(&go), Arc::clone(&acted));
            async move {
                let id = raw.connection.id;
                while let Some(request) = read_request(&mut raw.stream).await {
                    tell.send((id, request)).ok();
                    if !write(&mut raw.stream, NEXT).await {
                        return;
                    }
                    if id == 0 {
                        go.notified().await;
                        return scene.play(raw, &acted, &tell).await;
                    }
                }
            }
        })
    };
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = TestClient::start(&proxy, protocol).await;
    let ok = |seen: &ClientResult| matches!(seen, ClientResult::Complete(answer) if answer.text() == "next");
    let first = client.request("GET", "/first").await;
    assert!(ok(&first), "{first:?}");
    go.notify_one();
    if scene.is_idle() {
        within("what the apiserver does", acted.notified()).await;
    }
    let second = client.request_with_body(method, "/second", body).await;
    if client.is_closed_after(&second) {
        client = TestClient::start(&proxy, protocol).await;
    }
    let third = client.request("GET", "/third").await;
    assert!(ok(&third), "{third:?}");
    let seen = std::iter::from_fn(|| told.try_recv().ok());
    let seen = seen.map(|(id, request)| {
        let words: Vec<&str> = request.split(' ').take(2).collect();
        (id, words.join(" "))
    });
    (second, seen.collect())
}

/// What the apiserver did to an idle connection costs nobody a request, with a body or without.
#[tokio::test]
async fn an_idle_connection_that_has_ended_is_replaced() {
    for then in [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ] {
        for (method, body) in [("GET", ""), ("POST", "hello"), ("DELETE", "")] {
            for protocol in BOTH {
                let scene = Scene::EndsIdle(then);
                let (second, seen) = second_answer(protocol, scene, method, body).await;
                let context = format!("{then:?}, {method} over {protocol:?}");
                let ClientResult::Complete(second) = second else {
                    panic!("{context}: {second:?}");
                };
                assert_eq!(
                    (second.code, second.text().as_str()),
                    (200, "next"),
                    "{context}"
                );
                let expected = [
                    (0, "GET /first".to_owned()),
                    (1, format!("{method} /second")),
                    (1, "GET /third".to_owned()),
                ];
                assert_eq!(seen, expected, "{context}");
            }
        }
    }
}

/// Who speaks unasked on an idle connection answers the next request before it is sent.
#[tokio::test]
async fn words_on_an_idle_connection_answer_nothing() {
    for words in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
        "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "H",
        "\r\n",
        "\0",
    ] {
        for protocol in BOTH {
            let (second, seen) = second_answer(protocol, Scene::SaysIdle(words), "GET", "").await;
            let context = format!("{words:?} over {protocol:?}");
            let ClientResult::Complete(second) = second else {
                panic!("{context}: {second:?}");
            };
            assert_eq!(
                (second.code, second.text().as_str()),
                (200, "next"),
                "{context}"
            );
            let expected = [(0, "GET /first"), (1, "GET /second"), (1, "GET /third")];
            let expected = expected.map(|(id, request)| (id, request.to_owned()));
            assert_eq!(seen, expected, "{context}");
        }
    }
}

/// A request that was read may have been carried out, also on a connection that had answered before: it is
/// never sent again, and nobody is told to.
#[tokio::test]
async fn a_request_that_was_read_is_not_sent_again() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Le";
    let scenes = [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ]
    .into_iter()
    .flat_map(|then| [Scene::EndsAsked(then), Scene::BreaksOff(begun, then)]);
    for scene in scenes {
        for (method, body) in [("GET", ""), ("POST", "hello")] {
            for protocol in BOTH {
                let (second, seen) = second_answer(protocol, scene, method, body).await;
                let context = format!("{scene:?}, {method} over {protocol:?}");
                let ClientResult::Complete(second) = second else {
                    panic!("{context}: {second:?}");
                };
                let message = second.assert_status(502, "InternalError");
                assert!(
                    message.contains("it may have processed the request"),
                    "{context}: {message}"
                );
                assert!(second.lines("retry-after").is_empty(), "{context}");
                let expected = [
                    (0, "GET /first".to_owned()),
                    (0, format!("{method} /second")),
                    (1, "GET /third".to_owned()),
                ];
                assert_eq!(seen, expected, "{context}");
            }
        }
    }
}
