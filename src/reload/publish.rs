//! The kubeconfigs that hosts publish, and whether clients can use them.

use std::time::SystemTime;

use crate::{
    config::{ClusterConfig, PublishConfig},
    kubeconfig_document::only_certificates,
    pki::{Acceptance, Identity, PkiError, TrustAnchors, public_roots},
    proxy::PublishedKubeconfig,
};

/// What one cluster publishes, and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Publication {
    /// The kubeconfig.
    pub kubeconfig: PublishedKubeconfig,
    /// Why clients cannot use it, as a sentence that ends with the fix.
    pub warning: Option<String>,
}

impl Publication {
    /// What `cluster` publishes; `None` if that is nothing.
    ///
    /// # Errors
    ///
    /// When its CA file is invalid.
    pub fn load(
        cluster: &ClusterConfig,
        identities: &[Identity],
        now: SystemTime,
    ) -> Result<Option<Self>, PkiError> {
        let Some(publish) = &cluster.publish else {
            return Ok(None);
        };
        let covers = |identity: &&Identity| {
            let mut hosts = cluster.hosts.iter();
            hosts.any(|host| identity.covers(host))
        };
        let identity = identities.iter().find(covers);
        let identity = identity.or_else(|| identities.first());
        let (ca, warning) = ca(publish, identity, now)?;
        let warning = warning.map(|warning| format!("publish of {}: {warning}", cluster.name));
        Ok(Some(Self {
            kubeconfig: PublishedKubeconfig::new(publish, ca)
                .below(cluster.public_prefix.as_deref().unwrap_or_default()),
            warning,
        }))
    }
}

/// The CA for the kubeconfig, and what is wrong with it.
fn ca(
    publish: &PublishConfig,
    identity: Option<&Identity>,
    now: SystemTime,
) -> Result<(Option<String>, Option<&'static str>), PkiError> {
    let no_path = |roots| {
        let verdict = identity.map(|identity| identity.acceptance(roots, now));
        matches!(verdict, Some(Acceptance::NoPath { .. }))
    };
    let Some(file) = &publish.ca else {
        let ca = identity.and_then(|identity| identity.own_ca(now));
        let warning = (ca.is_none() && no_path(public_roots())).then_some(NO_CA);
        return Ok((ca, warning));
    };
    let (anchors, text) = TrustAnchors::load_file(file, now)?;
    let warning = no_path(anchors.roots()).then_some(OTHER_CA);
    Ok((Some(only_certificates(&text)), warning))
}

const NO_CA: &str = "clients that use the kubeconfig reject the certificate of the proxy, whose CA is not a public one; give the file of that CA as publish.kubeconfig.ca";
const OTHER_CA: &str = "clients that use the kubeconfig reject the certificate of the proxy, which no CA in publish.kubeconfig.ca has issued; give the file of the CA that has";
