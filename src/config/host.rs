//! Public host names: what a client may call the proxy.
//!
//! Lower case, without port, without the final dot, so that comparing is comparing text.

use std::{fmt, net::IpAddr, str::FromStr};

use super::error::Fault;
use crate::quote;

/// A DNS name, a wildcard such as `*.example.com`, or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern(String);

impl FromStr for HostPattern {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let bad = || Fault::BadHost {
            host: quote::value(text),
        };
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self(address.to_string()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let base = name.strip_prefix("*.").unwrap_or(&name);
        // A name that no message may repeat would be in every message about its cluster.
        if !is_dns_name(base) || quote::pasted(text).is_some() {
            return Err(bad());
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `name` is a DNS name of letters, digits, `-` and `_`, with no final dot.
pub(super) fn is_dns_name(name: &str) -> bool {
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
