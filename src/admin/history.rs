//! What the status page draws of the last five minutes. The process keeps it, so that a fresh page has its charts.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::sources::Sources;
use crate::{
    clients::ClientPrefix,
    hosts::UpstreamAddr,
    metrics::{BUCKETS, CLASSES, CodeClass, Handshake, quantile},
};

/// Readings of the counters: one for each [`INTERVAL`] of the last five minutes, and one with details for each
/// quarter of the last minute. The number of configured clusters and endpoints and the bounded table of clients
/// decide its size.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<Readings>);

#[derive(Debug, Default)]
struct Readings {
    /// The oldest first.
    totals: VecDeque<Totals>,
    details: VecDeque<Details>,
}

/// The counters at one time, of all clusters together.
#[derive(Debug, Clone, Copy)]
struct Totals {
    at: Instant,
    requests: [u64; CLASSES],
    times: [u64; BUCKETS],
}

/// The counters at one time that are compared over a minute.
#[derive(Debug, Clone)]
struct Details {
    at: Instant,
    requests: HashMap<Arc<str>, [u64; CLASSES]>,
    endpoints: HashMap<(Arc<str>, UpstreamAddr), [u64; BUCKETS]>,
    handshakes: u64,
    failed_handshakes: u64,
    dropped_log_lines: u64,
    clients: HashMap<ClientPrefix, u64>,
}

/// The charts. Each list has one value per interval, the newest last.
#[derive(Debug, Default, Serialize)]
pub(super) struct Charts {
    interval_seconds: f64,
    /// Requests per second by [`CodeClass`].
    requests: Vec<[f64; CLASSES]>,
    /// Time to headers in seconds; `null` without a response.
    p50: Vec<Option<f64>>,
    p99: Vec<Option<f64>>,
}

/// What happened in the last minute, or since the start if that is later.
#[derive(Debug)]
pub(super) struct LastMinute {
    seconds: f64,
    now: Details,
    before: Option<Details>,
}

impl History {
    /// Takes a reading at each interval. Never returns.
    pub(super) async fn keep(&self, sources: &Sources) {
        loop {
            self.read(sources);
            sleep(INTERVAL).await;
        }
    }

    fn read(&self, sources: &Sources) {
        let mut readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if readings.totals.len() > MAX_POINTS {
            readings.totals.pop_front();
        }
        readings.totals.push_back(Totals::new(sources, now));
        let is_due = |last: &Details| now.duration_since(last.at) >= DETAILS_INTERVAL;
        if readings.details.back().is_none_or(is_due) {
            if readings.details.len() > MAX_DETAILS {
                readings.details.pop_front();
            }
            readings.details.push_back(Details::new(sources, now));
        }
    }

    pub(super) fn charts(&self) -> Charts {
        let readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut charts = Charts {
            interval_seconds: INTERVAL.as_secs_f64(),
            ..Charts::default()
        };
        let pairs = readings.totals.iter().zip(readings.totals.iter().skip(1));
        for (before, after) in pairs {
            let seconds = after.at.duration_since(before.at).as_secs_f64();
            let requests = difference(&after.requests, &before.requests);
            charts
                .requests
                .push(requests.map(|count| rate(count, seconds)));
            let times = difference(&after.times, &before.times);
            charts.p50.push(quantile(&times, 0.5));
            charts.p99.push(quantile(&times, 0.99));
        }
        charts
    }

    pub(super) fn last_minute(&self, sources: &Sources) -> LastMinute {
        let now = Details::new(sources, Instant::now());
        let readings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = readings.details.front();
        LastMinute {
            seconds: before.map_or(0.0, |before| now.at.duration_since(before.at).as_secs_f64()),
            before: before.cloned(),
            now,
        }
    }
}

