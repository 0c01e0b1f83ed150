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

use super::{
    Dialled, Handshake, LeaseEnd, LeaseFrom, Limit, Protocol, Resource, Verb,
    errors::Errors,
    histogram::Histogram,
    open::OpenStreams,
    requests::{self, Requests, Row},
};

/// What one worker has counted.
#[derive(Debug, Default)]
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
