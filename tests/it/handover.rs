//! The start of the drain: new clients are served until load balancers know about it, and no client that has
//! connected is dropped.

use std::time::Duration;

use kube_tls_proxy::{drain::Phase, heartbeat::Heartbeat};
use standin::{client::Http1, within};
use tokio::{net::TcpStream, task::JoinSet, time::Instant};

use crate::{
    drain::{endless, refuses_connections, slow_or_endless},
    proxy::{HOST, World},
    tunnels,
    upgrades::ManualApiserver,
};

/// Load balancers see the failed readiness before the proxy refuses new clients.
#[tokio::test]
async fn new_clients_are_served_during_the_drain_delay() {
    let delay = Duration::from_secs(2);
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.drain_delay = delay)
        .start();
    proxy.wait_for_phase(Phase::Serving).await;
    let start = Instant::now();
    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Announced).await;
    let mut client = proxy.client().http1().await;
    let response = client.get(HOST, "/version", "").await;
    assert_eq!(response.text(), "ok");
    assert_eq!(
        response.head.header("connection"),
        None,
        "the client may keep the connection"
    );
    assert!(start.elapsed() < delay, "the machine is too slow for this");
    proxy.wait_for_phase(Phase::Draining).await;
    assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
    assert_eq!(client.end().await.unwrap(), "");
    proxy.wait_until_stopped().await;
}

#[tokio::test]
async fn reload_works_during_the_drain_delay() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.drain_delay = standin::WAIT * 10)
        .start();
    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Announced).await;
    let new = world.public_ca.server(&[HOST, "127.0.0.1"]);
    new.write(&world.dir, "public");
    proxy.reload();
    let presented = async {
        while proxy
            .client()
            .alpn(&[])
            .connect()
            .await
            .unwrap()
            .server_certificates()[0]
            != new.chain[0]
        {}
    };
    within("the new certificate", presented).await;
    proxy.stop().without_delay();
    proxy.wait_until_stopped().await;
}

/// The kernel resets connections that are not yet accepted when the socket is closed.
#[tokio::test]
async fn clients_in_the_backlog_are_served_after_the_socket_closes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world
        .proxy(upstream.address())
        // The other clients wait until this one disconnects.
        .limits(|limits| limits.connections = 1)
        .long_drain()
        .start();
    let mut first = proxy.client().http1().await;
    first.get(HOST, "/", "").await;
    let mut requests = JoinSet::new();
    for _ in 0..4 {
        let waiting = TcpStream::connect(proxy.address()).await.unwrap();
        let client = proxy.client();
        requests.spawn(async move {
            let mut client = Http1::new(client.over(waiting).await.unwrap());
            client.get(HOST, "/version", "").await.text()
        });
    }
    proxy.begin_shutdown();
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.unwrap(), "ok");
    }
    proxy.wait_until_stopped().await;
}

/// A client that waits for a permit must not keep the socket open: later clients would be reset.
#[tokio::test]
async fn socket_closes_while_clients_wait_for_a_permit() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.connections = 1)
        .timeouts(|timeouts| timeouts.handshake = standin::WAIT)
        .long_drain()
        .start();
    let first = endless(&proxy.client()).await;
    let waiting = TcpStream::connect(proxy.address()).await.unwrap();
    let client = proxy.client();
    let late = tokio::spawn(async move {
        let mut client = Http1::new(client.over(waiting).await.unwrap());
        client.get(HOST, "/version", "").await.status
    });
    proxy.begin_shutdown();
    refuses_connections(proxy.address()).await;
    drop(first);
    assert_eq!(late.await.unwrap(), 200);
    proxy.wait_until_stopped().await;
}

/// Case 56. A client cannot resume a tunnel, so tunnels get more time than requests, up to their own timeout.
#[tokio::test]
async fn tunnels_end_at_their_own_drain_timeout() {
    let (requests, tunnels) = (Duration::from_millis(300), Duration::from_millis(1500));
    let world = World::new();
    let endless = world.apiserver().http(slow_or_endless).start().await;
    let apiserver = ManualApiserver::start(&world).await;
    for ends_by_itself in [true, false] {
        let mut proxy = world
            .proxy(apiserver.upstream.address())
            .timeouts(|timeouts| {
                timeouts.drain = requests;
                timeouts.drain_tunnels = if ends_by_itself {
                    standin::WAIT * 10
                } else {
                    tunnels
                };
            })
            .start();
        let (mut client, mut server) = tunnels::open(&proxy, &apiserver).await;
        let start = Instant::now();
        proxy.begin_shutdown();
        proxy.wait_for_phase(Phase::Draining).await;
        tokio::time::sleep(requests * 2).await;
        client.send("still").await;
        assert_eq!(
            server.read(5).await,
            b"still",
            "after the drain timeout of requests"
        );
        if ends_by_itself {
            server.shutdown().await;
            assert_eq!(client.end().await.unwrap(), "");
        } else {
            client.end().await.unwrap_err();
            assert!(start.elapsed() >= tunnels, "{:?}", start.elapsed());
        }
        drop(client);
        proxy.wait_until_stopped().await;
    }
    drop(endless);
}

/// Otherwise systemd would kill the process, and with it the tunnel of the other worker.
#[tokio::test]
async fn ended_worker_is_not_taken_for_a_stalled_one() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let mut proxy = world
        .proxy(apiserver.upstream.address())
        .workers(2)
        .timeouts(|timeouts| timeouts.drain_tunnels = standin::WAIT * 10)
        .start();
    let (mut client, mut server) = tunnels::open(&proxy, &apiserver).await;
    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Draining).await;
    let states = || async {
        while !proxy.heartbeats().contains(&Heartbeat::Ended) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        proxy.heartbeats()
    };
    let states = within("the idle worker to stop", states()).await;
    let running = |state: &&Heartbeat| matches!(state, Heartbeat::Running(_));
    assert_eq!(states.iter().filter(running).count(), 1, "{states:?}");
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "");
    drop(client);
    proxy.wait_until_stopped().await;
}

/// Case 56.
#[tokio::test]
async fn second_signal_closes_everything() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world.proxy(upstream.address()).long_drain().start();
    let mut client = endless(&proxy.client()).await;
    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Draining).await;
    proxy.stop().now();
    client.chunk().await.unwrap_err();
    proxy.wait_until_stopped().await;
}
