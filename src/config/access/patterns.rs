//! The patterns of access rules: verbs, resources, namespaces and paths.
//!
//! They mean what they mean in RBAC, with two additions: a resource names its group in front, and `*` may end the
//! name of a namespace.

use std::str::FromStr;

use crate::config::SettingError;

/// A verb, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerbPattern(pub(super) String);

/// The resources that `GROUP/RESOURCE/SUBRESOURCE` names. A group or a resource without a name here is any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourcePattern {
    group: Option<String>,
    resource: Option<String>,
    subresource: SubresourcePattern,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SubresourcePattern {
    /// The resource itself.
    Absent,
    /// Any subresource.
    Any,
    /// The resource itself, or any subresource.
    AbsentOrAny,
    /// This one.
    Named(String),
}

/// A namespace, the beginning of its name before a `*`, or `*` for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespacePattern {
    text: String,
    is_prefix: bool,
}

/// A path that names no resource, or its beginning before a `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: String,
    is_prefix: bool,
}

impl FromStr for VerbPattern {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
        if is_word || text == "*" {
            Ok(Self(text.to_owned()))
        } else {
            Err(SettingError::invalid(text, NOT_A_VERB))
        }
    }
}

impl VerbPattern {
    /// Whether this is `*`.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }

    /// Whether a request with this verb matches.
    #[must_use]
    pub fn matches(&self, verb: &str) -> bool {
        self.is_any() || self.0 == verb
    }
}

impl FromStr for ResourcePattern {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let refused = |problem| Err(SettingError::invalid(text, problem));
        let is_name =
            |part: &&str| *part == "*" || !part.is_empty() && part.bytes().all(is_name_byte);
        let is_group = |part: &str| part.contains('.') || part == CORE || GROUPS.contains(&part);
        let parts: Vec<&str> = text.split('/').collect();
        let (group, resource, subresource) = match *parts.as_slice() {
            ["*"] => (None, "*", None),
            [resource] if GROUPS.contains(&resource) => return refused(ONLY_A_GROUP),
            [resource] if resource.contains('.') => return refused(DOT_IN_RESOURCE),
            [resource] => (Some(CORE), resource, None),
            ["*", "*"] => return refused(TWO_WILDCARDS),
            ["*", subresource] => (None, "*", Some(subresource)),
            [group, resource] if is_group(group) => (Some(group), resource, None),
            [resource, subresource] => (Some(CORE), resource, Some(subresource)),
            [group, resource, subresource] => (Some(group), resource, Some(subresource)),
            _ => return refused(NOT_A_RESOURCE),
        };
        let group_has_name = group.is_none_or(|group| {
            group.split('.').all(|label| is_name(&label))
                && !group.contains("*.")
                && !group.contains(".*")
        });
        let names = [Some(resource), subresource].into_iter().flatten();
        if !group_has_name || !names.clone().all(|name| is_name(&name)) {
            return refused(NOT_A_RESOURCE);
        }
        let name = |part: &str| (part != "*").then(|| part.to_owned());
        Ok(Self {
            group: group
                .and_then(name)
                .map(|group| if group == CORE { String::new() } else { group }),
            resource: name(resource),
            subresource: match subresource {
                // As in RBAC, `*` in place of a resource includes subresources.
                None if resource == "*" => SubresourcePattern::AbsentOrAny,
                None => SubresourcePattern::Absent,
                Some(part) => name(part).map_or(SubresourcePattern::Any, SubresourcePattern::Named),
            },
        })
    }
}

impl ResourcePattern {
    /// Whether a request for this resource matches. The group is empty for the core group.
    #[must_use]
    pub fn matches(&self, group: &str, resource: &str, subresource: Option<&str>) -> bool {
        self.group.as_deref().is_none_or(|name| name == group)
            && self.resource.as_deref().is_none_or(|name| name == resource)
            && match (&self.subresource, subresource) {
                (SubresourcePattern::AbsentOrAny, _)
                | (SubresourcePattern::Absent, None)
                | (SubresourcePattern::Any, Some(_)) => true,
                (SubresourcePattern::Named(name), Some(found)) => name == found,
                (SubresourcePattern::Absent, Some(_))
                | (SubresourcePattern::Any | SubresourcePattern::Named(_), None) => false,
            }
    }

    /// The subresource, if it is exec, attach or port-forward, whose verb says little.
    pub(super) fn connection(&self) -> Option<&str> {
        let SubresourcePattern::Named(name) = &self.subresource else {
            return None;
        };
        CONNECTIONS.contains(&name.as_str()).then_some(name)
    }

    /// Resource and subresource, as the core group writes them.
    pub(super) fn core_name(&self) -> String {
        let resource = self.resource.as_deref().unwrap_or("*");
        match &self.subresource {
            SubresourcePattern::Absent | SubresourcePattern::AbsentOrAny => resource.to_owned(),
            SubresourcePattern::Any => format!("{resource}/*"),
            SubresourcePattern::Named(name) => format!("{resource}/{name}"),
        }
    }

