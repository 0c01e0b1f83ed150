//! Decides by the access rules of a cluster whether a request may pass.
//!
//! The rules only refuse: the apiserver authenticates and authorizes what passes. So no rule needs to verify a token.
//! What can be read in more than one way is judged in each of them, and each must be allowed: every credential of the
//! request, and both verbs of exec, attach and port-forward. A path whose meaning depends on who reads it is refused
//! ([`path`]). Nothing is sent upstream, and no connection is leased, before a request has passed.

mod path;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr, sync::Arc};

use http::{Method, Uri, header, request::Parts};

pub(super) use path::readings;

use super::{
    Error, Rejection,
    credential::{CredentialCache, CredentialError, CredentialPlace, Credentials},
    request_info::RequestInfo,
};
use crate::{
    cidr::AddressList,
    config::{AccessRule, CONNECTIONS, CredentialKind, RuleEffect},
    text::escape,
    upgrade_token::UpgradeToken,
};

/// The rules of one cluster.
#[derive(Debug)]
pub struct AccessRules {
    cluster: Arc<str>,
    rules: Vec<AccessRule>,
    /// Whether a rule looks at what a request asks for.
    judges_request: bool,
    /// Whether a rule looks at the credential of a request.
    judges_credential: bool,
}

/// What the rules decide about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessDecision {
    /// This rule allows it. The first rule is 1.
    Allowed(u16),
    /// This rule denies it, or none allows it.
    Denied(Option<u16>),
}

/// Why a request may not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    cluster: Arc<str>,
    /// The rule that denies it; `None` if none allows it.
    rule: Option<u16>,
    client: IpAddr,
    /// The resource, or the path of a request without one. Safe to print.
    asked: String,
    /// The kind of the credential that may not pass, if the rule looks at credentials.
    credential: Option<CredentialKind>,
    is_anonymous: bool,
}

/// What a rule looks at.
#[derive(Debug, Clone, Copy)]
struct AskedBy<'a> {
    client: IpAddr,
    kind: CredentialKind,
    issuer: Option<&'a str>,
    info: &'a RequestInfo<'a>,
    /// `None` for a method whose verb only the apiserver knows.
    verb: Option<&'a str>,
    path: &'a str,
}

impl AccessRules {
    /// The rules of a cluster. `None` without a rule: every request may pass then.
    #[must_use]
    pub fn new(cluster: &str, rules: &[AccessRule]) -> Option<Self> {
        (!rules.is_empty()).then(|| Self {
            cluster: cluster.into(),
            judges_request: rules.iter().any(AccessRule::selects_request),
            judges_credential: rules.iter().any(AccessRule::selects_credential),
            rules: rules.to_vec(),
        })
    }

    /// Checks a request before anything of it is sent upstream.
    ///
    /// # Errors
    ///
    /// When the rules deny it, or when it could be read in more than one way.
    pub(super) fn check(
        &self,
        head: &Parts,
        client: IpAddr,
        upgrade: Option<UpgradeToken>,
        place: CredentialPlace<'_>,
    ) -> Result<(), Error> {
        let (decision, kind) = self.decide(head, client, upgrade, place)?;
        let AccessDecision::Denied(rule) = decision else {
            return Ok(());
        };
        let info = RequestInfo::new(&head.method, &head.uri);
        let resource = info.resource_name();
        let asked = if resource.is_empty() {
            head.uri.path()
        } else {
            &resource
        };
        let credentials = Credentials::of_request(&head.headers, upgrade, place);
        Err(Error::Denied(Box::new(Denial {
            cluster: Arc::clone(&self.cluster),
            rule,
            client: client.to_canonical(),
            asked: escape(asked, MAX_ASKED_CHARS).to_string(),
            credential: kind,
            is_anonymous: credentials.is_ok_and(|credentials| credentials.is_empty()),
        })))
    }

