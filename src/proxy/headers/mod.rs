//! Rewrites header fields both ways, as pure functions.
//!
//! The order is the safety: what the client says about hop-by-hop fields is obeyed first, then its
//! claims about identity and origin are dropped, and only then ours are set, so that no `Connection`
//! line of a client can remove a field that the proxy vouches for.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};

use super::policy::UpgradeToken;
use crate::text::{list_contains, list_items};

/// What the proxy vouches for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vouched<'a> {
    /// The client's address, without port.
    pub(super) client: &'a HeaderValue,
    /// The host the client asked for, as it wrote it.
    pub(super) host: &'a str,
}

/// Makes a request's header fit for the apiserver. `upgrade` is the protocol the client may switch to.
pub(super) fn rewrite_request(
    headers: &mut HeaderMap,
    vouched: Vouched<'_>,
    upgrade: Option<UpgradeToken>,
) {
    // Nearly every request has none of these, and one look at each name is cheaper than a search for each.
    if headers.keys().any(is_for_this_hop_or_a_claim) {
        let accepts_trailers = headers
            .get_all(header::TE)
            .iter()
            .any(|te| list_contains(te.as_bytes(), "trailers"));
        remove_hop_by_hop(headers);
        remove_claims(headers);
        // hyper has answered `100-continue` itself, once the body is asked for (RFC 9110 §10.1.1).
        headers.remove(header::EXPECT);
        // Request trailers are not forwarded.
        headers.remove(header::TRAILER);
        if accepts_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    headers.insert(X_FORWARDED_FOR, vouched.client.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    if let Ok(host) = HeaderValue::from_str(vouched.host) {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if let Some(token) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, token.value());
    }
}

/// Makes an ordinary response's header fit for the client.
pub(super) fn rewrite_response(headers: &mut HeaderMap) {
    if headers.keys().any(is_for_this_hop) {
        remove_hop_by_hop(headers);
    }
}

/// Makes a response's trailers fit for the client: what frames a message or belongs to one connection
/// is forbidden there (RFC 9110 §6.5.1), and h2 gives a response up that has such a trailer.
pub(super) fn rewrite_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    for name in [header::CONTENT_LENGTH, header::TRAILER, header::HOST] {
        trailers.remove(name);
    }
}

/// RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is
/// forwarded and, for each connection-option in this field, remove any header or trailer field(s)
/// from the message with the same name as the connection-option".
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Read every `Connection` line: `HeaderMap::remove` returns only the first, and a client can
    // send two. Proof: `drops_fields_named_by_every_connection_line`.
    if let Entry::Occupied(lines) = headers.entry(header::CONNECTION) {
        let (_, lines) = lines.remove_entry_mult();
        let named: Vec<HeaderName> = lines
            .flat_map(|line| {
                list_items(line.as_bytes())
                    .filter_map(|item| HeaderName::from_bytes(item).ok())
                    .collect::<Vec<_>>()
            })
            .filter(|name| !is_end_to_end(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether a message with this field needs more than a look. False for no name that
/// [`remove_hop_by_hop`] removes.
fn is_for_this_hop(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.as_bytes() {
        [b'c', ..] => name == "connection",
        [b'h', ..] => name == "http2-settings",
        [b'k', ..] => name == "keep-alive",
        [b'p', ..] => name.starts_with("proxy-"),
        [b't', ..] => true,
        [b'u', ..] => name == "upgrade",
        _ => false,
    }
}

/// The same for a request, with all that [`rewrite_request`] removes.
fn is_for_this_hop_or_a_claim(name: &HeaderName) -> bool {
    is_for_this_hop(name) || *name == header::EXPECT || is_claim(name.as_str())
}

/// Fields that no `Connection` line may remove: they carry identity, or frame the message. Without
/// this a client could drop what the proxy or the apiserver relies on (Rancher CVE-2021-31999).
fn is_end_to_end(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(
        name,
        "authorization" | "host" | "content-length" | "cookie" | "transfer-encoding"
    ) || name.starts_with("impersonate-")
        || name.starts_with("x-remote-")
        || name.starts_with("x-forwarded-")
}

/// Drops what only a front proxy may say: who the user is, and where the request came from.
fn remove_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_claim(name.as_str()))
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

fn is_claim(name: &str) -> bool {
    let Some(first) = name.as_bytes().first() else {
        return false;
    };
    if !matches!(first, b'x' | b'f') {
        return false;
    }
    // Some servers read `_` as `-`, so `x_remote_user` is the same claim.
    let name = name.replace('_', "-");
    name == "forwarded"
        || name == "x-real-ip"
        || name.starts_with("x-remote-")
        || name.starts_with("x-forwarded-")
}

/// Fuzz body: `bytes` are lines of `name: value`; whatever they say, the apiserver gets our claims,
/// only ours, and no hop-by-hop field.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let (name, value) = line.split_at(
            line.iter()
                .position(|byte| *byte == b':')
                .unwrap_or(line.len()),
        );
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    let authorization = headers.get(header::AUTHORIZATION).cloned();
    let client = HeaderValue::from_static("192.0.2.1");
    rewrite_request(
        &mut headers,
        Vouched {
            client: &client,
            host: "kube.example",
        },
        None,
    );
    assert_eq!(
        headers.get(header::AUTHORIZATION),
        authorization.as_ref(),
        "identity is never lost"
    );
    assert!(
        HOP_BY_HOP
            .iter()
            .all(|name| *name == header::TE || !headers.contains_key(name))
    );
    assert!(!headers.contains_key(header::CONNECTION));
    let claims = headers
        .iter()
        .filter(|(name, _)| is_claim(name.as_str()))
        .count();
    assert_eq!(
        claims, 3,
        "for, proto and host are ours and nothing else is left"
    );
    assert_eq!(headers.get(X_FORWARDED_FOR), Some(&client));
    rewrite_response(&mut headers);
}

/// Fields that are meant for one connection only, beside what `Connection` names (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[cfg(test)]
mod tests;
