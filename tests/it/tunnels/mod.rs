//! Open tunnels: data, clean closes, aborts and silence.

mod ends;

use std::{fs, net::SocketAddr, time::Duration};

use standin::{client::Http1, client::TlsConnection, within};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    task::JoinSet,
};

use crate::{
    proxy::{HOST, Proxy, World},
    upgrades::{ManualApiserver, PendingRequest, SPDY, SPDY_101, echo},
};

/// Opens a tunnel, and returns the client side and the apiserver side.
pub(crate) async fn open(
    proxy: &Proxy,
    apiserver: &ManualApiserver,
) -> (Http1<TlsConnection>, PendingRequest) {
    let mut client = proxy.client().http1().await;
    client.send(SPDY).await;
    let mut server = apiserver.next_request().await;
    server.send(SPDY_101).await;
    assert_eq!(client.head().await.unwrap().status, 101);
    (client, server)
}

/// Bytes that differ at each position, so that the test notices a lost, repeated or swapped piece.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|at| ((at / 251) ^ (at % 251)).to_le_bytes()[0])
        .collect()
}

/// Sends and receives `length` bytes at the same time, and checks every received byte.
pub(crate) async fn exchange<S: AsyncRead + AsyncWrite>(stream: S, length: usize) {
    const PIECE: usize = 64 << 10;
    let (mut from, mut to) = split(stream);
    let send = async {
        for at in (0..length).step_by(PIECE) {
            to.write_all(&pattern(at, PIECE.min(length - at)))
                .await
                .unwrap();
        }
        to.shutdown().await.unwrap();
    };
    let receive = async {
        let mut at = 0;
        let mut piece = vec![0; PIECE];
        loop {
            let read = from.read(&mut piece).await.unwrap();
            if read == 0 {
                return at;
            }
            assert!(piece[..read] == pattern(at, read), "the bytes from {at} on");
            at += read;
        }
    };
    let ((), received) = tokio::join!(send, receive);
    assert_eq!(received, length);
}

/// Case 50. Of twenty parallel tunnels some are reset; the others lose no byte.
#[tokio::test]
async fn parallel_tunnels_do_not_affect_each_other() {
    const EACH: usize = 10 << 20;
    let world = World::new();
    let upstream = world.apiserver().http(echo).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut running = JoinSet::new();
    for number in 0..20 {
        let mut client = proxy.client().http1().await;
        client.send(SPDY).await;
        assert_eq!(client.head().await.unwrap().status, 101);
        if number % 4 == 0 {
            client.send(pattern(0, 1 << 20)).await;
            let (stream, _) = client.into_parts();
            stream.reset();
        } else {
            running.spawn(exchange(client.into_parts().0, EACH));
        }
    }
    let all = async {
        while let Some(ended) = running.join_next().await {
            ended.unwrap()
        }
    };
    tokio::time::timeout(LONG, all)
        .await
        .expect("150 MiB both ways");
}

/// Case 52. The data of `kubectl cp` arrives completely, in both directions.
#[tokio::test]
async fn fifty_mebibytes_arrive_unchanged_in_both_directions() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (client, server) = open(&proxy, &apiserver).await;
    let both = async {
        tokio::join!(
            exchange(client.into_parts().0, 50 << 20),
            exchange(server.stream, 50 << 20)
        )
    };
    tokio::time::timeout(LONG, both)
        .await
        .expect("50 MiB both ways");
}

/// Case 53. No keystroke waits for the next one: each is echoed before the next is sent.
#[tokio::test]
async fn each_keystroke_is_forwarded_immediately() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    for key in "kubectl exec -it p -- sh\r".bytes() {
        client.send([key]).await;
        assert_eq!(server.read(1).await, [key]);
        server.send([key, b'!']).await;
        assert_eq!(client.take(2).await.unwrap(), [key, b'!'][..]);
    }
}

