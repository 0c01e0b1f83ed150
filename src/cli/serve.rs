//! `serve`: from the command line to a running proxy, and from a signal to its end.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::SystemTime,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};
use tracing::{info, warn};

use super::StartBlock;
use crate::{
    app::{App, AppError},
    config::{self, Environment, LogFormat, ServeArgs},
    telemetry,
};

/// Runs the proxy until SIGTERM or SIGINT.
///
/// # Errors
///
/// Whatever ends it before that.
pub(super) fn serve(args: ServeArgs) -> Result<(), AppError> {
    let environment = Environment::of_process();
    let app = App::bind(Box::new(move || config::load(&args, &environment)))?;
    let telemetry = telemetry::start(&app.reloader().config().log).map_err(AppError::LogFilter)?;
    app.metrics()
        .ask_log_lines_dropped(telemetry.ask_dropped_lines());
    let run = |source| AppError::Run {
        doing: "start the runtime".into(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(run)?;
    let ended = runtime.block_on(async {
        let signals = |source| AppError::Run {
            doing: "listen for signals".into(),
            source,
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
        let hang_up = signal(SignalKind::hangup()).map_err(signals)?;
        // Only now: whoever reads that it listens may send a signal, which before would have killed it.
        announce(&app);
        let reload_now = app.reload_now();
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = reload_on(hang_up, reload_now) => {}
            }
        };
        app.run(shutdown).await
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

/// Turns every SIGHUP into a reload, for ever.
async fn reload_on(mut hang_up: tokio::signal::unix::Signal, reload_now: Arc<Notify>) {
    while hang_up.recv().await.is_some() {
        reload_now.notify_one();
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
