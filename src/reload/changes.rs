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
    let mut changes = Vec::new();
    for cluster in &new.clusters {
        let name = &cluster.config.name;
        let Some(before) = old.cluster(name) else {
            changes.push(format!("{name}: new"));
            continue;
        };
        let has_same_clients = ClientMaterial::are_same(&cluster.clients, &before.clients);
        let kinds = [
            ("client certificates", !has_same_clients),
            ("settings", !is_same(&before.config, &cluster.config)),
            (
                "access rules",
                before.config.access != cluster.config.access,
            ),
            (
                "published kubeconfig",
                before.publication != cluster.publication,
            ),
            ("CA", !before.trust.has_same_cas(&cluster.trust)),
        ];
        let changed = kinds.iter().filter(|(_, has_changed)| *has_changed);
        changes.extend(changed.map(|(kind, _)| format!("{name}: {kind}")));
    }
    let names = old.clusters.iter().map(|cluster| &cluster.config.name);
    let gone = names.filter(|name| new.cluster(name).is_none());
    changes.extend(gone.map(|name| format!("{name}: removed")));
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
