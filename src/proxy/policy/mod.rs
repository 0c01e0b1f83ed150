//! Decides whether a request may pass, by its form, its size and its host, before anything is sent
//! upstream. Finds the cluster that the request goes to.

mod prefixes;

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request::Parts, uri::Authority};

use super::{ClientConnection, access::AccessRules, credential::CredentialError};
use crate::{
    cidr::AddressList,
    clients::Throttled,
    config::{Limits, LoggedUser},
    hosts::{HostMap, HostName},
    proxy::{
        identity::{CertificateRefusal, ClientCertificates, ProxyCredential},
        published::PublishedKubeconfig,
    },
    upgrade_token::UpgradeToken,
    upstream::Cluster,
};
use prefixes::HostTarget;
pub(super) use prefixes::{fuzz as fuzz_prefixes, take_prefix};

/// A request that may pass.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The cluster that it goes to, and the rules of that cluster.
    pub(super) route: Arc<Route>,
    /// The host as the client wrote it, port included.
    pub(super) authority: Authority,
    /// The protocol that it may switch to.
    pub(super) upgrade: Option<UpgradeToken>,
}

/// A cluster, and what belongs to its public side.
#[derive(Debug)]
pub struct Route {
    /// The cluster that requests go to.
    pub cluster: Arc<Cluster>,
    /// How it uses client certificates; `None` if it asks for none.
    pub certificates: Option<Arc<ClientCertificates>>,
    /// Who may send what to it. `None`: every request may pass.
    pub access: Option<AccessRules>,
    /// The kubeconfig that its hosts publish; `None` if they publish none.
    pub published: Option<PublishedKubeconfig>,
}

/// The clusters by public host name. Replaced as a whole when the configuration changes.
#[derive(Debug, Default)]
pub struct Routes {
    by_host: HostMap<HostTarget>,
    /// The route of a configuration with exactly one cluster, passthrough clusters not counted.
    sole: Option<Arc<Route>>,
    /// Proxies that name the clients of their requests; `None` if there are none.
    trusted_proxies: Option<AddressList>,
    /// The routes that ask for client certificates.
    asking: Vec<Arc<Route>>,
    has_passthrough: bool,
    has_prefixes: bool,
    logged_user: LoggedUser,
}

/// What a connection says about the host of its requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ConnectionNames<'a> {
    /// The name of the TLS handshake, if a cluster is served under it.
    pub(super) sni: Option<&'a str>,
    /// The address that the client connected to.
    pub(super) local: Option<SocketAddr>,
}

impl<'a> ConnectionNames<'a> {
    pub(super) fn new(downstream: &'a ClientConnection) -> Self {
        Self {
            sni: downstream.sni.as_deref(),
            local: downstream.local,
        }
    }
}

impl Route {
    /// A route on which every request may pass.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            access: None,
            certificates: None,
            published: None,
        }
    }
}

impl Routes {
    /// Sends requests for `host` (the text of a host pattern) to a cluster.
    pub fn add(&mut self, host: &str, route: &Arc<Route>) {
        self.has_passthrough |= route.cluster.is_passthrough();
        let target = HostTarget::Cluster(Arc::clone(route));
        self.by_host.insert(host, target);
        let is_listed = || self.asking.iter().any(|one| Arc::ptr_eq(one, route));
        if route.certificates.is_some() && !is_listed() {
            self.asking.push(Arc::clone(route));
        }
    }

    /// Lets these proxies name the clients of their requests.
    pub fn trust_proxies(&mut self, proxies: AddressList) {
        self.trusted_proxies = Some(proxies).filter(|proxies| !proxies.is_empty());
    }

    /// The proxies that name the clients of their requests.
    #[must_use]
    pub fn trusted_proxies(&self) -> Option<&AddressList> {
        self.trusted_proxies.as_ref()
    }

    /// Whether some hosts are passed through. Only then a connection pays for a copy of its `ClientHello`.
    #[must_use]
    pub fn has_passthrough(&self) -> bool {
        self.has_passthrough
    }

    /// The cluster to which connections for this name of a TLS handshake are passed through; `None` if the proxy
    /// terminates them.
    #[must_use]
    pub fn passthrough(&self, sni: &str) -> Option<&Arc<Cluster>> {
        let route = self.by_host.get(&HostName::new(sni))?.cluster()?;
        Some(&route.cluster).filter(|cluster| cluster.is_passthrough())
    }

    /// Says that no other cluster is configured.
    pub fn set_sole(&mut self, route: &Arc<Route>) {
        self.sole = Some(Arc::clone(route));
    }

