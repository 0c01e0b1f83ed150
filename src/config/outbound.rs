//! Parses the URL of an outbound proxy, through which an apiserver is reached: `proxy-url` of a kubeconfig,
//! `upstream.proxyUrl` of the file, or `--upstream-proxy-url`.
//!
//! No message quotes it, because it may hold a password. `HTTPS_PROXY` and the like are not read: they are for requests
//! to anywhere, and could send the traffic of every client through another machine unnoticed.

use std::{fmt, str::FromStr};

use rustls_pki_types::ServerName;

use super::{
    SettingError,
    url::{parse_host, split_port},
};
use crate::hosts::url_host;

/// A proxy on the way to an apiserver.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboundProxy {
    /// The protocol that it speaks.
    pub protocol: OutboundProtocol,
    /// Host name (lower case) or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The name or address that its certificate must carry, if it speaks TLS.
    pub name: ServerName<'static>,
    /// User name and password; `None` if the URL has none.
    pub credentials: Option<(String, String)>,
}

/// The protocol of an outbound proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundProtocol {
    /// CONNECT of HTTP/1.1.
    Http,
    /// CONNECT of HTTP/1.1, in TLS.
    Https,
    /// SOCKS, version 5. The proxy resolves names, as it does for client-go.
    Socks5,
}

/// Without the credentials.
impl fmt::Display for OutboundProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            OutboundProtocol::Http => "http",
            OutboundProtocol::Https => "https",
            OutboundProtocol::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}:{}", url_host(&self.host), self.port)
    }
}

/// Without the credentials.
impl fmt::Debug for OutboundProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for OutboundProxy {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let refused = |problem| SettingError::Malformed { problem };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refused(NO_SCHEME))?;
        let (protocol, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (OutboundProtocol::Http, 80),
            "https" => (OutboundProtocol::Https, 443),
            "socks5" | "socks5h" => (OutboundProtocol::Socks5, 1080),
            _ => return Err(refused(NO_SCHEME)),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(refused(HAS_PATH));
        }
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let credentials =
            user.map(|user| credentials(user).ok_or_else(|| refused(BAD_CREDENTIALS)));
        let (host, port) = split_port(address, default_port).ok_or_else(|| refused(NO_ADDRESS))?;
        // `fd00::1:3128` could be an address with or without a port.
        if host.contains(':') && !host.starts_with('[') {
            return Err(refused(NO_ADDRESS));
        }
        let (host, name) = parse_host(host).ok_or_else(|| refused(NO_ADDRESS))?;
        Ok(Self {
            protocol,
            host,
            port,
            name,
            credentials: credentials.transpose()?,
        })
    }
}

/// User name and password before the `@`. `None` if they cannot be sent.
fn credentials(user: &str) -> Option<(String, String)> {
    let (name, password) = user.split_once(':').unwrap_or((user, ""));
    let (name, password) = (decode(name)?, decode(password)?);
    // The length is one byte in SOCKS. A colon would end the name in HTTP.
    let is_sendable =
        !name.is_empty() && !name.contains(':') && name.len().max(password.len()) <= MAX_CREDENTIAL;
    is_sendable.then_some((name, password))
}

/// Decodes `%40` and the like. `None` if an escape is malformed, or the text has a control character.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    let decoded = String::from_utf8(bytes).ok()?;
    (!decoded.chars().any(char::is_control)).then_some(decoded)
}

const NO_SCHEME: &str = "is not the URL of a proxy; write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host if the proxy wants them";
const HAS_PATH: &str = "has a path, a query or a fragment, or a password with `/`, `?` or `#`; remove them, or write `%2F`, `%3F` or `%23` in the password";
const BAD_CREDENTIALS: &str = "has a user name or a password that cannot be sent; write special characters as `%40`, at most 255 bytes each, and no colon in the name";
const NO_ADDRESS: &str = "has no valid host or port; write HOST:PORT after the `://`, with an IPv6 address in brackets, and special characters of a password as `%40`";
/// The most that SOCKS can carry (RFC 1929).
const MAX_CREDENTIAL: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, Option<(String, String)>) {
        let proxy: OutboundProxy = text.parse().unwrap();
        (proxy.to_string(), proxy.credentials)
    }

    #[test]
    fn outbound_proxy_has_the_schemes_and_ports_of_client_go() {
        for (text, shown) in [
            ("http://bastion", "http://bastion:80"),
            (
                "HTTPS://Bastion.example.com./",
                "https://bastion.example.com:443",
            ),
            ("socks5://127.0.0.1", "socks5://127.0.0.1:1080"),
            ("socks5h://[FD00::1]:9", "socks5://[fd00::1]:9"),
        ] {
            assert_eq!(parsed(text), (shown.to_owned(), None), "{text}");
        }
    }

    #[test]
    fn outbound_credentials_are_decoded_and_never_shown() {
        for (text, user, password) in [
            ("me:s3cr3t", "me", "s3cr3t"),
            ("me", "me", ""),
            ("m%65:a%3Ab%40c:d@e", "me", "a:b@c:d@e"),
            ("me:%C3%A9", "me", "é"),
        ] {
            let (shown, credentials) = parsed(&format!("http://{text}@bastion:3128"));
            assert_eq!(shown, "http://bastion:3128", "{text}");
            assert_eq!(
                credentials,
                Some((user.to_owned(), password.to_owned())),
                "{text}"
            );
            let proxy: OutboundProxy = format!("http://{text}@bastion:3128").parse().unwrap();
            assert_eq!(format!("{proxy:?}"), "http://bastion:3128");
        }
    }

    #[test]
    fn bad_outbound_url_is_refused_without_a_quote() {
        let long = format!("http://u:{}@h", "p".repeat(256));
        for (text, problem) in [
            ("", NO_SCHEME),
            ("bastion:3128", NO_SCHEME),
            ("socks4://bastion", NO_SCHEME),
            ("ssh://p4ss@bastion", NO_SCHEME),
            ("http://", NO_ADDRESS),
            ("http://bastion:0", NO_ADDRESS),
            ("http://bastion:65536", NO_ADDRESS),
            ("http://bas tion", NO_ADDRESS),
            ("http://fd00::1", NO_ADDRESS),
            ("http://u:p4ss@", NO_ADDRESS),
            ("http://bastion/path", HAS_PATH),
            ("http://u:p4/ss@bastion", HAS_PATH),
            ("http://u:p4#ss@bastion", HAS_PATH),
            ("http://:p4ss@bastion", BAD_CREDENTIALS),
            ("http://u%3A:p4ss@bastion", BAD_CREDENTIALS),
            ("http://u:p4%ss@bastion", BAD_CREDENTIALS),
            ("http://u:p4%2@bastion", BAD_CREDENTIALS),
            ("http://u:p4%0d%0aX:y@bastion", BAD_CREDENTIALS),
            ("http://u:p4%ff@bastion", BAD_CREDENTIALS),
            (&long, BAD_CREDENTIALS),
        ] {
            let error = text.parse::<OutboundProxy>().unwrap_err().to_string();
            assert_eq!(error, format!("the value {problem}"), "{text}");
        }
    }
}