impl LastMinute {
    /// Requests per second of this cluster by [`CodeClass`].
    pub(super) fn requests(&self, cluster: &str) -> [f64; CLASSES] {
        let of = |details: &Details| details.requests.get(cluster).copied();
        let now = of(&self.now).unwrap_or([0; CLASSES]);
        let before = self.before.as_ref().and_then(of).unwrap_or([0; CLASSES]);
        difference(&now, &before).map(|count| rate(count, self.seconds))
    }

    /// p50 and p99 of the time to headers of this endpoint.
    pub(super) fn times(&self, cluster: &str, endpoint: UpstreamAddr) -> [Option<f64>; 2] {
        let key = (Arc::from(cluster), endpoint);
        let of = |details: &Details| details.endpoints.get(&key).copied();
        let now = of(&self.now).unwrap_or([0; BUCKETS]);
        let before = self.before.as_ref().and_then(of).unwrap_or([0; BUCKETS]);
        let times = difference(&now, &before);
        [quantile(&times, 0.5), quantile(&times, 0.99)]
    }

    /// Handshakes with clients per second: all, and those that failed.
    pub(super) fn handshakes(&self) -> (f64, f64) {
        let since = |of: fn(&Details) -> u64| {
            let before = self.before.as_ref().map_or(0, of);
            rate(of(&self.now).saturating_sub(before), self.seconds)
        };
        (since(|it| it.handshakes), since(|it| it.failed_handshakes))
    }

    /// The clients with the most requests, and how many they send per second.
    pub(super) fn busiest_clients(&self, count: usize) -> Vec<(ClientPrefix, f64)> {
        let clients = self.now.clients.keys();
        let each = clients.map(|client| (*client, self.requests_of_client(*client)));
        let mut each: Vec<_> = each.filter(|(_, rate)| *rate > 0.0).collect();
        each.sort_unstable_by(|(_, one), (_, other)| other.total_cmp(one));
        each.truncate(count);
        each
    }

    /// Requests per second of this client.
    pub(super) fn requests_of_client(&self, client: ClientPrefix) -> f64 {
        let of = |details: &Details| details.clients.get(&client).copied().unwrap_or(0);
        let before = self.before.as_ref().map_or(0, of);
        let [since] = difference(&[of(&self.now)], &[before]);
        rate(since, self.seconds)
    }

    /// Log lines that were dropped.
    pub(super) fn dropped_log_lines(&self) -> u64 {
        let before = self.before.as_ref().map_or(0, |it| it.dropped_log_lines);
        self.now.dropped_log_lines.saturating_sub(before)
    }
}

impl Totals {
    fn new(sources: &Sources, at: Instant) -> Self {
        let (mut requests, mut times) = ([0; CLASSES], [0; BUCKETS]);
        for worker in sources.metrics.workers() {
            for cluster in worker.clusters().values() {
                add(&mut requests, &cluster.requests.by_class());
                add(&mut times, &cluster.time_to_headers.sum().counts());
            }
        }
        Self {
            at,
            requests,
            times,
        }
    }
}

impl Details {
    fn new(sources: &Sources, at: Instant) -> Self {
        let mut details = Self {
            at,
            requests: HashMap::new(),
            endpoints: HashMap::new(),
            handshakes: 0,
            failed_handshakes: 0,
            dropped_log_lines: sources.metrics.dropped_log_lines(),
            clients: sources.clients.requests(),
        };
        for worker in sources.metrics.workers() {
            for (name, counters) in worker.clusters().named() {
                let requests = details.requests.entry(name).or_default();
                add(requests, &counters.requests.by_class());
            }
            let handshakes = worker.handshakes.sum();
            let unfailed = [
                Handshake::Ok,
                Handshake::Passed,
                Handshake::Closed,
                Handshake::Denied,
                Handshake::Challenge,
            ];
            let unfailed = unfailed.map(|it| worker.handshakes.value(it));
            details.handshakes += handshakes;
            details.failed_handshakes += handshakes.saturating_sub(unfailed.iter().sum());
        }
        for cluster in &sources.report.borrow().clusters {
            let name: Arc<str> = cluster.name().into();
            for endpoint in cluster.endpoints().health() {
                let key = (Arc::clone(&name), endpoint.address);
                details
                    .endpoints
                    .insert(key, endpoint.time_to_headers.counts());
            }
        }
        details
    }
}

