//! Every error becomes a Kubernetes `Status`, so that kubectl prints a sentence.
//!
//! What the client reads names no address and no certificate; causes go to the log.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::{Body, Error, Rejection};
use crate::upstream::{UpstreamError, VerifyError};

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    status: StatusCode,
    /// A `metav1.StatusReason`.
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// Whether trying again in a second is safe and may help. client-go repeats any method on this,
    /// so it is set only when the request never left the proxy.
    pub(super) retry: bool,
}

impl Answer {
    fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            reason,
            message: message.into(),
            retry: false,
        }
    }

    fn again_soon(self) -> Self {
        Self {
            retry: true,
            ..self
        }
    }

    /// The answer as `metav1.Status` (apimachinery `pkg/apis/meta/v1/types.go`).
    pub(super) fn json(&self) -> String {
        serde_json::json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": format!("kube-tls-proxy: {}", self.message),
            "reason": self.reason,
            "code": self.status.as_u16(),
        })
        .to_string()
    }
}

/// The response to a request that failed.
pub(super) fn respond(error: &Error) -> Response<Body> {
    let answer = answer(error);
    let body = Bytes::from(answer.json());
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    if answer.retry {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(
            header::ALLOW,
            HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        );
    }
    response
}

/// Status and body for a request that never became one.
pub(super) fn refusal(rejection: Rejection) -> (StatusCode, String) {
    let answer = rejected(rejection);
    (answer.status, answer.json())
}

/// The one map from errors to what a client is told.
fn answer(error: &Error) -> Answer {
    match error {
        Error::Rejected(rejection) => rejected(*rejection),
        Error::Upstream(error) => unanswered(error),
        Error::WrongSwitch => {
            bad_gateway("the apiserver switched to another protocol than was asked for")
        }
        Error::RedirectedUpgrade => {
            bad_gateway("the apiserver redirected an upgrade request, which is not followed")
        }
    }
}

fn unanswered(error: &UpstreamError) -> Answer {
    match error {
        UpstreamError::NoEndpoint { .. } => {
            unavailable("no address of the apiserver is known yet").again_soon()
        }
        UpstreamError::Connect { .. } => {
            unavailable("the apiserver does not accept connections; it may be restarting")
                .again_soon()
        }
        UpstreamError::ConnectTimeout { .. } => {
            unavailable("the apiserver did not answer in time").again_soon()
        }
        UpstreamError::Handshake { .. } => {
            unavailable("the TLS handshake with the apiserver failed; nothing was sent to it")
                .again_soon()
        }
        // No Retry-After: a wrong certificate does not mend itself within ten tries of client-go.
        UpstreamError::Verify { .. } => {
            let reason = error
                .verify_error()
                .map_or("cannot be verified", VerifyError::reason);
            unavailable(format!(
                "the apiserver's certificate {reason}, so nothing was sent to it; \
                 the administrator finds the certificate in the proxy's log"
            ))
        }
        UpstreamError::Unsent { .. } | UpstreamError::Refused { .. } => {
            unavailable("the apiserver closed the connection before it took the request")
                .again_soon()
        }
        UpstreamError::Shared(error) => unanswered(error),
        UpstreamError::Lost { .. } => bad_gateway(
            "the apiserver closed the connection without an answer; the request may have been carried out",
        ),
        UpstreamError::Upload { .. } => {
            bad_request("the request body ended before it was complete")
        }
        UpstreamError::UnsolicitedUpgrade | UpstreamError::Protocol { .. } => {
            bad_gateway("the apiserver's answer breaks the HTTP protocol")
        }
    }
}

fn unavailable(message: impl Into<String>) -> Answer {
    Answer::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "ServiceUnavailable",
        message,
    )
}

fn bad_gateway(message: &str) -> Answer {
    Answer::new(StatusCode::BAD_GATEWAY, "InternalError", message)
}

fn bad_request(message: &str) -> Answer {
    Answer::new(StatusCode::BAD_REQUEST, "BadRequest", message)
}

fn rejected(rejection: Rejection) -> Answer {
    match rejection {
        Rejection::Connect => {
            let message = "CONNECT is not served: this is an apiserver's address, not a forward proxy; \
                           see proxy-url in the kubeconfig and HTTPS_PROXY";
            Answer::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
        }
        Rejection::HeaderFields(limit) => Answer::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "RequestHeaderFieldsTooLarge",
            format!(
                "the request has more than {limit} header fields; the limit is limits.headerFields"
            ),
        ),
        Rejection::HeaderBytes(limit) => Answer::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "RequestHeaderFieldsTooLarge",
            format!(
                "the request's header is larger than {limit} bytes; the limit is limits.headerBytes"
            ),
        ),
        Rejection::Uri(limit) => Answer::new(
            StatusCode::URI_TOO_LONG,
            "RequestURITooLong",
            format!("path and query are longer than {limit} bytes; the limit is limits.uriBytes"),
        ),
        Rejection::NoHost => bad_request("the request names no host"),
        Rejection::BadHost => bad_request("the request's host is malformed or given twice"),
        Rejection::HostMismatch => bad_request("the request names two different hosts"),
        Rejection::NotOurs => Answer::new(
            StatusCode::MISDIRECTED_REQUEST,
            "MisdirectedRequest",
            "no cluster is served under this host name; the server in the kubeconfig must be one of the \
             certificate's names, or the administrator adds the name to hosts",
        ),
        Rejection::Scheme => bad_request("the request's scheme is not https"),
        Rejection::Target => bad_request("the request target is not a path, or it holds a `#`"),
        Rejection::TransferEncoding => bad_request("the transfer coding is not chunked"),
        Rejection::AmbiguousLength => bad_request("the length of the request body is ambiguous"),
        Rejection::Malformed => bad_request("the request is not well-formed HTTP"),
        Rejection::Expectation => Answer::new(
            StatusCode::EXPECTATION_FAILED,
            "ExpectationFailed",
            "only the expectation 100-continue can be met",
        ),
        Rejection::UpgradeWithBody => bad_request("an upgrade request must not have a body"),
    }
}

#[cfg(test)]
mod tests;
