//! What a reload has changed, for the log.

use crate::{
    config::{ClusterConfig, Config},
    pki::{Identity, UtcDate},
    quote,
};

use super::{ClientMaterial, Material};

/// The differences between two snapshots. Each list is text for the log; an empty one means no change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReloadChanges {
    /// Each new certificate: its names, its file and its end.
    pub certificates: Vec<String>,
    /// Each cluster that is new, gone or different, and what is different.
    pub clusters: Vec<String>,
    /// Keys of other settings that have changed.
    pub settings: Vec<&'static str>,
}

impl ReloadChanges {
    pub(super) fn new(old: (&Config, &Material), new: (&Config, &Material)) -> Self {
        let (old_config, old) = old;
        let (config, material) = new;
        let is_presented = |identity: &&Identity| {
            let known = &identity.summary().sha256;
            old.identities
                .iter()
                .any(|old| old.summary().sha256 == *known)
        };
        let certificates = material
            .identities
            .iter()
            .filter(|identity| !is_presented(identity))
            .map(|identity| {
                format!(
                    "{} from {} until {}",
                    identity.names().join(" "),
                    quote::path(identity.file()),
                    UtcDate(identity.not_after())
                )
            });
        let settings = [
            ("limits", config.limits != old_config.limits),
            ("timeouts", config.timeouts != old_config.timeouts),
            ("log", config.log != old_config.log),
            ("hints", config.hints != old_config.hints),
            ("listen", config.listen != old_config.listen),
            (
                "trustedProxies",
                config.trusted_proxies != old_config.trusted_proxies,
            ),
        ];
        let changed = settings.into_iter().filter(|(_, has_changed)| *has_changed);
        Self {
            certificates: certificates.collect(),
            clusters: clusters(old, material),
            settings: changed.map(|(key, _)| key).collect(),
        }
    }
}

fn clusters(old: &Material, new: &Material) -> Vec<String> {
    let find = |material: &'_ Material, name: &str| {
        let mut all = material.clusters.iter();
        all.position(|(cluster, _)| cluster.name == name)
    };
    let mut changes = Vec::new();
    let certificates = new.client_certificates.iter();
    let all = new.clusters.iter().zip(certificates);
    for (((cluster, trust), certificates), published) in all.zip(&new.publications) {
        let name = &cluster.name;
        let at = find(old, name);
        match at.and_then(|at| old.clusters.get(at)) {
            None => changes.push(format!("{name}: new")),
            Some((before, trusted)) => {
                let before_certificates = at.and_then(|at| old.client_certificates.get(at));
                if !ClientMaterial::are_same(certificates, before_certificates.unwrap_or(&None)) {
                    changes.push(format!("{name}: client certificates"));
                }
                if !is_same(before, cluster) {
                    changes.push(format!("{name}: settings"));
                }
                if before.access != cluster.access {
                    changes.push(format!("{name}: access rules"));
                }
                if at.and_then(|at| old.publications.get(at)) != Some(published) {
                    changes.push(format!("{name}: published kubeconfig"));
                }
                if !trusted.has_same_cas(trust) {
                    changes.push(format!("{name}: CA"));
                }
            }
        }
    }
    let gone = old.clusters.iter();
    let gone = gone.filter(|(cluster, _)| find(new, &cluster.name).is_none());
    changes.extend(gone.map(|(cluster, _)| format!("{}: removed", cluster.name)));
    changes
}

/// Whether both have the same settings but for the access rules and what they publish. The CA is compared by its
/// certificates, and the place of the URL is only for messages.
fn is_same(old: &ClusterConfig, new: &ClusterConfig) -> bool {
    *old == ClusterConfig {
        file: old.file.clone(),
        trust: old.trust.clone(),
        url_place: old.url_place.clone(),
        access: old.access.clone(),
        publish: old.publish.clone(),
        ..new.clone()
    }
}
