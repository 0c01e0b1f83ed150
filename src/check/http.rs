//! One request on a connection of its own, and as much of the answer as a check wants to see.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, timeout_at};

use super::{Token, dial::CheckTarget};
use crate::{
    drain::Drain,
    hosts::UpstreamAddr,
    upstream::{Offer, TcpConnected, UpstreamError},
};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct CheckRequest<'a> {
    pub(super) path: &'a str,
    pub(super) offer: Offer,
    pub(super) token: Option<&'a Token>,
    /// How long the head of the answer is waited for, and after it the body.
    pub(super) within: Duration,
}

/// An answer, its body cut off after [`MAX_BODY`].
#[derive(Debug)]
pub(super) struct BufferedResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// When the head came.
    pub(super) at: SystemTime,
}

/// The head of an answer whose body is still to come.
#[derive(Debug)]
pub(super) struct StreamingResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The connection did not come about this time.
    #[error("no connection")]
    Dial(#[source] UpstreamError),
    /// The connection was closed instead.
    #[error("the connection was closed instead of an answer")]
    Closed(#[source] hyper::Error),
    /// Nothing came.
    #[error("there was no answer")]
    Timeout,
}

/// How a body that should go on came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// It did not: it was still open when the time was over.
    Open,
    /// It ended in order after so long.
    Ended(Duration),
    /// It was cut after so long.
    Aborted(Duration),
}

/// Asks, and reads the answer.
pub(super) async fn send(
    target: &CheckTarget,
    at: UpstreamAddr,
    question: CheckRequest<'_>,
    more: HeaderMap,
) -> Result<BufferedResponse, RequestError> {
    let StreamingResponse {
        status,
        headers,
        mut body,
    } = Box::pin(open(target, at, question, more)).await?;
    let now = SystemTime::now();
    let deadline = Instant::now() + question.within;
    let mut read = Vec::new();
    // A 101 has no body, and what follows it is not for us.
    while status != StatusCode::SWITCHING_PROTOCOLS && read.len() < MAX_BODY {
        match timeout_at(deadline, body.frame()).await {
            Ok(Some(Ok(frame))) => read.extend(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(error))) => return Err(RequestError::Closed(error)),
            Ok(None) => break,
            Err(_elapsed) => return Err(RequestError::Timeout),
        }
    }
    read.truncate(MAX_BODY);
    Ok(BufferedResponse {
        status,
        headers,
        body: read.into(),
        at: now,
    })
}

/// Asks, and returns as soon as the head of the answer is there.
pub(super) async fn open(
    target: &CheckTarget,
    at: UpstreamAddr,
    question: CheckRequest<'_>,
    more: HeaderMap,
) -> Result<StreamingResponse, RequestError> {
    let reached = TcpConnected::dial(at, &target.timeouts)
        .await
        .map_err(RequestError::Dial)?;
    let verified = Box::pin(reached.secure(&target.tls, question.offer))
        .await
        .map_err(RequestError::Dial)?;
    let request = request(target, question, more, verified.is_http2);
    // What runs the connection ends with it; nobody waits for it.
    let running = Drain::new();
    let stream = TokioIo::new(verified.stream);
    let asked = async {
        if verified.is_http2 {
            let (mut send, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            running.spawn(connection);
            send.send_request(request).await
        } else {
            let (mut send, connection) = http1::handshake(stream).await?;
            running.spawn(connection.with_upgrades());
            send.send_request(request).await
        }
    };
    let response = timeout_at(Instant::now() + question.within, Box::pin(asked))
        .await
        .map_err(|_elapsed| RequestError::Timeout)?
        .map_err(RequestError::Closed)?;
    let (head, body) = response.into_parts();
    Ok(StreamingResponse {
        status: head.status,
        headers: head.headers,
        body,
    })
}

impl StreamingResponse {
    /// Reads on until the body ends or `time` is over.
    pub(super) async fn stays_open(mut self, time: Duration) -> StreamEnd {
        let begun = Instant::now();
        loop {
            match timeout_at(begun + time, self.body.frame()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(_))) => return StreamEnd::Aborted(begun.elapsed()),
                Ok(None) => return StreamEnd::Ended(begun.elapsed()),
                Err(_elapsed) => return StreamEnd::Open,
            }
        }
    }
}

fn request(
    target: &CheckTarget,
    question: CheckRequest<'_>,
    more: HeaderMap,
    is_http2: bool,
) -> Request<Empty<Bytes>> {
    let path = format!("{}{}", target.prefix, question.path);
    let uri = if is_http2 {
        format!("https://{}{path}", target.authority)
    } else {
        path
    };
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::GET;
    // Host, prefix and path were checked when they were read; the root would be asked otherwise.
    *request.uri_mut() = uri.parse().unwrap_or_else(|_| Uri::from_static("/"));
    let headers = request.headers_mut();
    *headers = more;
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("kube-tls-proxy-check/", env!("CARGO_PKG_VERSION"))),
    );
    if !is_http2 && let Ok(host) = HeaderValue::from_str(&target.authority) {
        headers.insert(header::HOST, host);
    }
    if let Some(token) = question.token {
        headers.insert(header::AUTHORIZATION, token.header.clone());
    }
    request
}

/// Of an answer a check reads a sentence or two.
const MAX_BODY: usize = 64 * 1024;
