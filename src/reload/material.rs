//! Reads and checks the files of a snapshot, and hashes their content.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::publish::Publication;
use crate::{
    config::{ClientCertificatesConfig, ClusterConfig, Config, TrustSource, read_file},
    pki::{
        ClientCa, ClientIdentity, Identity, PkiError, PkiFileError, TrustAnchors, uncovered_hosts,
    },
};

/// The certificates, keys and CAs of a snapshot.
#[derive(Debug)]
pub struct Material {
    /// Certificates to present; the first is the default.
    pub identities: Vec<Identity>,
    /// Each cluster and its trust anchors.
    pub clusters: Vec<(ClusterConfig, TrustAnchors)>,
    /// For each cluster what it needs for client certificates; `None` if it asks for none.
    pub(super) client_certificates: Vec<Option<ClientMaterial>>,
    /// For each cluster the kubeconfig that its hosts publish; `None` if they publish none.
    pub(super) publications: Vec<Option<Publication>>,
}

/// What one cluster needs for client certificates.
#[derive(Debug)]
pub struct ClientMaterial {
    /// The CAs that issue them, and what these have revoked.
    pub ca: Arc<ClientCa>,
    /// The certificate with which the proxy names their owners to the apiserver.
    pub front_proxy: ClientIdentity,
}

impl ClientMaterial {
    /// Reads and checks the files of a section.
    ///
    /// # Errors
    ///
    /// The first invalid file.
    pub fn load(config: &ClientCertificatesConfig, now: SystemTime) -> Result<Self, PkiError> {
        let ca = ClientCa::load(&config.ca, config.crl.as_deref(), now)?;
        Ok(Self {
            ca: Arc::new(ca),
            front_proxy: ClientIdentity::load(&config.front_proxy, now)?,
        })
    }

    /// Whether both accept the same certificates, and name their owners with the same one.
    pub(super) fn are_same(one: &Option<Self>, other: &Option<Self>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => {
                one.ca.is_same(&other.ca)
                    && one.front_proxy.summary() == other.front_proxy.summary()
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Problems that do not stop the proxy, as sentences for the log.
    #[must_use]
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = self.ca.anchors().warnings().to_vec();
        warnings.extend(self.ca.revoked().and_then(|lists| lists.problem(now)));
        warnings.extend(self.front_proxy.warning(now));
        if self
            .ca
            .verify(&self.front_proxy.certified_key().cert, now)
            .is_ok()
        {
            warnings.push(SAME_CA.to_owned());
        }
        warnings
    }
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
        Self::of_identities(identities.collect::<Result<_, _>>()?, config, now)
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
        Self::of_identities(identities.collect::<Result<_, _>>()?, config, now)
    }

    fn of_identities(
        identities: Vec<Identity>,
        config: &Config,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        Ok(Self {
            clusters: load_clusters(config, now)?,
            client_certificates: load_client_certificates(config, now)?,
            publications: Publication::load_all(config, &identities, now)?,
            identities,
        })
    }

    /// The earliest expiry of these certificates and CAs that has not passed; `None` if all have expired.
    pub(super) fn next_expiry(&self, now: SystemTime) -> Option<SystemTime> {
        let leaves = self.identities.iter().map(Identity::not_after);
        let anchors = self
            .clusters
            .iter()
            .flat_map(|(_, trust)| trust.summaries());
        let clients = self.clients();
        let clients = clients.flat_map(|(_, clients)| clients.ca.anchors().summaries());
        let all = leaves.chain(anchors.chain(clients).map(|ca| ca.not_after));
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
            .chain(self.client_warnings(now))
            .chain(
                self.publications
                    .iter()
                    .flatten()
                    .filter_map(|one| one.warning.clone()),
            )
            .collect()
    }

    /// Problems of each cluster with client certificates.
    fn client_warnings(&self, now: SystemTime) -> Vec<String> {
        let sentences = self.clients().flat_map(|(cluster, clients)| {
            let name = &cluster.name;
            let sentences = clients.warnings(now).into_iter();
            sentences.map(move |sentence| format!("client certificates of {name}: {sentence}"))
        });
        sentences.collect()
    }

    /// What stops the client certificates of a cluster, as sentences that begin with its name.
    #[must_use]
    pub fn client_problems(&self, now: SystemTime) -> Vec<String> {
        let problems = self.clients().flat_map(|(cluster, clients)| {
            let expired = clients.front_proxy.summary().not_after < now;
            let front_proxy = expired.then(|| clients.front_proxy.warning(now)).flatten();
            let lists = clients.ca.revoked().and_then(|lists| lists.problem(now));
            let problems = front_proxy.into_iter().chain(lists);
            problems.map(|problem| format!("{}: {problem}", cluster.name))
        });
        problems.collect()
    }

    /// Each cluster that uses client certificates, and what it needs for them.
    pub fn clients(&self) -> impl Iterator<Item = (&ClusterConfig, &ClientMaterial)> {
        let clusters = self.clusters.iter().zip(&self.client_certificates);
        clusters.filter_map(|((cluster, _), clients)| Some((cluster, clients.as_ref()?)))
    }

    /// Whether both use the same client certificates.
    pub(super) fn has_same_clients(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.client_certificates, &other.client_certificates);
        let mut pairs = ours.iter().zip(theirs);
        ours.len() == theirs.len() && pairs.all(|(one, other)| ClientMaterial::are_same(one, other))
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

fn load_client_certificates(
    config: &Config,
    now: SystemTime,
) -> Result<Vec<Option<ClientMaterial>>, PkiError> {
    let sections = config.clusters.iter();
    let sections = sections.map(|cluster| cluster.client_certificates.as_ref());
    let load = |section: Option<&ClientCertificatesConfig>| {
        let loaded = section.map(|section| ClientMaterial::load(section, now));
        loaded
            .transpose()
            .map_err(|error| error.naming_place(&config.sources))
    };
    sections.map(load).collect()
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

const SAME_CA: &str = "`ca` has also issued the front-proxy certificate, so its users may be able to name any user to the apiserver; use separate CAs";

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
        let publish = cluster.publish.as_ref();
        files.extend(publish.and_then(|publish| publish.ca.clone()));
        if let Some(clients) = &cluster.client_certificates {
            let front_proxy = &clients.front_proxy;
            files.extend([
                clients.ca.clone(),
                front_proxy.certificate.clone(),
                front_proxy.key.clone(),
            ]);
            files.extend(clients.crl.clone());
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
