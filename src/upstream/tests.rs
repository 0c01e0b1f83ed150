//! Connections and bodies that end at the worst moment.

use std::{future::poll_fn, sync::Arc};

use ::h2::{Reason, RecvStream, SendStream};
use bytes::Bytes;
use http::{Request, StatusCode, Version};
use rustls_pki_types::ServerName;
use standin::{pki::Ca, upstream::Upstream};
use tokio::{io::duplex, sync::mpsc};

use super::{
    endpoint::Endpoint,
    h1::{self, H1Connection},
    *,
};
use crate::{drain::Drain, hosts::UpstreamAddr};

/// A request as h2 passes it to its server, and the client's side of its body.
async fn upload(drain: &Drain) -> (Request<RecvStream>, SendStream<Bytes>) {
    let (near, far) = duplex(64 * 1024);
    let (hand_out, mut requests) = mpsc::unbounded_channel();
    drain.spawn(async move {
        let mut server = ::h2::server::handshake(near).await.unwrap();
        while let Some(Ok((request, _))) = server.accept().await {
            hand_out.send(request).ok();
        }
    });
    let (mut send, connection) = ::h2::client::handshake(far).await.unwrap();
    drain.spawn(connection);
    let request = Request::post("https://kube.test/").body(()).unwrap();
    let (_response, upload) = send.send_request(request, false).unwrap();
    (requests.recv().await.unwrap(), upload)
}

/// A task of its own may read the body when the rest of the request is gone.
#[tokio::test]
async fn request_body_reset_by_its_client_is_not_complete() {
    let drain = Drain::new();
    for (reset, is_complete) in [
        (Some(Reason::CANCEL), false),
        (Some(Reason::NO_ERROR), false),
        (Some(Reason::INTERNAL_ERROR), false),
        (None, true),
    ] {
        let (request, mut upload) = upload(&drain).await;
        upload.send_data("half".into(), false).unwrap();
        let (mut body, _unread) = RequestBody::from_http2(request.into_body(), false);
        let half = poll_fn(|cx| body.poll_data(cx)).await.unwrap().unwrap();
        assert_eq!(half, "half");
        match reset {
            Some(reason) => upload.send_reset(reason),
            None => upload.send_data(Bytes::new(), true).unwrap(),
        }
        let end = poll_fn(|cx| body.poll_data(cx)).await;
        assert_eq!(end.is_none(), is_complete, "{reset:?}: {end:?}");
    }
}

/// An apiserver may close an idle connection while a request is on its way to it.
#[tokio::test]
async fn unsent_http1_request_is_sent_on_another_connection() {
    let ca = Ca::new("cluster");
    let name = "kubernetes.default.svc";
    let upstream = Upstream::builder(ca.server(&[name])).start().await;
    let tls = ClientTls::new(Arc::new(ca.roots()), ServerName::try_from(name).unwrap()).unwrap();
    let endpoints = Endpoints::resolved(&[upstream.address()]);
    let cluster = Cluster::new(
        crate::metrics::ClusterLabels::default().label("test"),
        String::new(),
        Arc::new(endpoints),
        tls,
    );
    let drain = Drain::new();
    let context = UpstreamContext::new(Arc::default(), drain.clone());
    let leases = ClientLeases::new(Arc::new(context));

    let (near, far) = duplex(1024);
    let endpoint = UpstreamAddr(upstream.address());
    let closing = H1Connection::new(Box::new(near), Arc::new(Endpoint::new(endpoint)));
    let (request, mut upload) = upload(&drain).await;
    upload.send_data("all of it".into(), true).unwrap();
    let (mut head, body) = request.into_parts();
    head.version = Version::HTTP_11;
    let (body, _unread) = RequestBody::from_http2(body, false);
    drop(far);
    let failed = h1::exchange(closing, head, body, &drain).await.unwrap_err();
    assert!(failed.error.wants_another_connection());
    let (head, body) = failed.unsent.unwrap();
    let response = leases
        .send(UpstreamRequest::from_client(&cluster, head), body)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(upstream.requests()[0].body().await, b"all of it");
}
