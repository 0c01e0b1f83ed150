//! Steady load: requests over both versions of HTTP, watches that resume, tunnels that echo. It records every
//! failure that a Kubernetes client would notice, and the load that was really reached.

use std::{
    fmt,
    io::{Error, Result},
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use standin::client::{Client, Http1, Http2, TlsConnection};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    HOST, World,
    apiserver::Apiserver,
    watches::{Reflectors, kube_client, watch_http1, watch_http2},
};

/// The amount of load.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) requests_per_second: u32,
    pub(crate) watches: usize,
    pub(crate) tunnels: usize,
}

/// The results that the clients saw.
pub(crate) struct Tally {
    /// The target rate, in requests per second.
    target: u32,
    began: Instant,
    /// Requests that have ended, with success or not.
    requests: AtomicUsize,
    /// Requests that were retried as RFC 9110 §9.2.2 and RFC 9113 §8.7 allow: the reused connection was closed
    /// before the first byte of a response, or after a GOAWAY.
    retries: AtomicUsize,
    /// Watches that a reflector retried, because the reused connection was just being closed.
    reflector_retries: AtomicUsize,
    events: AtomicUsize,
    tunnels: AtomicUsize,
    /// The failures, and when the failed operation began.
    failures: Mutex<Vec<(Instant, String)>>,
}

/// Running load.
pub(crate) struct Load {
    tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    reflectors: Reflectors,
}

impl Tally {
    fn new(target: u32) -> Self {
        Self {
            target,
            began: Instant::now(),
            requests: AtomicUsize::default(),
            retries: AtomicUsize::default(),
            reflector_retries: AtomicUsize::default(),
            events: AtomicUsize::default(),
            tunnels: AtomicUsize::default(),
            failures: Mutex::default(),
        }
    }

    pub(crate) fn reflector_retry(&self) {
        self.reflector_retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn event(&self) {
        self.events.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, what: &str, error: &dyn fmt::Display) {
        self.failed_since(Instant::now(), what, error);
    }

    fn failed_since(&self, begun: Instant, what: &str, error: &dyn fmt::Display) {
        let failure = (begun, format!("{what}: {error}"));
        self.failures.lock().unwrap().push(failure);
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// The rate of requests from the beginning until now.
    pub(crate) fn rate(&self) -> Rate {
        let lasted = self.began.elapsed();
        Rate {
            target: self.target.into(),
            reached: f64::from(u32::try_from(self.requests()).unwrap()) / lasted.as_secs_f64(),
            lasted,
        }
    }

    /// Removes and returns the failures so far, with the time when each operation began.
    pub(crate) fn take_failures(&self) -> Vec<(Instant, String)> {
        std::mem::take(&mut self.failures.lock().unwrap())
    }

    /// # Panics
    ///
    /// When a client saw a failure.
    pub(crate) fn assert_clean(&self) {
        let failures = self.failures.lock().unwrap();
        assert!(
            failures.is_empty(),
            "{} failures: {failures:#?}",
            failures.len()
        );
    }
}

/// The target and the reached rate, in requests per second.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    target: f64,
    reached: f64,
    lasted: Duration,
}

impl Rate {
    /// # Panics
    ///
    /// When the reached rate is lower than the test requires.
    pub(crate) fn assert_reached(self) {
        assert!(self.reached >= self.target * REQUIRED_SHARE, "{self}");
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            reached,
            lasted,
        } = self;
        write!(
            f,
            "{reached:.1} requests per second (target: {target}) for {:.0} s",
            lasted.as_secs_f64()
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} requests, {} of them retried, {} watches retried by reflectors, {} events, {} tunnels, {} failures",
            of(&self.requests),
            of(&self.retries),
            of(&self.reflector_retries),
            of(&self.events),
            of(&self.tunnels),
            self.failures.lock().unwrap().len()
        )
    }
}

impl Load {
    pub(crate) fn start(
        world: &World,
        address: SocketAddr,
        apiserver: &Apiserver,
        shape: Shape,
    ) -> Self {
        let version = apiserver.version();
        let client = Client::new(address).trust(&world.public_ca).sni(HOST);
        let mut load = Self::requests(client.clone(), shape.requests_per_second);
        let kube = kube_client(world, address);
        for number in 0..shape.watches {
            let (tally, stop) = (Arc::clone(&load.tally), load.stop.subscribe());
            let client = client.clone();
            // Half of the watches are reflectors; the others check every line.
            match number % 4 {
                0 => load
                    .clients
                    .spawn(watch_http1(client, version, tally, stop)),
                1 => load
                    .clients
                    .spawn(watch_http2(client, version, tally, stop)),
                _ => {
                    let reflector = load.reflectors.reflect(kube.clone(), tally, stop);
                    load.clients.spawn(reflector)
                }
            };
        }
        for _ in 0..shape.tunnels {
            let (tally, stop) = (Arc::clone(&load.tally), load.stop.subscribe());
            load.clients.spawn(echo(client.clone(), tally, stop));
        }
        load
    }

