//! Who asked for what: the id, method and path of a request, and what they mean in Kubernetes, as log lines say it.

use std::fmt::Display;

use http::{Method, Uri};

use super::{request_id::RequestId, request_info::RequestInfo};
use crate::text::escape;

/// What the log says about each request that fails, whether requests are logged or not.
#[derive(Debug)]
pub(super) struct RequestFacts {
    pub(super) id: RequestId,
    pub(super) method: Method,
    pub(super) uri: Uri,
}

/// What a log line says of Kubernetes. It is read from the path again, because few requests of a flood are logged.
pub(super) struct KubernetesFields {
    pub(super) verb: &'static str,
    pub(super) resource: String,
    pub(super) namespace: String,
}

impl RequestFacts {
    pub(super) fn method(&self) -> impl Display + '_ {
        escape(self.method.as_str(), MAX_LOGGED_CHARS)
    }

    pub(super) fn path(&self) -> impl Display + '_ {
        escape(self.uri.path(), MAX_LOGGED_CHARS)
    }

    /// The verb as in the log line of the request; `None` for a method without one.
    pub(super) fn verb(&self) -> Option<&'static str> {
        let info = RequestInfo::new(&self.method, &self.uri);
        Some(info.logged_verb()).filter(|verb| !verb.is_empty())
    }

    pub(super) fn kubernetes(&self) -> KubernetesFields {
        let info = RequestInfo::new(&self.method, &self.uri);
        KubernetesFields {
            verb: info.logged_verb(),
            resource: info.resource_name(),
            namespace: info.namespace.into_owned(),
        }
    }
}

/// Of a method or a path.
pub(super) const MAX_LOGGED_CHARS: usize = 1024;
