//! How passed connections end: one half first, at the drain, with a reload, and by the limits of a client.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kube_tls_proxy::drain::Phase;
use standin::within;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::{PASSED, RawApiserver, connect, hello, open, read, rest, setup};
use crate::{
    admin::wait_for_numbers,
    proxy::{HOST, Proxy, Setup, World},
};

#[tokio::test]
async fn each_half_ends_while_the_other_continues() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let (mut client, mut server) = open(&proxy, &direct).await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    server.write_all(b"after the client").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, b"after the client");

    let (mut client, mut server) = open(&proxy, &direct).await;
    server.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    client.write_all(b"after the apiserver").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"after the apiserver");
}

/// An apiserver that sends much to a client that does not read waits for it. The kernel and the proxy keep a few MiB.
#[tokio::test]
async fn client_that_does_not_read_stops_the_apiserver() {
    const MUCH: usize = 64 << 20;
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let (mut client, mut server) = open(&proxy, &direct).await;
    let block = vec![7; 64 << 10];
    let mut written = 0;
    while let Ok(result) = timeout(Duration::from_millis(700), server.write(&block)).await {
        written += result.unwrap();
        assert!(written < MUCH, "nothing stops the apiserver");
    }
    // It all arrives when the client reads.
    drop(tokio::spawn(async move {
        server.shutdown().await.unwrap();
        server
    }));
    assert_eq!(rest(&mut client).await.len(), written);
}

/// A proxy that gives tunnels this time at the drain, and requests nearly none.
fn with_drain_of_tunnels(setup: Setup<'_>, time: Duration) -> Proxy {
    let setup = setup.timeouts(|timeouts| {
        timeouts.drain = Duration::from_millis(1);
        timeouts.drain_tunnels = time;
    });
    setup.start()
}

/// No client can resume a passed connection, so it gets the time of tunnels.
#[tokio::test]
async fn drain_gives_passed_connections_the_time_of_tunnels() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let setup = setup(&world, terminated.address(), direct.address());
    let mut proxy = with_drain_of_tunnels(setup, standin::WAIT * 10);
    let (mut client, mut server) = open(&proxy, &direct).await;
    let (mut other, other_server) = open(&proxy, &direct).await;
    proxy.begin_shutdown();
    proxy.wait_for_phase(Phase::Draining).await;
    // Longer than the time of requests, and the time in which their tasks end after it.
    let ended = timeout(Duration::from_millis(500), client.read_u8()).await;
    assert!(ended.is_err(), "the drain has closed it");
    client.write_all(b"still open").await.unwrap();
    assert_eq!(read(&mut server, 10).await, b"still open");
    drop((client, server));
    drop(other_server);
    assert_eq!(rest(&mut other).await, b"");
    drop(other);
    proxy.wait_until_stopped().await;
}

#[tokio::test]
async fn deadline_of_the_drain_closes_passed_connections() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let setup = setup(&world, terminated.address(), direct.address());
    let mut proxy = with_drain_of_tunnels(setup, Duration::from_millis(50));
    let (mut client, mut server) = open(&proxy, &direct).await;
    proxy.begin_shutdown();
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(rest(&mut server).await, b"");
    proxy.wait_until_stopped().await;
}

/// A connection keeps the cluster that it began with. A new one asks the new configuration.
#[tokio::test]
async fn reload_without_the_cluster_keeps_its_open_connections() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let setup = setup(&world, terminated.address(), direct.address());
    let config = Arc::new(Mutex::new(setup.config.clone()));
    let source = Arc::clone(&config);
    let proxy = setup.start_from(Box::new(move || Ok(source.lock().unwrap().clone())));
    let (mut client, mut server) = open(&proxy, &direct).await;
    config.lock().unwrap().clusters.truncate(1);
    proxy.reload();
    wait_for_numbers(proxy.admin(), &[("reloads_total{result=\"ok\"}", 1.0)]).await;
    // The proxy now answers itself, with a certificate for other names.
    let refused = proxy.client().sni(PASSED).connect().await.unwrap_err();
    assert!(
        refused.to_string().contains("not valid for name"),
        "{refused}"
    );
    client.write_all(b"still up").await.unwrap();
    assert_eq!(read(&mut server, 8).await, b"still up");
    server.write_all(b"both ways").await.unwrap();
    assert_eq!(read(&mut client, 9).await, b"both ways");
}

