//! What the status page lists: the watches and tunnels that are open, and the last errors.
//!
//! Equal streams are one row, and each worker keeps at most `MAX_GROUPS` rows and [`MAX_RECENT`] distinct errors, so
//! that clients cannot fill the memory. Nothing here is a secret: no header but `User-Agent`, no query, and of a
//! token the name of its user, if the configuration wants it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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
    next_id: AtomicU64,
    streams: Mutex<HashMap<Arc<StreamInfo>, OpenGroup>>,
    errors: Mutex<Errors>,
    /// Shared by all workers.
    limiter: Arc<Mutex<LogLimiter>>,
}

/// The open streams with the same [`StreamInfo`].
#[derive(Debug, Default)]
struct OpenGroup {
    /// When each began. The first one is the oldest.
    since: BTreeMap<u64, Instant>,
    place: StreamPlace,
}

#[derive(Debug, Default)]
struct Errors {
    /// The newest at the end.
    recent: VecDeque<RecentError>,
}

/// A response that does not end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LongLived {
    /// A watch.
    Watch,
    /// `logs -f`; counted as a watch.
    Log,
    /// exec, attach or port-forward.
    Tunnel,
}

/// A row of the status page: an open tunnel or followed log, or equal watches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamInfo {
    /// The kind of stream.
    pub kind: LongLived,
    /// The name of the cluster.
    pub cluster: Arc<str>,
    /// The address of the client. Its port is 0 in a row of watches.
    pub client: SocketAddr,
    /// The `User-Agent` of the client, escaped and shortened.
    pub user_agent: Box<str>,
    /// The user, if the apiserver has verified the token and the configuration wants the name.
    pub user: Option<Arc<EndUser>>,
    /// The resource of the request, such as `pods` or `pods/exec`, escaped and shortened.
    pub resource: Box<str>,
    /// The namespace, escaped and shortened. Empty if the request covers all namespaces, or if the resource is
    /// cluster-scoped.
    pub namespace: Box<str>,
    /// The name of the object, escaped and shortened. Empty if the request names no single object.
    pub name: Box<str>,
}

/// The user of a request, as the log and the status page show it: escaped and shortened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndUser {
    /// The name, or a hash of it.
    pub id: Box<str>,
    /// Who has issued the token; empty if the token does not say.
    pub issuer: Box<str>,
}

/// The object or the collection of a row. Watches are one row even if these differ.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamPlace {
    /// The namespace; `None` if the streams of the row differ.
    pub namespace: Option<Box<str>>,
    /// The name of the object; `None` if the streams of the row differ.
    pub name: Option<Box<str>>,
}

/// Open streams with the same [`StreamInfo`].
#[derive(Debug, Clone)]
pub struct StreamGroup {
    /// What they have in common.
    pub info: Arc<StreamInfo>,
    /// Their object or collection.
    pub place: StreamPlace,
    /// How many are open.
    pub count: usize,
    /// When the oldest one began.
    pub since: Instant,
}

/// An error to which the proxy itself responded. Equal errors are one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentError {
    /// The last time it happened.
    pub at: Instant,
    /// The label of `errors_total`.
    pub reason: &'static str,
    /// The name of the cluster; empty if the proxy refused the request before it chose one.
    pub cluster: Arc<str>,
    /// What happened, for the operator.
    pub message: String,
    /// The client to which it happened last.
    pub client: IpAddr,
    /// How often it happened.
    pub count: u64,
}

/// Lists one stream until dropped.
#[derive(Debug)]
pub struct ListedStream {
    activity: Arc<Activity>,
    /// `None` if the list had no room for it.
    listed: Option<(Arc<StreamInfo>, u64)>,
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

