//! Uploads that stop before their end, and responses that arrive before the end of the upload.

use std::time::Duration;

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use http::Request;
use standin::{
    client::{Http1, Http2, TlsConnection, whole},
    tcp, within,
};
use tokio::io::AsyncReadExt as _;

use super::{
    ClientResponse, ClientResult, Protocol, TestClient,
    apiserver::{NEXT, read_request},
    uploads::{assert_next_request_follows, body},
};
use crate::{
    proxy::{HOST, Proxy, World},
    responses::BOTH,
    upgrades::{ManualApiserver, PendingRequest},
};

/// How the client frames its ten bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    None,
}

const KINDS: [(Protocol, Framing); 4] = [
    (Protocol::Http1, Framing::Length),
    (Protocol::Http1, Framing::None),
    (Protocol::Http2, Framing::Length),
    (Protocol::Http2, Framing::None),
];

/// A client that has sent `first` of `firstsecnd`.
enum Upload {
    Http1(Http1<TlsConnection>, Framing),
    Http2(Http2, ResponseFuture, SendStream<Bytes>),
}

impl Upload {
    async fn begin(proxy: &Proxy, (protocol, framing): (Protocol, Framing)) -> Self {
        if protocol == Protocol::Http1 {
            let mut client = proxy.client().http1().await;
            let rest = match framing {
                Framing::Length => "Content-Length: 10\r\n\r\nfirst",
                Framing::None => "Transfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
            };
            client
                .send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{rest}"))
                .await;
            return Self::Http1(client, framing);
        }
        let client = proxy.client().http2().await;
        let mut request = Request::post("https://kube.test/");
        if framing == Framing::Length {
            request = request.header("content-length", 10);
        }
        let request = request.body(()).unwrap();
        let (response, mut upload) = client.begin(request, false).await.unwrap();
        upload.send_data("first".into(), false).unwrap();
        Self::Http2(client, response, upload)
    }

    /// Returns the complete response, and the upload, which is still open.
    async fn response(self) -> (ClientResponse, Rest) {
        match self {
            Self::Http1(mut client, framing) => {
                let response = client.response().await.into();
                (response, Rest::Http1(client, framing))
            }
            Self::Http2(client, response, upload) => {
                let response = within("a response", response).await.unwrap();
                let response = within("the rest of a response", whole(response))
                    .await
                    .unwrap();
                (response.into(), Rest::Http2(client, upload))
            }
        }
    }

    /// Aborts the upload.
    fn abort(self) {
        match self {
            Self::Http1(client, _) => client.into_parts().0.reset(),
            Self::Http2(_, _, mut upload) => upload.send_reset(h2::Reason::CANCEL),
        }
    }
}

/// The part of an upload that is not sent yet when the response arrives.
enum Rest {
    Http1(Http1<TlsConnection>, Framing),
    Http2(Http2, SendStream<Bytes>),
}

impl Rest {
    /// Sends the second half, and returns the client for its next request.
    async fn send(self) -> TestClient {
        match self {
            Self::Http1(mut client, framing) => {
                let second = match framing {
                    Framing::Length => "secnd",
                    Framing::None => "5\r\nsecnd\r\n0\r\n\r\n",
                };
                client.send(second).await;
                TestClient::Http1(client)
            }
            Self::Http2(client, mut upload) => {
                upload.send_data("secnd".into(), true).unwrap();
                TestClient::Http2(client)
            }
        }
    }
}

/// Reads an upload until `first` has arrived.
async fn read_first_half(server: &mut PendingRequest) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        let byte = within("the first half", server.stream.read_u8())
            .await
            .unwrap();
        seen.push(byte);
    }
}

/// The response is complete before the upload is. The upload still continues to its end, and the next request is
/// not taken for a part of the upload.
#[tokio::test]
async fn upload_continues_after_a_complete_response() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for kind in KINDS {
        let context = format!("{kind:?}");
        let upload = Upload::begin(&proxy, kind).await;
        let mut server = apiserver.next_request().await;
        server.send(NEXT).await;
        let (response, rest) = upload.response().await;
        assert_eq!(
            (response.code, response.text().as_str()),
            (200, "next"),
            "{context}"
        );
        let mut client = rest.send().await;
        assert_eq!(body(&mut server).await, b"firstsecnd", "{context}");
        // The next request may use this connection or another one.
        let serving = async {
            tokio::select! {
                request = read_request(&mut server.stream) => {
                    let request = request.unwrap();
                    assert!(request.starts_with("GET /next "), "{context}: {request:?}");
                    server.send(NEXT).await;
                }
                mut other = apiserver.next_request() => {
                    assert!(other.head.starts_with("GET /next "), "{context}: {}", other.head);
                    other.send(NEXT).await;
                }
            }
        };
        let exchange = async { tokio::join!(serving, client.request("GET", "/next")).1 };
        let next = within(&context, exchange).await;
        let is_next =
            matches!(&next, ClientResult::Complete(response) if response.text() == "next");
        assert!(is_next, "{context}: {next:?}");
    }
}

