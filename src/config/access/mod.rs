//! The access rules of a cluster: the keys of the file, the patterns in them, and warnings about rules that cannot do
//! what their author means.
//!
//! A pattern that no request can match would silently open what a rule should close, so a value that is certainly wrong
//! is an error. A value that a newer apiserver may know, such as a verb, is only a warning.

mod patterns;

use std::str::FromStr;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{ConfigError, CredentialKind, SettingError, config_file::Parsed, source::ConfigSource};
use crate::{cidr::AddressList, quote};
pub(crate) use patterns::CONNECTIONS;
pub use patterns::{NamespacePattern, PathPattern, ResourcePattern, VerbPattern};

/// Who may send what to a cluster. The first rule that matches a request decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// What the rule does with a request that all of its selectors match.
    pub effect: RuleEffect,
    /// The client is one of these.
    pub from: Option<AddressList>,
    /// The client is none of these.
    pub unless_from: Option<AddressList>,
    /// The kinds of credentials; empty for every kind. So are all lists below.
    pub credentials: Vec<CredentialKind>,
    /// The issuers of the token.
    pub issuers: Vec<String>,
    /// The verbs.
    pub verbs: Vec<VerbPattern>,
    /// The resources.
    pub resources: Vec<ResourcePattern>,
    /// The namespaces.
    pub namespaces: Vec<NamespacePattern>,
    /// The paths that name no resource.
    pub paths: Vec<PathPattern>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleEffect {
    /// The request goes to the apiserver.
    Allow,
    /// The proxy refuses the request.
    Deny,
}

/// The issuer of a token, as in its claim `iss`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issuer(String);

/// One rule of a cluster: `allow` or `deny`, with the requests that it is for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AccessRuleEntry {
    /// Requests that may pass; `{}` for all of them.
    allow: Option<SelectorsEntry>,
    /// Requests that the proxy refuses; `{}` for all of them.
    deny: Option<SelectorsEntry>,
}

/// The requests that a rule is for: those that match every key. A key matches if one item of its list does.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SelectorsEntry {
    /// Addresses of clients: ADDRESS or ADDRESS/BITS.
    #[schemars(with = "Option<AddressList>")]
    from: Option<Spanned<AddressList>>,
    /// Addresses of clients that the rule is not for.
    #[schemars(with = "Option<AddressList>")]
    unless_from: Option<Spanned<AddressList>>,
    /// Kinds of credentials.
    #[schemars(with = "Option<Vec<CredentialKindName>>")]
    credentials: Option<Spanned<Vec<Parsed<CredentialKind>>>>,
    /// Issuers of tokens, exactly as the claim `iss` has them.
    #[schemars(with = "Option<Vec<String>>")]
    issuers: Option<Spanned<Vec<Parsed<Issuer>>>>,
    /// Verbs of Kubernetes, or methods in lower case for `paths`.
    #[schemars(with = "Option<Vec<String>>")]
    verbs: Option<Spanned<Vec<Parsed<VerbPattern>>>>,
    /// RESOURCE, RESOURCE/SUBRESOURCE, GROUP/RESOURCE or GROUP/RESOURCE/SUBRESOURCE; each part may be `*`.
    #[schemars(with = "Option<Vec<String>>")]
    resources: Option<Spanned<Vec<Parsed<ResourcePattern>>>>,
    /// Namespaces; a name may end with `*`.
    #[schemars(with = "Option<Vec<String>>")]
    namespaces: Option<Spanned<Vec<Parsed<NamespacePattern>>>>,
    /// Paths that name no resource; a path may end with `*`.
    #[schemars(with = "Option<Vec<String>>")]
    paths: Option<Spanned<Vec<Parsed<PathPattern>>>>,
}

/// The kind of a credential; `none` is a request without one.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase", inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum CredentialKindName {
    None,
    Certificate,
    ServiceAccount,
    Jwt,
    Opaque,
    Basic,
}

/// The rules of a cluster, checked.
///
/// # Errors
///
/// A rule that can match no request, or a list without a rule.
pub(super) fn rules(
    entries: &Spanned<Vec<Spanned<AccessRuleEntry>>>,
    source: &ConfigSource,
) -> Result<Vec<AccessRule>, ConfigError> {
    let refused = |problem| SettingError::Access { problem };
    if entries.value.is_empty() {
        return Err(source.error_at(entries, refused(NO_RULES)));
    }
    if entries.value.len() > MAX_RULES {
        return Err(source.error_at(entries, refused(TOO_MANY_RULES)));
    }
    let each = entries.value.iter().map(|entry| {
        let (effect, selectors) = match (&entry.value.allow, &entry.value.deny) {
            (Some(selectors), None) => (RuleEffect::Allow, selectors),
            (None, Some(selectors)) => (RuleEffect::Deny, selectors),
            (None, None) => return Err(source.error_at(entry, refused(NO_EFFECT))),
            (Some(_), Some(_)) => return Err(source.error_at(entry, refused(TWO_EFFECTS))),
        };
        let rule = selectors.rule(effect, source)?;
        let problem = rule.contradiction();
        problem.map_or(Ok(rule), |problem| {
            Err(source.error_at(entry, refused(problem)))
        })
    });
    each.collect()
}

