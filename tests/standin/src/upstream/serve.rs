//! Handles one accepted TCP connection: the handshake, then HTTP or the script of the test.

use std::{
    convert::Infallible,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::{Request, Response, StatusCode, Version, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, server::Acceptor};
use tokio::{net::TcpStream, time::sleep};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use super::{
    Handler, Raw, Script,
    body::{RecordedBody, RequestBody, ResponseBody},
    heads,
    record::{ConnectionEnd, Log, NewRequest, open_responses},
    wire::{Http1Wire, Http2Wire, Shared},
};
use crate::WAIT;

/// The state of one upstream, shared by all its connections.
pub(super) struct ServerState {
    pub(super) log: Arc<Log>,
    pub(super) tls: RwLock<Arc<ServerConfig>>,
    pub(super) script: Script,
    pub(super) max_concurrent_streams: u32,
}

/// After a GOAWAY, Go closes the socket this long after the end of the last stream.
const GOAWAY_CLOSE_DELAY: Duration = Duration::from_secs(1);

pub(super) async fn serve(serving: Arc<ServerState>, tcp: TcpStream, id: usize) {
    let end = match handshake(&serving, tcp, id).await {
        Ok(stream) => match &serving.script {
            Script::Http(handler) => http(&serving, handler, stream, id).await,
            Script::Raw(script) => {
                let connection = serving.log.read(|state| state.connections[id].clone());
                script(Raw { stream, connection }).await;
                ConnectionEnd::Clean
            }
        },
        Err(err) => ConnectionEnd::Handshake(err),
    };
    serving
        .log
        .connection(id, |connection| connection.end = Some(end));
}

async fn handshake(
    serving: &ServerState,
    tcp: TcpStream,
    id: usize,
) -> Result<TlsStream<TcpStream>, String> {
    let accepting = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
        let hello = start.client_hello();
        let sni = hello.server_name().map(str::to_owned);
        let offered = hello.alpn().map(|names| {
            names
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect()
        });
        serving.log.connection(id, |connection| {
            connection.sni = sni;
            connection.alpn_offered = offered;
        });
        let config = serving
            .tls
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        start.into_stream(config).await
    };
    let stream = match tokio::time::timeout(WAIT, accepting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => return Err(err.to_string()),
        Err(_) => return Err(format!("not done within {WAIT:?}")),
    };
    let tls = stream.get_ref().1;
    serving.log.connection(id, |connection| {
        connection.alpn = tls
            .alpn_protocol()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        connection.resumed = tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        connection.client_certificates = tls
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|cert| cert.clone().into_owned())
            .collect();
        connection.tls_version = tls.protocol_version();
    });
    Ok(stream)
}

async fn http(
    serving: &ServerState,
    handler: &Handler,
    stream: TlsStream<TcpStream>,
    id: usize,
) -> ConnectionEnd {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let shared = Shared::new(Arc::clone(&serving.log), id);
    let service = {
        let (log, handler, shared) = (
            Arc::clone(&serving.log),
            Arc::clone(handler),
            Arc::clone(&shared),
        );
        service_fn(move |request| {
            respond(
                Arc::clone(&log),
                Arc::clone(&handler),
                Arc::clone(&shared),
                id,
                request,
            )
        })
    };
    let outcome = if is_http2 {
        let io = TokioIo::new(Http2Wire::new(stream, Arc::clone(&shared)));
        // The limits of kube-apiserver (secure_serving.go).
        http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(serving.max_concurrent_streams)
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size((256 << 10) * 100)
            .max_header_list_size(1 << 20)
            .serve_connection(io, service)
            .await
    } else {
        let io = TokioIo::new(Http1Wire::new(stream, Arc::clone(&shared)));
        http1::Builder::new()
            .title_case_headers(true)
            .max_headers(4096)
            .max_buf_size(2 << 20)
            .serve_connection(io, service)
            .with_upgrades()
            .await
    };
    match outcome {
        Ok(()) => ConnectionEnd::Clean,
        Err(err) => ConnectionEnd::Broken(describe(&err)),
    }
}

async fn respond(
    log: Arc<Log>,
    handler: Handler,
    shared: Arc<Shared>,
    id: usize,
    request: Request<Incoming>,
) -> Result<Response<RecordedBody>, Infallible> {
    let head = if request.version() == Version::HTTP_2 {
        None
    } else {
        shared.next_head()
    };
    let uri = request.uri();
    let from_map = || {
        request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect()
    };
    let entry = log.received(NewRequest {
        connection: id,
        method: request.method().clone(),
        target: match &head {
            Some(head) => heads::target(head),
            None => uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
        },
        authority: uri.authority().map(ToString::to_string),
        version: request.version(),
        headers: head
            .as_ref()
            .map_or_else(from_map, |head| heads::lines(head)),
        head,
    });
    let is_http2 = request.version() == Version::HTTP_2;
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(super::ConnectionId(id));
    let request = Request::from_parts(parts, RequestBody::new(body, entry.clone()));
    let mut response = handler(request).await;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        shared.tunnel_begins();
    }
    // Go turns this header into a GOAWAY when the connection is HTTP/2 (x/net http2/server.go).
    if is_http2
        && response
            .headers()
            .get(header::CONNECTION)
            .is_some_and(|value| value == "close")
    {
        response.headers_mut().remove(header::CONNECTION);
        if shared.go_away() {
            tokio::spawn(close_after_last_stream(log, shared, id));
        }
    }
    Ok(response.map(|body: ResponseBody| RecordedBody::new(body, entry)))
}

async fn close_after_last_stream(log: Arc<Log>, shared: Arc<Shared>, id: usize) {
    // No limit: a watch may run for any time after a GOAWAY.
    log.changed_until(|state| {
        open_responses(state, Some(id)) == 0 || state.connections[id].end.is_some()
    })
    .await;
    sleep(GOAWAY_CLOSE_DELAY).await;
    shared.close();
}

fn describe(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}
