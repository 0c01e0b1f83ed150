//! Responses as kube-apiserver writes them.

use http::{Response, StatusCode, header};
use serde_json::{Value, json};

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
pub(super) fn failure(code: StatusCode, reason: &str, message: &str) -> ApiResponse {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    json(code, &status)
}

pub(super) fn not_found(what: &str) -> ApiResponse {
    failure(
        StatusCode::NOT_FOUND,
        "NotFound",
        &format!("{what} not found"),
    )
}

pub(super) fn text(content: ResponseBody) -> ApiResponse {
    Response::builder()
        .header(header::CONTENT_TYPE, "text/plain")
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(content)
        .expect("static headers are valid")
}
