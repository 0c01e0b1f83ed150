//! What a request asks of Kubernetes, read from method, path and query: verb, resource and namespace exactly as
//! kube-apiserver reads them (apiserver `pkg/endpoints/request/requestinfo.go`), and the name with one
//! difference (below).
//!
//! The path is decoded once and then split, so `%63onfigmaps` and `team%2Fconfigmaps` name the resource
//! that the apiserver serves for them. Outer slashes are trimmed. Inner empty parts, `.` and `..` stay
//! parts of the path, because the apiserver neither merges nor resolves them.
//!
//! It feeds logs, metrics and the status page, and says which responses are watches, which end between two
//! events in a drain. Access rules judge what it reads (`access`). The one difference: the apiserver also
//! takes the name of a list or watch from `fieldSelector=metadata.name=…`. It is left out here because a query
//! string must not reach the log, and no rule looks at names.

use std::borrow::Cow;

use http::{Method, Uri};

use crate::{
    activity::LongLived,
    metrics::{Resource, Verb},
};

/// What a request asks for. Borrows from the request unless its path is percent-encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RequestInfo<'a> {
    /// The Kubernetes verb; for a path that names no resource, the method in lower case. Empty for a method
    /// without a Kubernetes verb, such as OPTIONS on a resource.
    pub(super) verb: &'static str,
    /// Whether the path names a resource, unlike `/version` or `/api/v1`.
    pub(super) is_resource: bool,
    pub(super) group: Cow<'a, str>,
    pub(super) resource: Cow<'a, str>,
    pub(super) subresource: Option<Cow<'a, str>>,
    /// Empty for a cluster-wide request.
    pub(super) namespace: Cow<'a, str>,
    /// Empty for a request about many objects.
    pub(super) name: Cow<'a, str>,
}

impl<'a> RequestInfo<'a> {
    pub(super) fn new(method: &Method, uri: &'a Uri) -> Self {
        match decode(uri.path()) {
            Some(Cow::Borrowed(path)) => Self::from_path(path, method, uri),
            Some(Cow::Owned(path)) => RequestInfo::from_path(&path, method, uri).into_owned(),
            None => RequestInfo::non_resource(method),
        }
    }

    /// Reads a path that is decoded already.
    pub(super) fn from_path(path: &'a str, method: &Method, uri: &Uri) -> Self {
        let mut all = [""; MAX_PARTS];
        let mut length = 0;
        for (slot, part) in all.iter_mut().zip(path.trim_matches('/').split('/')) {
            *slot = part;
            length += 1;
        }
        let (group, parts) = match all.get(..length).unwrap_or_default() {
            ["api", _version, parts @ ..] if !parts.is_empty() => ("", parts),
            ["apis", group, _version, parts @ ..] if !parts.is_empty() => (*group, parts),
            _ => return Self::non_resource(method),
        };
        let (special_verb, parts) = match parts {
            // The apiserver responds with 500, because no part follows the verb.
            ["watch" | "proxy"] => {
                return Self {
                    is_resource: true,
                    group: group.into(),
                    ..Self::non_resource(method)
                };
            }
            ["watch", parts @ ..] => (Some("watch"), parts),
            ["proxy", parts @ ..] => (Some("proxy"), parts),
            parts => (None, parts),
        };
        let (namespace, parts) = match parts {
            // `status` and `finalize` are subresources of the namespace. Any other part is a resource in it.
            ["namespaces", name] | ["namespaces", name, "status" | "finalize", ..] => {
                (*name, parts)
            }
            ["namespaces", name, parts @ ..] => (*name, parts),
            parts => ("", parts),
        };
        let (resource, name, subresource) = match parts {
            [] => ("", "", None),
            [resource] => (*resource, "", None),
            [resource, name, subresource, ..] if special_verb != Some("proxy") => {
                (*resource, *name, Some(*subresource))
            }
            [resource, name, ..] => (*resource, *name, None),
        };
        Self {
            verb: special_verb.unwrap_or_else(|| verb(method, name, uri)),
            is_resource: true,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.map(Cow::Borrowed),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn non_resource(method: &Method) -> Self {
        Self {
            verb: lower_case(method),
            ..Self::default()
        }
    }

    fn into_owned(self) -> RequestInfo<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        RequestInfo {
            verb: self.verb,
            is_resource: self.is_resource,
            group: owned(self.group),
            resource: owned(self.resource),
            subresource: self.subresource.map(owned),
            namespace: owned(self.namespace),
            name: owned(self.name),
        }
    }

    /// Such as `pods` or `pods/exec`; empty for a path that names no resource.
    pub(super) fn resource_name(&self) -> String {
        match &self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.resource),
            None => self.resource.to_string(),
        }
    }

    /// Whether the apiserver responds with a stream of events. The verb decides, even if the subresource has a metric
    /// label of its own, as `exec` has.
    pub(super) fn is_watch(&self) -> bool {
        self.verb == "watch"
    }

    /// The kind of response, if it may last for hours. An upgrade is not recognized here.
    pub(super) fn long_lived(&self, uri: &Uri) -> Option<LongLived> {
        if self.is_watch() {
            Some(LongLived::Watch)
        } else if self.subresource.as_deref() == Some("log") && flag(uri, "follow") {
            Some(LongLived::Log)
        } else {
            None
        }
    }

    /// The verb as a metric label, one of a fixed set.
    pub(super) fn verb_label(&self) -> Verb {
        match self.subresource.as_deref() {
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
            "proxy" => Verb::Proxy,
            _ => Verb::Other,
        }
    }

    /// The verb for the log. For exec, attach, port-forward and `proxy` it is the one of the metrics.
    pub(super) fn logged_verb(&self) -> &'static str {
        let label = self.verb_label();
        if matches!(label, Verb::Connect | Verb::Proxy) {
            label.label()
        } else {
            self.verb
        }
    }

    /// The resource as a metric label, one of a fixed set.
    pub(super) fn resource_label(&self) -> Resource {
        if self.is_resource {
            Resource::new(&self.group, &self.resource, self.subresource.as_deref())
        } else {
            Resource::NONRESOURCE
        }
    }
}

