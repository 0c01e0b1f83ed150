//! The worker threads: each has its own runtime, its own sockets and its own drain.

use std::{
    future::Future,
    io,
    net::TcpListener,
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

use super::AppError;
use crate::{
    config::Timeouts,
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

/// The running workers.
pub(super) struct Workers {
    drains: Vec<Drain>,
    /// The number of a worker that has ended, and the connections that it had to close.
    ended: mpsc::UnboundedReceiver<(usize, io::Result<ConnectionCounts>)>,
}

impl Workers {
    /// Starts one worker for each set of sockets.
    pub(super) fn start(
        sockets: Vec<Vec<TcpListener>>,
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
            workers.drains.push(worker.drain.clone());
            let (sender, heartbeat) = (sender.clone(), heartbeats.worker(number));
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    let run = AssertUnwindSafe(|| worker.run(sockets, &heartbeat));
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

    /// Serves until `shutdown` completes and `timeouts.drainDelay` has passed, then drains. `reloading` runs
    /// until the drain.
    pub(super) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        reloading: impl Future<Output = ()>,
        phase: &watch::Sender<Phase>,
        stop: &FastStop,
        timeouts: &Timeouts,
    ) -> Result<(), AppError> {
        let serving = async {
            shutdown.await;
            phase.send_replace(Phase::Announced);
            info!(delay = ?timeouts.drain_delay, "shutdown announced, new clients are still served");
            tokio::select! {
                () = sleep(timeouts.drain_delay) => {}
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
        sockets: Vec<TcpListener>,
        heartbeat: &WorkerHeartbeat,
    ) -> io::Result<ConnectionCounts> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let (limits, timeouts) = (&self.shared.limits, &self.shared.timeouts);
            let context =
                UpstreamContext::new(limits.clone(), timeouts.clone(), self.drain.clone())
                    .counting(Arc::clone(&self.counters))
                    .sharing(
                        Arc::clone(&self.replay_budget),
                        Arc::clone(&self.spare_sockets),
                    );
            let context = Arc::new(context);
            for (number, socket) in sockets.into_iter().enumerate() {
                let listener = Listener::new(
                    socket,
                    self.owner,
                    Arc::clone(&self.shared.clients),
                    Arc::clone(&self.shared.memory),
                    timeouts.clone(),
                    Arc::clone(&self.counters),
                )?;
                let (shared, context) = (Arc::clone(&self.shared), Arc::clone(&context));
                let drain = self.drain.clone();
                let (lists, counters) = (Arc::clone(&shared), Arc::clone(&self.counters));
                let judge = move |peer| lists.judge(number, peer, &counters);
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
                        listener: number,
                    };
                    downstream::spawn(accepted, shared, context, &drain);
                };
                self.drain
                    .spawn(listener.run(self.drain.clone(), judge, on_accept));
            }
            let draining = async {
                tokio::select! {
                    () = context.sweep() => {}
                    () = self.drain.begun() => {}
                }
                context.close_idle();
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
}