    /// The decision, and the kind of the credential that is denied if the rule looks at credentials.
    ///
    /// # Errors
    ///
    /// When the request could be read in more than one way.
    fn decide(
        &self,
        head: &Parts,
        client: IpAddr,
        upgrade: Option<UpgradeToken>,
        place: CredentialPlace<'_>,
    ) -> Result<(AccessDecision, Option<CredentialKind>), Rejection> {
        if self.judges_request && !path::has_one_meaning(&head.method, &head.uri) {
            return Err(Rejection::AmbiguousPath);
        }
        let info = RequestInfo::new(&head.method, &head.uri);
        let verbs = verbs(
            &info,
            &head.method,
            head.headers.contains_key(header::UPGRADE),
        );
        let asked = AskedBy {
            client,
            kind: CredentialKind::None,
            issuer: None,
            info: &info,
            verb: None,
            path: head.uri.path(),
        };
        if !self.judges_credential {
            let mut lines = head.headers.get_all(header::AUTHORIZATION).iter();
            if lines.nth(1).is_some() {
                return Err(CredentialError::RepeatedAuthorization.into());
            }
            return Ok((self.decide_all(asked, &verbs), None));
        }
        let credentials = Credentials::of_request(&head.headers, upgrade, place)?;
        let mut decision = AccessDecision::Denied(None);
        for (kind, issuer) in credentials.presented() {
            let asked = AskedBy {
                kind,
                issuer,
                ..asked
            };
            decision = self.decide_all(asked, &verbs);
            if let AccessDecision::Denied(rule) = decision {
                return Ok((
                    decision,
                    Some(kind).filter(|_| self.is_about_credential(rule)),
                ));
            }
        }
        Ok((decision, None))
    }

    /// Whether this rule looks at credentials; without a rule, whether any does.
    fn is_about_credential(&self, rule: Option<u16>) -> bool {
        let rule = rule.and_then(|rule| self.rules.get(usize::from(rule).checked_sub(1)?));
        rule.map_or(self.judges_credential, AccessRule::selects_credential)
    }

    /// The decision about a request that could have each of these verbs.
    fn decide_all(&self, asked: AskedBy<'_>, verbs: &[Option<&str>]) -> AccessDecision {
        let mut decision = AccessDecision::Denied(None);
        for verb in verbs {
            decision = self.decide_one(AskedBy {
                verb: *verb,
                ..asked
            });
            if matches!(decision, AccessDecision::Denied(_)) {
                break;
            }
        }
        decision
    }

    fn decide_one(&self, asked: AskedBy<'_>) -> AccessDecision {
        let mut numbered = self.rules.iter().zip(1..);
        match numbered.find(|(rule, _)| asked.matches(rule)) {
            Some((rule, number)) if rule.effect == RuleEffect::Allow => {
                AccessDecision::Allowed(number)
            }
            Some((_, number)) => AccessDecision::Denied(Some(number)),
            None => AccessDecision::Denied(None),
        }
    }
}

