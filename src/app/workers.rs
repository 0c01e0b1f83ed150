//! The worker threads: started together, drained together.

use std::{
    future::Future,
    io,
    net::TcpListener,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tracing::{info, warn};

use super::{AppError, Stop};
use crate::{
    config::Timeouts,
    downstream::{self, Shared},
    drain::{Counts, Deadlines, Drain, Kind, Phase},
    heartbeat::{Heartbeats, WorkerHeartbeat},
    listener::{Accepted, Listener, Owner},
    metrics::{self, Metrics},
    upstream::UpstreamContext,
};

/// The running workers.
pub(super) struct Workers {
    drains: Vec<Drain>,
    ends: mpsc::UnboundedReceiver<(usize, io::Result<Counts>)>,
}

impl Workers {
    /// Starts one for each set of sockets.
    pub(super) fn start(
        sockets: Vec<Vec<TcpListener>>,
        owner: Owner,
        shared: &Arc<Shared>,
        metrics: &Metrics,
        heartbeats: &Heartbeats,
    ) -> Result<Self, AppError> {
        let connections = Arc::new(Semaphore::new(shared.limits.connections));
        let (tell, ends) = mpsc::unbounded_channel();
        let counts = metrics.workers().iter().cloned();
        let mut workers = Self {
            drains: Vec::new(),
            ends,
        };
        for (number, (sockets, counts)) in sockets.into_iter().zip(counts).enumerate() {
            let drain = Drain::new();
            workers.drains.push(drain.clone());
            let heartbeat = heartbeats.worker(number);
            let (shared, connections, tell) =
                (Arc::clone(shared), Arc::clone(&connections), tell.clone());
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    let listener = |socket| {
                        let timeouts = shared.timeouts.clone();
                        let (connections, counts) = (Arc::clone(&connections), Arc::clone(&counts));
                        Listener::new(socket, owner, connections, timeouts, counts)
                    };
                    let work = || work(sockets, listener, &shared, &drain, &counts, &heartbeat);
                    let work = AssertUnwindSafe(work);
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

    /// Serves until `shutdown` and for the delay behind it, then drains; `reloading` goes on until then.
    pub(super) async fn run(
        mut self,
        shutdown: impl Future<Output = ()>,
        reloading: impl Future<Output = ()>,
        phase: &watch::Sender<Phase>,
        stop: &Stop,
        timeouts: &Timeouts,
    ) -> Result<(), AppError> {
        let serving = async {
            shutdown.await;
            phase.send_replace(Phase::Announced);
            info!(delay = ?timeouts.drain_delay, "told to stop, new clients are still served");
            tokio::select! {
                () = sleep(timeouts.drain_delay) => {}
                () = stop.wants_no_delay() => {}
            }
        };
        let early = tokio::select! {
            () = serving => None,
            () = reloading => None,
            ended = self.ends.recv() => ended,
        };
        if let Some((number, ended)) = early {
            let source = ended
                .err()
                .unwrap_or_else(|| io::Error::other("the worker ended by itself"));
            return Err(run_failed(number, source));
        }
        let began = Instant::now();
        let running = self.running();
        info!(
            connections = running.connections,
            tunnels = running.tunnels,
            requests_until = ?timeouts.drain,
            tunnels_until = ?timeouts.drain_tunnels,
            "draining"
        );
        phase.send_replace(Phase::Draining);
        self.drains.iter().for_each(Drain::begin);
        let cut = self.ended(stop).await?;
        if cut != Counts::default() {
            warn!(
                connections = cut.connections,
                tunnels = cut.tunnels,
                "what still ran was cut"
            );
        }
        let watches_ended: usize = self.drains.iter().map(Drain::watches_ended).sum();
        info!(
            duration_seconds = (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
            watches_ended,
            connections_cut = cut.connections,
            tunnels_cut = cut.tunnels,
            "stopped"
        );
        Ok(())
    }

    /// Waits until every worker has ended, which `stop` can hasten; says what was cut.
    async fn ended(&mut self, stop: &Stop) -> Result<Counts, AppError> {
        let mut cut = Counts::default();
        let mut is_hastened = false;
        loop {
            let ended = tokio::select! {
                ended = self.ends.recv() => ended,
                () = stop.wants_the_end(), if !is_hastened => {
                    is_hastened = true;
                    warn!("told to stop a second time, everything ends now");
                    self.drains.iter().for_each(Drain::end);
                    continue;
                }
            };
            let Some((number, ended)) = ended else {
                return Ok(cut);
            };
            let of_worker = ended.map_err(|source| run_failed(number, source))?;
            cut.connections += of_worker.connections;
            cut.tunnels += of_worker.tunnels;
        }
    }

    fn running(&self) -> Counts {
        let mut running = Counts::default();
        for drain in &self.drains {
            let of_worker = drain.running();
            running.connections += of_worker.connections;
            running.tunnels += of_worker.tunnels;
        }
        running
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.drains.iter().for_each(Drain::begin);
    }
}

fn run_failed(number: usize, source: io::Error) -> AppError {
    AppError::Run {
        doing: format!("run worker {number}"),
        source,
    }
}

/// The life of one worker: a runtime, the sockets, and at the end the drain. Returns what was cut.
fn work(
    sockets: Vec<TcpListener>,
    listener: impl Fn(TcpListener) -> io::Result<Listener>,
    shared: &Arc<Shared>,
    drain: &Drain,
    counts: &Arc<metrics::Counters>,
    heartbeat: &WorkerHeartbeat,
) -> io::Result<Counts> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (limits, timeouts) = (shared.limits.clone(), shared.timeouts.clone());
        let worker =
            UpstreamContext::new(limits, timeouts, drain.clone()).counting(Arc::clone(counts));
        let worker = Arc::new(worker);
        for socket in sockets {
            let listener = listener(socket)?;
            let serving = Serving {
                shared: Arc::clone(shared),
                worker: Arc::clone(&worker),
                drain: drain.clone(),
            };
            drain.spawn(accept_all(listener, serving));
        }
        let life = async {
            tokio::select! {
                () = worker.sweep() => {}
                () = drain.begun() => {}
            }
            worker.close_idle();
            let deadlines = Deadlines {
                requests: shared.timeouts.drain,
                tunnels: shared.timeouts.drain_tunnels,
            };
            drain.finish(deadlines).await
        };
        tokio::select! {
            cut = life => Ok(cut),
            never = heartbeat.heartbeat() => match never {},
        }
    })
    // Dropping the runtime ends what is left, without close_notify: cut, and seen to be cut.
}

/// What serves the connections of one listener.
struct Serving {
    shared: Arc<Shared>,
    worker: Arc<UpstreamContext>,
    drain: Drain,
}

impl Serving {
    fn serve(&self, accepted: Accepted) {
        let Accepted {
            stream,
            peer,
            permit,
        } = accepted;
        let connection = self.drain.count(Kind::Connection);
        let served = downstream::serve(
            stream,
            peer,
            permit,
            Arc::clone(&self.shared),
            Arc::clone(&self.worker),
            self.drain.clone(),
        );
        self.drain.spawn(async move {
            let _connection = connection;
            served.await;
        });
    }
}

async fn accept_all(listener: Listener, serving: Serving) {
    // Places are waited for once the socket is closed: who came meanwhile would be reset with it.
    let mut unplaced = Vec::new();
    loop {
        let next = tokio::select! {
            biased;
            next = listener.next() => next,
            () = serving.drain.begun() => break,
        };
        tokio::select! {
            biased;
            place = listener.place() => serving.serve(next.at(place)),
            () = serving.drain.begun() => {
                unplaced.push(next);
                break;
            }
        }
    }
    // Handshakes under way are a round trip from their end.
    listener.wind_up();
    let until = Instant::now() + WIND_UP;
    while let Ok(next) = timeout_at(until, listener.next()).await {
        match listener.free_place() {
            Some(place) => serving.serve(next.at(place)),
            None => unplaced.push(next),
        }
    }
    let mut rest = listener.close(unplaced);
    while let Some(accepted) = rest.next().await {
        serving.serve(accepted);
    }
}

/// How long the handshakes may take that a closing socket has begun: a round trip to far away.
const WIND_UP: Duration = Duration::from_millis(250);
