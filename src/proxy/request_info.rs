//! What a request asks of Kubernetes, read from method, path and query as kube-apiserver reads them
//! (apiserver `pkg/endpoints/request/requestinfo.go`). For logs only: nothing is decided by it.

use http::{Method, Uri};

/// Verb, resource and namespace of a request; for other paths the verb is the method in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestInfo {
    pub(super) verb: &'static str,
    /// Such as `pods` or `pods/exec`; empty for a path that names no resource.
    pub(super) resource: String,
    /// Empty for what is not in a namespace.
    pub(super) namespace: String,
}

impl RequestInfo {
    pub(super) fn of(method: &Method, uri: &Uri) -> Self {
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
        match parts.next() {
            Some("api") => {}
            Some("apis") if parts.next().is_some() => {}
            _ => return Self::non_resource(method),
        }
        if parts.next().is_none() {
            return Self::non_resource(method);
        }
        let mut rest: Vec<&str> = parts.collect();
        let mut watches = flag(uri, "watch");
        if rest.first() == Some(&"watch") {
            watches = true;
            rest.remove(0);
        }
        let mut namespace = "";
        if let ["namespaces", name, after @ ..] = rest.as_slice() {
            // The namespace itself and its own subresources are resources, not a place.
            if !matches!(after, [] | ["status" | "finalize"]) {
                namespace = name;
                rest.drain(..2);
            } else {
                namespace = name;
            }
        }
        let (resource, name, subresource) = match rest.as_slice() {
            [] => return Self::non_resource(method),
            [resource] => (*resource, None, None),
            [resource, name] => (*resource, Some(*name), None),
            [resource, name, subresource, ..] => (*resource, Some(*name), Some(*subresource)),
        };
        Self {
            verb: verb(method, name.is_some(), watches && subresource.is_none()),
            resource: subresource
                .map_or_else(|| resource.to_owned(), |sub| format!("{resource}/{sub}")),
            namespace: namespace.to_owned(),
        }
    }

    /// Whether the response may go on for hours, so that its start is worth a log line.
    pub(super) fn is_long_running(&self, uri: &Uri) -> bool {
        self.verb == "watch" || (self.resource.ends_with("/log") && flag(uri, "follow"))
    }

    fn non_resource(method: &Method) -> Self {
        Self {
            verb: lower_case(method),
            resource: String::new(),
            namespace: String::new(),
        }
    }
}

fn verb(method: &Method, has_name: bool, watches: bool) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if watches => "watch",
        Method::GET | Method::HEAD if has_name => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::DELETE if has_name => "delete",
        Method::DELETE => "deletecollection",
        _ => lower_case(method),
    }
}

fn lower_case(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// Whether a boolean query parameter is set, as Go's `strconv.ParseBool` and a bare key have it.
fn flag(uri: &Uri, key: &str) -> bool {
    uri.query().is_some_and(|query| {
        query.split('&').any(|pair| match pair.split_once('=') {
            Some((name, value)) => {
                name == key && !matches!(value, "0" | "f" | "F" | "false" | "FALSE" | "False")
            }
            None => pair == key,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_requests_as_kube_apiserver_does() {
        for (method, uri, verb, resource, namespace, long) in [
            (
                "GET",
                "/api/v1/namespaces/default/pods",
                "list",
                "pods",
                "default",
                false,
            ),
            (
                "GET",
                "/api/v1/namespaces/default/pods/p",
                "get",
                "pods",
                "default",
                false,
            ),
            ("GET", "/api/v1/pods?watch=true", "watch", "pods", "", true),
            (
                "GET",
                "/api/v1/pods?watch=1&allowWatchBookmarks=true",
                "watch",
                "pods",
                "",
                true,
            ),
            ("GET", "/api/v1/pods?watch=false", "list", "pods", "", false),
            (
                "GET",
                "/api/v1/watch/namespaces/a/pods",
                "watch",
                "pods",
                "a",
                true,
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log?follow=true",
                "get",
                "pods/log",
                "a",
                true,
            ),
            (
                "GET",
                "/api/v1/namespaces/a/pods/p/log",
                "get",
                "pods/log",
                "a",
                false,
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/p/exec?command=sh",
                "create",
                "pods/exec",
                "a",
                false,
            ),
            (
                "GET",
                "/api/v1/namespaces/a",
                "get",
                "namespaces",
                "a",
                false,
            ),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update",
                "namespaces/finalize",
                "a",
                false,
            ),
            ("GET", "/api/v1/namespaces", "list", "namespaces", "", false),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d",
                "patch",
                "deployments",
                "a",
                false,
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection",
                "deployments",
                "a",
                false,
            ),
            ("GET", "/apis/apps/v1", "get", "", "", false),
            ("GET", "/version", "get", "", "", false),
            ("GET", "//api//v1/nodes/n", "get", "nodes", "", false),
            ("OPTIONS", "*", "options", "", "", false),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let info = RequestInfo::of(&method.parse().unwrap(), &uri);
            assert_eq!(
                (info.verb, &*info.resource, &*info.namespace),
                (verb, resource, namespace),
                "{method} {uri}"
            );
            assert_eq!(info.is_long_running(&uri), long, "{method} {uri}");
        }
    }
}
