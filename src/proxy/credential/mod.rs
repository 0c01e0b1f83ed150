//! Reads the credentials of a request exactly as kube-apiserver reads them: the kind of each, and issuer and subject of
//! a JWT.
//!
//! No token is verified, and none need be. The apiserver finds the key of a token by the same unverified issuer, so it
//! refuses a token whose claims are forged, and a decision of the proxy can only add a refusal. The name of a user is
//! another matter: `end_user` shows it only after the apiserver has accepted the token.
//!
//! Two readers must never see two different tokens. What the apiserver ignores is no credential here (`Bearer  x` with
//! two spaces, a subprotocol without an upgrade). What could be read in two ways is a [`CredentialError`].

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderMap, HeaderValue, header};
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

use crate::{config::CredentialKind, text::WEBSOCKET_TOKEN, upgrade_token::UpgradeToken};

/// The credentials that the apiserver finds in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Credentials {
    /// The token of `Authorization`.
    bearer: Option<Arc<BearerToken>>,
    /// The token of the WebSocket subprotocol. The apiserver tries it if it refuses the other one.
    websocket: Option<Arc<BearerToken>>,
    has_basic: bool,
    is_certificate: bool,
}

/// Where the apiserver finds who sends a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum CredentialPlace<'a> {
    /// In a client certificate that the proxy has verified. The apiserver then looks at no token.
    Certificate,
    /// In the header fields. The connection remembers its last tokens here.
    Fields(&'a CredentialCache),
}

/// What a bearer token says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BearerToken {
    /// The kind.
    pub(super) kind: CredentialKind,
    /// The issuer; `None` if the token names none.
    pub(super) issuer: Option<Box<str>>,
    /// The user; for a service account `system:serviceaccount:NAMESPACE:NAME`. `None` if the token names none, or names
    /// a service account in two different ways.
    pub(super) subject: Option<Box<str>>,
}

/// Why the credentials of a request cannot be read without doubt. A request with one of these must not pass where its
/// credential decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The apiserver reads the first line only.
    #[error("more than one Authorization field")]
    RepeatedAuthorization,
    /// The apiserver refuses them.
    #[error("more than one token in Sec-WebSocket-Protocol")]
    RepeatedSubprotocol,
    /// A token in the form of a JWT whose payload is too long, is no JSON, or repeats a claim.
    #[error("token with claims that cannot be read without doubt")]
    Claims,
}

/// The tokens that one connection has used last, so that each is read once. The bytes are compared, not a hash: a
/// request must not be judged by the token of another one.
#[derive(Default)]
pub struct CredentialCache(Mutex<Vec<CachedToken>>);

struct CachedToken {
    text: Box<str>,
    token: Arc<BearerToken>,
}

impl Credentials {
    /// The credentials in this place; see [`Credentials::read`].
    ///
    /// # Errors
    ///
    /// When two readers could see different credentials.
    pub(super) fn of_request(
        headers: &HeaderMap,
        upgrade: Option<UpgradeToken>,
        place: CredentialPlace<'_>,
    ) -> Result<Self, CredentialError> {
        match place {
            CredentialPlace::Certificate => Ok(Self {
                is_certificate: true,
                ..Self::default()
            }),
            CredentialPlace::Fields(cache) => Self::read(headers, upgrade, cache),
        }
    }

    /// Reads the credentials. `upgrade` is the protocol that the request may switch to. The result is the same before
    /// and after `headers::rewrite_request`.
    ///
    /// # Errors
    ///
    /// When two readers could see different credentials.
    pub(super) fn read(
        headers: &HeaderMap,
        upgrade: Option<UpgradeToken>,
        cache: &CredentialCache,
    ) -> Result<Self, CredentialError> {
        let mut credentials = Self::default();
        let mut lines = headers.get_all(header::AUTHORIZATION).iter();
        let authorization = lines.next();
        if lines.next().is_some() {
            return Err(CredentialError::RepeatedAuthorization);
        }
        if let Some(authorization) = authorization {
            let text = String::from_utf8_lossy(authorization.as_bytes());
            credentials.has_basic = has_scheme(&text, "basic");
            if let Some(token) = bearer_token(&text) {
                credentials.bearer = Some(cache.read(token)?);
            }
        }
        // On any other request the apiserver ignores the subprotocols.
        if upgrade == Some(UpgradeToken::WebSocket) {
            credentials.websocket = websocket_token(headers, cache)?;
        }
        Ok(credentials)
    }

