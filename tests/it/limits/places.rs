//! Fair places: when `limits.connections` are scarce, the client with the most connections makes room for others.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use h2::RecvStream;
use http::Response;
use standin::{
    client::{Client, Http1, Http2, TlsConnection},
    frames::kind,
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    admin::wait_for_numbers,
    proxy::{HOST, Proxy, World, watch_or_ok},
    tunnels,
    upgrades::ManualApiserver,
};

const PLACES: usize = 8;
/// No deadline of a silent client frees a place in these tests.
const LONG: Duration = Duration::from_secs(600);

const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const GET: &str = "https://kube.test/";
const WATCH: &str = "https://kube.test/watch";

/// The client that takes the places.
fn greedy(proxy: &Proxy) -> Client {
    proxy.client().from(GREEDY)
}

fn other(proxy: &Proxy) -> Client {
    proxy.client().from(OTHER)
}

async fn start(world: &World) -> (standin::upstream::Upstream, Proxy) {
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world
        .proxy(upstream.address())
        .admin()
        .limits(|limits| limits.connections = PLACES)
        .timeouts(|timeouts| {
            (timeouts.handshake, timeouts.request_head) = (LONG, LONG);
            (timeouts.client_idle, timeouts.drain) = (LONG, Duration::ZERO);
        })
        .start();
    (upstream, proxy)
}

/// Waits until the client reads the end of the connection, or a reset.
async fn closed(mut tcp: TcpStream) {
    let mut rest = Vec::new();
    let end = within("the end of a connection", tcp.read_to_end(&mut rest)).await;
    assert!(rest.is_empty() || end.is_ok());
}

#[tokio::test]
async fn longest_idle_http1_connections_make_room() {
    let world = World::new();
    let (_upstream, proxy) = start(&world).await;
    let mut connections = Vec::new();
    for _ in 0..PLACES {
        let mut connection = greedy(&proxy).http1().await;
        connection.get(HOST, "/", "").await;
        connections.push(connection);
    }
    // Now the second connection is idle for the longest time.
    assert_eq!(connections[0].get(HOST, "/", "").await.status, 200);
    let mut other = other(&proxy).http1().await;
    assert_eq!(other.get(HOST, "/", "").await.status, 200);
    for mut connection in connections.drain(1..4) {
        assert_eq!(
            within("the end", connection.end())
                .await
                .unwrap_or_default(),
            ""
        );
    }
    for connection in &mut connections {
        assert_eq!(connection.get(HOST, "/", "").await.status, 200);
    }
    let closed = "limits_hit_total{limit=\"client_places\"}";
    wait_for_numbers(proxy.admin(), &[(closed, 3.0)]).await;
}

#[tokio::test]
async fn longest_idle_http2_connections_get_goaway() {
    let world = World::new();
    let (_upstream, proxy) = start(&world).await;
    let mut connections = Vec::new();
    for _ in 0..PLACES {
        let connection = greedy(&proxy).http2().await;
        connection.get(GET).await.unwrap();
        connections.push(connection);
    }
    connections[0].get(GET).await.unwrap();
    let other = other(&proxy).http2().await;
    assert_eq!(other.get(GET).await.unwrap().status, 200);
    for connection in &connections[1..4] {
        assert_eq!(connection.goaway().await, h2::Reason::NO_ERROR);
        within("the end", connection.end()).await.ok();
    }
    assert_eq!(connections[0].get(GET).await.unwrap().status, 200);
    assert!(connections[4..].iter().all(|connection| {
        let mut frames = connection.frames().into_iter();
        !frames.any(|frame| frame.kind == kind::GOAWAY)
    }));
}

/// A client that ignores the GOAWAY loses its connection after a second.
#[tokio::test]
async fn http2_connection_that_stays_is_closed_after_goaway() {
    let world = World::new();
    let (_upstream, proxy) = start(&world).await;
    let mut connections = Vec::new();
    for _ in 0..PLACES {
        connections.push(greedy(&proxy).alpn(&["h2"]).connect().await.unwrap());
    }
    assert_eq!(get(&other(&proxy)).await, 200);
    let mut first = connections.swap_remove(0);
    let mut rest = Vec::new();
    within("the end", first.read_to_end(&mut rest)).await.ok();
}

async fn get(client: &Client) -> u16 {
    let mut http1 = client.http1().await;
    http1.get(HOST, "/", "").await.status
}

