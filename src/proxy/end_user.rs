//! Decides which user the log and the status page show for a request: the one whom the apiserver has verified.
//!
//! The proxy verifies no token, and any client can write any name into one. So a name counts only together with a
//! response that kube-apiserver sends after it has verified the token, and only if the request has no other token. A
//! name can be missing, but never that of another user. The proxy verifies client certificates itself.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, Method, StatusCode, request::Parts};

use super::credential::{BearerToken, CredentialCache, Credentials};
use crate::{activity::EndUser, config::LoggedUser, upgrade_token::UpgradeToken};

/// The token that names the user of a request, before the apiserver has verified it. `head` is the one that goes to the
/// apiserver.
pub(super) fn claimed(
    logged: LoggedUser,
    head: &Parts,
    upgrade: Option<UpgradeToken>,
    cache: &CredentialCache,
) -> Option<Arc<BearerToken>> {
    // The apiserver answers the preflight request of a browser before it looks at credentials.
    if logged == LoggedUser::Off || head.method == Method::OPTIONS {
        return None;
    }
    let credentials = Credentials::read(&head.headers, upgrade, cache).ok()?;
    let token = credentials.into_only_token()?;
    token.subject.is_some().then_some(token)
}

/// The user to show, if this response proves that the apiserver has verified the token.
pub(super) fn verified(
    claimed: Option<Arc<BearerToken>>,
    logged: LoggedUser,
    status: StatusCode,
    headers: &HeaderMap,
) -> Option<Arc<EndUser>> {
    let token = claimed.filter(|_| proves_identity(status, headers))?;
    let subject = token.subject.as_deref()?;
    let issuer = token.issuer.as_deref().unwrap_or_default();
    shown(subject, issuer, logged)
}

/// The user to show for a request with a client certificate, which the proxy itself has verified.
pub(super) fn of_certificate(name: &str, logged: LoggedUser) -> Option<Arc<EndUser>> {
    shown(name, "", logged)
}

fn shown(subject: &str, issuer: &str, logged: LoggedUser) -> Option<Arc<EndUser>> {
    match logged {
        LoggedUser::Off => None,
        LoggedUser::Subject => Some(Arc::new(EndUser::new(subject, issuer))),
        LoggedUser::Hash => Some(Arc::new(EndUser::new(&hash(subject), issuer))),
    }
}

/// Whether kube-apiserver sends such a response only after it has verified the credentials.
///
/// A proxy or load balancer before the apiserver sends a 403 or a page of its own without a look at the token. The
/// apiserver's own responses have an audit ID. Of those, it sends a 400 or a 504 before it looks at the token, too,
/// unless it says which limit of priority and fairness the user falls under. A 101 has neither field.
fn proves_identity(status: StatusCode, headers: &HeaderMap) -> bool {
    match status.as_u16() {
        401 => false,
        101 => true,
        200..=299 | 304 | 403 | 404 | 409 | 410 | 422 => headers.contains_key(AUDIT_ID),
        _ => headers.contains_key(FLOW_SCHEMA),
    }
}

/// A pseudonym of a user: without a key, so that the lines of several replicas and of other logs can be joined, and an
/// operator finds the lines of a known user.
fn hash(subject: &str) -> String {
    let digest = digest(&SHA256, subject.as_bytes());
    let digits = digest.as_ref().iter().take(HASH_BYTES);
    let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Set by the filter for priority and fairness, which runs after authentication.
const FLOW_SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
/// Of a hash; a million users have a chance of 1 to 37 million that two of them share a pseudonym.
const HASH_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::*;

    const TOKEN: &str = "Bearer e30.eyJpc3MiOiJpIiwic3ViIjoiamFuZSJ9.c";

    fn claimed_by(
        method: &str,
        lines: &[&'static str],
        logged: LoggedUser,
    ) -> Option<Arc<BearerToken>> {
        let mut request = Request::builder().method(method);
        for line in lines {
            request = request.header("authorization", *line);
        }
        let head = request.body(()).unwrap().into_parts().0;
        claimed(logged, &head, None, &CredentialCache::default())
    }

    fn shown(logged: LoggedUser, status: u16, fields: &[&'static str]) -> Option<Arc<EndUser>> {
        let claimed = claimed_by("GET", &[TOKEN], LoggedUser::Subject);
        assert!(claimed.is_some());
        let mut headers = HeaderMap::new();
        for name in fields {
            headers.insert(*name, HeaderValue::from_static("7c3b"));
        }
        let status = StatusCode::from_u16(status).unwrap();
        verified(claimed, logged, status, &headers)
    }

    #[test]
    fn only_a_single_token_with_a_subject_names_a_user() {
        let subject = LoggedUser::Subject;
        for (method, lines, is_named) in [
            ("GET", &[TOKEN][..], true),
            ("POST", &[TOKEN], true),
            // A preflight request of a browser, which gets a 204 with any token.
            ("OPTIONS", &[TOKEN], false),
            ("GET", &[TOKEN, TOKEN], false),
            ("GET", &["Bearer opaque"], false),
            ("GET", &["Bearer e30.e30.c"], false),
            ("GET", &["Basic eDp5"], false),
            ("GET", &[], false),
        ] {
            let named = claimed_by(method, lines, subject).is_some();
            assert_eq!(named, is_named, "{method} {lines:?}");
        }
        assert_eq!(claimed_by("GET", &[TOKEN], LoggedUser::Off), None);
    }

    #[test]
    fn only_a_response_after_authentication_names_a_user() {
        let audit = &["audit-id"][..];
        let both = &["audit-id", "x-kubernetes-pf-flowschema-uid"][..];
        for (status, fields, is_named) in [
            (101, &[][..], true),
            (200, audit, true),
            (201, audit, true),
            (304, audit, true),
            (403, audit, true),
            (404, audit, true),
            (409, audit, true),
            // A load balancer or an ingress.
            (200, &[], false),
            (403, &[], false),
            (404, &[], false),
            (302, audit, false),
            // The apiserver sends these before it looks at the token, or after.
            (400, audit, false),
            (400, both, true),
            (429, audit, false),
            (429, both, true),
            (500, audit, false),
            (500, both, true),
            (503, &[], false),
            (401, &[], false),
            (401, audit, false),
            // An aggregated apiserver.
            (401, both, false),
        ] {
            let named = shown(LoggedUser::Subject, status, fields).is_some();
            assert_eq!(named, is_named, "{status} {fields:?}");
        }
    }

    /// `printf %s jane | sha256sum`
    #[test]
    fn hash_is_what_sha256sum_prints() {
        let audit = &["audit-id"][..];
        let id = |logged| shown(logged, 200, audit).map(|user| user.id.to_string());
        assert_eq!(id(LoggedUser::Subject).unwrap(), "jane");
        assert_eq!(id(LoggedUser::Hash).unwrap(), "sha256:81f8f6dde88365f3");
        assert_eq!(id(LoggedUser::Off), None);
        assert_eq!(&*shown(LoggedUser::Hash, 200, audit).unwrap().issuer, "i");
    }
}