    /// Sets how the log and the status page show users. It is here because a reload may change it.
    pub fn set_logged_user(&mut self, user: LoggedUser) {
        self.logged_user = user;
    }

    /// How the log and the status page show users.
    pub(super) fn logged_user(&self) -> LoggedUser {
        self.logged_user
    }

    /// Whether a cluster is served under this name.
    #[must_use]
    pub fn serves(&self, name: &str) -> bool {
        let target = self.by_host.get(&HostName::new(name));
        target.is_some_and(|target| {
            let route = target.cluster();
            route.is_none_or(|route| !route.cluster.is_passthrough())
        })
    }

    /// The route whose clients are asked for a certificate in a handshake with this name. Without a name it is the only
    /// route: a kubeconfig with an address as its server sends none.
    #[must_use]
    pub fn asking_under(&self, server_name: Option<&str>) -> Option<&Arc<Route>> {
        if self.asking.is_empty() {
            return None;
        }
        let route = match server_name {
            Some(name) => self.by_host.get(&HostName::new(name))?.cluster(),
            None => self.sole.as_ref(),
        };
        route.filter(|route| route.certificates.is_some())
    }

    /// How this cluster uses client certificates.
    pub(super) fn certificates_of(&self, cluster: &str) -> Option<&ClientCertificates> {
        let mut asking = self.asking.iter();
        let route = asking.find(|route| route.cluster.name() == cluster)?;
        route.certificates.as_deref()
    }

    /// The route for the host of a request.
    ///
    /// If the host is an IP address or `localhost` without a cluster of its own, the name of the TLS handshake decides.
    /// A kubeconfig with `server: https://192.0.2.1` and `tls-server-name` sends such requests, also through a tunnel,
    /// and its client has already verified that name. The health checks of load balancers send no name, and an address:
    /// their own, or that of the target. With one cluster this is not ambiguous. A web page can have a name resolve to
    /// the proxy (DNS rebinding), but not an address, so a name that is not configured never passes.
    ///
    /// A passthrough host has no route here, even if a wildcard of another cluster covers it: a host is either passed
    /// through or terminated. Browsers send requests for such a name on a connection for another one.
    fn find(&self, authority: &Authority, sni: Option<&str>) -> Result<&Arc<Route>, Rejection> {
        let found = match self.target(authority, sni) {
            Some(target) => Some(target.cluster().ok_or(Rejection::NoSuchPrefix)?),
            None => {
                let sole = self.sole.as_ref();
                sole.filter(|_| HostName::new(authority.host()).is_address())
            }
        };
        let found = found.filter(|route| !route.cluster.is_passthrough());
        found.ok_or(Rejection::NotOurs)
    }

    /// What this host leads to, or the name of the TLS handshake in its place.
    fn target(&self, authority: &Authority, sni: Option<&str>) -> Option<&HostTarget> {
        let host = HostName::new(authority.host());
        self.by_host.get(&host).or_else(|| {
            if host.as_str() != "localhost" && !host.is_address() {
                return None;
            }
            self.by_host.get(&HostName::new(sni?))
        })
    }
}

/// The subprotocol of an upgrade that `kube-tls-proxy check` sends. The proxy refuses it in its own words, without a
/// token, so that the check sees whether an upgrade arrives here. It is the subprotocol and not the protocol, because
/// many load balancers let only WebSocket through.
pub(crate) const UPGRADE_CHECK: &str = "check.kube-tls-proxy";

