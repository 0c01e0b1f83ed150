//! Memory of the real binary, as the kernel counts it, with silent clients and after clients have left.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use h2::RecvStream;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use standin::{
    client::{Client, Http1, Http2, TlsConnection},
    frames::{END_STREAM, FrameConnection, kind},
    upstream::{BodySender, Builder, Connection, RequestBody, Upstream, channel, full},
    within,
};
use tokio::sync::mpsc;

use crate::{
    admin::scrape,
    binary::Binary,
    directory::Clusters,
    proxy::{HOST, World, data, sum_until_quiet},
    upgrades::{SPDY, echo},
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The private memory of a process: heap and stacks without pages of files. Those are shared with other runs of the
/// binary, so their share changes when another test ends.
fn own_memory(binary: &Binary) -> usize {
    kernel_value(binary, "Anonymous:", "RssAnon:")
}

/// The resident memory of a process, as an operator sees it.
fn resident(binary: &Binary) -> usize {
    kernel_value(binary, "Rss:", "VmRSS:")
}

/// The exact value of `smaps_rollup`. The proxy hides this file from others of its user, root excepted; they get the
/// value of `status`, which the kernel counts less exactly.
fn kernel_value(binary: &Binary, exact: &str, estimate: &str) -> usize {
    let read = |file| fs::read_to_string(format!("/proc/{}/{file}", binary.pid()));
    let (text, key) = match read("smaps_rollup") {
        Ok(rollup) => (rollup, exact),
        Err(_) => (read("status").unwrap(), estimate),
    };
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse::<usize>().unwrap() * KIB
}

/// Waits until the process holds at most `bound` bytes. It frees memory only after it has noticed that a client is
/// silent or gone, so the test has to poll.
async fn wait_for_memory(binary: &Binary, what: &str, bound: usize) {
    wait_until_low(|| own_memory(binary), what, bound).await;
}

async fn wait_until_low(memory: impl Fn() -> usize, what: &str, bound: usize) {
    let mut lowest = usize::MAX;
    let reached = async {
        while lowest > bound {
            lowest = lowest.min(memory());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(standin::WAIT, reached).await;
    assert!(
        found.is_ok(),
        "{what}: the process holds {} KiB, at most {} KiB are allowed",
        lowest / KIB,
        bound / KIB
    );
}

/// The apiserver's ends of all watches, in the order in which they were opened.
type Events = Arc<Mutex<Vec<BodySender>>>;

/// An apiserver: the test writes the events of `/watch`, `/list` is 10 MiB, all other responses are `ok`.
fn apiserver(world: &World) -> (Builder, Events) {
    let events = Events::default();
    let opened = Arc::clone(&events);
    let list = Bytes::from(vec![b'x'; LIST]);
    let answer = move |request: Request<RequestBody>| {
        let (opened, list) = (Arc::clone(&opened), list.clone());
        async move {
            match request.uri().path() {
                "/watch" => {
                    let (events, body) = channel();
                    opened.lock().unwrap().push(events);
                    Response::new(body)
                }
                "/list" => Response::new(full(list)),
                _ => Response::new(full("ok")),
            }
        }
    };
    (world.apiserver().http(answer), events)
}

const LIST: usize = 10 * MIB;
/// Below `limits.headerBytes`.
const LARGE_HEAD: usize = 30 * KIB;

/// Most of it is the TLS settings and the connection of its probe.
#[tokio::test]
async fn idle_clusters_hold_little_memory() {
    const CLUSTERS: usize = 40;
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let clusters = Clusters::new(&world, &upstream, ["first".to_owned()]);
    let config = clusters.config();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("probeInterval: 0s, ", "")).unwrap();
    let binary = Binary::start_from_file(&config).await;
    let admin = binary.admin().await;
    let healthy = async |wanted: usize| {
        let count = async || {
            let scrape = scrape(admin).await;
            let names = scrape
                .names()
                .filter_map(|name| name.strip_prefix("kube_tls_proxy_"));
            let endpoints = names.filter(|name| name.starts_with("endpoint_healthy"));
            endpoints.filter(|name| scrape.get(name) == 1.0).count()
        };
        let reached = async { while count().await < wanted {} };
        let reached = tokio::time::timeout(standin::WAIT * 6, reached).await;
        assert!(reached.is_ok(), "{wanted} healthy clusters");
    };
    healthy(1).await;
    let before = own_memory(&binary);
    for number in 0..CLUSTERS {
        clusters.write(&format!("c{number}"));
    }
    binary.signal("HUP").await;
    healthy(CLUSTERS + 1).await;
    wait_for_memory(&binary, "idle clusters", before + CLUSTERS * 64 * KIB).await;
}

/// The client's end of a watch.
enum Watch {
    Stream(Response<RecvStream>),
    Connection(Http1<TlsConnection>),
}

impl Watch {
    async fn over_http2(client: &Http2) -> Self {
        let url = format!("https://{HOST}/watch");
        Self::Stream(client.open(&url).await.unwrap())
    }

    async fn over_http1(client: &Client) -> Self {
        let mut client = client.http1().await;
        // The log line at the end needs parts of the head, but the proxy must not hold all of it until then.
        let padding = "x".repeat(LARGE_HEAD);
        let get = format!("GET /watch HTTP/1.1\r\nHost: {HOST}\r\nX-Padding: {padding}\r\n\r\n");
        client.send(get).await;
        assert_eq!(client.head().await.unwrap().status, 200);
        Self::Connection(client)
    }

    /// Reads an event of this length.
    async fn read(&mut self, length: usize) {
        let mut received = 0;
        while received < length {
            received += match self {
                Self::Stream(response) => data(response).await.unwrap().len(),
                Self::Connection(client) => client.chunk().await.unwrap().len(),
            };
        }
        assert_eq!(received, length);
    }
}

/// How the clients of a test use connections.
#[derive(Debug, Clone, Copy)]
enum Clients {
    /// Many streams on one connection, as controllers do.
    ShareConnections,
    /// One HTTP/2 connection per watch, as `kubectl get -w` does.
    Http2,
    /// One HTTP/1.1 connection per watch.
    Http1,
}

/// Opens watches, and asserts the memory per silent watch: at most `each` bytes before the first event and after a
/// small one, and at most `after_large` bytes after a large one.
async fn assert_memory_of_silent_watches(clients: Clients, each: usize, after_large: usize) {
    let world = World::new();
    let (upstream, events) = apiserver(&world);
    let upstream = upstream.start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let client = binary.client(&world);
    // One-time allocations for the first clients do not count.
    client.http1().await.get(HOST, "/", "").await;
    let url = format!("https://{HOST}/");
    let shared = [client.http2().await, client.http2().await];
    for http2 in &shared {
        http2.get(&url).await.unwrap();
    }
    let before = own_memory(&binary);

    let mut connections = Vec::new();
    let mut watches = Vec::new();
    for number in 0..WATCHES {
        watches.push(match clients {
            Clients::ShareConnections => Watch::over_http2(&shared[number % shared.len()]).await,
            Clients::Http2 => {
                let http2 = client.http2().await;
                let watch = Watch::over_http2(&http2).await;
                connections.push(http2);
                watch
            }
            Clients::Http1 => Watch::over_http1(&client).await,
        });
    }
    let bound = before + WATCHES * each;
    wait_for_memory(&binary, "watches without an event", bound).await;
    let events = std::mem::take(&mut *events.lock().unwrap());
    for (size, each) in [(KIB, each), (MIB, after_large)] {
        let event = Bytes::from(vec![b'x'; size]);
        for (events, watch) in events.iter().zip(&mut watches) {
            let send = async { events.send(event.clone()).await.unwrap() };
            tokio::join!(send, watch.read(size));
        }
        let what = format!("watches silent after {size} bytes");
        wait_for_memory(&binary, &what, before + WATCHES * each).await;
    }
}

/// The number of streams that two upstream connections carry.
const WATCHES: usize = 200;

// The bounds are measurements of a test build plus some KiB, because the rounding of the allocator differs from run
// to run. The margin is less than one 16 KiB buffer per leg or stream.

/// A stream adds its future and its state in two HTTP/2 connections, which have their own buffers.
#[tokio::test]
async fn silent_stream_of_shared_connection_holds_no_buffers() {
    assert_memory_of_silent_watches(Clients::ShareConnections, 12 * KIB, 15 * KIB).await;
}

/// Two TLS sessions, two HTTP/2 connections with the frame buffers of h2, and one stream.
#[tokio::test]
async fn silent_http2_connection_holds_only_its_frame_buffers() {
    assert_memory_of_silent_watches(Clients::Http2, 70 * KIB, 100 * KIB).await;
}

/// Two TLS sessions and two HTTP/1.1 connections, and nothing of the large request head. A buffer may grow to 32 KiB
/// during a large event and stay; all other memory of the event is freed in time.
#[tokio::test]
async fn silent_http1_connection_holds_at_most_one_buffer() {
    assert_memory_of_silent_watches(Clients::Http1, 44 * KIB, 200 * KIB).await;
}

/// Connections without a request, and tunnels, on which nothing passes. docs/performance.md publishes what they need in
/// a release build.
#[tokio::test]
async fn silent_connections_and_tunnels_are_small() {
    let world = World::new();
    let upstream = world.apiserver().http(echo).start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let client = binary.client(&world);
    // One-time allocations for the first clients do not count.
    client.http1().await.get(HOST, "/", "").await;
    let url = format!("https://{HOST}/");
    client.http2().await.get(&url).await.unwrap();

    let bound_for = |each: usize| own_memory(&binary) + WATCHES * each;
    let mut bound = bound_for(15 * KIB);
    let (mut http1, mut http2, mut tunnels) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..WATCHES {
        http1.push(client.http1().await);
    }
    wait_for_memory(&binary, "HTTP/1.1 without a request", bound).await;
    bound = bound_for(29 * KIB);
    for _ in 0..WATCHES {
        let client = client.http2().await;
        client.frame(kind::SETTINGS).await;
        http2.push(client);
    }
    wait_for_memory(&binary, "HTTP/2 without a request", bound).await;
    bound = bound_for(80 * KIB);
    for _ in 0..WATCHES {
        let mut client = client.http1().await;
        client.send(SPDY).await;
        assert_eq!(client.head().await.unwrap().status, 101);
        client.send("typed").await;
        assert_eq!(client.take(5).await.unwrap(), "typed");
        tunnels.push(client);
    }
    wait_for_memory(&binary, "tunnels", bound).await;
}

/// Unused upstream connections stay in the idle pool for this time only.
const SHORT_IDLE: &str = "timeouts: { upstreamIdle: 1s }\n";

/// Connects `clients` clients. Each sends the requests of [`visit`], and all disconnect after the last one is done.
/// Returns the memory of the process before they disconnect.
async fn burst(binary: &Binary, client: &Client, clients: usize) -> usize {
    let visits = stream::iter(0..clients).map(|number| visit(client, number));
    // At most 16 at once: otherwise the last handshakes exceed their timeout.
    let connections: Vec<_> = visits.buffer_unordered(16).collect().await;
    let held = own_memory(binary);
    drop(connections);
    held
}

/// Memory that a burst leaves allocated is used by the next burst: nothing leaks.
#[tokio::test]
async fn second_burst_needs_no_more_memory_than_the_first() {
    let world = World::new();
    let (upstream, _) = apiserver(&world);
    let upstream = upstream.start().await;
    let config = world.dir.write("config.yaml", SHORT_IDLE);
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let client = binary.client(&world);
    let first = burst(&binary, &client, 100).await;
    wait_until_upstream_is_closed(&upstream).await;
    for _ in 0..2 {
        burst(&binary, &client, 100).await;
        wait_until_upstream_is_closed(&upstream).await;
    }
    wait_for_memory(&binary, "after three bursts", first + first / 4).await;
}

/// Waits until the proxy has closed all upstream connections, including the idle pool.
async fn wait_until_upstream_is_closed(upstream: &Upstream) {
    let all_closed = |connections: &[Connection]| {
        let open = connections.iter().any(|one| one.end.is_none());
        (!open).then_some(())
    };
    upstream
        .wait_for("the end of every lease", all_closed)
        .await;
}

/// The memory for 500 clients is freed after they have disconnected.
#[tokio::test]
async fn memory_is_freed_after_a_burst() {
    let world = World::new();
    let (upstream, _) = apiserver(&world);
    let upstream = upstream.start().await;
    let config = world.dir.write("config.yaml", SHORT_IDLE);
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let client = binary.client(&world);
    burst(&binary, &client, 4).await;
    let before = resident(&binary);
    for _ in 0..2 {
        burst(&binary, &client, 250).await;
    }
    wait_until_upstream_is_closed(&upstream).await;
    wait_until_low(|| resident(&binary), "after a burst", before * 3 / 2).await;
}

/// Sends ten requests on a new connection, and on every fifth connection also requests a large list. Returns the open
/// connection.
async fn visit(client: &Client, number: usize) -> (Option<Http1<TlsConnection>>, Option<Http2>) {
    let lists = (number / 2).is_multiple_of(5);
    if number.is_multiple_of(2) {
        let mut http1 = client.http1().await;
        for _ in 0..10 {
            assert_eq!(http1.get(HOST, "/", "").await.text(), "ok");
        }
        if lists {
            assert_eq!(http1.get(HOST, "/list", "").await.body.len(), LIST);
        }
        return (Some(http1), None);
    }
    let http2 = client.http2().await;
    let url = format!("https://{HOST}/");
    for _ in 0..10 {
        assert_eq!(http2.get(&url).await.unwrap().text(), "ok");
    }
    if lists {
        let list = http2.get(&format!("{url}list")).await.unwrap();
        assert_eq!(list.body.len(), LIST);
    }
    (None, Some(http2))
}

/// The proxy keeps copies of request bodies, so that it can send an unprocessed request again. Together they are
/// bounded: a client that never finishes its uploads holds four times `limits.replayBytes`, and not once per stream.
#[tokio::test]
async fn unfinished_uploads_hold_bounded_copies() {
    const UPLOADS: usize = 48;
    let world = World::new();
    let (received, mut bytes_received) = mpsc::unbounded_channel();
    let upstream = world.apiserver().http(move |request| {
        let received = received.clone();
        async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                received.send(frame.data_ref().map_or(0, Bytes::len)).ok();
            }
            Response::new(full("ok"))
        }
    });
    let upstream = upstream.start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let client = binary.client(&world).http2().await;
    let url = format!("https://{HOST}/");
    client.get(&url).await.unwrap();
    let before = own_memory(&binary);
    let piece = Bytes::from(vec![b'x'; MIB]);
    let mut uploads = Vec::new();
    for _ in 0..UPLOADS {
        let request = Request::post(&url).body(()).unwrap();
        let (response, mut upload) = client.begin(request, false).await.unwrap();
        upload.send_data(piece.clone(), false).unwrap();
        uploads.push((response, upload));
    }
    let mut arrived = 0;
    while arrived < UPLOADS * MIB {
        arrived += within("data", bytes_received.recv()).await.unwrap();
    }
    // The copies, and some KiB for each stream.
    let bound = before + 8 * MIB;
    wait_for_memory(&binary, "unfinished uploads", bound).await;
    for (response, mut upload) in uploads {
        upload.send_data(Bytes::new(), true).unwrap();
        assert_eq!(within("a response", response).await.unwrap().status(), 200);
    }
}

