//! Sets up logging: to stderr, as text or JSON, written by a thread of its own.
//!
//! A log sink that stalls must not stall requests: lines beyond the queue are dropped and counted.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    filter::{ParseError, filter_fn},
    fmt,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

/// Keeps logging alive; writes what is queued when dropped.
#[derive(Debug)]
pub struct Telemetry {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
}

impl Telemetry {
    /// Asks for [`Telemetry::dropped_lines`] later.
    pub fn ask_dropped_lines(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let dropped = self.dropped.clone();
        move || dropped.dropped_lines() as u64
    }

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
    let filter = format!("kube_tls_proxy::access={access},{}", config.filter);
    let filter = EnvFilter::builder().parse(filter)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(may_be_logged));
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

/// Of other crates nothing but errors, whatever the operator's filter says: h2 logs whole header fields
/// at `trace`, tokens included, and hyper and rustls warn per attacker's request. What matters of theirs
/// is in our own events. Proof: tests/it `no_filter_brings_a_secret_into_the_log`.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_CRATE_NAME")) || *metadata.level() == Level::ERROR
}

/// Lines that may wait for a slow log sink: room for all of them is made at the start, and they hold some
/// 400 bytes each.
const WAITING_LINES: usize = 16 * 1024;
