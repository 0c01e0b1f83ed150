//! HTTP requests to a verified server, each on a connection of its own, and who sent the response.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::{Plan, Token, recorder::escape, target::CheckTarget};
use crate::{
    drain::Drain,
    hosts::UpstreamAddr,
    upstream::{Offer, TcpConnected, UpstreamError},
};

/// Sends the requests of a run to one verified server.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckClient<'a> {
    pub(super) plan: &'a Plan,
    pub(super) target: &'a CheckTarget,
    pub(super) endpoint: UpstreamAddr,
    /// Sent with every request, if present.
    pub(super) token: Option<&'a Token>,
}

/// A response and the first [`MAX_BODY`] bytes of its body.
#[derive(Debug)]
pub(super) struct BufferedResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// When the head arrived.
    pub(super) received_at: SystemTime,
}

/// The head of a response whose body still arrives.
#[derive(Debug)]
pub(super) struct StreamingResponse {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The connection failed, although the server was verified a moment ago.
    #[error("cannot connect")]
    Dial(#[source] UpstreamError),
    /// The connection was closed before the response was complete.
    #[error("the connection was closed before the response was complete")]
    Closed(#[source] hyper::Error),
    /// The response did not arrive in time.
    #[error("no response in time")]
    Timeout,
}

/// How a response body ended that should stay open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// It was still open at the end of the time.
    Open,
    /// It ended regularly after this time.
    Ended(Duration),
    /// It was aborted after this time.
    Aborted(Duration),
}

/// Who sent a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Responder {
    /// The apiserver, with the message if the body is a `Status`.
    Apiserver(Option<String>),
    /// kube-tls-proxy itself, with its message.
    Proxy(String),
    /// Neither.
    Unknown,
}

impl CheckClient<'_> {
    /// Sends a GET request and reads the response.
    pub(super) async fn get(
        &self,
        path: &str,
        offer: Offer,
        headers: HeaderMap,
    ) -> Result<BufferedResponse, RequestError> {
        let response = self.open(path, offer, headers).await?;
        response.buffer(self.plan.response_timeout).await
    }

    /// Whether the proxy passes connections for this host on, so that the server is the apiserver itself. It then
    /// presents the certificate of an apiserver, and serves any host; the proxy refuses a request for a host that it
    /// does not know. One of the two is not enough: nginx replaces the host, and a certificate may have any names
    /// (`balancer_with_one_sign_of_passthrough_fails`). An apiserver answers `path` with a `Status`.
    pub(super) async fn is_passed_on(&self, path: &str) -> bool {
        let dialled = TcpConnected::dial(
            self.target.outbound.as_ref(),
            self.endpoint,
            &self.target.timeouts,
        )
        .await;
        let Ok(reached) = dialled else {
            return false;
        };
        let verified = reached.secure(&self.target.tls, Offer::Http1).await;
        let leaf = verified.ok().and_then(|verified| verified.certificate);
        if !leaf.is_some_and(|leaf| leaf.sans.iter().any(|name| name == NAME_OF_APISERVER)) {
            return false;
        }
        let target = CheckTarget {
            authority: UNKNOWN_HOST.to_owned(),
            ..self.target.clone()
        };
        let client = CheckClient {
            target: &target,
            ..*self
        };
        let response = client.get(path, Offer::Http1, HeaderMap::new()).await;
        response.is_ok_and(|response| matches!(response.responder(), Responder::Apiserver(_)))
    }

    /// Sends a JSON document and reads the response.
    pub(super) async fn post(
        &self,
        path: &str,
        headers: HeaderMap,
        body: &'static str,
    ) -> Result<BufferedResponse, RequestError> {
        let request = (Method::POST, Bytes::from_static(body.as_bytes()));
        let response = self.send(request, path, Offer::Http1, headers).await?;
        response.buffer(self.plan.response_timeout).await
    }

    /// Sends a GET request and returns as soon as the head of the response arrives.
    pub(super) async fn open(
        &self,
        path: &str,
        offer: Offer,
        headers: HeaderMap,
    ) -> Result<StreamingResponse, RequestError> {
        self.send((Method::GET, Bytes::new()), path, offer, headers)
            .await
    }

    async fn send(
        &self,
        request: (Method, Bytes),
        path: &str,
        offer: Offer,
        headers: HeaderMap,
    ) -> Result<StreamingResponse, RequestError> {
        let target = self.target;
        let reached = TcpConnected::dial(target.outbound.as_ref(), self.endpoint, &target.timeouts)
            .await
            .map_err(RequestError::Dial)?;
        let verified = reached
            .secure(&target.tls, offer)
            .await
            .map_err(RequestError::Dial)?;
        let request = self.request(request, path, headers, verified.is_http2);
        // The connection's task ends with the connection; it does not need a drain.
        let tasks = Drain::new();
        let stream = TokioIo::new(verified.stream);
        let exchange = async {
            if verified.is_http2 {
                let (mut send, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tasks.spawn(connection);
                send.send_request(request).await
            } else {
                let (mut send, connection) = http1::handshake(stream).await?;
                tasks.spawn(connection.with_upgrades());
                send.send_request(request).await
            }
        };
        let (head, body) = timeout_at(Instant::now() + self.plan.response_timeout, exchange)
            .await
            .map_err(|_elapsed| RequestError::Timeout)?
            .map_err(RequestError::Closed)?
            .into_parts();
        Ok(StreamingResponse {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    fn request(
        &self,
        (method, body): (Method, Bytes),
        path: &str,
        headers: HeaderMap,
        is_http2: bool,
    ) -> Request<Full<Bytes>> {
        let CheckTarget {
            prefix, authority, ..
        } = self.target;
        let origin = if is_http2 {
            format!("https://{authority}")
        } else {
            String::new()
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        // The configuration has checked host and prefix, so the fallback is never used.
        *request.uri_mut() = format!("{origin}{prefix}{path}")
            .parse()
            .unwrap_or_else(|_| Uri::from_static("/"));
        let headers = request.headers_mut();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("kube-tls-proxy-check/", env!("CARGO_PKG_VERSION"))),
        );
        if !is_http2 && let Ok(host) = HeaderValue::from_str(authority) {
            headers.insert(header::HOST, host);
        }
        if let Some(token) = self.token {
            headers.insert(header::AUTHORIZATION, token.header.clone());
        }
        request
    }
}

impl StreamingResponse {
    /// Reads the body, which has this time for its end.
    pub(super) async fn buffer(
        mut self,
        time_limit: Duration,
    ) -> Result<BufferedResponse, RequestError> {
        let received_at = SystemTime::now();
        let deadline = Instant::now() + time_limit;
        let mut body = Vec::new();
        // A 101 has no body: the bytes that follow belong to the upgraded protocol.
        while self.status != StatusCode::SWITCHING_PROTOCOLS && body.len() < MAX_BODY {
            match timeout_at(deadline, self.body.frame()).await {
                Ok(Some(Ok(frame))) => body.extend(frame.into_data().unwrap_or_default()),
                Ok(Some(Err(error))) => return Err(RequestError::Closed(error)),
                Ok(None) => break,
                Err(_elapsed) => return Err(RequestError::Timeout),
            }
        }
        body.truncate(MAX_BODY);
        Ok(BufferedResponse {
            status: self.status,
            headers: self.headers,
            body: body.into(),
            received_at,
        })
    }

    /// Reads until the body ends or `time` has passed.
    pub(super) async fn stays_open(mut self, time: Duration) -> StreamEnd {
        let start = Instant::now();
        loop {
            match timeout_at(start + time, self.body.frame()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_))) => return StreamEnd::Aborted(start.elapsed()),
                Ok(None) => return StreamEnd::Ended(start.elapsed()),
                Err(_elapsed) => return StreamEnd::Open,
            }
        }
    }
}