impl SelectorsEntry {
    fn rule(&self, effect: RuleEffect, source: &ConfigSource) -> Result<AccessRule, ConfigError> {
        Ok(AccessRule {
            effect,
            from: addresses(self.from.as_ref(), source)?,
            unless_from: addresses(self.unless_from.as_ref(), source)?,
            credentials: list(self.credentials.as_ref(), source)?,
            issuers: list(self.issuers.as_ref(), source)?
                .into_iter()
                .map(|issuer| issuer.0)
                .collect(),
            verbs: list(self.verbs.as_ref(), source)?,
            resources: list(self.resources.as_ref(), source)?,
            namespaces: list(self.namespaces.as_ref(), source)?,
            paths: list(self.paths.as_ref(), source)?,
        })
    }
}

/// The addresses of a key. An empty list is refused, because it could mean all addresses or none.
fn addresses(
    given: Option<&Spanned<AddressList>>,
    source: &ConfigSource,
) -> Result<Option<AddressList>, ConfigError> {
    match given {
        Some(list) if list.value.is_empty() => Err(source.error_at(list, EMPTY_LIST)),
        Some(list) => Ok(Some(list.value.clone())),
        None => Ok(None),
    }
}

fn list<T: Clone>(
    given: Option<&Spanned<Vec<Parsed<T>>>>,
    source: &ConfigSource,
) -> Result<Vec<T>, ConfigError> {
    match given {
        Some(list) if list.value.is_empty() => Err(source.error_at(list, EMPTY_LIST)),
        Some(list) => Ok(list.value.iter().map(|item| item.0.clone()).collect()),
        None => Ok(Vec::new()),
    }
}

impl AccessRule {
    /// A rule for every request.
    #[must_use]
    pub fn new(effect: RuleEffect) -> Self {
        Self {
            effect,
            from: None,
            unless_from: None,
            credentials: Vec::new(),
            issuers: Vec::new(),
            verbs: Vec::new(),
            resources: Vec::new(),
            namespaces: Vec::new(),
            paths: Vec::new(),
        }
    }

    /// Whether the rule looks at what a request asks for.
    #[must_use]
    pub fn selects_request(&self) -> bool {
        self.selects_resource() || !self.verbs.is_empty() || !self.paths.is_empty()
    }

    /// Whether the rule looks at the credential of a request.
    #[must_use]
    pub fn selects_credential(&self) -> bool {
        !self.credentials.is_empty() || !self.issuers.is_empty()
    }

    fn selects_resource(&self) -> bool {
        !self.resources.is_empty() || !self.namespaces.is_empty()
    }

    /// Whether every request matches.
    fn matches_everything(&self) -> bool {
        self.from.is_none()
            && self.unless_from.is_none()
            && !self.selects_credential()
            && !self.selects_request()
    }

    /// Why no request can match.
    fn contradiction(&self) -> Option<&'static str> {
        let may_have_issuer = |kind: &CredentialKind| {
            matches!(kind, CredentialKind::ServiceAccount | CredentialKind::Jwt)
        };
        if !self.paths.is_empty() && self.selects_resource() {
            Some(PATHS_AND_RESOURCES)
        } else if !self.issuers.is_empty()
            && !self.credentials.is_empty()
            && !self.credentials.iter().any(may_have_issuer)
        {
            Some(ISSUERS_WITHOUT_TOKEN)
        } else if self.from.is_some() && self.from == self.unless_from {
            Some(SAME_ADDRESSES)
        } else {
            None
        }
    }

    /// What is suspicious about the rule, each as a sentence after `rule 3 of cluster prod`, with the fix at its end.
    fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        let (known, of) = if self.selects_resource() {
            (RESOURCE_VERBS.to_vec(), "for resources")
        } else if self.paths.is_empty() {
            let only_of_paths = PATH_VERBS
                .iter()
                .filter(|verb| !RESOURCE_VERBS.contains(verb));
            let all = RESOURCE_VERBS.iter().chain(only_of_paths);
            (all.copied().collect(), "for any request")
        } else {
            (PATH_VERBS.to_vec(), "for paths")
        };
        let is_wrong = |verb: &&VerbPattern| verb.0 != "*" && !known.contains(&verb.0.as_str());
        for verb in self.verbs.iter().filter(is_wrong) {
            doubts.push(format!(
                "has the verb `{}`, which no request has {of}; write one of {}",
                quote::value(&verb.0),
                known.join(", ")
            ));
        }
        if !self.verbs.is_empty()
            && let Some(name) = self.resources.iter().find_map(ResourcePattern::connection)
        {
            doubts.push(format!(
                "names verbs for {name}, whose verb depends on client and version (`get` or `create`), so that a request passes only if \
                 the rules allow both; remove `verbs`, or give {name} a rule of its own"
            ));
        }
        for pattern in &self.resources {
            if let Some(known) = pattern.unknown_in_core() {
                doubts.push(format!(
                    "names the resource `{}`, which the core group does not have; write {known}",
                    quote::value(&pattern.core_name())
                ));
            }
        }
        doubts
    }
}