    /// The kind of each credential, with its issuer. The apiserver accepts the first one that is valid, so a rule that
    /// allows must allow each of them. Without a credential this is one of the kind `none`.
    pub(super) fn presented(&self) -> impl Iterator<Item = (CredentialKind, Option<&str>)> {
        let others = [
            (self.is_certificate, CredentialKind::Certificate),
            (self.has_basic, CredentialKind::Basic),
            (self.is_empty(), CredentialKind::None),
        ];
        let others = others.into_iter().filter(|(is_present, _)| *is_present);
        self.tokens()
            .map(|token| (token.kind, token.issuer.as_deref()))
            .chain(others.map(|(_, kind)| (kind, None)))
    }

    /// Whether the request has no credential, and not even a password, which the apiserver ignores.
    pub(super) fn is_empty(&self) -> bool {
        self.bearer.is_none() && self.websocket.is_none() && !self.has_basic && !self.is_certificate
    }

    /// The tokens, of which the apiserver accepts the first valid one.
    fn tokens(&self) -> impl Iterator<Item = &BearerToken> {
        [&self.bearer, &self.websocket]
            .into_iter()
            .flatten()
            .map(AsRef::as_ref)
    }

    /// The token that the apiserver has verified if it serves the request. `None` if there are two: it serves the
    /// request if one of them is valid, and does not say which.
    pub(super) fn into_only_token(self) -> Option<Arc<BearerToken>> {
        match (self.bearer, self.websocket) {
            (Some(token), None) | (None, Some(token)) => Some(token),
            (None, None) | (Some(_), Some(_)) => None,
        }
    }
}

/// The token among the subprotocols. The apiserver ignores an empty one, but refuses a second one of any kind.
fn websocket_token(
    headers: &HeaderMap,
    cache: &CredentialCache,
) -> Result<Option<Arc<BearerToken>>, CredentialError> {
    let mut found = None;
    for line in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        let line = String::from_utf8_lossy(line.as_bytes());
        for item in line.split(',').map(str::trim) {
            if let Some(encoded) = item.strip_prefix(WEBSOCKET_TOKEN)
                && found.replace(encoded.to_owned()).is_some()
            {
                return Err(CredentialError::RepeatedSubprotocol);
            }
        }
    }
    let Some(encoded) = found.filter(|encoded| !encoded.is_empty()) else {
        return Ok(None);
    };
    let token = BASE64URL.decode(encoded).ok();
    match token.and_then(|token| String::from_utf8(token).ok()) {
        Some(token) => cache.read(&token).map(Some),
        None => Ok(Some(Arc::new(BearerToken::OPAQUE))),
    }
}

/// Whether the value of an `Authorization` field has this scheme. Go's `strings.TrimSpace` and Rust's `trim` remove the
/// same characters; a tab between scheme and token is none of them.
fn has_scheme(authorization: &str, scheme: &str) -> bool {
    let found = authorization.trim().split(' ').next().unwrap_or_default();
    found.eq_ignore_ascii_case(scheme)
}

/// The token of an `Authorization` field: the second of the words that single spaces separate. Two spaces make it
/// empty, and the apiserver then ignores the field.
fn bearer_token(authorization: &str) -> Option<&str> {
    let token = authorization.trim().split(' ').nth(1)?;
    (has_scheme(authorization, "bearer") && !token.is_empty()).then_some(token)
}

