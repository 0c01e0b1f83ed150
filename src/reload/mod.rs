//! Builds a whole new snapshot from configuration and files, and publishes it or keeps the old one.
//!
//! What did not change is taken over: a cluster with the same settings and the same CAs keeps its
//! leases, and TLS sessions survive every reload. Files whose bytes are those of the current snapshot
//! are not even parsed.

mod clusters;
mod material;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{crypto::aws_lc_rs::Ticketer, server::ProducesTickets};
use tokio::sync::watch;
use tracing::{error, info, warn};

pub use material::Material;

use crate::{
    config::{Config, ConfigError},
    downstream::{Snapshot, server_config},
    pki::{Identity, PkiError},
    proxy::Routes,
    text::error_chain,
    upstream::Cluster,
};
use clusters::build_clusters;
use material::{ContentHash, files_of};

/// Where the configuration comes from; called again for every reload.
pub type ConfigLoader = Box<dyn Fn() -> Result<Config, ConfigError> + Send + Sync>;

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
pub struct ReloadReport {
    /// What the current snapshot was read from.
    pub material: Arc<Material>,
    /// The apiservers of the current snapshot.
    pub clusters: Vec<Arc<Cluster>>,
    /// When something new was last found, usable or not; the start counts.
    pub changed: SystemTime,
    /// Why the files as they are now cannot be used: one sentence. `None` when they are what is served.
    pub failure: Option<String>,
    /// Keys of the configuration file that have changed and take effect at the next restart.
    pub needs_restart: Vec<&'static str>,
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
    /// What runs: some of it cannot be reloaded.
    started: Config,
    config: Config,
    material: Arc<Material>,
    clusters: Vec<Arc<Cluster>>,
    /// What all this was read from.
    files: Vec<PathBuf>,
    /// The bytes of those when they were last read and found to be what is served; unknown at first.
    good: Option<ContentHash>,
    /// When the same bytes will mean something else, because a certificate expires.
    good_until: Option<SystemTime>,
    report: ReloadReport,
    published: watch::Sender<ReloadReport>,
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
        let clusters = build_clusters(&material, None)?;
        let snapshot = snapshot(&material, &clusters, &tickets);
        let material = Arc::new(material);
        let report = ReloadReport {
            material: Arc::clone(&material),
            clusters: clusters.clone(),
            changed: now,
            failure: None,
            needs_restart: Vec::new(),
            reloaded: 0,
            unchanged: 0,
            failed: 0,
        };
        let reloader = Self {
            tickets,
            started: config.clone(),
            files: files_of(&config),
            config,
            clusters,
            good: None,
            good_until: material.next_expiry(now),
            material,
            published: watch::Sender::new(report.clone()),
            report,
        };
        Ok((reloader, snapshot))
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

    /// What is served, and what the looks at the files came to; changes with every look.
    #[must_use]
    pub fn report(&self) -> watch::Receiver<ReloadReport> {
        self.published.subscribe()
    }

    /// Lets the readers of [`Reloader::report`] know what the last look came to; to be called once its
    /// snapshot is in use.
    pub fn publish(&self) {
        self.published.send_replace(self.report.clone());
    }

    /// Reads everything again. `None` when nothing changed or the new state is unusable; the old one
    /// then stays and the log says why, once for each reason.
    pub fn reload(&mut self, source: &ConfigLoader, now: SystemTime) -> Option<Snapshot> {
        let mut looked = self.look(source, now);
        for _ in 0..MAX_RETRIES_AFTER_RACE {
            // Files may be replaced one after the other while they are read, and then not fit together.
            let is_race =
                matches!(&looked, Err(failed) if failed.seen != ContentHash::of(&self.files));
            if !is_race {
                break;
            }
            looked = self.look(source, now);
        }
        match looked {
            Ok(None) => {
                self.report.unchanged += 1;
                self.works_again();
                None
            }
            Ok(Some(snapshot)) => {
                self.report.reloaded += 1;
                self.report.changed = now;
                self.works_again();
                for warning in self.material.warnings(now) {
                    warn!("{warning}");
                }
                Some(snapshot)
            }
            Err(FailedReload { error, .. }) => {
                self.report.failed += 1;
                let failure = error_chain(&error).to_string();
                if self.report.failure.as_ref() != Some(&failure) {
                    error!(error = failure, "reload failed, the last good state stays");
                    self.report.changed = now;
                    self.report.failure = Some(failure);
                }
                None
            }
        }
    }

    fn works_again(&mut self) {
        if self.report.failure.take().is_some() {
            info!("the files are good again");
        }
        self.report.material = Arc::clone(&self.material);
        self.report.clusters.clone_from(&self.clusters);
    }

    /// One look at everything; the bytes count as good only if they were there before they were parsed,
    /// so that a change in between is seen by the next look.
    fn look(
        &mut self,
        source: &ConfigLoader,
        now: SystemTime,
    ) -> Result<Option<Snapshot>, FailedReload> {
        let seen = ContentHash::of(&self.files);
        let is_due = self.good_until.is_some_and(|until| now > until);
        if self.good == Some(seen) && !is_due && self.report.failure.is_none() {
            return Ok(None);
        }
        self.take(source, now, seen)
            .map_err(|error| FailedReload { seen, error })
    }

    fn take(
        &mut self,
        source: &ConfigLoader,
        now: SystemTime,
        seen: ContentHash,
    ) -> Result<Option<Snapshot>, ReloadError> {
        let config = source()?;
        let material = Material::reload(&config, now, &self.material)?;
        let clusters = build_clusters(&material, Some(self))?;
        let same_clusters = clusters.len() == self.clusters.len()
            && clusters
                .iter()
                .zip(&self.clusters)
                .all(|(new, old)| Arc::ptr_eq(new, old));
        let same_hosts = config.clusters == self.config.clusters;
        let unchanged = same_clusters && same_hosts && material.presents_the_same(&self.material);
        self.compare_with_start(&config);
        let files = files_of(&config);
        self.good = (files == self.files).then_some(seen);
        self.good_until = material.next_expiry(now);
        (self.config, self.files, self.clusters) = (config, files, clusters);
        self.material = Arc::new(material);
        if unchanged {
            return Ok(None);
        }
        Ok(Some(snapshot(
            &self.material,
            &self.clusters,
            &self.tickets,
        )))
    }

    /// Says once what a restart would change.
    fn compare_with_start(&mut self, config: &Config) {
        let started = &self.started;
        let keys = [
            ("listen", config.listen != started.listen),
            ("admin", config.admin != started.admin),
            ("reusePort", config.reuse_port != started.reuse_port),
            ("workers", config.workers != started.workers),
            ("limits", config.limits != started.limits),
            ("timeouts", config.timeouts != started.timeouts),
            ("log", config.log != started.log),
        ];
        let changed = keys.iter().filter(|(_, has_changed)| *has_changed);
        let changed: Vec<_> = changed.map(|(key, _)| *key).collect();
        if changed != self.report.needs_restart && !changed.is_empty() {
            warn!(
                "{} changed; a restart is needed for that to take effect",
                changed.join(", ")
            );
        }
        self.report.needs_restart = changed;
    }
}

/// A look that came to nothing, and the bytes that it saw.
struct FailedReload {
    seen: ContentHash,
    error: ReloadError,
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

/// How often files that change while they are read are read again at once.
const MAX_RETRIES_AFTER_RACE: u32 = 3;

#[cfg(test)]
mod tests;
