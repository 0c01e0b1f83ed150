//! Builds a whole new snapshot from configuration and files, and publishes it or keeps the old one.
//!
//! What did not change is taken over: a cluster with the same settings and the same CAs keeps its
//! leases, and TLS sessions survive every reload.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use rustls::{crypto::aws_lc_rs::Ticketer, server::ProducesTickets};
use tokio::sync::watch;
use tracing::{error, warn};

use crate::{
    config::{ClusterConfig, Config, ConfigError},
    downstream::{Snapshot, server_config},
    pki::{Identity, PkiError, TrustAnchors},
    proxy::Routes,
    telemetry::causes,
    upstream::{ClientTls, Cluster, Endpoints},
};

/// Where the configuration comes from; called again for every reload.
pub type Source = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Why a snapshot could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate, key or CA is unusable.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS could not be set up with material that was found good.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// No trust anchor is left for a cluster.
    #[error("set up verification of the apiserver")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// The state that is served, and what the last looks at the files came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// What the current snapshot was read from.
    pub material: Arc<Material>,
    /// The apiservers of the current snapshot.
    pub clusters: Vec<Arc<Cluster>>,
    /// When something new was last found, usable or not; the start counts.
    pub changed: SystemTime,
    /// Why the files as they are now cannot be used: one sentence. `None` when they are what is served.
    pub failure: Option<String>,
    /// How often a new snapshot was published.
    pub reloaded: u64,
    /// How often a look found nothing new.
    pub unchanged: u64,
    /// How often what was found was unusable.
    pub failed: u64,
}

/// Builds snapshots and remembers what the current one was built from.
#[derive(Debug)]
pub struct Reloader {
    tickets: Arc<dyn ProducesTickets>,
    config: Config,
    material: Arc<Material>,
    clusters: Vec<Arc<Cluster>>,
    report: watch::Sender<Report>,
}

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
        let clusters = config
            .clusters
            .iter()
            .map(|cluster| Ok((cluster.clone(), TrustAnchors::load(&cluster.trust, now)?)));
        Ok(Self {
            identities: identities.collect::<Result<_, _>>()?,
            clusters: clusters.collect::<Result<_, _>>()?,
        })
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
    fn presents_the_same(&self, other: &Self) -> bool {
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

impl Reloader {
    /// A reloader with its first snapshot.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(
        config: Config,
        material: Material,
        now: SystemTime,
    ) -> Result<(Self, Snapshot), ReloadError> {
        let tickets = Ticketer::new()?;
        let clusters = build_clusters(&config, &material, None)?;
        let snapshot = snapshot(&material, &clusters, &tickets);
        let material = Arc::new(material);
        let report = watch::Sender::new(Report {
            material: Arc::clone(&material),
            clusters: clusters.clone(),
            changed: now,
            failure: None,
            reloaded: 0,
            unchanged: 0,
            failed: 0,
        });
        Ok((
            Self {
                tickets,
                config,
                material,
                clusters,
                report,
            },
            snapshot,
        ))
    }

    /// The configuration of the current snapshot.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the current snapshot was read from.
    #[must_use]
    pub fn material(&self) -> &Material {
        &self.material
    }

    /// The apiservers of the current snapshot.
    #[must_use]
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.clusters
    }

    /// What is served, and what the last looks came to; changes with every look.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<Report> {
        self.report.subscribe()
    }

    /// Reads everything again. `None` when nothing changed or the new state is unusable; the old one
    /// then stays and the log says why.
    pub fn reload(&mut self, source: &Source, now: SystemTime) -> Option<Snapshot> {
        match self.try_reload(source, now) {
            Ok(snapshot) => {
                self.report.send_modify(|report| {
                    report.failure = None;
                    if snapshot.is_some() {
                        report.changed = now;
                        report.reloaded += 1;
                    } else {
                        report.unchanged += 1;
                    }
                    report.material = Arc::clone(&self.material);
                    report.clusters.clone_from(&self.clusters);
                });
                snapshot
            }
            Err(error) => {
                self.report.send_modify(|report| {
                    report.changed = now;
                    report.failed += 1;
                    report.failure = Some(causes(&error).to_string());
                });
                error!(
                    error = %causes(&error),
                    "reload failed, the last good state stays"
                );
                None
            }
        }
    }

    fn try_reload(
        &mut self,
        source: &Source,
        now: SystemTime,
    ) -> Result<Option<Snapshot>, ReloadError> {
        let config = source()?;
        let material = Material::load(&config, now)?;
        let clusters = build_clusters(&config, &material, Some(self))?;
        let same_clusters = clusters.len() == self.clusters.len()
            && clusters
                .iter()
                .zip(&self.clusters)
                .all(|(new, old)| Arc::ptr_eq(new, old));
        let same_hosts = config.clusters == self.config.clusters;
        if needs_restart(&config, &self.config) {
            warn!(
                "listen, admin, workers, limits, timeouts or log changed; they take effect at the next restart"
            );
        }
        let unchanged = same_clusters && same_hosts && material.presents_the_same(&self.material);
        (self.config, self.material, self.clusters) = (config, Arc::new(material), clusters);
        if unchanged {
            return Ok(None);
        }
        Ok(Some(snapshot(
            &self.material,
            &self.clusters,
            &self.tickets,
        )))
    }
}

