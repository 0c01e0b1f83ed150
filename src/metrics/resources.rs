//! The kinds that kube-apiserver serves, so that a request's path becomes a label from a closed set.

/// A resource, with its subresource, as a label: `pods`, `pods/exec`, `custom`, `other`, `nonresource`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource(u16);

impl Resource {
    /// A path that names no resource, such as `/version`.
    pub const NONRESOURCE: Self = Self(u16::MAX);
    /// What an API group of its own serves: a custom resource or an aggregated API.
    pub const CUSTOM: Self = Self(u16::MAX - 1);
    /// What no kube-apiserver serves.
    pub const OTHER: Self = Self(u16::MAX - 2);

    /// The label of this resource in this API group (empty for the core).
    #[must_use]
    pub fn of(group: &str, resource: &str, subresource: Option<&str>) -> Self {
        if !group.is_empty() && !is_built_in(group) {
            return Self::CUSTOM;
        }
        let subresource = subresource.unwrap_or("");
        let mut slot = hash(resource, subresource) % SLOTS;
        // Half of the slots are free, so that this comes to an end.
        while let Some(number) = TABLE.get(slot).copied().filter(|number| *number != FREE) {
            let kind = KINDS.get(usize::from(number));
            if kind.is_some_and(|(kind, sub, _)| same(kind, resource) && same(sub, subresource)) {
                return Self(number);
            }
            slot = (slot + 1) % SLOTS;
        }
        Self::OTHER
    }

    /// As it stands in a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NONRESOURCE => "nonresource",
            Self::CUSTOM => "custom",
            _ => KINDS
                .get(usize::from(self.0))
                .map_or("other", |(_, _, label)| label),
        }
    }

    pub(super) fn number(self) -> u16 {
        self.0
    }

    pub(super) fn numbered(number: u16) -> Self {
        Self(number)
    }
}

/// The groups of kube-apiserver itself, beside the core; others may end in `.k8s.io` too, such as `metrics.k8s.io`.
fn is_built_in(group: &str) -> bool {
    matches!(
        group,
        "apps"
            | "batch"
            | "autoscaling"
            | "policy"
            | "rbac.authorization.k8s.io"
            | "coordination.k8s.io"
            | "networking.k8s.io"
            | "discovery.k8s.io"
            | "storage.k8s.io"
            | "authentication.k8s.io"
            | "authorization.k8s.io"
            | "certificates.k8s.io"
            | "apiextensions.k8s.io"
            | "apiregistration.k8s.io"
            | "admissionregistration.k8s.io"
            | "events.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "internal.apiserver.k8s.io"
            | "node.k8s.io"
            | "resource.k8s.io"
            | "scheduling.k8s.io"
            | "storagemigration.k8s.io"
    )
}

/// Byte by byte, because the call that `==` becomes costs more than a handful of bytes.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().eq(other.bytes())
}

/// FNV-1a of `resource/subresource`. A client may choose names that meet in one slot: they cost it a walk
/// over the kinds beside that slot and no more, for nothing is ever put in.
const fn hash(resource: &str, subresource: &str) -> usize {
    let hash = hash_on(0x811c_9dc5, resource.as_bytes());
    let hash = hash_on(hash_on(hash, b"/"), subresource.as_bytes());
    (hash ^ (hash >> 16)) as usize
}

const fn hash_on(mut hash: u32, mut bytes: &[u8]) -> u32 {
    while let [byte, rest @ ..] = bytes {
        hash = (hash ^ *byte as u32).wrapping_mul(0x0100_0193);
        bytes = rest;
    }
    hash
}

/// For each slot the number of its kind; made by the compiler.
#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "the compiler runs this, and a number that does not fit ends the build"
)]
static TABLE: [u16; SLOTS] = {
    let mut table = [FREE; SLOTS];
    let mut number = 0;
    while number < KINDS.len() {
        let (kind, sub, _) = KINDS[number];
        let mut slot = hash(kind, sub) % SLOTS;
        while table[slot] != FREE {
            slot = (slot + 1) % SLOTS;
        }
        table[slot] = number as u16;
        number += 1;
    }
    table
};

const SLOTS: usize = 512;
const FREE: u16 = u16::MAX;

/// Makes the entries of [`KINDS`], with the label in one piece.
macro_rules! kinds {
    ($($kind:literal $(/ $sub:literal)?,)+) => {
        &[$(kinds!(@one $kind $(/ $sub)?),)+]
    };
    (@one $kind:literal) => { ($kind, "", $kind) };
    (@one $kind:literal / $sub:literal) => { ($kind, $sub, concat!($kind, "/", $sub)) };
}

