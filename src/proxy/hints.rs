//! Says in a `Warning` field, and in the log, why a credential may have been refused. kubectl prints the field as
//! `Warning: …`.
//!
//! client-go hands the warnings of every response to its handler, but the apiserver cannot know that a proxy has
//! ended a TLS connection, and says only `Unauthorized` of an expired token. Only a 401, or a 403 to a request
//! without a credential, gets a warning. Body and status stay as they are. A 401 of the proxy itself gets one too.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, Response, StatusCode, header};
use serde::Deserialize;
use x509_cert::der::DateTime;

use super::{Error, Rejection, credential::jwt_payload};
use crate::{clients::Throttled, upstream::RefusedAuthorization};

/// What is wrong with a credential that the apiserver has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CredentialProblem {
    /// The request has no token.
    Missing,
    /// The token has expired.
    Expired,
    /// Anything else. The apiserver does not say what.
    Invalid,
}

impl CredentialProblem {
    /// The value in the log.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
        }
    }
}

/// What is wrong with the credential, if the apiserver has refused it, or the lack of one. With `adds_hint` the
/// response says so too.
pub(super) fn explain<B>(
    response: &mut Response<B>,
    has_credential: bool,
    adds_hint: bool,
) -> Option<CredentialProblem> {
    match response.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !has_credential => {
            if adds_hint {
                append(response, NO_TOKEN);
            }
            Some(CredentialProblem::Missing)
        }
        StatusCode::UNAUTHORIZED => {
            let refused = response.extensions_mut().remove::<RefusedAuthorization>();
            let expiry = refused.and_then(|refused| expiry(refused.authorization()));
            let Some(expiry) = expiry.filter(|expiry| *expiry < SystemTime::now()) else {
                return Some(CredentialProblem::Invalid);
            };
            if adds_hint && let Ok(date) = DateTime::from_system_time(expiry) {
                append(
                    response,
                    &format!("the token expired at {date}; get a new one"),
                );
            }
            Some(CredentialProblem::Expired)
        }
        _ => None,
    }
}

/// Adds the reason to a 401 of the proxy itself: kubectl does not print the message of a 401.
pub(super) fn add_to_own<B>(response: &mut Response<B>, error: &Error) {
    if response.status() != StatusCode::UNAUTHORIZED {
        return;
    }
    match error {
        Error::Rejected(Rejection::Throttled(Throttled::Refused(_))) => {
            append(response, REFUSED_TOO_OFTEN);
        }
        Error::Rejected(Rejection::RefusedProxy(credential)) => {
            append(response, credential.reason());
        }
        Error::Rejected(Rejection::Certificate(refusal)) => {
            append(response, &format!("the client certificate {refusal}"));
        }
        Error::Denied(denial) => append(response, &denial.message()),
        Error::Rejected(_)
        | Error::Upstream(_)
        | Error::UnexpectedProtocol
        | Error::RedirectedUpgrade
        | Error::Naming(_) => {}
    }
}

/// Adds a warning. `text` may have parts of the request, so no character of it may end the quoted string.
pub(super) fn append<B>(response: &mut Response<B>, text: &str) {
    let text = text.replace(['"', '\\'], "'");
    if let Ok(warning) = HeaderValue::try_from(format!("299 kube-tls-proxy \"{text}\"")) {
        response.headers_mut().append(header::WARNING, warning);
    }
}

/// The time at which a JWT (RFC 7519) in `Authorization` expires; `None` for any other credential. Nothing trusts
/// this time: the signature is not verified, and the apiserver has refused the token already.
fn expiry(authorization: &HeaderValue) -> Option<SystemTime> {
    let claims: JwtClaims = serde_json::from_slice(&jwt_payload(authorization)?).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(claims.exp).ok()?)
}

/// The claim that is read of a JWT.
#[derive(Deserialize)]
struct JwtClaims {
    exp: f64,
}

const REFUSED_TOO_OFTEN: &str = "the apiserver has refused this credential too often; log in again";
const NO_TOKEN: &str =
    "this request has no token; a client certificate ends at this proxy, so log in with a token";

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    fn bearer(claims: &str) -> HeaderValue {
        let payload = URL_SAFE_NO_PAD.encode(claims);
        HeaderValue::try_from(format!("Bearer e30.{payload}.c2ln")).unwrap()
    }

    fn seconds(authorization: &HeaderValue) -> Option<f64> {
        let expiry = expiry(authorization)?;
        let since = expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Some(since.as_secs_f64())
    }

    #[test]
    fn expiry_is_read_of_jwt() {
        for (claims, expected) in [
            (r#"{"exp":1795772895}"#, Some(1_795_772_895.0)),
            (r#"{"sub":"a","exp":1.5e3,"aud":["x"]}"#, Some(1500.0)),
            (r#"{"exp":-1}"#, None),
            (r#"{"exp":1e300}"#, None),
            (r#"{"exp":"1795772895"}"#, None),
            (r#"{"sub":"a"}"#, None),
            ("no json", None),
        ] {
            assert_eq!(seconds(&bearer(claims)), expected, "{claims}");
        }
    }

    #[test]
    fn credential_that_is_no_jwt_has_no_expiry() {
        let long = bearer(&format!(
            "{{\"a\":\"{}\",\"exp\":1}}",
            "x".repeat(16 * 1024)
        ));
        for (text, authorization) in [
            ("opaque", HeaderValue::from_static("Bearer abc")),
            (
                "two parts",
                HeaderValue::from_static("Bearer e30.eyJleHAiOjF9"),
            ),
            (
                "four parts",
                HeaderValue::from_static("Bearer e30.eyJleHAiOjF9.c.d"),
            ),
            (
                "basic",
                HeaderValue::from_static("Basic e30.eyJleHAiOjF9.c"),
            ),
            ("no base64", HeaderValue::from_static("Bearer e30.e!J.c")),
            (
                "not ASCII",
                HeaderValue::from_bytes(b"Bearer e30.\xff.c").unwrap(),
            ),
            ("long", long),
        ] {
            assert_eq!(expiry(&authorization), None, "{text}");
        }
    }

    /// A parser that recursed would overflow the stack.
    #[test]
    fn deep_claims_are_skipped() {
        let nested = format!("{}{}", "[".repeat(4000), "]".repeat(4000));
        let claims = format!("{{\"a\":{nested},\"exp\":1}}");
        assert_eq!(seconds(&bearer(&claims)), Some(1.0));
    }

    #[test]
    fn hint_needs_no_escape() {
        for hint in [NO_TOKEN, REFUSED_TOO_OFTEN] {
            assert!(!hint.contains(['"', '\\']) && hint.is_ascii());
        }
    }
}