fn add<const N: usize>(sum: &mut [u64; N], more: &[u64; N]) {
    for (count, more) in sum.iter_mut().zip(more) {
        *count += more;
    }
}

/// A counter that has started again, such as that of an endpoint that came back, counts from 0.
fn difference<const N: usize>(after: &[u64; N], before: &[u64; N]) -> [u64; N] {
    let mut difference = *after;
    for (count, before) in difference.iter_mut().zip(before) {
        *count = count.checked_sub(*before).unwrap_or(*count);
    }
    difference
}

/// Per second, rounded; more digits are noise.
#[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
fn rate(count: u64, seconds: f64) -> f64 {
    if seconds <= 0.0 {
        return 0.0;
    }
    (count as f64 / seconds * 100.0).round() / 100.0
}

/// The share of the requests with this class. 0 without requests.
pub(super) fn share(requests: &[f64; CLASSES], class: CodeClass) -> f64 {
    let all: f64 = requests.iter().sum();
    if all > 0.0 {
        of_class(requests, class) / all
    } else {
        0.0
    }
}

/// The requests of this class.
pub(super) fn of_class(requests: &[f64; CLASSES], class: CodeClass) -> f64 {
    requests.get(class as usize).copied().unwrap_or_default()
}

/// The time between two points of a chart.
const INTERVAL: Duration = Duration::from_secs(2);
/// Points of a chart: five minutes.
const MAX_POINTS: usize = 150;
const DETAILS_INTERVAL: Duration = Duration::from_secs(15);
/// Readings with details: one minute.
const MAX_DETAILS: usize = 4;

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use standin::TempDir;
    use tokio::time::advance;

    use super::{super::health::tests::sources, *};
    use crate::{
        drain::Phase,
        metrics::{Protocol, RequestRecord, Resource, Verb},
    };

    /// The process runs for months, and a burst that was an hour ago is no problem now.
    #[tokio::test(start_paused = true)]
    async fn history_is_bounded_and_a_burst_ends() {
        let dir = TempDir::new();
        let (sources, _phase, _reloader) = sources(&dir, Phase::Serving);
        let history = History::default();
        history.read(&sources);
        let cluster = Arc::clone(&sources.report.borrow().clusters[0]);
        let worker = &sources.metrics.workers()[0];
        for _ in 0..200 {
            let slot = worker.begin_request(cluster.label());
            worker.end_request(&RequestRecord {
                cluster: slot,
                verb: Verb::Get,
                resource: Resource::new("", "pods", None),
                status: Some(StatusCode::UNAUTHORIZED),
                protocol: Protocol::Http2,
                time_to_headers: None,
                duration: None,
                is_stream: false,
            });
        }
        for seconds in (2..800).step_by(2) {
            advance(INTERVAL).await;
            history.read(&sources);
            let requests = history.last_minute(&sources).requests(cluster.name());
            let refused = of_class(&requests, CodeClass::Unauthorized);
            let charts = history.charts();
            let points = charts.requests.iter();
            let drawn: f64 = points
                .map(|point| of_class(point, CodeClass::Unauthorized))
                .sum();
            match seconds {
                ..60 => assert!(refused > 1.0, "{refused} after {seconds} s"),
                60..90 => {}
                90.. => assert!(refused < 0.01, "{refused} after {seconds} s"),
            }
            match seconds {
                ..=300 => assert!(drawn > 1.0, "{drawn} after {seconds} s"),
                _ => assert!(drawn < 0.01, "{drawn} after {seconds} s"),
            }
            assert_eq!(charts.requests.len(), MAX_POINTS.min(seconds / 2));
            let readings = history.0.lock().unwrap();
            assert!(readings.details.len() <= MAX_DETAILS + 1);
        }
    }
}
