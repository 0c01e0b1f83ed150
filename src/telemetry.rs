//! Sets up logging: to stderr, as text or JSON, written by a thread of its own.
//!
//! A log sink that stalls must not stall requests: lines beyond the queue are dropped and counted.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, filter::ParseError, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

/// Keeps logging alive; writes what is queued when dropped.
#[derive(Debug)]
pub struct Telemetry {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Telemetry {
    /// Log lines that were dropped because the sink was too slow.
    #[must_use]
    pub fn dropped_lines(&self) -> usize {
        self.dropped.dropped_lines()
    }
}

/// Starts logging for the whole process.
///
/// # Errors
///
/// When the filter is malformed.
pub fn start(config: &LogConfig) -> Result<Telemetry, ParseError> {
    let access = if config.access { "info" } else { "off" };
    // hyper and rustls warn per attacker's request; what matters of it is in our own events.
    let filter = format!(
        "hyper=error,h2=error,rustls=error,kube_tls_proxy::access={access},{}",
        config.filter
    );
    let filter = EnvFilter::builder().parse(filter)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry().with(filter);
    // A second start in one process, as tests make it, keeps the first subscriber.
    let started = match config.format {
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(writer))
            .try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_ansi(colours).with_writer(writer))
                .try_init()
        }
    };
    drop(started);
    Ok(Telemetry {
        _writer: guard,
        dropped,
    })
}
