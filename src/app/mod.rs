//! Builds the parts, binds the sockets, and runs the workers until told to stop.
//!
//! Everything that can be refused is refused before a socket is open; every address is known before
//! the first connection is served.

mod error;

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::Instant,
};
use tracing::{info, warn};

pub use error::{AppError, ListenFault};

use crate::{
    admin::{Admin, Sources},
    downstream::{self, Shared},
    drain::{Drain, Phase},
    listener::{self, Accepted, Listener},
    metrics::{Counts, Metrics},
    reload::{Material, Reloader, Source},
    upstream::{Cluster, Worker},
};

/// A proxy that is bound and ready to run.
pub struct App {
    addresses: Vec<SocketAddr>,
    /// For each worker one socket on every address.
    sockets: Vec<Vec<std::net::TcpListener>>,
    shared: Arc<Shared>,
    reloader: Reloader,
    source: Source,
    reload_now: Arc<Notify>,
    phase: Arc<watch::Sender<Phase>>,
    metrics: Arc<Metrics>,
    admin: Option<Admin>,
    started: (SystemTime, Instant),
}

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
    /// The first thing that is unusable. No socket was opened unless it is a socket that failed.
    pub fn bind(source: Source) -> Result<Self, AppError> {
        let config = source()?;
        let now = SystemTime::now();
        let material = Material::load(&config, now)?;
        let (reloader, snapshot) = Reloader::new(config, material, now)?;
        let config = reloader.config();
        let workers = config.workers.get();
        let mut sockets: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for address in &config.listen {
            let failed = |error: io::Error| AppError::Listen {
                address: *address,
                source: ListenFault::from(error),
            };
            let bound = listener::bind(*address, workers).map_err(failed)?;
            addresses.extend(
                bound
                    .first()
                    .map(std::net::TcpListener::local_addr)
                    .transpose()
                    .map_err(failed)?,
            );
            for (of_worker, socket) in sockets.iter_mut().zip(bound) {
                of_worker.push(socket);
            }
        }
        let admin = config.admin.map(Admin::bind).transpose()?;
        let shared = Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            handshakes: Semaphore::new(config.limits.handshakes),
            limits: config.limits.clone(),
            timeouts: config.timeouts.clone(),
        };
        Ok(Self {
            addresses,
            sockets,
            shared: Arc::new(shared),
            reloader,
            source,
            reload_now: Arc::default(),
            phase: Arc::new(watch::Sender::new(Phase::Serving)),
            metrics: Arc::new(Metrics::new(workers)),
            admin,
            started: (now, Instant::now()),
        })
    }

    /// The bound addresses, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Configuration and files of the first snapshot.
    #[must_use]
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
    }

    /// Notified, the app reads configuration and files again at once instead of at the next turn.
    #[must_use]
    pub fn reload_now(&self) -> Arc<Notify> {
        Arc::clone(&self.reload_now)
    }

    /// The address of the admin port, with the port that the kernel chose.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Admin::address)
    }

    /// What its workers count.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// How far it is on its way to its end.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Serves until `shutdown` completes, then drains. Returns once every worker has ended.
    ///
    /// # Errors
    ///
    /// When a worker cannot start or ends by itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future makes the workers drain on their own.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        let Self {
            sockets,
            shared,
            mut reloader,
            source,
            reload_now,
            phase,
            metrics,
            admin,
            started,
            addresses,
        } = self;
        let sources = Sources {
            metrics: Arc::clone(&metrics),
            report: reloader.report(),
            phase: phase.subscribe(),
            listening: addresses,
            started,
        };
        let _admin = admin
            .map(|admin| admin.serve(sources, &shared.timeouts))
            .transpose()?;
        let control = Drain::new();
        let resolve = shared.timeouts.resolve;
        for cluster in reloader.clusters() {
            look_up(cluster).await;
            control.spawn(Arc::clone(cluster.endpoints()).keep_resolved(resolve));
        }
        let workers = start_workers(sockets, &shared, &metrics)?;
        let reloading = async {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(shared.timeouts.reload) => {}
                    () = reload_now.notified() => {}
                }
                let before: Vec<_> = reloader
                    .clusters()
                    .iter()
                    .map(|cluster| Arc::clone(cluster.endpoints()))
                    .collect();
                if let Some(snapshot) = reloader.reload(&source, SystemTime::now()) {
                    for cluster in reloader.clusters() {
                        if !before
                            .iter()
                            .any(|known| Arc::ptr_eq(known, cluster.endpoints()))
                        {
                            look_up(cluster).await;
                            control.spawn(Arc::clone(cluster.endpoints()).keep_resolved(resolve));
                        }
                    }
                    shared.snapshot.store(Arc::new(snapshot));
                    info!("reloaded");
                }
            }
        };
        workers.run(shutdown, reloading, &phase).await
    }
}

