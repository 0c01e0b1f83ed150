//! Turns every error into a Kubernetes `Status`, so that kubectl prints a sentence. In API discovery, where clients
//! do not read a `Status`, it is text.
//!
//! The client gets no address and no certificate name. Those are part of the cause, which goes to the log.

use http::{HeaderValue, Method, Request, Response, StatusCode, header};

use super::{
    Body, CertificateRefusal, CredentialError, Denial, Error, Rejection,
    request_id::{RequestId, X_REQUEST_ID},
};
use crate::{
    clients::Throttled,
    upstream::{NamingError, OutboundError, UploadError, UpstreamError, VerifyError},
};

/// The content of an error response.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ErrorStatus {
    code: StatusCode,
    /// A `metav1.StatusReason`.
    reason: &'static str,
    message: String,
    /// Seconds after which a retry is safe and may help. client-go then repeats a request of any method, so
    /// this is set only if the apiserver has not processed the request.
    retry_after: Option<u32>,
}

impl ErrorStatus {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            retry_after: None,
        }
    }

    /// client-go prints a text only if the status is 403, 500 or 502, and its own words for every other one.
    fn into_printed(self) -> Self {
        let code = match self.code {
            StatusCode::MISDIRECTED_REQUEST => StatusCode::FORBIDDEN,
            StatusCode::SERVICE_UNAVAILABLE => StatusCode::BAD_GATEWAY,
            code => code,
        };
        Self { code, ..self }
    }

    /// The message, which says who speaks.
    fn text(&self) -> String {
        format!("kube-tls-proxy: {}", self.message)
    }

    /// The JSON of a `metav1.Status` (apimachinery `pkg/apis/meta/v1/types.go`).
    fn json(&self, id: &RequestId) -> String {
        serde_json::json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.text(),
            "reason": self.reason,
            // Not in the message: controllers store that, and a text that is new each time would be written each time.
            "details": {"causes": [{"reason": "RequestID", "message": id.to_string()}]},
            "code": self.code.as_u16(),
        })
        .to_string()
    }
}

/// Who reads a response of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reader {
    /// A client that reads a `Status`.
    Api,
    /// A client in API discovery. client-go returns the body of these requests unread (`Result.Raw`), so it would
    /// hide the message of a `Status`.
    Discovery,
    /// kubectl in API discovery. A person waits.
    Kubectl,
}

impl Reader {
    /// Almost every request ends at the comparison of its path.
    pub(super) fn from_request<B>(request: &Request<B>) -> Self {
        Self::new(request, request.uri().path())
    }

    /// The reader of a request whose path begins with an unknown prefix: its last part says what it asks for.
    pub(super) fn below_unknown_prefix<B>(request: &Request<B>) -> Self {
        let path = request.uri().path();
        let last = path.rfind('/').and_then(|at| path.get(at..));
        Self::new(request, last.unwrap_or(path))
    }

    fn new<B>(request: &Request<B>, path: &str) -> Self {
        let is_discovery =
            matches!(path, "/api" | "/apis" | "/version") || path.starts_with("/openapi/");
        if !is_discovery || request.method() != Method::GET {
            Self::Api
        } else if request.headers().contains_key(KUBECTL_COMMAND) {
            Self::Kubectl
        } else {
            Self::Discovery
        }
    }
}

