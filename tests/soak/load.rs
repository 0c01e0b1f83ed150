//! Steady load: requests over both versions of HTTP, watches that resume, tunnels that echo. Everything that a
//! client of Kubernetes would notice is written down, and how much load it really was.

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

/// How much load.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) requests_per_second: u32,
    pub(crate) watches: usize,
    pub(crate) tunnels: usize,
}

/// What clients saw.
pub(crate) struct Tally {
    /// Requests that should be sent in a second.
    asked: u32,
    began: Instant,
    /// Requests that have ended, well or not.
    requests: AtomicUsize,
    /// Requests that were sent again as RFC 9110 §9.2.2 and RFC 9113 §8.7 let clients do: on a kept
    /// connection that was closed before a byte of a response, or after a GOAWAY.
    again: AtomicUsize,
    /// Watches that a reflector began on a kept connection that was just being closed, and began again.
    again_by_reflectors: AtomicUsize,
    events: AtomicUsize,
    tunnels: AtomicUsize,
    /// What failed, and when that was begun.
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
    fn new(asked: u32) -> Self {
        Self {
            asked,
            began: Instant::now(),
            requests: AtomicUsize::default(),
            again: AtomicUsize::default(),
            again_by_reflectors: AtomicUsize::default(),
            events: AtomicUsize::default(),
            tunnels: AtomicUsize::default(),
            failures: Mutex::default(),
        }
    }

    pub(crate) fn closed_under_a_reflector(&self) {
        self.again_by_reflectors.fetch_add(1, Ordering::Relaxed);
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

    /// Requests a second, from the beginning until now.
    pub(crate) fn rate(&self) -> Rate {
        let lasted = self.began.elapsed();
        Rate {
            asked: self.asked.into(),
            reached: f64::from(u32::try_from(self.requests()).unwrap()) / lasted.as_secs_f64(),
            lasted,
        }
    }

    /// Takes what has failed so far, and when that was begun.
    pub(crate) fn take_failures(&self) -> Vec<(Instant, String)> {
        std::mem::take(&mut self.failures.lock().unwrap())
    }

    /// # Panics
    ///
    /// When a client noticed something.
    pub(crate) fn assert_clean(&self) {
        let failures = self.failures.lock().unwrap();
        assert!(
            failures.is_empty(),
            "{} failures: {failures:#?}",
            failures.len()
        );
    }
}

/// How many requests a second there should be, and were.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    asked: f64,
    reached: f64,
    lasted: Duration,
}

impl Rate {
    /// # Panics
    ///
    /// When this was less load than the test is about.
    pub(crate) fn assert_reached(self) {
        assert!(self.reached >= self.asked * ENOUGH, "{self}");
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            asked,
            reached,
            lasted,
        } = self;
        write!(
            f,
            "{reached:.1} requests a second of {asked} asked for, for {:.0} s",
            lasted.as_secs_f64()
        )
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} requests, {} of them sent again, {} watches begun again by reflectors, {} events, {} tunnels, {} failures",
            of(&self.requests),
            of(&self.again),
            of(&self.again_by_reflectors),
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
            // Half of them are reflectors, the others look at every line.
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

    /// Requests alone.
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
                .spawn(ask(client.clone(), number, pause, tally, stop));
        }
        load
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(crate) fn reflectors(&self) -> &Reflectors {
        &self.reflectors
    }

    /// Stops all clients and says what they saw.
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

/// A connection that requests are sent on, and whether one was.
enum Kept {
    Http1(Http1<TlsConnection>),
    Http2(Http2),
}

/// One client that asks once in every `pause`: a third as strangers, a third each on kept connections.
async fn ask(
    client: Client,
    number: u32,
    pause: Duration,
    tally: Arc<Tally>,
    stop: watch::Receiver<bool>,
) {
    let mut turns = interval(pause);
    // A late request is sent at once, like a client that does not wait for responses.
    turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut kept = None;
    while !*stop.borrow() {
        turns.tick().await;
        if number.is_multiple_of(3) {
            kept = None;
        }
        let had_one = kept.is_some();
        let asked = Instant::now();
        let mut answered = ask_patiently(&client, number, &mut kept).await;
        if had_one && matches!(&answered, Err(again) if again.kind() == AGAIN) {
            tally.again.fetch_add(1, Ordering::Relaxed);
            answered = ask_patiently(&client, number, &mut kept).await;
        }
        tally.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = answered {
            tally.failed_since(asked, "a request", &error);
            kept = None;
        }
    }
}

/// The kind of error that lets a client send a request again.
const AGAIN: std::io::ErrorKind = std::io::ErrorKind::Interrupted;

/// Asks once. Who waits for too long panics, and asks again later as a stranger.
async fn ask_patiently(client: &Client, number: u32, kept: &mut Option<Kept>) -> Result<()> {
    let asked = AssertUnwindSafe(ask_once(client, number, kept)).catch_unwind();
    let gave_up = |_| Err(Error::other("nothing came for long"));
    asked.await.unwrap_or_else(gave_up)
}

async fn ask_once(client: &Client, number: u32, kept: &mut Option<Kept>) -> Result<()> {
    let connection = match kept.take() {
        Some(connection) => connection,
        None if number % 3 == 1 => Kept::Http2(client.http2().await),
        None => Kept::Http1(Http1::new(client.connect().await?)),
    };
    match connection {
        Kept::Http2(connection) => {
            let answer = connection.get(&format!("https://{HOST}/version")).await;
            match answer {
                Ok(answer) if answer.status == 200 => *kept = Some(Kept::Http2(connection)),
                Ok(answer) => return Err(Error::other(answer.text())),
                Err(error) if error.is_go_away() || !error.is_remote() => {
                    return Err(Error::new(AGAIN, error));
                }
                Err(error) => return Err(Error::other(error)),
            }
        }
        Kept::Http1(mut connection) => {
            let sent = connection
                .try_send(format!("GET /version HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
                .await;
            let again = |error| Error::new(AGAIN, error);
            sent.map_err(again)?;
            let head = connection.head().await.map_err(again)?;
            let body = connection
                .body(&head)
                .await
                .map_err(|cut| Error::other(format!("{cut:?}")))?;
            if head.status != 200 {
                return Err(Error::other(String::from_utf8_lossy(&body).into_owned()));
            }
            if head.header("connection") != Some("close") {
                *kept = Some(Kept::Http1(connection));
            }
        }
    }
    Ok(())
}

/// Opens a tunnel, uses it for a while, ends it and opens the next.
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
            return Err(Error::other(format!("{heard:?} in place of {word}")));
        }
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

/// Clients that ask.
const CLIENTS: u32 = 12;
/// So much of the rate that was asked for must be reached.
const ENOUGH: f64 = 0.95;