    /// Starts requests only, without watches and tunnels.
    pub(crate) fn requests(client: Client, per_second: u32) -> Self {
        let mut load = Self {
            tally: Arc::new(Tally::new(per_second)),
            stop: watch::Sender::new(false),
            clients: JoinSet::new(),
            reflectors: Reflectors::default(),
        };
        let pause = Duration::from_secs(CLIENTS.into()) / per_second;
        for number in 0..CLIENTS {
            let (tally, stop) = (Arc::clone(&load.tally), load.stop.subscribe());
            load.clients
                .spawn(send_requests(client.clone(), number, pause, tally, stop));
        }
        load
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn reflectors(&self) -> &Reflectors {
        &self.reflectors
    }

    /// Stops all clients and returns their results.
    pub(crate) async fn finish(mut self) -> Arc<Tally> {
        self.stop.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                self.tally.failed("a client", &error);
            }
        }
        self.tally
    }
}

/// An open connection that a client reuses.
enum ReusedConnection {
    Http1(Http1<TlsConnection>),
    Http2(Http2),
}

/// One client that sends a request per `pause`. A third of the clients open a new connection for each request, a
/// third each reuse an HTTP/1.1 or an HTTP/2 connection.
async fn send_requests(
    client: Client,
    number: u32,
    pause: Duration,
    tally: Arc<Tally>,
    stop: watch::Receiver<bool>,
) {
    let mut turns = interval(pause);
    // A late request is sent at once, as by a client that does not wait for responses.
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut reused = None;
    while !*stop.borrow() {
        turns.tick().await;
        if number.is_multiple_of(3) {
            reused = None;
        }
        let was_reused = reused.is_some();
        let begun = Instant::now();
        let mut outcome = request_with_timeout(&client, number, &mut reused).await;
        if was_reused && matches!(&outcome, Err(error) if error.kind() == RETRYABLE) {
            tally.retries.fetch_add(1, Ordering::Relaxed);
            outcome = request_with_timeout(&client, number, &mut reused).await;
        }
        tally.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            tally.failed_since(begun, "a request", &error);
            reused = None;
        }
    }
}

/// The kind of error after which a client may retry the request.
const RETRYABLE: std::io::ErrorKind = std::io::ErrorKind::Interrupted;

/// Sends one request. A wait that takes too long panics; this turns the panic into an error, and the next request
/// uses a new connection.
async fn request_with_timeout(
    client: &Client,
    number: u32,
    reused: &mut Option<ReusedConnection>,
) -> Result<()> {
    let request = AssertUnwindSafe(request_once(client, number, reused)).catch_unwind();
    let timed_out = |_| Err(Error::other("no response within the time limit"));
    request.await.unwrap_or_else(timed_out)
}

async fn request_once(
    client: &Client,
    number: u32,
    reused: &mut Option<ReusedConnection>,
) -> Result<()> {
    let connection = match reused.take() {
        Some(connection) => connection,
        None if number % 3 == 1 => ReusedConnection::Http2(client.http2().await),
        None => ReusedConnection::Http1(Http1::new(client.connect().await?)),
    };
    match connection {
        ReusedConnection::Http2(connection) => {
            let response = connection.get(&format!("https://{HOST}/version")).await;
            match response {
                Ok(response) if response.status == 200 => {
                    *reused = Some(ReusedConnection::Http2(connection))
                }
                Ok(response) => return Err(Error::other(response.text())),
                Err(error) if error.is_go_away() || !error.is_remote() => {
                    return Err(Error::new(RETRYABLE, error));
                }
                Err(error) => return Err(Error::other(error)),
            }
        }
        ReusedConnection::Http1(mut connection) => {
            let sent = connection
                .try_send(format!("GET /version HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
                .await;
            let retryable = |error| Error::new(RETRYABLE, error);
            sent.map_err(retryable)?;
            let head = connection.head().await.map_err(retryable)?;
            let body = connection
                .body(&head)
                .await
                .map_err(|error| Error::other(format!("{error:?}")))?;
            if head.status != 200 {
                return Err(Error::other(String::from_utf8_lossy(&body).into_owned()));
            }
            if head.header("connection") != Some("close") {
                *reused = Some(ReusedConnection::Http1(connection));
            }
        }
    }
    Ok(())
}

/// Opens a tunnel, uses it for some seconds, closes it and opens the next.
async fn echo(client: Client, tally: Arc<Tally>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        tally.tunnels.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = echo_once(&client).await {
            tally.failed("a tunnel", &error);
        }
    }
}

async fn echo_once(client: &Client) -> Result<()> {
    let mut connection = Http1::new(client.connect().await?);
    connection
        .try_send(format!(
            "POST /exec HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
        ))
        .await?;
    let head = connection.head().await?;
    if head.status != 101 {
        return Err(Error::other(format!("{head:?}")));
    }
    for number in 0..8 {
        let word = format!("word {number}");
        connection.try_send(&word).await?;
        let heard = connection.take(word.len()).await?;
        if heard != word {
            return Err(Error::other(format!("expected {word}, received {heard:?}")));
        }
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// The number of clients that send requests.
const CLIENTS: u32 = 12;
/// The share of the target rate that must be reached.
const REQUIRED_SHARE: f64 = 0.95;
