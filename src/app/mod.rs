//! Builds the parts, binds the sockets, and runs the workers until a stop signal.
//!
//! Every error of configuration and files is found before a socket is open. Every address is known before the
//! first connection is served.

mod error;
mod upkeep;
mod workers;

use std::{
    fmt,
    future::Future,
    io,
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
pub use workers::FastStop;

use crate::{
    acme::AcmeUpkeep,
    admin::{Admin, Sources},
    clients::ClientTable,
    config::{Capacity, Config, LogConfig},
    downstream::{HandshakeLog, Shared},
    drain::Phase,
    heartbeat::Heartbeats,
    listen_error::{ListenError, ListenFlag},
    listener::{self, Owner, PortSharing},
    metrics::Metrics,
    reload::{ConfigLoader, Material, ReloadChanges, Reloader},
    upstream::SpareSockets,
};
use upkeep::EndpointUpkeep;
use workers::Workers;

/// A proxy that is bound and ready to run.
pub struct App {
    addresses: Vec<SocketAddr>,
    /// For each worker, one socket per address.
    sockets: Vec<Vec<TcpListener>>,
    owner: Owner,
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

/// Addresses, and one socket on each of them for each worker.
type Bound = (Vec<SocketAddr>, Vec<Vec<TcpListener>>);

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("addresses", &self.addresses)
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
        let inherited_addresses = addresses_of(&inherited)?;
        let (reloader, snapshot) = Reloader::new(config, material, &inherited_addresses, now)?;
        let config = reloader.config();
        let reload_now = Arc::default();
        let acme = AcmeUpkeep::new(config, reloader.challenges(), &reload_now)?;
        let (addresses, sockets) = open(config, &inherited, inherited_addresses)?;
        let owner = if inherited.is_empty() {
            Owner::Proxy
        } else {
            Owner::Parent
        };
        let admin = config.admin.map(Admin::bind).transpose()?;
        let metrics = Arc::new(Metrics::new(config.workers.get()));
        let heartbeats = Heartbeats::new(config.workers.get());
        let shared = Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            clients: ClientTable::new(&config.limits),
            handshakes: Semaphore::new(config.limits.handshakes),
            handshake_log: HandshakeLog::default(),
            memory: Arc::default(),
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
            hints: config.hints,
        };
        Ok(Self {
            addresses,
            sockets,
            owner,
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
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
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
        let (shared, mut reloader, mut acme) = (self.shared, self.reloader, self.acme);
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
            listening: self.addresses,
            clients: Arc::clone(&shared.clients),
            connections_limit: shared.limits.connections,
            memory: (memory.bytes, Arc::clone(&shared.memory)),
            started: self.started,
        };
        let _admin = self
            .admin
            .map(|admin| admin.serve(sources, &shared.timeouts))
            .transpose()?;
        let mut upkeep = EndpointUpkeep::new(&shared);
        upkeep.update(reloader.clusters()).await;
        let workers = Workers::start(
            self.sockets,
            self.owner,
            &shared,
            &spare_sockets,
            &self.metrics,
            &self.heartbeats,
        )?;
        acme.update(reloader.config());
        let reloading = async {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(shared.timeouts.reload) => {}
                    () = self.reload_now.notified() => {}
                }
                if let Some(snapshot) = reloader.reload(&self.source, SystemTime::now()) {
                    upkeep.update(reloader.clusters()).await;
                    shared.snapshot.store(Arc::new(snapshot));
                    if let Some(configure) = &self.configure_log {
                        configure(&reloader.config().log);
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
            &shared.timeouts,
        );
        tokio::select! {
            ended = serving => ended,
            never = shared.memory.watch(&memory, give_up) => match never {},
        }
    }
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

/// Opens the configured addresses, or shares the inherited sockets; returns the addresses and the sockets of
/// each worker.
fn open(
    config: &Config,
    inherited: &[TcpListener],
    inherited_addresses: Vec<SocketAddr>,
) -> Result<Bound, AppError> {
    let workers = config.workers.get();
    let mut addresses = Vec::new();
    let mut of_workers: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
    let mut add = |address, opened: io::Result<Vec<TcpListener>>| {
        let failed = |error| AppError::Listen {
            address,
            source: ListenError::new(ListenFlag::Clients, error),
        };
        let opened = opened.map_err(failed)?;
        let first = opened.first().map(TcpListener::local_addr);
        addresses.extend(first.transpose().map_err(failed)?);
        for (of_worker, socket) in of_workers.iter_mut().zip(opened) {
            of_worker.push(socket);
        }
        Ok::<_, AppError>(())
    };
    if inherited.is_empty() {
        let sharing = PortSharing::new(config.reuse_port);
        for address in &config.listen {
            let address = address.address;
            add(address, listener::bind(address, workers, sharing))?;
        }
    }
    for (socket, address) in inherited.iter().zip(inherited_addresses) {
        add(address, listener::share(socket, workers))?;
    }
    Ok((addresses, of_workers))
}

fn addresses_of(inherited: &[TcpListener]) -> Result<Vec<SocketAddr>, AppError> {
    let addresses = inherited.iter().map(TcpListener::local_addr);
    addresses
        .collect::<io::Result<_>>()
        .map_err(|source| AppError::Run {
            doing: "read the address of an inherited socket".into(),
            source,
        })
}
