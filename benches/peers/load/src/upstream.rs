//! The stand-in apiserver: small responses, large lists, watches and tunnels, with kube-apiserver's HTTP/2 settings.
//!
//! The one of `tests/standin` records everything that reaches it, which would be measured too. This one only counts.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::{interval, timeout},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Error,
    answer::{self, Answer, plain},
    dial, event,
    orders::{Orders, say},
    tunnel::CHUNK,
};

/// kube-apiserver's settings: streams per connection, and the window of each.
const STREAMS: u32 = 100;
const WINDOW: u32 = 256 << 10;
/// Connections that may wait to be accepted; a thousand arrive at once.
const BACKLOG: u32 = 4096;
/// The sizes of the response to a small GET and of a large list.
const SMALL: usize = 1 << 10;
const LIST: usize = 10 << 20;
/// More than any load requests, so that a wrong path does not run forever.
const MAX_TUNNEL: usize = 1 << 30;

/// The certificate to use, and the time limit.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that `pki` wrote
    #[arg(long)]
    pki: PathBuf,
    /// Whose certificate: good, wrong-ca, wrong-name or name-in-cn
    #[arg(long, default_value = "good")]
    identity: String,
    /// End after this many seconds, even if standard input is still open
    #[arg(long, default_value_t = 900)]
    seconds: u64,
}

/// Serves until standard input ends. It takes two commands: `events COUNT MILLISECONDS` sends COUNT events to
/// every watch, one per MILLISECONDS; `requests` prints how many requests have arrived.
///
/// # Errors
///
/// When certificate or key cannot be read, or no port is free.
pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let mut orders = Orders::listen();
    let tls = TlsAcceptor::from(Arc::new(server_config(&args.pki, &args.identity)?));
    // The first random bytes of a process take tens of milliseconds, which would count as the proxy's cold start.
    dial::provider()
        .secure_random
        .fill(&mut [0; 32])
        .map_err(|_| "no random bytes")?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = socket.listen(BACKLOG)?;
    let world = Arc::new(World::default());
    say(&json!({ "port": listener.local_addr()?.port() }))?;

    let serving = Arc::clone(&world);
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((tcp, _)) => drop(tokio::spawn(serve(tcp, tls.clone(), Arc::clone(&serving)))),
                // Out of descriptors: some become free when connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let obey = async {
        while let Some(order) = orders.next().await {
            match Order::parse(&order)? {
                Order::Requests => {
                    say(&json!({ "requests": world.requests.load(Ordering::Relaxed) }))?;
                }
                Order::Events { count, every } => drop(tokio::spawn({
                    let world = Arc::clone(&world);
                    async move { world.send_events(count, every).await }
                })),
            }
        }
        Ok(())
    };
    timeout(Duration::from_secs(args.seconds), obey)
        .await
        .unwrap_or(Ok(()))
}

/// A command of the script.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Requests,
    Events { count: u32, every: Duration },
}

impl Order {
    fn parse(line: &str) -> Result<Self, Error> {
        let unknown = || -> Error { format!("`{line}` is no order").into() };
        let words: Vec<_> = line.split_whitespace().collect();
        match words.as_slice() {
            ["requests"] => Ok(Self::Requests),
            ["events", count, every] => Ok(Self::Events {
                count: count.parse().map_err(|_| unknown())?,
                // An interval of zero would panic.
                every: Duration::from_millis(every.parse::<u64>().map_err(|_| unknown())?.max(1)),
            }),
            _ => Err(unknown()),
        }
    }
}

/// The state that all connections share.
struct World {
    small: Bytes,
    list: Bytes,
    requests: AtomicU64,
    watches: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            small: answer::pods(SMALL),
            list: answer::pods(LIST),
            requests: AtomicU64::new(0),
            watches: Mutex::default(),
        }
    }
}

