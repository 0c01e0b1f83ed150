//! How long one client waits while another keeps the only worker busy.

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

/// What runs on a thread of its own, as other machines do: a client that decrypts a list beside the small
/// requests would be what they wait for, and not the proxy.
struct Apart<T> {
    value: Option<T>,
    _stop: oneshot::Sender<()>,
}

impl<T: Send + 'static> Apart<T> {
    /// Runs `make` there, and what it spawned until this is dropped.
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
                // Dropped in place of being sent.
                drop(stopped.await);
            });
        });
        Self {
            value: Some(within("a start on another thread", made).await.unwrap()),
            _stop: stop,
        }
    }
}

async fn start(builder: Builder) -> Apart<Upstream> {
    Apart::run(|| builder.start()).await
}

/// A list of 1 GiB to whoever asks; it is made while it is read.
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

/// How the other client asks for its lists.
#[derive(Debug, Clone, Copy)]
enum Lists {
    Http1,
    Http2,
}

/// A client that asks for two lists, each on a connection of its own, and reads one of them as fast as it
/// comes and nothing of the other. Returns how much was read so far.
async fn load(client: Client, lists: Lists) -> Apart<Arc<AtomicUsize>> {
    Apart::run(async move || {
        let stalled = ask(&client, lists).await;
        let read = ask(&client, lists).await;
        let taken = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&taken);
        tokio::spawn(async move {
            let _stalled = stalled;
            // Not decrypted: only the proxy shall be busy.
            let mut scrap = vec![0; PIECE];
            loop {
                read.tcp().readable().await.unwrap();
                match read.tcp().try_read(&mut scrap) {
                    Ok(0) => panic!("the list has ended"),
                    Ok(read) => _ = told.fetch_add(read, Ordering::Relaxed),
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
        });
        taken
    })
    .await
}

/// Asks for a list, and lets all of it come if the client speaks HTTP/2.
async fn ask(client: &Client, lists: Lists) -> TlsConnection {
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

/// The time in which all of a hundred small requests but one are answered, each after the other.
async fn slowest_but_few(client: &Http2) -> Duration {
    let url = format!("https://{HOST}/");
    let mut times = Vec::new();
    for _ in 0..REQUESTS {
        let asked = Instant::now();
        assert_eq!(client.get(&url).await.unwrap().text(), "ok");
        times.push(asked.elapsed());
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
    slowest_but_few(&client).await;
    let (mut quiet, mut loaded) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    loop {
        quiet.push(slowest_but_few(&client).await);
        let load = load(proxy.client().sni(LISTS), lists).await;
        let taken = load.value.as_ref().unwrap();
        let flows = async {
            while taken.load(Ordering::Relaxed) < LEAST {
                tokio::task::yield_now().await;
            }
        };
        within("a list", flows).await;
        let before = taken.load(Ordering::Relaxed);
        loaded.push(slowest_but_few(&client).await);
        let meanwhile = taken.load(Ordering::Relaxed) - before;
        assert!(meanwhile > LEAST, "{meanwhile} bytes make no load");
        assert!(before + meanwhile < LIST, "the list has ended too soon");
        quiet.sort_unstable();
        let usual = quiet[quiet.len() / 2];
        let best = *loaded.iter().min().unwrap();
        if loaded.len() >= ROUNDS && best <= usual * 2 + ALLOWANCE {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{lists:?}: {best:?} at best beside a list, {usual:?} without"
        );
    }
}

/// One worker for the small requests and for the lists, which come from different apiservers.
fn proxy(world: &World, small: &Apart<Upstream>, large: &Apart<Upstream>) -> Proxy {
    let address = |upstream: &Apart<Upstream>| upstream.value.as_ref().unwrap().address();
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
async fn a_large_list_over_http2_does_not_hold_up_another_client() {
    compare(Lists::Http2).await;
}

#[tokio::test]
async fn a_large_list_over_http1_does_not_hold_up_another_client() {
    compare(Lists::Http1).await;
}

const REQUESTS: usize = 100;
/// Quiet and loaded take turns. A machine that is busy with other things makes both slower, now here and
/// now there, so what is compared is the usual quiet round with the best loaded one, and there are more
/// rounds as long as that one is too slow: noise only adds, and a worker that is held up by a list is held
/// up in every round.
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(40);
/// A few turns of the scheduler: a small request needs three threads, and those of the list want the
/// perhaps two processors all the time. A worker that stays with a list takes far longer.
const ALLOWANCE: Duration = Duration::from_millis(10);
/// Far less than flows during a loaded round, and more than any buffers take up.
const LEAST: usize = 1 << 20;
