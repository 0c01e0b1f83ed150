//! `serve`: starts the proxy, reports the start, and acts on signals until the proxy has ended.

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
use tracing::{error, info, warn};

use super::{StartBlock, systemd};
use crate::{
    app::{App, AppError, FastStop},
    config::{self, Environment, LogFormat, ServeArgs},
    pki::UtcDate,
    process, quote,
    reload::{NamingMaterial, ReloadReport},
    telemetry::{self, LiveFilter},
};

/// Runs the proxy until it has drained after SIGTERM or SIGINT.
///
/// # Errors
///
/// Every failure that prevents the start or ends the proxy.
pub(super) fn serve(args: ServeArgs) -> Result<(), AppError> {
    process::protect_secrets();
    process::raise_open_files();
    let environment = Environment::from_process();
    let source = Box::new(move || config::load(&args, &environment));
    let app = App::bind_or_inherit(source, systemd::inherited_sockets()?)?;
    let telemetry = telemetry::start(&app.reloader().config().log).map_err(AppError::LogFilter)?;
    let filter = telemetry.filter();
    let app = app.with_log(Box::new({
        let filter = filter.clone();
        move |log| filter.configure(log)
    }));
    app.metrics()
        .read_dropped_log_lines(telemetry.lost_lines_reader());
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
        // After the signal handlers are installed: a reader of these lines may send a signal at once, and without
        // handlers that would kill the process.
        report_start(&app);
        systemd::ready();
        let watchdog = systemd::feed_watchdog(app.heartbeats());
        let (shutdown, shutdown_requested) = oneshot::channel();
        let signal_handling = handle_signals(
            signals,
            filter,
            app.stop(),
            shutdown,
            app.reload_now(),
            app.reloader().report(),
        );
        let shutdown = async { shutdown_requested.await.unwrap_or_default() };
        tokio::select! {
            ended = app.run(shutdown) => ended,
            never = watchdog => match never {},
            never = signal_handling => match never {},
        }
    });
    // Dropping the runtime would wait for a lookup that hangs in a dead resolver.
    runtime.shutdown_background();
    let lines = telemetry.lost_lines_reader()();
    if lines > 0 {
        warn!(
            lines,
            "log lines lost: stderr was too slow, or writing to it failed"
        );
    }
    ended
}

/// The signals that the proxy handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Acts on signals: SIGHUP reloads. SIGTERM drains. SIGINT drains without the delay, because a person waits. A second
/// SIGTERM or SIGINT closes everything at once. SIGUSR1 switches debugging on and off. SIGUSR2 is ignored: other
/// servers upgrade themselves then, and the default would end the process.
async fn handle_signals(
    mut signals: Signals,
    filter: LiveFilter,
    stop: FastStop,
    shutdown: oneshot::Sender<()>,
    reload_now: Arc<Notify>,
    mut report: watch::Receiver<ReloadReport>,
) -> Infallible {
    let mut shutdown = Some(shutdown);
    let mut before: Option<FileState> = None;
    loop {
        let name = tokio::select! {
            Some(()) = signals.terminate.recv() => "SIGTERM",
            Some(()) = signals.interrupt.recv() => "SIGINT",
            Some(()) = signals.hang_up.recv() => {
                info!("reload requested by SIGHUP");
                // During the drain, systemd must not be told of a reload: it waits for the end of the process.
                if shutdown.is_some() {
                    before = Some(FileState::from_report(&report.borrow_and_update()));
                    systemd::reloading();
                }
                reload_now.notify_one();
                continue;
            }
            Some(()) = signals.user_1.recv() => {
                switch_debug(&filter);
                continue;
            }
            Some(()) = signals.user_2.recv() => {
                info!("SIGUSR2 ignored");
                continue;
            }
            Ok(()) = report.changed(), if before.is_some() => {
                if let Some(before) = before.take() {
                    before.log_if_same(FileState::from_report(&report.borrow_and_update()));
                }
                if shutdown.is_some() {
                    systemd::ready();
                }
                continue;
            }
            else => return pending().await,
        };
        info!(signal = name, "stop requested by signal");
        match shutdown.take() {
            Some(shutdown) => {
                systemd::stopping();
                if name == "SIGINT" {
                    stop.without_delay();
                }
                // Fails if the proxy has already ended.
                shutdown.send(()).ok();
            }
            None => stop.now(),
        }
    }
}

/// Switches debugging on, or off again. The line is written while debugging is on, so that no filter hides it.
fn switch_debug(filter: &LiveFilter) {
    let is_on = filter.is_debug();
    if is_on {
        info!("debug logging switched off by SIGUSR1");
    }
    filter.set_debug(!is_on);
    if !is_on {
        info!("debug logging switched on by SIGUSR1");
    }
}

