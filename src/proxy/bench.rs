//! What the benches measure of this stage: rewriting a head, and reading what it asks of Kubernetes.

use http::{HeaderMap, HeaderValue, Method, Uri};

use super::{
    headers::{self, Vouched},
    request_info::{RequestInfo, ResourceName},
};

/// Makes a request's header fit for the apiserver, as for every request that is not an upgrade.
pub fn rewrite_request(headers: &mut HeaderMap, client: &HeaderValue, host: &str) {
    headers::rewrite_request(headers, Vouched { client, host }, None);
}

/// Verb, resource and namespace of a request, as its log line has them.
#[must_use]
pub fn classify(method: &Method, uri: &Uri) -> (&'static str, String, String) {
    let info = RequestInfo::of(method, uri);
    let resource = ResourceName(&info).to_string();
    (info.verb, resource, info.namespace.to_owned())
}
