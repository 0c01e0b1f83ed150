//! Reads and checks the files of a snapshot, and hashes their content.

use std::{path::PathBuf, time::SystemTime};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use crate::{
    config::{ClusterConfig, Config, TrustSource, read_file},
    pki::{Identity, PkiError, PkiFileError, TrustAnchors, uncovered_hosts},
};

/// The certificates, keys and CAs of a snapshot.
#[derive(Debug)]
pub struct Material {
    /// Certificates to present; the first is the default.
    pub identities: Vec<Identity>,
    /// Each cluster and its trust anchors.
    pub clusters: Vec<(ClusterConfig, TrustAnchors)>,
}

impl Material {
    /// Reads and checks every file that `config` names.
    ///
    /// # Errors
    ///
    /// The first invalid file.
    pub fn load(config: &Config, now: SystemTime) -> Result<Self, PkiError> {
        let identities = config.identities.iter().map(|files| {
            Identity::load(files, now).map_err(|error| error.naming_place(&config.sources))
        });
        Ok(Self {
            identities: identities.collect::<Result<_, _>>()?,
            clusters: load_clusters(config, now)?,
        })
    }

    /// As [`Material::load`], to replace `old`. An expired or not yet valid certificate is an error, except if it
    /// replaces an expired one: then nothing gets worse.
    ///
    /// # Errors
    ///
    /// As [`Material::load`].
    pub(super) fn reload(config: &Config, now: SystemTime, old: &Self) -> Result<Self, PkiError> {
        let identities = config.identities.iter().enumerate().map(|(at, files)| {
            let expired = old
                .identities
                .get(at)
                .is_some_and(|old| old.not_after() < now);
            let loaded = match Identity::load(files, now) {
                Err(refused) if expired => match time_of_other_validity(&refused) {
                    Some(valid) => Identity::load(files, valid),
                    None => Err(refused),
                },
                loaded => loaded,
            };
            loaded.map_err(|error| error.naming_place(&config.sources))
        });
        Ok(Self {
            identities: identities.collect::<Result<_, _>>()?,
            clusters: load_clusters(config, now)?,
        })
    }

    /// The earliest expiry of these certificates and CAs that has not passed; `None` if all have expired.
    pub(super) fn next_expiry(&self, now: SystemTime) -> Option<SystemTime> {
        let leaves = self.identities.iter().map(Identity::not_after);
        let anchors = self
            .clusters
            .iter()
            .flat_map(|(_, trust)| trust.summaries());
        let all = leaves.chain(anchors.map(|ca| ca.not_after));
        all.filter(|not_after| *not_after >= now).min()
    }

    /// Problems that do not stop the proxy, as sentences for the log.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let identities = self.identities.iter().flat_map(|identity| {
            let mut warnings = identity.warnings(now);
            warnings.extend(identity.client_warning(now));
            warnings
        });
        let hosts = self.terminated().flat_map(|cluster| &cluster.hosts);
        let anchors = self.clusters.iter().flat_map(|(_, trust)| trust.warnings());
        identities
            .chain(uncovered_hosts(hosts, &self.identities))
            .chain(anchors.cloned())
            .collect()
    }

    /// The clusters whose requests the proxy sees.
    pub(super) fn terminated(&self) -> impl Iterator<Item = &ClusterConfig> {
        let all = self.clusters.iter().map(|(cluster, _)| cluster);
        all.filter(|cluster| !cluster.passthrough)
    }

    /// Whether both present the same certificates.
    pub(super) fn presents_the_same(&self, other: &Self) -> bool {
        let chains = |material: &Self| {
            material
                .identities
                .iter()
                .map(|identity| identity.certified_key().cert.clone())
                .collect::<Vec<_>>()
        };
        chains(self) == chains(other)
    }
}

fn load_clusters(
    config: &Config,
    now: SystemTime,
) -> Result<Vec<(ClusterConfig, TrustAnchors)>, PkiError> {
    let load = |cluster: &ClusterConfig| {
        let anchors = TrustAnchors::load(&cluster.trust, now)
            .map_err(|error| error.naming_place(&config.sources))?;
        Ok((cluster.clone(), anchors))
    };
    config.clusters.iter().map(load).collect()
}

/// A time at which the certificate is valid, if it was refused only for its dates.
fn time_of_other_validity(refused: &PkiError) -> Option<SystemTime> {
    let PkiError::Certificate { source, .. } = refused else {
        return None;
    };
    if let PkiFileError::Expired { on } = source.as_ref() {
        return Some(on.0);
    }
    if let PkiFileError::NotYetValid { from } = source.as_ref() {
        return Some(from.0);
    }
    None
}

/// Every file that this configuration comes from or refers to.
pub(super) fn files_of(config: &Config) -> Vec<PathBuf> {
    let mut files = config.sources.clone();
    for identity in &config.identities {
        files.extend([identity.certificate.clone(), identity.key.clone()]);
    }
    for cluster in &config.clusters {
        if let TrustSource::File(file) = &cluster.trust {
            files.push(file.clone());
        }
    }
    files
}

/// SHA-256 over the content of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentHash([u8; SHA256_OUTPUT_LEN]);

impl ContentHash {
    /// Hashes the files as they are now. A file that cannot be read counts as one fixed value.
    pub(super) fn new(files: &[PathBuf]) -> Self {
        let mut context = Context::new(&SHA256);
        for file in files {
            match read_file(file) {
                Ok(bytes) => {
                    // With the length, so that moving bytes from one file to the next changes the hash.
                    context.update(&bytes.len().to_be_bytes());
                    context.update(&bytes);
                }
                Err(_) => context.update(&[0xff; size_of::<usize>()]),
            }
        }
        let mut digest = [0; SHA256_OUTPUT_LEN];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}
