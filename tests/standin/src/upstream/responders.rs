//! Responses that many tests need: an echo after an upgrade, and a stand-in for the API.

use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt as _, copy, split};

use super::{RequestBody, ResponseBody, channel, empty, full};

/// Responds like an apiserver: echoes after any upgrade, and sends `ok` otherwise.
pub async fn echo(mut request: Request<RequestBody>) -> Response<ResponseBody> {
    let Some(token) = request.headers().get(header::UPGRADE).cloned() else {
        return Response::new(full("ok"));
    };
    let client = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut from, mut to) = split(TokioIo::new(client.await?));
        copy(&mut from, &mut to).await.ok();
        to.shutdown().await.ok();
        hyper::Result::Ok(())
    });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let upgrade = header::HeaderValue::from_static("Upgrade");
    headers.insert(header::CONNECTION, upgrade);
    headers.insert(header::UPGRADE, token);
    response
}

/// A stand-in for the API: watches and followed logs stay open until the client leaves, upgrades echo, secrets need
/// another token, and all else is ten bytes.
pub async fn api(request: Request<RequestBody>) -> Response<ResponseBody> {
    let query = request.uri().query().unwrap_or_default();
    if query.contains("watch=") || query.contains("follow=") {
        let (events, body) = channel();
        tokio::spawn(async move {
            events.send("{}\n").await.ok();
            events.closed().await;
        });
        return Response::new(body);
    }
    if request.uri().path() == "/api/v1/secrets" {
        let mut response = Response::new(full("no"));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return response;
    }
    if request.headers().contains_key(header::UPGRADE) {
        return echo(request).await;
    }
    drop(request.into_body().read().await);
    Response::new(full("0123456789"))
}