/// Why the proxy refuses a request. No part of it was sent upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// CONNECT, which would make this a forward proxy.
    #[error("CONNECT is not supported")]
    Connect,
    /// More header fields than `limits.headerFields`.
    #[error("more than {0} header fields")]
    HeaderFields(usize),
    /// More header bytes than `limits.headerBytes`.
    #[error("header larger than {0} bytes")]
    HeaderBytes(usize),
    /// A longer request target than `limits.uriBytes`.
    #[error("request target longer than {0} bytes")]
    Uri(usize),
    /// Neither `Host` nor a host in the target.
    #[error("no host")]
    NoHost,
    /// A host that is not a name with an optional port, or that is given more than once.
    #[error("malformed or repeated host")]
    BadHost,
    /// `Host` and `:authority` differ.
    #[error("two different hosts")]
    HostMismatch,
    /// A host that no cluster is configured for (RFC 9110 §15.5.20).
    #[error("no cluster is configured for this host")]
    NotOurs,
    /// A path without the prefix of a cluster, for a host whose clusters have prefixes.
    #[error("no cluster is configured for this path")]
    NoSuchPrefix,
    /// A scheme other than https.
    #[error("request scheme is not https")]
    Scheme,
    /// A target that is neither a path nor `*` with OPTIONS.
    #[error("request target is not a path or contains `#`")]
    Target,
    /// A target with a character that a URI cannot hold. Found while the head is read.
    #[error("request target contains a character that a URI cannot hold")]
    TargetCharacter,
    /// A transfer coding other than a single `chunked`.
    #[error("transfer coding is not chunked")]
    TransferEncoding,
    /// Both `Transfer-Encoding` and `Content-Length`, or several lengths.
    #[error("ambiguous length of the request body")]
    AmbiguousLength,
    /// Not HTTP. Found while the head is read.
    #[error("malformed HTTP")]
    Malformed,
    /// An expectation other than 100-continue.
    #[error("unsupported value of Expect")]
    Expectation,
    /// An upgrade request that carries a body.
    #[error("upgrade request with a body")]
    UpgradeWithBody,
    /// The upgrade of `kube-tls-proxy check`, which is for the proxy itself.
    #[error("upgrade of `kube-tls-proxy check`")]
    UpgradeCheck,
    /// A client certificate that does not count, and no token.
    #[error("client certificate {0}")]
    Certificate(CertificateRefusal),
    /// A client certificate that was presented for a host of another cluster, and no token.
    #[error("client certificate for a host of another cluster")]
    CertificateOfOtherHost,
    /// The client of a certificate names another user, where the proxy itself impersonates the owner of the
    /// certificate.
    #[error("impersonation beside a client certificate")]
    Impersonation,
    /// Credentials that the apiserver and the proxy could read differently, where access rules look at them.
    #[error("{0}")]
    Credential(CredentialError),
    /// A path that the apiserver and a server before it could read differently, where access rules look at paths.
    #[error("path with more than one meaning")]
    AmbiguousPath,
    /// A request for the published kubeconfig that is neither GET nor HEAD, or that is an upgrade.
    #[error("published kubeconfig cannot be changed")]
    PublishedMethod,
    /// A budget of its client is used up.
    #[error("client is over {}", .0.setting())]
    Throttled(Throttled),
    /// The same for a user of a client certificate, where each 401 was about a credential of the proxy.
    #[error("the apiserver refuses the proxy, and the client is over limits.unauthorizedPerClient")]
    RefusedProxy(ProxyCredential),
}

impl From<CredentialError> for Rejection {
    fn from(error: CredentialError) -> Self {
        Self::Credential(error)
    }
}

impl Rejection {
    /// The `reason` in the log. A limit has the word that it has in `limits_hit_total`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect_method",
            Self::HeaderFields(_) => "header_fields",
            Self::HeaderBytes(_) => "header_bytes",
            Self::Uri(_) => "uri_bytes",
            Self::NoHost => "no_host",
            Self::BadHost => "bad_host",
            Self::HostMismatch => "host_mismatch",
            Self::NotOurs => "host_not_configured",
            Self::NoSuchPrefix => "path_not_configured",
            Self::Scheme => "scheme",
            Self::Target => "target",
            Self::TargetCharacter => "target_character",
            Self::TransferEncoding => "transfer_encoding",
            Self::AmbiguousLength => "ambiguous_length",
            Self::Malformed => "malformed",
            Self::Expectation => "expectation",
            Self::UpgradeWithBody => "upgrade_with_body",
            Self::UpgradeCheck => "upgrade_check",
            Self::Certificate(_) => "client_certificate",
            Self::CertificateOfOtherHost => "certificate_of_other_host",
            Self::Impersonation => "impersonation",
            Self::Credential(_) => "credential",
            Self::AmbiguousPath => "ambiguous_path",
            Self::PublishedMethod => "published_method",
            Self::Throttled(Throttled::Refused(_) | Throttled::Guesses(_))
            | Self::RefusedProxy(_) => "client_unauthorized",
            Self::Throttled(Throttled::Requests(_)) => "client_requests",
        }
    }

    /// Whether the end of the request is uncertain, so that no byte after it may be read as another request.
    pub(super) fn is_about_framing(self) -> bool {
        matches!(
            self,
            Self::TransferEncoding
                | Self::AmbiguousLength
                | Self::Malformed
                | Self::TargetCharacter
        )
    }
}

