//! What the proxy holds for clients that are silent or gone: memory of the real binary, as the kernel
//! counts it.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use h2::RecvStream;
use http::{Request, Response};
use standin::{
    client::{Client, Http1, Http2, TlsConnection},
    frames::{END_STREAM, FrameConnection},
    upstream::{BodySender, Builder, Connection, RequestBody, Upstream, channel, full},
};
use tokio::sync::mpsc;

use crate::{
    binary::Binary,
    proxy::{HOST, World, data, sum_until_quiet},
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The memory of a process that is its own: heap and stacks, and no pages of files. Those are shared with
/// every other run of the binary, so how they are counted changes when another test ends.
fn own_memory(binary: &Binary) -> usize {
    counted(binary, "Anonymous:")
}

/// All memory of a process that is not on disk: what an operator sees.
fn resident(binary: &Binary) -> usize {
    counted(binary, "Rss:")
}

fn counted(binary: &Binary, as_what: &str) -> usize {
    let path = format!("/proc/{}/smaps_rollup", binary.pid());
    let rollup = fs::read_to_string(path).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(as_what));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse::<usize>().unwrap() * KIB
}

/// Waits until the process has given back so much that no more than `bound` is left. It gives nothing back
/// before it has seen that a client is gone or silent, and nobody tells when.
async fn wait_for_memory(binary: &Binary, what: &str, bound: usize) {
    wait_until_low(|| own_memory(binary), what, bound).await;
}

async fn wait_until_low(memory: impl Fn() -> usize, what: &str, bound: usize) {
    let mut least = usize::MAX;
    let enough = async {
        while least > bound {
            least = least.min(memory());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(standin::WAIT, enough).await;
    assert!(
        found.is_ok(),
        "{what}: {} KiB are held, {} KiB may be",
        least / KIB,
        bound / KIB
    );
}

/// The other ends of all watches, in the order in which they were opened.
type Events = Arc<Mutex<Vec<BodySender>>>;

/// An apiserver whose `/watch` is told what to say, whose `/list` is 10 MiB and which else says `ok`.
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

/// One watch, as its client has it.
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
        let get = format!("GET /watch HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        client.send(get).await;
        assert_eq!(client.head().await.unwrap().status, 200);
        Self::Connection(client)
    }

    /// Waits until so much of an event has come.
    async fn read(&mut self, length: usize) {
        let mut heard = 0;
        while heard < length {
            heard += match self {
                Self::Stream(response) => data(response).await.unwrap().len(),
                Self::Connection(client) => client.chunk().await.unwrap().len(),
            };
        }
        assert_eq!(heard, length);
    }
}

/// How the clients of a test watch.
#[derive(Debug, Clone, Copy)]
enum Clients {
    /// As controllers do: many streams on one connection.
    ShareConnections,
    /// As `kubectl get -w` does.
    Http2,
    /// As clients that speak no HTTP/2 do.
    Http1,
}

/// Opens the watches, and asserts what each of them costs while it is silent: before its first event and
/// after a small one, and after a large one.
async fn silent_watches_cost(clients: Clients, each: usize, after_large: usize) {
    let world = World::new();
    let (upstream, events) = apiserver(&world);
    let upstream = upstream.start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let client = binary.client(&world);
    // What the first clients make the process allocate once is not the watches'.
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
            let said = async { events.send(event.clone()).await.unwrap() };
            tokio::join!(said, watch.read(size));
        }
        let what = format!("watches silent after {size} bytes");
        wait_for_memory(&binary, &what, before + WATCHES * each).await;
    }
}

/// As many as two connections to an apiserver carry.
const WATCHES: usize = 200;

// The bounds are what was measured in a build for tests and some KiB more, since what the allocator rounds
// up differs from run to run: less than the 16 KiB of one buffer that is kept on every leg or stream.

/// What a stream adds: its future, and its place in two HTTP/2 connections that have their own buffers.
#[tokio::test]
async fn a_silent_stream_of_a_shared_connection_holds_no_buffers() {
    silent_watches_cost(Clients::ShareConnections, 12 * KIB, 15 * KIB).await;
}

