//! Stage 3: drives one HTTP connection, HTTP/1.1 or h2 by ALPN and never by sniffing, to its graceful
//! end.

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, StatusCode};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::{io::AsyncWriteExt, sync::watch, time::timeout};
use tokio_rustls::server::TlsStream;

use super::{
    Service,
    heads::{Heads, LINGER},
    preface::Preface,
    sending::Sending,
};
use crate::{
    drain::Drain,
    metrics::{self, Connected, Limit},
    proxy,
    transport::{ReadAhead, WriteBatcher},
};

/// What ALPN chose; no ALPN means HTTP/1.1 (kubectl's upgrade dials offer none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// As metrics name it.
    pub(super) fn label(self) -> metrics::Protocol {
        match self {
            Self::Http1 => metrics::Protocol::Http1,
            Self::Http2 => metrics::Protocol::Http2,
        }
    }
}

/// Serves one connection until it ends; once the drain begins, until its running requests have ended.
///
/// # Errors
///
/// When the connection did not end in order.
pub(super) async fn serve_connection(
    stream: Box<TlsStream<ReadAhead>>,
    protocol: Protocol,
    service: Arc<Service>,
) -> Result<(), hyper::Error> {
    match protocol {
        Protocol::Http1 => serve_http1(stream, service).await,
        // On the heap, so that an HTTP/1.1 connection is not as large.
        Protocol::Http2 => Box::pin(serve_http2(stream, service)).await,
    }
}