/// Case 54. No HTTP timeout closes a silent exec.
#[tokio::test]
async fn silent_tunnel_stays_open() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world
        .proxy(apiserver.upstream.address())
        .timeouts(|timeouts| {
            let short = Duration::from_millis(100);
            timeouts.handshake = Duration::from_secs(5);
            timeouts.request_head = short;
            timeouts.client_idle = short;
            timeouts.client_ping_interval = short;
            timeouts.client_ping_timeout = short;
            timeouts.upstream_idle = short;
            timeouts.upstream_ping_interval = short;
            timeouts.upstream_ping_timeout = short;
            timeouts.half_close_timeout = short;
            timeouts.reload = short;
        })
        .start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.send("still").await;
    assert_eq!(server.read(5).await, b"still");
    server.send("here").await;
    assert_eq!(client.take(4).await.unwrap(), "here");
}

/// Writes `length` bytes to a reader that first does not read, for ten times `tcpUserTimeout`.
async fn exchange_with_slow_reader<R, W>(mut reader: R, mut writer: W, length: usize)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let write = async {
        writer.write_all(&pattern(0, length)).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let read = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert!(
            received == pattern(0, length),
            "{} bytes received",
            received.len()
        );
    };
    let both = async { tokio::join!(write, read) };
    tokio::time::timeout(LONG, both).await.expect("all bytes");
}

/// Case 54. A peer that does not read is not gone: its user may be reading a page in a pager.
#[tokio::test]
async fn peer_that_pauses_reading_loses_nothing() {
    const BODY_BYTES: usize = 32 << 20;
    for client_reads in [true, false] {
        let world = World::new();
        let apiserver = ManualApiserver::start(&world).await;
        let proxy = world
            .proxy(apiserver.upstream.address())
            .timeouts(|timeouts| timeouts.tcp_user_timeout = Duration::from_millis(200))
            .start();
        let (client, server) = open(&proxy, &apiserver).await;
        let client = client.into_parts().0;
        if client_reads {
            exchange_with_slow_reader(client, server.stream, BODY_BYTES).await;
        } else {
            exchange_with_slow_reader(server.stream, client, BODY_BYTES).await;
        }
    }
}

/// Case 54. TCP keepalive detects a peer that disappears silently, on both legs.
#[tokio::test]
async fn tcp_keepalive_is_armed_on_both_legs_of_a_tunnel() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, server) = open(&proxy, &apiserver).await;
    let client = client.stream().tcp().local_addr().unwrap();
    wait_for_keepalive(proxy.address(), client).await;
    wait_for_keepalive(server.connection.peer, apiserver.upstream.address()).await;
}

/// Waits until the kernel timer of this socket is the keepalive timer. While bytes are in flight it is another one.
async fn wait_for_keepalive(local: SocketAddr, remote: SocketAddr) {
    let seen = async {
        loop {
            if matches!(timer(local, remote), Some((kind, _)) if kind == "02") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the keepalive timer", seen).await;
}

/// The fields `tr` and `tm->when` of this socket in /proc/net/tcp (`man 5 proc_pid_net`): the timer, of which `02` is
/// keepalive, and the time until it fires, in hundredths of a second.
pub(crate) fn timer(local: SocketAddr, remote: SocketAddr) -> Option<(String, u64)> {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (from, to) = (fields.next()?, fields.next()?);
        let (timer, when) = fields.nth(2)?.split_once(':')?;
        let is_this = from.ends_with(&port(local)) && to.ends_with(&port(remote));
        is_this.then(|| (timer.to_owned(), u64::from_str_radix(when, 16).unwrap()))
    })
}

/// A client with an open tunnel can send requests on another connection.
#[tokio::test]
async fn requests_of_a_client_with_a_tunnel_are_served() {
    let world = World::new();
    let upstream = world.apiserver().http(echo).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut exec = proxy.client().http1().await;
    exec.send(SPDY).await;
    assert_eq!(exec.head().await.unwrap().status, 101);
    let mut get = proxy.client().http1().await;
    assert_eq!(get.get(HOST, "/version", "").await.text(), "ok");
    exec.send("x").await;
    assert_eq!(exec.take(1).await.unwrap(), "x");
}

/// Enough for hundreds of mebibytes through a debug build on a busy machine.
const LONG: Duration = Duration::from_secs(100);
