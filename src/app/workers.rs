//! The worker threads: each has its own runtime, its own sockets and its own drain.

use std::{
    collections::HashMap,
    future::{Future, pending},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{AppError, listeners::WorkerSocket};
use crate::{
    config::LiveSettings,
    downstream::{self, NewConnection, Shared},
    drain::{ConnectionCounts, Deadlines, Drain, Phase},
    heartbeat::{Heartbeats, WorkerHeartbeat},
    listener::{Accepted, Listener, Owner},
    metrics::{Counters, Metrics},
    upstream::{ReplayBudget, SpareSockets, UpstreamContext},
};

/// Makes a proxy stop faster. A call before the stop signal takes effect when the signal comes. Clones act on the
/// same proxy.
#[derive(Debug, Clone, Default)]
pub struct FastStop {
    no_delay: CancellationToken,
    now: CancellationToken,
}

impl FastStop {
    /// Closes the listening sockets at once, without `timeouts.drainDelay`.
    pub fn without_delay(&self) {
        self.no_delay.cancel();
    }

    /// Closes all connections at once, whatever still runs.
    pub fn now(&self) {
        self.no_delay.cancel();
        self.now.cancel();
    }
}

/// A change of the sockets that a worker listens on.
enum ListenerChange {
    Open(WorkerSocket),
    /// The number of an address. Its connections are drained.
    Close(usize),
}

/// Changes the sockets of all workers.
pub(super) struct ListenerChanges(Vec<mpsc::UnboundedSender<ListenerChange>>);

impl ListenerChanges {
    /// Opens these sockets, for each worker its own, and then closes the addresses with these numbers.
    pub(super) fn send(&self, opened: Vec<Vec<WorkerSocket>>, closed: &[usize]) {
        for (worker, sockets) in self.0.iter().zip(opened) {
            let opened = sockets.into_iter().map(ListenerChange::Open);
            let closed = closed.iter().copied().map(ListenerChange::Close);
            for change in opened.chain(closed) {
                // It fails only for a worker that has ended.
                worker.send(change).ok();
            }
        }
    }
}

/// The running workers.
pub(super) struct Workers {
    drains: Vec<Drain>,
    changes: Vec<mpsc::UnboundedSender<ListenerChange>>,
    /// The number of a worker that has ended, and the connections that it had to close.
    ended: mpsc::UnboundedReceiver<(usize, io::Result<ConnectionCounts>)>,
}

impl Workers {
    /// Starts one worker for each set of sockets.
    pub(super) fn start(
        sockets: Vec<Vec<WorkerSocket>>,
        owner: Owner,
        shared: &Arc<Shared>,
        spare_sockets: &Arc<SpareSockets>,
        metrics: &Metrics,
        heartbeats: &Heartbeats,
    ) -> Result<Self, AppError> {
        let replay_budget = Arc::new(ReplayBudget::of_process(Arc::clone(&shared.memory)));
        let (sender, ended) = mpsc::unbounded_channel();
        // If a step below fails, this is dropped, which ends the workers that have started.
        let mut workers = Self {
            drains: Vec::new(),
            changes: Vec::new(),
            ended,
        };
        let counters = metrics.workers().iter().cloned();
        for (number, (sockets, counters)) in sockets.into_iter().zip(counters).enumerate() {
            let worker = Worker {
                owner,
                shared: Arc::clone(shared),
                replay_budget: Arc::clone(&replay_budget),
                spare_sockets: Arc::clone(spare_sockets),
                drain: Drain::new(),
                counters,
            };
            let (change, changes) = mpsc::unbounded_channel();
            workers.drains.push(worker.drain.clone());
            workers.changes.push(change);
            let (sender, heartbeat) = (sender.clone(), heartbeats.worker(number));
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    let run = AssertUnwindSafe(|| worker.run(sockets, changes, &heartbeat));
                    let ended = catch_unwind(run)
                        .unwrap_or_else(|_| Err(io::Error::other("the worker panicked")));
                    // It fails only after the app was dropped.
                    sender.send((number, ended)).ok();
                })
                .map_err(|source| AppError::Run {
                    doing: format!("start worker {number}"),
                    source,
                })?;
        }
        Ok(workers)
    }

    /// Changes the sockets of the workers.
    pub(super) fn changes(&self) -> ListenerChanges {
        ListenerChanges(self.changes.clone())
    }

    /// Serves until `shutdown` completes and `timeouts.drainDelay` has passed, then drains. `reloading` runs
    /// until the drain.
    pub(super) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        reloading: impl Future<Output = ()>,
        phase: &watch::Sender<Phase>,
        stop: &FastStop,
        settings: &LiveSettings,
    ) -> Result<(), AppError> {
        let serving = async {
            shutdown.await;
            let delay = settings.load().timeouts.drain_delay;
            phase.send_replace(Phase::Announced);
            info!(?delay, "shutdown announced, new clients are still served");
            tokio::select! {
                () = sleep(delay) => {}
                () = stop.no_delay.cancelled() => {}
            }
        };
        let early = tokio::select! {
            () = serving => None,
            () = reloading => None,
            ended = self.ended.recv() => ended,
        };
        if let Some((number, ended)) = early {
            let source = ended
                .err()
                .unwrap_or_else(|| io::Error::other("the worker ended by itself"));
            return Err(run_failed(number, source));
        }
        let began = Instant::now();
        let settings = settings.load_full();
        let timeouts = &settings.timeouts;
        let open = sum(self.drains.iter().map(Drain::open));
        info!(
            connections = open.connections,
            tunnels = open.tunnels,
            requests_until = ?timeouts.drain,
            tunnels_until = ?timeouts.drain_tunnels.max(timeouts.drain),
            "draining"
        );
        phase.send_replace(Phase::Draining);
        self.drains.iter().for_each(Drain::begin);
        let closed = self.drained(stop).await?;
        if closed != ConnectionCounts::default() {
            warn!(
                connections = closed.connections,
                tunnels = closed.tunnels,
                "drain timeout reached; remaining connections were closed"
            );
        }
        let watches_ended: usize = self.drains.iter().map(Drain::watches_ended).sum();
        info!(
            duration_seconds = (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            watches_ended,
            connections_closed = closed.connections,
            tunnels_closed = closed.tunnels,
            "stopped"
        );
        Ok(())
    }

    /// Waits until every worker has ended; returns how many connections had not ended by themselves.
    async fn drained(&mut self, stop: &FastStop) -> Result<ConnectionCounts, AppError> {
        let (mut closed, mut is_aborted) = (Vec::new(), false);
        loop {
            tokio::select! {
                ended = self.ended.recv() => {
                    let Some((number, ended)) = ended else {
                        return Ok(sum(closed.into_iter()));
                    };
                    closed.push(ended.map_err(|source| run_failed(number, source))?);
                }
                () = stop.now.cancelled(), if !is_aborted => {
                    is_aborted = true;
                    warn!("second stop signal; closing all connections");
                    self.drains.iter().for_each(Drain::abort);
                }
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.drains.iter().for_each(Drain::begin);
    }
}

fn sum(counts: impl Iterator<Item = ConnectionCounts>) -> ConnectionCounts {
    counts.fold(ConnectionCounts::default(), |sum, one| ConnectionCounts {
        connections: sum.connections + one.connections,
        tunnels: sum.tunnels + one.tunnels,
    })
}

fn run_failed(number: usize, source: io::Error) -> AppError {
    AppError::Run {
        doing: format!("run worker {number}"),
        source,
    }
}

/// Everything that one worker needs on its own thread.
struct Worker {
    owner: Owner,
    shared: Arc<Shared>,
    replay_budget: Arc<ReplayBudget>,
    spare_sockets: Arc<SpareSockets>,
    drain: Drain,
    counters: Arc<Counters>,
}

impl Worker {
    /// Accepts and serves connections until the drain is over; returns how many had not ended by themselves.
    fn run(
        self,
        sockets: Vec<WorkerSocket>,
        mut changes: mpsc::UnboundedReceiver<ListenerChange>,
        heartbeat: &WorkerHeartbeat,
    ) -> io::Result<ConnectionCounts> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let settings = Arc::clone(&self.shared.settings);
            let context = UpstreamContext::new(settings, self.drain.clone())
                .counting(Arc::clone(&self.counters))
                .sharing(
                    Arc::clone(&self.replay_budget),
                    Arc::clone(&self.spare_sockets),
                );
            let context = Arc::new(context);
            let mut listening = HashMap::new();
            for socket in sockets {
                listening.insert(socket.number, self.listen(socket, &context)?);
            }
            let changing = async {
                while let Some(change) = changes.recv().await {
                    match change {
                        ListenerChange::Open(socket) => {
                            let number = socket.number;
                            match self.listen(socket, &context) {
                                Ok(drain) => drop(listening.insert(number, drain)),
                                Err(error) => warn!(%error, "could not use a new listening socket"),
                            }
                        }
                        ListenerChange::Close(number) => {
                            if let Some(drain) = listening.remove(&number) {
                                self.close(drain);
                            }
                        }
                    }
                }
                pending().await
            };
            let draining = async {
                tokio::select! {
                    () = context.sweep() => {}
                    () = changing => {}
                    () = self.drain.begun() => {}
                }
                context.close_idle();
                let timeouts = self.shared.settings.load().timeouts.clone();
                let deadlines = Deadlines {
                    requests: timeouts.drain,
                    tunnels: timeouts.drain_tunnels,
                };
                self.drain.finish(deadlines).await
            };
            tokio::select! {
                closed = draining => Ok(closed),
                never = heartbeat.heartbeat() => match never {},
            }
        })
        // Dropping the runtime closes what is left without `close_notify`, so that peers see a truncation.
    }

    /// Accepts and serves the connections of a socket. Returns the drain of the socket and of its connections.
    fn listen(&self, socket: WorkerSocket, context: &Arc<UpstreamContext>) -> io::Result<Drain> {
        let WorkerSocket { socket, peers, .. } = socket;
        let listener = Listener::new(
            socket,
            self.owner,
            Arc::clone(&self.shared.clients),
            Arc::clone(&self.shared.memory),
            Arc::clone(&self.shared.settings),
            Arc::clone(&self.counters),
        )?;
        let (shared, context) = (Arc::clone(&self.shared), Arc::clone(context));
        let drain = self.drain.part();
        let (lists, counters) = (Arc::clone(&shared), Arc::clone(&self.counters));
        let judged = Arc::clone(&peers);
        let judge = move |peer| lists.judge(&judged, peer, &counters);
        let of_connections = drain.clone();
        let on_accept = move |accepted: Accepted| {
            let (shared, context) = (Arc::clone(&shared), Arc::clone(&context));
            let Accepted {
                stream,
                peer,
                place,
            } = accepted;
            let accepted = NewConnection {
                stream,
                peer,
                place,
                peers: Arc::clone(&peers),
            };
            downstream::spawn(accepted, shared, context, &of_connections);
        };
        drain.spawn(listener.run(drain.clone(), judge, on_accept));
        Ok(drain)
    }

    /// Closes a socket that a reload has removed. Its requests have as much time as in a drain of the process; its
    /// tunnels end by themselves.
    fn close(&self, drain: Drain) {
        drain.begin();
        let limit = self.shared.settings.load().timeouts.drain;
        let of_process = self.drain.clone();
        self.drain.spawn(async move {
            tokio::select! {
                () = sleep(limit) => drain.end_requests(),
                () = of_process.begun() => {}
            }
        });
    }
}
