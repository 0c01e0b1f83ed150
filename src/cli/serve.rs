//! `serve`: from the command line to a running proxy, and from a signal to its end.

use std::{
    convert::Infallible,
    future::pending,
    io::{self, Write as _},
    sync::Arc,
    time::SystemTime,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, oneshot, watch},
};
use tracing::{info, warn};

use super::{StartBlock, systemd};
use crate::{
    app::{App, AppError, FastStop},
    config::{self, Environment, LogFormat, ServeArgs},
    reload::ReloadReport,
    telemetry,
};

/// Runs the proxy until SIGTERM or SIGINT, and to the end of what runs then.
///
/// # Errors
///
/// Whatever ends it before that.
pub(super) fn serve(args: ServeArgs) -> Result<(), AppError> {
    let environment = Environment::from_process();
    let source = Box::new(move || config::load(&args, &environment));
    let app = App::bind_or_inherit(source, systemd::inherited_sockets()?)?;
    let telemetry = telemetry::start(&app.reloader().config().log).map_err(AppError::LogFilter)?;
    app.metrics()
        .read_dropped_log_lines(telemetry.dropped_lines_reader());
    let run = |source| AppError::Run {
        doing: "start the runtime".into(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(run)?;
    let ended = runtime.block_on(async {
        let signals = Signals::listen().map_err(|source| AppError::Run {
            doing: "listen for signals".into(),
            source,
        })?;
        // Only now: whoever reads that it listens may send a signal, which before would have killed it.
        announce(&app);
        systemd::ready();
        let watchdog = systemd::feed_watchdog(app.heartbeats());
        let (shutdown, told) = oneshot::channel();
        let obeying = obey(
            signals,
            app.stop(),
            shutdown,
            app.reload_now(),
            app.reloader().report(),
        );
        let told = async { told.await.unwrap_or_default() };
        tokio::select! {
            ended = app.run(told) => ended,
            never = watchdog => match never {},
            never = obeying => match never {},
        }
    });
    // Dropping it would wait for a lookup that a dead resolver holds up.
    runtime.shutdown_background();
    let lines = telemetry.dropped_lines();
    if lines > 0 {
        warn!(
            lines,
            "log lines were dropped because they were not read fast enough"
        );
    }
    ended
}

/// The signals that mean something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// Does what the signals say, for ever: SIGHUP reloads, SIGTERM stops, SIGINT stops without the delay
/// (a person waits), and either of them a second time ends everything.
async fn obey(
    mut signals: Signals,
    stop: FastStop,
    shutdown: oneshot::Sender<()>,
    reload_now: Arc<Notify>,
    mut report: watch::Receiver<ReloadReport>,
) -> Infallible {
    let mut shutdown = Some(shutdown);
    let mut before: Option<Known> = None;
    loop {
        let name = tokio::select! {
            Some(()) = signals.terminate.recv() => "SIGTERM",
            Some(()) = signals.interrupt.recv() => "SIGINT",
            Some(()) = signals.hang_up.recv() => {
                info!("SIGHUP: reload");
                // While it stops, systemd waits for the end and for nothing else.
                if shutdown.is_some() {
                    before = Some(Known::of(&report.borrow_and_update()));
                    systemd::reloading();
                }
                reload_now.notify_one();
                continue;
            }
            Ok(()) = report.changed(), if before.is_some() => {
                if let Some(before) = before.take() {
                    before.tell_of_nothing_new(Known::of(&report.borrow_and_update()));
                }
                if shutdown.is_some() {
                    systemd::ready();
                }
                continue;
            }
            else => return pending().await,
        };
        info!("{name}: stop");
        match shutdown.take() {
            Some(shutdown) => {
                systemd::stopping();
                if name == "SIGINT" {
                    stop.without_delay();
                }
                // Fails when it has ended by itself.
                shutdown.send(()).ok();
            }
            None => stop.now(),
        }
    }
}

/// What is known of the files, without holding on to what is served.
struct Known {
    failure: Option<String>,
    needs_restart: Vec<&'static str>,
    unchanged: u64,
}

impl Known {
    fn of(report: &ReloadReport) -> Self {
        Self {
            failure: report.failure.clone(),
            needs_restart: report.needs_restart.clone(),
            unchanged: report.unchanged,
        }
    }

    /// Answers who asked for a reload and would otherwise read nothing, since all else is said only once.
    fn tell_of_nothing_new(self, now: Self) {
        match (self.failure, now.failure) {
            (Some(before), Some(now)) if before == now => {
                warn!(error = now, "SIGHUP: the files are as wrong as before");
            }
            (None, None)
                if now.unchanged > self.unchanged && now.needs_restart == self.needs_restart =>
            {
                info!("SIGHUP: nothing has changed");
            }
            _ => {}
        }
    }
}

/// Says what was started: one block for people, one event for machines.
fn announce(app: &App) {
    let (config, material) = (app.reloader().config(), app.reloader().material());
    let identities: Vec<_> = material.identities.iter().collect();
    let clusters: Vec<_> = material
        .clusters
        .iter()
        .map(|(cluster, trust)| (cluster, trust))
        .collect();
    let block = StartBlock {
        listening: app.addresses(),
        admin: app.admin_address(),
        identities: &identities,
        clusters: &clusters,
        workers: config.workers,
        now: SystemTime::now(),
    };
    match config.log.format {
        // A closed stderr leaves nobody to tell.
        LogFormat::Text => drop(write!(io::stderr().lock(), "{block}")),
        LogFormat::Json => info!(
            listening = block.listening().join("; "),
            admin = block.admin(),
            serving = block.serving().join("; "),
            upstream = block.upstreams().join("; "),
            trusting = block.trusting().join("; "),
            workers = config.workers,
            version = env!("CARGO_PKG_VERSION"),
            "started",
        ),
    }
    for warning in material.warnings(block.now) {
        warn!("{warning}");
    }
}
