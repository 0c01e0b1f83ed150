//! What the status page lists: the watches and tunnels that are open, and the last errors.
//!
//! Memory does not grow with what clients do: each worker lists at most `MAX_LISTED` streams and keeps
//! at most [`MAX_RECENT`] distinct errors. Nothing here is a secret: no header but `User-Agent`, no query.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use crate::{telemetry::LogLimiter, text};

/// The activity of one worker. The worker writes, the admin port reads.
#[derive(Debug, Default)]
pub struct Activity {
    watches: AtomicU64,
    tunnels: AtomicU64,
    next_id: AtomicU64,
    streams: Mutex<HashMap<u64, StreamInfo>>,
    errors: Mutex<Errors>,
    /// Shared by all workers.
    limiter: Arc<Mutex<LogLimiter>>,
}

#[derive(Debug, Default)]
struct Errors {
    /// The newest at the end.
    recent: VecDeque<RecentError>,
}

/// A response that does not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongLived {
    /// A watch.
    Watch,
    /// `logs -f`; counted as a watch.
    Log,
    /// exec, attach or port-forward.
    Tunnel,
}

/// An open watch or tunnel, and its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// The kind of stream.
    pub kind: LongLived,
    /// The address of the client.
    pub client: SocketAddr,
    /// The `User-Agent` of the client, escaped and shortened.
    pub user_agent: Box<str>,
    /// The resource of the request, such as `pods` or `pods/exec`, escaped and shortened.
    pub resource: Box<str>,
    /// Empty if the request covers all namespaces, or if the resource is cluster-scoped.
    pub namespace: Box<str>,
    /// Empty if the request names no single object.
    pub name: Box<str>,
    /// The time of the request.
    pub since: Instant,
}

/// An error to which the proxy itself responded. Equal errors are one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentError {
    /// The last time it happened.
    pub at: Instant,
    /// The label of `errors_total`.
    pub reason: &'static str,
    /// What happened, for the operator.
    pub message: String,
    /// How often it happened.
    pub count: u64,
}

/// Counts and lists one stream until dropped.
#[derive(Debug)]
pub struct OpenStream {
    activity: Arc<Activity>,
    id: u64,
    kind: LongLived,
}

impl Activity {
    /// No activity. The log lines about failed requests count against this limit.
    #[must_use]
    pub(crate) fn with_limiter(limiter: Arc<Mutex<LogLimiter>>) -> Self {
        Self {
            limiter,
            ..Self::default()
        }
    }

    /// Open watches and followed logs.
    #[must_use]
    pub fn watches(&self) -> u64 {
        self.watches.load(Ordering::Relaxed)
    }

    /// Open tunnels.
    #[must_use]
    pub fn tunnels(&self) -> u64 {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// The open streams, in no order. At most `MAX_LISTED`.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamInfo> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.values().cloned().collect()
    }

    /// The last distinct errors, the oldest first. At most [`MAX_RECENT`].
    #[must_use]
    pub fn recent_errors(&self) -> Vec<RecentError> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        errors.recent.iter().cloned().collect()
    }

    /// Records an error of this client. Returns `Some` if it may be logged, with the number of log lines
    /// about this client that were suppressed since the last one.
    pub fn record_error(
        &self,
        reason: &'static str,
        client: IpAddr,
        message: impl FnOnce() -> String,
    ) -> Option<u64> {
        let now = Instant::now();
        let suppressed = self.admit_line(client);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        // Errors beyond the log limit do not build their message, so that a flood stays cheap. They count
        // for the newest error with the same reason.
        if suppressed.is_some() {
            errors.add(reason, &message(), now);
        } else if let Some(same) = errors
            .recent
            .iter_mut()
            .rev()
            .find(|error| error.reason == reason)
        {
            (same.at, same.count) = (now, same.count + 1);
        }
        suppressed
    }

    /// Whether one more line about this client may be logged, as in [`Activity::record_error`].
    #[must_use]
    pub fn admit_line(&self, client: IpAddr) -> Option<u64> {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.admit(client, Instant::now())
    }

    fn gauge(&self, kind: LongLived) -> &AtomicU64 {
        match kind {
            LongLived::Watch | LongLived::Log => &self.watches,
            LongLived::Tunnel => &self.tunnels,
        }
    }
}

impl Errors {
    fn add(&mut self, reason: &'static str, message: &str, at: Instant) {
        let message = text::escape(message, MAX_MESSAGE_CHARS).to_string();
        let is_same = |error: &RecentError| error.reason == reason && error.message == message;
        let before = self.recent.iter().position(is_same);
        let before = before.and_then(|place| self.recent.remove(place));
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(RecentError {
            at,
            reason,
            message,
            count: before.map_or(0, |error| error.count) + 1,
        });
    }
}

