//! What a request asks of Kubernetes, read from method, path and query as kube-apiserver reads them
//! (apiserver `pkg/endpoints/request/requestinfo.go`). For logs and metrics only: nothing is decided by it.

use std::fmt;

use http::{Method, Uri};

use crate::metrics::{Resource, Verb};

/// Verb, resource and place of a request, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestInfo<'a> {
    /// For a path that names no resource the method in lower case.
    pub(super) verb: &'static str,
    group: &'a str,
    resource: &'a str,
    subresource: Option<&'a str>,
    /// Empty for what is not in a namespace.
    pub(super) namespace: &'a str,
    /// Empty for many at once.
    pub(super) name: &'a str,
}

/// Such as `pods` or `pods/exec`; empty for a path that names no resource.
#[derive(Debug, Clone, Copy)]
pub(super) struct ResourceName<'a>(pub(super) &'a RequestInfo<'a>);

impl fmt::Display for ResourceName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.resource)?;
        match self.0.subresource {
            Some(subresource) => write!(f, "/{subresource}"),
            None => Ok(()),
        }
    }
}

impl<'a> RequestInfo<'a> {
    pub(super) fn of(method: &Method, uri: &'a Uri) -> Self {
        let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
        let group = match parts.next() {
            Some("api") => "",
            Some("apis") => match parts.next() {
                Some(group) => group,
                None => return Self::non_resource(method),
            },
            _ => return Self::non_resource(method),
        };
        if parts.next().is_none() {
            return Self::non_resource(method);
        }
        // Nothing behind the sixth part is looked at: watch/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE.
        let mut rest = [""; 6];
        let mut length = 0;
        for (place, part) in rest.iter_mut().zip(parts) {
            *place = part;
            length += 1;
        }
        let mut rest = rest.get(..length).unwrap_or_default();
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let mut watches = reads && flag(uri, "watch");
        if let ["watch", after @ ..] = rest {
            watches = true;
            rest = after;
        }
        let mut namespace = "";
        if let ["namespaces", name, after @ ..] = rest {
            namespace = name;
            // The namespace itself and its own subresources are resources, not a place.
            if !matches!(after, [] | ["status" | "finalize"]) {
                rest = after;
            }
        }
        let (resource, name, subresource) = match rest {
            [] => return Self::non_resource(method),
            [resource] => (*resource, None, None),
            [resource, name] => (*resource, Some(*name), None),
            [resource, name, subresource, ..] => (*resource, Some(*name), Some(*subresource)),
        };
        Self {
            verb: verb(method, name.is_some(), watches && subresource.is_none()),
            group,
            resource,
            subresource,
            namespace,
            name: name.unwrap_or_default(),
        }
    }

    /// Whether the response may go on for hours, so that its start is worth a log line.
    pub(super) fn is_long_running(&self, uri: &Uri) -> bool {
        self.verb == "watch" || (self.subresource == Some("log") && flag(uri, "follow"))
    }

    /// The verb as metrics have it.
    pub(super) fn verb_label(&self) -> Verb {
        match self.subresource {
            Some("exec" | "attach" | "portforward") => return Verb::Connect,
            Some("proxy") => return Verb::Proxy,
            _ => {}
        }
        match self.verb {
            "get" | "head" => Verb::Get,
            "list" => Verb::List,
            "watch" => Verb::Watch,
            "create" | "post" => Verb::Create,
            "update" | "put" => Verb::Update,
            "patch" => Verb::Patch,
            "delete" => Verb::Delete,
            "deletecollection" => Verb::DeleteCollection,
            _ => Verb::Other,
        }
    }

    /// The resource as metrics have it.
    pub(super) fn resource_label(&self) -> Resource {
        if self.resource.is_empty() {
            Resource::NONRESOURCE
        } else {
            Resource::of(self.group, self.resource, self.subresource)
        }
    }

    fn non_resource(method: &Method) -> Self {
        Self {
            verb: lower_case(method),
            group: "",
            resource: "",
            subresource: None,
            namespace: "",
            name: "",
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
                (info.verb, &*ResourceName(&info).to_string(), info.namespace),
                (verb, resource, namespace),
                "{method} {uri}"
            );
            assert_eq!(info.is_long_running(&uri), long, "{method} {uri}");
        }
    }
}