/// The response to a request that failed.
pub(super) fn respond(error: &Error, id: &RequestId, reader: Reader) -> Response<Body> {
    let mut status = error_status(error);
    if reader == Reader::Kubectl && status.code == StatusCode::SERVICE_UNAVAILABLE {
        // kubectl would repeat 5 requests 10 times each, 55 seconds in all, before it prints anything. Controllers keep
        // the header: they may start during a restart of the apiserver, and many end if discovery fails.
        status.retry_after = None;
    }
    let (content_type, body) = match reader {
        Reader::Api => ("application/json", status.json(id)),
        Reader::Discovery | Reader::Kubectl => {
            status = status.into_printed();
            ("text/plain", status.text())
        }
    };
    let mut response = Response::new(Body::full(body));
    *response.status_mut() = status.code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    headers.insert(X_REQUEST_ID, id.header_value());
    if let Some(seconds) = status.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if status.code == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status.code == StatusCode::METHOD_NOT_ALLOWED {
        let is_published = matches!(error, Error::Rejected(Rejection::PublishedMethod));
        let allowed = if is_published {
            "GET, HEAD"
        } else {
            "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        };
        headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

/// The one map from errors to responses.
fn error_status(error: &Error) -> ErrorStatus {
    match error {
        Error::Rejected(rejection) => rejected(*rejection),
        Error::Denied(denial) => denied(denial),
        Error::Upstream(error) => no_response(error),
        Error::UnexpectedProtocol => {
            bad_gateway("the apiserver switched to a protocol that the client did not request")
        }
        Error::RedirectedUpgrade => bad_gateway(
            "the apiserver answered an upgrade request with a redirect, which the proxy does not follow",
        ),
        Error::Naming(error) => ErrorStatus {
            // A person has to fix it.
            retry_after: None,
            ..unavailable(match error {
                NamingError::FrontProxyExpired => {
                    "the front-proxy certificate of this proxy has expired; its operator must renew it, and until then a token works"
                }
                NamingError::NoToken => {
                    "this proxy has no token with which it could impersonate the owner of the client certificate; its operator must \
                     fix the token file, and until then a token of your own works"
                }
            })
        },
    }
}

fn no_response(error: &UpstreamError) -> ErrorStatus {
    match error {
        UpstreamError::NoEndpoint { .. } => {
            unavailable("the proxy knows no address of the apiserver yet")
        }
        UpstreamError::TooManyConnections { max } => unavailable(format!(
            "this connection already uses {max} connections to the apiserver, the most that it may use; \
             end some of its watches, or open another connection"
        )),
        UpstreamError::NoSocket => unavailable(
            "the proxy has no socket for another connection to the apiserver; this connection can use the ones \
             that it has",
        ),
        UpstreamError::Connect { .. } => {
            unavailable("the apiserver does not accept connections; it may be restarting")
        }
        UpstreamError::Outbound { source, .. } => beyond_outbound_proxy(source),
        UpstreamError::ConnectTimeout { .. } => {
            unavailable("connecting to the apiserver timed out")
        }
        UpstreamError::Handshake { .. } => {
            unavailable("the TLS handshake with the apiserver failed; the request was not sent")
        }
        UpstreamError::Verify { .. } => {
            let reason = error
                .verify_error()
                .map_or("cannot be verified", VerifyError::reason);
            ErrorStatus {
                // A wrong certificate is not fixed within the ten attempts of client-go.
                retry_after: None,
                ..unavailable(format!(
                    "the apiserver's certificate {reason}, so the request was not sent; \
                     the proxy's log describes the certificate"
                ))
            }
        }
        UpstreamError::Unsent { .. } | UpstreamError::Refused { .. } => {
            unavailable("the apiserver closed the connection before it processed the request")
        }
        UpstreamError::Shared(error) => no_response(error),
        UpstreamError::Lost { .. } => bad_gateway(
            "the apiserver closed the connection without a response; it may have processed the request",
        ),
        UpstreamError::HeadTooLarge { max, .. } => bad_gateway(format!(
            "the response's head is larger than {max} bytes; the apiserver has processed the request"
        )),
        UpstreamError::Malformed { .. } => bad_gateway(
            "the apiserver's response is not valid HTTP; it may have processed the request",
        ),
        UpstreamError::Upload {
            source: UploadError::TooSlow,
        } => ErrorStatus::new(
            StatusCode::REQUEST_TIMEOUT,
            "Timeout",
            "the request body came too slowly, so the request was aborted; 1 KiB per second is enough",
        ),
        UpstreamError::Upload { .. } => bad_request("the request body is incomplete"),
        UpstreamError::UnsolicitedUpgrade | UpstreamError::Protocol { .. } => {
            bad_gateway("the apiserver's response is not valid HTTP")
        }
    }
}

/// The outbound proxy has opened no connection. Its name and what it says beside a code are for the log only.
fn beyond_outbound_proxy(error: &OutboundError) -> ErrorStatus {
    let why = match error {
        OutboundError::Connect(_) | OutboundError::ConnectTimeout => {
            "accepts no connection".to_owned()
        }
        OutboundError::Tls(_) => "failed the TLS handshake".to_owned(),
        OutboundError::Timeout => "has not connected to it in time".to_owned(),
        OutboundError::Broken(_) | OutboundError::Closed => {
            "closed the connection before its response".to_owned()
        }
        OutboundError::Credentials(_) => "refused the credentials of this proxy".to_owned(),
        OutboundError::Status { code, .. } => format!("refused to connect to it ({code})"),
        OutboundError::Socks(refusal) => format!("refused to connect to it: {refusal}"),
        OutboundError::Protocol(_) | OutboundError::TooLong => "sent no valid response".to_owned(),
    };
    ErrorStatus {
        // A person has to fix the others.
        retry_after: error.is_outage().then_some(1),
        ..unavailable(format!("the outbound proxy before the apiserver {why}"))
    }
}

/// For a request that the apiserver provably has not processed.
fn unavailable(message: impl Into<String>) -> ErrorStatus {
    let code = StatusCode::SERVICE_UNAVAILABLE;
    ErrorStatus {
        retry_after: Some(1),
        ..ErrorStatus::new(code, "ServiceUnavailable", message)
    }
}

fn bad_gateway(message: impl Into<String>) -> ErrorStatus {
    ErrorStatus::new(StatusCode::BAD_GATEWAY, "InternalError", message)
}

fn bad_request(message: &str) -> ErrorStatus {
    ErrorStatus::new(StatusCode::BAD_REQUEST, "BadRequest", message)
}

fn header_too_large(message: String) -> ErrorStatus {
    let code = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    ErrorStatus::new(code, "RequestHeaderFieldsTooLarge", message)
}

fn over_budget(throttled: Throttled) -> ErrorStatus {
    match throttled {
        Throttled::Refused(StatusCode::FORBIDDEN) => ErrorStatus::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            "Forbidden: the apiserver refuses this request without a credential, and too many of them have come",
        ),
        Throttled::Refused(_) => ErrorStatus::new(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "Unauthorized: the apiserver refuses this credential, and too many requests with it have come; \
             log in again",
        ),
        Throttled::Guesses(wait) => too_many_requests(
            "the apiserver has refused too many credentials from this address",
            wait,
        ),
        Throttled::Requests(wait) => too_many_requests(
            "too many requests from this address; the limit is limits.requestsPerClient",
            wait,
        ),
    }
}

fn too_many_requests(message: &str, wait: u32) -> ErrorStatus {
    ErrorStatus {
        retry_after: Some(wait),
        ..ErrorStatus::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }
}

/// Without `Retry-After`: the same request is denied again. A request without a credential gets a 401, because its
/// client may have one that it has not sent.
fn denied(denial: &Denial) -> ErrorStatus {
    if denial.is_anonymous() {
        ErrorStatus::new(StatusCode::UNAUTHORIZED, "Unauthorized", denial.message())
    } else {
        ErrorStatus::new(StatusCode::FORBIDDEN, "Forbidden", denial.message())
    }
}

fn rejected(rejection: Rejection) -> ErrorStatus {
    match rejection {
        Rejection::Connect => {
            let message = "CONNECT is not supported: this is the address of an apiserver, not of an HTTP proxy; \
                           check proxy-url in the kubeconfig and HTTPS_PROXY";
            ErrorStatus::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
        }
        Rejection::HeaderFields(limit) => header_too_large(format!(
            "the request has more than {limit} header fields; the limit is limits.headerFields"
        )),
        Rejection::HeaderBytes(limit) => header_too_large(format!(
            "the request's header is larger than {limit} bytes; the limit is limits.headerBytes"
        )),
        Rejection::Uri(limit) => ErrorStatus::new(
            StatusCode::URI_TOO_LONG,
            "RequestURITooLong",
            format!("path and query are longer than {limit} bytes; the limit is limits.uriBytes"),
        ),
        Rejection::NoHost => bad_request("the request names no host"),
        Rejection::BadHost => {
            bad_request("the request's host is malformed or given more than once")
        }
        Rejection::HostMismatch => bad_request("the request names two different hosts"),
        Rejection::NotOurs => ErrorStatus::new(
            StatusCode::MISDIRECTED_REQUEST,
            "MisdirectedRequest",
            "no cluster is configured for this host name; check the server in the kubeconfig, or ask the \
             administrator of the proxy to add the name to its configuration",
        ),
        Rejection::NoSuchPrefix => ErrorStatus::new(
            StatusCode::MISDIRECTED_REQUEST,
            "MisdirectedRequest",
            "no cluster is configured for this path; the server in the kubeconfig must end with the path of a cluster, such \
             as /clusters/NAME, so check it, or ask the administrator of the proxy",
        ),
        Rejection::Scheme => bad_request("the request's scheme is not https"),
        Rejection::Target => bad_request("the request target is not a path, or it contains a `#`"),
        Rejection::TargetCharacter => bad_request(
            "the request target contains a character that a URI cannot hold, such as a quotation mark, `<` or `>`; \
             percent-encode it",
        ),
        Rejection::TransferEncoding => {
            bad_request("the only supported Transfer-Encoding is chunked")
        }
        Rejection::AmbiguousLength => bad_request("the length of the request body is ambiguous"),
        Rejection::Malformed => bad_request("the request is not valid HTTP"),
        Rejection::Expectation => ErrorStatus::new(
            StatusCode::EXPECTATION_FAILED,
            "ExpectationFailed",
            "the only supported value of Expect is 100-continue",
        ),
        Rejection::UpgradeWithBody => bad_request("an upgrade request must not have a body"),
        // `check` knows this response by its reason.
        Rejection::UpgradeCheck => ErrorStatus::new(
            StatusCode::BAD_REQUEST,
            "UpgradeCheck",
            "the upgrade of `kube-tls-proxy check` has arrived",
        ),
        Rejection::Certificate(refusal @ CertificateRefusal::System) => ErrorStatus::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("the client certificate {refusal}; use another certificate or a token"),
        ),
        Rejection::Certificate(refusal) => ErrorStatus::new(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            format!(
                "Unauthorized: the client certificate {refusal}; use another certificate or a token"
            ),
        ),
        Rejection::CertificateOfOtherHost => ErrorStatus::new(
            StatusCode::MISDIRECTED_REQUEST,
            "MisdirectedRequest",
            "the client certificate was presented for another host name, and counts only for requests to that one; \
             open another connection for this host name",
        ),
        Rejection::Impersonation => ErrorStatus::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            "the request has a client certificate, whose owner this proxy impersonates, so it cannot impersonate another user; \
             remove `--as`, `--as-group` and `--as-uid`, or use a token",
        ),
        Rejection::Throttled(throttled) => over_budget(throttled),
        Rejection::RefusedProxy(credential) => ErrorStatus::new(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            format!(
                "Unauthorized: {}; too many requests have come meanwhile",
                credential.reason()
            ),
        ),
        Rejection::Credential(CredentialError::RepeatedAuthorization) => {
            bad_request("the request has more than one Authorization field; send one")
        }
        Rejection::Credential(CredentialError::RepeatedSubprotocol) => {
            bad_request("the request has more than one token in Sec-WebSocket-Protocol; send one")
        }
        Rejection::Credential(CredentialError::Claims) => bad_request(
            "the claims of the token are too long, are no JSON, or repeat a claim; get another token",
        ),
        Rejection::PublishedMethod => ErrorStatus::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the proxy itself serves the kubeconfig at this path, to GET and HEAD without an upgrade",
        ),
        Rejection::AmbiguousPath => bad_request(
            "the path can be read in more than one way, and the proxy decides by it; write it without escapes, \
             empty parts, `.`, `..` and `;`",
        ),
    }
}

/// kubectl names its command in this field of each request.
const KUBECTL_COMMAND: &str = "kubectl-command";

#[cfg(test)]
mod tests;
