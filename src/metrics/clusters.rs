//! The label `cluster`: a number for each name, so that a request finds the counters of its cluster without the name.

use std::sync::{Arc, OnceLock};

/// The place of a cluster in every [`PerCluster`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSlot(u16);

/// The name of a cluster as a label, and its slot.
#[derive(Debug, Clone)]
pub struct ClusterLabel {
    name: Arc<str>,
    slot: ClusterSlot,
}

/// The labels of all clusters that the process has had. A name keeps its slot for the life of the process, so that the
/// counters of a cluster survive a reload.
#[derive(Debug, Clone, Default)]
pub struct ClusterLabels(Vec<ClusterLabel>);

/// One value for each cluster, and one for the requests that the proxy refused before it chose a cluster.
#[derive(Debug)]
pub struct PerCluster<V> {
    unrouted: V,
    clusters: Box<[OnceLock<Begun<V>>]>,
}

/// A cluster that has begun. In a box, because most slots are empty.
type Begun<V> = Box<(ClusterLabel, V)>;

impl ClusterSlot {
    /// The proxy refused the request before it chose a cluster.
    pub const UNROUTED: Self = Self(u16::MAX);
}

impl ClusterLabel {
    /// The name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl ClusterLabels {
    /// The label of this name. Once a process has had `MAX_CLUSTERS` names, further ones share the label `other`:
    /// each reload can bring new names, and they must not fill the memory.
    pub fn label(&mut self, name: &str) -> ClusterLabel {
        if let Some(known) = self.0.iter().find(|known| &*known.name == name) {
            return known.clone();
        }
        let is_last = self.0.len() + 1 >= MAX_CLUSTERS;
        let label = ClusterLabel {
            name: if is_last { "other" } else { name }.into(),
            slot: ClusterSlot(u16::try_from(self.0.len()).unwrap_or(u16::MAX)),
        };
        if !is_last {
            self.0.push(label.clone());
        }
        label
    }
}

impl<V: Default> PerCluster<V> {
    /// The value of this cluster, which begins with its default.
    pub fn begin(&self, label: &ClusterLabel) -> (ClusterSlot, &V) {
        let Some(slot) = self.clusters.get(usize::from(label.slot.0)) else {
            return (ClusterSlot::UNROUTED, &self.unrouted);
        };
        // A name of its own, so that workers which clone it do not share a reference count.
        let own = || ClusterLabel {
            name: label.name().into(),
            slot: label.slot,
        };
        let (_, value) = &**slot.get_or_init(|| Box::new((own(), V::default())));
        (label.slot, value)
    }
}

impl<V> PerCluster<V> {
    /// The value of a cluster that has begun.
    #[must_use]
    pub fn get(&self, slot: ClusterSlot) -> &V {
        self.entry(slot).map_or(&self.unrouted, |(_, value)| value)
    }

    /// The label of a cluster that has begun. `None` for requests without a cluster.
    pub(super) fn label(&self, slot: ClusterSlot) -> Option<&ClusterLabel> {
        self.entry(slot).map(|(label, _)| label)
    }

    /// The name of a cluster that has begun. Empty for requests without a cluster.
    #[must_use]
    pub fn name(&self, slot: ClusterSlot) -> Arc<str> {
        self.label(slot)
            .map_or_else(Arc::default, |label| Arc::clone(&label.name))
    }

    /// The value of requests without a cluster.
    pub(super) fn unrouted(&self) -> &V {
        &self.unrouted
    }

    /// The clusters that have begun.
    pub(super) fn clusters(&self) -> impl Iterator<Item = &(ClusterLabel, V)> {
        self.clusters
            .iter()
            .filter_map(|slot| slot.get().map(|entry| &**entry))
    }

    /// All values: those of the clusters, and the one without a cluster.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        let each = self.clusters().map(|(_, value)| value);
        each.chain([&self.unrouted])
    }

    /// All values with the names of their clusters, which is empty for the one without a cluster.
    pub fn named(&self) -> impl Iterator<Item = (Arc<str>, &V)> {
        let each = self
            .clusters()
            .map(|(label, value)| (Arc::clone(&label.name), value));
        each.chain([(Arc::default(), &self.unrouted)])
    }

    fn entry(&self, slot: ClusterSlot) -> Option<&(ClusterLabel, V)> {
        self.clusters
            .get(usize::from(slot.0))?
            .get()
            .map(|entry| &**entry)
    }
}

impl<V: Default> Default for PerCluster<V> {
    fn default() -> Self {
        Self {
            unrouted: V::default(),
            clusters: (0..MAX_CLUSTERS).map(|_| OnceLock::new()).collect(),
        }
    }
}

/// Names of clusters with a label of their own, the last one being `other`.
const MAX_CLUSTERS: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_keeps_its_slot_across_reloads() {
        let mut labels = ClusterLabels::default();
        let (prod, staging) = (labels.label("prod"), labels.label("staging"));
        assert_eq!(labels.label("prod").slot, prod.slot);
        assert_ne!(prod.slot, staging.slot);
        let values = PerCluster::<std::sync::atomic::AtomicU64>::default();
        let (slot, _) = values.begin(&staging);
        assert_eq!(&*values.name(slot), "staging");
        assert_eq!(values.clusters().count(), 1);
    }

    #[test]
    fn names_beyond_the_bound_share_the_label_other() {
        let mut labels = ClusterLabels::default();
        let values = PerCluster::<u64>::default();
        for number in 0..2 * MAX_CLUSTERS {
            let label = labels.label(&format!("cluster-{number}"));
            let (slot, _) = values.begin(&label);
            assert_ne!(slot, ClusterSlot::UNROUTED);
        }
        assert_eq!(values.clusters().count(), MAX_CLUSTERS);
        assert_eq!(labels.0.len(), MAX_CLUSTERS - 1);
        assert_eq!(labels.label("one more").name(), "other");
        assert_eq!(labels.label("cluster-7").name(), "cluster-7");
    }

    #[test]
    fn request_without_a_cluster_has_an_empty_name() {
        let values = PerCluster::<u64>::default();
        assert_eq!(&*values.name(ClusterSlot::UNROUTED), "");
        assert_eq!(values.values().count(), 1);
    }
}
