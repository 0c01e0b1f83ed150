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
pub(crate) const SMALL: usize = 1024;
/// Size in bytes of the response to `/list`: some thousand objects.
pub(crate) const LIST: usize = 10 * 1024 * 1024;
/// Size in bytes of one read or write of a tunnel.
pub(crate) const PIECE: usize = 64 * 1024;

/// The bodies of the responses, and the open watches.
#[derive(Clone)]
pub(crate) struct State {
    small: Bytes,
    list: Bytes,
    watches: Arc<Mutex<Vec<mpsc::UnboundedSender<Bytes>>>>,
}

impl State {
    /// Sends an event to every watch. Returns the number of watches.
    pub(crate) fn tell_all(&self, event: &Bytes) -> usize {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let told = watches.iter().map(|watch| watch.send(event.clone()));
        told.filter(Result::is_ok).count()
    }

    fn answer(&self, request: &mut Request<Incoming>) -> Response<Answer> {
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
                tokio::spawn(carry(upgrade::on(request)));
                Response::builder()
                    .status(StatusCode::SWITCHING_PROTOCOLS)
                    .header(header::CONNECTION, "Upgrade")
                    .header(header::UPGRADE, "SPDY/3.1")
                    .body(Either::Left(Full::default()))
                    .expect("a good response")
            }
            _ => Response::builder()
                .status(StatusCode::NOT_FOUND)
                .body(Either::Left(Full::default()))
                .expect("a good response"),
        }
    }
}

type Answer = Either<Full<Bytes>, Events>;

/// Serves until the upstream is dropped, with the numbers of kube-apiserver (`secure_serving.go`).
pub(crate) async fn start(identity: Identity) -> (Upstream, State) {
    let state = State {
        small: vec![b'x'; SMALL].into(),
        list: vec![b'x'; LIST].into(),
        watches: Arc::default(),
    };
    let serving = state.clone();
    let serve = move |Raw { stream, connection }| {
        let state = serving.clone();
        async move {
            let service = service_fn(move |mut request| {
                let answer = state.answer(&mut request);
                async { Ok::<_, Infallible>(answer) }
            });
            let stream = TokioIo::new(stream);
            // An error here needs no check: the client checks every response.
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

/// Repeats: reads two numbers from the client, sends as many bytes as the first says, reads as many as the
/// second says, and reports how many it read.
async fn carry(upgraded: upgrade::OnUpgrade) {
    let upgraded = upgraded.await.expect("the proxy keeps the connection");
    let mut tunnel = TokioIo::new(upgraded);
    let mut piece = vec![b'x'; PIECE];
    // Ends when the client closes the connection.
    while let (Ok(down), Ok(up)) = (tunnel.read_u64().await, tunnel.read_u64().await) {
        let mut left = down;
        while left > 0 {
            let some = piece.len().min(usize::try_from(left).unwrap_or(PIECE));
            let part = piece.get(..some).expect("it is no longer than a piece");
            tunnel.write_all(part).await.expect("the client reads");
            left -= some as u64;
        }
        let mut taken = 0;
        while taken < up {
            let read = tunnel.read(&mut piece).await.expect("the client writes");
            assert!(read > 0, "the client ended at {taken} of {up} bytes");
            taken += read as u64;
        }
        tunnel.write_u64(taken).await.expect("the client reads");
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
