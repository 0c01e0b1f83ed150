//! Tests the memory that every connection needs before a byte is buffered for it, which is the size of its future; how
//! much one connection does before another one has a turn; and clients that do not read, with a paused clock.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
    time::SystemTime,
};

use http::Response;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::aws_lc_rs::Ticketer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::ServerName;
use standin::{
    TempDir,
    client::{Client, TlsConnection},
    frames::{ACK, END_STREAM, Frame, FrameConnection, kind},
    pki::Ca,
    upstream::{Upstream, channel, full},
};
use tokio::{
    io::AsyncWrite,
    net::TcpListener,
    task::yield_now,
    time::{Instant, sleep},
};

use super::*;
use crate::{
    config::{IdentityFiles, Settings, Timeouts},
    pki::{self, Identity},
    proxy::Route,
    upstream::{ClientTls, Cluster, Endpoints},
};

/// The size of the future that this function returns.
fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

/// Each bound is the measured size and a tenth more. A future that outgrows it now holds something that was
/// on the heap, or that is needed only for a while. Raise a bound only for something that every idle
/// connection needs.
#[test]
fn future_of_a_connection_stays_small() {
    let of_http1 = size(|(stream, service)| http1::serve(stream, service));
    assert!(of_http1 <= HTTP1, "HTTP/1.1: {of_http1} bytes");
    let of_http2 = size(|(stream, service)| http2::serve(stream, service));
    assert!(of_http2 <= HTTP2, "HTTP/2: {of_http2} bytes");
    let task = size(|(accepted, shared, context, drain, open)| {
        serve(accepted, shared, context, drain, open)
    });
    assert!(task <= TASK, "of the task: {task} bytes");
}

const HTTP1: usize = 1_100;
const HTTP2: usize = 3_100;
const TASK: usize = 800;

/// The memory of the handshake must not become the read buffer of h2, 8 KiB, because it was touched as a whole.
#[test]
fn future_of_a_handshake_is_smaller_than_a_read_buffer() {
    const ALLOCATED_FOR_READ_BUFFER: usize = 7 * 1024;
    let handshake = size(|(stream, snapshot, client, shared, context)| {
        handshake(stream, snapshot, client, shared, context)
    });
    assert!(handshake <= ALLOCATED_FOR_READ_BUFFER, "{handshake} bytes");
}

const HOST: &str = "kube.test";

/// The name that the apiserver's certificate carries.
const APISERVER: &str = "kubernetes.default.svc";

/// Counts the certificates that it chooses. rustls exchanges keys and signs in the same call, after it.
#[derive(Debug)]
struct CountedCertificates {
    inner: Arc<dyn ResolvesServerCert>,
    chosen: Arc<AtomicUsize>,
}

impl ResolvesServerCert for CountedCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.chosen.fetch_add(1, Ordering::Relaxed);
        self.inner.resolve(hello)
    }
}

/// A worker that runs on the runtime of the test, as its apiserver does.
struct OneWorker {
    /// Handshakes in which the worker has signed.
    signed: Arc<AtomicUsize>,
    listener: TcpListener,
    shared: Arc<Shared>,
    context: Arc<UpstreamContext>,
    drain: Drain,
    client: Client,
    _apiserver: Upstream,
}

impl OneWorker {
    /// Each response of the apiserver is `ok`, but for that of `/watch`, which never ends.
    async fn start() -> Self {
        let cluster_ca = Ca::new("cluster");
        let apiserver = Upstream::builder(cluster_ca.server(&[APISERVER]));
        let apiserver = apiserver.http(|request| async move {
            Response::new(match request.uri().path() {
                "/watch" => {
                    let (events, body) = channel();
                    std::mem::forget(events);
                    body
                }
                _ => full("ok"),
            })
        });
        let apiserver = apiserver.start().await;
        let name = ServerName::try_from(APISERVER).unwrap();
        let tls = ClientTls::new(Arc::new(cluster_ca.roots()), name).unwrap();
        let endpoints = Arc::new(Endpoints::resolved(&[apiserver.address()]));
        let cluster = Cluster::new(
            crate::metrics::ClusterLabels::default().label("test"),
            String::new(),
            endpoints,
            tls,
        );
        let mut routes = Routes::default();
        routes.add(HOST, &Arc::new(Route::new(Arc::new(cluster))));
        let (ca, dir) = (Ca::new("public"), TempDir::new());
        let (certificate, key) = ca.server(&[HOST]).write(&dir, "public");
        let files = IdentityFiles { certificate, key };
        let identity = Identity::load(&files, SystemTime::now()).unwrap();
        let mut tls = server_config(&[identity], Ticketer::new().unwrap());
        let signed = Arc::new(AtomicUsize::new(0));
        tls.cert_resolver = Arc::new(CountedCertificates {
            inner: tls.cert_resolver,
            chosen: Arc::clone(&signed),
        });
        let snapshot = Snapshot {
            acme: None,
            tls: Arc::new(tls),
            routes: Arc::new(routes),
        };
        let settings = LiveSettings::new(ArcSwap::from_pointee(Settings {
            timeouts: Timeouts {
                client_idle: Duration::from_secs(24 * 60 * 60),
                ..Timeouts::default()
            },
            ..Settings::default()
        }));
        let drain = Drain::new();
        let context = UpstreamContext::new(Arc::clone(&settings), drain.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            signed,
            client: Client::new(listener.local_addr().unwrap())
                .trust(&ca)
                .sni(HOST)
                .alpn(&["h2"]),
            listener,
            shared: Arc::new(Shared {
                snapshot: ArcSwap::from_pointee(snapshot),
                clients: ClientTable::new(&settings.load().limits),
                handshakes: Arc::new(Semaphore::new(100)),
                handshake_log: HandshakeLog::default(),
                memory: Arc::default(),
                settings,
            }),
            context: Arc::new(context),
            drain,
            _apiserver: apiserver,
        }
    }