/// Kind, subresource and label.
const KINDS: &[(&str, &str, &str)] = kinds![
    "apiservices",
    "apiservices" / "status",
    "bindings",
    "certificatesigningrequests",
    "certificatesigningrequests" / "approval",
    "certificatesigningrequests" / "status",
    "clusterrolebindings",
    "clusterroles",
    "clustertrustbundles",
    "componentstatuses",
    "configmaps",
    "controllerrevisions",
    "cronjobs",
    "cronjobs" / "status",
    "csidrivers",
    "csinodes",
    "csistoragecapacities",
    "customresourcedefinitions",
    "customresourcedefinitions" / "status",
    "daemonsets",
    "daemonsets" / "status",
    "deployments",
    "deployments" / "scale",
    "deployments" / "status",
    "deviceclasses",
    "endpoints",
    "endpointslices",
    "events",
    "flowschemas",
    "flowschemas" / "status",
    "horizontalpodautoscalers",
    "horizontalpodautoscalers" / "status",
    "ingressclasses",
    "ingresses",
    "ingresses" / "status",
    "ipaddresses",
    "jobs",
    "jobs" / "status",
    "leasecandidates",
    "leases",
    "limitranges",
    "localsubjectaccessreviews",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "namespaces",
    "namespaces" / "finalize",
    "namespaces" / "status",
    "networkpolicies",
    "nodes",
    "nodes" / "proxy",
    "nodes" / "status",
    "persistentvolumeclaims",
    "persistentvolumeclaims" / "status",
    "persistentvolumes",
    "persistentvolumes" / "status",
    "poddisruptionbudgets",
    "poddisruptionbudgets" / "status",
    "pods",
    "pods" / "attach",
    "pods" / "binding",
    "pods" / "ephemeralcontainers",
    "pods" / "eviction",
    "pods" / "exec",
    "pods" / "log",
    "pods" / "portforward",
    "pods" / "proxy",
    "pods" / "resize",
    "pods" / "status",
    "podtemplates",
    "priorityclasses",
    "prioritylevelconfigurations",
    "prioritylevelconfigurations" / "status",
    "replicasets",
    "replicasets" / "scale",
    "replicasets" / "status",
    "replicationcontrollers",
    "replicationcontrollers" / "scale",
    "replicationcontrollers" / "status",
    "resourceclaims",
    "resourceclaims" / "status",
    "resourceclaimtemplates",
    "resourcequotas",
    "resourcequotas" / "status",
    "resourceslices",
    "rolebindings",
    "roles",
    "runtimeclasses",
    "secrets",
    "selfsubjectaccessreviews",
    "selfsubjectreviews",
    "selfsubjectrulesreviews",
    "serviceaccounts",
    "serviceaccounts" / "token",
    "servicecidrs",
    "servicecidrs" / "status",
    "services",
    "services" / "proxy",
    "services" / "status",
    "statefulsets",
    "statefulsets" / "scale",
    "statefulsets" / "status",
    "storageclasses",
    "storageversionmigrations",
    "storageversions",
    "subjectaccessreviews",
    "tokenreviews",
    "validatingadmissionpolicies",
    "validatingadmissionpolicies" / "status",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
    "volumeattachments",
    "volumeattachments" / "status",
    "volumeattributesclasses",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_table_is_found() {
        for (kind, sub, label) in KINDS {
            let sub = Some(*sub).filter(|sub| !sub.is_empty());
            assert_eq!(Resource::of("", kind, sub).label(), *label);
        }
    }

    #[test]
    fn what_is_not_built_in_shares_a_label() {
        for (group, resource, sub, label) in [
            ("example.com", "pods", None, "custom"),
            ("metrics.k8s.io", "pods", None, "custom"),
            ("example.com", "widgets", Some("status"), "custom"),
            ("apps", "widgets", None, "other"),
            ("", "pods", Some("invented"), "other"),
            ("", "", None, "other"),
            ("", "pods", None, "pods"),
            ("apps", "deployments", Some("scale"), "deployments/scale"),
        ] {
            let found = Resource::of(group, resource, sub).label();
            assert_eq!(found, label, "{group} {resource} {sub:?}");
        }
        assert_eq!(Resource::NONRESOURCE.label(), "nonresource");
    }
}
