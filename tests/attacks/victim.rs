//! A client that does nothing wrong: requests at a steady rate, new connections, and watches that must not lose an
//! event.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, header};
use standin::client::{Client, Http2};
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    apiserver::{VICTIM_TOKEN, number},
    stage::{HOST, Size, Stage, VICTIM, runtime},
};

/// Open connections that the requests share.
const CONNECTIONS: usize = 4;
const WATCHES: usize = 4;
/// The time between two new connections. Each sends one request.
const FRESH: Duration = Duration::from_millis(500);
/// A request that takes longer has failed.
const PATIENCE: Duration = standin::WAIT;

/// The victim's clients, which run until it is dropped.
pub(crate) struct Victim {
    record: Arc<Record>,
    _clients: Runtime,
}

#[derive(Default)]
struct Record {
    window: Mutex<Window>,
    /// New connections that have no response yet, by the moment at which they were due.
    waiting: Mutex<Vec<Instant>>,
    /// The last event of each watch.
    events: Mutex<BTreeMap<usize, u64>>,
}

/// What the victim saw in a part of the run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Window {
    /// The times of requests on open connections and of those on new connections, with the handshake.
    open: Vec<Duration>,
    fresh: Vec<Duration>,
    failures: Vec<String>,
}

impl Window {
    pub(crate) fn percentile(&self, share: f64) -> Duration {
        percentile(&self.open, share)
    }

    pub(crate) fn fresh_percentile(&self, share: f64) -> Duration {
        percentile(&self.fresh, share)
    }

    pub(crate) fn requests(&self) -> usize {
        self.open.len() + self.fresh.len()
    }

    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        self.open.append(&mut other.open);
        self.fresh.append(&mut other.fresh);
        self.failures.append(&mut other.failures);
    }
}

fn percentile(times: &[Duration], share: f64) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    times.get(at).copied().unwrap_or_default()
}

impl Record {
    fn took(&self, is_fresh: bool, begun: Instant) {
        let mut window = self.window.lock().unwrap();
        let times = if is_fresh {
            &mut window.fresh
        } else {
            &mut window.open
        };
        times.push(begun.elapsed());
    }

    fn failed(&self, what: &str, error: &dyn Display) {
        let failures = &mut self.window.lock().unwrap().failures;
        if failures.len() < 1000 {
            failures.push(format!("{what}: {error}"));
        }
    }
}

impl Victim {
    pub(crate) fn start(stage: &Stage, size: Size) -> Self {
        let clients = runtime("victim");
        let record = Arc::new(Record::default());
        let client = stage.client(VICTIM);
        let (mut ready, per_second) = (JoinSet::new(), size.pick(60, 300));
        for watch in 0..WATCHES {
            let (client, record) = (client.clone(), Arc::clone(&record));
            let begun = Arc::new(tokio::sync::Notify::new());
            let told = Arc::clone(&begun);
            clients.spawn(async move { follow(client, watch, record, told).await });
            ready.spawn_on(async move { begun.notified().await }, clients.handle());
        }
        clients.block_on(async {
            while let Some(one) = standin::within("the victim's watches", ready.join_next()).await {
                one.unwrap();
            }
        });
        clients.spawn(requests(client.clone(), per_second, Arc::clone(&record)));
        clients.spawn(fresh_connections(client, Arc::clone(&record)));
        Self {
            record,
            _clients: clients,
        }
    }

    /// What it saw since the last call. A new connection without a response counts with the time that it has waited.
    pub(crate) fn take(&self) -> Window {
        let mut window = std::mem::take(&mut *self.record.window.lock().unwrap());
        let waiting = self.record.waiting.lock().unwrap();
        window.fresh.extend(waiting.iter().map(Instant::elapsed));
        window
    }

    /// The number of watches that have not seen all events up to this one.
    pub(crate) fn late_watches(&self, last: u64) -> usize {
        let events = self.record.events.lock().unwrap();
        events.values().filter(|seen| **seen < last).count()
    }
}

