//! Whether a path means the same to every server that may read it.
//!
//! kube-apiserver decodes a path once and keeps empty parts and dots, and `request_info` does the same. A load
//! balancer, a gateway or Rancher between the proxy and the apiserver may decode it never or twice, merge slashes,
//! resolve `..`, or cut parameters after `;`. A rule must not be bypassed by a path that only one of them understands,
//! so such a path is refused. The name of an object and what follows `proxy` may have any spelling, because no rule
//! looks at them.

use std::borrow::Cow;

use http::{Method, Uri};

use crate::proxy::request_info::{RequestInfo, decode};

/// Whether verb, resource and namespace are the same in every reading of the path, or, for a path that names no
/// resource, the path itself.
pub(super) fn has_one_meaning(method: &Method, uri: &Uri) -> bool {
    let path = uri.path();
    if is_plain(path) || path == "*" {
        return true;
    }
    let Some(decoded) = decode(path) else {
        return false;
    };
    readings(path)
        .iter()
        .all(|reading| is_same(reading, &decoded, method, uri))
}

/// The path not decoded, decoded once and twice, each of them also normalized.
pub(in crate::proxy) fn readings(path: &str) -> Vec<String> {
    let once = decode(path).unwrap_or(Cow::Borrowed(path));
    // What is no escape, such as the `%` of `100%25`, stays as it is.
    let twice = decode(&once).unwrap_or(Cow::Borrowed(&once));
    let plain = [path, &once, &twice];
    let each = plain
        .into_iter()
        .flat_map(|path| [path.to_owned(), normalized(path)]);
    each.collect()
}

/// Whether no server changes anything about the path. Nearly every path is like this.
fn is_plain(path: &str) -> bool {
    let is_plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"/-._~:@!$&'()*+,=".contains(&byte)
    };
    path.bytes().all(is_plain) && !path.contains("//") && !path.contains("/.")
}

fn is_same(reading: &str, decoded: &str, method: &Method, uri: &Uri) -> bool {
    // No rule looks at the name of an object.
    let info = |path| RequestInfo {
        name: Cow::Borrowed(""),
        ..RequestInfo::from_path(path, method, uri)
    };
    let (one, other) = (info(reading), info(decoded));
    if one.is_resource || other.is_resource {
        return one == other;
    }
    // `/metrics/` is not `/metrics`, but a rule treats both alike.
    let bare = |path: &str| path.strip_suffix('/').unwrap_or(path).to_ascii_lowercase();
    bare(reading) == bare(decoded)
}

/// The path as a server reads it that normalizes everything.
fn normalized(path: &str) -> String {
    let path = path.split(['?', '#', '\0']).next().unwrap_or_default();
    let mut parts: Vec<String> = Vec::new();
    for part in path.split(['/', '\\']) {
        let part = part.split(';').next().unwrap_or_default().trim();
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part.to_ascii_lowercase()),
        }
    }
    format!("/{}", parts.join("/"))
}
