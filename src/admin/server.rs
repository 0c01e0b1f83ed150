//! A small HTTP/1.1 server: GET and HEAD of a few paths, on a bounded number of connections.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tracing::{debug, warn};

use super::{
    health, health::HealthChecks, history::History, host, page::StatusPage, sources::Sources,
    view::View,
};
use crate::{drain::Drain, metrics::ExpositionFormat, socket, text::error_chain};

/// What the port serves.
struct Site {
    sources: Sources,
    page: StatusPage,
    history: History,
}

/// Accepts and serves connections until the drain begins.
///
/// A connection beyond the limit closes the oldest one. Otherwise clients that send nothing would keep probes out,
/// and the kubelet would restart the process.
pub(super) async fn serve(socket: TcpListener, sources: Sources, drain: Drain) {
    let site = Arc::new(Site {
        sources,
        page: StatusPage::new(),
        history: History::default(),
    });
    let (kept, drain_begun) = (Arc::clone(&site), drain.clone());
    drain.spawn(async move {
        tokio::select! {
            () = kept.history.keep(&kept.sources) => {}
            () = drain_begun.begun() => {}
        }
    });
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = async {
            let (stream, _) = socket.accept().await?;
            let settings = site.sources.settings.load();
            socket::tune(&stream, &settings.timeouts)?;
            socket::set_user_timeout(&stream, &settings.timeouts)?;
            io::Result::Ok(stream)
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = drain.begun() => return,
        };
        match accepted {
            Ok(stream) => {
                if open.len() == MAX_CONNECTIONS {
                    open.retain(|connection| !connection.is_finished());
                }
                if open.len() == MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                let site = Arc::clone(&site);
                let drain_begun = drain.clone();
                let connection = drain.spawn(async move {
                    tokio::select! {
                        () = serve_connection(stream, &site) => {}
                        () = drain_begun.begun() => {}
                    }
                });
                open.push_back(connection.abort_handle());
            }
            Err(error) => {
                warn!(error = %error_chain(&error), "accept failed on the admin port");
                tokio::time::sleep(ACCEPT_RETRY_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, site: &Site) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(respond(site, &request))
    });
    let ended = http1::Builder::new()
        .timer(TokioTimer::new())
        // Also bounds the wait between two requests. The status page polls more often, and Prometheus
        // reconnects.
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = ended {
        debug!(error = %error_chain(&error), "admin connection ended early");
    }
}

fn respond(site: &Site, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let sources = &site.sources;
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed; use GET or HEAD\n",
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    let has = |key| {
        let mut pairs = request
            .uri()
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'));
        pairs.any(|pair| pair.split('=').next() == Some(key))
    };
    let verbose = has("verbose");
    let path = request.uri().path();
    // The other paths show no clients, and probes and Prometheus use any host name.
    if matches!(path, "/" | "/status.json")
        && let Some(refusal) = host::refusal(sources, request)
    {
        return text(StatusCode::MISDIRECTED_REQUEST, refusal);
    }
    match path {
        "/" => status_page(&site.page),
        "/livez" => checked(&health::livez(sources), verbose),
        "/readyz" => {
            let checks = health::readyz(sources, SystemTime::now(), has("strict"));
            checked(&checks, verbose)
        }
        "/metrics" => {
            let accept = request.headers().get_all(header::ACCEPT).iter();
            let accept: Vec<_> = accept.filter_map(|value| value.to_str().ok()).collect();
            let format = ExpositionFormat::from_accept(&accept.join(","));
            typed(format.content_type(), sources.exposition(format))
        }
        "/status.json" => {
            let view = View::new(sources, &site.history, SystemTime::now());
            match serde_json::to_string(&view) {
                Ok(json) => typed("application/json", json),
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "not found; the paths are / (the status page), /livez, /readyz, /metrics and /status.json\n",
        ),
    }
}

fn status_page(page: &StatusPage) -> Response<Full<Bytes>> {
    let Some((html, policy)) = page.parts() else {
        return text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the status page has no content security policy\n",
        );
    };
    let mut response = typed("text/html; charset=utf-8", html);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    let no_referrer = HeaderValue::from_static("no-referrer");
    headers.insert(header::REFERRER_POLICY, no_referrer);
    response
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

/// A response that a browser neither sniffs nor caches.
fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
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

/// Open connections. Probes, Prometheus and a few people need no more. They are part of the reserve of open files
/// (`config::capacity`).
const MAX_CONNECTIONS: usize = 32;
/// Time limit for the next request and for its head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Size limit of a request head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Pause after `accept` failed, for example because the process has no free file descriptor.
const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);