    /// The groups of open streams, in no order.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamGroup> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = streams.iter().filter_map(|(info, group)| {
            let (_, oldest) = group.since.first_key_value()?;
            Some(StreamGroup {
                info: Arc::clone(info),
                place: group.place.clone(),
                count: group.since.len(),
                since: *oldest,
            })
        });
        groups.collect()
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
        cluster: &Arc<str>,
        client: IpAddr,
        message: impl FnOnce() -> String,
    ) -> Option<u64> {
        let now = Instant::now();
        let suppressed = self.admit_line(client);
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same =
            |error: &&mut RecentError| error.reason == reason && error.cluster == *cluster;
        // That of the same client comes before the others: a message may name its client.
        let same = errors.recent.iter_mut().filter(is_same);
        let same = same.max_by_key(|error| (error.client == client, error.at));
        match same {
            // Errors beyond the log limit do not build their message, so that a flood stays cheap. They count
            // for the newest error of the same cluster with the same reason, if there is one.
            Some(same) if suppressed.is_none() => (same.at, same.count) = (now, same.count + 1),
            _ => errors.add(reason, cluster, client, &message(), now),
        }
        suppressed
    }

    /// Whether one more line about this client may be logged, as in [`Activity::record_error`].
    #[must_use]
    pub fn admit_line(&self, client: IpAddr) -> Option<u64> {
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.admit(client, Instant::now())
    }
}

