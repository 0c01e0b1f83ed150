//! The counters of one worker.
//!
//! Only the thread of that worker adds to them; others read. They are atomics because reading is allowed
//! at any time, not because anybody competes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;

use super::{
    Dialled, Handshake, LeaseEnd, LeaseFrom, Limit, Protocol, Resource, Verb,
    errors::Errors,
    histogram::Histogram,
    open::OpenStreams,
    requests::{self, Requests, Row},
};

/// What one worker has counted.
#[derive(Debug)]
pub struct Counters {
    pub(super) requests: Requests,
    pub(super) time_to_headers: [Histogram; Verb::ALL.len()],
    pub(super) durations: [Histogram; Verb::ALL.len()],
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) connections_total: [AtomicU64; Protocol::ALL.len()],
    pub(super) handshakes: [AtomicU64; Handshake::ALL.len()],
    pub(super) leases_taken: [AtomicU64; LeaseFrom::ALL.len()],
    pub(super) leases_retired: [AtomicU64; LeaseEnd::ALL.len()],
    pub(super) limits_hit: [AtomicU64; Limit::ALL.len()],
    /// By the name of the cluster, which is the operator's.
    pub(super) dials: Mutex<BTreeMap<(String, Dialled), u64>>,
    pub(super) open: OpenStreams,
    pub(super) errors: Errors,
    /// Milliseconds from `made` to the last turn of the worker's loop.
    beat: AtomicU64,
    made: Instant,
}

/// A request that has come to its end.
#[derive(Debug, Clone, Copy)]
pub struct RequestRecord {
    /// What it did.
    pub verb: Verb,
    /// To what.
    pub resource: Resource,
    /// `None` when the client left before there was an answer.
    pub status: Option<StatusCode>,
    /// How it came in.
    pub protocol: Protocol,
    /// From the request's head to the answer's.
    pub time_to_headers: Option<Duration>,
    /// From the request's head to the answer's end; `None` for what lasts as long as the client wants.
    pub duration: Option<Duration>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            requests: Requests::default(),
            time_to_headers: Default::default(),
            durations: Default::default(),
            received: AtomicU64::default(),
            sent: AtomicU64::default(),
            connections: AtomicU64::default(),
            connections_total: Default::default(),
            handshakes: Default::default(),
            leases_taken: Default::default(),
            leases_retired: Default::default(),
            limits_hit: Default::default(),
            dials: Mutex::default(),
            open: OpenStreams::default(),
            errors: Errors::default(),
            beat: AtomicU64::default(),
            made: Instant::now(),
        }
    }
}

impl Counters {
    /// Counts a request at its end.
    pub fn request(&self, done: &RequestRecord) {
        self.requests.count(Row {
            verb: done.verb,
            resource: done.resource,
            code: requests::code(done.status),
            protocol: done.protocol,
        });
        let observe = |histograms: &[Histogram], duration: Option<Duration>| {
            if let (Some(histogram), Some(duration)) =
                (histograms.get(done.verb as usize), duration)
            {
                histogram.observe(duration);
            }
        };
        observe(&self.time_to_headers, done.time_to_headers);
        observe(&self.durations, done.duration);
    }

    /// Bytes of a body or tunnel that came from a client.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of a body or tunnel that went to a client.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How a handshake with a client ended.
    pub fn handshake(&self, ended: Handshake) {
        count(&self.handshakes, ended as usize);
    }

    /// A bound was reached.
    pub fn limit_hit(&self, limit: Limit) {
        count(&self.limits_hit, limit as usize);
    }

    /// How dialling an apiserver of `cluster` ended.
    pub fn dialled(&self, cluster: &str, how: Dialled) {
        let mut dials = self.dials.lock().unwrap_or_else(PoisonError::into_inner);
        *dials.entry((cluster.to_owned(), how)).or_default() += 1;
    }

    /// Counts an error that the proxy answers by itself. `Some` if a log line may be written about it,
    /// with the number of lines that were kept back since the last one; `sentence` is for the operator.
    pub fn failed(
        &self,
        reason: &'static str,
        client: IpAddr,
        sentence: impl FnOnce() -> String,
    ) -> Option<u64> {
        self.errors.count(reason, client, sentence)
    }

    /// Notes every second, for ever, that the worker's loop still turns.
    pub async fn keep_beating(&self) {
        loop {
            let millis = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.beat.store(millis.max(1), Ordering::Relaxed);
            tokio::time::sleep(BEAT).await;
        }
    }

    /// A number that changes with every turn that was noted.
    #[must_use]
    pub fn last_beat(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// How long ago the worker's loop has turned; nothing before its first turn, for which names are
    /// looked up and sockets opened.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        match self.last_beat() {
            0 => Duration::ZERO,
            beat => {
                let beat = Duration::from_millis(beat);
                self.made.elapsed().saturating_sub(beat)
            }
        }
    }

    pub(super) fn connected(&self, protocol: Protocol) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        count(&self.connections_total, protocol as usize);
    }

    pub(super) fn lease_taken(&self, from: LeaseFrom) {
        count(&self.leases_taken, from as usize);
    }

    pub(super) fn lease_retired(&self, why: LeaseEnd) {
        count(&self.leases_retired, why as usize);
    }
}

fn count(counters: &[AtomicU64], slot: usize) {
    if let Some(counter) = counters.get(slot) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often a worker notes that it lives.
const BEAT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_turns_is_never_silent_for_long() {
        let counts = Counters::default();
        advance(Duration::from_secs(60)).await;
        assert_eq!(counts.silent_for(), Duration::ZERO, "it has not begun");
        let turning = timeout(Duration::from_secs(60), counts.keep_beating());
        turning.await.unwrap_err();
        assert!(counts.silent_for() <= BEAT, "{:?}", counts.silent_for());
        advance(Duration::from_secs(9)).await;
        assert!(counts.silent_for() >= Duration::from_secs(9));
    }
}
