//! Reads and checks the files of a snapshot, and hashes their content.

use std::{cmp::Ordering, path::PathBuf, sync::Arc, time::SystemTime};

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

use super::publish::Publication;
use crate::{
    config::{
        AcmeConfig, CertificateSource, ClientCertificatesConfig, ClusterConfig, Config, Listing,
        NamingConfig, PublicSide, ReadError, TrustSource, UnusableCluster, read_file,
    },
    pki::{ClientCa, ClientIdentity, Identity, PkiError, TokenFile, TrustAnchors, uncovered_hosts},
    quote,
    text::error_chain,
};

/// The certificates, keys and CAs of a snapshot.
#[derive(Debug)]
pub struct Material {
    /// Certificates to present; the first is the default.
    pub identities: Vec<Identity>,
    /// The certificates that a CA has yet to issue.
    pub pending: Vec<AcmeConfig>,
    /// The clusters, and what belongs to each of them.
    pub clusters: Vec<ClusterMaterial>,
    /// What is wrong with files of the directory of clusters, as sentences that end with the fix.
    pub cluster_problems: Vec<String>,
}

/// One cluster of a snapshot.
#[derive(Debug)]
pub struct ClusterMaterial {
    /// Its configuration.
    pub config: ClusterConfig,
    /// The CAs of its apiserver.
    pub trust: TrustAnchors,
    /// What it needs for client certificates; `None` if it asks for none.
    pub clients: Option<ClientMaterial>,
    /// The kubeconfig that its hosts publish; `None` if they publish none.
    pub(super) publication: Option<Publication>,
}

/// What one cluster needs for client certificates.
#[derive(Debug)]
pub struct ClientMaterial {
    /// The CAs that issue them, and what these have revoked.
    pub ca: Arc<ClientCa>,
    /// The credential with which the proxy names their owners to the apiserver.
    pub naming: NamingMaterial,
}

/// The credential with which the proxy names users to an apiserver.
#[derive(Debug)]
pub enum NamingMaterial {
    /// The certificate of a front proxy.
    FrontProxy(Box<ClientIdentity>),
    /// A token that may impersonate users.
    Token(Arc<TokenFile>),
}

impl NamingMaterial {
    /// Reads and checks the files. A token that cannot be used is no error: it stops only the users of client
    /// certificates.
    fn load(config: &NamingConfig, now: SystemTime) -> Result<Self, PkiError> {
        Ok(match config {
            NamingConfig::FrontProxy(files) => {
                Self::FrontProxy(Box::new(ClientIdentity::load(files, now)?))
            }
            NamingConfig::Impersonate(file) => Self::Token(Arc::new(TokenFile::load(file))),
        })
    }

    /// Whether both are the same credential. A token file is the same whatever token it has.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::FrontProxy(one), Self::FrontProxy(other)) => one.summary() == other.summary(),
            (Self::Token(one), Self::Token(other)) => one.path() == other.path(),
            (Self::FrontProxy(_), Self::Token(_)) | (Self::Token(_), Self::FrontProxy(_)) => false,
        }
    }

    /// The certificate of a front proxy.
    #[must_use]
    pub fn front_proxy(&self) -> Option<&ClientIdentity> {
        match self {
            Self::FrontProxy(identity) => Some(identity.as_ref()),
            Self::Token(_) => None,
        }
    }

    /// The file of a token.
    #[must_use]
    pub fn token(&self) -> Option<&Arc<TokenFile>> {
        match self {
            Self::Token(token) => Some(token),
            Self::FrontProxy(_) => None,
        }
    }

    /// A sentence, if it stops the users of client certificates now.
    #[must_use]
    pub fn problem(&self, now: SystemTime) -> Option<String> {
        match self {
            Self::FrontProxy(identity) if identity.summary().not_after < now => {
                identity.warning(now)
            }
            Self::FrontProxy(_) => None,
            Self::Token(token) => token.problem(),
        }
    }

    /// A sentence, if it stops these users now or will soon.
    fn warning(&self, now: SystemTime) -> Option<String> {
        match self {
            Self::FrontProxy(identity) => identity.warning(now),
            Self::Token(token) => token.problem(),
        }
    }
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
            naming: NamingMaterial::load(&config.naming, now)?,
        })
    }

    /// Whether both accept the same certificates, and name their owners with the same credential.
    pub(super) fn are_same(one: &Option<Self>, other: &Option<Self>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => {
                one.ca.is_same(&other.ca) && one.naming.is_same(&other.naming)
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
        warnings.extend(self.ca.without_list().map(|ca| {
            format!(
                "`crl` has no list of the CA {}, so its client certificates are refused; add the current list of that CA to the file",
                ca.subject
            )
        }));
        warnings.extend(self.naming.warning(now));
        let issued = |identity: &ClientIdentity| {
            let chain = &identity.certified_key().cert;
            self.ca.verify(chain, now).is_ok()
        };
        if self.naming.front_proxy().is_some_and(issued) {
            warnings.push(SAME_CA.to_owned());
        }
        warnings
    }
}

