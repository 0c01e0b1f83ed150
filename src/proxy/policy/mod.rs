//! May this request pass: its form, its size, its host. Decided before anything is sent upstream.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Version, header, request::Parts, uri::Authority};

use super::routes::Routes;
use crate::text::list_contains;
use crate::{config::Limits, upstream::Cluster};

/// A request that may pass.
#[derive(Debug)]
pub(super) struct Admitted {
    /// Where it goes.
    pub(super) cluster: Arc<Cluster>,
    /// The host as the client wrote it, port included.
    pub(super) authority: Authority,
    /// The protocol it wants to switch to, if it may.
    pub(super) upgrade: Option<UpgradeToken>,
}

/// A protocol that kube-apiserver speaks after a 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UpgradeToken {
    WebSocket,
    Spdy,
}

/// Why a request may not pass. Nothing of it was sent upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// CONNECT would make this a forward proxy.
    #[error("CONNECT is not served")]
    Connect,
    /// More header fields than `limits.header_fields`.
    #[error("more than {0} header fields")]
    HeaderFields(usize),
    /// More header bytes than `limits.header_bytes`.
    #[error("more than {0} bytes of header fields")]
    HeaderBytes(usize),
    /// A longer request target than `limits.uri_bytes`.
    #[error("a request target of more than {0} bytes")]
    Uri(usize),
    /// No host is named.
    #[error("no host")]
    NoHost,
    /// The host is not a host name with an optional port, or is given twice.
    #[error("a malformed or repeated host")]
    BadHost,
    /// `Host` and `:authority` (or the host of an absolute target) differ.
    #[error("two different hosts")]
    HostMismatch,
    /// A host that is not served here (RFC 9110 §15.5.20).
    #[error("a host that is not served here")]
    NotOurs,
    /// A scheme other than https.
    #[error("a scheme other than https")]
    Scheme,
    /// A target that is neither a path nor `*` with OPTIONS.
    #[error("a malformed request target")]
    Target,
    /// A transfer coding other than a single `chunked`.
    #[error("a transfer coding other than chunked")]
    TransferEncoding,
    /// Both `Transfer-Encoding` and `Content-Length`, or several lengths.
    #[error("an ambiguous length")]
    AmbiguousLength,
    /// Not HTTP at all; found while reading the head.
    #[error("malformed HTTP")]
    Malformed,
    /// An expectation other than 100-continue.
    #[error("an unknown expectation")]
    Expectation,
    /// An upgrade request that carries a body.
    #[error("an upgrade request with a body")]
    UpgradeWithBody,
}

impl Rejection {
    /// Whether it is uncertain where the request ends, so that nothing behind it may be taken for another.
    pub(super) fn is_about_framing(self) -> bool {
        matches!(
            self,
            Self::TransferEncoding | Self::AmbiguousLength | Self::Malformed
        )
    }
}

impl UpgradeToken {
    pub(super) fn value(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::WebSocket => "websocket",
            Self::Spdy => "SPDY/3.1",
        })
    }

    fn of(value: &HeaderValue) -> Option<Self> {
        let value = value.as_bytes();
        if value.eq_ignore_ascii_case(b"websocket") {
            Some(Self::WebSocket)
        } else if value.eq_ignore_ascii_case(b"SPDY/3.1") {
            Some(Self::Spdy)
        } else {
            None
        }
    }

    /// Whether this header switches to this protocol and to nothing else.
    pub(super) fn is_granted_by(self, headers: &HeaderMap) -> bool {
        let mut granted = headers.get_all(header::UPGRADE).iter();
        granted.next().and_then(Self::of) == Some(self) && granted.next().is_none()
    }
}

/// Lets a request pass or says why not. `sni` is the name of the TLS handshake, if the proxy serves it.
///
/// # Errors
///
/// The first rule that the request breaks.
pub(super) fn admit(
    head: &Parts,
    routes: &Routes,
    limits: &Limits,
    sni: Option<&str>,
) -> Result<Admitted, Rejection> {
    if head.method == Method::CONNECT {
        return Err(Rejection::Connect);
    }
    check_size(head, limits)?;
    check_target(head)?;
    check_length(&head.headers)?;
    let mut expected = head.headers.get_all(header::EXPECT).iter();
    if expected.any(|expect| !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Rejection::Expectation);
    }
    let authority = authority(head)?;
    let cluster = routes.find(&authority, sni).ok_or(Rejection::NotOurs)?;
    let upgrade = upgrade(head)?;
    Ok(Admitted {
        cluster: Arc::clone(cluster),
        authority,
        upgrade,
    })
}

