//! Requests over either protocol, and checks of the responses that the proxy writes itself.

use bytes::Bytes;
use http::Request;
use standin::client::{Http2Response, Response};

use crate::proxy::{APISERVER, HOST, Proxy};

/// The protocol between client and proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

pub(crate) const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// A complete response over either protocol.
#[derive(Debug)]
pub(crate) struct ClientResponse {
    pub(crate) code: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl From<Response> for ClientResponse {
    fn from(response: Response) -> Self {
        Self {
            code: response.status,
            headers: response.head.headers,
            body: response.body,
        }
    }
}

impl From<Http2Response> for ClientResponse {
    fn from(response: Http2Response) -> Self {
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
        Self {
            code: response.status.as_u16(),
            headers: response
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), text(value)))
                .collect(),
            body: response.body,
        }
    }
}

impl ClientResponse {
    /// The values of every line of this header, in order.
    pub(crate) fn lines(&self, name: &str) -> Vec<&str> {
        let same = self
            .headers
            .iter()
            .filter(|(line, _)| line.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Asserts that this is a `Status` of the proxy with this code and reason, and that it contains nothing
    /// that belongs only into the log. Returns the message.
    #[track_caller]
    pub(crate) fn assert_status(&self, code: u16, reason: &str) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.lines("content-type"), ["application/json"], "{self:?}");
        let status: serde_json::Value = serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {self:?}"));
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        let ids = self.lines("x-request-id");
        assert_eq!(ids.len(), 1, "{self:?}");
        assert_eq!(
            status,
            serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message, "reason": reason, "code": code,
                "details": {"causes": [{"reason": "RequestID", "message": ids[0]}]},
            })
        );
        assert!(message.starts_with("kube-tls-proxy: "), "{message}");
        for secret in ["127.0.0.1", APISERVER, "CN=", "other.test"] {
            assert!(!message.contains(secret), "{secret} in {message}");
        }
        message
    }
}

impl Proxy {
    /// Sends one request to [`HOST`] on a new connection.
    pub(crate) async fn request(
        &self,
        protocol: Protocol,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> ClientResponse {
        match protocol {
            Protocol::Http1 => {
                let mut client = self.client().http1().await;
                let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n");
                for (name, value) in fields {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                if !body.is_empty() {
                    head.push_str(&format!("Content-Length: {}\r\n", body.len()));
                }
                head.push_str("\r\n");
                client.send([head.as_bytes(), body].concat()).await;
                client.response().await.into()
            }
            Protocol::Http2 => {
                let client = self.client().http2().await;
                let mut request = Request::builder()
                    .method(method)
                    .uri(format!("https://{HOST}{target}"));
                for (name, value) in fields {
                    request = request.header(*name, *value);
                }
                let request = request.body(Bytes::copy_from_slice(body)).unwrap();
                client.request(request).await.unwrap().into()
            }
        }
    }

    /// Sends a GET request on a new connection.
    pub(crate) async fn get(&self, protocol: Protocol, target: &str) -> ClientResponse {
        self.request(protocol, "GET", target, &[], b"").await
    }
}