/// Sends requests at a steady rate, also while earlier ones have no response. A time counts from the moment at which
/// the request was due.
async fn requests(client: Client, per_second: u32, record: Arc<Record>) {
    let mut connections: Vec<Option<Arc<Http2>>> = vec![None; CONNECTIONS];
    let mut due = interval(Duration::from_secs(1) / per_second);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    for turn in 0.. {
        let begun = due.tick().await;
        while running.try_join_next().is_some() {}
        let slot = &mut connections[turn % CONNECTIONS];
        let connection = match slot {
            // Like client-go, it does not send on a connection that had a GOAWAY.
            Some(open)
                if open
                    .frames()
                    .iter()
                    .all(|frame| frame.kind != standin::frames::kind::GOAWAY) =>
            {
                Arc::clone(open)
            }
            _ => match connect(&client).await {
                Ok(new) => Arc::clone(slot.insert(Arc::new(new))),
                Err(error) => {
                    record.failed("a connection", &error);
                    continue;
                }
            },
        };
        let record = Arc::clone(&record);
        running.spawn(async move {
            match get(&connection).await {
                Ok(()) => record.took(false, begun),
                Err(error) => record.failed("a request", &error),
            }
        });
    }
}

/// Opens connections at a steady rate, also while earlier ones wait.
async fn fresh_connections(client: Client, record: Arc<Record>) {
    let mut due = interval(FRESH);
    due.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut running = JoinSet::new();
    loop {
        let begun = due.tick().await;
        while running.try_join_next().is_some() {}
        record.waiting.lock().unwrap().push(begun);
        let (client, record) = (client.clone(), Arc::clone(&record));
        running.spawn(async move {
            let once = async { get(&connect(&client).await?).await };
            let outcome = once.await;
            record.waiting.lock().unwrap().retain(|one| *one != begun);
            match outcome {
                Ok(()) => record.took(true, begun),
                Err(error) => record.failed("a new connection", &error),
            }
        });
    }
}

async fn connect(client: &Client) -> Result<Http2, String> {
    // A separate task turns the panic of a wait that took too long into an error.
    let client = client.clone();
    let connecting = tokio::spawn(async move {
        let tls = client.alpn(&["h2"]).connect().await?;
        Ok::<_, std::io::Error>(Http2::new(tls).await)
    });
    match timeout(PATIENCE, connecting).await {
        Ok(Ok(Ok(connection))) => Ok(connection),
        Ok(Ok(Err(error))) => Err(error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(late) => Err(late.to_string()),
    }
}

fn request(path: &str) -> Request<bytes::Bytes> {
    let request = Request::get(format!("https://{HOST}{path}"));
    let request = request.header(header::AUTHORIZATION, format!("Bearer {VICTIM_TOKEN}"));
    request.body(bytes::Bytes::new()).unwrap()
}

async fn get(connection: &Http2) -> Result<(), String> {
    let request = connection.request(request("/api/v1/namespaces/default/pods/one"));
    match timeout(PATIENCE, request).await {
        Ok(Ok(response)) if response.status == 200 => Ok(()),
        Ok(Ok(response)) => Err(format!("{}: {}", response.status, response.text())),
        Ok(Err(error)) => Err(error.to_string()),
        Err(late) => Err(late.to_string()),
    }
}

/// Follows a watch, and records an end or a gap as a failure.
async fn follow(
    client: Client,
    watch: usize,
    record: Arc<Record>,
    ready: Arc<tokio::sync::Notify>,
) {
    let failed = |error: &dyn Display| record.failed("a watch", error);
    let connection = match connect(&client).await {
        Ok(connection) => connection,
        Err(error) => return failed(&error),
    };
    let (parts, _) = request("/watch").into_parts();
    let begun = connection.begin(Request::from_parts(parts, ()), true).await;
    let response = match begun {
        Ok((response, _)) => response.await,
        Err(error) => return failed(&error),
    };
    let mut body = match response {
        Ok(response) => response.into_body(),
        Err(error) => return failed(&error),
    };
    let (mut line, mut last) = (Vec::new(), None);
    while let Some(data) = body.data().await {
        let data = match data {
            Ok(data) => data,
            Err(error) => return failed(&error),
        };
        body.flow_control().release_capacity(data.len()).unwrap();
        line.extend_from_slice(&data);
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = line.drain(..=end).collect();
            let Some(number) = number(&String::from_utf8_lossy(&text)) else {
                return failed(&"a line is not an event");
            };
            if last.is_some_and(|last| number != last + 1) {
                failed(&format!("event {number} after {last:?}"));
            }
            last = Some(number);
            record.events.lock().unwrap().insert(watch, number);
            ready.notify_one();
        }
    }
    failed(&"it ended");
}