fn verb(method: &Method, name: &str, uri: &Uri) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if !name.is_empty() => "get",
        Method::GET | Method::HEAD if flag(uri, "watch") => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// The method in lower case; `other` for an unusual one, so that clients cannot invent verbs.
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

/// Whether the apiserver reads a boolean query parameter as true. The first value counts. Every value except
/// `0` and `false` is true, even the empty one.
fn flag(uri: &Uri, key: &str) -> bool {
    let pairs = uri.query().into_iter().flat_map(|query| query.split('&'));
    // Go drops a pair that holds a semicolon, or an escape that is not two hexadecimal digits.
    let mut values = pairs.filter(|pair| !pair.contains(';')).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(name)? == key {
            decode(value)
        } else {
            None
        }
    });
    values
        .next()
        .is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
}

/// Decodes percent-encoding once. Allocates only if there is any. Returns `None` if an escape is not two
/// hexadecimal digits; the apiserver responds with 400 to such a path.
///
/// Bytes that are not UTF-8 become U+FFFD, which no name of a Kubernetes object contains.
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    let Some((plain, escaped)) = text.split_once('%') else {
        return Some(Cow::Borrowed(text));
    };
    let mut bytes = plain.as_bytes().to_vec();
    for part in escaped.split('%') {
        let (digits, plain) = part.as_bytes().split_at_checked(2)?;
        let [high, low] = digits else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = digit(*high)? * 16 + digit(*low)?;
        bytes.push(u8::try_from(byte).ok()?);
        bytes.extend_from_slice(plain);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Some(Cow::Owned(text))
}

/// What the audit log of an apiserver says that a request asks for. Text that does not apply is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the audit log defines the names")]
pub struct RequestAttributes {
    pub verb: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
}

/// What the proxy reads from a request, for the comparison with a real apiserver (tests/cluster).
#[must_use]
pub fn request_attributes(method: &Method, uri: &Uri) -> RequestAttributes {
    let info = RequestInfo::new(method, uri);
    RequestAttributes {
        verb: info.verb.to_owned(),
        group: info.group.into_owned(),
        resource: info.resource.into_owned(),
        subresource: info.subresource.map(Cow::into_owned).unwrap_or_default(),
        namespace: info.namespace.into_owned(),
        name: info.name.into_owned(),
    }
}

/// Fuzz target: `bytes` are a path and a query. Nothing panics, and a path reads the same when each of its
/// bytes is escaped.
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from([b"/", bytes].concat()) else {
        return;
    };
    let info = RequestInfo::new(&Method::GET, &uri);
    let _ = (
        info.verb_label(),
        info.resource_label(),
        info.long_lived(&uri),
    );
    let Some(path) = decode(uri.path()) else {
        assert!(!info.is_resource, "the apiserver refuses this path");
        return;
    };
    let escaped: String = path.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let query = uri.query().unwrap_or_default();
    if let Ok(escaped) = format!("/{escaped}?{query}").parse() {
        assert_eq!(RequestInfo::new(&Method::GET, &escaped), info);
    }
}

/// `apis/GROUP/VERSION/watch/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE`. The apiserver looks at no
/// later part.
const MAX_PARTS: usize = 9;

#[cfg(test)]
mod tests;
