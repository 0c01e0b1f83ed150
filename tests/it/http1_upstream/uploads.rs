//! Request bodies to an HTTP/1.1 apiserver: they have one framing, and they are complete or visibly aborted.

use bytes::Bytes;
use http::Request;
use standin::within;
use tokio::{io::AsyncReadExt as _, sync::mpsc};

use super::{
    ClientResult, TestClient,
    apiserver::{NEXT, read_body, read_request},
};
use crate::{
    proxy::{HOST, World, sum_until_quiet},
    responses::BOTH,
    upgrades::{ManualApiserver, PendingRequest},
};

/// Decodes a chunked body. Accepts only the strictest framing.
fn unchunked(mut wire: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let end = wire.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = std::str::from_utf8(&wire[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let (chunk, rest) = wire[end + 2..].split_at(size);
        data.extend_from_slice(chunk);
        assert_eq!(&rest[..2], b"\r\n", "the end of a chunk");
        wire = &rest[2..];
        if size == 0 {
            assert_eq!(wire, b"", "no bytes after the last chunk");
            return data;
        }
    }
}

/// The framing fields of this head, in lower case.
fn framing(head: &str) -> Vec<String> {
    let head = head.to_ascii_lowercase();
    let lines = head
        .lines()
        .filter(|line| line.starts_with("content-length") || line.starts_with("transfer-encoding"));
    lines.map(str::to_owned).collect()
}

/// Reads the body of the request and removes its framing.
pub(super) async fn body(server: &mut PendingRequest) -> Vec<u8> {
    let PendingRequest { head, stream, .. } = server;
    let wire = within("the body of a request", read_body(stream, head))
        .await
        .unwrap();
    if framing(head) == ["transfer-encoding: chunked"] {
        unchunked(&wire)
    } else {
        wire
    }
}

/// Sends another request, which must arrive on the same connection with no byte of a body before it.
pub(super) async fn assert_next_request_follows(
    server: &mut PendingRequest,
    mut client: TestClient,
    context: &str,
) {
    let serving = async {
        let request = read_request(&mut server.stream).await.unwrap();
        assert!(request.starts_with("GET /next "), "{context}: {request:?}");
        server.send(NEXT).await;
    };
    let exchange = async { tokio::join!(serving, client.request("GET", "/next")).1 };
    let next = within(context, exchange).await;
    let is_next = matches!(&next, ClientResult::Complete(response) if response.text() == "next");
    assert!(is_next, "{context}: {next:?}");
}

#[tokio::test]
async fn upload_over_http1_has_one_framing() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let chunks = "transfer-encoding: chunked";
    for (request, framed, data) in [
        (
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            &["content-length: 5"][..],
            "hello",
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            &[chunks],
            "hello",
        ),
        (
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a=1\r\nhe\r\n003\r\nllo\r\n0\r\n\r\n",
            &[chunks],
            "hello",
        ),
        (
            "DELETE / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            &["content-length: 5"],
            "hello",
        ),
        (
            "PATCH / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            &["content-length: 0"],
            "",
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
            &["content-length: 0"],
            "",
        ),
        ("GET / HTTP/1.1\r\n\r\n", &[], ""),
        ("DELETE / HTTP/1.1\r\n\r\n", &[], ""),
        ("HEAD / HTTP/1.1\r\n\r\n", &[], ""),
    ] {
        let mut client = proxy.client().http1().await;
        client
            .send(request.replacen("\r\n", &format!("\r\nHost: {HOST}\r\n"), 1))
            .await;
        let mut server = apiserver.next_request().await;
        assert_eq!(framing(&server.head), framed, "{request:?}");
        assert_eq!(body(&mut server).await, data.as_bytes(), "{request:?}");
        let is_head = request.starts_with("HEAD");
        server
            .send(if is_head {
                "HTTP/1.1 204 No Content\r\n\r\n".as_bytes()
            } else {
                NEXT
            })
            .await;
        client.response().await;
        assert_next_request_follows(&mut server, TestClient::Http1(client), request).await;
    }
}

/// Over HTTP/2 a body may have no length, and an empty body has two encodings.
#[tokio::test]
async fn upload_over_http2_has_one_framing() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (method, length, pieces, framed) in [
        (
            "POST",
            Some("5"),
            &["hello"][..],
            &["content-length: 5"][..],
        ),
        (
            "POST",
            Some("5"),
            &["he", "", "llo", ""],
            &["content-length: 5"],
        ),
        ("POST", None, &["hello"], &["transfer-encoding: chunked"]),
        (
            "POST",
            None,
            &["h", "ell", "", "o", ""],
            &["transfer-encoding: chunked"],
        ),
        ("DELETE", Some("5"), &["hello"], &["content-length: 5"]),
        ("POST", Some("0"), &[], &["content-length: 0"]),
        ("GET", None, &[], &[]),
    ] {
        let context = format!("{method} with {length:?} and {pieces:?}");
        let client = proxy.client().http2().await;
        let mut request = Request::builder().method(method).uri("https://kube.test/");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(()).unwrap();
        let (response, mut upload) = client.begin(request, pieces.is_empty()).await.unwrap();
        for (at, piece) in pieces.iter().enumerate() {
            let piece = Bytes::from_static(piece.as_bytes());
            upload.send_data(piece, at + 1 == pieces.len()).unwrap();
        }
        let mut server = apiserver.next_request().await;
        assert_eq!(framing(&server.head), framed, "{context}");
        assert_eq!(
            body(&mut server).await,
            pieces.concat().as_bytes(),
            "{context}"
        );
        server.send(NEXT).await;
        assert_eq!(
            within("the response", response).await.unwrap().status(),
            200
        );
        assert_next_request_follows(&mut server, TestClient::Http2(client), &context).await;
    }
}

