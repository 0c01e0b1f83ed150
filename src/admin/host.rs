//! The host names that the status page is served under.
//!
//! DNS rebinding: an attacker's site can point its own name at the admin port, so that a visitor's browser
//! treats this page as same-origin with the attacker. The page is therefore served only under names that an
//! attacker cannot own: an IP address, a name of this machine or this cluster, or a name from the
//! configuration.

use std::net::IpAddr;

use http::{Request, header};

use super::sources::Sources;
use crate::text::escape;

/// `None` if the page may be served for this request; else why not, and how to open it.
pub(super) fn refusal<B>(sources: &Sources, request: &Request<B>) -> Option<String> {
    // A host in the target overrides the header (RFC 9112 §3.2.2). Every browser sends one of them.
    let host = match (request.uri().host(), request.headers().get(header::HOST)) {
        (Some(host), _) => host,
        (None, Some(host)) => host.to_str().unwrap_or_default(),
        (None, None) => return None,
    };
    let name = without_port(host)
        .trim_end_matches('.')
        .to_ascii_lowercase();
    if cannot_be_bought(&name) || is_configured(sources, &name) {
        return None;
    }
    let name = escape(&name, MAX_NAME_CHARS);
    Some(format!(
        "the status page is not served under the host name \"{name}\", which an attacker could own; open it by IP \
         address, as localhost (kubectl port-forward), or by a name of the certificate\n"
    ))
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

/// Whether this is an IP address, or a name that no public registry sells.
fn cannot_be_bought(name: &str) -> bool {
    let is_one_label = !name.is_empty() && !name.contains('.');
    is_one_label
        || name.parse::<IpAddr>().is_ok()
        || [".localhost", ".svc", ".svc.cluster.local"]
            .iter()
            .any(|end| name.ends_with(end))
}

/// Whether this is a name of a certificate, or the host of an apiserver, because `kubectl proxy` sends that host.
fn is_configured(sources: &Sources, name: &str) -> bool {
    let report = sources.report.borrow();
    let material = &report.material;
    material.identities.iter().any(|one| one.covers(name))
        || (material.clusters.iter()).any(|one| one.config.upstream_host.eq_ignore_ascii_case(name))
}

/// Characters of the name in the refusal.
const MAX_NAME_CHARS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_is_removed_from_host() {
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
    fn names_for_sale_are_refused() {
        for name in [
            "a.example",
            "localhost.example",
            "svc.example",
            "a.svc.example",
            "cluster.local",
            "127.0.0.1.example",
            "",
        ] {
            assert!(!cannot_be_bought(name), "{name}");
        }
    }
}
