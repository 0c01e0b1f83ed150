//! Builds the parts, binds the sockets, and runs the workers until a stop signal.
//!
//! Every error of configuration and files is found before a socket is open. Every address is known before the
//! first connection is served.

mod error;
mod listeners;
mod upkeep;
mod workers;

use std::{
    fmt,
    future::Future,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tracing::info;

pub use error::AppError;
pub use listeners::BoundAddresses;
pub use workers::FastStop;

use crate::{
    acme::AcmeUpkeep,
    admin::{Admin, Sources},
    clients::{ClientTable, resize},
    config::{Capacity, Config, LogConfig},
    downstream::{HandshakeLog, Shared},
    drain::{Drain, Phase},
    heartbeat::Heartbeats,
    listener::Owner,
    metrics::Metrics,
    reload::{ConfigLoader, Material, ReloadChanges, Reloader},
    upstream::SpareSockets,
};
use listeners::{Listeners, WorkerSocket};
use upkeep::EndpointUpkeep;
use workers::Workers;

/// A proxy that is bound and ready to run.
pub struct App {
    listeners: Listeners,
    /// For each worker, one socket per address.
    sockets: Vec<Vec<WorkerSocket>>,
    shared: Arc<Shared>,
    reloader: Reloader,
    acme: AcmeUpkeep,
    source: ConfigLoader,
    reload_now: Arc<Notify>,
    phase: Arc<watch::Sender<Phase>>,
    stop: FastStop,
    metrics: Arc<Metrics>,
    heartbeats: Heartbeats,
    admin: Option<Admin>,
    started: (SystemTime, Instant),
    configure_log: Option<ConfigureLog>,
}

/// Uses these settings of the log from now on.
pub type ConfigureLog = Box<dyn Fn(&LogConfig) + Send + Sync>;

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("bound", self.listeners.bound())
            .finish_non_exhaustive()
    }
}

impl App {
    /// Reads the configuration and its files, and binds every address for every worker.
    ///
    /// # Errors
    ///
    /// The first error. No socket is open then, unless the error is about a socket.
    pub fn bind(source: ConfigLoader) -> Result<Self, AppError> {
        Self::bind_or_inherit(source, Vec::new())
    }

