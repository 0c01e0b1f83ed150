//! Who gave an answer: the apiserver, the proxy before it, or something else on the way.

use http::StatusCode;
use serde_json::Value;

use super::{http::BufferedResponse, recorder::escape};

/// Who speaks in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Responder {
    /// The apiserver; with what it says, if it is a `Status`.
    Apiserver(Option<String>),
    /// kube-tls-proxy itself, and what it says.
    Proxy(String),
    /// Neither.
    Unknown,
}

impl BufferedResponse {
    /// The body, if it is JSON.
    pub(super) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whose answer this is.
    pub(super) fn responder(&self) -> Responder {
        let status = self
            .json()
            .filter(|json| text(json, "kind") == Some("Status"));
        let message = status.as_ref().and_then(|status| text(status, "message"));
        match message {
            Some(message) => match message.strip_prefix(SIGNATURE) {
                Some(words) => Responder::Proxy(escape(words)),
                None => Responder::Apiserver(Some(escape(message))),
            },
            None if status.is_some() || self.is_marked() => Responder::Apiserver(None),
            None => Responder::Unknown,
        }
    }

    /// What only an apiserver writes into a head.
    fn is_marked(&self) -> bool {
        ["audit-id", "x-kubernetes-pf-flowschema-uid"]
            .iter()
            .any(|name| self.headers.contains_key(*name))
    }

    /// `answers 503 Service Unavailable`, and what it says.
    pub(super) fn words(&self) -> String {
        let said = match self.responder() {
            Responder::Apiserver(Some(words)) | Responder::Proxy(words) => words,
            Responder::Apiserver(None) | Responder::Unknown => {
                let text = String::from_utf8_lossy(&self.body);
                escape(text.lines().next().unwrap_or_default())
            }
        };
        if said.is_empty() {
            self.status.to_string()
        } else {
            format!("{}: {said}", self.status)
        }
    }

    /// 401 or 403: alive, and careful about whom it tells what.
    pub(super) fn is_denial(&self) -> bool {
        matches!(
            self.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        )
    }
}

pub(super) fn text<'a>(json: &'a Value, key: &str) -> Option<&'a str> {
    json.get(key).and_then(Value::as_str)
}

/// What every message of the proxy's own begins with.
const SIGNATURE: &str = "kube-tls-proxy: ";