impl BufferedResponse {
    /// Reads a text field of a JSON body.
    pub(super) fn json_text(&self, key: &str) -> Option<String> {
        let json: Value = serde_json::from_slice(&self.body).ok()?;
        Some(json.get(key)?.as_str()?.to_owned())
    }

    /// Tells who sent this response.
    pub(super) fn responder(&self) -> Responder {
        let is_status = self.json_text("kind").as_deref() == Some("Status");
        let message = self.json_text("message").filter(|_| is_status);
        match message {
            Some(message) => match message.strip_prefix(PROXY_PREFIX) {
                Some(message) => Responder::Proxy(escape(message)),
                None => Responder::Apiserver(Some(escape(&message))),
            },
            None if is_status || self.has_apiserver_header() => Responder::Apiserver(None),
            // In API discovery the proxy writes text.
            None => match std::str::from_utf8(&self.body)
                .ok()
                .and_then(|text| text.strip_prefix(PROXY_PREFIX))
            {
                Some(message) => Responder::Proxy(escape(message)),
                None => Responder::Unknown,
            },
        }
    }

    /// Only an apiserver writes these headers.
    fn has_apiserver_header(&self) -> bool {
        ["audit-id", "x-kubernetes-pf-flowschema-uid"]
            .iter()
            .any(|name| self.headers.contains_key(*name))
    }

    /// Status and message, as in `503 Service Unavailable: the apiserver is down`.
    pub(super) fn describe(&self) -> String {
        let message = match self.responder() {
            Responder::Apiserver(Some(message)) | Responder::Proxy(message) => message,
            Responder::Apiserver(None) | Responder::Unknown => {
                let text = String::from_utf8_lossy(&self.body);
                escape(text.lines().next().unwrap_or_default())
            }
        };
        if message.is_empty() {
            self.status.to_string()
        } else {
            format!("{}: {message}", self.status)
        }
    }

    /// Whether this is the response that only the proxy gives, to an upgrade of
    /// [`UPGRADE_CHECK`](crate::proxy::UPGRADE_CHECK).
    pub(super) fn is_refused_upgrade_check(&self) -> bool {
        self.json_text("reason").as_deref() == Some(UPGRADE_CHECK_REASON)
    }

    /// Whether the apiserver responds 401 or 403: it is alive, but answers only known users.
    pub(super) fn is_denied_by_apiserver(&self) -> bool {
        let statuses = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        statuses.contains(&self.status) && matches!(self.responder(), Responder::Apiserver(_))
    }
}

/// The certificate of every apiserver has it, for the pods of its cluster.
const NAME_OF_APISERVER: &str = "kubernetes.default.svc";
/// No cluster can have it, because the domain never exists (RFC 6761 §6.4).
const UNKNOWN_HOST: &str = "kube-tls-proxy-check.invalid";
/// A check reads only a sentence or two of a body.
const MAX_BODY: usize = 64 * 1024;
/// The `reason` of the `Status` of that response.
const UPGRADE_CHECK_REASON: &str = "UpgradeCheck";
/// Every message of the proxy itself begins with this.
const PROXY_PREFIX: &str = "kube-tls-proxy: ";
