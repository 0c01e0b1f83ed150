//! A client of either protocol that distinguishes a complete response from an aborted one.

use h2::Reason;
use http::Request;
use standin::client::{Http1, Http2, TlsConnection, whole};

use super::{ClientResponse, Protocol};
use crate::proxy::{HOST, Proxy};

/// A connection to the proxy that sends one request after another.
pub(super) enum TestClient {
    Http1(Http1<TlsConnection>),
    Http2(Http2),
}

#[derive(Debug)]
pub(super) enum ClientResult {
    Complete(ClientResponse),
    /// The response stopped before its end; over HTTP/2 always with `INTERNAL_ERROR`.
    Aborted {
        received: Vec<u8>,
    },
}

impl TestClient {
    pub(super) async fn start(proxy: &Proxy, protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1(proxy.client().http1().await),
            Protocol::Http2 => Self::Http2(proxy.client().http2().await),
        }
    }

    pub(super) async fn request(&mut self, method: &str, target: &str) -> ClientResult {
        self.request_with_body(method, target, "").await
    }

    /// Like [`TestClient::request`], with a body and, over HTTP/1.1, its `Content-Length`.
    pub(super) async fn request_with_body(
        &mut self,
        method: &str,
        target: &str,
        body: &str,
    ) -> ClientResult {
        match self {
            Self::Http1(client) => {
                let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n");
                if !body.is_empty() {
                    head.push_str(&format!("Content-Length: {}\r\n", body.len()));
                }
                client.send(format!("{head}\r\n{body}")).await;
                over_http1(client, method).await
            }
            Self::Http2(client) => over_http2(client, method, target, body).await,
        }
    }

    /// Whether the connection accepts no more requests after this result.
    pub(super) fn is_closed_after(&self, seen: &ClientResult) -> bool {
        match (self, seen) {
            (Self::Http2(_), _) => false,
            (Self::Http1(_), ClientResult::Aborted { .. }) => true,
            (Self::Http1(_), ClientResult::Complete(response)) => {
                response.lines("connection").contains(&"close")
            }
        }
    }
}

async fn over_http1(client: &mut Http1<TlsConnection>, method: &str) -> ClientResult {
    let Ok(head) = client.head().await else {
        let received = Vec::new();
        return ClientResult::Aborted { received };
    };
    let bodyless = method == "HEAD" || matches!(head.status, 204 | 304);
    let body = if bodyless {
        Ok(bytes::Bytes::new())
    } else {
        client.body(&head).await
    };
    match body {
        Ok(body) => ClientResult::Complete(ClientResponse {
            code: head.status,
            headers: head.headers,
            body,
        }),
        Err(error) => ClientResult::Aborted {
            received: error.received.to_vec(),
        },
    }
}

async fn over_http2(client: &Http2, method: &str, target: &str, body: &str) -> ClientResult {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://{HOST}{target}"));
    let (response, mut upload) = client
        .begin(request.body(()).unwrap(), body.is_empty())
        .await
        .unwrap();
    if !body.is_empty() {
        upload.send_data(body.to_owned().into(), true).unwrap();
    }
    let mut received = Vec::new();
    let outcome = async {
        let mut response = response.await?;
        while let Some(data) = response.body_mut().data().await {
            let data = data?;
            response
                .body_mut()
                .flow_control()
                .release_capacity(data.len())?;
            received.extend_from_slice(&data);
        }
        whole(response).await
    };
    match outcome.await {
        Ok(response) => {
            let response = ClientResponse::from(response);
            ClientResult::Complete(ClientResponse {
                body: received.into(),
                ..response
            })
        }
        Err(error) => {
            assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
            ClientResult::Aborted { received }
        }
    }
}