impl AskedBy<'_> {
    fn matches(&self, rule: &AccessRule) -> bool {
        self.matches_client(rule)
            && self.matches_credential(rule)
            && self.matches_verb(rule)
            && self.matches_resource(rule)
            && (rule.paths.is_empty()
                || !self.info.is_resource && rule.paths.iter().any(|path| path.matches(self.path)))
    }

    fn matches_client(&self, rule: &AccessRule) -> bool {
        let is_in = |list: &AddressList| list.contains(self.client);
        rule.from.as_ref().is_none_or(is_in) && !rule.unless_from.as_ref().is_some_and(is_in)
    }

    fn matches_credential(&self, rule: &AccessRule) -> bool {
        // kube-apiserver has ignored passwords since 1.19. Without this, any `Basic x` would open what a rule closes to
        // anonymous requests.
        let counts_as_none = rule.effect == RuleEffect::Deny && self.kind == CredentialKind::Basic;
        let is_kind = |kind: &CredentialKind| {
            *kind == self.kind || counts_as_none && *kind == CredentialKind::None
        };
        let is_issuer =
            |issuer: &String| self.issuer.is_some_and(|found| same_issuer(found, issuer));
        (rule.credentials.is_empty() || rule.credentials.iter().any(is_kind))
            && (rule.issuers.is_empty() || rule.issuers.iter().any(is_issuer))
    }

    fn matches_verb(&self, rule: &AccessRule) -> bool {
        let mut verbs = rule.verbs.iter();
        rule.verbs.is_empty()
            || match self.verb {
                Some(verb) => verbs.any(|pattern| pattern.matches(verb)),
                None => rule.effect == RuleEffect::Deny || verbs.any(|pattern| pattern.is_any()),
            }
    }

    fn matches_resource(&self, rule: &AccessRule) -> bool {
        if rule.resources.is_empty() && rule.namespaces.is_empty() {
            return true;
        }
        let info = self.info;
        let subresource = info.subresource.as_deref();
        let mut resources = rule.resources.iter();
        let is_resource = rule.resources.is_empty()
            || resources.any(|one| one.matches(&info.group, &info.resource, subresource));
        let mut namespaces = rule.namespaces.iter();
        let is_namespace = rule.namespaces.is_empty()
            || namespaces.any(|one| one.matches(&info.namespace))
            // `kubectl get secrets -A` reads the secrets of every namespace.
            || rule.effect == RuleEffect::Deny && self.reaches_all_namespaces();
        info.is_resource && is_resource && is_namespace
    }

    /// Whether the request is about the objects of all namespaces at once. A custom resource that has no namespace
    /// looks the same.
    fn reaches_all_namespaces(&self) -> bool {
        let info = self.info;
        let is_about_many = matches!(
            self.verb,
            None | Some("list" | "watch" | "deletecollection")
        );
        is_about_many
            && info.namespace.is_empty()
            && !is_cluster_scoped(&info.group, &info.resource)
    }
}

/// The verbs that a request may have. The verb of exec, attach and port-forward is that of the method, `get` for
/// WebSocket and `create` for SPDY; from 1.35 the apiserver also requires `create`. An upgrade through `proxy` can be
/// an exec, too.
fn verbs<'a>(info: &RequestInfo<'a>, method: &Method, is_upgrade: bool) -> Vec<Option<&'a str>> {
    let is_known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ]
    .contains(method);
    let verb = Some(info.verb).filter(|verb| is_known && !verb.is_empty());
    match info.subresource.as_deref() {
        Some(name) if CONNECTIONS.contains(&name) => vec![Some("get"), Some("create"), verb],
        Some("proxy") if is_upgrade => vec![verb, Some("create")],
        _ => vec![verb],
    }
}

/// Whether both are the same issuer. The apiserver takes the two spellings of Google for one.
fn same_issuer(one: &str, other: &str) -> bool {
    let full = |issuer| {
        if issuer == "accounts.google.com" {
            "https://accounts.google.com"
        } else {
            issuer
        }
    };
    full(one) == full(other)
}

/// Whether a resource that kube-apiserver itself serves has no namespace.
fn is_cluster_scoped(group: &str, resource: &str) -> bool {
    match group {
        "" => matches!(
            resource,
            "componentstatuses" | "namespaces" | "nodes" | "persistentvolumes"
        ),
        "admissionregistration.k8s.io"
        | "apiextensions.k8s.io"
        | "apiregistration.k8s.io"
        | "certificates.k8s.io"
        | "flowcontrol.apiserver.k8s.io"
        | "internal.apiserver.k8s.io"
        | "node.k8s.io"
        | "scheduling.k8s.io"
        | "storagemigration.k8s.io" => true,
        "networking.k8s.io" => {
            matches!(resource, "ingressclasses" | "ipaddresses" | "servicecidrs")
        }
        "rbac.authorization.k8s.io" => matches!(resource, "clusterroles" | "clusterrolebindings"),
        "resource.k8s.io" => matches!(resource, "deviceclasses" | "resourceslices"),
        "storage.k8s.io" => resource != "csistoragecapacities",
        _ => false,
    }
}

