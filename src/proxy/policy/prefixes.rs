//! Clusters that share a host, each below a path prefix such as `/clusters/prod`.
//!
//! A prefix is compared with whole segments of the path as the client wrote it: not decoded, not normalized. After it,
//! a path that a server could read as one outside of the prefix is refused, because it could name another cluster
//! there.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use http::{
    Request, Uri,
    uri::{Authority, PathAndQuery},
};

use super::{Rejection, Route, Routes, authority};
use crate::proxy::{access::readings, request_info::decode};

/// The cluster of a host, or its clusters by path.
#[derive(Debug)]
pub(super) enum HostTarget {
    Cluster(Arc<Route>),
    /// Several clusters, by path.
    Prefixes(PrefixTable<Arc<Route>>),
}

impl HostTarget {
    /// The cluster, if there is only one.
    pub(super) fn cluster(&self) -> Option<&Arc<Route>> {
        match self {
            Self::Cluster(route) => Some(route),
            Self::Prefixes(_) => None,
        }
    }
}

impl Routes {
    /// Sends requests for `host` whose path begins with `prefix` to a cluster. A host that leads to one cluster keeps
    /// it.
    pub fn add_below(&mut self, host: &str, prefix: &str, route: &Arc<Route>) {
        self.has_prefixes = true;
        let make = || HostTarget::Prefixes(PrefixTable::default());
        if let HostTarget::Prefixes(table) = self.by_host.get_or_insert_with(host, make) {
            table.add(prefix, Arc::clone(route));
        }
    }

    /// Whether some hosts have clusters by path. Only then a request pays for a look at it.
    #[must_use]
    pub fn has_prefixes(&self) -> bool {
        self.has_prefixes
    }

    /// The clusters of this host, if it has several.
    fn prefixes(&self, host: &Authority, sni: Option<&str>) -> Option<&PrefixTable<Arc<Route>>> {
        match self.target(host, sni)? {
            HostTarget::Prefixes(table) => Some(table),
            HostTarget::Cluster(_) => None,
        }
    }
}

/// The values of one host, by path prefix. No prefix lies below another one.
#[derive(Debug)]
pub(super) struct PrefixTable<T> {
    by_prefix: HashMap<String, T>,
    /// The slashes of the prefix that has the most.
    max_depth: usize,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self {
            by_prefix: HashMap::new(),
            max_depth: 0,
        }
    }
}

impl<T> PrefixTable<T> {
    /// Adds a value for `prefix`, which begins with a slash and does not end with one. A prefix keeps its first value.
    pub(super) fn add(&mut self, prefix: &str, value: T) {
        let depth = prefix.matches('/').count();
        self.max_depth = self.max_depth.max(depth);
        self.by_prefix.entry(prefix.to_owned()).or_insert(value);
    }

    /// The value whose prefix `path` begins with, and the rest of the path: empty, or beginning with a slash.
    fn split<'a>(&self, path: &'a str) -> Option<(&T, &'a str)> {
        let slashes = path.match_indices('/').map(|(at, _)| at).skip(1);
        let ends = slashes.chain([path.len()]).take(self.max_depth);
        ends.filter_map(|end| path.split_at_checked(end))
            .find_map(|(prefix, rest)| Some((self.by_prefix.get(prefix)?, rest)))
    }

    /// The value of this target, and the target without the prefix.
    fn strip(&self, uri: &Uri) -> Result<(&T, Uri), Rejection> {
        let (value, rest) = self.split(uri.path()).ok_or(Rejection::NoSuchPrefix)?;
        if leads_out(rest) {
            return Err(Rejection::AmbiguousPath);
        }
        let root = if rest.is_empty() { "/" } else { "" };
        let mark = if uri.query().is_some() { "?" } else { "" };
        let query = uri.query().unwrap_or_default();
        let target = PathAndQuery::try_from(format!("{root}{rest}{mark}{query}"));
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target.map_err(|_| Rejection::Target)?);
        let stripped = Uri::from_parts(parts).map_err(|_| Rejection::Target)?;
        Ok((value, stripped))
    }
}

/// Finds the cluster of a request for a host with prefixes, and removes the prefix from its path: rules, log and
/// metrics see the path of the apiserver. `None` if the host has no prefixes, or if `admit` refuses the request anyway.
pub(in crate::proxy) fn take_prefix<B>(
    request: &mut Request<B>,
    routes: &Routes,
    sni: Option<&str>,
) -> Option<Result<Arc<Route>, Rejection>> {
    let host = authority(request.uri(), request.headers(), request.version()).ok()??;
    let table = routes.prefixes(&host, sni)?;
    if !request.uri().path().starts_with('/') {
        return None;
    }
    let stripped = table.strip(request.uri());
    Some(stripped.map(|(route, uri)| {
        *request.uri_mut() = uri;
        Arc::clone(route)
    }))
}

/// Whether a server could find a segment `.` or `..` in the path: as it is, or decoded once or twice, with `\` for `/`,
/// and without what follows a `;`.
fn leads_out(path: &str) -> bool {
    let once = decode(path).unwrap_or(Cow::Borrowed(path));
    let twice = decode(&once).unwrap_or(Cow::Borrowed(&once));
    [path, &once, &twice].iter().any(|path| {
        path.split(['/', '\\']).any(|segment| {
            let name = segment.split(['?', '#', '\0', ';']).next();
            matches!(name.unwrap_or_default().trim(), "." | "..")
        })
    })
}

/// Fuzz target: `bytes` are a target. If a prefix is found, every reading of the path lies below it, and only it was
/// removed.
pub(in crate::proxy) fn fuzz(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else {
        return;
    };
    let mut table = PrefixTable::default();
    for prefix in ["/clusters/a", "/clusters/b", "/k8s/clusters/c-1"] {
        table.add(prefix, prefix);
    }
    let Ok((prefix, stripped)) = table.strip(&uri) else {
        return;
    };
    let path = uri.path();
    let rest = path.strip_prefix(prefix);
    assert!(rest.is_some_and(|rest| rest == stripped.path() || rest.is_empty()));
    assert_eq!(uri.query(), stripped.query());
    let is_below = |path: &str| {
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for reading in readings(path) {
        assert!(is_below(&reading), "{path} may be read as {reading}");
    }
}
