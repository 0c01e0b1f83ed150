//! Builds a complete new snapshot from configuration and files, or keeps the old one.
//!
//! Unchanged parts are reused: a cluster with the same settings and CAs keeps its leases, and TLS sessions
//! survive every reload. Files with the same bytes as in the current snapshot are not parsed.

mod changes;
mod clusters;
mod material;
mod publish;

use std::{mem, net::SocketAddr, path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{crypto::aws_lc_rs::Ticketer, server::ProducesTickets};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use changes::ReloadChanges;
pub use material::{ClientMaterial, ClusterMaterial, Material, NamingMaterial};
pub use publish::Publication;

use crate::{
    config::{Config, ConfigError},
    downstream::{AcmeNames, Snapshot, asking_server_config, server_config},
    listen_error::ListenError,
    metrics::ClusterLabels,
    pki::{AcmeChallenges, Identity, PkiError},
    proxy::{AccessRules, ClientCertificates, Route, Routes},
    quote,
    text::error_chain,
    upstream::{Cluster, UserNaming},
};
use clusters::{build_clusters, build_namings};
use material::{ContentHash, files_of};

/// Reads the configuration; called again for every reload.
pub type ConfigLoader = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

/// Why no snapshot could be built.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate, key or CA is invalid.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// rustls refused material that passed the checks.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A cluster has no trust anchor.
    #[error("cannot set up verification of the apiserver")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// A new address of `listen` cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why, and how to fix it.
        #[source]
        source: ListenError,
    },
}

/// The current snapshot, and the results of the reloads so far.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// The certificates and CAs of the current snapshot.
    pub material: Arc<Material>,
    /// The apiservers of the current snapshot.
    pub clusters: Vec<Arc<Cluster>>,
    /// When a reload last found something new, valid or not. The start counts.
    pub changed: SystemTime,
    /// Why the last reload failed, in one sentence; `None` if the current files are in use.
    pub failure: Option<String>,
    /// Keys of the configuration file whose change takes effect at the next restart.
    pub needs_restart: Vec<&'static str>,
    /// Reloads that made a new snapshot.
    pub reloaded: u64,
    /// Reloads that found nothing new.
    pub unchanged: u64,
    /// Reloads that failed.
    pub failed: u64,
}

/// Builds snapshots, and keeps what the current one was built from.
#[derive(Debug)]
pub struct Reloader {
    tickets: Arc<dyn ProducesTickets>,
    /// Shared with all snapshots.
    challenges: Arc<AcmeChallenges>,
    labels: ClusterLabels,
    /// For each cluster of the current snapshot.
    namings: Vec<Option<UserNaming>>,
    /// Of the current snapshot: cancelled when another one is in use.
    replaced: CancellationToken,
    /// Of older snapshots.
    retired: Vec<CancellationToken>,
    /// The configuration at the start; a part of it cannot be reloaded.
    started: Config,
    config: Config,
    /// Whether another process has opened the sockets for clients.
    keeps_addresses: bool,
    /// The files that all of this comes from.
    files: Vec<PathBuf>,
    /// The content of these files when they were last loaded; `None` if unknown, as at the start.
    loaded: Option<ContentHash>,
    /// The next expiry of a certificate or CA in `loaded`. A reload after this time checks the files again even if they
    /// have not changed.
    valid_until: Option<SystemTime>,
    /// The current state; its readers see it after [`Reloader::publish`].
    report: ReloadReport,
    /// What the last new snapshot has changed.
    changes: ReloadChanges,
    published: watch::Sender<ReloadReport>,
}