/// The running workers.
struct Workers {
    drains: Vec<Drain>,
    ends: mpsc::UnboundedReceiver<(usize, io::Result<()>)>,
}

fn start_workers(
    sockets: Vec<Vec<std::net::TcpListener>>,
    shared: &Arc<Shared>,
    metrics: &Metrics,
) -> Result<Workers, AppError> {
    let connections = Arc::new(Semaphore::new(shared.limits.connections));
    let (tell, ends) = mpsc::unbounded_channel();
    let mut workers = Workers {
        drains: Vec::new(),
        ends,
    };
    let counts = metrics.workers().iter().cloned();
    for (number, (sockets, counts)) in sockets.into_iter().zip(counts).enumerate() {
        let drain = Drain::new();
        workers.drains.push(drain.clone());
        let (shared, connections, tell) =
            (Arc::clone(shared), Arc::clone(&connections), tell.clone());
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                let work =
                    AssertUnwindSafe(|| work(sockets, &shared, &connections, &drain, &counts));
                let ended = catch_unwind(work)
                    .unwrap_or_else(|_| Err(io::Error::other("the worker panicked")));
                // Nobody is left to tell when the app was dropped.
                tell.send((number, ended)).ok();
            })
            .map_err(|source| AppError::Run {
                doing: format!("start worker {number}"),
                source,
            })?;
    }
    Ok(workers)
}

impl Workers {
    /// Serves until `shutdown`, then drains; `reloading` goes on until then.
    async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        reloading: impl Future<Output = ()>,
        phase: &watch::Sender<Phase>,
    ) -> Result<(), AppError> {
        let early = tokio::select! {
            () = shutdown => None,
            () = reloading => None,
            ended = self.ends.recv() => ended,
        };
        if let Some((number, ended)) = early {
            let source = ended
                .err()
                .unwrap_or_else(|| io::Error::other("the worker ended by itself"));
            return Err(AppError::Run {
                doing: format!("run worker {number}"),
                source,
            });
        }
        info!("draining");
        phase.send_replace(Phase::Draining);
        self.drains.iter().for_each(Drain::begin);
        while let Some((number, ended)) = self.ends.recv().await {
            ended.map_err(|source| AppError::Run {
                doing: format!("run worker {number}"),
                source,
            })?;
        }
        info!("stopped");
        Ok(())
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.drains.iter().for_each(Drain::begin);
    }
}

/// The life of one worker: a runtime, the sockets, and at the end the drain.
fn work(
    sockets: Vec<std::net::TcpListener>,
    shared: &Arc<Shared>,
    connections: &Arc<Semaphore>,
    drain: &Drain,
    counts: &Arc<Counts>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(counts.alive(async {
        let worker = Worker::new(
            shared.limits.clone(),
            shared.timeouts.clone(),
            drain.clone(),
        );
        let worker = Arc::new(worker.counting(Arc::clone(counts)));
        for socket in sockets {
            let (connections, counts) = (Arc::clone(connections), Arc::clone(counts));
            let listener = Listener::new(socket, connections, shared.timeouts.clone(), counts)?;
            drain.spawn(accept_all(
                listener,
                Arc::clone(shared),
                Arc::clone(&worker),
                drain.clone(),
            ));
        }
        tokio::select! {
            () = worker.sweep() => {}
            () = drain.begun() => {}
        }
        worker.close_idle();
        let running = drain.finish(shared.timeouts.drain).await;
        if running > 0 {
            warn!(running, "drain timeout passed, what still runs is cut");
        }
        Ok(())
    }))
    // Dropping the runtime ends what is left, without close_notify: cut, and seen to be cut.
}

async fn accept_all(listener: Listener, shared: Arc<Shared>, worker: Arc<Worker>, drain: Drain) {
    loop {
        let Accepted {
            stream,
            peer,
            permit,
        } = tokio::select! {
            // Connections that the kernel has taken already are served even when the drain begins.
            biased;
            accepted = listener.accept() => accepted,
            () = drain.begun() => return,
        };
        drain.spawn(downstream::serve(
            stream,
            peer,
            permit,
            Arc::clone(&shared),
            Arc::clone(&worker),
            drain.clone(),
        ));
    }
}

/// A first answer before the first request, so that none fails for want of an address.
async fn look_up(cluster: &Cluster) {
    drop(tokio::time::timeout(FIRST_LOOKUP, cluster.endpoints().resolve()).await);
}

/// How long the start, or a reload, waits for a name to resolve; requests that come before there is an
/// address get a 503.
const FIRST_LOOKUP: Duration = Duration::from_secs(2);
