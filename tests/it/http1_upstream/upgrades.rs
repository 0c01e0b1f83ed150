//! Responses to an upgrade request: a 101 or another response, in every shape.

use standin::{
    client::{Http1, TlsConnection},
    within,
};
use tokio::io::AsyncWriteExt as _;

use super::AfterResponse;
use crate::{
    proxy::{Proxy, World},
    upgrades::{ManualApiserver, PendingRequest, SPDY, SPDY_101, WEBSOCKET, WEBSOCKET_101},
};

async fn send_upgrade(
    proxy: &Proxy,
    apiserver: &ManualApiserver,
    request: &str,
) -> (Http1<TlsConnection>, PendingRequest) {
    let mut client = proxy.client().http1().await;
    client.send(request).await;
    (client, apiserver.next_request().await)
}

/// Asserts that bytes pass in both directions. The client must already have its 101.
async fn assert_tunnel(
    client: &mut Http1<TlsConnection>,
    server: &mut PendingRequest,
    context: &str,
) {
    let both = async {
        client.send("from the client").await;
        assert_eq!(server.read(15).await, b"from the client", "{context}");
        server.send("from the apiserver").await;
        assert_eq!(
            client.take(18).await.unwrap(),
            "from the apiserver",
            "{context}"
        );
    };
    within(context, both).await;
}

/// No byte is lost, however the 101 and the first bytes of the tunnel are split or joined.
#[tokio::test]
async fn bytes_after_a_101_belong_to_the_tunnel() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let many: String = (0..20_000).map(|number| format!("{number:06} ")).collect();
    for (request, head) in [(WEBSOCKET, WEBSOCKET_101), (SPDY, SPDY_101)] {
        for first in ["", "x", "\r\n", "HTTP/1.1 200 OK\r\n\r\n", many.as_str()] {
            // Many small pieces take long and test nothing more.
            let sizes = if first.len() > 100 {
                &[5000, 200_000][..]
            } else {
                &[1, 7, 200_000]
            };
            for size in sizes {
                let context = format!("{} bytes after a 101, by {size}", first.len());
                let (mut client, mut server) = send_upgrade(&proxy, &apiserver, request).await;
                for piece in format!("{head}{first}").as_bytes().chunks(*size) {
                    server.send(piece).await;
                }
                assert_eq!(client.head().await.unwrap().status, 101, "{context}");
                let received = client.take(first.len()).await.unwrap();
                assert!(received == first, "{context}: {received:?}");
                assert_tunnel(&mut client, &mut server, &context).await;
            }
        }
    }
}

/// RFC 9110 §8.6 and RFC 9112 §6.1: a 1xx has no body, so the proxy ignores the framing fields of its head.
#[tokio::test]
async fn framing_fields_of_a_101_are_ignored() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for line in [
        "Content-Length: 0",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ] {
        let (mut client, mut server) = send_upgrade(&proxy, &apiserver, SPDY).await;
        let head = SPDY_101.replacen("\r\n", &format!("\r\n{line}\r\n"), 1);
        server.send(format!("{head}0\r\n\r\nhello")).await;
        assert_eq!(client.head().await.unwrap().status, 101, "{line}");
        assert_eq!(client.take(10).await.unwrap(), "0\r\n\r\nhello", "{line}");
        assert_tunnel(&mut client, &mut server, line).await;
    }
}

#[tokio::test]
async fn interim_responses_before_a_101_are_skipped() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    ] {
        let (mut client, mut server) = send_upgrade(&proxy, &apiserver, SPDY).await;
        server
            .send(format!("{interim}{interim}{SPDY_101}hello"))
            .await;
        assert_eq!(client.head().await.unwrap().status, 101, "{interim:?}");
        assert_eq!(client.take(5).await.unwrap(), "hello", "{interim:?}");
        assert_tunnel(&mut client, &mut server, interim).await;
    }
}

/// The body of a refusal may end with a clean close of the connection. After any other close it is incomplete.
#[tokio::test]
async fn refusal_without_a_length_ends_with_a_clean_close() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (request, then) in [
        (WEBSOCKET, AfterResponse::Close),
        (SPDY, AfterResponse::Close),
        (WEBSOCKET, AfterResponse::CloseWithoutNotify),
        (SPDY, AfterResponse::CloseWithoutNotify),
        (SPDY, AfterResponse::Reset),
    ] {
        let context = format!("{then:?}");
        let (mut client, mut server) = send_upgrade(&proxy, &apiserver, request).await;
        server
            .send("HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n")
            .await;
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 403, "{context}");
        server.send("you may not").await;
        match then {
            AfterResponse::Close => server.stream.shutdown().await.unwrap(),
            AfterResponse::Reset => standin::tcp::reset(server.stream.into_inner().0),
            AfterResponse::CloseWithoutNotify | AfterResponse::KeepOpen => drop(server),
        }
        match client.body(&head).await {
            Ok(body) => assert_eq!(
                (&body[..], then),
                (&b"you may not"[..], AfterResponse::Close)
            ),
            Err(error) => {
                assert_ne!(then, AfterResponse::Close, "{error}");
                assert!(
                    b"you may not".starts_with(&error.received),
                    "{context}: {error:?}"
                );
            }
        }
    }
}

/// A malformed response refuses the upgrade, and the proxy then closes the connection of the client.
#[tokio::test]
async fn malformed_response_to_an_upgrade_gives_502() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for malformed in [
        "SSH-2.0-OpenSSH\r\n".to_owned(),
        "HTTP/1.1 99 Low\r\n\r\n".to_owned(),
        SPDY_101.replace("Connection:", "Connection :"),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_owned(),
        SPDY_101[..SPDY_101.len() - 2].to_owned(),
    ] {
        let (mut client, mut server) = send_upgrade(&proxy, &apiserver, SPDY).await;
        server.send(&malformed).await;
        server.shutdown().await;
        let response = client.response().await;
        assert_eq!(response.status, 502, "{malformed:?}");
        assert_eq!(
            response.head.header("connection"),
            Some("close"),
            "{malformed:?}"
        );
        assert_eq!(client.end().await.unwrap(), "", "{malformed:?}");
    }
}

/// RFC 9110 §8.6 and RFC 9112 §6.1: a 1xx has no `Content-Length` and no `Transfer-Encoding`.
#[tokio::test]
async fn framing_fields_of_a_101_are_not_forwarded() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for line in [
        "Content-Length: 0",
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
    ] {
        let (mut client, mut server) = send_upgrade(&proxy, &apiserver, SPDY).await;
        server
            .send(SPDY_101.replacen("\r\n", &format!("\r\n{line}\r\n"), 1))
            .await;
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 101, "{line}");
        assert_eq!(head.header("content-length"), None, "{line}");
        assert_eq!(head.header("transfer-encoding"), None, "{line}");
    }
}
