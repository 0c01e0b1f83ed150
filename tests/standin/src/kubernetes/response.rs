//! Responses as kube-apiserver writes them.

use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::COMMANDS;
use crate::upstream::{ResponseBody, full};

pub(super) type ApiResponse = Response<ResponseBody>;

pub(super) fn json(status: StatusCode, value: &Value) -> ApiResponse {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(full(value.to_string()))
        .expect("static headers are valid")
}

pub(super) fn ok(value: &Value) -> ApiResponse {
    json(StatusCode::OK, value)
}

/// A `Status` with `Failure`. kubectl prints its message.
pub(super) fn failure(code: StatusCode, reason: &'static str, message: &str) -> ApiResponse {
    Refusal::new(code, reason, message.to_owned()).response()
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
    /// kubectl 1.32 panics on a `NotFound` without them.
    details: Value,
}

impl Refusal {
    pub(super) fn new(code: StatusCode, reason: &'static str, message: String) -> Self {
        Self {
            code,
            reason,
            message,
            details: json!({}),
        }
    }

    pub(super) fn bad_request(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn not_found(resource: &str, name: &str) -> Self {
        let message = format!("{resource} {name:?} not found");
        Self {
            details: json!({ "name": name, "kind": resource }),
            ..Self::new(StatusCode::NOT_FOUND, "NotFound", message)
        }
    }

    /// `what` completes "the Pod "NAME" is invalid: …".
    pub(super) fn invalid_pod(name: &str, what: &str) -> Self {
        let message = format!("Pod {name:?} is invalid: {what}");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// A request that needs a real apiserver.
    pub(super) fn unsupported(method: &Method, path: &str) -> Self {
        let message = format!(
            "the stand-in apiserver does not support {method} {path}; kubectl can do this with its pods: {COMMANDS}"
        );
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    pub(super) fn response(&self) -> ApiResponse {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "code": self.code.as_u16(), "details": self.details,
        });
        json(self.code, &status)
    }
}

pub(super) fn text(content: ResponseBody) -> ApiResponse {
    Response::builder()
        .header(header::CONTENT_TYPE, "text/plain")
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(content)
        .expect("static headers are valid")
}