/// After its response, an upload that stops holds neither connection: for a moment if the connection closes
/// anyway, and as long as an idle client otherwise.
#[tokio::test]
async fn upload_that_stops_after_its_response_is_cut() {
    const REFUSAL: &[u8] =
        b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnext";
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let address = apiserver.upstream.address();
    let hour = Duration::from_secs(60 * 60);
    for (line, idle, response) in [
        ("Connection: close\r\n", hour, NEXT),
        ("", hour, REFUSAL),
        ("", Duration::from_millis(300), NEXT),
    ] {
        let setup = world.proxy(address);
        let proxy = setup
            .timeouts(|timeouts| timeouts.client_idle = idle)
            .start();
        let mut client = proxy.client().http1().await;
        let head =
            format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{line}Content-Length: 300000\r\n\r\n");
        client.send(head).await;
        let mut server = apiserver.next_request().await;
        server.send(response).await;
        assert_eq!(client.response().await.text(), "next");
        let context = format!("{line:?}, {idle:?}");
        let end = within(&context, client.end()).await;
        assert_eq!(end.unwrap(), "", "{context}");
        let mut rest = Vec::new();
        // With or without `close_notify`: the request is incomplete.
        let ended = within(&context, server.stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{context}: {ended:?}");
    }
}

/// A 100 between the halves of an upload is not the response, and the client does not receive it.
#[tokio::test]
async fn a_100_within_an_upload_is_not_the_response() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for protocol in BOTH {
        let context = format!("{protocol:?}");
        let upload = Upload::begin(&proxy, (protocol, Framing::Length)).await;
        let mut server = apiserver.next_request().await;
        read_first_half(&mut server).await;
        server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        match upload {
            Upload::Http1(mut client, _) => {
                client.send("secnd").await;
                server.read(5).await;
                server.send(NEXT).await;
                assert_eq!(client.response().await.text(), "next", "{context}");
                assert_next_request_follows(&mut server, TestClient::Http1(client), &context).await;
            }
            Upload::Http2(client, response, mut upload) => {
                upload.send_data("secnd".into(), true).unwrap();
                server.read(5).await;
                server.send(NEXT).await;
                let response = within("a response", response).await.unwrap();
                assert_eq!(whole(response).await.unwrap().text(), "next");
                assert_next_request_follows(&mut server, TestClient::Http2(client), &context).await;
            }
        }
    }
}

/// The proxy itself sends the 100, over HTTP/2 as over HTTP/1.1. It does not forward a 100 of the apiserver as a
/// second one.
#[tokio::test]
async fn client_gets_one_100_continue() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send(format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        ))
        .await;
    let mut server = apiserver.next_request().await;
    assert!(
        !server.head.to_ascii_lowercase().contains("expect"),
        "{}",
        server.head
    );
    assert_eq!(client.head().await.unwrap().status, 100);
    server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.send("hello").await;
    assert_eq!(server.read(5).await, b"hello");
    server.send(NEXT).await;
    assert_eq!(client.response().await.text(), "next");
    assert_next_request_follows(&mut server, TestClient::Http1(client), "after the upload").await;
}

/// The proxy never completes an incomplete upload: it sends no last chunk, and closes the connection.
#[tokio::test]
async fn aborted_upload_has_no_end_upstream() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for kind in KINDS {
        let upload = Upload::begin(&proxy, kind).await;
        let mut server = apiserver.next_request().await;
        read_first_half(&mut server).await;
        upload.abort();
        let mut rest = Vec::new();
        let ended = within("the end", server.stream.read_to_end(&mut rest)).await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(
            matches!(rest.as_ref(), "" | "\r\n"),
            "{kind:?}: {rest:?} {ended:?}"
        );
    }
}

/// A response that arrived before the reset of the connection is a valid response.
#[tokio::test]
async fn response_before_a_reset_within_an_upload_is_forwarded() {
    let refusal = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for kind in KINDS {
        let upload = Upload::begin(&proxy, kind).await;
        let mut server = apiserver.next_request().await;
        read_first_half(&mut server).await;
        if kind.1 == Framing::None {
            server.read(2).await;
        }
        server.send(refusal).await;
        tcp::reset(server.stream.into_inner().0);
        let (response, _) = upload.response().await;
        assert_eq!(
            (response.code, response.text().as_str()),
            (413, "big"),
            "{kind:?}"
        );
    }
}

/// Without a response, the client learns that the apiserver may have processed its request. The proxy does not
/// send the request again.
#[tokio::test]
async fn connection_lost_within_an_upload_gives_502() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (number, kind) in KINDS.into_iter().enumerate() {
        for (twice, resets) in [false, true].into_iter().enumerate() {
            let upload = Upload::begin(&proxy, kind).await;
            let mut server = apiserver.next_request().await;
            read_first_half(&mut server).await;
            if resets {
                tcp::reset(server.stream.into_inner().0);
            } else {
                server.shutdown().await;
            }
            let (response, _) = upload.response().await;
            let message = response.assert_status(502, "InternalError");
            assert!(
                message.contains("it may have processed the request"),
                "{kind:?}: {message}"
            );
            let connections = apiserver.upstream.connections().len();
            assert_eq!(
                connections,
                2 * number + twice + 1,
                "{kind:?}: no request is sent twice"
            );
        }
    }
}