impl World {
    async fn send_events(&self, count: u32, every: Duration) {
        let mut turns = interval(every);
        for _ in 0..count {
            turns.tick().await;
            let event = event::modified(event::now());
            self.watches
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|watch| watch.send(event.clone()).is_ok());
        }
    }

    fn watch(&self) -> Answer {
        let (events, received) = mpsc::unbounded_channel();
        drop(events.send(event::added()));
        self.watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(events);
        Answer::Watch(received)
    }

    fn answer(&self, mut request: Request<Incoming>) -> Response<Answer> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let path = request.uri().path().to_owned();
        if let Some((way, size)) = tunnel_path(&path) {
            let upgrade = request.headers().get(header::UPGRADE).cloned();
            // No upgrade over HTTP/2: a Go server without extended CONNECT cannot do it either.
            let Some(upgrade) = upgrade else {
                return plain(StatusCode::BAD_REQUEST, Bytes::new());
            };
            let tunnel = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(tunnel) = tunnel.await {
                    // The client notices and counts how the tunnel ends.
                    drop(carry(TokioIo::new(tunnel), &way, size).await);
                }
            });
            let mut answer = plain(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
            *answer.headers_mut() = HeaderMap::from_iter([
                (header::CONNECTION, HeaderValue::from_static("Upgrade")),
                (
                    header::SEC_WEBSOCKET_ACCEPT,
                    HeaderValue::from_static(dial::WEBSOCKET_ACCEPT),
                ),
                (header::UPGRADE, upgrade),
            ]);
            return answer;
        }
        match path.as_str() {
            "/small" => plain(StatusCode::OK, self.small.clone()),
            "/list" => plain(StatusCode::OK, self.list.clone()),
            "/watch" => {
                let mut answer = plain(StatusCode::OK, Bytes::new());
                *answer.body_mut() = self.watch();
                answer
            }
            _ => plain(StatusCode::NOT_FOUND, Bytes::new()),
        }
    }
}

/// The direction and size of `/tunnel/WAY/SIZE`.
fn tunnel_path(path: &str) -> Option<(String, usize)> {
    let (way, size) = path.strip_prefix("/tunnel/")?.split_once('/')?;
    let size = size.parse().ok().filter(|size| *size <= MAX_TUNNEL)?;
    Some((way.to_owned(), size))
}

async fn carry(
    mut tunnel: TokioIo<hyper::upgrade::Upgraded>,
    way: &str,
    size: usize,
) -> Result<(), Error> {
    let mut chunk = vec![0x5a; CHUNK];
    let mut left = size;
    if way == "down" {
        tunnel.read_u8().await?;
    }
    while left > 0 {
        let part = left.min(CHUNK);
        if way == "down" {
            tunnel.write_all(&chunk[..part]).await?;
            left -= part;
        } else {
            let count = tunnel.read(&mut chunk[..part]).await?;
            if count == 0 {
                return Ok(());
            }
            if way == "echo" {
                tunnel.write_all(&chunk[..count]).await?;
                tunnel.flush().await?;
            }
            left -= count;
        }
    }
    if way == "up" {
        tunnel.write_u8(b'.').await?;
    }
    tunnel.flush().await?;
    // The client closes the connection: a close from this side could cut data that it has not read yet.
    drop(tunnel.read(&mut chunk).await);
    Ok(())
}

async fn serve(tcp: TcpStream, tls: TlsAcceptor, world: Arc<World>) {
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let Ok(stream) = tls.accept(tcp).await else {
        return;
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(move |request| {
        let answer = world.answer(request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let stream = TokioIo::new(stream);
    // The proxy decides how a connection ends, and the client counts the errors.
    if is_http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(STREAMS)
            .max_frame_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(STREAMS * WINDOW)
            .max_send_buf_size(1 << 20)
            .serve_connection(stream, service);
        drop(connection.await);
    } else {
        let connection = http1::Builder::new()
            .serve_connection(stream, service)
            .with_upgrades();
        drop(connection.await);
    }
}

fn server_config(pki: &Path, identity: &str) -> Result<ServerConfig, Error> {
    let certificate = pki.join(format!("{identity}.crt"));
    let key = pki.join(format!("{identity}.key"));
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect)
        .map_err(|err| format!("read {}: {err}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key)
        .map_err(|err| format!("read {}: {err}", key.display()))?;
    let mut config = ServerConfig::builder_with_provider(dial::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_words_and_others_are_refused() {
        let events = Order::Events {
            count: 5,
            every: Duration::from_millis(100),
        };
        assert_eq!(Order::parse("events 5 100").unwrap(), events);
        assert_eq!(Order::parse("requests").unwrap(), Order::Requests);
        for wrong in ["", "events", "events x 1", "events 1 2 3", "quit"] {
            assert!(Order::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tunnels_are_told_from_other_paths_and_bounded() {
        assert_eq!(tunnel_path("/tunnel/up/7"), Some(("up".to_owned(), 7)));
        for wrong in [
            "/small",
            "/tunnel/up",
            "/tunnel/up/x",
            "/tunnel/up/9999999999",
        ] {
            assert_eq!(tunnel_path(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn every_watch_gets_every_event_and_one_that_ended_is_forgotten() {
        let world = World::default();
        let (Answer::Watch(mut first), Answer::Watch(second)) = (world.watch(), world.watch())
        else {
            panic!("a watch has a body without an end");
        };
        drop(second);
        world.send_events(2, Duration::from_millis(1)).await;
        assert_eq!(first.recv().await.unwrap(), event::added());
        for _ in 0..2 {
            assert_eq!(first.recv().await.unwrap().len(), event::LENGTH);
        }
        assert_eq!(world.watches.lock().unwrap().len(), 1);
    }
}
