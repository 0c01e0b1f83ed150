//! Tests the memory that every connection needs before a byte is buffered for it, which is the size of its future, and
//! how much one connection does before another one has a turn.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::SystemTime,
};

use rustls::crypto::aws_lc_rs::Ticketer;
use standin::{
    TempDir,
    client::{Client, TlsConnection},
    frames::{ACK, END_STREAM, Frame, FrameConnection, kind},
    pki::Ca,
};
use tokio::{io::AsyncWrite, net::TcpListener, task::yield_now};

use super::*;
use crate::config::IdentityFiles;

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
    let whole = size(|(stream, peer, place, shared, context, drain)| {
        serve(stream, peer, place, shared, context, drain)
    });
    assert!(whole <= WHOLE, "from handshake to end: {whole} bytes");
}

const HTTP1: usize = 1_300;
const WHOLE: usize = 1_600;

const HOST: &str = "kube.test";

/// A worker without clusters, which runs on the runtime of the test.
struct OneWorker {
    listener: TcpListener,
    shared: Arc<Shared>,
    context: Arc<UpstreamContext>,
    drain: Drain,
    client: Client,
}

impl OneWorker {
    async fn start() -> Self {
        let (ca, dir) = (Ca::new("public"), TempDir::new());
        let (certificate, key) = ca.server(&[HOST]).write(&dir, "public");
        let files = IdentityFiles { certificate, key };
        let identity = Identity::load(&files, SystemTime::now()).unwrap();
        let snapshot = Snapshot {
            tls: Arc::new(server_config(&[identity], Ticketer::new().unwrap())),
            routes: Arc::default(),
        };
        let (limits, timeouts) = (Limits::default(), Timeouts::default());
        let drain = Drain::new();
        let context = UpstreamContext::new(limits.clone(), timeouts.clone(), drain.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            client: Client::new(listener.local_addr().unwrap())
                .trust(&ca)
                .sni(HOST)
                .alpn(&["h2"]),
            listener,
            shared: Arc::new(Shared {
                snapshot: ArcSwap::from_pointee(snapshot),
                memory: Arc::default(),
                clients: ClientTable::new(&limits),
                handshakes: Semaphore::new(8),
                limits,
                timeouts,
            }),
            context: Arc::new(context),
            drain,
        }
    }

    /// A client over HTTP/2.
    async fn client(&self) -> FrameClient {
        let serve = async {
            let (stream, peer) = self.listener.accept().await.unwrap();
            socket::tune(&stream, &self.shared.timeouts).unwrap();
            let place = self.shared.clients.enter(PeerAddr(peer), false).unwrap();
            let (shared, context) = (Arc::clone(&self.shared), Arc::clone(&self.context));
            spawn(stream, PeerAddr(peer), place, shared, context, &self.drain);
        };
        let (tls, ()) = tokio::join!(self.client.connect(), serve);
        let mut client = FrameConnection::client(tls.unwrap(), &[]).await.unwrap();
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
    let (mut flooding, mut asking) = (worker.client().await, worker.client().await);
    // Each ping is answered once the frame of 16 KiB before it has been read.
    let piece = [
        frame(0x20, vec![0; PIECE - 26]),
        frame(kind::PING, vec![0; 8]),
    ]
    .concat();
    let written = write_without_a_pause(&mut flooding, &piece.repeat(90)).await;
    assert!(written > 20 * PIECE, "the kernel took only {written} bytes");
    let get = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "other.test"),
        (":path", "/"),
    ];
    asking.headers(1, &get, END_STREAM).await.unwrap();

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
        turns_until_answered.unwrap() <= 8,
        "{turns_until_answered:?} turns"
    );
}