/// The payload of the JWT in the value of an `Authorization` field.
pub(super) fn jwt_payload(authorization: &HeaderValue) -> Option<Vec<u8>> {
    let text = String::from_utf8_lossy(authorization.as_bytes());
    payload(bearer_token(&text)?).ok()?
}

/// The decoded payload of a token with three parts (RFC 7519); `None` for any other token.
fn payload(token: &str) -> Result<Option<Vec<u8>>, CredentialError> {
    let mut parts = token.split('.').skip(1);
    let (Some(payload), Some(_signature), None) = (parts.next(), parts.next(), parts.next()) else {
        return Ok(None);
    };
    if payload.len() > MAX_PAYLOAD.div_ceil(3) * 4 {
        return Err(CredentialError::Claims);
    }
    // Go's decoder skips line breaks, which a token of a subprotocol may contain.
    let payload = payload.replace(['\r', '\n'], "");
    Ok(BASE64URL.decode(payload).ok())
}

impl BearerToken {
    const OPAQUE: Self = Self {
        kind: CredentialKind::Opaque,
        issuer: None,
        subject: None,
    };

    fn parse(token: &str) -> Result<Self, CredentialError> {
        let payload = payload(token)?;
        let Some(payload) = payload.filter(|json| json.trim_ascii_start().starts_with(b"{")) else {
            return Ok(Self::OPAQUE);
        };
        // Go replaces bytes that are no UTF-8, too.
        let payload = String::from_utf8_lossy(&payload);
        let claims: Claims = serde_json::from_str(&payload).map_err(|_| CredentialError::Claims)?;
        Ok(claims.into())
    }
}

/// The claims that decide.
#[derive(Default)]
struct Claims {
    issuer: Option<Value>,
    subject: Option<Value>,
    /// Whether the name of the claim is exactly `sub`. The apiserver reads no user from any other spelling.
    has_exact_subject: bool,
    /// The claim of service accounts.
    kubernetes: Option<Value>,
    /// The claims of service accounts whose token never expires.
    legacy_namespace: Option<Value>,
    legacy_name: Option<Value>,
    is_legacy: bool,
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClaimsVisitor)
    }
}

struct ClaimsVisitor;

impl<'de> Visitor<'de> for ClaimsVisitor {
    type Value = Claims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the claims of a JWT")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
        let mut claims = Claims::default();
        while let Some(name) = map.next_key::<String>()? {
            let folded: String = name.chars().map(fold).collect();
            claims.is_legacy |= folded.starts_with(LEGACY_PREFIX);
            let slot = match folded.as_str() {
                "iss" => &mut claims.issuer,
                "sub" => {
                    claims.has_exact_subject = name == "sub";
                    &mut claims.subject
                }
                "kubernetes.io" => &mut claims.kubernetes,
                LEGACY_NAMESPACE => &mut claims.legacy_namespace,
                LEGACY_NAME => &mut claims.legacy_name,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            // One decoder of the apiserver uses the last claim of a name in any case, and another one refuses the
            // token.
            if slot.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom("a claim is given twice"));
            }
        }
        Ok(claims)
    }
}

/// Go's JSON decoder takes these characters for equal in the name of a claim.
fn fold(char: char) -> char {
    match char {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        char => char.to_ascii_lowercase(),
    }
}

