//! Under which names the status page may be read.
//!
//! Whoever visits a page of a stranger may have a browser that reaches the admin port, and the stranger may
//! let a name of his lead there (DNS rebinding): for the browser this page is then one of his. So it is
//! shown only under what no stranger can own: an address, a name of this machine or this cluster, or a name
//! that the configuration shows to be the operator's.

use std::net::IpAddr;

use http::{Request, header};

use super::sources::Sources;
use crate::text::escape;

/// `None` if the page may be shown to who asks, or why not, with the mend.
pub(super) fn refusal<B>(sources: &Sources, request: &Request<B>) -> Option<String> {
    // A target with a host overrides the header (RFC 9112 §3.2.2). No browser leaves both out.
    let host = match (request.uri().host(), request.headers().get(header::HOST)) {
        (Some(host), _) => host,
        (None, Some(host)) => host.to_str().unwrap_or_default(),
        (None, None) => return None,
    };
    let name = without_port(host)
        .trim_end_matches('.')
        .to_ascii_lowercase();
    if is_nobody_elses(&name) || is_the_operators(sources, &name) {
        return None;
    }
    let shown = escape(&name, MOST_CHARS);
    Some(format!(
        "the status page is not shown under the name \"{shown}\", which may be a stranger's; open it by its IP address, as \
         localhost (kubectl port-forward), or by a name of the certificate\n"
    ))
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Addresses, and names that cannot be bought.
fn is_nobody_elses(name: &str) -> bool {
    let is_one_label = !name.is_empty() && !name.contains('.');
    is_one_label
        || name.parse::<IpAddr>().is_ok()
        || [".localhost", ".svc", ".svc.cluster.local"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// A name of a certificate, or that of an apiserver, under which `kubectl proxy` asks.
fn is_the_operators(sources: &Sources, name: &str) -> bool {
    let report = sources.report.borrow();
    let material = &report.material;
    material.identities.iter().any(|one| one.covers(name))
        || (material.clusters.iter()).any(|(one, _)| one.upstream_host.eq_ignore_ascii_case(name))
}

/// Characters of a name that are said back.
const MOST_CHARS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_taken_without_its_port() {
        for (host, name) in [
            ("localhost:9090", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:9090", "::1"),
            ("[::1]", "::1"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("a.example:", "a.example"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn names_that_can_be_bought_are_somebodys() {
        for name in [
            "a.example",
            "localhost.example",
            "svc.example",
            "a.svc.example",
            "cluster.local",
            "127.0.0.1.example",
            "",
        ] {
            assert!(!is_nobody_elses(name), "{name}");
        }
    }
}
