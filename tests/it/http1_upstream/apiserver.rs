//! An apiserver that sends the exact bytes that a test gives it.

use std::{net::SocketAddr, sync::Arc};

use standin::upstream::{Raw, Upstream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;

use super::Case;
use crate::proxy::World;

pub(super) type Stream = TlsStream<TcpStream>;

/// What the apiserver does with the connection after its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterResponse {
    /// Waits for the next request.
    KeepOpen,
    /// Sends `close_notify`, then closes the TCP connection.
    Close,
    /// Closes the TCP connection without `close_notify`.
    CloseWithoutNotify,
    Reset,
}

/// The target of a request, and the connection it arrived on.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) connection: usize,
    pub(super) target: String,
}

pub(super) struct Apiserver {
    upstream: Upstream,
    requests: mpsc::UnboundedReceiver<ReceivedRequest>,
}

impl Apiserver {
    /// Responds to `/0` with the first of these cases, to `/1` with the second and so on, and to other targets
    /// with `next`.
    pub(super) async fn start(world: &World, cases: &[Case]) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let cases: Arc<[Case]> = cases.into();
        let apiserver = world.apiserver().alpn(&["http/1.1"]).raw(move |raw| {
            let (sender, cases) = (sender.clone(), Arc::clone(&cases));
            async move { serve(raw, &cases, &sender).await }
        });
        Self {
            upstream: apiserver.start().await,
            requests,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    /// Returns the next request, which must have arrived already.
    #[track_caller]
    pub(super) fn next_request(&mut self) -> ReceivedRequest {
        self.requests.try_recv().unwrap()
    }

    /// The number of requests that the test has not taken yet.
    pub(super) fn open_requests(&self) -> usize {
        self.requests.len()
    }

    pub(super) async fn connection_end(&self, id: usize) {
        self.upstream.connection_end(id).await;
    }
}

async fn serve(mut raw: Raw, cases: &[Case], sender: &mpsc::UnboundedSender<ReceivedRequest>) {
    let connection = raw.connection.id;
    while let Some(request) = read_request(&mut raw.stream).await {
        let target = request.split(' ').nth(1).unwrap().to_owned();
        let case = target[1..]
            .parse()
            .ok()
            .and_then(|number: usize| cases.get(number));
        // A failed test has dropped the receiver.
        sender.send(ReceivedRequest { connection, target }).ok();
        let Some(case) = case else {
            if write(&mut raw.stream, NEXT).await {
                continue;
            }
            return;
        };
        for piece in &case.pieces {
            // The proxy may close the connection before the last piece.
            if !write(&mut raw.stream, piece).await {
                return;
            }
        }
        match case.then {
            AfterResponse::KeepOpen => {}
            AfterResponse::Close => return close(raw.stream).await,
            AfterResponse::CloseWithoutNotify => return,
            AfterResponse::Reset => return standin::tcp::reset(raw.stream.into_inner().0),
        }
    }
}

pub(super) const NEXT: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext";

/// Writes these bytes in their own TLS records. Returns false when the connection is closed.
pub(super) async fn write(stream: &mut Stream, bytes: impl AsRef<[u8]>) -> bool {
    stream.write_all(bytes.as_ref()).await.is_ok() && stream.flush().await.is_ok()
}

/// Closes the connection cleanly, and waits until the proxy closes it too.
pub(super) async fn close(mut stream: Stream) {
    if stream.shutdown().await.is_ok() {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
    }
}

/// Reads the next request, head and body unchanged. Returns `None` at the end of the connection.
pub(super) async fn read_request(stream: &mut Stream) -> Option<String> {
    let head = read_through(stream, "\r\n\r\n").await?;
    let body = read_body(stream, &head).await?;
    Some(head + &String::from_utf8_lossy(&body))
}

/// Reads the body after this head, with its framing.
pub(super) async fn read_body(stream: &mut Stream, head: &str) -> Option<Vec<u8>> {
    let head = head.to_ascii_lowercase();
    if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        let mut body = Vec::new();
        while !body.ends_with(b"\r\n0\r\n\r\n") && body != b"0\r\n\r\n" {
            body.push(stream.read_u8().await.ok()?);
        }
        return Some(body);
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(body)
}

/// Reads through `end` and returns everything. Returns `None` when the connection ends first.
pub(super) async fn read_through(stream: &mut Stream, end: &str) -> Option<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        seen.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&seen).into_owned())
}