    /// What to write instead, if this is in the core group, and no apiserver has such a resource there.
    pub(super) fn unknown_in_core(&self) -> Option<&'static str> {
        let (Some(""), Some(resource)) = (self.group.as_deref(), self.resource.as_deref()) else {
            return None;
        };
        let known = CORE_RESOURCES.iter().find(|(name, _)| *name == resource);
        match (known, &self.subresource) {
            (None, _) => {
                Some("GROUP/RESOURCE, such as apps/deployments, if it is in another group")
            }
            (Some((_, subresources)), SubresourcePattern::Named(name)) => {
                let is_known = subresources.split(' ').any(|known| known == name);
                (!is_known).then_some(
                    "a subresource that it has; `kubectl api-resources` and the API reference of Kubernetes list them",
                )
            }
            (Some(_), _) => None,
        }
    }
}

impl FromStr for NamespacePattern {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let (name, is_prefix) = split_wildcard(text);
        if !name.bytes().all(is_name_byte) || text.is_empty() {
            return Err(SettingError::invalid(text, NOT_A_NAMESPACE));
        }
        Ok(Self {
            text: name.to_owned(),
            is_prefix,
        })
    }
}

impl NamespacePattern {
    /// Whether a request in this namespace matches. A request outside of namespaces does not.
    #[must_use]
    pub fn matches(&self, namespace: &str) -> bool {
        !namespace.is_empty()
            && if self.is_prefix {
                namespace.starts_with(&self.text)
            } else {
                namespace == self.text
            }
    }
}

impl FromStr for PathPattern {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let (path, is_prefix) = split_wildcard(text);
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
        let has_dots = path.split('/').any(|part| matches!(part, "." | ".."));
        let is_path = path.starts_with('/') || text == "*";
        if !is_path || !path.bytes().all(is_plain) || path.contains("//") || has_dots {
            return Err(SettingError::invalid(text, NOT_A_PATH));
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let ["api", _, _, ..] | ["apis", _, _, _, ..] = *parts.as_slice() {
            return Err(SettingError::invalid(text, PATH_OF_RESOURCE));
        }
        let path = if is_prefix || path == "/" {
            path
        } else {
            path.trim_end_matches('/')
        };
        Ok(Self {
            text: path.to_owned(),
            is_prefix,
        })
    }
}

impl PathPattern {
    /// Whether a request for this path matches. A slash at the end of the path makes no difference.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        if self.is_prefix {
            return path.starts_with(&self.text);
        }
        self.text == path || path.strip_suffix('/').is_some_and(|path| path == self.text)
    }
}

/// The text before a `*` at the end, and whether there is one.
fn split_wildcard(text: &str) -> (&str, bool) {
    match text.strip_suffix('*') {
        Some(before) => (before, true),
        None => (text, false),
    }
}

/// Whether names of resources and namespaces may have this byte.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// The group of resources without one, in a rule.
const CORE: &str = "core";
/// API groups without a dot. Those of custom resources have one.
const GROUPS: [&str; 5] = ["apps", "autoscaling", "batch", "extensions", "policy"];
/// Subresources that open a tunnel.
pub(crate) const CONNECTIONS: [&str; 3] = ["exec", "attach", "portforward"];
/// The resources of the core group, each with its subresources. The group gets no new resources.
const CORE_RESOURCES: [(&str, &str); 17] = [
    ("bindings", ""),
    ("componentstatuses", ""),
    ("configmaps", ""),
    ("endpoints", ""),
    ("events", ""),
    ("limitranges", ""),
    ("namespaces", "finalize status"),
    ("nodes", "proxy status"),
    ("persistentvolumeclaims", "status"),
    ("persistentvolumes", "status"),
    (
        "pods",
        "attach binding ephemeralcontainers eviction exec log portforward proxy resize status",
    ),
    ("podtemplates", ""),
    ("replicationcontrollers", "scale status"),
    ("resourcequotas", "status"),
    ("secrets", ""),
    ("serviceaccounts", "token"),
    ("services", "proxy status"),
];
const NOT_A_VERB: &str =
    "is not a verb; write it in lower case, such as get, list or deletecollection, or `*` for all";
const NOT_A_RESOURCE: &str = "is not a resource; write RESOURCE, RESOURCE/SUBRESOURCE, GROUP/RESOURCE or GROUP/RESOURCE/SUBRESOURCE in lower case, such as secrets, pods/exec or apps/deployments";
const ONLY_A_GROUP: &str =
    "is an API group; write GROUP/RESOURCE, or GROUP/* for all of its resources";
const DOT_IN_RESOURCE: &str =
    "is not a resource; write the group first, such as apps/deployments and not deployments.apps";
const TWO_WILDCARDS: &str = "could be all resources or all subresources; write `*` for all resources, or */*/* for all subresources";
const NOT_A_NAMESPACE: &str =
    "is not a namespace; write its name in lower case, or the beginning of the name and `*`";
const NOT_A_PATH: &str = "is not a path; write it from the first slash, without query and escapes, such as /metrics or /logs/*";
const PATH_OF_RESOURCE: &str = "is the path of a resource; name the resource with `resources`, because `paths` are for requests without one";