impl Reloader {
    /// Returns a reloader and its first snapshot.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(
        mut config: Config,
        material: Material,
        now: SystemTime,
    ) -> Result<(Self, Snapshot), ReloadError> {
        let tickets = Ticketer::new()?;
        let mut labels = ClusterLabels::default();
        config.clusters = material.cluster_configs();
        let clusters = build_clusters(&config, &material, None, &mut labels)?;
        let namings = build_namings(&material, &clusters, None);
        let valid_until = material.next_expiry(now);
        let report = ReloadReport {
            material: Arc::new(material),
            clusters,
            changed: now,
            failure: None,
            needs_restart: Vec::new(),
            reloaded: 0,
            unchanged: 0,
            failed: 0,
        };
        let reloader = Self {
            tickets,
            challenges: Arc::default(),
            labels,
            namings,
            replaced: CancellationToken::new(),
            retired: Vec::new(),
            started: config.clone(),
            keeps_addresses: false,
            files: files_of(&config),
            config,
            loaded: None,
            valid_until,
            published: watch::Sender::new(report.clone()),
            report,
            changes: ReloadChanges::default(),
        };
        let snapshot = reloader.snapshot();
        Ok((reloader, snapshot))
    }

    /// Says that another process has opened the sockets for clients, so that other addresses need a restart.
    pub fn keep_addresses(&mut self) {
        self.keeps_addresses = true;
    }

    /// The configuration of the current snapshot.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The certificates and CAs of the current snapshot.
    #[must_use]
    pub fn material(&self) -> &Material {
        &self.report.material
    }

    /// The challenges that its snapshots answer.
    #[must_use]
    pub fn challenges(&self) -> &Arc<AcmeChallenges> {
        &self.challenges
    }

    /// The apiservers of the current snapshot.
    #[must_use]
    pub fn clusters(&self) -> &[Arc<Cluster>] {
        &self.report.clusters
    }

    /// What the last new snapshot has changed.
    #[must_use]
    pub fn changes(&self) -> &ReloadChanges {
        &self.changes
    }

    /// The current snapshot and the results of all reloads; changes with every published reload.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<ReloadReport> {
        self.published.subscribe()
    }

    /// Shows the result of the last reload to the readers of [`Reloader::report`]. Call it after the snapshot is
    /// in use.
    pub fn publish(&mut self) {
        // Connections verify their certificates again, against the snapshot that is in use now.
        for replaced in self.retired.drain(..) {
            replaced.cancel();
        }
        self.published.send_replace(self.report.clone());
    }

    /// Reads everything again. Returns `None` if nothing changed or the reload failed. The log says why it failed,
    /// once per reason. `read` reads the configuration. `accept` gets one of which everything is good, and may refuse
    /// it: it opens addresses, which a configuration with a fault elsewhere must not do.
    pub fn reload(
        &mut self,
        mut read: impl FnMut() -> Result<Config, ConfigError>,
        mut accept: impl FnMut(&Config) -> Result<(), ReloadError>,
        now: SystemTime,
    ) -> Option<Snapshot> {
        self.renew_tokens();
        let mut load = |this: &mut Self, content| this.load(read()?, &mut accept, now, content);
        let mut result = self.try_reload(&mut load, now);
        for _ in 0..MAX_RETRIES {
            // While the proxy reads, files may be replaced one by one. Old and new files do not fit together.
            let is_race =
                matches!(&result, Err(failed) if failed.content != ContentHash::new(&self.files));
            if !is_race {
                break;
            }
            result = self.try_reload(&mut load, now);
        }
        match result {
            Ok(None) => {
                self.report.unchanged += 1;
                self.clear_failure();
                None
            }
            Ok(Some(snapshot)) => {
                self.report.reloaded += 1;
                self.report.changed = now;
                self.clear_failure();
                for warning in self.report.material.warnings(now) {
                    warn!(warning, "certificate warning");
                }
                Some(snapshot)
            }
            Err(FailedReload { error, .. }) => {
                self.report.failed += 1;
                let failure = error_chain(&error).to_string();
                if self.report.failure.as_ref() != Some(&failure) {
                    error!(error = failure, "reload failed, keeping the previous state");
                    self.report.changed = now;
                    self.report.failure = Some(failure);
                }
                None
            }
        }
    }

    /// Reads the tokens of impersonation again. Nothing else has to be valid for that: a token expires within the hour
    /// in which a new one replaces it, and a fault elsewhere may take longer to fix.
    fn renew_tokens(&self) {
        for token in self.report.material.tokens() {
            if token.renew() {
                match token.problem() {
                    Some(problem) => warn!(problem, "impersonation token unusable"),
                    None => {
                        info!(file = %quote::path(token.path()), "new impersonation token in use")
                    }
                }
            }
        }
    }

    fn clear_failure(&mut self) {
        if self.report.failure.take().is_some() {
            info!("reload works again");
        }
    }

    /// Reads everything once. The content is hashed before the files are parsed, so that the next reload sees a
    /// change in between.
    fn try_reload(
        &mut self,
        load: &mut impl FnMut(&mut Self, ContentHash) -> Result<Option<Snapshot>, ReloadError>,
        now: SystemTime,
    ) -> Result<Option<Snapshot>, FailedReload> {
        let content = ContentHash::new(&self.files);
        let has_expired = self.valid_until.is_some_and(|until| now > until);
        let is_complete =
            self.report.failure.is_none() && self.report.material.cluster_problems.is_empty();
        if self.loaded == Some(content) && !has_expired && is_complete {
            return Ok(None);
        }
        load(self, content).map_err(|error| FailedReload { content, error })
    }

    fn load(
        &mut self,
        mut config: Config,
        accept: &mut impl FnMut(&Config) -> Result<(), ReloadError>,
        now: SystemTime,
        content: ContentHash,
    ) -> Result<Option<Snapshot>, ReloadError> {
        let material = Material::reload(&config, now, &self.report.material)?;
        config.clusters = material.cluster_configs();
        let mut labels = self.labels.clone();
        let clusters = build_clusters(&config, &material, Some(self), &mut labels)?;
        accept(&config)?;
        self.labels = labels;
        let namings = build_namings(&material, &clusters, Some(self));
        let same_clusters = clusters.len() == self.report.clusters.len()
            && clusters
                .iter()
                .zip(&self.report.clusters)
                .all(|(new, old)| Arc::ptr_eq(new, old));
        let old = (&self.config, &*self.report.material);
        let changes = ReloadChanges::new(old, (&config, &material));
        // `changes` leaves out the order of the clusters, and the paths of their files.
        let unchanged = same_clusters
            && config.clusters == self.config.clusters
            && changes.clusters.is_empty()
            && changes.settings.is_empty()
            && material.presents_the_same(&self.report.material);
        if !unchanged {
            self.changes = changes;
        }
        self.compare_with_start(&config);
        self.log_new_warnings(&config);
        self.log_cluster_problems(&material);
        let files = files_of(&config);
        self.loaded = (files == self.files).then_some(content);
        self.valid_until = material.next_expiry(now);
        (self.config, self.files) = (config, files);
        (self.report.material, self.report.clusters) = (Arc::new(material), clusters);
        self.namings = namings;
        if unchanged {
            return Ok(None);
        }
        let replaced = mem::replace(&mut self.replaced, CancellationToken::new());
        self.retired.push(replaced);
        Ok(Some(self.snapshot()))
    }

    /// Logs the warnings that the configuration before `config` did not have.
    fn log_new_warnings(&self, config: &Config) {
        let known = &self.config.warnings;
        let warnings = config.warnings.iter();
        for warning in warnings.filter(|warning| !known.contains(warning)) {
            warn!(warning, "configuration warning");
        }
    }

    /// Logs each problem of a file of the directory once, and the end of the last one.
    fn log_cluster_problems(&self, new: &Material) {
        let known = &self.report.material.cluster_problems;
        let problems = new.cluster_problems.iter();
        for problem in problems.filter(|problem| !known.contains(problem)) {
            error!(error = problem, "cluster file is unusable");
        }
        if new.cluster_problems.is_empty() && !known.is_empty() {
            info!("every cluster file is usable again");
        }
    }

    /// Logs once which changed settings need a restart.
    fn compare_with_start(&mut self, config: &Config) {
        let started = &self.started;
        let keys = [
            (
                "listen",
                self.keeps_addresses && addresses(config).ne(addresses(started)),
            ),
            ("admin", config.admin != started.admin),
            ("workers", config.workers != started.workers),
        ];
        let changed = keys.iter().filter(|(_, has_changed)| *has_changed);
        let changed: Vec<_> = changed.map(|(key, _)| *key).collect();
        if changed != self.report.needs_restart && !changed.is_empty() {
            warn!(
                settings = changed.join(", "),
                "changed settings need a restart"
            );
        }
        self.report.needs_restart = changed;
    }

    /// Makes the snapshot of the current state.
    fn snapshot(&self) -> Snapshot {
        let (material, clusters) = (&self.report.material, &self.report.clusters);
        let mut routes = Routes::default();
        routes.trust_proxies(self.config.trusted_proxies.clone());
        routes.set_logged_user(self.config.log.user);
        let (mut terminated, mut unhosted) = (Vec::new(), Vec::new());
        let configured = clusters.iter().zip(&material.clusters);
        // First, so that a passthrough host is never terminated because a certificate has its name.
        for ((cluster, configured), naming) in configured.zip(&self.namings) {
            let config = &configured.config;
            let publication = configured.publication.as_ref();
            let route = Arc::new(Route {
                cluster: Arc::clone(cluster),
                certificates: self.client_certificates(configured, naming.as_ref()),
                access: AccessRules::new(&config.name, &config.access),
                published: publication.map(|one| one.kubeconfig.clone()),
            });
            for host in &config.hosts {
                match &config.public_prefix {
                    Some(prefix) => routes.add_below(host, prefix, &route),
                    None => routes.add(host, &route),
                }
            }
            if let (Some(prefix), true) = (&config.public_prefix, config.hosts.is_empty()) {
                unhosted.push((prefix, Arc::clone(&route)));
            }
            if !cluster.is_passthrough() {
                terminated.push(route);
            }
        }
        // With one cluster, every name in the certificates routes to it. With several, or a directory, only `hosts`
        // says which name belongs to which cluster. A passthrough cluster has only its `hosts`.
        if let (Some(_), [only]) = (self.config.sole_cluster(), terminated.as_slice()) {
            for name in material.identities.iter().flat_map(Identity::names) {
                routes.add(name, only);
            }
            routes.set_sole(only);
        }
        // A name that is the host of one cluster stays with it.
        for name in material.identities.iter().flat_map(Identity::names) {
            for (prefix, route) in &unhosted {
                routes.add_below(name, prefix, route);
            }
        }
        let mut sources = self.config.identities.iter();
        let is_acme = sources.any(|source| source.acme().is_some());
        let challenges = Arc::clone(&self.challenges);
        let has_certificate = !material.identities.is_empty();
        let acme =
            is_acme.then(|| AcmeNames::new(challenges, &material.pending_names(), has_certificate));
        Snapshot {
            acme,
            tls: Arc::new(server_config(
                &material.identities,
                Arc::clone(&self.tickets),
            )),
            routes: Arc::new(routes),
        }
    }

    /// How a cluster of the snapshot uses client certificates.
    fn client_certificates(
        &self,
        cluster: &ClusterMaterial,
        naming: Option<&UserNaming>,
    ) -> Option<Arc<ClientCertificates>> {
        let clients = cluster.clients.as_ref()?;
        let section = cluster.config.client_certificates.as_ref()?;
        let identities = &self.report.material.identities;
        let certificates = ClientCertificates::new(
            Arc::clone(&clients.ca),
            naming?.clone(),
            Arc::new(asking_server_config(identities, clients.ca.names())),
            self.replaced.clone(),
        );
        Some(Arc::new(certificates.allowing_system(section.allow_system)))
    }
}

fn addresses(config: &Config) -> impl Iterator<Item = SocketAddr> {
    config.listen.iter().map(|entry| entry.address)
}

/// A failed reload, and the content of the files before it.
struct FailedReload {
    content: ContentHash,
    error: ReloadError,
}

/// How often files that change while they are read are read again at once.
const MAX_RETRIES: u32 = 3;

#[cfg(test)]
mod tests;
