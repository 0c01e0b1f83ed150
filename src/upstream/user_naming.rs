//! How the proxy tells an apiserver who the owner of a client certificate is, and which requests may say so.
//!
//! With a front-proxy certificate the connection is the credential: a request for a user leaves only on connections
//! with this certificate, and those carry nothing else. With a token the credential is in each request: a connection
//! without a certificate of the proxy remembers nothing of it, so such requests share the leases of their client, and
//! a new token ends no connection. [`UpstreamRequest`] is the only type that a lease sends.
//! [`UpstreamRequest::for_user`] is the only way in which the token gets into one, and it writes a user beside it.
//! Proof: tests/it `certificates::impersonation`.

use std::{fmt, sync::Arc, time::SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry, InvalidHeaderValue},
    request::Parts,
};

use super::{Cluster, FrontProxy};
use crate::{
    pki::{CertificateSubject, TokenFile},
    text::WEBSOCKET_TOKEN,
};

/// How the proxy tells the apiserver of one cluster who the user is.
#[derive(Debug, Clone)]
pub enum UserNaming {
    /// In `X-Remote-*` fields, on connections with a front-proxy certificate.
    FrontProxy(Arc<FrontProxy>),
    /// In `Impersonate-*` fields, beside the token that this file has at the time of a request.
    Impersonator(Arc<TokenFile>),
}

impl UserNaming {
    /// Returns the credential that lets the proxy name the user of one request.
    ///
    /// # Errors
    ///
    /// The credential of the proxy cannot be used at `now`.
    pub fn right(&self, now: SystemTime) -> Result<NamingRight<'_>, NamingError> {
        match self {
            Self::FrontProxy(front_proxy) if front_proxy.has_expired(now) => {
                Err(NamingError::FrontProxyExpired)
            }
            Self::FrontProxy(front_proxy) => Ok(NamingRight(Credential::Connection(front_proxy))),
            Self::Impersonator(token) => {
                let authorization = token.bearer().ok_or(NamingError::NoToken)?;
                Ok(NamingRight(Credential::Token(authorization)))
            }
        }
    }
}

/// Why the proxy cannot tell an apiserver who the user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NamingError {
    /// The front-proxy certificate has expired.
    #[error("the front-proxy certificate has expired")]
    FrontProxyExpired,
    /// The token file cannot be used.
    #[error("the impersonation token cannot be used")]
    NoToken,
}

/// The right to name the user of one request. Nothing but the fields of a user and a request for one can be made of it.
pub struct NamingRight<'a>(Credential<'a>);

enum Credential<'a> {
    Connection(&'a FrontProxy),
    Token(HeaderValue),
}

impl fmt::Debug for NamingRight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Credential::Connection(_) => "NamingRight(Connection)",
            Credential::Token(_) => "NamingRight(Token)",
        })
    }
}

impl NamingRight<'_> {
    /// Writes the user and, if it is a token, the credential of the proxy. Fields that say who sends the request or who
    /// it is for must have been removed, or are replaced.
    pub(crate) fn write(self, user: &RemoteUser, headers: &mut HeaderMap) {
        match self.0 {
            Credential::Connection(_) => user.write(&X_REMOTE, headers),
            Credential::Token(authorization) => {
                user.write(&IMPERSONATE, headers);
                headers.insert(header::AUTHORIZATION, authorization);
            }
        }
    }
}

/// The user whom the proxy names to an apiserver.
#[derive(Debug)]
pub struct RemoteUser {
    user: HeaderValue,
    groups: Vec<HeaderValue>,
    uid: Option<HeaderValue>,
    /// The id of the credential.
    credential: HeaderValue,
}

impl RemoteUser {
    /// The owner of a certificate, as kube-apiserver would read it: user, groups and id, and the fingerprint as the id
    /// of the credential.
    ///
    /// # Errors
    ///
    /// When a name cannot be the value of a header field. [`CertificateSubject`] has refused such a name before.
    pub fn new(subject: &CertificateSubject) -> Result<Self, InvalidHeaderValue> {
        let groups = subject.groups.iter().map(HeaderValue::try_from);
        Ok(Self {
            user: HeaderValue::try_from(&subject.user)?,
            groups: groups.collect::<Result<_, _>>()?,
            uid: subject
                .uid
                .as_ref()
                .map(HeaderValue::try_from)
                .transpose()?,
            credential: HeaderValue::try_from(format!("X509SHA256={}", subject.sha256))?,
        })
    }

    /// Replaces the fields with these names by those of the user.
    fn write(&self, names: &FieldNames, headers: &mut HeaderMap) {
        headers.insert(&names.user, self.user.clone());
        headers.remove(&names.group);
        for group in &self.groups {
            headers.append(&names.group, group.clone());
        }
        headers.remove(&names.uid);
        if let Some(uid) = &self.uid {
            headers.insert(&names.uid, uid.clone());
        }
        headers.insert(&names.credential, self.credential.clone());
    }

    /// The fields of a front proxy, for `check`, which sends a request without a lease.
    pub(crate) fn remote_fields(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.write(&X_REMOTE, &mut headers);
        headers
    }
}

/// The names of the fields in which a user is named.
struct FieldNames {
    user: HeaderName,
    group: HeaderName,
    uid: HeaderName,
    /// The key of the extra is `authentication.kubernetes.io/credential-id`.
    credential: HeaderName,
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

    /// A request of this user, on whose behalf the proxy speaks, to `cluster`. The client's own tokens are removed: an
    /// apiserver that does not accept the proxy's credential would try them, and no access rule has judged them.
    #[must_use]
    pub fn for_user(
        cluster: &'a Cluster,
        right: NamingRight<'a>,
        user: &RemoteUser,
        mut head: Parts,
    ) -> Self {
        head.headers.remove(header::AUTHORIZATION);
        remove_subprotocol_tokens(&mut head.headers);
        let cluster = match right.0 {
            Credential::Connection(front_proxy) => &front_proxy.connections,
            Credential::Token(_) => {
                // Such a request is refused before. Beside the token of the proxy no such field may come from a client.
                remove_impersonation(&mut head.headers);
                cluster
            }
        };
        right.write(user, &mut head.headers);
        Self { cluster, head }
    }
}

/// Whether a client says in these fields as whom its request shall be done (`kubectl --as`). Fields that the apiserver
/// does not know yet count too, and so do names with `_`, which some servers read as `-`.
#[must_use]
pub fn is_impersonating(headers: &HeaderMap) -> bool {
    headers.keys().any(is_impersonation)
}

fn is_impersonation(name: &HeaderName) -> bool {
    let rest = name.as_str().strip_prefix("impersonate");
    rest.is_some_and(|rest| rest.starts_with(['-', '_']))
}

fn remove_impersonation(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_impersonation(name))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
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
    head.headers.contains_key(header::AUTHORIZATION) || head.headers.contains_key(&X_REMOTE.user)
}

/// Of a front proxy.
static X_REMOTE: FieldNames = FieldNames {
    user: HeaderName::from_static("x-remote-user"),
    group: HeaderName::from_static("x-remote-group"),
    uid: HeaderName::from_static("x-remote-uid"),
    credential: HeaderName::from_static(
        "x-remote-extra-authentication.kubernetes.io%2fcredential-id",
    ),
};
/// Of a user who impersonates another one.
static IMPERSONATE: FieldNames = FieldNames {
    user: HeaderName::from_static("impersonate-user"),
    group: HeaderName::from_static("impersonate-group"),
    uid: HeaderName::from_static("impersonate-uid"),
    credential: HeaderName::from_static(
        "impersonate-extra-authentication.kubernetes.io%2fcredential-id",
    ),
};
