//! A small HTTP/1.1 server without TLS, for the admin port and for the challenges of a CA: short responses, on a
//! bounded number of connections.

use std::{collections::VecDeque, convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tracing::{debug, warn};

use crate::{drain::Drain, text::error_chain};

/// The response of such a server.
pub(crate) type PlainResponse = Response<Full<Bytes>>;

/// One port without TLS, and its limits for unknown clients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainPort {
    /// For the log.
    pub name: &'static str,
    /// A connection beyond these closes the oldest one. Otherwise clients that send nothing would keep the others out.
    pub connections: usize,
    /// Size limit of a request head.
    pub head_bytes: usize,
    /// Whether a connection serves another request after the first.
    pub keep_alive: bool,
}

impl PlainPort {
    /// Accepts and serves connections until the drain begins. `tune` sets the options of each socket.
    pub(crate) async fn serve<F>(
        self,
        socket: TcpListener,
        tune: impl Fn(&TcpStream) -> io::Result<()>,
        respond: F,
        drain: Drain,
    ) where
        F: Fn(&Request<Incoming>) -> PlainResponse + Send + Sync + 'static,
    {
        let respond = Arc::new(respond);
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let accepted = async {
                let (stream, _) = socket.accept().await?;
                tune(&stream)?;
                io::Result::Ok(stream)
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = drain.begun() => return,
            };
            match accepted {
                Ok(stream) => {
                    if open.len() >= self.connections {
                        open.retain(|connection| !connection.is_finished());
                    }
                    if open.len() >= self.connections
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    let respond = Arc::clone(&respond);
                    let drain_begun = drain.clone();
                    let connection = drain.spawn(async move {
                        tokio::select! {
                            () = self.serve_connection(stream, &*respond) => {}
                            () = drain_begun.begun() => {}
                        }
                    });
                    open.push_back(connection.abort_handle());
                }
                Err(error) => {
                    warn!(
                        port = self.name,
                        error = %error_chain(&error),
                        "accept failed on a port without TLS"
                    );
                    tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
                }
            }
        }
    }

    async fn serve_connection(
        self,
        stream: TcpStream,
        respond: &(impl Fn(&Request<Incoming>) -> PlainResponse + Sync),
    ) {
        let service = service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(respond(&request))
        });
        let ended = http1::Builder::new()
            .timer(TokioTimer::new())
            // Also bounds the wait between two requests. The status page polls more often, and Prometheus
            // reconnects.
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(self.head_bytes)
            .keep_alive(self.keep_alive)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = ended {
            debug!(
                port = self.name,
                error = %error_chain(&error),
                "connection without TLS ended early"
            );
        }
    }
}

/// A response in words.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> PlainResponse {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

/// A response that a browser neither sniffs nor caches.
pub(crate) fn typed(content_type: &'static str, body: impl Into<Bytes>) -> PlainResponse {
    let mut response = Response::new(Full::new(body.into()));
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

/// Time limit for the next request and for its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after `accept` failed, for example because the process has no free file descriptor.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);
