//! Parses the URL of an apiserver: `https://HOST[:PORT][/PREFIX]` and nothing else.
//!
//! An error about a URL with an `@` does not repeat it, because it may contain a password. A password may have a `/`,
//! `?` or `#`, so any `@` counts. A path prefix with an `@` is written with `%40`.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
    str::FromStr,
};

use rustls_pki_types::ServerName;

use super::{ClusterConfig, RequestHost, SettingError, TrustSource};
use crate::{hosts::is_dns_name, quote};

/// Where an apiserver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UpstreamUrl {
    /// Host name (lower case) or address, without brackets.
    pub(crate) host: String,
    /// TCP port; 443 when the URL names none.
    pub(crate) port: u16,
    /// Path without a final slash; usually empty.
    pub(crate) prefix: String,
    /// The name or address that the certificate must have by default.
    pub(crate) name: ServerName<'static>,
}

impl UpstreamUrl {
    /// The cluster at this URL, without public hosts. `place` is where the URL is written.
    pub(super) fn into_cluster(
        self,
        name: String,
        trust: TrustSource,
        place: String,
    ) -> ClusterConfig {
        ClusterConfig {
            name,
            file: None,
            url_place: place,
            hosts: Vec::new(),
            public_prefix: None,
            request_host: RequestHost::default_for(&self.host),
            upstream_host: self.host,
            upstream_port: self.port,
            addresses: Vec::new(),
            discovery: None,
            path_prefix: self.prefix,
            expected_name: self.name,
            trust,
            client_certificates: None,
            access: Vec::new(),
            passthrough: false,
            publish: None,
            outbound: None,
        }
    }
}

impl FromStr for UpstreamUrl {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        // Checked first, because every later error repeats the URL.
        if text.contains('@') {
            return Err(SettingError::UrlUser);
        }
        // No error repeats the query, because it may contain a token.
        let url = text.split(['?', '#']).next().unwrap_or_default();
        let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
        let (authority, path) = match rest.find(['/', '?', '#']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(SettingError::invalid(url, NOT_HTTPS));
        }
        if path.contains('?') || path.contains('#') {
            return Err(SettingError::invalid(url, HAS_QUERY));
        }
        let (host, port) =
            split_port(authority, 443).ok_or_else(|| SettingError::invalid(url, NO_PORT))?;
        // `fd00::1:6443` could be an address with or without a port.
        if host.contains(':') && !host.starts_with('[') {
            return Err(SettingError::invalid(url, NO_HOST));
        }
        // The host would be in log lines.
        if quote::pasted(host).is_some() {
            return Err(SettingError::invalid(url, SECRET_HOST));
        }
        let (host, name) = parse_host(host).ok_or_else(|| SettingError::invalid(url, NO_HOST))?;
        let prefix = path.trim_end_matches('/');
        if !is_plain_path(prefix) {
            return Err(SettingError::invalid(url, BAD_PREFIX));
        }
        Ok(Self {
            host,
            port,
            prefix: prefix.to_owned(),
            name,
        })
    }
}

/// A path that leads to a cluster, such as `/clusters/prod`: no slash at the end, and nothing that any server escapes,
/// decodes or normalizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicPrefix(pub(super) String);

impl FromStr for PublicPrefix {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        let is_prefix = text.starts_with('/')
            && text.len() <= MAX_PREFIX_BYTES
            && text.bytes().all(is_plain)
            && is_plain_path(text)
            && quote::pasted(text).is_none();
        if is_prefix {
            Ok(Self(text.to_owned()))
        } else {
            Err(SettingError::invalid(text, NOT_A_PREFIX))
        }
    }
}

impl PublicPrefix {
    /// Whether one of the two is the other, or lies below it.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let is_below = |path: &str, prefix: &str| {
            let rest = path.strip_prefix(prefix);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        is_below(&self.0, &other.0) || is_below(&other.0, &self.0)
    }
}

