//! Socket addresses that cannot be swapped by mistake, and hosts as URLs have them.

use std::{borrow::Cow, fmt, net::SocketAddr};

/// The address of a downstream client, as accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// The address of one apiserver endpoint, as dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamAddr(pub SocketAddr);

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name or an address as the host of a URL, where an IPv6 address stands in brackets (RFC 3986 §3.2.2).
pub(crate) fn in_url(host: &str) -> Cow<'_, str> {
    if host.contains(':') {
        format!("[{host}]").into()
    } else {
        host.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_is_a_host_in_brackets() {
        for (host, wanted) in [
            ("kubernetes.default.svc", "kubernetes.default.svc"),
            ("10.0.0.1", "10.0.0.1"),
            ("fd00::1", "[fd00::1]"),
        ] {
            assert_eq!(in_url(host), wanted);
        }
    }
}