impl ClusterMaterial {
    /// Reads and checks the remaining files of a cluster. `tokens` are the token files that are known so far: each is
    /// there once, because it is what the snapshot in use reads, and what reloads renew.
    fn load(
        (config, trust): (ClusterConfig, TrustAnchors),
        identities: &[Identity],
        now: SystemTime,
        tokens: &mut Vec<Arc<TokenFile>>,
    ) -> Result<Self, PkiError> {
        let section = config.client_certificates.as_ref();
        let clients = section.map(|section| ClientMaterial::load(section, now));
        let mut clients = clients.transpose()?;
        let naming = clients.as_mut().map(|clients| &mut clients.naming);
        if let Some(NamingMaterial::Token(token)) = naming {
            match tokens.iter().find(|known| known.path() == token.path()) {
                Some(known) => *token = Arc::clone(known),
                None => tokens.push(Arc::clone(token)),
            }
        }
        Ok(Self {
            publication: Publication::load(&config, identities, now)?,
            clients,
            config,
            trust,
        })
    }
}

impl Material {
    /// Reads and checks every file that `config` names.
    ///
    /// # Errors
    ///
    /// The first invalid file.
    pub fn load(config: &Config, now: SystemTime) -> Result<Self, PkiError> {
        Self::build(config, now, None)
    }

    fn build(config: &Config, now: SystemTime, old: Option<&Self>) -> Result<Self, PkiError> {
        let presented = old.map_or(&[][..], |old| &old.identities);
        let (mut identities, mut pending) = (Vec::new(), Vec::new());
        for source in &config.identities {
            let loaded = match Identity::from_source(source, now) {
                Err(refused) if replaces_expired(source, presented, now) => {
                    match refused.time_of_other_validity() {
                        Some(valid) => Identity::from_source(source, valid),
                        None => Err(refused),
                    }
                }
                loaded => loaded,
            };
            match loaded.map_err(|error| error.naming_place(&config.sources))? {
                Some(identity) => identities.push(identity),
                None => pending.extend(source.acme().cloned()),
            }
        }
        let (trusted, cluster_problems) = load_clusters(config, now, old)?;
        let tokens = old.into_iter().flat_map(Self::tokens);
        let mut tokens: Vec<_> = tokens.cloned().collect();
        let load = |one| {
            let loaded = ClusterMaterial::load(one, &identities, now, &mut tokens);
            loaded.map_err(|error| error.naming_place(&config.sources))
        };
        Ok(Self {
            clusters: trusted.into_iter().map(load).collect::<Result<_, _>>()?,
            identities,
            pending,
            cluster_problems,
        })
    }

    /// The clusters that are in use: without the unusable ones of the directory, but with their last good state.
    pub(super) fn cluster_configs(&self) -> Vec<ClusterConfig> {
        let all = self.clusters.iter();
        all.map(|cluster| cluster.config.clone()).collect()
    }

