//! Steady load: requests over both versions of HTTP, watches that resume, tunnels that echo. Everything that a
//! client of Kubernetes would notice is written down.

use std::{
    fmt,
    io::{Error, Result},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Config, ResourceExt as _,
    api::{WatchEvent, WatchParams},
};
use standin::client::{Client, Http1, Http2, TlsConnection};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{HOST, World, apiserver::Apiserver};

/// How much load.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) requests_per_second: u32,
    pub(crate) watches: usize,
    pub(crate) tunnels: usize,
}

/// What clients saw.
#[derive(Default)]
pub(crate) struct Tally {
    requests: AtomicUsize,
    /// Requests that were sent again as RFC 9110 §9.2.2 and RFC 9113 §8.7 let clients do: on a kept
    /// connection that was closed before a byte of an answer, or behind a GOAWAY.
    again: AtomicUsize,
    events: AtomicUsize,
    resumed: AtomicUsize,
    tunnels: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// Running load.
pub(crate) struct Load {
    tally: Arc<Tally>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Tally {
    fn failed(&self, what: &str, error: &dyn fmt::Display) {
        self.failures
            .lock()
            .unwrap()
            .push(format!("{what}: {error}"));
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// How often a watch ended and was taken up again.
    pub(crate) fn resumed(&self) -> usize {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Takes what has failed so far.
    pub(crate) fn take_failures(&self) -> Vec<String> {
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

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        write!(
            f,
            "{} requests, {} of them sent again, {} events, {} watches resumed, {} tunnels, {} failures",
            of(&self.requests),
            of(&self.again),
            of(&self.events),
            of(&self.resumed),
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
            let (client, kube) = (client.clone(), kube.clone());
            match number % 3 {
                0 => drop(load.clients.spawn(reflect(kube, version, tally, stop))),
                1 => drop(
                    load.clients
                        .spawn(watch_http1(client, version, tally, stop)),
                ),
                _ => drop(
                    load.clients
                        .spawn(watch_http2(client, version, tally, stop)),
                ),
            }
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
            tally: Arc::default(),
            stop: watch::Sender::new(false),
            clients: JoinSet::new(),
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
    turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut kept = None;
    while !*stop.borrow() {
        turns.tick().await;
        tally.requests.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(3) {
            kept = None;
        }
        let had_one = kept.is_some();
        let mut answered = ask_once(&client, number, &mut kept).await;
        if had_one && matches!(&answered, Err(again) if again.kind() == AGAIN) {
            tally.again.fetch_add(1, Ordering::Relaxed);
            answered = ask_once(&client, number, &mut kept).await;
        }
        if let Err(error) = answered {
            tally.failed("a request", &error);
            kept = None;
        }
    }
}

/// The kind of error that lets a client send a request again.
const AGAIN: std::io::ErrorKind = std::io::ErrorKind::Interrupted;

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

fn kube_client(world: &World, address: SocketAddr) -> kube::Client {
    let mut config = Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![world.public_ca.der().to_vec()]);
    config.tls_server_name = Some(HOST.to_owned());
    kube::Client::try_from(config).unwrap()
}

/// Takes the next event; the versions have no gap and nothing comes twice.
fn take_event(version: &mut usize, next: usize, tally: &Tally) {
    tally.events.fetch_add(1, Ordering::Relaxed);
    if next != *version + 1 {
        tally.failed("a watch", &format!("event {next} behind event {version}"));
    }
    *version = next;
}

/// A reflector of kube-rs: it watches from the last version it saw, again and again.
async fn reflect(
    client: kube::Client,
    mut version: usize,
    tally: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    let configmaps: Api<ConfigMap> = Api::namespaced(client, "default");
    while !*stop.borrow() {
        let params = WatchParams::default();
        let events = configmaps.watch(&params, &version.to_string()).await;
        let mut events = match events {
            Ok(events) => events.boxed(),
            Err(error) => {
                tally.failed("a reflector", &error);
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = stop.changed() => return,
            };
            match event {
                Some(Ok(WatchEvent::Added(one))) => {
                    let next = one.resource_version().unwrap().parse().unwrap();
                    take_event(&mut version, next, &tally);
                }
                Some(Ok(other)) => tally.failed("a reflector", &format!("{other:?}")),
                Some(Err(error)) => tally.failed("a reflector", &error),
                None => break,
            }
        }
        tally.resumed.fetch_add(1, Ordering::Relaxed);
    }
}

fn watch_target(version: usize) -> String {
    format!("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={version}")
}

/// What was received of an event that is not complete.
#[derive(Default)]
struct Line(Vec<u8>);

impl Line {
    fn take(&mut self, bytes: &[u8], version: &mut usize, tally: &Tally) {
        self.0.extend_from_slice(bytes);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let event: serde_json::Value = serde_json::from_slice(&line).unwrap();
            let next = event["object"]["metadata"]["resourceVersion"].as_str();
            take_event(version, next.unwrap().parse().unwrap(), tally);
        }
    }

    fn end(&self, tally: &Tally) {
        if !self.0.is_empty() {
            tally.failed("a watch", &"it ended within a line");
        }
        tally.resumed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sees what kube-rs forgives: a last chunk that is missing, an event that is not whole.
async fn watch_http1(
    client: Client,
    mut version: usize,
    tally: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let following = follow_http1(&client, &mut version, &tally);
        let ended = tokio::select! {
            ended = following => ended,
            _ = stop.changed() => return,
        };
        if let Err(error) = ended {
            tally.failed("a watch over HTTP/1.1", &error);
        }
    }
}

async fn follow_http1(client: &Client, version: &mut usize, tally: &Tally) -> Result<()> {
    let mut connection = Http1::new(client.connect().await?);
    let target = watch_target(*version);
    connection
        .try_send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await?;
    let head = connection.head().await?;
    if head.status != 200 {
        return Err(Error::other(format!("{head:?}")));
    }
    let mut line = Line::default();
    loop {
        let chunk = connection.chunk().await?;
        if chunk.is_empty() {
            line.end(tally);
            return Ok(());
        }
        line.take(&chunk, version, tally);
    }
}

/// The same over HTTP/2, with a connection of its own.
async fn watch_http2(
    client: Client,
    mut version: usize,
    tally: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let following = follow_http2(&client, &mut version, &tally);
        let ended = tokio::select! {
            ended = following => ended,
            _ = stop.changed() => return,
        };
        if let Err(error) = ended {
            tally.failed("a watch over HTTP/2", &error);
        }
    }
}

async fn follow_http2(
    client: &Client,
    version: &mut usize,
    tally: &Tally,
) -> std::result::Result<(), h2::Error> {
    let connection = client.http2().await;
    let url = format!("https://{HOST}{}", watch_target(*version));
    let mut body = connection.open(&url).await?.into_body();
    let mut line = Line::default();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        line.take(&data, version, tally);
    }
    line.end(tally);
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
