//! Requests and the connections that they may use: those of the client itself, or those on which the proxy says who the
//! user is.
//!
//! An apiserver believes every `X-Remote-*` field on a connection with the front-proxy certificate, and refuses every
//! request there that has none. So a request gets these fields only together with such a connection, and in no other
//! way: [`UpstreamRequest`] is the only type that a lease sends, and no other code sees the [`Cluster`] in a
//! [`FrontProxy`].

use std::{fmt, sync::Arc, time::SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry, InvalidHeaderValue},
    request::Parts,
};

use super::{ClientTls, Cluster};
use crate::{
    pki::{CertificateSubject, ClientIdentity},
    text::WEBSOCKET_TOKEN,
};

/// The connections to one cluster on which the proxy says who the user is.
#[derive(Debug)]
pub struct FrontProxy {
    /// A generation of its own, so that no lease and no idle connection of it is found for other requests.
    connections: Cluster,
    not_after: SystemTime,
    sha256: String,
}

impl FrontProxy {
    /// Connections to the endpoints of `cluster`, with this certificate.
    #[must_use]
    pub fn new(cluster: &Cluster, identity: &ClientIdentity) -> Self {
        let tls = cluster.tls.presenting(identity.certified_key());
        let leaf = identity.summary();
        Self {
            connections: cluster.with_tls(tls),
            not_after: leaf.not_after,
            sha256: leaf.sha256.clone(),
        }
    }

    /// Whether the certificate has expired.
    #[must_use]
    pub fn has_expired(&self, now: SystemTime) -> bool {
        self.not_after < now
    }

    /// Whether it presents this certificate.
    #[must_use]
    pub fn presents(&self, identity: &ClientIdentity) -> bool {
        self.sha256 == identity.summary().sha256
    }
}

impl Cluster {
    /// The same apiserver in a generation of its own, with these TLS settings.
    fn with_tls(&self, tls: ClientTls) -> Self {
        let (label, prefix) = (self.label.clone(), self.path_prefix.clone());
        Self::new(label, prefix, Arc::clone(&self.endpoints), tls)
            .with_hosts(self.authority.clone(), self.probe_host.clone())
    }
}

/// The fields that tell an apiserver who the user is.
#[derive(Debug)]
pub struct RemoteUser(HeaderMap);

impl RemoteUser {
    /// The fields for the owner of a certificate, as kube-apiserver would read it: user, groups and id, and the
    /// fingerprint as the id of the credential.
    ///
    /// # Errors
    ///
    /// When a name cannot be the value of a header field. [`CertificateSubject`] has refused such a name before.
    pub fn new(subject: &CertificateSubject) -> Result<Self, InvalidHeaderValue> {
        let mut fields = HeaderMap::new();
        fields.append(X_REMOTE_USER, HeaderValue::try_from(&subject.user)?);
        for group in &subject.groups {
            fields.append(X_REMOTE_GROUP, HeaderValue::try_from(group)?);
        }
        if let Some(uid) = &subject.uid {
            fields.append(X_REMOTE_UID, HeaderValue::try_from(uid)?);
        }
        let credential = HeaderValue::try_from(format!("X509SHA256={}", subject.sha256))?;
        fields.append(CREDENTIAL_ID, credential);
        Ok(Self(fields))
    }

    /// The fields, for `check`, which sends a request without a lease.
    pub(crate) fn into_headers(self) -> HeaderMap {
        self.0
    }
}

/// A request with the connections that it may use.
pub struct UpstreamRequest<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) head: Parts,
}

impl fmt::Debug for UpstreamRequest<'_> {
    /// Without the head, which holds credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamRequest")
            .field("cluster", &self.cluster.name())
            .finish_non_exhaustive()
    }
}

impl<'a> UpstreamRequest<'a> {
    /// A request with the credential of the client, if it has one. `headers::rewrite_request` has removed what the
    /// client says about the user.
    #[must_use]
    pub fn from_client(cluster: &'a Cluster, head: Parts) -> Self {
        debug_assert!(
            !head
                .headers
                .keys()
                .any(|name| name.as_str().starts_with("x-remote-")),
            "only `for_user` says who the user is"
        );
        Self { cluster, head }
    }

    /// A request of this user, on whose behalf the proxy speaks. The client's own tokens are removed: an apiserver that
    /// does not believe the proxy would try them, and no access rule has judged them.
    #[must_use]
    pub fn for_user(front_proxy: &'a FrontProxy, user: &RemoteUser, mut head: Parts) -> Self {
        head.headers.remove(header::AUTHORIZATION);
        remove_subprotocol_tokens(&mut head.headers);
        for name in user.0.keys() {
            head.headers.remove(name);
        }
        for (name, value) in &user.0 {
            head.headers.append(name, value.clone());
        }
        Self {
            cluster: &front_proxy.connections,
            head,
        }
    }
}

/// Removes the tokens among the subprotocols of a WebSocket. A token may be anywhere in an item, because the apiserver
/// removes more kinds of blanks around it than HTTP knows.
fn remove_subprotocol_tokens(headers: &mut HeaderMap) {
    let Entry::Occupied(lines) = headers.entry(header::SEC_WEBSOCKET_PROTOCOL) else {
        return;
    };
    let lines: Vec<HeaderValue> = lines.remove_entry_mult().1.collect();
    for line in lines {
        let text = String::from_utf8_lossy(line.as_bytes());
        let others: Vec<&str> = text
            .split(',')
            .filter(|item| !item.contains(WEBSOCKET_TOKEN))
            .collect();
        if let Ok(others) = HeaderValue::try_from(others.join(",").trim())
            && !others.is_empty()
        {
            headers.append(header::SEC_WEBSOCKET_PROTOCOL, others);
        }
    }
}

/// Whether a request has a user: its own credential, or the word of the proxy.
pub(super) fn has_user(head: &Parts) -> bool {
    head.headers.contains_key(header::AUTHORIZATION) || head.headers.contains_key(X_REMOTE_USER)
}

const X_REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const X_REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const X_REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
/// The key of the extra is `authentication.kubernetes.io/credential-id`.
const CREDENTIAL_ID: HeaderName =
    HeaderName::from_static("x-remote-extra-authentication.kubernetes.io%2fcredential-id");
