//! Logging to stderr, as text or JSON, written by a thread of its own; and the limit of log lines per client.
//!
//! A log sink that stalls must not stall requests: lines beyond the queue are dropped and counted.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    io::{self, IsTerminal, Write},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
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

/// Keeps logging alive. Writes the queued lines when dropped.
#[derive(Debug)]
pub struct Telemetry {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
    failed: Arc<AtomicU64>,
}

impl Telemetry {
    /// A function that returns the number of log lines lost so far: those that found no room in the queue, because the
    /// sink is too slow, and those that the sink refused, because the disk is full for example.
    pub fn lost_lines_reader(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let (dropped, failed) = (self.dropped.clone(), Arc::clone(&self.failed));
        move || dropped.dropped_lines() as u64 + failed.load(Ordering::Relaxed)
    }
}

/// Writes whole lines to `sink`, and counts those that it refuses.
#[derive(Debug)]
struct CountingSink<W> {
    sink: W,
    failed: Arc<AtomicU64>,
}

impl<W: Write> Write for CountingSink<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sink.write_all(line).is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Starts logging for the whole process.
///
/// # Errors
///
/// If the filter is malformed.
pub fn start(config: &LogConfig) -> Result<Telemetry, ParseError> {
    let access = if config.access { "info" } else { "off" };
    let filter = format!("kube_tls_proxy::access={access},{}", config.filter);
    let filter = EnvFilter::builder().parse(filter)?;
    let failed = Arc::default();
    let sink = CountingSink {
        sink: io::stderr(),
        failed: Arc::clone(&failed),
    };
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .finish(sink);
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(may_be_logged));
    // A second start in one process, as in tests, keeps the first subscriber.
    let started = match config.format {
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(writer))
            .try_init(),
        LogFormat::Text => {
            let colours = io::stderr().is_terminal();
            registry
                .with(fmt::layer().with_ansi(colours).with_writer(writer))
                .try_init()
        }
    };
    drop(started);
    Ok(Telemetry {
        _writer: guard,
        dropped,
        failed,
    })
}

/// Other crates log errors only, whatever the filter of the operator says: h2 logs whole header fields
/// at `trace`, tokens included, and hyper and rustls warn once per request of an attacker. Our own events
/// have the facts that matter. Proof: tests/it `log_contains_no_secret_with_any_filter`.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_CRATE_NAME")) || *metadata.level() == Level::ERROR
}

/// Limits the log lines about each client per second, so that a client that fails in a loop can neither
/// fill the log nor hide what happens to others.
#[derive(Debug)]
pub(crate) struct LogLimiter([ClientLines; LIMITER_SLOTS]);

/// The log lines of the clients that share a slot.
#[derive(Debug, Clone, Copy, Default)]
struct ClientLines {
    second: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self([ClientLines::default(); LIMITER_SLOTS])
    }
}

impl LogLimiter {
    /// Returns `Some` if a line about this client may be written, with the number of lines that were
    /// suppressed since the last one.
    pub(crate) fn admit(&mut self, client: IpAddr, now: Instant) -> Option<u64> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(client);
        let slot = usize::try_from(hash % LIMITER_SLOTS as u64).unwrap_or_default();
        let lines = self.0.get_mut(slot)?;
        let is_over = |second| now.duration_since(second) >= Duration::from_secs(1);
        if lines.second.is_none_or(is_over) {
            (lines.second, lines.written) = (Some(now), 0);
        }
        if lines.written >= MAX_LINES_PER_SECOND {
            lines.suppressed += 1;
            return None;
        }
        lines.written += 1;
        Some(std::mem::take(&mut lines.suppressed))
    }
}

/// Lines that can wait for a slow log sink. The queue is allocated at the start; a line has about 400 bytes.
const WAITING_LINES: usize = 16 * 1024;
/// Log lines per second about one client, for each worker.
const MAX_LINES_PER_SECOND: u32 = 10;
/// A fixed number, so that memory does not grow with clients. Two clients in one slot share its lines.
const LIMITER_SLOTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for some bytes.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0 = self
                .0
                .checked_sub(line.len())
                .ok_or(io::ErrorKind::StorageFull)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let failed = Arc::default();
        let mut sink = CountingSink {
            sink: Disk(10),
            failed: Arc::clone(&failed),
        };
        for _ in 0..5 {
            sink.write_all(b"line\n").unwrap();
        }
        assert_eq!(failed.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn lines_of_a_noisy_client_are_suppressed_and_counted() {
        let noisy = IpAddr::from([192, 0, 2, 1]);
        let quiet = IpAddr::from([192, 0, 2, 3]);
        let mut limiter = LogLimiter::default();
        let now = Instant::now();
        let written = (0..100).filter(|_| limiter.admit(noisy, now).is_some());
        assert_eq!(written.count(), 10);
        assert_eq!(limiter.admit(quiet, now), Some(0), "another client");
        let later = now + Duration::from_secs(1);
        assert_eq!(limiter.admit(noisy, later), Some(90));
        assert_eq!(limiter.admit(noisy, later), Some(0));
    }
}