impl From<Claims> for BearerToken {
    fn from(claims: Claims) -> Self {
        let text = |value: Option<Value>| value?.as_str().map(str::to_owned);
        let issuer = text(claims.issuer);
        let mut subject = text(claims.subject).filter(|_| claims.has_exact_subject);
        let legacy = claims
            .legacy_namespace
            .as_ref()
            .zip(claims.legacy_name.as_ref());
        let is_service_account = claims.is_legacy
            || claims.kubernetes.is_some()
            || issuer.as_deref() == Some(LEGACY_ISSUER);
        if is_service_account {
            let bound = claims.kubernetes.as_ref().and_then(|claim| {
                let name = claim.pointer("/serviceaccount/name")?;
                Some((claim.get("namespace")?, name))
            });
            // The apiserver takes the name from these claims, so the subject must agree with them.
            let account = bound.or(legacy).and_then(|(namespace, name)| {
                let (namespace, name) = (namespace.as_str()?, name.as_str()?);
                Some(format!("system:serviceaccount:{namespace}:{name}"))
            });
            subject = subject.filter(|subject| account.as_ref() == Some(subject));
        }
        Self {
            kind: if is_service_account {
                CredentialKind::ServiceAccount
            } else {
                CredentialKind::Jwt
            },
            issuer: issuer.map(Into::into),
            subject: subject.map(Into::into),
        }
    }
}

impl CredentialCache {
    fn read(&self, text: &str) -> Result<Arc<BearerToken>, CredentialError> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cached.iter().find(|known| *known.text == *text) {
            return Ok(Arc::clone(&known.token));
        }
        let token = Arc::new(BearerToken::parse(text)?);
        // An opaque token is read as fast as it is found here.
        if token.kind != CredentialKind::Opaque && text.len() <= MAX_CACHED_TOKEN {
            if cached.len() >= MAX_CACHED {
                cached.remove(0);
            }
            cached.push(CachedToken {
                text: text.into(),
                token: Arc::clone(&token),
            });
        }
        Ok(token)
    }
}

impl fmt::Debug for CredentialCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialCache")
    }
}

/// Fuzz target: the first line of `bytes` is an `Authorization` field, the rest a subprotocol. Nothing panics, a cached
/// token reads the same, and a token is the same in both places.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for name in [header::AUTHORIZATION, header::SEC_WEBSOCKET_PROTOCOL] {
        if let Ok(value) = HeaderValue::from_bytes(parts.next().unwrap_or_default()) {
            headers.append(name, value);
        }
    }
    let (cache, upgrade) = (CredentialCache::default(), Some(UpgradeToken::WebSocket));
    let read = Credentials::read(&headers, upgrade, &cache);
    assert_eq!(read, Credentials::read(&headers, upgrade, &cache), "cached");
    if let Ok(credentials) = &read {
        for token in credentials.tokens() {
            let is_opaque = token.kind == CredentialKind::Opaque;
            assert!(!is_opaque || token.issuer.is_none() && token.subject.is_none());
        }
        assert!(credentials.presented().next().is_some(), "no kind");
    }
    let authorization = headers.get(header::AUTHORIZATION).cloned();
    let text = authorization
        .as_ref()
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    if let Some(token) = text.as_deref().and_then(bearer_token) {
        let encoded = format!("{WEBSOCKET_TOKEN}{}", BASE64URL.encode(token));
        headers.remove(header::AUTHORIZATION);
        let encoded = HeaderValue::try_from(encoded).expect("base64url is a valid field value");
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, encoded);
        let moved = Credentials::read(&headers, upgrade, &CredentialCache::default());
        assert_eq!(
            moved.map(|read| read.websocket),
            BearerToken::parse(token).map(|token| Some(Arc::new(token))),
            "the place of a token changes it"
        );
    }
}

const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const LEGACY_PREFIX: &str = "kubernetes.io/serviceaccount/";
const LEGACY_NAMESPACE: &str = "kubernetes.io/serviceaccount/namespace";
const LEGACY_NAME: &str = "kubernetes.io/serviceaccount/service-account.name";
/// Bytes of a payload. A token with hundreds of groups is shorter.
const MAX_PAYLOAD: usize = 16 * 1024;
/// Tokens that one connection remembers: the connection of a dashboard has those of several users.
const MAX_CACHED: usize = 4;
/// Bytes of a token that a connection remembers. A longer one is read for each request.
const MAX_CACHED_TOKEN: usize = 4 * 1024;
/// RFC 7515 §2 has no padding, but some issuers write it. Go ignores the last bits, which belong to no byte.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests;