fn check_size(head: &Parts, limits: &Limits) -> Result<(), Rejection> {
    if head
        .uri
        .path_and_query()
        .is_some_and(|target| target.as_str().len() > limits.uri_bytes)
    {
        return Err(Rejection::Uri(limits.uri_bytes));
    }
    if head.headers.len() > limits.header_fields {
        return Err(Rejection::HeaderFields(limits.header_fields));
    }
    let bytes: usize = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes > limits.header_bytes {
        Err(Rejection::HeaderBytes(limits.header_bytes))
    } else {
        Ok(())
    }
}

fn check_target(head: &Parts) -> Result<(), Rejection> {
    if head
        .uri
        .scheme()
        .is_some_and(|scheme| *scheme != http::uri::Scheme::HTTPS)
    {
        return Err(Rejection::Scheme);
    }
    let path = head.uri.path();
    let well_formed = path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS);
    // `Uri` returns the path `/` for a target `?x`. Over HTTP/2 that is no target (RFC 9113 §8.3.1); over
    // HTTP/1.1 it can be the end of an absolute one.
    let is_query = head.version == Version::HTTP_2
        && (head.uri.path_and_query()).is_some_and(|target| target.as_str().starts_with('?'));
    if well_formed && !is_query {
        Ok(())
    } else {
        Err(Rejection::Target)
    }
}

/// Nothing that two HTTP parsers could frame differently passes (RFC 9112 §6.3).
fn check_length(headers: &HeaderMap) -> Result<(), Rejection> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if coding.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.next().is_some()
    {
        return Err(Rejection::TransferEncoding);
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next(), coding) {
        (None, ..) => Ok(()),
        // h2 takes an empty length for 0; another parser may not.
        (Some(length), None, None) if !length.is_empty() => Ok(()),
        _ => Err(Rejection::AmbiguousLength),
    }
}

/// The one host that a request names, in its target or in `Host`.
fn authority(head: &Parts) -> Result<Authority, Rejection> {
    let mut lines = head.headers.get_all(header::HOST).iter();
    let host = lines.next();
    if lines.next().is_some() {
        return Err(Rejection::BadHost);
    }
    let host = host
        .map(|host| Authority::try_from(host.as_bytes()).map_err(|_| Rejection::BadHost))
        .transpose()?;
    let target = head.uri.authority().cloned();
    let authority = match (target, host) {
        (Some(target), Some(host)) if target != host => return Err(Rejection::HostMismatch),
        (Some(authority), _) | (None, Some(authority)) => authority,
        (None, None) => return Err(Rejection::NoHost),
    };
    if authority.as_str().contains('@')
        || authority.host().is_empty()
        || !has_valid_port(&authority)
    {
        return Err(Rejection::BadHost);
    }
    Ok(authority)
}

/// Whether the port is absent, empty (RFC 3986 §3.2.3) or a port. `Authority` checks only its characters.
fn has_valid_port(authority: &Authority) -> bool {
    let port = authority.as_str().strip_prefix(authority.host());
    match port.and_then(|port| port.strip_prefix(':')) {
        None | Some("") => true,
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    }
}

/// The protocol to switch to. Anything but a lone, known token is not an upgrade: the fields are then
/// dropped as hop-by-hop and the request is an ordinary one.
fn upgrade(head: &Parts) -> Result<Option<UpgradeToken>, Rejection> {
    if head.version != Version::HTTP_11 {
        return Ok(None);
    }
    let mut tokens = head.headers.get_all(header::UPGRADE).iter();
    let Some(token) = tokens.next().and_then(UpgradeToken::of) else {
        return Ok(None);
    };
    let asked = head
        .headers
        .get_all(header::CONNECTION)
        .iter()
        .any(|line| list_contains(line.as_bytes(), "upgrade"));
    if tokens.next().is_some() || !asked {
        return Ok(None);
    }
    let has_body = head.headers.contains_key(header::TRANSFER_ENCODING)
        || head
            .headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length.as_bytes() != b"0");
    if has_body {
        Err(Rejection::UpgradeWithBody)
    } else {
        Ok(Some(token))
    }
}

/// Fuzz body: `bytes` are a target and a host, split at the first line end. Nothing panics, and a host
/// that is accepted is one host: no userinfo, not empty, the same in target and `Host`.
pub(super) fn fuzz(bytes: &[u8]) {
    let (target, host) = bytes.split_at(
        bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(bytes.len()),
    );
    let Ok(uri) = http::Uri::try_from(target) else {
        return;
    };
    let mut request = http::Request::new(());
    *request.uri_mut() = uri;
    if let Ok(host) = HeaderValue::from_bytes(host.get(1..).unwrap_or_default()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let (head, ()) = request.into_parts();
    if let (Ok(()), Ok(authority)) = (check_target(&head), authority(&head)) {
        assert!(!authority.as_str().contains('@') && !authority.host().is_empty());
        assert!(
            head.uri
                .authority()
                .is_none_or(|target| *target == authority)
        );
        assert!(head.uri.path().starts_with('/') || head.method == Method::OPTIONS);
    }
}

#[cfg(test)]
mod tests;