impl Errors {
    fn add(
        &mut self,
        reason: &'static str,
        cluster: &Arc<str>,
        client: IpAddr,
        message: &str,
        at: Instant,
    ) {
        let message = text::escape(message, MAX_MESSAGE_CHARS).to_string();
        let is_same = |error: &RecentError| {
            error.reason == reason && error.cluster == *cluster && error.message == message
        };
        let before = self.recent.iter().position(is_same);
        let before = before.and_then(|place| self.recent.remove(place));
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(RecentError {
            at,
            reason,
            cluster: Arc::clone(cluster),
            message,
            client,
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

impl EndUser {
    /// The user with this name, whom `issuer` has named.
    #[must_use]
    pub fn new(id: &str, issuer: &str) -> Self {
        let shown = |text| text::escape(text, MAX_USER_CHARS).to_string().into();
        Self {
            id: shown(id),
            issuer: shown(issuer),
        }
    }
}

impl StreamPlace {
    /// What both have in common.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let same =
            |one: &Option<Box<str>>, other: &Option<Box<str>>| one.clone().filter(|_| one == other);
        Self {
            namespace: same(&self.namespace, &other.namespace),
            name: same(&self.name, &other.name),
        }
    }
}

impl ListedStream {
    /// Lists a stream, unless its client has too many rows or the list is full.
    #[must_use]
    pub fn new(activity: Arc<Activity>, mut info: StreamInfo, since: Instant) -> Self {
        let mut place = StreamPlace {
            namespace: Some(info.namespace.clone()),
            name: Some(info.name.clone()),
        };
        if info.kind == LongLived::Watch {
            // A controller has a watch for each of many namespaces, and a kubelet one for each of many objects.
            (info.namespace, info.name) = (Box::default(), Box::default());
            info.client.set_port(0);
        }
        let id = activity.next_id.fetch_add(1, Ordering::Relaxed);
        let streams = activity.streams.lock();
        let mut streams = streams.unwrap_or_else(PoisonError::into_inner);
        let info = match streams.get_key_value(&info) {
            Some((known, _)) => Some(Arc::clone(known)),
            None => has_room(&streams, &info).then(|| Arc::new(info)),
        };
        if let Some(info) = &info {
            let group = streams
                .entry(Arc::clone(info))
                .or_insert_with(|| OpenGroup {
                    since: BTreeMap::new(),
                    place: place.clone(),
                });
            place = group.place.common(&place);
            group.place = place;
            group.since.insert(id, since);
        }
        drop(streams);
        let listed = info.map(|info| (info, id));
        Self { activity, listed }
    }
}

/// Whether the list has room for one more row. Tunnels have a list of their own, so that many watches do not hide an
/// exec, and one client gets a part of a list only.
fn has_room(streams: &HashMap<Arc<StreamInfo>, OpenGroup>, new: &StreamInfo) -> bool {
    let is_tunnel = |info: &StreamInfo| info.kind == LongLived::Tunnel;
    let same_list = || {
        streams
            .keys()
            .filter(|info| is_tunnel(info) == is_tunnel(new))
    };
    let of_client = same_list()
        .filter(|info| info.client.ip() == new.client.ip())
        .count();
    same_list().count() < MAX_GROUPS && of_client < MAX_GROUPS_PER_CLIENT
}

impl Drop for ListedStream {
    fn drop(&mut self) {
        let Some((info, id)) = &self.listed else {
            return;
        };
        let streams = self.activity.streams.lock();
        let mut streams = streams.unwrap_or_else(PoisonError::into_inner);
        let is_last = streams.get_mut(info).is_some_and(|group| {
            group.since.remove(id);
            group.since.is_empty()
        });
        if is_last {
            streams.remove(info);
        }
        // Gives memory back after a burst of watches.
        if streams.capacity() > 64 && streams.len() * 4 < streams.capacity() {
            streams.shrink_to_fit();
        }
    }
}

/// Rows of the watches of one worker, and of its tunnels; each needs two kilobytes at most.
const MAX_GROUPS: usize = 1_000;
/// Rows of one client.
const MAX_GROUPS_PER_CLIENT: usize = 200;
/// Distinct errors of one worker that are kept, and that the status page shows.
pub const MAX_RECENT: usize = 20;
/// Characters of one text of a client.
const MAX_TEXT_CHARS: usize = 160;
/// Characters of the name of a user, and of an issuer.
const MAX_USER_CHARS: usize = 256;
/// Characters of one error message.
const MAX_MESSAGE_CHARS: usize = 400;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

    fn open(
        activity: &Arc<Activity>,
        kind: LongLived,
        client: IpAddr,
        resource: &str,
        namespace: &str,
    ) -> ListedStream {
        let info = StreamInfo {
            kind,
            cluster: "prod".into(),
            client: SocketAddr::new(client, 5_000),
            user_agent: StreamInfo::text("kubectl/v1.36"),
            user: None,
            resource: resource.into(),
            namespace: namespace.into(),
            name: "".into(),
        };
        ListedStream::new(Arc::clone(activity), info, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn equal_streams_are_one_row_until_the_last_ends() {
        let activity = Arc::default();
        let watch = |namespace| open(&activity, LongLived::Watch, CLIENT, "pods", namespace);
        let first = watch("default");
        let began = Instant::now();
        advance(Duration::from_secs(5)).await;
        let second = watch("default");
        let row = || {
            let mut rows = activity.streams();
            assert_eq!(rows.len(), 1);
            rows.remove(0)
        };
        assert_eq!((row().count, row().since), (2, began));
        assert_eq!(row().place.namespace.as_deref(), Some("default"));
        let third = watch("other");
        assert_eq!((row().count, row().place.namespace), (3, None));
        assert_eq!(row().place.name.as_deref(), Some(""));
        drop(first);
        assert_eq!(
            (row().count, row().since),
            (2, began + Duration::from_secs(5))
        );
        drop((second, third));
        assert!(activity.streams().is_empty());
        let exec = |namespace| open(&activity, LongLived::Tunnel, CLIENT, "pods/exec", namespace);
        let execs = (exec("default"), exec("other"));
        assert_eq!(activity.streams().len(), 2);
        drop(execs);
    }

    #[tokio::test]
    async fn one_client_does_not_fill_the_list() {
        let activity = Arc::default();
        let many: Vec<_> = (0..2 * MAX_GROUPS)
            .map(|number| {
                let resource = number.to_string();
                open(&activity, LongLived::Watch, CLIENT, &resource, "")
            })
            .collect();
        assert_eq!(activity.streams().len(), MAX_GROUPS_PER_CLIENT);
        let other = open(&activity, LongLived::Watch, OTHER, "pods", "");
        assert_eq!(activity.streams().len(), MAX_GROUPS_PER_CLIENT + 1);
        drop((many, other));
        assert!(activity.streams().is_empty());
    }

    #[tokio::test]
    async fn tunnel_is_listed_when_watches_fill_their_list() {
        let activity = Arc::default();
        let many: Vec<_> = (0..2 * MAX_GROUPS)
            .map(|number| {
                let number = u32::try_from(number).unwrap();
                let client = std::net::Ipv4Addr::from(number).into();
                open(&activity, LongLived::Watch, client, "pods", "")
            })
            .collect();
        assert_eq!(activity.streams().len(), MAX_GROUPS);
        let exec = open(&activity, LongLived::Tunnel, CLIENT, "pods/exec", "");
        let rows = activity.streams();
        assert!(rows.iter().any(|row| row.info.kind == LongLived::Tunnel));
        drop((many, exec));
    }

    #[test]
    fn text_of_a_client_is_escaped_and_short() {
        let text = StreamInfo::text(&format!("a\u{1b}[2J\nb{}", "x".repeat(10_000)));
        assert!(text.starts_with("a\\u{1b}[2J\\nb"), "{text}");
        assert_eq!(text.chars().count(), MAX_TEXT_CHARS + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_beyond_the_log_limit_are_counted() {
        let (activity, cluster) = (Activity::default(), "prod".into());
        let mut logged = 0;
        for _ in 0..100 {
            let line = activity.record_error("connect", &cluster, CLIENT, || "refused".into());
            logged += u32::from(line.is_some());
        }
        assert_eq!(logged, 10);
        let recent = activity.recent_errors();
        assert_eq!(recent.len(), 1);
        assert_eq!(recent[0].count, 100);
    }

    /// The message of a client that is over a limit names it.
    #[tokio::test(start_paused = true)]
    async fn unlogged_errors_count_for_the_message_of_their_client() {
        let (activity, cluster) = (Activity::default(), "prod".into());
        let record = |client: IpAddr| {
            activity.record_error("rejected", &cluster, client, || client.to_string());
        };
        for _ in 0..10 {
            record(CLIENT);
            record(OTHER);
        }
        for _ in 0..50 {
            record(CLIENT);
        }
        let mut counts = activity.recent_errors();
        counts.sort_by_key(|error| error.count);
        let counts: Vec<_> = counts
            .iter()
            .map(|one| (&*one.message, one.count))
            .collect();
        let (client, other) = (CLIENT.to_string(), OTHER.to_string());
        assert_eq!(counts, [(&*other, 10), (&*client, 60)]);
    }

    /// The limit is that of all workers, so the first error of a worker may come after it.
    #[tokio::test(start_paused = true)]
    async fn first_error_of_a_kind_is_listed_beyond_the_log_limit() {
        let (activity, cluster) = (Activity::default(), "prod".into());
        while activity.admit_line(CLIENT).is_some() {}
        for _ in 0..3 {
            let line = activity.record_error("verify", &cluster, CLIENT, || "not signed".into());
            assert_eq!(line, None);
        }
        let recent = activity.recent_errors();
        assert_eq!((&*recent[0].message, recent[0].count), ("not signed", 3));
    }

    #[tokio::test(start_paused = true)]
    async fn recent_errors_are_distinct_and_bounded() {
        let (activity, cluster) = (Activity::default(), "prod".into());
        for number in 0..MAX_RECENT + 5 {
            advance(Duration::from_secs(1)).await;
            activity.record_error("connect", &cluster, CLIENT, || format!("error {number}"));
        }
        activity.record_error("connect", &cluster, OTHER, || "error 20".into());
        let recent = activity.recent_errors();
        assert_eq!(recent.len(), MAX_RECENT);
        let last = recent.last().unwrap();
        assert_eq!((&*last.message, last.count), ("error 20", 2));
        assert_eq!(recent[0].message, "error 5");
        // Another cluster has the same error.
        activity.record_error("connect", &"staging".into(), OTHER, || "error 20".into());
        let recent = activity.recent_errors();
        assert_eq!(
            (
                &*recent[MAX_RECENT - 1].cluster,
                recent[MAX_RECENT - 1].count
            ),
            ("staging", 1)
        );
        assert_eq!(
            (
                &*recent[MAX_RECENT - 2].cluster,
                recent[MAX_RECENT - 2].count
            ),
            ("prod", 2)
        );
    }

    #[tokio::test]
    async fn error_message_is_short() {
        let activity = Activity::default();
        activity.record_error("lost", &"prod".into(), CLIENT, || "ä".repeat(10_000));
        let recent = activity.recent_errors();
        assert_eq!(recent[0].message.chars().count(), MAX_MESSAGE_CHARS + 1);
    }
}