/// What is suspicious about the rules of a cluster, as sentences that end with the fix.
pub(super) fn warnings(cluster: &str, rules: &[AccessRule]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (rule, number) in rules.iter().zip(1..) {
        let doubts = rule.doubts().into_iter();
        warnings.extend(
            doubts.map(|doubt| format!("access rule {number} of cluster {cluster} {doubt}")),
        );
    }
    let all = rules.iter().position(AccessRule::matches_everything);
    if let Some(all) = all
        && all + 1 < rules.len()
    {
        let (all, next) = (all + 1, all + 2);
        warnings.push(format!(
            "access rule {next} of cluster {cluster} has no effect, because rule {all} matches every request; \
             move rule {all} to the end, or remove the rules after it"
        ));
    }
    if rules.iter().all(|rule| rule.effect == RuleEffect::Deny) {
        warnings.push(format!(
            "the access rules of cluster {cluster} allow nothing, because a request that no rule matches is denied; \
             add `- allow: {{}}` at the end, or an `allow` rule for what may pass"
        ));
    } else if !rules
        .iter()
        .any(|rule| rule.effect == RuleEffect::Allow && !rule.selects_resource())
    {
        warnings.push(format!(
            "the access rules of cluster {cluster} allow no discovery, which kubectl needs before most commands; \
             add an `allow` rule with `paths: [/api, /api/*, /apis, /apis/*, /openapi/*, /version]`"
        ));
    }
    warnings
}

impl FromStr for CredentialKind {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let found = KINDS.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| SettingError::invalid(text, NOT_A_KIND))
    }
}

impl FromStr for Issuer {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        if text.trim().is_empty() || text.trim() != text {
            return Err(SettingError::invalid(text, NOT_AN_ISSUER));
        }
        Ok(Self(text.to_owned()))
    }
}

const KINDS: [CredentialKind; 6] = [
    CredentialKind::None,
    CredentialKind::Certificate,
    CredentialKind::ServiceAccount,
    CredentialKind::Jwt,
    CredentialKind::Opaque,
    CredentialKind::Basic,
];
/// More rules than any person can keep in mind. Each is a value of a metric label.
const MAX_RULES: usize = 100;
const RESOURCE_VERBS: [&str; 9] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "proxy",
];
const PATH_VERBS: [&str; 7] = ["get", "head", "post", "put", "patch", "delete", "options"];

const EMPTY_LIST: SettingError = SettingError::Access {
    problem: "the list is empty, so the rule would match nothing; add an item, or remove the key",
};
const NO_RULES: &str =
    "`access` has no rule, so it would deny every request; add a rule, or remove the key";
const TOO_MANY_RULES: &str = "`access` has more than 100 rules; join rules with the same effect";
const NO_EFFECT: &str = "the rule has neither `allow` nor `deny`; write one of them, with `{}` if it is for every request";
const TWO_EFFECTS: &str = "the rule has both `allow` and `deny`; make two rules of it";
const PATHS_AND_RESOURCES: &str = "no request matches both `paths` and `resources` or `namespaces`, because `paths` are for requests without a resource; make two rules of it";
const ISSUERS_WITHOUT_TOKEN: &str = "only tokens of the kinds `jwt` and `serviceAccount` have an issuer; remove `credentials` or `issuers`, or make two rules of it";
const SAME_ADDRESSES: &str =
    "`from` and `unlessFrom` have the same addresses, so no request matches; remove one of them";
const NOT_A_KIND: &str =
    "is not a kind of credential; write none, certificate, serviceAccount, jwt, opaque or basic";
const NOT_AN_ISSUER: &str =
    "is not an issuer; write the claim `iss` of the tokens, such as https://login.example.com";