/// A log in 1-byte writes must not fill the window of a stalled client with one frame per byte.
#[tokio::test]
async fn few_small_frames_wait_for_a_stalled_client() {
    let world = World::new();
    let (upstream, _) = apiserver(&world);
    let (sent, mut bytes_sent) = mpsc::unbounded_channel();
    let upstream = upstream.alpn(&["http/1.1"]).http(move |request| {
        let sent = sent.clone();
        async move {
            let (pieces, body) = channel();
            let (size, count) = match request.uri().path() {
                "/list" => (64 * KIB, 1024),
                _ => (1, 64 * KIB),
            };
            tokio::spawn(async move {
                let piece = Bytes::from(vec![b'x'; size]);
                for _ in 0..count {
                    if pieces.send(piece.clone()).await.is_err() {
                        return;
                    }
                    sent.send(size).ok();
                }
            });
            Response::new(body)
        }
    });
    let upstream = upstream.start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let tls = binary.client(&world).alpn(&["h2"]).connect().await.unwrap();
    let mut wire = FrameConnection::wide_client(tls).await.unwrap();
    let mut before = 0;
    // The list fills the sockets, so that the small frames of the log have to wait.
    for (stream, path) in [(1, "/list"), (3, "/log")] {
        let get = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", HOST),
            (":path", path),
        ];
        before = own_memory(&binary);
        wire.headers(stream, &get, END_STREAM).await.unwrap();
        let pushed = sum_until_quiet(&mut bytes_sent).await;
        assert!(pushed > 0, "{path}");
    }
    let held = own_memory(&binary).saturating_sub(before);
    assert!(held < 4 * MIB, "{} KiB", held / KIB);
}