/// An empty body has the length 0 or no framing field. It must never look like a body whose end is to come.
#[tokio::test]
async fn post_without_a_body_has_no_body_upstream() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for protocol in BOTH {
        let mut client = TestClient::start(&proxy, protocol).await;
        let context = format!("over {protocol:?}");
        let serving = async {
            let mut server = apiserver.next_request().await;
            let framing = framing(&server.head);
            assert!(
                framing.is_empty() || framing == ["content-length: 0"],
                "{context}: {framing:?}"
            );
            server.send(NEXT).await;
            server
        };
        let (mut server, _) = tokio::join!(serving, client.request("POST", "/"));
        assert_next_request_follows(&mut server, client, &context).await;
    }
}

const MIB: usize = 1 << 20;

/// Bytes that differ at each position, so that the test notices a lost, repeated or swapped piece.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0])
        .collect()
}

/// Splits into odd sizes up to 20 KiB, which match no buffer on the path.
fn odd_pieces(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    for size in [1, 3, 777, 4097, 9, 16_385, 20_001].into_iter().cycle() {
        if bytes.len() <= size {
            pieces.push(bytes);
            return pieces;
        }
        let (piece, rest) = bytes.split_at(size);
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

#[tokio::test]
async fn upload_in_odd_pieces_arrives_complete() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let sent = pattern(MIB);

    for coded in [false, true] {
        let mut client = proxy.client().http1().await;
        let line = if coded {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {MIB}")
        };
        client
            .send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{line}\r\n\r\n"))
            .await;
        let mut server = apiserver.next_request().await;
        let sending = async {
            for piece in odd_pieces(&sent) {
                if coded {
                    let size = format!("{:x}\r\n", piece.len());
                    client
                        .send([size.as_bytes(), piece, b"\r\n"].concat())
                        .await;
                } else {
                    client.send(piece).await;
                }
            }
            if coded {
                client.send("0\r\n\r\n").await;
            }
        };
        let (_, received) = tokio::join!(sending, body(&mut server));
        assert!(received == sent, "{line}: {} bytes", received.len());
        server.send(NEXT).await;
        assert_eq!(client.response().await.text(), "next");
        assert_next_request_follows(&mut server, TestClient::Http1(client), &line).await;
    }

    for length in [Some(MIB), None] {
        let client = proxy.client().http2().await;
        let mut request = Request::post("https://kube.test/");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(()).unwrap();
        let (response, mut upload) = client.begin(request, false).await.unwrap();
        for piece in odd_pieces(&sent) {
            upload.send_data(piece.to_vec().into(), false).unwrap();
        }
        upload.send_data(Bytes::new(), true).unwrap();
        let mut server = apiserver.next_request().await;
        let received = body(&mut server).await;
        assert!(received == sent, "{length:?}: {} bytes", received.len());
        server.send(NEXT).await;
        assert_eq!(
            within("the response", response).await.unwrap().status(),
            200
        );
        assert_next_request_follows(
            &mut server,
            TestClient::Http2(client),
            &format!("{length:?}"),
        )
        .await;
    }
}

/// An upload that waits for the apiserver stays with the client. In between are one piece, the buffers of the
/// kernel and the HTTP/2 window, never the whole upload. No byte is lost.
#[tokio::test]
async fn late_reading_apiserver_slows_the_upload() {
    const WHOLE: usize = 64 * MIB;
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let client = proxy.client().http2().await;
    let request = Request::post("https://kube.test/").header("content-length", WHOLE);
    let (response, mut upload) = client
        .begin(request.body(()).unwrap(), false)
        .await
        .unwrap();
    let mut server = apiserver.next_request().await;
    let (sender, mut taken) = mpsc::unbounded_channel();
    let sending = tokio::spawn(async move {
        let mut left = WHOLE;
        while left > 0 {
            upload.reserve_capacity(left.min(64 << 10));
            let capacity = std::future::poll_fn(|cx| upload.poll_capacity(cx)).await;
            let room = capacity.unwrap().unwrap().min(left);
            left -= room;
            upload
                .send_data(vec![b'x'; room].into(), left == 0)
                .unwrap();
            sender.send(room).ok();
        }
    });
    let pushed = sum_until_quiet(&mut taken).await;
    assert!((1..WHOLE / 2).contains(&pushed), "{pushed} bytes");
    let mut received = 0;
    let mut space = vec![0; 256 << 10];
    while received < WHOLE {
        let read = within("more of the upload", server.stream.read(&mut space))
            .await
            .unwrap();
        assert!(
            read > 0 && space[..read].iter().all(|byte| *byte == b'x'),
            "{received}"
        );
        received += read;
    }
    assert_eq!(received, WHOLE);
    within("the end of the upload", sending).await.unwrap();
    server.send(NEXT).await;
    assert_eq!(
        within("the response", response).await.unwrap().status(),
        200
    );
    assert_next_request_follows(&mut server, TestClient::Http2(client), "after the upload").await;
}