impl Denial {
    /// The rule that denies the request; `None` if none allows it.
    pub(super) fn rule(&self) -> Option<u16> {
        self.rule
    }

    /// Whether the request has no credential, so that one may help.
    pub(super) fn is_anonymous(&self) -> bool {
        self.is_anonymous
    }

    /// The sentence for the client.
    pub(super) fn message(&self) -> String {
        let who = self.credential.map_or("", |kind| match kind {
            CredentialKind::None => "a request without a credential from ",
            CredentialKind::Certificate => "a client certificate from ",
            CredentialKind::ServiceAccount => "the token of a service account from ",
            CredentialKind::Jwt | CredentialKind::Opaque => "this token from ",
            CredentialKind::Basic => "a password from ",
        });
        let (asked, client, cluster) = (&self.asked, self.client, &self.cluster);
        match self.rule {
            Some(rule) => {
                format!("{asked} is not open to {who}{client} (rule {rule} of cluster {cluster})")
            }
            None => format!(
                "{asked} is not open to {who}{client} (no rule of cluster {cluster} allows it)"
            ),
        }
    }
}

/// For the log and the status page, where equal errors are one entry.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "denied by access rule {rule}"),
            None => f.write_str("no access rule allows it"),
        }
    }
}

impl std::error::Error for Denial {}

/// What the rules of a cluster decide about a request of `check --explain-access`. With a certificate that counts, the
/// rules look at no token, as in the proxy.
///
/// # Errors
///
/// When the proxy would refuse the request before it asks the rules.
pub(crate) fn explain(
    rules: &AccessRules,
    head: &Parts,
    client: IpAddr,
    has_certificate: bool,
) -> Result<(AccessDecision, Option<CredentialKind>), Rejection> {
    let upgrade = UpgradeToken::requested_by(head);
    let cache = CredentialCache::default();
    let place = if has_certificate {
        CredentialPlace::Certificate
    } else {
        CredentialPlace::Fields(&cache)
    };
    rules.decide(head, client, upgrade, place)
}

/// The decision of rules about a request without a credential, for the comparison with a real apiserver
/// (tests/cluster). `None` if the proxy refuses the spelling of its path.
#[must_use]
pub fn is_open(rules: &AccessRules, method: &Method, uri: &Uri) -> Option<bool> {
    let mut request = http::Request::new(());
    (*request.method_mut(), *request.uri_mut()) = (method.clone(), uri.clone());
    let (head, ()) = request.into_parts();
    let decision = explain(rules, &head, IpAddr::from([192, 0, 2, 1]), false).ok()?;
    Some(matches!(decision.0, AccessDecision::Allowed(_)))
}

/// Fuzz target: `bytes` are a path. Nothing panics, and a path that is open is also open in every other reading.
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from([b"/", bytes].concat()) else {
        return;
    };
    let deny = AccessRule {
        resources: ["secrets", "pods/exec", "nodes/proxy"]
            .map(str::parse)
            .into_iter()
            .flatten()
            .collect(),
        ..AccessRule::new(RuleEffect::Deny)
    };
    let close = AccessRule {
        paths: ["/metrics", "/logs/*"]
            .map(str::parse)
            .into_iter()
            .flatten()
            .collect(),
        ..AccessRule::new(RuleEffect::Deny)
    };
    let rules = [deny, close, AccessRule::new(RuleEffect::Allow)];
    let rules = AccessRules::new("fuzz", &rules).expect("there are three rules");
    if is_open(&rules, &Method::GET, &uri) == Some(true) {
        for reading in readings(uri.path()) {
            if let Ok(reading) = reading.parse::<Uri>() {
                let found = is_open(&rules, &Method::GET, &reading);
                assert_ne!(found, Some(false), "{uri} is open, but {reading} is not");
            }
        }
    }
}

/// Characters of a resource or path in a message.
const MAX_ASKED_CHARS: usize = 200;