/// A name that becomes a passthrough host is no longer terminated on new connections, nor served on old ones.
#[tokio::test]
async fn reload_to_passthrough_ends_termination_of_the_host() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let mut before = setup(&world, terminated.address(), direct.address());
    let mut after = before.config.clone();
    before.config.clusters.truncate(1);
    after.clusters[0].hosts = vec!["other.test".to_owned()];
    after.clusters[1].hosts = vec![HOST.to_owned()];
    let config = Arc::new(Mutex::new(before.config.clone()));
    let source = Arc::clone(&config);
    let proxy = before.start_from(Box::new(move || Ok(source.lock().unwrap().clone())));
    let mut old = proxy.client().http1().await;
    assert_eq!(old.get(HOST, "/version", "").await.status, 200);
    *config.lock().unwrap() = after;
    proxy.reload();
    wait_for_numbers(proxy.admin(), &[("reloads_total{result=\"ok\"}", 1.0)]).await;
    assert_eq!(old.get(HOST, "/api/v1/pods", "").await.status, 421);
    let bytes = hello(HOST);
    let mut client = connect(&proxy).await;
    client.write_all(&bytes).await.unwrap();
    direct.greet(&bytes).await;
    assert_eq!(terminated.requests().len(), 1);
}

#[tokio::test]
async fn passed_connection_counts_for_the_limits_of_its_client() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address())
        .limits(|limits| limits.connections_per_client = Some(1))
        .start();
    let (client, server) = open(&proxy, &direct).await;
    // The proxy resets the connection, perhaps before the client notices that it has one.
    let second = async {
        let mut second = tokio::net::TcpStream::connect(proxy.address()).await?;
        second.write_all(&hello(PASSED)).await?;
        let mut received = Vec::new();
        second.read_to_end(&mut received).await?;
        std::io::Result::Ok(received)
    };
    let received = within("the refusal", second).await.unwrap_or_default();
    assert_eq!(received, b"");
    let hits = "limits_hit_total{limit=\"client_connections\"}";
    wait_for_numbers(proxy.admin(), &[(hits, 1.0), ("connections", 1.0)]).await;
    drop((client, server));
    wait_for_numbers(proxy.admin(), &[("connections", 0.0)]).await;
    open(&proxy, &direct).await;
}

/// No client can resume a passed connection, so an idle one of the same client closes before it, and the oldest last.
#[tokio::test]
async fn passed_connections_make_room_last() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address())
        .limits(|limits| limits.connections = 4)
        .start();
    let mut passed = Vec::new();
    for _ in 0..3 {
        passed.push(open(&proxy, &direct).await);
    }
    let mut idle = proxy.client().http1().await;
    assert_eq!(idle.get(HOST, "/version", "").await.status, 200);
    let other = proxy.client().from([127, 0, 0, 3].into());
    let mut first = other.http1().await;
    assert_eq!(first.get(HOST, "/version", "").await.status, 200);
    within("the end of the idle one", idle.end()).await.ok();
    let mut second = other.http1().await;
    assert_eq!(second.get(HOST, "/version", "").await.status, 200);
    let (mut client, mut server) = passed.pop().unwrap();
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(rest(&mut server).await, b"");
    for (client, server) in &mut passed {
        client.write_all(b"still open").await.unwrap();
        assert_eq!(read(server, 10).await, b"still open");
    }
}

/// The proxy computes nothing for a handshake that the apiserver runs. Clients whose handshakes take all slots do not
/// delay it.
#[tokio::test]
async fn passed_connection_needs_no_handshake_slot() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address())
        .limits(|limits| limits.handshakes = 1)
        .start();
    let mut slow = connect(&proxy).await;
    slow.write_all(&hello(HOST)).await.unwrap();
    // The proxy has sent its part of the handshake, so the client holds the only slot.
    read(&mut slow, 5).await;
    open(&proxy, &direct).await;
    drop(slow);
}