/// Two TLS sessions, two HTTP/2 connections with the frame buffers of h2, and one stream.
#[tokio::test]
async fn silent_http2_connection_holds_only_its_frame_buffers() {
    silent_watches_cost(Clients::Http2, 80 * KIB, 100 * KIB).await;
}

/// Two TLS sessions and two HTTP/1.1 connections. hyper lets the buffer of a connection to an apiserver
/// grow to 32 KiB while a large event comes, and keeps it; what else grew for it is free, and given back
/// in time.
#[tokio::test]
async fn a_silent_http1_connection_holds_one_buffer_at_most() {
    silent_watches_cost(Clients::Http1, 64 * KIB, 200 * KIB).await;
}

/// Idle leases are kept on purpose, for the next client; where none comes, not for long.
const SHORT_IDLE: &str = "timeouts: { upstreamIdle: 1s }\n";

/// So many clients come, each asks as [`visit`] does, all stay until the last has asked, and all go. Returns
/// what the process held before they went.
async fn burst(binary: &Binary, client: &Client, clients: usize) -> usize {
    let visits = stream::iter(0..clients).map(|number| visit(client, number));
    // So many at once, or those that come last wait for their handshake for too long.
    let connections: Vec<_> = visits.buffer_unordered(16).collect().await;
    let held = own_memory(binary);
    drop(connections);
    held
}

/// Whatever a burst leaves behind, the next one does not add to it: nothing is lost, it is used again.
#[tokio::test]
async fn a_second_burst_takes_no_more_memory_than_the_first() {
    let world = World::new();
    let (upstream, _) = apiserver(&world);
    let upstream = upstream.start().await;
    let config = world.dir.write("config.yaml", SHORT_IDLE);
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let client = binary.client(&world);
    let first = burst(&binary, &client, 100).await;
    upstream_is_left(&upstream).await;
    for _ in 0..2 {
        burst(&binary, &client, 100).await;
        upstream_is_left(&upstream).await;
    }
    wait_for_memory(&binary, "after three bursts", first + first / 4).await;
}

/// Waits until the proxy has closed every connection, those that it kept idle too.
async fn upstream_is_left(upstream: &Upstream) {
    let all_closed = |connections: &[Connection]| {
        let open = connections.iter().any(|one| one.end.is_none());
        (!open).then_some(())
    };
    upstream
        .wait_for("the end of every lease", all_closed)
        .await;
}

/// Five hundred clients come, ask and go. What they made the process hold goes with them.
#[tokio::test]
async fn memory_is_given_back_after_a_burst() {
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
    upstream_is_left(&upstream).await;
    wait_until_low(|| resident(&binary), "after a burst", before * 3 / 2).await;
}

/// A connection that has carried ten requests, every tenth a large list too; it is still open.
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

/// A log that comes byte by byte costs some frames at a time, and not one for each byte that a client may
/// grant and then not read.
#[tokio::test]
async fn small_pieces_that_wait_for_their_client_are_few() {
    let world = World::new();
    let (upstream, _) = apiserver(&world);
    let (tell, mut taken) = mpsc::unbounded_channel();
    let upstream = upstream.alpn(&["http/1.1"]).http(move |request| {
        let tell = tell.clone();
        async move {
            let (pieces, body) = channel();
            let (size, most) = match request.uri().path() {
                "/list" => (64 * KIB, 1024),
                _ => (1, 64 * KIB),
            };
            tokio::spawn(async move {
                let piece = Bytes::from(vec![b'x'; size]);
                for _ in 0..most {
                    if pieces.send(piece.clone()).await.is_err() {
                        return;
                    }
                    tell.send(size).ok();
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
    // What is large fills the sockets, so that what is small stays.
    for (stream, path) in [(1, "/list"), (3, "/log")] {
        let get = [
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", HOST),
            (":path", path),
        ];
        before = own_memory(&binary);
        wire.headers(stream, &get, END_STREAM).await.unwrap();
        let pushed = sum_until_quiet(&mut taken).await;
        assert!(pushed > 0, "{path}");
    }
    let held = own_memory(&binary).saturating_sub(before);
    assert!(held < 4 * MIB, "{} KiB", held / KIB);
}
