//! The latency of one client while another client keeps the only worker busy.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use standin::{
    client::{Client, Http2, TlsConnection},
    frames::{END_STREAM, FrameConnection},
    upstream::{Builder, Upstream, channel},
    within,
};
use tokio::{sync::oneshot, time::Instant};

use crate::proxy::{HOST, Proxy, World};

/// The host whose apiserver has the large list.
const LISTS: &str = "lists.test";
const PIECE: usize = 64 << 10;
const LIST: usize = 1 << 30;

/// A value that runs on a thread of its own, as on another machine. Otherwise the small requests would wait for the
/// client that reads the list, and not for the proxy.
struct OnThread<T> {
    value: Option<T>,
    _stop: oneshot::Sender<()>,
}

impl<T: Send + 'static> OnThread<T> {
    /// Runs `make` on a new thread. Tasks that it spawns run until this is dropped.
    async fn run<F: Future<Output = T>>(make: impl FnOnce() -> F + Send + 'static) -> Self {
        let (give, made) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                drop(give.send(make().await));
                // The sender is dropped, never used.
                drop(stopped.await);
            });
        });
        Self {
            value: Some(within("a start on another thread", made).await.unwrap()),
            _stop: stop,
        }
    }
}

async fn start(builder: Builder) -> OnThread<Upstream> {
    OnThread::run(|| builder.start()).await
}

/// Responds to every request with a list of 1 GiB, generated while it is read.
fn list(world: &World) -> Builder {
    world.apiserver().http(|_| async {
        let (items, body) = channel();
        tokio::spawn(async move {
            let piece = Bytes::from(vec![b'x'; PIECE]);
            for _ in 0..LIST / PIECE {
                if items.send(piece.clone()).await.is_err() {
                    return;
                }
            }
        });
        Response::new(body)
    })
}

/// The protocol of the client that reads lists.
#[derive(Debug, Clone, Copy)]
enum Lists {
    Http1,
    Http2,
}

/// A client that requests two lists on two connections, reads one as fast as possible, and does not read the other.
/// Returns the number of bytes read so far.
async fn load(client: Client, lists: Lists) -> OnThread<Arc<AtomicUsize>> {
    OnThread::run(async move || {
        let stalled = request_list(&client, lists).await;
        let read = request_list(&client, lists).await;
        let taken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&taken);
        tokio::spawn(async move {
            let _stalled = stalled;
            // Reads without decrypting, so that only the proxy is busy.
            let mut scrap = vec![0; PIECE];
            loop {
                read.tcp().readable().await.unwrap();
                match read.tcp().try_read(&mut scrap) {
                    Ok(0) => panic!("the list has ended"),
                    Ok(read) => _ = counter.fetch_add(read, Ordering::Relaxed),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        });
        taken
    })
    .await
}

/// Requests a list; an HTTP/2 client opens its window for all of it.
async fn request_list(client: &Client, lists: Lists) -> TlsConnection {
    match lists {
        Lists::Http1 => {
            let mut http1 = client.http1().await;
            let get = format!("GET / HTTP/1.1\r\nHost: {LISTS}\r\n\r\n");
            http1.send(get).await;
            http1.into_parts().0
        }
        Lists::Http2 => {
            let tls = client.clone().alpn(&["h2"]).connect().await.unwrap();
            let mut wire = FrameConnection::wide_client(tls).await.unwrap();
            let get = [
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", LISTS),
                (":path", "/"),
            ];
            wire.headers(1, &get, END_STREAM).await.unwrap();
            wire.into_inner()
        }
    }
}

/// Sends 100 small requests one after another and returns the second longest response time.
async fn near_worst_latency(client: &Http2) -> Duration {
    let url = format!("https://{HOST}/");
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let start = Instant::now();
        assert_eq!(client.get(&url).await.unwrap().text(), "ok");
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[REQUESTS - 1 - REQUESTS / 100]
}

async fn compare(lists: Lists) {
    let world = World::new();
    let small = start(world.apiserver()).await;
    let large = start(list(&world)).await;
    let proxy = proxy(&world, &small, &large);
    let client = proxy.client().http2().await;
    near_worst_latency(&client).await;
    let (mut quiet, mut loaded) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    loop {
        quiet.push(near_worst_latency(&client).await);
        let load = load(proxy.client().sni(LISTS), lists).await;
        let taken = load.value.as_ref().unwrap();
        let flows = async {
            while taken.load(Ordering::Relaxed) < MIN_LOAD {
                tokio::task::yield_now().await;
            }
        };
        within("a list", flows).await;
        let before = taken.load(Ordering::Relaxed);
        loaded.push(near_worst_latency(&client).await);
        let meanwhile = taken.load(Ordering::Relaxed) - before;
        assert!(
            meanwhile > MIN_LOAD,
            "{meanwhile} bytes are too little load"
        );
        assert!(before + meanwhile < LIST, "the list ended too early");
        quiet.sort_unstable();
        let usual = quiet[quiet.len() / 2];
        let best = *loaded.iter().min().unwrap();
        if loaded.len() >= ROUNDS && best <= usual * 2 + ALLOWANCE {
            return;
        }
        assert!(
            begun.elapsed() < MAX_TIME,
            "{lists:?}: best latency with a list {best:?}, without {usual:?}"
        );
    }
}

/// A proxy with one worker for the small requests and the lists, which come from different apiservers.
fn proxy(world: &World, small: &OnThread<Upstream>, large: &OnThread<Upstream>) -> Proxy {
    let address = |upstream: &OnThread<Upstream>| upstream.value.as_ref().unwrap().address();
    let names = world.public_ca.server(&[HOST, LISTS]);
    let mut setup = world.proxy_as(address(small), &names);
    assert_eq!(setup.config.workers.get(), 1);
    setup.config.clusters[0].hosts = vec![HOST.parse().unwrap()];
    let mut lists = setup.config.clusters[0].clone();
    lists.name = "lists".into();
    lists.hosts = vec![LISTS.parse().unwrap()];
    lists.upstream_port = address(large).port();
    setup.config.clusters.push(lists);
    setup.start()
}

#[tokio::test]
async fn large_http2_list_does_not_delay_another_client() {
    compare(Lists::Http2).await;
}

#[tokio::test]
async fn large_http1_list_does_not_delay_another_client() {
    compare(Lists::Http1).await;
}

const REQUESTS: usize = 100;
/// Rounds with and without load alternate. A busy machine makes both slower at random, so the test compares the
/// median round without load with the best round under load, and adds rounds while the best one is too slow.
/// Noise only adds time, and a worker that is blocked by a list is blocked in every round.
const ROUNDS: usize = 3;
const MAX_TIME: Duration = Duration::from_secs(40);
/// A few time slices of the scheduler: a small request needs three threads, and the threads of the list use perhaps
/// both processors all the time. A worker that is blocked by a list takes far longer.
const ALLOWANCE: Duration = Duration::from_millis(10);
/// Far less than flows during a round under load, and more than all buffers hold.
const MIN_LOAD: usize = 1 << 20;