/// A host, and perhaps a port, to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectTo {
    /// Host name (lower case) or address, without brackets.
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl FromStr for ConnectTo {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let parts = match text.parse::<IpAddr>() {
            // An IPv6 address without brackets and port.
            Ok(_) => Some((text, None)),
            Err(_) => split_port(text, 443)
                .map(|(host, port)| (host, (host.len() < text.len()).then_some(port))),
        };
        parts
            .and_then(|(host, port)| Some((parse_host(host)?.0, port)))
            .map(|(host, port)| Self { host, port })
            .ok_or(SettingError::Malformed {
                problem: NO_ADDRESS,
            })
    }
}

/// Names the URL of an apiserver that `file` contains, for messages.
pub(super) fn place_in(file: &Path) -> String {
    format!("the URL of the apiserver in {}", quote::path(file))
}

/// The name or address that an apiserver's certificate must carry.
pub(super) fn expected_name(text: &str) -> Result<ServerName<'static>, SettingError> {
    parse_host(text)
        .map(|(_host, name)| name)
        .ok_or_else(|| SettingError::invalid(text, NOT_A_NAME))
}

/// A bare host: name in lower case, or address without brackets.
pub(super) fn host(text: &str) -> Option<String> {
    parse_host(text).map(|(host, _name)| host)
}

/// Host and port, which is `default` if it is missing.
pub(super) fn split_port(authority: &str, default: u16) -> Option<(&str, u16)> {
    let after_brackets = authority.rfind(']').map_or(0, |end| end.saturating_add(1));
    let (_, tail) = authority.split_at_checked(after_brackets)?;
    match tail.rfind(':') {
        None => Some((authority, default)),
        Some(colon) => {
            let (host, port) = authority.split_at_checked(after_brackets.checked_add(colon)?)?;
            let port = port.strip_prefix(':')?;
            if !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            match port.parse() {
                Ok(0) | Err(_) => None,
                Ok(port) => Some((host, port)),
            }
        }
    }
}

/// A bare host, as [`host`], and the name that a certificate for it carries.
pub(super) fn parse_host(text: &str) -> Option<(String, ServerName<'static>)> {
    if let Some(inner) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let address: Ipv6Addr = inner.parse().ok()?;
        return Some((address.to_string(), ServerName::from(IpAddr::V6(address))));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address.to_string(), ServerName::from(address)));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    // The name would be in log lines.
    if !is_dns_name(&name) || quote::pasted(text).is_some() {
        return None;
    }
    let server_name = ServerName::try_from(name.clone()).ok()?;
    Some((name, server_name))
}

/// Whether `path` is visible ASCII that needs no escapes in a request line, without empty or dot segments.
fn is_plain_path(path: &str) -> bool {
    path.bytes().all(|byte| {
        byte.is_ascii_graphic()
            && !matches!(
                byte,
                b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
            )
    }) && path
        .split('/')
        .skip(1)
        .all(|segment| !matches!(segment, "" | "." | ".."))
}

const NOT_HTTPS: &str =
    "is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT";
const HAS_QUERY: &str = "has a query or fragment; remove the `?` or `#` and everything after it";
const NO_PORT: &str = "has no valid port; write a number from 1 to 65535 after the colon";
const NO_HOST: &str =
    "has no valid host; write https://HOST:PORT, with an IPv6 address in brackets";
const SECRET_HOST: &str =
    "has a host that looks like a key or a token; write the name or address of the apiserver there";
const BAD_PREFIX: &str = "has a path that cannot be a prefix; write /PREFIX with plain segments, without `..`, `//` or spaces";
const NOT_A_PREFIX: &str = "is not a path prefix; write one such as /clusters/prod, with letters, digits, `-`, `.`, `_` and `~`, and no slash at the end";
/// Far more than a name of a cluster needs.
const MAX_PREFIX_BYTES: usize = 256;
const NO_ADDRESS: &str = "is not an address to connect to; write HOST or HOST:PORT without a scheme, such as 203.0.113.20:443";
const NOT_A_NAME: &str =
    "is neither a DNS name nor an IP address; write one such as kubernetes.default.svc";
