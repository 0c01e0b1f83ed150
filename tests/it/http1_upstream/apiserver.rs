//! An apiserver that answers byte for byte as told.

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

/// What the apiserver does with the connection once it has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AfterResponse {
    /// It waits for the next request.
    KeepOpen,
    /// `close_notify`, then the end of TCP.
    Close,
    /// TCP ends without `close_notify`.
    CloseWithoutNotify,
    Reset,
}

/// A request as it came.
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
    /// Answers `/0` with the first of these cases, `/1` with the second and so on, and all else with `next`.
    pub(super) async fn start(world: &World, cases: &[Case]) -> Self {
        let (tell, requests) = mpsc::unbounded_channel();
        let cases: Arc<[Case]> = cases.into();
        let apiserver = world.apiserver().alpn(&["http/1.1"]).raw(move |raw| {
            let (tell, cases) = (tell.clone(), Arc::clone(&cases));
            async move { serve(raw, &cases, &tell).await }
        });
        Self {
            upstream: apiserver.start().await,
            requests,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    /// The next request, which must have come.
    #[track_caller]
    pub(super) fn next_request(&mut self) -> ReceivedRequest {
        self.requests.try_recv().unwrap()
    }

    /// How many requests have come that nobody took.
    pub(super) fn open_requests(&self) -> usize {
        self.requests.len()
    }

    pub(super) async fn connection_end(&self, id: usize) {
        self.upstream.connection_end(id).await;
    }
}

async fn serve(mut raw: Raw, cases: &[Case], tell: &mpsc::UnboundedSender<ReceivedRequest>) {
    let connection = raw.connection.id;
    while let Some(request) = read_request(&mut raw.stream).await {
        let target = request.split(' ').nth(1).unwrap().to_owned();
        let case = target[1..]
            .parse()
            .ok()
            .and_then(|number: usize| cases.get(number));
        // A test that has failed hears no more.
        tell.send(ReceivedRequest { connection, target }).ok();
        let Some(case) = case else {
            if write(&mut raw.stream, NEXT).await {
                continue;
            }
            return;
        };
        for piece in &case.pieces {
            // The proxy may have seen enough.
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

/// Writes these bytes in TLS records of their own; says whether anybody takes them.
pub(super) async fn write(stream: &mut Stream, bytes: impl AsRef<[u8]>) -> bool {
    stream.write_all(bytes.as_ref()).await.is_ok() && stream.flush().await.is_ok()
}

/// Ends the connection in order, and waits until the proxy ends it too.
pub(super) async fn close(mut stream: Stream) {
    if stream.shutdown().await.is_ok() {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.ok();
    }
}

/// The next request, head and body as they came; `None` when the connection has ended.
pub(super) async fn read_request(stream: &mut Stream) -> Option<String> {
    let head = read_through(stream, "\r\n\r\n").await?;
    let body = read_body(stream, &head).await?;
    Some(head + &String::from_utf8_lossy(&body))
}

/// The body behind this head, as it came.
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

/// All that comes until it ends with this; `None` when the connection ends before.
pub(super) async fn read_through(stream: &mut Stream, end: &str) -> Option<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(end.as_bytes()) {
        seen.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&seen).into_owned())
}