impl StreamInfo {
    /// Text of a client, escaped and shortened for this list.
    #[must_use]
    pub fn text(of_client: &str) -> Box<str> {
        text::escape(of_client, MAX_TEXT_CHARS).to_string().into()
    }
}

impl OpenStream {
    /// Counts a stream, and lists it unless `MAX_LISTED` are listed already.
    #[must_use]
    pub fn new(activity: Arc<Activity>, info: StreamInfo) -> Self {
        let kind = info.kind;
        let id = activity.next_id.fetch_add(1, Ordering::Relaxed);
        activity.gauge(kind).fetch_add(1, Ordering::Relaxed);
        let mut streams = activity
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if streams.len() < MAX_LISTED {
            streams.insert(id, info);
        }
        drop(streams);
        Self { activity, id, kind }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.activity
            .gauge(self.kind)
            .fetch_sub(1, Ordering::Relaxed);
        let streams = self.activity.streams.lock();
        let mut streams = streams.unwrap_or_else(PoisonError::into_inner);
        streams.remove(&self.id);
        // Gives memory back after a burst of watches.
        if streams.capacity() > 64 && streams.len() * 4 < streams.capacity() {
            streams.shrink_to_fit();
        }
    }
}

/// Streams of one worker that are listed; each needs a kilobyte at most.
const MAX_LISTED: usize = 2_000;
/// Distinct errors of one worker that are kept, and that the status page shows.
pub const MAX_RECENT: usize = 20;
/// Characters of one text of a client.
const MAX_TEXT_CHARS: usize = 160;
/// Characters of one error message.
const MAX_MESSAGE_CHARS: usize = 400;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

    fn open(activity: &Arc<Activity>, kind: LongLived) -> OpenStream {
        let info = StreamInfo {
            kind,
            client: "192.0.2.1:1".parse().unwrap(),
            user_agent: StreamInfo::text("kubectl/v1.36"),
            resource: "pods".into(),
            namespace: "default".into(),
            name: "".into(),
            since: Instant::now(),
        };
        OpenStream::new(Arc::clone(activity), info)
    }

    #[test]
    fn stream_is_listed_until_it_ends() {
        let activity = Arc::default();
        let watch = open(&activity, LongLived::Watch);
        let log = open(&activity, LongLived::Log);
        let tunnel = open(&activity, LongLived::Tunnel);
        assert_eq!((activity.watches(), activity.tunnels()), (2, 1));
        assert_eq!(activity.streams().len(), 3);
        drop((watch, tunnel));
        assert_eq!((activity.watches(), activity.tunnels()), (1, 0));
        assert_eq!(activity.streams().len(), 1);
        drop(log);
        assert_eq!(activity.streams().len(), 0);
    }

    #[test]
    fn streams_beyond_the_bound_are_counted_but_not_listed() {
        let activity = Arc::default();
        let many: Vec<_> = (0..MAX_LISTED + 10)
            .map(|_| open(&activity, LongLived::Watch))
            .collect();
        assert_eq!(activity.streams().len(), MAX_LISTED);
        assert_eq!(activity.watches(), (MAX_LISTED + 10) as u64);
        drop(many);
        assert_eq!(activity.watches(), 0);
    }

    #[test]
    fn text_of_a_client_is_escaped_and_short() {
        let text = StreamInfo::text(&format!("a\u{1b}[2J\nb{}", "x".repeat(10_000)));
        assert!(text.starts_with("a\\u{1b}[2J\\nb"), "{text}");
        assert_eq!(text.chars().count(), MAX_TEXT_CHARS + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_beyond_the_log_limit_are_counted() {
        let activity = Activity::default();
        let mut logged = 0;
        for _ in 0..100 {
            let line = activity.record_error("connect", CLIENT, || "refused".into());
            logged += u32::from(line.is_some());
        }
        assert_eq!(logged, 10);
        let recent = activity.recent_errors();
        assert_eq!(recent.len(), 1);
        assert_eq!(recent[0].count, 100);
    }

    #[tokio::test(start_paused = true)]
    async fn recent_errors_are_distinct_and_bounded() {
        let activity = Activity::default();
        for number in 0..MAX_RECENT + 5 {
            advance(Duration::from_secs(1)).await;
            activity.record_error("connect", CLIENT, || format!("error {number}"));
        }
        activity.record_error("connect", OTHER, || "error 20".into());
        let recent = activity.recent_errors();
        assert_eq!(recent.len(), MAX_RECENT);
        let last = recent.last().unwrap();
        assert_eq!((&*last.message, last.count), ("error 20", 2));
        assert_eq!(recent[0].message, "error 5");
    }

    #[tokio::test]
    async fn error_message_is_short() {
        let activity = Activity::default();
        activity.record_error("lost", CLIENT, || "ä".repeat(10_000));
        let recent = activity.recent_errors();
        assert_eq!(recent[0].message.chars().count(), MAX_MESSAGE_CHARS + 1);
    }
}