/// One address with silent connections must not keep other clients out until a deadline ends them.
#[tokio::test]
async fn silent_connections_of_one_client_make_room() {
    let world = World::new();
    let (_upstream, proxy) = start(&world).await;
    let hello = greedy(&proxy).hello();
    for sent in [&b""[..], &hello[..20], &hello] {
        let mut silent = Vec::new();
        for _ in 0..PLACES * 2 {
            // The proxy resets connections beyond those that may wait.
            if let Ok(mut tcp) = greedy(&proxy).tcp().await {
                tcp.write_all(sent).await.ok();
                silent.push(tcp);
            }
        }
        for _ in 0..3 {
            assert_eq!(get(&other(&proxy)).await, 200);
        }
        closed(silent.swap_remove(0)).await;
    }
}

async fn watch(client: &Client) -> (Http2, Response<RecvStream>) {
    let connection = client.http2().await;
    let response = connection.open(WATCH).await.unwrap();
    (connection, response)
}

/// Running requests are safe while the client has an idle connection. Without one it loses the newest connection whose
/// first request runs, and never a connection of another client.
#[tokio::test]
async fn busy_connections_make_room_last() {
    let world = World::new();
    let (upstream, proxy) = start(&world).await;
    let other = other(&proxy);
    let _others_watch = watch(&other).await;
    let mut watches = Vec::new();
    for _ in 0..PLACES - 2 {
        watches.push(watch(&greedy(&proxy)).await);
    }
    let mut idle = greedy(&proxy).http1().await;
    let mut second = other.http1().await;
    assert_eq!(second.get(HOST, "/", "").await.status, 200);
    within("the end of the idle one", idle.end()).await.ok();
    assert_eq!(upstream.open_responses(), PLACES - 1);

    let mut third = other.http1().await;
    assert_eq!(third.get(HOST, "/", "").await.status, 200);
    let (newest, _) = watches.pop().unwrap();
    assert_eq!(newest.goaway().await, h2::Reason::NO_ERROR);
    within("the end", newest.end()).await.ok();
    for (connection, _) in &watches {
        assert_eq!(connection.get(GET).await.unwrap().status, 200);
    }
    assert_eq!(second.get(HOST, "/", "").await.status, 200);
    assert_eq!(upstream.open_responses(), PLACES - 2);
}

/// The tunnels have a token, so that no stranger can end them.
#[tokio::test]
async fn tunnels_with_accepted_tokens_make_no_room() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world
        .proxy(apiserver.upstream.address())
        .limits(|limits| limits.connections = 2)
        .timeouts(|timeouts| timeouts.handshake = Duration::from_secs(2))
        .start();
    let (mut first, _first) = tunnels::open(&proxy, &apiserver).await;
    let (mut second, _second) = tunnels::open(&proxy, &apiserver).await;
    // It waits until its deadline, and gets no place.
    closed(other(&proxy).tcp().await.unwrap()).await;
    for tunnel in [&mut first, &mut second] {
        let early = tokio::time::timeout(Duration::from_millis(100), tunnel.end());
        early.await.unwrap_err();
    }
}

/// A client that stops in all its handshakes keeps half of the slots at most.
#[tokio::test]
async fn stalled_handshakes_of_one_client_leave_slots() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.handshakes = 4)
        .timeouts(|timeouts| timeouts.handshake = LONG)
        .start();
    let hello = greedy(&proxy).hello();
    let mut stalled = Vec::new();
    for _ in 0..6 {
        let mut tcp = greedy(&proxy).tcp().await.unwrap();
        tcp.write_all(&hello).await.unwrap();
        stalled.push(tcp);
    }
    // The first two have their ServerHello, and with it their slots.
    for tcp in &mut stalled[..2] {
        within("a ServerHello", tcp.read_u8()).await.unwrap();
    }
    for _ in 0..3 {
        assert_eq!(get(&other(&proxy)).await, 200);
    }
}

#[tokio::test]
async fn client_alone_may_use_all_places() {
    let world = World::new();
    let (_upstream, proxy) = start(&world).await;
    let mut connections: Vec<Http1<TlsConnection>> = Vec::new();
    for _ in 0..PLACES {
        connections.push(greedy(&proxy).http1().await);
    }
    for connection in &mut connections {
        assert_eq!(connection.get(HOST, "/", "").await.status, 200);
    }
}