/// Each 401 comes on an upstream connection of its own, so its body must not keep the read buffer of that connection.
#[tokio::test]
async fn unread_401_holds_no_read_buffer() {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let world = World::new();
    let answer = |_| async {
        let response = Response::builder()
            .status(401)
            .header("connection", "close");
        response.body(full(vec![b'x'; 129])).unwrap()
    };
    let upstream = world.apiserver().http(answer).start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let client = binary.client(&world).alpn(&["h2"]);
    let (mut before, mut open) = (0, Vec::new());
    // One-time allocations for the first client do not count.
    for clients in [1, 8] {
        before = own_memory(&binary);
        for _ in 0..clients {
            let tls = client.connect().await.unwrap();
            let settings = [(INITIAL_WINDOW_SIZE, 0)];
            let mut wire = FrameConnection::client(tls, &settings).await.unwrap();
            // All at once: after a 401 the client gets a GOAWAY.
            let get = [
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", HOST),
                (":path", "/"),
            ];
            for number in 0..100 {
                let stream = 2 * number + 1;
                wire.headers(stream, &get, END_STREAM).await.unwrap();
            }
            for _ in 0..100 {
                wire.expect(kind::HEADERS).await.unwrap();
            }
            open.push(wire);
        }
    }
    let held = own_memory(&binary).saturating_sub(before) / 8;
    // About 990 KiB; 1,490 with the read buffers.
    assert!(held < 1200 * KIB, "{} KiB per connection", held / KIB);
}
