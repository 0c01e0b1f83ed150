//! Serves the requests of one HTTP/1.1 connection until it ends, is idle or drains.

mod framing;
mod guard;

use std::{convert::Infallible, pin::pin, sync::Arc};

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_rustls::server::TlsStream;

pub use framing::scan_requests;

use self::guard::{LINGER, NotifyOnDrop, RequestGuard};
use super::{CLOSE_TIMEOUT, Service};
use crate::{proxy, transport::ReadAhead};

/// Serves one connection until it ends, or another client needs its place. Once the drain begins, the connection closes after the response to
/// the current request, or to the first one if none has come yet.
///
/// # Errors
///
/// When the connection does not end in order.
pub(super) async fn serve(
    stream: Box<TlsStream<ReadAhead>>,
    service: Arc<Service>,
) -> Result<(), hyper::Error> {
    let drain = service.downstream.drain.clone();
    let limits = service.downstream.limits.clone();
    let buffer = limits.uri_bytes + limits.header_bytes + HEAD_SLACK;
    let fields = limits.header_fields + 1;
    let client_idle = service.shared.timeouts.client_idle;
    let (guard, tracker) = RequestGuard::new(
        stream,
        limits,
        service.shared.timeouts.request_head,
        Arc::clone(&service.downstream.connected),
        drain.clone(),
    );
    let connected = Arc::clone(&service.downstream.connected);
    let respond = service_fn({
        let tracker = Arc::clone(&tracker);
        move |request: Request<Incoming>| {
            let (service, tracker) = (Arc::clone(&service), Arc::clone(&tracker));
            async move {
                let upgrade = request.extensions().get::<OnUpgrade>().cloned();
                let rejection = tracker.serve_next();
                let routes = Arc::clone(&service.shared.snapshot.load().routes);
                let mut response =
                    proxy::handle(&routes, &service.downstream, request, rejection).await;
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    tracker.become_tunnel();
                } else {
                    if let Some(upgrade) = upgrade {
                        service.downstream.drain.spawn(close(upgrade));
                    }
                    if rejection.is_some() || service.downstream.drain.has_begun() {
                        proxy::close_after(&mut response);
                    }
                }
                tracker.response_begins();
                let notify = NotifyOnDrop(tracker);
                // The closure only holds `notify` as long as the body exists.
                let hold = move |error| {
                    let _held = &notify;
                    error
                };
                Ok::<_, Infallible>(response.map(|body| body.map_err(hold)))
            }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Covers the wait for the next request too. A head that has begun has the shorter deadline of
        // `RequestGuard`.
        .header_read_timeout(client_idle)
        .max_buf_size(buffer)
        .max_headers(fields)
        // About requests only; after a 101 `tunnel` handles half-close.
        .half_close(false)
        .serve_connection(TokioIo::new(guard), respond)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = drain.begun() => {}
        // Between two requests hyper closes the connection at once.
        () = connected.place().closing() => {
            connection.as_mut().graceful_shutdown();
            let ended = Box::pin(timeout(CLOSE_TIMEOUT, connection)).await;
            return ended.unwrap_or(Ok(()));
        }
    }
    // hyper's `graceful_shutdown` would close a connection that has had no request yet. Let it send one:
    // its response carries `Connection: close`, and `timeouts.requestHead` bounds the wait.
    if tracker.has_served() {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = Box::pin(tracker.drained()) => connection.as_mut().graceful_shutdown(),
            () = drain.deadline() => return Ok(()),
        }
    }
    tokio::select! {
        ended = connection => ended,
        () = drain.deadline() => Ok(()),
    }
}

/// Closes a connection that hyper hands over instead of closing it. hyper does so at the end of a connection
/// on which a request had an `Upgrade` field, whatever the response was.
async fn close(upgrade: OnUpgrade) {
    // An error means that the connection broke, and then it is closed already.
    if let Ok(connection) = upgrade.await {
        let mut stream = TokioIo::new(connection);
        timeout(LINGER, stream.shutdown()).await.ok();
    }
}

/// Room for the request line and line ends, in addition to the fields and the target.
const HEAD_SLACK: usize = 16 * 1024;
