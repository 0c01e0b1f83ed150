//! Builds the clusters of a new snapshot. Clusters without a change are those of the old snapshot.

use std::sync::Arc;

use super::{ClusterMaterial, Material, NamingMaterial, ReloadReport, Reloader};
use crate::{
    config::{ClusterConfig, Config, RequestHost, TrustSource},
    metrics::ClusterLabels,
    pki::{ClientIdentity, Identity},
    upstream::{ClientTls, Cluster, Endpoints, FrontProxy, OutboundRoute, UserNaming},
};

/// The clusters of a new snapshot. A cluster that has not changed since `old` is taken from there, with its leases.
///
/// # Errors
///
/// When a cluster has no trust anchor.
pub(super) fn build_clusters(
    config: &Config,
    material: &Material,
    old: Option<&Reloader>,
    labels: &mut ClusterLabels,
) -> Result<Vec<Arc<Cluster>>, rustls::client::VerifierBuilderError> {
    let mut clusters = Vec::with_capacity(material.clusters.len());
    for one in &material.clusters {
        let same = old.and_then(|old| old.same_cluster(one));
        if let Some(same) = same {
            clusters.push(same);
            continue;
        }
        let ClusterMaterial {
            config: cluster,
            trust,
            ..
        } = one;
        let endpoints = old
            .and_then(|old| old.same_endpoints(cluster))
            .unwrap_or_else(|| Arc::new(endpoints(cluster)));
        let name = cluster.expected_name.clone();
        let tls = match cluster.trust {
            TrustSource::Clients => ClientTls::without_anchors(name),
            TrustSource::File(_) | TrustSource::Inline { .. } => {
                ClientTls::new(trust.roots(), name)?
            }
        };
        let (label, prefix) = (labels.label(&cluster.name), cluster.path_prefix.clone());
        let authority = match cluster.request_host {
            RequestHost::Client => None,
            // The configuration has checked host and port, so they are an authority.
            RequestHost::Upstream => cluster.authority().parse().ok(),
        };
        // With several clusters, the names in the certificates lead only to those with prefixes.
        let names = material.identities.iter().flat_map(Identity::names);
        let has_names = config.sole_cluster() == Some(cluster)
            || cluster.public_prefix.is_some() && cluster.hosts.is_empty();
        let probe_host = cluster.own_request_host(names.filter(|_| has_names));
        let built = Cluster::new(label, prefix, endpoints, tls)
            .with_hosts(authority, probe_host)
            .reached_through(OutboundRoute::from_config(cluster, &trust.roots()));
        clusters.push(Arc::new(if cluster.passthrough {
            built.passed_through()
        } else {
            built
        }));
    }
    Ok(clusters)
}

/// How users are named to each cluster that uses client certificates. A front proxy whose cluster and certificate have
/// not changed since `old` is taken from there, with its leases.
pub(super) fn build_namings(
    material: &Material,
    clusters: &[Arc<Cluster>],
    old: Option<&Reloader>,
) -> Vec<Option<UserNaming>> {
    let same = |cluster: &Arc<Cluster>, identity: &ClientIdentity| {
        let old = old?;
        let clusters = old.report.clusters.iter().zip(&old.namings);
        let mut same = clusters.filter(|(old, _)| Arc::ptr_eq(old, cluster));
        same.find_map(|(_, naming)| match naming {
            Some(UserNaming::FrontProxy(known)) if known.presents(identity) => {
                Some(Arc::clone(known))
            }
            Some(UserNaming::FrontProxy(_) | UserNaming::Impersonator(_)) | None => None,
        })
    };
    let build = |(cluster, material): (&Arc<Cluster>, &ClusterMaterial)| {
        Some(match &material.clients.as_ref()?.naming {
            NamingMaterial::FrontProxy(identity) => {
                let kept = same(cluster, identity);
                let front_proxy =
                    kept.unwrap_or_else(|| Arc::new(FrontProxy::new(cluster, identity)));
                UserNaming::FrontProxy(front_proxy)
            }
            NamingMaterial::Token(token) => UserNaming::Impersonator(Arc::clone(token)),
        })
    };
    let all = clusters.iter().zip(&material.clusters);
    all.map(build).collect()
}

fn endpoints(cluster: &ClusterConfig) -> Endpoints {
    let (host, port) = (&cluster.upstream_host, cluster.upstream_port);
    let endpoints = match (&cluster.discovery, &cluster.outbound) {
        (Some(token), _) => Endpoints::discovered(host, port, token),
        (None, Some(proxy)) => Endpoints::new(&proxy.host, proxy.port),
        (None, None) if cluster.addresses.is_empty() => Endpoints::new(host, port),
        (None, None) => Endpoints::fixed(host, port, &cluster.addresses),
    };
    endpoints.of_cluster(&cluster.name)
}

impl Reloader {
    /// The old cluster with the same settings and the same CAs.
    fn same_cluster(&self, new: &ClusterMaterial) -> Option<Arc<Cluster>> {
        self.find_cluster(|old| {
            old.config.expected_name == new.config.expected_name
                && is_same_upstream(&old.config, &new.config)
                && old.trust.has_same_cas(&new.trust)
        })
        .cloned()
    }

    /// The endpoints of the old cluster with the same addresses, which keep their health. Another cluster at the
    /// same address, with another path for instance, may be unhealthy when this one is healthy.
    fn same_endpoints(&self, cluster: &ClusterConfig) -> Option<Arc<Endpoints>> {
        self.find_cluster(|old| is_same_upstream(&old.config, cluster))
            .map(|old| Arc::clone(old.endpoints()))
    }

    fn find_cluster(&self, is_same: impl Fn(&ClusterMaterial) -> bool) -> Option<&Arc<Cluster>> {
        let ReloadReport {
            material, clusters, ..
        } = &self.report;
        let mut clusters = material.clusters.iter().zip(clusters);
        let found = clusters.find(|(material, _)| is_same(material));
        found.map(|(_, cluster)| cluster)
    }
}

/// Whether two clusters differ at most in public hosts and prefix, expected name, CA, access rules, published
/// kubeconfig, client certificates, and the places of the URL and of the cluster.
fn is_same_upstream(old: &ClusterConfig, new: &ClusterConfig) -> bool {
    // First, because each of many clusters is compared with all others.
    if old.name != new.name {
        return false;
    }
    let new = ClusterConfig {
        file: old.file.clone(),
        hosts: old.hosts.clone(),
        public_prefix: old.public_prefix.clone(),
        expected_name: old.expected_name.clone(),
        trust: old.trust.clone(),
        url_place: old.url_place.clone(),
        client_certificates: old.client_certificates.clone(),
        access: old.access.clone(),
        publish: old.publish.clone(),
        ..new.clone()
    };
    *old == new
}