    /// As [`Material::load`], to replace `old`. An expired or not yet valid certificate is an error, except if it
    /// replaces an expired one: then nothing gets worse.
    ///
    /// # Errors
    ///
    /// As [`Material::load`].
    pub(super) fn reload(config: &Config, now: SystemTime, old: &Self) -> Result<Self, PkiError> {
        Self::build(config, now, Some(old))
    }

    /// The names of the certificates that a CA has yet to issue.
    #[must_use]
    pub fn pending_names(&self) -> Vec<String> {
        let names = self.pending.iter().flat_map(|config| &config.names);
        names.cloned().collect()
    }

    /// The earliest expiry of these certificates and CAs that has not passed; `None` if all have expired.
    pub(super) fn next_expiry(&self, now: SystemTime) -> Option<SystemTime> {
        let leaves = self.identities.iter().map(Identity::not_after);
        let anchors = self
            .clusters
            .iter()
            .flat_map(|cluster| cluster.trust.summaries());
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
        let clusters = self.clusters.iter();
        let anchors = clusters.flat_map(|cluster| cluster.trust.warnings());
        let publications = self.clusters.iter();
        let publications = publications.filter_map(|cluster| cluster.publication.as_ref());
        identities
            .chain(uncovered_hosts(
                hosts,
                &self.identities,
                &self.pending_names(),
            ))
            .chain(anchors.cloned())
            .chain(self.client_warnings(now))
            .chain(publications.filter_map(|one| one.warning.clone()))
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
            let naming = clients.naming.problem(now);
            let lists = clients.ca.revoked().and_then(|lists| lists.problem(now));
            let problems = naming.into_iter().chain(lists);
            problems.map(|problem| format!("{}: {problem}", cluster.name))
        });
        problems.collect()
    }

    /// Each cluster that uses client certificates, and what it needs for them.
    pub fn clients(&self) -> impl Iterator<Item = (&ClusterConfig, &ClientMaterial)> {
        let clusters = self.clusters.iter();
        clusters.filter_map(|cluster| Some((&cluster.config, cluster.clients.as_ref()?)))
    }

    /// The token files with which the proxy impersonates users.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &Arc<TokenFile>> {
        let clients = self.clients();
        clients.filter_map(|(_, clients)| clients.naming.token())
    }

    /// The cluster with this name.
    pub(super) fn cluster(&self, name: &str) -> Option<&ClusterMaterial> {
        let mut clusters = self.clusters.iter();
        clusters.find(|cluster| cluster.config.name == name)
    }

    /// The clusters whose requests the proxy sees.
    fn terminated(&self) -> impl Iterator<Item = &ClusterConfig> {
        let all = self.clusters.iter().map(|cluster| &cluster.config);
        all.filter(|cluster| !cluster.passthrough)
    }

    /// The cluster of the directory with this name, with this public side.
    fn last_good(&self, public: &PublicSide) -> Option<(ClusterConfig, TrustAnchors)> {
        let old = self.cluster(&public.name);
        let old = old.filter(|old| old.config.file.is_some())?;
        Some((public.apply_to(old.config.clone()), old.trust.clone()))
    }

    /// Whether both present the same certificates, and wait for the same ones.
    pub(super) fn presents_the_same(&self, other: &Self) -> bool {
        let chains = |material: &Self| {
            material
                .identities
                .iter()
                .map(|identity| identity.certified_key().cert.clone())
                .collect::<Vec<_>>()
        };
        chains(self) == chains(other) && self.pending == other.pending
    }
}

/// Each cluster and its trust anchors.
type TrustedClusters = Vec<(ClusterConfig, TrustAnchors)>;

