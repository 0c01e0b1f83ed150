//! The pages of the admin port: GET and HEAD of a few paths.

use std::{sync::Arc, time::SystemTime};

use http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};

use super::{
    health, health::HealthChecks, history::History, host, page::StatusPage, sources::Sources,
    view::View,
};
use crate::{
    drain::Drain,
    metrics::ExpositionFormat,
    plain_http::{PlainPort, PlainResponse, text, typed},
    socket,
};

/// What the port serves.
struct Site {
    sources: Sources,
    page: StatusPage,
    history: History,
}

/// Accepts and serves connections until the drain begins. Clients that send nothing do not keep probes out; otherwise
/// the kubelet would restart the process.
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
    let settings = Arc::clone(&site.sources.settings);
    let tune = |stream: &TcpStream| {
        let settings = settings.load();
        socket::tune(stream, &settings.timeouts)?;
        socket::set_user_timeout(stream, &settings.timeouts)
    };
    let respond = move |request: &Request<Incoming>| respond(&site, request);
    PORT.serve(socket, tune, respond, drain).await;
}

fn respond(site: &Site, request: &Request<Incoming>) -> PlainResponse {
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

fn status_page(page: &StatusPage) -> PlainResponse {
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

fn checked(checks: &HealthChecks, verbose: bool) -> PlainResponse {
    let status = if checks.passed() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, checks.text(verbose))
}

/// Probes, Prometheus and a few people need no more connections. They are part of the reserve of open files
/// (`config::capacity`).
const PORT: PlainPort = PlainPort {
    name: "admin",
    connections: 32,
    head_bytes: 16 * 1024,
    keep_alive: true,
};
