//! What a snapshot is made of: the files, read and checked, and their bytes in short.

use std::{path::PathBuf, time::SystemTime};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use crate::{
    config::{ClusterConfig, Config, TrustSource, read_file},
    pki::{Identity, PkiError, PkiFileError, TrustAnchors},
};

/// What was read from files.
#[derive(Debug)]
pub struct Material {
    /// Certificates to present; the first is the default one.
    pub identities: Vec<Identity>,
    /// Each cluster and what it is verified against.
    pub clusters: Vec<(ClusterConfig, TrustAnchors)>,
}

impl Material {
    /// Reads and checks every file that `config` names.
    ///
    /// # Errors
    ///
    /// The first file that is unusable.
    pub fn load(config: &Config, now: SystemTime) -> Result<Self, PkiError> {
        let identities = config
            .identities
            .iter()
            .map(|files| Identity::load(files, now));
        Ok(Self {
            identities: identities.collect::<Result<_, _>>()?,
            clusters: load_clusters(config, now)?,
        })
    }

    /// As [`Material::load`], with this to take the place of `old`. A certificate whose time is over, or
    /// has not come, is as good as any other only in the place of one whose time is over too.
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
            match Identity::load(files, now) {
                Err(refused) if expired => match time_of_other_validity(&refused) {
                    Some(valid) => Identity::load(files, valid),
                    None => Err(refused),
                },
                loaded => loaded,
            }
        });
        Ok(Self {
            identities: identities.collect::<Result<_, _>>()?,
            clusters: load_clusters(config, now)?,
        })
    }

    /// When the first of all these certificates expires that has not yet.
    pub(super) fn next_expiry(&self, now: SystemTime) -> Option<SystemTime> {
        let leaves = self.identities.iter().map(Identity::not_after);
        let anchors = self
            .clusters
            .iter()
            .flat_map(|(_, trust)| trust.summaries());
        let all = leaves.chain(anchors.map(|ca| ca.not_after));
        all.filter(|not_after| *not_after >= now).min()
    }

    /// What works but should be mended, as sentences for the log.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let identities = self
            .identities
            .iter()
            .flat_map(|identity| identity.warnings(now));
        identities
            .chain(self.clusters.iter().flat_map(|(_, trust)| trust.warnings()))
            .collect()
    }

    /// Whether both would present the same certificates.
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
    let load =
        |cluster: &ClusterConfig| Ok((cluster.clone(), TrustAnchors::load(&cluster.trust, now)?));
    config.clusters.iter().map(load).collect()
}

/// A moment at which a certificate would have been taken that was refused for its dates alone.
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

/// Every file that this configuration comes from or names.
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

/// SHA-256 over the bytes of some files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentHash([u8; SHA256_OUTPUT_LEN]);

impl ContentHash {
    /// Reads the files as they are now; one that cannot be read has a fingerprint too.
    pub(super) fn of(files: &[PathBuf]) -> Self {
        let mut context = Context::new(&SHA256);
        for file in files {
            match read_file(file) {
                Ok(bytes) => {
                    // The length, so that no two lists of files look alike.
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
