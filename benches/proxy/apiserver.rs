//! A cheap apiserver: it records nothing, so that the proxy is most of the measured work.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
    upgrade,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use standin::{
    pki::Identity,
    upstream::{Raw, Upstream},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};

/// Size in bytes of the response to `/small`: one object.
pub(crate) const SMALL_BYTES: usize = 1024;
/// Size in bytes of the response to `/list`: some thousand objects.
pub(crate) const LIST_BYTES: usize = 10 * 1024 * 1024;
/// Size in bytes of one read or write of a tunnel.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;

/// The bodies of the responses, and the open watches.
#[derive(Clone)]
pub(crate) struct State {
    small: Bytes,
    list: Bytes,
    watches: Arc<Mutex<Vec<mpsc::UnboundedSender<Bytes>>>>,
}

impl State {
    /// Sends an event to every watch. Returns the number of watches.
    pub(crate) fn send_to_all(&self, event: &Bytes) -> usize {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = watches.iter().map(|watch| watch.send(event.clone()));
        sent.filter(Result::is_ok).count()
    }

    fn respond(&self, request: &mut Request<Incoming>) -> Response<BenchBody> {
        match request.uri().path() {
            "/small" => Response::new(Either::Left(self.small.clone().into())),
            "/list" => Response::new(Either::Left(self.list.clone().into())),
            "/watch" => {
                let (watch, events) = mpsc::unbounded_channel();
                let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
                watches.push(watch);
                Response::new(Either::Right(Events(events)))
            }
            "/exec" => {
                tokio::spawn(serve_tunnel(upgrade::on(request)));
                Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header(header::CONNECTION, "Upgrade")
                    .header(header::UPGRADE, "SPDY/3.1")
                    .body(Either::Left(Full::default()))
                    .expect("a valid response")
            }
            _ => Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(Either::Left(Full::default()))
                .expect("a valid response"),
        }
    }
}

type BenchBody = Either<Full<Bytes>, Events>;

/// Serves until the upstream is dropped, with the limits of kube-apiserver (`secure_serving.go`).
pub(crate) async fn start(identity: Identity) -> (Upstream, State) {
    let state = State {
        small: vec![b'x'; SMALL_BYTES].into(),
        list: vec![b'x'; LIST_BYTES].into(),
        watches: Arc::default(),
    };
    let serving = state.clone();
    let serve = move |Raw { stream, connection }| {
        let state = serving.clone();
        async move {
            let service = service_fn(move |mut request| {
                let response = state.respond(&mut request);
                async { Ok::<_, Infallible>(response) }
            });
            let stream = TokioIo::new(stream);
            // Errors are not checked here, because the client checks every response.
            if connection.alpn.as_deref() == Some("h2") {
                let mut http2 = http2::Builder::new(TokioExecutor::new());
                http2
                    .max_concurrent_streams(100)
                    .initial_stream_window_size(256 << 10)
                    .initial_connection_window_size((256 << 10) * 100);
                drop(http2.serve_connection(stream, service).await);
            } else {
                let http1 = http1::Builder::new().serve_connection(stream, service);
                drop(http1.with_upgrades().await);
            }
        }
    };
    (Upstream::builder(identity).raw(serve).start().await, state)
}

/// In a loop: reads two numbers from the client, sends as many bytes as the first number, reads as many bytes as
/// the second number, and sends the count of the bytes read.
async fn serve_tunnel(upgraded: upgrade::OnUpgrade) {
    let upgraded = upgraded.await.expect("the proxy keeps the connection");
    let mut tunnel = TokioIo::new(upgraded);
    let mut piece = vec![b'x'; PIECE_BYTES];
    // Ends when the client closes the connection.
    while let (Ok(down), Ok(up)) = (tunnel.read_u64().await, tunnel.read_u64().await) {
        let mut left = down;
        while left > 0 {
            let some = piece
                .len()
                .min(usize::try_from(left).unwrap_or(PIECE_BYTES));
            let part = piece.get(..some).expect("the range is within the piece");
            tunnel.write_all(part).await.expect("the client reads");
            left -= some as u64;
        }
        let mut received = 0;
        while received < up {
            let read = tunnel.read(&mut piece).await.expect("the client writes");
            assert!(
                read > 0,
                "the client closed the connection after {received} of {up} bytes"
            );
            received += read as u64;
        }
        tunnel.write_u64(received).await.expect("the client reads");
        tunnel.flush().await.expect("the client reads");
    }
}

/// The body of a watch: one frame per event, until the sender is dropped.
pub(crate) struct Events(mpsc::UnboundedReceiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|event| Some(Ok(Frame::data(event?))))
    }
}
