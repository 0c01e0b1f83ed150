//! Requests by verb, resource, code and protocol, in a table that cannot grow without bound.
//!
//! No label is text of a client: a path becomes a [`Resource`] from the closed set of kinds that
//! kube-apiserver serves.

use std::{
    cmp::Ordering,
    collections::BTreeMap,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use http::StatusCode;

use super::{CodeClass, Exposition, Family, Label, Protocol, Verb, values::MetricValue};

/// The number of requests per row. The lock is contended only during a scrape. A `BTreeMap`, because it counts
/// faster than a `HashMap` with the hasher of std, and keeps the order of the exposition.
#[derive(Debug, Default)]
pub struct Requests(Mutex<BTreeMap<Row, u64>>);

/// The labels of one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) verb: Verb,
    pub(super) resource: Resource,
    pub(super) code: u16,
    pub(super) protocol: Protocol,
}

/// A resource, with its subresource, as a label: `pods`, `pods/exec`, `custom`, `other`, `nonresource`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource(u16);

impl Requests {
    /// The sum over all rows.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.rows().values().sum()
    }

    /// The sums by what the status code says.
    #[must_use]
    pub fn by_class(&self) -> [u64; CLASSES] {
        let mut sums = [0; CLASSES];
        for (row, count) in &*self.rows() {
            if let Some(sum) = sums.get_mut(CodeClass::new(row.code) as usize) {
                *sum += count;
            }
        }
        sums
    }

    pub(super) fn count(&self, row: Row) {
        let mut rows = self.rows();
        if let Some(count) = rows.get_mut(&row) {
            *count += 1;
            return;
        }
        // All combinations of the closed sets would be too many series.
        let row = if rows.len() < MAX_ROWS {
            row
        } else {
            let resource = Resource::OTHER;
            Row { resource, ..row }
        };
        *rows.entry(row).or_default() += 1;
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<Row, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetricValue for Requests {
    /// Not bounded by `MAX_ROWS`: otherwise one scrape could count a row under `resource="other"` and the next
    /// one under its own resource, and a counter would decrease. Proof: `sum_keeps_every_row_of_each_worker`.
    fn merge(&self, other: &Self) {
        let mut rows = self.rows();
        for (row, count) in &*other.rows() {
            *rows.entry(*row).or_default() += count;
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "the values of an exposition are floats"
    )]
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        for (row, count) in &*self.rows() {
            let mut labels = labels.clone();
            labels.extend([
                ("verb", row.verb.label().into()),
                ("resource", row.resource.label().into()),
                (
                    "code",
                    match row.code {
                        NO_RESPONSE => "no_response".into(),
                        code => format!("{code:03}").into(),
                    },
                ),
                ("protocol", row.protocol.label().into()),
            ]);
            to.number(family, labels, *count as f64);
        }
    }
}

/// The status code as a label. A code without a name counts as the first of its class, because a client treats it so
/// (RFC 9110 §15). Otherwise a program behind `services/proxy` could create one series per number. [`NO_RESPONSE`] if
/// the client left before there was a response.
pub(super) fn code_label(status: Option<StatusCode>) -> u16 {
    match status {
        None => NO_RESPONSE,
        Some(status) if status.canonical_reason().is_some() => status.as_u16(),
        Some(status) => status.as_u16().min(599) / 100 * 100,
    }
}

impl CodeClass {
    fn new(code: u16) -> Self {
        match code {
            NO_RESPONSE => Self::NoResponse,
            401 => Self::Unauthorized,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
            _ => Self::Ok,
        }
    }
}

/// The number of [`CodeClass`]es.
pub const CLASSES: usize = CodeClass::ALL.len();

impl Resource {
    /// A path that names no resource, such as `/version`.
    pub const NONRESOURCE: Self = Self(u16::MAX);
    /// A custom resource, or a resource of an aggregated API.
    pub const CUSTOM: Self = Self(u16::MAX - 1);
    /// A resource that no kube-apiserver serves.
    pub const OTHER: Self = Self(u16::MAX - 2);

    /// The label of `resource` in the API group `group`, which is empty for the core group.
    #[must_use]
    pub fn new(group: &str, resource: &str, subresource: Option<&str>) -> Self {
        if !group.is_empty() && !is_built_in(group) {
            return Self::CUSTOM;
        }
        let subresource = subresource.unwrap_or("");
        let found = KINDS.binary_search_by(|(kind, sub, _)| {
            compare(kind, resource).then_with(|| compare(sub, subresource))
        });
        let number = found.ok().and_then(|number| u16::try_from(number).ok());
        number.map_or(Self::OTHER, Self)
    }

    /// The value of the label.
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
}

/// Compares byte by byte: these names are short, and the search takes about 20 ns, and about 190 ns with the
/// call of `memcmp` that `str::cmp` makes.
fn compare(one: &str, other: &str) -> Ordering {
    one.bytes().cmp(other.bytes())
}

/// Whether kube-apiserver itself serves this group. Groups of others can end in `.k8s.io` too, such as
/// `metrics.k8s.io`.
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

/// The code of a request without a response.
const NO_RESPONSE: u16 = 0;

/// Rows of one worker and cluster; a new row beyond them counts for the resource `other`.
const MAX_ROWS: usize = 4_000;

/// Kind, subresource and label of each built-in resource, sorted for the binary search.
static KINDS: LazyLock<Vec<(&str, &str, &str)>> = LazyLock::new(|| {
    let labels = BUILT_IN_RESOURCES.split_whitespace();
    let split = labels.map(|label| {
        let (kind, sub) = label.split_once('/').unwrap_or((label, ""));
        (kind, sub, label)
    });
    split.collect()
});

