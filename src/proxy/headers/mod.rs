//! Rewrites the header fields of requests and responses, as pure functions.
//!
//! Safety depends on the order. Hop-by-hop fields are removed first, as the client's `Connection` lines
//! demand. Then the client's own claims about identity and origin are removed. Only then are the proxy's
//! fields set, so that no `Connection` line of a client can remove them.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
};

use super::request_id::X_REQUEST_ID;
use crate::text::{list_contains, list_items};

/// What the proxy tells the apiserver about the origin of a request.
#[derive(Debug, Clone)]
pub(super) struct Forwarded<'a> {
    /// The client's address, without a port.
    pub(super) client: &'a HeaderValue,
    /// The host that the client asked for, as it wrote it.
    pub(super) host: &'a str,
    /// The id of the request. It replaces one of the client that is malformed.
    pub(super) request_id: HeaderValue,
}

/// Makes a request's header fit for the apiserver. `upgrade` is the protocol that the client may switch
/// to.
pub(super) fn rewrite_request(
    headers: &mut HeaderMap,
    forwarded: Forwarded<'_>,
    upgrade: Option<HeaderValue>,
) {
    // Almost no request has any of these fields, and one pass over the names is cheaper than a lookup for
    // each field.
    if headers.keys().any(needs_rewrite) {
        let accepts_trailers = headers
            .get_all(header::TE)
            .iter()
            .any(|te| list_contains(te.as_bytes(), "trailers"));
        remove_hop_by_hop(headers);
        remove_forwarding_headers(headers);
        // The downstream leg sends the 100 itself, when the body is first read (RFC 9110 §10.1.1).
        headers.remove(header::EXPECT);
        // The proxy does not forward request trailers.
        headers.remove(header::TRAILER);
        if accepts_trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    headers.insert(X_FORWARDED_FOR, forwarded.client.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
    if let Ok(host) = HeaderValue::from_str(forwarded.host) {
        headers.insert(X_FORWARDED_HOST, host);
    }
    headers.insert(X_REQUEST_ID, forwarded.request_id);
    if let Some(token) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, token);
    }
}

/// Makes a response's header fit for the client. Not for a 101, which keeps its hop-by-hop
/// fields.
pub(super) fn rewrite_response(headers: &mut HeaderMap) {
    if headers.keys().any(may_be_hop_by_hop) {
        remove_hop_by_hop(headers);
    }
}

/// Makes a response's trailers fit for the client. Fields that frame a message or belong to one connection
/// are forbidden there (RFC 9110 §6.5.1), and h2 aborts a response that has such a trailer.
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
    // Read every `Connection` line: `HeaderMap::remove` returns only the first one, and a client can send
    // two. Proof: `drops_fields_named_by_every_connection_line`.
    if let Entry::Occupied(lines) = headers.entry(header::CONNECTION) {
        let lines: Vec<HeaderValue> = lines.remove_entry_mult().1.collect();
        for item in lines.iter().flat_map(|line| list_items(line.as_bytes())) {
            if let Ok(name) = HeaderName::from_bytes(item)
                && !is_end_to_end(&name)
            {
                headers.remove(name);
            }
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether [`remove_hop_by_hop`] may have to remove this field: true for each name that it removes, and
/// for a few more.
fn may_be_hop_by_hop(name: &HeaderName) -> bool {
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

/// Whether [`rewrite_request`] may have to remove this field. Proof:
/// `fast_path_covers_every_removed_field`.
fn needs_rewrite(name: &HeaderName) -> bool {
    may_be_hop_by_hop(name) || *name == header::EXPECT || is_forwarding_header(name.as_str())
}

/// Whether no `Connection` line may remove this field, because it carries identity or frames the message.
/// Without this check a client could remove fields that the proxy or the apiserver relies on (Rancher
/// CVE-2021-31999).
fn is_end_to_end(name: &HeaderName) -> bool {
    let name = name.as_str();
    // A subprotocol may be a token.
    matches!(
        name,
        "authorization" | "host" | "content-length" | "cookie" | "transfer-encoding"
    ) || name.starts_with("impersonate-")
        || name.starts_with("sec-websocket-")
        || name.starts_with("x-remote-")
        || name.starts_with("x-forwarded-")
}

/// Removes the fields that only a front proxy may set: who the user is, and where the request came from.
fn remove_forwarding_headers(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_forwarding_header(name.as_str()))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

fn is_forwarding_header(name: &str) -> bool {
    if !name.starts_with(['x', 'f']) {
        return false;
    }
    // Some servers read `_` as `-`, so `x_remote_user` means the same as `x-remote-user`.
    let name = name.replace('_', "-");
    name == "forwarded"
        || name == "x-real-ip"
        || name.starts_with("x-remote-")
        || name.starts_with("x-forwarded-")
}

/// Fuzz target: `bytes` are lines of `name: value`. Whatever they are, the apiserver gets the proxy's
/// forwarding headers, no others of that kind, and no hop-by-hop field.
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
        Forwarded {
            client: &client,
            host: "kube.example",
            request_id: HeaderValue::from_static("7c3b"),
        },
        None,
    );
    assert_eq!(
        headers.get(header::AUTHORIZATION),
        authorization.as_ref(),
        "no request loses its identity"
    );
    assert!(
        HOP_BY_HOP
            .iter()
            .all(|name| *name == header::TE || !headers.contains_key(name))
    );
    assert!(!headers.contains_key(header::CONNECTION));
    let forwarding = headers
        .iter()
        .filter(|(name, _)| is_forwarding_header(name.as_str()))
        .count();
    assert_eq!(
        forwarding, 3,
        "only the proxy's own for, proto and host are left"
    );
    assert_eq!(headers.get(X_FORWARDED_FOR), Some(&client));
    rewrite_response(&mut headers);
}

/// Fields that are meant for one connection only, in addition to those that `Connection` names (RFC 9110
/// §7.6.1).
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
pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

#[cfg(test)]
mod tests;