/// The parts of a report that tell whether a reload changed anything. The report itself would keep the old material
/// alive.
struct FileState {
    failure: Option<String>,
    needs_restart: Vec<&'static str>,
    unchanged: u64,
}

impl FileState {
    fn from_report(report: &ReloadReport) -> Self {
        Self {
            failure: report.failure.clone(),
            needs_restart: report.needs_restart.clone(),
            unchanged: report.unchanged,
        }
    }

    /// Logs that the reload changed nothing. The reload itself logs each failure and change once only, so the sender
    /// of a second SIGHUP would otherwise see no reply.
    fn log_if_same(self, now: Self) {
        match (self.failure, now.failure) {
            (Some(before), Some(now)) if before == now => {
                warn!(error = now, "reload failed again with the same error");
            }
            (None, None)
                if now.unchanged > self.unchanged && now.needs_restart == self.needs_restart =>
            {
                info!("reload found no changes");
            }
            _ => {}
        }
    }
}

/// Prints the facts of the start: a block for people before a text log, more events in a JSON log. Both logs have the
/// event `started`, so that a restart can be found by its time.
fn report_start(app: &App) {
    let (config, material) = (app.reloader().config(), app.reloader().material());
    let identities: Vec<_> = material.identities.iter().collect();
    let clusters: Vec<_> = material
        .clusters
        .iter()
        .map(|cluster| (&cluster.config, &cluster.trust))
        .collect();
    let namings: Vec<_> = material
        .clients()
        .map(|(cluster, clients)| (cluster, &clients.naming))
        .collect();
    let block = StartBlock {
        listening: &app.bound().load(),
        admin: app.admin_address(),
        identities: &identities,
        clusters: &clusters,
        namings: &namings,
        workers: config.workers,
        connections: config.limits.connections,
        decided_by: config.capacity.decided_by,
        now: SystemTime::now(),
    };
    if config.log.format == LogFormat::Text {
        // If stderr is closed, nothing can be reported.
        write!(io::stderr().lock(), "{block}").ok();
    }
    log_start(&block);
    if config.log.format == LogFormat::Json {
        log_certificates(&block);
    }
    for warning in &config.warnings {
        warn!(warning, "configuration warning");
    }
    for problem in &material.cluster_problems {
        error!(error = problem, "cluster file is unusable");
    }
    for warning in material.warnings(block.now) {
        warn!(warning, "certificate warning");
    }
}

/// The facts of the start as one event.
fn log_start(block: &StartBlock<'_>) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        process.pid = std::process::id(),
        listening = block.listening().join(", "),
        admin = block.admin(),
        workers = block.workers,
        connections = block.connections,
        connections_limit = %block.decided_by,
        "started",
    );
}

/// One event for each certificate, each cluster and each CA of a cluster.
fn log_certificates(block: &StartBlock<'_>) {
    for identity in block.identities {
        info!(
            names = identity.names().join(", "),
            not_after = %UtcDate(identity.not_after()),
            issuer = identity.summary().issuer,
            sha256 = identity.summary().sha256,
            "certificate in use"
        );
    }
    for (cluster, trust) in block.clusters {
        info!(
            cluster = cluster.name,
            url = %cluster.url(),
            expected_name = %cluster.expected_name.to_str(),
            hosts = Some(cluster.public_names().join(", ")).filter(|hosts| !hosts.is_empty()),
            passthrough = cluster.passthrough.then_some(true),
            "cluster in use"
        );
        if let Some(token) = &cluster.discovery {
            info!(
                cluster = cluster.name,
                file = %quote::path(token),
                reads = "EndpointSlice default/kubernetes",
                "pod token in use"
            );
        }
        for ca in trust.summaries() {
            info!(
                cluster = cluster.name,
                subject = ca.subject,
                not_after = %UtcDate(ca.not_after),
                sha256 = ca.sha256,
                "cluster CA in use"
            );
        }
    }
    for (cluster, naming) in block.namings {
        match naming {
            NamingMaterial::FrontProxy(identity) => {
                let leaf = identity.summary();
                info!(
                    cluster = cluster.name,
                    subject = leaf.subject,
                    not_after = %UtcDate(leaf.not_after),
                    sha256 = leaf.sha256,
                    "front-proxy certificate in use"
                );
            }
            NamingMaterial::Token(token) => info!(
                cluster = cluster.name,
                file = %quote::path(token.path()),
                "impersonation token in use"
            ),
        }
    }
}
