//! The clusters of a new state, which are those of the old one where nothing has changed.

use std::sync::Arc;

use super::{Material, Reloader};
use crate::{
    config::ClusterConfig,
    pki::TrustAnchors,
    upstream::{ClientTls, Cluster, Endpoints},
};

/// Clusters of a new state; those of `old` that mean the same are the same, leases and all.
///
/// # Errors
///
/// When a cluster has no trust anchor.
pub(super) fn build_clusters(
    material: &Material,
    old: Option<&Reloader>,
) -> Result<Vec<Arc<Cluster>>, rustls::client::VerifierBuilderError> {
    let mut clusters = Vec::with_capacity(material.clusters.len());
    for (cluster, trust) in &material.clusters {
        if let Some(same) = old.and_then(|old| old.same_cluster(cluster, trust)) {
            clusters.push(same);
            continue;
        }
        let endpoints = old
            .and_then(|old| old.same_endpoints(cluster))
            .unwrap_or_else(|| Arc::new(endpoints(cluster)));
        let tls = ClientTls::new(trust.roots(), cluster.expected_name.clone())?;
        let (name, prefix) = (cluster.name.clone(), cluster.path_prefix.clone());
        clusters.push(Arc::new(Cluster::new(name, prefix, endpoints, tls)));
    }
    Ok(clusters)
}

fn endpoints(cluster: &ClusterConfig) -> Endpoints {
    let (host, port) = (&cluster.upstream_host, cluster.upstream_port);
    if cluster.addresses.is_empty() {
        Endpoints::new(host, port)
    } else {
        Endpoints::fixed(host, port, &cluster.addresses)
    }
}

impl Reloader {
    /// What is known of the endpoints of this cluster, if it is where it was. Another cluster at the same
    /// address, below another path for instance, may be ill when this one is not.
    fn same_endpoints(&self, cluster: &ClusterConfig) -> Option<Arc<Endpoints>> {
        let is_same = |(old, _): &(ClusterConfig, TrustAnchors)| {
            old.name == cluster.name
                && old.upstream_host == cluster.upstream_host
                && old.upstream_port == cluster.upstream_port
                && old.addresses == cluster.addresses
                && old.path_prefix == cluster.path_prefix
        };
        let at = self.material.clusters.iter().position(is_same)?;
        Some(Arc::clone(self.clusters.get(at)?.endpoints()))
    }

    fn same_cluster(&self, cluster: &ClusterConfig, trust: &TrustAnchors) -> Option<Arc<Cluster>> {
        let at = self.material.clusters.iter().position(|(old, anchors)| {
            let settings = |cluster: &ClusterConfig| {
                let ClusterConfig {
                    name,
                    upstream_host,
                    upstream_port,
                    addresses,
                    path_prefix,
                    expected_name,
                    ..
                } = cluster.clone();
                (
                    name,
                    upstream_host,
                    upstream_port,
                    addresses,
                    path_prefix,
                    expected_name,
                )
            };
            let prints = |anchors: &TrustAnchors| {
                anchors
                    .summaries()
                    .iter()
                    .map(|ca| ca.sha256.clone())
                    .collect::<Vec<_>>()
            };
            settings(old) == settings(cluster) && prints(anchors) == prints(trust)
        })?;
        self.clusters.get(at).cloned()
    }
}
