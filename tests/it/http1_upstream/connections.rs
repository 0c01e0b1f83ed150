//! When an upstream connection is reused, and what its end means for the next request.

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
async fn connection_field_decides_whether_connection_is_reused() {
    let modern = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}{HELLO}");
    let old = |lines: &str| format!("HTTP/1.0 200 OK\r\n{lines}{HELLO}");
    let chunks = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    check_all(&[
        Case::get("no Connection field", modern(""))
            .is(200, "hello")
            .reused(),
        Case::get(
            "keep-alive",
            modern("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get(
            "an option with another name",
            modern("Connection: x-a\r\nX-A: close\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get("close", modern("Connection: close\r\n")).is(200, "hello"),
        Case::get(
            "close, and the connection closes",
            modern("Connection: close\r\n"),
        )
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
            "close after chunks",
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
        Case::get("no Connection field over HTTP/1.0", old("")).is(200, "hello"),
        Case::get(
            "keep-alive over HTTP/1.0",
            old("Connection: keep-alive\r\n"),
        )
        .is(200, "hello")
        .reused(),
        Case::get(
            "keep-alive in capitals over HTTP/1.0",
            old("Connection: Keep-Alive\r\n"),
        )
        .is(200, "hello")
        .reused(),
    ])
    .await;
}

/// What the apiserver does after its first response on its first connection.
#[derive(Debug, Clone, Copy)]
enum NextAction {
    /// Sends these bytes while no request is open, and keeps the connection open.
    SendsWhileIdle(&'static str),
    /// Closes while no request is open.
    ClosesWhileIdle(AfterResponse),
    /// Reads the next request, then closes without a response.
    ClosesAfterRequest(AfterResponse),
    /// Reads the next request, sends these bytes, then closes.
    ClosesInResponse(&'static str, AfterResponse),
}

impl NextAction {
    fn is_idle(self) -> bool {
        matches!(self, Self::SendsWhileIdle(_) | Self::ClosesWhileIdle(_))
    }

    async fn run(
        self,
        mut raw: Raw,
        done: &Notify,
        sender: &mpsc::UnboundedSender<(usize, String)>,
    ) {
        let then = match self {
            Self::SendsWhileIdle(bytes) => {
                write(&mut raw.stream, bytes).await;
                done.notify_one();
                AfterResponse::KeepOpen
            }
            Self::ClosesWhileIdle(then) => then,
            Self::ClosesAfterRequest(then) | Self::ClosesInResponse(_, then) => {
                sender
                    .send((0, read_request(&mut raw.stream).await.unwrap()))
                    .unwrap();
                if let Self::ClosesInResponse(bytes, _) = self {
                    write(&mut raw.stream, bytes).await;
                }
                then
            }
        };
        match then {
            AfterResponse::KeepOpen => {
                // A request that arrives here is one too many.
                while let Some(request) = read_request(&mut raw.stream).await {
                    sender.send((0, request)).ok();
                }
            }
            AfterResponse::Close => {
                raw.stream.get_mut().1.send_close_notify();
                write(&mut raw.stream, "").await;
                done.notify_one();
                apiserver::close(raw.stream).await;
            }
            AfterResponse::CloseWithoutNotify => drop(raw),
            AfterResponse::Reset => tcp::reset(raw.stream.into_inner().0),
        }
        done.notify_one();
    }
}

/// Sends one request before the action, and two after it. Returns the second result, and the connection and the
/// method and target of each request.
async fn second_result(
    protocol: Protocol,
    action: NextAction,
    method: &'static str,
    body: &str,
) -> (ClientResult, Vec<(usize, String)>) {
    let world = World::new();
    let (start, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (sender, mut received) = mpsc::unbounded_channel();
    let apiserver = {
        let (start, done) = (Arc::clone(&start), Arc::clone(&done));
        world.apiserver().alpn(&["http/1.1"]).raw(move |mut raw| {
            let (sender, start, done) = (sender.clone(), Arc::clone(&start), Arc::clone(&done));
            async move {
                let id = raw.connection.id;
                while let Some(request) = read_request(&mut raw.stream).await {
                    sender.send((id, request)).ok();
                    if !write(&mut raw.stream, NEXT).await {
                        return;
                    }
                    if id == 0 {
                        start.notified().await;
                        return action.run(raw, &done, &sender).await;
                    }
                }
            }
        })
    };
    let upstream = apiserver.start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = TestClient::start(&proxy, protocol).await;
    let ok = |seen: &ClientResult| matches!(seen, ClientResult::Complete(response) if response.text() == "next");
    let first = client.request("GET", "/first").await;
    assert!(ok(&first), "{first:?}");
    start.notify_one();
    if action.is_idle() {
        within("the action of the apiserver", done.notified()).await;
    }
    let second = client.request_with_body(method, "/second", body).await;
    if client.is_closed_after(&second) {
        client = TestClient::start(&proxy, protocol).await;
    }
    let third = client.request("GET", "/third").await;
    assert!(ok(&third), "{third:?}");
    let seen = std::iter::from_fn(|| received.try_recv().ok());
    let seen = seen.map(|(id, request)| {
        let method_and_target: Vec<&str> = request.split(' ').take(2).collect();
        (id, method_and_target.join(" "))
    });
    (second, seen.collect())
}

/// No request fails because the apiserver closed an idle connection, with a body or without.
#[tokio::test]
async fn closed_idle_connection_is_replaced() {
    for then in [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ] {
        for (method, body) in [("GET", ""), ("POST", "hello"), ("DELETE", "")] {
            for protocol in BOTH {
                let action = NextAction::ClosesWhileIdle(then);
                let (second, seen) = second_result(protocol, action, method, body).await;
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

/// Bytes on an idle connection must not become the response to a later request, so the proxy closes the connection.
#[tokio::test]
async fn bytes_on_an_idle_connection_are_not_a_response() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong",
        "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "H",
        "\r\n",
        "\0",
    ] {
        for protocol in BOTH {
            let (second, seen) =
                second_result(protocol, NextAction::SendsWhileIdle(bytes), "GET", "").await;
            let context = format!("{bytes:?} over {protocol:?}");
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

/// The apiserver may have processed a request that it read, also on a reused connection. The proxy never sends
/// it again, and its response has no `Retry-After`.
#[tokio::test]
async fn request_that_was_read_is_not_retried() {
    let partial_head = "HTTP/1.1 200 OK\r\nContent-Le";
    let actions = [
        AfterResponse::Close,
        AfterResponse::CloseWithoutNotify,
        AfterResponse::Reset,
    ]
    .into_iter()
    .flat_map(|then| {
        [
            NextAction::ClosesAfterRequest(then),
            NextAction::ClosesInResponse(partial_head, then),
        ]
    });
    for action in actions {
        for (method, body) in [("GET", ""), ("POST", "hello")] {
            for protocol in BOTH {
                let (second, seen) = second_result(protocol, action, method, body).await;
                let context = format!("{action:?}, {method} over {protocol:?}");
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