async fn serve_http1(
    stream: Box<TlsStream<ReadAhead>>,
    service: Arc<Service>,
) -> Result<(), hyper::Error> {
    let drain = service.downstream.drain.clone();
    let limits = service.downstream.limits.clone();
    let buffer = limits.uri_bytes + limits.header_bytes + HEAD_SLACK;
    let fields = limits.header_fields + 1;
    let client_idle = service.shared.timeouts.client_idle;
    let (heads, seen) = Heads::new(
        stream,
        limits,
        service.shared.timeouts.request_head,
        Arc::clone(&service.downstream.connected),
        drain.clone(),
    );
    let first = Arc::clone(&seen);
    let answer = service_fn(move |request: Request<Incoming>| {
        let (service, seen) = (Arc::clone(&service), Arc::clone(&seen));
        async move {
            let leftover = request.extensions().get::<OnUpgrade>().cloned();
            let broken = seen.served();
            let routes = Arc::clone(&service.shared.snapshot.load().routes);
            let mut response = proxy::handle(&routes, &service.downstream, request, broken).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                seen.became_tunnel();
            } else {
                if let Some(leftover) = leftover {
                    service.downstream.drain.spawn(end(leftover));
                }
                if service.downstream.drain.has_begun() {
                    proxy::close_after(&mut response);
                }
            }
            seen.answered();
            Ok::<_, Infallible>(response.map(|body| Sending::new(body, seen)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Covers the wait for the next request too; a head that has begun has the shorter deadline
        // of `Heads`.
        .header_read_timeout(client_idle)
        .max_buf_size(buffer)
        .max_headers(fields)
        .half_close(false)
        .serve_connection(TokioIo::new(heads), answer)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = drain.begun() => {}
    }
    // A client that has connected and not asked yet is owed one answer, which then says `close`; hyper
    // would end its connection at once. The deadline for a first head bounds the wait.
    if first.has_served() {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = Box::pin(first.quiet()) => connection.as_mut().graceful_shutdown(),
            () = drain.cut() => return Ok(()),
        }
    }
    tokio::select! {
        ended = connection => ended,
        () = drain.cut() => Ok(()),
    }
}

async fn serve_http2(
    stream: Box<TlsStream<ReadAhead>>,
    service: Arc<Service>,
) -> Result<(), hyper::Error> {
    let drain = service.downstream.drain.clone();
    let limits = &service.downstream.limits;
    let fields = limits.header_fields.saturating_add(PSEUDO_FIELDS);
    let header_bytes =
        limits.uri_bytes + limits.header_bytes + fields.saturating_mul(FIELD_OVERHEAD);
    let (streams, mut running) = watch::channel(0);
    let mut builder = http2::Builder::new(Tracked {
        drain: drain.clone(),
        streams: Arc::new(streams),
        most: usize::try_from(limits.streams_per_connection).unwrap_or(usize::MAX),
        connected: Arc::clone(&service.downstream.connected),
    });
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_per_connection)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Twice what is allowed, so that there is room to say which limit was passed; what is larger
        // still gets h2's own bare 431.
        .max_header_list_size(u32::try_from(header_bytes.saturating_mul(2)).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(service.shared.timeouts.client_ping_interval)
        .keep_alive_timeout(service.shared.timeouts.client_ping_timeout);
    let cork = WriteBatcher::new(*stream);
    let stream = Preface::new(cork.clone(), service.shared.timeouts.request_head);
    let client_idle = service.shared.timeouts.client_idle;
    let last_word = service.shared.timeouts.client_ping_timeout;
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move {
            let routes = Arc::clone(&service.shared.snapshot.load().routes);
            Ok::<_, Infallible>(proxy::handle(&routes, &service.downstream, request, None).await)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    tokio::select! {
        ended = poll_fn(|cx| cork.drive(connection.as_mut(), cx)) => return ended,
        () = drain.begun() => {}
        // Pings are no requests: without this a client that answers them would keep its place for ever.
        () = idle(&mut running, client_idle) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = poll_fn(|cx| cork.drive(connection.as_mut(), cx)) => ended,
        // Over, whether the client agrees or not.
        () = idle(&mut running, last_word) => Ok(()),
        () = drain.cut() => Ok(()),
    }
}

/// Returns once no stream has run for so long.
async fn idle(running: &mut watch::Receiver<usize>, limit: Duration) {
    loop {
        // Fails when the connection is gone, which then ends by itself.
        if running.wait_for(|running| *running == 0).await.is_err() {
            return pending().await;
        }
        if timeout(limit, running.changed()).await.is_err() {
            return;
        }
    }
}

/// Ends a connection that hyper gives away in place of ending it: it does so after every request with
/// an `Upgrade` field, whatever was answered.
async fn end(connection: OnUpgrade) {
    // Fails when the connection did not come to a good end; then it is cut.
    if let Ok(connection) = connection.await {
        let mut stream = TokioIo::new(connection);
        timeout(LINGER, stream.shutdown()).await.ok();
    }
}

/// Starts the tasks of h2 streams where they are waited for, and counts them.
#[derive(Debug, Clone)]
struct Tracked {
    drain: Drain,
    streams: Arc<watch::Sender<usize>>,
    /// Streams that there may be at once.
    most: usize,
    connected: Arc<Connected>,
}

pin_project! {
    /// The task of one stream. A type of its own, because an async block holds what it awaits twice.
    struct Counted<F> {
        #[pin]
        stream: F,
        running: Running,
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().stream.poll(cx).map(drop)
    }
}

/// One stream that runs, until dropped.
struct Running(Arc<watch::Sender<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.streams.send_modify(|running| {
            *running += 1;
            if *running == self.most {
                self.connected.counts().limits_hit.count(Limit::Streams);
            }
        });
        let running = Running(Arc::clone(&self.streams));
        self.drain.spawn(Counted { stream, running });
    }
}

/// Of one stream, as kube-apiserver has it, and of the whole connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes buffered per stream for a client that does not read: 100 streams hold 6.4 MiB at most.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams reset before they were looked at (Rapid Reset, CVE-2023-44487).
const PENDING_RESETS: usize = 20;
/// Streams that we had to reset for the client's errors, over the connection's life (`MadeYouReset`,
/// CVE-2025-8671).
const LOCAL_RESETS: usize = 128;
/// What HTTP/2 counts for each field beside its name and value (RFC 9113 §6.5.2), and how many fields the
/// request line becomes.
const FIELD_OVERHEAD: usize = 32;
const PSEUDO_FIELDS: usize = 4;
/// Room for the request line and line ends beside the fields and the target.
const HEAD_SLACK: usize = 16 * 1024;