/// Clusters of a new state; those of `old` that mean the same are the same, leases and all.
fn build_clusters(
    config: &Config,
    material: &Material,
    old: Option<&Reloader>,
) -> Result<Vec<Arc<Cluster>>, rustls::client::VerifierBuilderError> {
    let mut known: HashMap<(&str, u16), Arc<Endpoints>> = HashMap::new();
    if let Some(old) = old {
        for cluster in &old.clusters {
            let endpoints = cluster.endpoints();
            known.insert((endpoints.host(), endpoints.port()), Arc::clone(endpoints));
        }
    }
    let mut clusters = Vec::with_capacity(config.clusters.len());
    for (cluster, trust) in &material.clusters {
        if let Some(same) = old.and_then(|old| old.same_cluster(cluster, trust)) {
            clusters.push(same);
            continue;
        }
        let at = (cluster.upstream_host.as_str(), cluster.upstream_port);
        let endpoints = known
            .get(&at)
            .map_or_else(|| Arc::new(Endpoints::new(at.0, at.1)), Arc::clone);
        let tls = ClientTls::new(trust.roots(), cluster.expected_name.clone())?;
        let (name, prefix) = (cluster.name.clone(), cluster.path_prefix.clone());
        clusters.push(Arc::new(Cluster::new(name, prefix, endpoints, tls)));
    }
    Ok(clusters)
}

impl Reloader {
    fn same_cluster(&self, cluster: &ClusterConfig, trust: &TrustAnchors) -> Option<Arc<Cluster>> {
        let at = self.material.clusters.iter().position(|(old, anchors)| {
            let settings = |cluster: &ClusterConfig| {
                let ClusterConfig {
                    name,
                    upstream_host,
                    upstream_port,
                    path_prefix,
                    expected_name,
                    ..
                } = cluster.clone();
                (
                    name,
                    upstream_host,
                    upstream_port,
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

fn snapshot(
    material: &Material,
    clusters: &[Arc<Cluster>],
    tickets: &Arc<dyn ProducesTickets>,
) -> Snapshot {
    let mut routes = Routes::default();
    // The names of the certificates lead to the only cluster there is; with several, only `hosts` can
    // tell which name means which.
    if let [only] = clusters {
        for name in material.identities.iter().flat_map(Identity::names) {
            routes.add(name, only);
        }
    }
    for (cluster, (config, _)) in clusters.iter().zip(&material.clusters) {
        for host in &config.hosts {
            routes.add(host.as_ref(), cluster);
        }
    }
    Snapshot {
        tls: Arc::new(server_config(&material.identities, Arc::clone(tickets))),
        routes: Arc::new(routes),
    }
}

/// Whether something differs that is read only at the start.
fn needs_restart(new: &Config, old: &Config) -> bool {
    (
        &new.listen,
        new.workers,
        &new.limits,
        &new.timeouts,
        &new.log,
        new.admin,
    ) != (
        &old.listen,
        old.workers,
        &old.limits,
        &old.timeouts,
        &old.log,
        old.admin,
    )
}