/// Decides whether a request may pass. `names` are those of its connection, and `below` is what `take_prefix` has
/// found.
///
/// # Errors
///
/// The first rule that the request breaks.
pub(super) fn admit(
    head: &Parts,
    routes: &Routes,
    limits: &Limits,
    names: ConnectionNames<'_>,
    below: Option<Result<Arc<Route>, Rejection>>,
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
    let named = authority(&head.uri, &head.headers, head.version)?;
    let is_named = named.is_some();
    let authority = match named {
        Some(authority) => authority,
        None => own_address(head, names.local).ok_or(Rejection::NoHost)?,
    };
    let route = match below {
        Some(found) => found?,
        None => match routes.find(&authority, names.sni) {
            Ok(route) => Arc::clone(route),
            Err(rejection) if is_named => return Err(rejection),
            Err(_) => return Err(Rejection::NoHost),
        },
    };
    let upgrade = UpgradeToken::requested_by(head);
    if let Some(token) = upgrade {
        if has_body(&head.headers) {
            return Err(Rejection::UpgradeWithBody);
        }
        let subprotocol = head.headers.get(token.subprotocol_field());
        if subprotocol.is_some_and(|name| name == UPGRADE_CHECK) {
            return Err(Rejection::UpgradeCheck);
        }
    }
    Ok(Admitted {
        route,
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

/// Refuses a body that two HTTP parsers could frame differently (RFC 9112 §6.3).
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

/// The host of a request, from its target or `Host`. `None` if it names none.
///
/// # Errors
///
/// When the host is malformed, or there is more than one.
fn authority(
    uri: &Uri,
    headers: &HeaderMap,
    version: Version,
) -> Result<Option<Authority>, Rejection> {
    let mut lines = headers.get_all(header::HOST).iter();
    let host = lines.next();
    if lines.next().is_some() {
        return Err(Rejection::BadHost);
    }
    let host = host
        .map(|host| Authority::try_from(host.as_bytes()).map_err(|_| Rejection::BadHost))
        .transpose()?;
    let target = uri.authority().cloned();
    if let (Some(target), Some(host)) = (&target, &host)
        // With an absolute target HTTP/1.1 ignores `Host` (RFC 9112 §3.2.2).
        && version == Version::HTTP_2
        && !is_same_origin(target, host)
    {
        return Err(Rejection::HostMismatch);
    }
    let Some(authority) = target.or(host) else {
        return Ok(None);
    };
    if authority.as_str().contains('@') || authority.host().is_empty() || port(&authority).is_none()
    {
        return Err(Rejection::BadHost);
    }
    Ok(Some(authority))
}

/// The address of the connection, for a request of HTTP/1.0, which knows no `Host`. The health checks of `HAProxy` send
/// such requests.
fn own_address(head: &Parts, local: Option<SocketAddr>) -> Option<Authority> {
    let local = local.filter(|_| head.version == Version::HTTP_10)?;
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    Authority::try_from(local.to_string()).ok()
}

/// Whether these are the same host and port (RFC 9113 §8.3.1, RFC 3986 §6.2.3).
fn is_same_origin(one: &Authority, other: &Authority) -> bool {
    one.host().eq_ignore_ascii_case(other.host()) && port(one) == port(other)
}

/// The port, which is that of https if it is absent or empty (RFC 3986 §3.2.3). `None` for a text that is no port:
/// `Authority` checks only its characters.
fn port(authority: &Authority) -> Option<u16> {
    let port = authority.as_str().strip_prefix(authority.host());
    match port.and_then(|port| port.strip_prefix(':')) {
        None | Some("") => Some(HTTPS_PORT),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok(),
        Some(_) => None,
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING)
        || length.is_some_and(|length| length.as_bytes() != b"0")
}

/// Fuzz target: `bytes` are a target and a host, split at the first line break. Nothing panics. An accepted
/// host has no userinfo, is not empty, and is the same in target and `Host`.
pub(super) fn fuzz(bytes: &[u8]) {
    let (target, host) = bytes.split_at(
        bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(bytes.len()),
    );
    let Ok(uri) = Uri::try_from(target) else {
        return;
    };
    let mut request = http::Request::new(());
    *request.uri_mut() = uri;
    if let Ok(host) = HeaderValue::from_bytes(host.get(1..).unwrap_or_default()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let (head, ()) = request.into_parts();
    let named = authority(&head.uri, &head.headers, head.version);
    if let (Ok(()), Ok(Some(authority))) = (check_target(&head), named) {
        assert!(!authority.as_str().contains('@') && !authority.host().is_empty());
        assert!(
            head.uri
                .authority()
                .is_none_or(|target| *target == authority)
        );
        assert!(head.uri.path().starts_with('/') || head.method == Method::OPTIONS);
    }
}

/// RFC 9110 §4.2.2.
const HTTPS_PORT: u16 = 443;

#[cfg(test)]
mod tests;