/// The labels of all resources that kube-apiserver serves, in order.
const BUILT_IN_RESOURCES: &str = "
    apiservices apiservices/status bindings certificatesigningrequests
    certificatesigningrequests/approval certificatesigningrequests/status clusterrolebindings
    clusterroles clustertrustbundles componentstatuses configmaps controllerrevisions cronjobs
    cronjobs/status csidrivers csinodes csistoragecapacities customresourcedefinitions
    customresourcedefinitions/status daemonsets daemonsets/status deployments deployments/scale
    deployments/status deviceclasses endpoints endpointslices events flowschemas
    flowschemas/status horizontalpodautoscalers horizontalpodautoscalers/status ingressclasses
    ingresses ingresses/status ipaddresses jobs jobs/status leasecandidates leases limitranges
    localsubjectaccessreviews mutatingadmissionpolicies mutatingadmissionpolicybindings
    mutatingwebhookconfigurations namespaces namespaces/finalize namespaces/status networkpolicies
    nodes nodes/proxy nodes/status persistentvolumeclaims persistentvolumeclaims/status
    persistentvolumes persistentvolumes/status poddisruptionbudgets poddisruptionbudgets/status
    pods pods/attach pods/binding pods/ephemeralcontainers pods/eviction pods/exec pods/log
    pods/portforward pods/proxy pods/resize pods/status podtemplates priorityclasses
    prioritylevelconfigurations prioritylevelconfigurations/status replicasets replicasets/scale
    replicasets/status replicationcontrollers replicationcontrollers/scale
    replicationcontrollers/status resourceclaims resourceclaims/status resourceclaimtemplates
    resourcequotas resourcequotas/status resourceslices rolebindings roles runtimeclasses secrets
    selfsubjectaccessreviews selfsubjectreviews selfsubjectrulesreviews serviceaccounts
    serviceaccounts/token servicecidrs servicecidrs/status services services/proxy services/status
    statefulsets statefulsets/scale statefulsets/status storageclasses storageversionmigrations
    storageversions subjectaccessreviews tokenreviews validatingadmissionpolicies
    validatingadmissionpolicies/status validatingadmissionpolicybindings
    validatingwebhookconfigurations volumeattachments volumeattachments/status
    volumeattributesclasses
";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn unnamed_codes_count_as_the_first_of_their_class() {
        for (status, label) in [
            (200, 200),
            (429, 429),
            (299, 200),
            (418, 418),
            (499, 400),
            (599, 500),
            (600, 500),
            (999, 500),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(code_label(Some(status)), label);
        }
        assert_eq!(code_label(None), 0);
    }

    #[test]
    fn classes_add_up_to_all_requests() {
        let requests = Requests::default();
        for code in [
            None,
            Some(101),
            Some(200),
            Some(304),
            Some(401),
            Some(403),
            Some(429),
            Some(503),
        ] {
            requests.count(Row {
                verb: Verb::Get,
                resource: Resource::OTHER,
                code: code_label(code.and_then(|code| StatusCode::from_u16(code).ok())),
                protocol: Protocol::Http2,
            });
        }
        // In the order of `CodeClass`.
        assert_eq!(requests.by_class(), [3, 1, 2, 1, 1]);
    }

    #[test]
    fn mixed_labels_cannot_grow_the_table_without_bound() {
        let requests = Requests::default();
        let codes = (100..1000).map(|number| code_label(StatusCode::from_u16(number).ok()));
        let codes: BTreeSet<u16> = codes.collect();
        for verb in Verb::ALL {
            for protocol in Protocol::ALL {
                for number in (0..200).chain([u16::MAX, u16::MAX - 1, u16::MAX - 2]) {
                    for code in &codes {
                        requests.count(Row {
                            verb: *verb,
                            resource: Resource(number),
                            code: *code,
                            protocol: *protocol,
                        });
                    }
                }
            }
        }
        let rows = requests.rows().len();
        let beyond = Verb::ALL.len() * Protocol::ALL.len() * codes.len();
        assert!(rows <= MAX_ROWS + beyond, "{rows} rows");
        assert_eq!(requests.sum(), (beyond * 203) as u64, "none is lost");
    }

    #[test]
    fn sum_keeps_every_row_of_each_worker() {
        let row = |number, code| Row {
            verb: Verb::Get,
            resource: Resource(number),
            code,
            protocol: Protocol::Http2,
        };
        let (one, other, sum) = (
            Requests::default(),
            Requests::default(),
            Requests::default(),
        );
        for number in 0..3_000 {
            one.count(row(number, 200));
            other.count(row(number, 404));
        }
        sum.merge(&one);
        sum.merge(&other);
        assert_eq!(sum.rows().len(), 6_000);
    }

    #[test]
    fn every_built_in_resource_is_found() {
        assert!(KINDS.is_sorted());
        for (kind, sub, label) in KINDS.iter() {
            let sub = Some(*sub).filter(|sub| !sub.is_empty());
            assert_eq!(Resource::new("", kind, sub).label(), *label);
        }
    }

    #[test]
    fn unknown_resources_share_a_label() {
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
            let found = Resource::new(group, resource, sub).label();
            assert_eq!(found, label, "{group} {resource} {sub:?}");
        }
        assert_eq!(Resource::NONRESOURCE.label(), "nonresource");
    }
}