    /// Serves the next connection.
    async fn accept(&self) {
        let (stream, peer) = self.listener.accept().await.unwrap();
        socket::tune(&stream, &self.shared.settings.load().timeouts).unwrap();
        let place = self.shared.clients.enter(PeerAddr(peer), false).unwrap();
        let (shared, context) = (Arc::clone(&self.shared), Arc::clone(&self.context));
        let accepted = NewConnection {
            stream,
            peer: PeerAddr(peer),
            place,
            peers: Arc::default(),
        };
        spawn(accepted, shared, context, &self.drain);
    }

    /// A client over HTTP/2 with this window per stream.
    async fn client(&self, window: u32) -> FrameClient {
        let (tls, ()) = tokio::join!(self.client.connect(), self.accept());
        let mut client = FrameConnection::client(tls.unwrap(), &[(INITIAL_WINDOW_SIZE, window)])
            .await
            .unwrap();
        client.expect(kind::SETTINGS).await.unwrap();
        client
    }
}

type FrameClient = FrameConnection<TlsConnection>;

/// Writes as much as the kernel takes, while nothing else runs.
async fn write_without_a_pause(client: &mut FrameClient, bytes: &[u8]) -> usize {
    let mut written = 0;
    poll_fn(|cx| {
        while let Some(rest) = bytes.get(written..)
            && !rest.is_empty()
            && let Poll::Ready(count) = Pin::new(client.stream()).poll_write(cx, rest)
        {
            written += count.unwrap();
        }
        Poll::Ready(())
    })
    .await;
    written
}

/// The next frame, if it is there.
async fn frame_at_once(client: &mut FrameClient) -> Option<Frame> {
    let mut next = pin!(client.next());
    let polled = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await;
    match polled {
        Poll::Ready(frame) => frame.unwrap(),
        Poll::Pending => None,
    }
}

/// Requests this path on a stream.
async fn get(client: &mut FrameClient, stream: u32, path: &str) {
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", path),
    ];
    client.headers(stream, &fields, END_STREAM).await.unwrap();
}

fn frame(kind: u8, payload: Vec<u8>) -> Vec<u8> {
    let frame = Frame {
        kind,
        flags: 0,
        stream: 0,
        payload: payload.into(),
    };
    frame.encode()
}

/// One client has sent megabytes that are not read yet, another one asks. All runs on one thread, and each turn of the
/// test is one turn of the event loop.
#[tokio::test]
async fn flood_of_one_client_lets_others_ask() {
    const PIECE: usize = 16 * 1024;
    let worker = OneWorker::start().await;
    let (mut flooding, mut asking) = (worker.client(WINDOW).await, worker.client(WINDOW).await);
    // Each ping is answered once the frame of 16 KiB before it has been read.
    let piece = [
        frame(0x20, vec![0; PIECE - 26]),
        frame(kind::PING, vec![0; 8]),
    ]
    .concat();
    let written = write_without_a_pause(&mut flooding, &piece.repeat(90)).await;
    assert!(written > 20 * PIECE, "the kernel took only {written} bytes");
    get(&mut asking, 1, "/").await;

    let (mut replies, mut most_per_turn) = (0, 0);
    let mut turns_until_answered = None;
    for turn in 1.. {
        let before = replies;
        poll_fn(|cx| Poll::Ready(Pin::new(flooding.stream()).poll_flush(cx).is_ready())).await;
        while let Some(frame) = frame_at_once(&mut flooding).await {
            replies += usize::from(frame.kind == kind::PING && frame.has(ACK));
        }
        most_per_turn = most_per_turn.max(replies - before);
        if turns_until_answered.is_none()
            && let Some(frame) = frame_at_once(&mut asking).await
            && frame.kind == kind::HEADERS
        {
            turns_until_answered = Some(turn);
        }
        if turns_until_answered.is_some() && replies >= written / PIECE {
            break;
        }
        yield_now().await;
    }
    assert!(
        most_per_turn <= 64 * 1024 / PIECE + 1,
        "{most_per_turn} replies in one turn"
    );
    assert!(
        turns_until_answered.unwrap() <= 40,
        "{turns_until_answered:?} turns"
    );
}

