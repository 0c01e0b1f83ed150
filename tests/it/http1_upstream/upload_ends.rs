//! Uploads that end before their end, and answers that do not wait for it.

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
    uploads::{body, next_follows},
};
use crate::{
    proxy::{HOST, Proxy, World},
    responses::BOTH,
    upgrades::{ManualApiserver, PendingRequest},
};

/// How the client says where its ten bytes end.
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

    /// The whole answer, and the upload that still goes on.
    async fn answer(self) -> (ClientResponse, Rest) {
        match self {
            Self::Http1(mut client, framing) => {
                let answer = client.response().await.into();
                (answer, Rest::Http1(client, framing))
            }
            Self::Http2(client, response, upload) => {
                let response = within("an answer", response).await.unwrap();
                let answer = within("the rest of an answer", whole(response))
                    .await
                    .unwrap();
                (answer.into(), Rest::Http2(client, upload))
            }
        }
    }

    /// Gives the upload up.
    fn abort(self) {
        match self {
            Self::Http1(client, _) => client.into_parts().0.reset(),
            Self::Http2(_, _, mut upload) => upload.send_reset(h2::Reason::CANCEL),
        }
    }
}

/// What is left to send when the answer is there.
enum Rest {
    Http1(Http1<TlsConnection>, Framing),
    Http2(Http2, SendStream<Bytes>),
}

impl Rest {
    /// Sends the second half, and returns the client for what it may ask next.
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

/// What comes of an upload until `first` is there.
async fn first_half(server: &mut PendingRequest) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"first") {
        let byte = within("the first half", server.stream.read_u8())
            .await
            .unwrap();
        seen.push(byte);
    }
}

/// The answer is there in full while the upload is not; the upload goes on to its end all the same,
/// and what is asked behind it is not taken for a part of it.
#[tokio::test]
async fn an_upload_goes_on_behind_a_whole_answer() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for kind in KINDS {
        let context = format!("{kind:?}");
        let upload = Upload::begin(&proxy, kind).await;
        let mut server = apiserver.next_request().await;
        server.send(NEXT).await;
        let (answer, rest) = upload.answer().await;
        assert_eq!(
            (answer.code, answer.text().as_str()),
            (200, "next"),
            "{context}"
        );
        let mut client = rest.send().await;
        assert_eq!(body(&mut server).await, b"firstsecnd", "{context}");
        // On this connection or on another.
        let answering = async {
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
        let exchange = async { tokio::join!(answering, client.request("GET", "/next")).1 };
        let next = within(&context, exchange).await;
        let is_next = matches!(&next, ClientResult::Complete(answer) if answer.text() == "next");
        assert!(is_next, "{context}: {next:?}");
    }
}

/// A 100 between the halves of an upload is no answer, and the client hears nothing of it.
#[tokio::test]
async fn a_100_within_an_upload_answers_nothing() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for protocol in BOTH {
        let context = format!("{protocol:?}");
        let upload = Upload::begin(&proxy, (protocol, Framing::Length)).await;
        let mut server = apiserver.next_request().await;
        first_half(&mut server).await;
        server.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        match upload {
            Upload::Http1(mut client, _) => {
                client.send("secnd").await;
                server.read(5).await;
                server.send(NEXT).await;
                assert_eq!(client.response().await.text(), "next", "{context}");
                next_follows(&mut server, TestClient::Http1(client), &context).await;
            }
            Upload::Http2(client, response, mut upload) => {
                upload.send_data("secnd".into(), true).unwrap();
                server.read(5).await;
                server.send(NEXT).await;
                let response = within("an answer", response).await.unwrap();
                assert_eq!(whole(response).await.unwrap().text(), "next");
                next_follows(&mut server, TestClient::Http2(client), &context).await;
            }
        }
    }
}

/// Over HTTP/2 as over HTTP/1.1 the expectation is met by the proxy; a 100 of the apiserver is not a
/// second one.
#[tokio::test]
async fn an_expectation_is_met_once() {
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
    next_follows(&mut server, TestClient::Http1(client), "behind the upload").await;
}

/// What the client did not send is never made up: no last chunk, and a connection that ends.
#[tokio::test]
async fn a_cut_upload_has_no_end_upstream() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for kind in KINDS {
        let upload = Upload::begin(&proxy, kind).await;
        let mut server = apiserver.next_request().await;
        first_half(&mut server).await;
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

/// The answer that was written before the connection went is an answer.
#[tokio::test]
async fn an_answer_before_a_reset_within_an_upload_reaches_the_client() {
    let refusal = "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for kind in KINDS {
        let upload = Upload::begin(&proxy, kind).await;
        let mut server = apiserver.next_request().await;
        first_half(&mut server).await;
        if kind.1 == Framing::None {
            server.read(2).await;
        }
        server.send(refusal).await;
        tcp::reset(server.stream.into_inner().0);
        let (answer, _) = upload.answer().await;
        assert_eq!(
            (answer.code, answer.text().as_str()),
            (413, "big"),
            "{kind:?}"
        );
    }
}

/// Without one the client hears that nobody knows what became of its request, which is not sent again.
#[tokio::test]
async fn a_connection_that_is_lost_within_an_upload_is_502() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (number, kind) in KINDS.into_iter().enumerate() {
        for (twice, resets) in [false, true].into_iter().enumerate() {
            let upload = Upload::begin(&proxy, kind).await;
            let mut server = apiserver.next_request().await;
            first_half(&mut server).await;
            if resets {
                tcp::reset(server.stream.into_inner().0);
            } else {
                server.shutdown().await;
            }
            let (answer, _) = upload.answer().await;
            let message = answer.assert_status(502, "InternalError");
            assert!(
                message.contains("it may have processed the request"),
                "{kind:?}: {message}"
            );
            let connections = apiserver.upstream.connections().len();
            assert_eq!(
                connections,
                2 * number + twice + 1,
                "{kind:?}: nothing is sent twice"
            );
        }
    }
}