    /// As [`App::bind`]. Inherited sockets replace the configured addresses.
    ///
    /// # Errors
    ///
    /// As [`App::bind`].
    pub fn bind_or_inherit(
        source: ConfigLoader,
        inherited: Vec<TcpListener>,
    ) -> Result<Self, AppError> {
        let config = source()?;
        let now = SystemTime::now();
        let material = Material::load(&config, now)?;
        let (mut reloader, snapshot) = Reloader::new(config, material, now)?;
        let reload_now = Arc::default();
        let acme = AcmeUpkeep::new(reloader.config(), reloader.challenges(), &reload_now)?;
        let (listeners, sockets) = Listeners::new(reloader.config(), &inherited)?;
        if listeners.owner() == Owner::Parent {
            reloader.keep_addresses();
        }
        let config = reloader.config();
        let admin = config.admin.map(Admin::bind).transpose()?;
        let metrics = Arc::new(Metrics::new(config.workers.get()));
        let heartbeats = Heartbeats::new(config.workers.get());
        let shared = Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            clients: ClientTable::new(&config.limits),
            handshakes: Arc::new(Semaphore::new(config.limits.handshakes)),
            handshake_log: HandshakeLog::default(),
            memory: Arc::default(),
            settings: Arc::new(ArcSwap::from_pointee(config.settings())),
        };
        Ok(Self {
            listeners,
            sockets,
            shared: Arc::new(shared),
            reloader,
            acme,
            source,
            reload_now,
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            stop: FastStop::default(),
            metrics,
            heartbeats,
            admin,
            started: (now, Instant::now()),
            configure_log: None,
        })
    }

    /// The same proxy, which calls `configure` after a reload.
    #[must_use]
    pub fn with_log(self, configure: ConfigureLog) -> Self {
        Self {
            configure_log: Some(configure),
            ..self
        }
    }

    /// The bound addresses, with the ports that the kernel chose.
    #[must_use]
    pub fn bound(&self) -> BoundAddresses {
        Arc::clone(self.listeners.bound())
    }

    /// The reloader, with the configuration and files of the first snapshot.
    #[must_use]
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Notify this to reload the configuration and the files now, before `timeouts.reload` has passed.
    #[must_use]
    pub fn reload_now(&self) -> Arc<Notify> {
        Arc::clone(&self.reload_now)
    }

    /// The address of the admin port, with the port that the kernel chose.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// The metrics of its workers.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The phase of its shutdown.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Makes the proxy stop before its deadlines.
    #[must_use]
    pub fn stop(&self) -> FastStop {
        self.stop.clone()
    }

    /// The heartbeats of its workers.
    #[must_use]
    pub fn heartbeats(&self) -> Heartbeats {
        self.heartbeats.clone()
    }

    /// Serves until `shutdown` completes and `timeouts.drainDelay` has passed, then drains. Returns once every
    /// worker has ended.
    ///
    /// # Errors
    ///
    /// When a worker cannot start or ends by itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future makes the workers drain by themselves.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        let (shared, mut reloader, mut listeners) = (self.shared, self.reloader, self.listeners);
        let mut acme = self.acme;
        let Capacity {
            spare_sockets,
            memory,
            ..
        } = reloader.config().capacity.clone();
        let spare_sockets = Arc::new(SpareSockets::new(spare_sockets));
        let sources = Sources {
            metrics: Arc::clone(&self.metrics),
            heartbeats: self.heartbeats.clone(),
            report: reloader.report(),
            acme: acme.reports(),
            phase: self.phase.subscribe(),
            listening: Arc::clone(listeners.bound()),
            clients: Arc::clone(&shared.clients),
            settings: Arc::clone(&shared.settings),
            memory: (memory.bytes, Arc::clone(&shared.memory)),
            started: self.started,
        };
        let _admin = self.admin.map(|admin| admin.serve(sources)).transpose()?;
        let mut upkeep = EndpointUpkeep::new(&shared, self.metrics.workers().len());
        upkeep.update(reloader.clusters()).await;
        let workers = Workers::start(
            self.sockets,
            listeners.owner(),
            &shared,
            &spare_sockets,
            &self.metrics,
            &self.heartbeats,
        )?;
        acme.update(reloader.config());
        let changes = workers.changes();
        let resizing = Drain::new();
        let reloading = async {
            loop {
                let interval = shared.settings.load().timeouts.reload;
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = self.reload_now.notified() => {}
                }
                let mut opened = Vec::new();
                let open = |config: &Config| {
                    // Closed first, because a second try opens the same addresses.
                    opened.clear();
                    opened = listeners.open_new(config)?;
                    Ok(())
                };
                let now = SystemTime::now();
                if let Some(snapshot) = reloader.reload(&*self.source, open, now) {
                    let config = reloader.config();
                    resize_all(&shared, &spare_sockets, config, &resizing);
                    shared.settings.store(Arc::new(config.settings()));
                    upkeep.update(reloader.clusters()).await;
                    shared.snapshot.store(Arc::new(snapshot));
                    let (opened, closed) = listeners.replace(config, opened);
                    changes.send(opened, &closed);
                    if let Some(configure) = &self.configure_log {
                        configure(&config.log);
                    }
                    report_reload(reloader.changes());
                }
                reloader.publish();
                acme.update(reloader.config());
            }
        };
        let give_up = || {
            spare_sockets.close_idle();
            shared.clients.close_idle();
        };
        let serving = workers.run(
            shutdown,
            reloading,
            &self.phase,
            &self.stop,
            &shared.settings,
        );
        tokio::select! {
            ended = serving => ended,
            never = shared.memory.watch(&memory, give_up) => match never {},
        }
    }
}

/// Uses the limits of `config` for everything that all workers share. A lower limit closes nothing.
fn resize_all(shared: &Shared, spare_sockets: &SpareSockets, config: &Config, resizing: &Drain) {
    let before = shared.settings.load();
    let (before, limits) = (&before.limits, &config.limits);
    if before == limits {
        return;
    }
    spare_sockets.resize(config.capacity.spare_sockets);
    resizing.spawn(shared.clients.configure(limits));
    let handshakes = resize(&shared.handshakes, before.handshakes, limits.handshakes);
    resizing.spawn(handshakes);
}

fn report_reload(changes: &ReloadChanges) {
    let listed = |changes: String| Some(changes).filter(|changes| !changes.is_empty());
    info!(
        certificates = listed(changes.certificates.join(", ")),
        clusters = listed(changes.clusters.join(", ")),
        settings = listed(changes.settings.join(", ")),
        "configuration and certificates reloaded"
    );
}
