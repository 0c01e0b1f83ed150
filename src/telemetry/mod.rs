//! Logging to stderr, as logfmt or JSON, written by a thread of its own; what is logged can change while it runs.
//!
//! A log sink that stalls must not stall requests: lines beyond the queue are dropped and counted.

mod limiter;
mod logfmt;

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::{ParseError, filter_fn},
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{Format, Json, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

pub(crate) use limiter::LogLimiter;

use crate::config::{LogConfig, LogFormat};
use logfmt::Logfmt;

/// Keeps logging alive. Writes the queued lines when dropped.
#[derive(Debug)]
pub struct Telemetry {
    _writer: WorkerGuard,
    dropped: ErrorCounter,
    failed: Arc<AtomicU64>,
    filter: LiveFilter,
}

/// Decides what is logged, and how. Clones change the same log.
#[derive(Debug, Clone)]
pub struct LiveFilter {
    is_json: Arc<AtomicBool>,
    handle: reload::Handle<EnvFilter, Registry>,
    state: Arc<Mutex<FilterState>>,
}

#[derive(Debug)]
struct FilterState {
    config: LogConfig,
    /// SIGUSR1 has switched debugging on.
    debug: bool,
}

impl FilterState {
    fn filter(&self) -> Result<EnvFilter, ParseError> {
        let access = if self.config.access { "info" } else { "off" };
        let debug = if self.debug {
            ",kube_tls_proxy=debug"
        } else {
            ""
        };
        let filter = &self.config.filter;
        EnvFilter::builder().parse(format!("{filter}{debug},kube_tls_proxy::access={access}"))
    }
}

impl LiveFilter {
    /// Uses this format, this filter and this setting of the access log from now on. Debugging that was switched on
    /// stays on.
    pub fn configure(&self, config: &LogConfig) {
        let is_json = config.format == LogFormat::Json;
        self.is_json.store(is_json, Ordering::Relaxed);
        self.change(|state| config.clone_into(&mut state.config));
    }

    /// Switches the level `debug` on or off, whatever the configuration says.
    pub fn set_debug(&self, debug: bool) {
        self.change(|state| state.debug = debug);
    }

    /// Whether the level `debug` was switched on.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.debug
    }

    fn change(&self, change: impl FnOnce(&mut FilterState)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        // The filter was parsed when the configuration was read.
        if let Ok(filter) = state.filter() {
            // It fails only if the log has ended.
            self.handle.reload(filter).ok();
        }
    }
}

impl Telemetry {
    /// Changes what is logged.
    #[must_use]
    pub fn filter(&self) -> LiveFilter {
        self.filter.clone()
    }

    /// A function that returns the number of log lines lost so far: those that found no room in the queue, because the
    /// sink is too slow, and those that the sink refused, because the disk is full for example.
    pub fn lost_lines_reader(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let (dropped, failed) = (self.dropped.clone(), Arc::clone(&self.failed));
        move || dropped.dropped_lines() as u64 + failed.load(Ordering::Relaxed)
    }
}

/// Writes lines to `sink`, as many at once as wait, and counts those that it refuses. The thread that writes calls
/// `flush` as soon as no line waits.
#[derive(Debug)]
struct CountingSink<W> {
    sink: W,
    /// Whole lines.
    waiting: Vec<u8>,
    failed: Arc<AtomicU64>,
}

impl<W: Write> CountingSink<W> {
    fn new(sink: W, failed: Arc<AtomicU64>) -> Self {
        Self {
            sink,
            waiting: Vec::new(),
            failed,
        }
    }
}

impl<W: Write> Write for CountingSink<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.waiting.extend_from_slice(line);
        if self.waiting.len() >= MAX_WRITE {
            self.flush()?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut rest = self.waiting.as_slice();
        while !rest.is_empty() {
            match self.sink.write(rest) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
                Ok(_) | Err(_) => {
                    let lines = rest.iter().filter(|byte| **byte == b'\n').count();
                    self.failed.fetch_add(lines as u64, Ordering::Relaxed);
                    break;
                }
            }
        }
        self.waiting.clear();
        self.sink.flush()
    }
}

/// Starts logging for the whole process.
///
/// # Errors
///
/// If the filter is malformed.
pub fn start(config: &LogConfig) -> Result<Telemetry, ParseError> {
    let state = FilterState {
        config: config.clone(),
        debug: false,
    };
    let (filter, handle) = reload::Layer::new(state.filter()?);
    let is_json = Arc::new(AtomicBool::new(config.format == LogFormat::Json));
    let filter_handle = LiveFilter {
        is_json: Arc::clone(&is_json),
        handle,
        state: Arc::new(Mutex::new(state)),
    };
    let failed = Arc::default();
    let sink = CountingSink::new(io::stderr(), Arc::clone(&failed));
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .finish(sink);
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(may_be_logged));
    // A second start in one process, as in tests, keeps the first subscriber.
    let format = LiveFormat {
        is_json,
        json: fmt::format().json().flatten_event(true),
    };
    let layer = fmt::layer()
        .event_format(format)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(writer);
    drop(registry.with(layer).try_init());
    Ok(Telemetry {
        _writer: guard,
        dropped,
        failed,
        filter: filter_handle,
    })
}

/// Formats each event as `log.format` says at this moment.
struct LiveFormat {
    is_json: Arc<AtomicBool>,
    json: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for LiveFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if self.is_json.load(Ordering::Relaxed) {
            self.json.format_event(context, writer, event)
        } else {
            Logfmt.format_event(context, writer, event)
        }
    }
}

/// Other crates log errors only, whatever the filter of the operator says: h2 logs whole header fields
/// at `trace`, tokens included, and hyper and rustls warn once per request of an attacker. Our own events
/// have the facts that matter. Proof: tests/it `log_contains_no_secret_with_any_filter`.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with(env!("CARGO_CRATE_NAME")) || *metadata.level() == Level::ERROR
}

/// Lines that can wait for a slow log sink. The queue is allocated at the start; a line has about 400 bytes.
const WAITING_LINES: usize = 16 * 1024;
/// Bytes of one write to the log sink, at the most a line more. Each write costs about as much as the text of a line.
const MAX_WRITE: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for some bytes. It notes each write.
    #[derive(Default)]
    struct Disk {
        room: usize,
        writes: Vec<usize>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let written = bytes.len().min(self.room);
            self.room -= written;
            self.writes.push(written);
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn sink(room: usize) -> CountingSink<Disk> {
        let disk = Disk {
            room,
            ..Disk::default()
        };
        CountingSink::new(disk, Arc::default())
    }

    #[test]
    fn lines_that_a_full_disk_refuses_are_counted() {
        let mut sink = sink(10);
        for _ in 0..5 {
            sink.write_all(b"line\n").unwrap();
        }
        sink.flush().unwrap();
        assert_eq!(sink.failed.load(Ordering::Relaxed), 3);
        sink.sink.room = 5;
        sink.write_all(b"line\n").unwrap();
        sink.flush().unwrap();
        assert_eq!(sink.failed.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn waiting_lines_leave_in_one_bounded_write() {
        let mut sink = sink(usize::MAX);
        let line = [b'\n'; 100];
        for _ in 0..MAX_WRITE.div_ceil(100) + 3 {
            sink.write_all(&line).unwrap();
        }
        assert_eq!(sink.sink.writes, [MAX_WRITE.next_multiple_of(100)]);
        sink.flush().unwrap();
        sink.flush().unwrap();
        assert_eq!(sink.sink.writes, [MAX_WRITE.next_multiple_of(100), 300]);
    }
}
