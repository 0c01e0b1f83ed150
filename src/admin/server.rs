//! A small HTTP/1.1 server: GET and HEAD, a handful of paths, few connections at once.

use std::{convert::Infallible, io, sync::Arc, time::Duration, time::SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::{debug, warn};

use super::{health, health::HealthChecks, host, page::Page, sources::Sources, view::View};
use crate::{config::Timeouts, drain::Drain, metrics, socket, text::error_chain};

/// Serves until the drain begins.
pub(super) async fn serve(
    socket: TcpListener,
    sources: Arc<Sources>,
    timeouts: Timeouts,
    drain: Drain,
) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let page = Arc::new(Page::new());
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = async {
            // Before `accept`: a client too many waits in the kernel, and holds nothing here.
            let place = place.await.map_err(io::Error::other)?;
            let (stream, _) = socket.accept().await?;
            socket::tune(&stream, &timeouts)?;
            socket::set_user_timeout(&stream, &timeouts)?;
            io::Result::Ok((stream, place))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = drain.begun() => return,
        };
        match accepted {
            Ok((stream, place)) => {
                let (sources, page) = (Arc::clone(&sources), Arc::clone(&page));
                let told = drain.clone();
                drain.spawn(async move {
                    tokio::select! {
                        () = converse(stream, &sources, &page) => {}
                        () = told.begun() => {}
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(error = %error_chain(&error), "accept failed on the admin port");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, sources: &Sources, page: &Page) {
    let answer = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(sources, page, &request))
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        // For the wait between two requests as well: who polls does so more often, who scrapes connects anew.
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = ended {
        debug!(error = %error_chain(&error), "admin connection ended early");
    }
}

fn answer(sources: &Sources, page: &Page, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are served here\n",
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    let verbose = request.uri().query().is_some_and(|query| {
        let mut names = query.split('&').map(|pair| pair.split('=').next());
        names.any(|name| name == Some("verbose"))
    });
    let path = request.uri().path();
    // What the other paths say names no client, and probes and Prometheus come under any name.
    if matches!(path, "/" | "/status.json")
        && let Some(refusal) = host::refusal(sources, request)
    {
        return text(StatusCode::MISDIRECTED_REQUEST, refusal);
    }
    match path {
        "/" => page.response(),
        "/livez" => checked(&health::livez(sources), verbose),
        "/readyz" => checked(&health::readyz(sources, SystemTime::now()), verbose),
        "/metrics" => typed(metrics::CONTENT_TYPE, sources.exposition()),
        "/status.json" => match serde_json::to_string(&View::new(sources, SystemTime::now())) {
            Ok(json) => typed("application/json", json),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "nothing is here; there are / (the status page), /livez, /readyz, /metrics and /status.json\n",
        ),
    }
}

fn checked(checks: &HealthChecks, verbose: bool) -> Response<Full<Bytes>> {
    let status = if checks.passed() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, checks.text(verbose))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = typed("text/plain; charset=utf-8", body);
    *response.status_mut() = status;
    response
}

/// A response that no browser guesses about, keeps, or lends to another page.
pub(super) fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
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

/// Connections at once; probes, Prometheus and some people need a few.
const MOST_CONNECTIONS: usize = 64;
/// How long a request's head, or the next request, is waited for.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head.
const HEAD_BYTES: usize = 16 * 1024;
/// How long to wait when no connection can be accepted, as when files are short.
const PAUSE: Duration = Duration::from_millis(100);