/// Each cluster and its trust anchors, and what is wrong with files of the directory. Such a file stops no other
/// cluster: the last good state of its own stays in use, and without one it is left out.
fn load_clusters(
    config: &Config,
    now: SystemTime,
    old: Option<&Material>,
) -> Result<(TrustedClusters, Vec<String>), PkiError> {
    let mut clusters = Vec::with_capacity(config.clusters.len());
    let directory = config.directory.iter();
    let mut unusable: Vec<_> = directory
        .flat_map(|directory| directory.unusable.clone())
        .collect();
    for cluster in &config.clusters {
        let loaded = TrustAnchors::load(&cluster.trust, now)
            .map_err(|error| error.naming_place(&config.sources));
        match (loaded, &cluster.file) {
            (Ok(anchors), _) => clusters.push((cluster.clone(), anchors)),
            (Err(error), None) => return Err(error),
            (Err(error), Some(file)) => unusable.push(UnusableCluster {
                problem: format!("kubeconfig {}: {}", quote::path(file), error_chain(&error)),
                public: Some(PublicSide::from_cluster(cluster)),
            }),
        }
    }
    let mut problems = Vec::with_capacity(unusable.len());
    for UnusableCluster { problem, public } in unusable {
        let kept = public.and_then(|public| old?.last_good(&public));
        problems.push(match &kept {
            Some((cluster, _)) => {
                let name = &cluster.name;
                format!("{name}: the last good state stays in use: {problem}")
            }
            None => format!("a cluster is left out: {problem}"),
        });
        clusters.extend(kept);
    }
    problems.sort_unstable();
    // Those of the configuration file keep their order.
    clusters.sort_by(|(one, _), (other, _)| {
        let by_name = || one.name.cmp(&other.name);
        let are_files = one.file.is_some().cmp(&other.file.is_some());
        are_files.then_with(|| one.file.as_ref().map_or(Ordering::Equal, |_| by_name()))
    });
    Ok((clusters, problems))
}

/// Whether the certificate in use from this source has expired.
fn replaces_expired(source: &CertificateSource, old: &[Identity], now: SystemTime) -> bool {
    let Some(files) = source.files() else {
        return false;
    };
    let mut old = old
        .iter()
        .filter(|old| old.file() == files.certificate.as_path());
    old.any(|old| old.not_after() < now)
}

const SAME_CA: &str = "`ca` has also issued the front-proxy certificate, so its users may be able to name any user to the apiserver; use separate CAs";

/// Every file that this configuration comes from or refers to.
pub(super) fn files_of(config: &Config) -> Vec<PathBuf> {
    let mut files = config.sources.clone();
    for source in &config.identities {
        match source {
            CertificateSource::Files(identity) => {
                files.extend([identity.certificate.clone(), identity.key.clone()]);
            }
            CertificateSource::Acme(acme) => files.push(acme.certificate_file()),
        }
    }
    for cluster in &config.clusters {
        if let TrustSource::File(file) = &cluster.trust {
            files.push(file.clone());
        }
        let publish = cluster.publish.as_ref();
        files.extend(publish.and_then(|publish| publish.ca.clone()));
        if let Some(clients) = &cluster.client_certificates {
            files.push(clients.ca.clone());
            files.extend(clients.crl.clone());
            // `Reloader::reload` reads the file of a token by itself.
            if let NamingConfig::FrontProxy(front_proxy) = &clients.naming {
                files.extend([front_proxy.certificate.clone(), front_proxy.key.clone()]);
            }
        }
    }
    files
}

/// SHA-256 over the content of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentHash([u8; SHA256_OUTPUT_LEN]);

impl ContentHash {
    /// Hashes the files as they are now. A file that cannot be read counts as one fixed value, and a directory of
    /// clusters as the names of its files.
    pub(super) fn new(files: &[PathBuf]) -> Self {
        let mut context = Context::new(&SHA256);
        for file in files {
            match read_file(file) {
                Ok(bytes) => {
                    // With the length, so that moving bytes from one file to the next changes the hash.
                    context.update(&bytes.len().to_be_bytes());
                    context.update(&bytes);
                }
                Err(ReadError::Directory) => {
                    let listing = Listing::read(file).unwrap_or_default();
                    for file in listing.files {
                        context.update(file.as_os_str().as_encoded_bytes());
                        context.update(&[0]);
                    }
                }
                Err(_) => context.update(&[0xff; size_of::<usize>()]),
            }
        }
        let mut digest = [0; SHA256_OUTPUT_LEN];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}