/// Many clients have sent their `ClientHello`, and a connected one sends a request. Its response comes before the
/// worker has signed in most handshakes.
#[tokio::test]
async fn handshakes_wait_for_a_client_that_is_connected() {
    const HANDSHAKES: usize = 60;
    let worker = OneWorker::start().await;
    let mut asking = worker.client(WINDOW).await;
    let config = ClientConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(HOST).unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name)
        .unwrap()
        .write_tls(&mut hello)
        .unwrap();
    let mut clients = Vec::new();
    for _ in 0..HANDSHAKES {
        let address = worker.listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        client.try_write(&hello).unwrap();
        clients.push(client);
    }
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "other.test"),
        (":path", "/"),
    ];
    asking.headers(1, &fields, END_STREAM).await.unwrap();
    for _ in 0..HANDSHAKES {
        worker.accept().await;
    }
    let before = worker.signed.load(Ordering::Relaxed);
    loop {
        if let Some(frame) = frame_at_once(&mut asking).await
            && frame.kind == kind::HEADERS
        {
            break;
        }
        yield_now().await;
    }
    let signed = worker.signed.load(Ordering::Relaxed) - before;
    assert!(signed < HANDSHAKES * 2 / 3, "{signed} handshakes");
    while !clients.is_empty() {
        yield_now().await;
        clients.retain(|client| client.try_read(&mut [0]).is_err());
    }
}

const INITIAL_WINDOW_SIZE: u16 = 4;
/// The default (RFC 9113 §6.9.2).
const WINDOW: u32 = 65_535;

async fn open_window(client: &mut FrameClient, stream: u32, bytes: u32) {
    let bytes = bytes.to_be_bytes().to_vec();
    client
        .send(kind::WINDOW_UPDATE, 0, stream, bytes)
        .await
        .unwrap();
}

/// A client that never opens the window of a response loses this stream after 60 s. The silent watch beside it stays.
/// `http2/stall.rs` has more cases.
#[tokio::test]
async fn response_that_is_never_read_is_reset_after_a_minute() {
    let worker = OneWorker::start().await;
    let mut client = worker.client(0).await;
    get(&mut client, 1, "/unread").await;
    get(&mut client, 3, "/watch").await;
    for _ in 0..2 {
        client.expect(kind::HEADERS).await.unwrap();
    }
    tokio::time::pause();
    let start = Instant::now();
    let reset = client.expect(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.error_code()), (1, Some(2)));
    let lasted = start.elapsed().as_secs();
    assert!((59..=90).contains(&lasted), "{lasted} s");
    get(&mut client, 5, "/").await;
    let head = client.expect(kind::HEADERS).await.unwrap();
    assert_eq!(head.stream, 5, "the connection stays");
}

/// h2 gets the last frame as soon as the window has room for one byte of it, and then forgets the stream.
#[tokio::test]
async fn connection_whose_last_frames_are_unread_is_closed() {
    let worker = OneWorker::start().await;
    let mut client = worker.client(1).await;
    get(&mut client, 1, "/watch").await;
    get(&mut client, 3, "/").await;
    client.expect(kind::DATA).await.unwrap();
    tokio::time::pause();
    let start = Instant::now();
    let ended = client.expect(kind::GOAWAY).await;
    assert!(ended.is_err(), "{ended:?}");
    let lasted = start.elapsed().as_secs();
    assert!((119..=180).contains(&lasted), "{lasted} s");
}

/// It reads the second byte of the last frame two minutes late.
#[tokio::test]
async fn client_that_reads_last_frames_late_gets_them() {
    let worker = OneWorker::start().await;
    let mut client = worker.client(1).await;
    get(&mut client, 1, "/").await;
    client.expect(kind::DATA).await.unwrap();
    tokio::time::pause();
    let mut late = std::pin::pin!(sleep(Duration::from_secs(110)));
    loop {
        tokio::select! {
            () = &mut late => break,
            frame = client.next() => {
                let frame = frame.unwrap().unwrap();
                if frame.kind == kind::PING {
                    client.acknowledge(&frame).await.unwrap();
                }
            }
        }
    }
    open_window(&mut client, 1, 1).await;
    let data = client.expect(kind::DATA).await.unwrap();
    assert!(data.has(END_STREAM));
}
