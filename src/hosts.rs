//! Hosts: names, patterns of names, and the addresses of both peers.
//!
//! One rule decides which pattern a name belongs to, for certificates (SNI), for routes (the `Host` of a
//! request) and for the check that a certificate covers a host. If these differed, a client could complete
//! a handshake for a name and then be told that the name is not served.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// The address of a downstream client: as accepted, or as a load balancer or proxy in front names it. The port is 0 if
/// it is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

impl PeerAddr {
    /// The address. An IPv4 client of a dual-stack socket is an IPv4 client.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The address without the port.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

/// The address of one apiserver endpoint, as dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamAddr(pub SocketAddr);

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.port() {
            0 => self.0.ip().fmt(f),
            _ => self.0.fmt(f),
        }
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A DNS name, a wildcard such as `*.example.com`, or an IP address; in canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern(String);

/// The text is neither a DNS name, a wildcard nor an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host name")]
pub struct HostPatternError;

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        let host = HostName::new(text);
        if let Ok(address) = host.as_str().parse::<IpAddr>() {
            return Ok(Self(address.to_string()));
        }
        let name = host.as_str();
        if text.starts_with('[') || !is_dns_name(name.strip_prefix("*.").unwrap_or(name)) {
            return Err(HostPatternError);
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host as a client wrote it, in canonical spelling: lower case, without the brackets of an IPv6 address and
/// without the final dot of the root label. A text with two final dots is not a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostName<'a>(Cow<'a, str>);

impl<'a> HostName<'a> {
    /// The canonical spelling of `text`, which has no port. Allocates only if `text` has capital letters.
    pub(crate) fn new(text: &'a str) -> Self {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        let name = bare.strip_suffix('.').unwrap_or(bare);
        Self(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an IP address.
    pub(crate) fn is_address(&self) -> bool {
        self.0.parse::<IpAddr>().is_ok()
    }
}

/// Values by host pattern.
///
/// An exact name wins over a wildcard. A wildcard stands for exactly one label, which is not empty (RFC 6125 §6.4.3):
/// `*.example.com` matches `a.example.com`, but neither `example.com`, `.example.com` nor `a.b.example.com`. The
/// pattern also matches its own text, because `*` is a label like any other.
#[derive(Debug)]
pub(crate) struct HostMap<T> {
    exact: HashMap<String, T>,
    /// By the part after `*.`.
    wildcard: HashMap<String, T>,
}

impl<T> HostMap<T> {
    /// Adds a value for `pattern`, which is the text of a [`HostPattern`]. A pattern that is already in the map keeps
    /// its value.
    pub(crate) fn insert(&mut self, pattern: &str, value: T) {
        self.get_or_insert_with(pattern, || value);
    }

    /// The value for `pattern`, the text of a [`HostPattern`]; `make` makes one if there is none.
    pub(crate) fn get_or_insert_with(&mut self, pattern: &str, make: impl FnOnce() -> T) -> &mut T {
        let (map, key) = match pattern.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcard, parent),
            None => (&mut self.exact, pattern),
        };
        map.entry(key.to_owned()).or_insert_with(make)
    }

    /// The value for `host`. Allocates nothing.
    pub(crate) fn get(&self, host: &HostName<'_>) -> Option<&T> {
        self.exact.get(host.as_str()).or_else(|| {
            let (label, parent) = host.as_str().split_once('.')?;
            if label.is_empty() {
                None
            } else {
                self.wildcard.get(parent)
            }
        })
    }
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
        }
    }
}

/// Whether `name` is a DNS name of letters, digits, `-` and `_`, with no final dot.
pub(crate) fn is_dns_name(name: &str) -> bool {
    // An all-numeric last label is a mistyped IP address, never a name (WHATWG URL, RFC 1123 §2.1).
    let numeric_end = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    !numeric_end
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

/// A name or an address as the host of a URL, with an IPv6 address in brackets (RFC 3986 §3.2.2).
pub(crate) fn url_host(host: &str) -> Cow<'_, str> {
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
    fn host_pattern_has_one_spelling() {
        for (text, pattern) in [
            ("kube.example.com", "kube.example.com"),
            ("KUBE.example.COM.", "kube.example.com"),
            ("*.Example.com", "*.example.com"),
            ("*.internal", "*.internal"),
            ("localhost", "localhost"),
            ("a_b.example", "a_b.example"),
            ("192.0.2.1", "192.0.2.1"),
            ("[2001:DB8:0::1]", "2001:db8::1"),
            ("2001:DB8::1", "2001:db8::1"),
        ] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), pattern);
        }
        let long = format!("{}.example", "a".repeat(64));
        for text in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            "a.example..",
            "-a.example",
            "a-.example",
            "*.*.example",
            "a.*.example",
            "a*.example",
            "a.example:443",
            "https://a.example",
            "a.example/",
            "a b",
            "192.0.2.256",
            "1",
            "ä.example",
            "a\n",
            "[a.example]",
            "[a",
            &long,
        ] {
            assert_eq!(text.parse::<HostPattern>(), Err(HostPatternError), "{text}");
        }
    }

    #[test]
    fn host_map_finds_exact_name_before_wildcard() {
        let mut map = HostMap::default();
        for pattern in ["a.test", "*.b.test", "x.b.test", "192.0.2.7", "2001:db8::7"] {
            map.insert(pattern, pattern);
        }
        for (host, expected) in [
            ("a.test", Some("a.test")),
            ("A.TEST", Some("a.test")),
            ("a.test.", Some("a.test")),
            ("a.test..", None),
            ("x.b.test", Some("x.b.test")),
            ("y.b.test", Some("*.b.test")),
            ("*.b.test", Some("*.b.test")),
            ("b.test", None),
            (".b.test", None),
            ("..b.test", None),
            ("y.z.b.test", None),
            ("192.0.2.7", Some("192.0.2.7")),
            ("[2001:DB8::7]", Some("2001:db8::7")),
            ("2001:db8::7", Some("2001:db8::7")),
            ("192.0.2.8", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(map.get(&HostName::new(host)).copied(), expected, "{host}");
        }
    }

    #[test]
    fn host_map_keeps_first_value_of_pattern() {
        let mut map = HostMap::default();
        for value in [1, 2] {
            map.insert("a.test", value);
            map.insert("*.a.test", value);
        }
        assert_eq!(map.get(&HostName::new("a.test")), Some(&1));
        assert_eq!(map.get(&HostName::new("b.a.test")), Some(&1));
    }

    #[test]
    fn host_name_allocates_only_for_capital_letters() {
        for (text, owned) in [("a.test.", false), ("[::1]", false), ("A.test", true)] {
            assert_eq!(
                matches!(HostName::new(text).0, Cow::Owned(_)),
                owned,
                "{text}"
            );
        }
    }

    #[test]
    fn url_host_puts_ipv6_address_in_brackets() {
        for (host, expected) in [
            ("kubernetes.default.svc", "kubernetes.default.svc"),
            ("10.0.0.1", "10.0.0.1"),
            ("fd00::1", "[fd00::1]"),
        ] {
            assert_eq!(url_host(host), expected);
        }
    }
}
