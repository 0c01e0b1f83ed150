//! One GET of the proxy itself, over HTTP/1.1 on a connection of its own that is verified like every other one.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response, Uri, header, uri::Scheme};

use super::{
    Cluster, RequestBody, UpstreamContext, UpstreamError, dial,
    endpoint::Endpoint,
    h1::{self, H1Connection, H1Response},
};

/// Sends a GET for `target` to this endpoint, and returns the response once its head is there. The connection is closed
/// with the response.
///
/// # Errors
///
/// When there is no verified connection, or no response.
pub(super) async fn own_get(
    context: &UpstreamContext,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
    target: &str,
    headers: HeaderMap,
) -> Result<Response<H1Response<H1Connection>>, UpstreamError> {
    // Its socket is part of the reserve of open files: a lack of sockets must not make an apiserver unhealthy.
    let stream = dial::verified_stream(context, cluster, &cluster.tls.h1, endpoint, None).await?;
    let connection = H1Connection::new(Box::new(stream), Arc::clone(endpoint));
    let target = format!("{}{target}", cluster.path_prefix());
    let request = Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(&*cluster.probe_host)
        .path_and_query(target)
        .build()
        .and_then(|uri| Request::get(uri).body(()));
    let Ok(request) = request else {
        return Err(UpstreamError::Protocol {
            endpoint: endpoint.address(),
            reason: "the name of the cluster cannot be sent as a Host header",
        });
    };
    let (mut head, ()) = request.into_parts();
    head.headers = headers;
    let close = HeaderValue::from_static("close");
    head.headers.insert(header::CONNECTION, close);
    h1::exchange(connection, head, RequestBody::empty(), &context.drain)
        .await
        .map_err(|failed| failed.error)
}
