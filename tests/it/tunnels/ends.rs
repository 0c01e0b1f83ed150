//! How a tunnel ends: an end is passed on as an end, a cut as a cut.

use std::{io::ErrorKind, time::Duration};

use tokio::io::AsyncWriteExt as _;

use super::open;
use crate::{proxy::World, upgrades::ManualApiserver};

/// Case 51. `echo x | kubectl exec -i p -- cat`: the end of the input is not the end of the output.
#[tokio::test]
async fn the_client_may_end_its_half_first() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    client.send("x").await;
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"x");
    server.send("x and more").await;
    assert_eq!(client.take(10).await.unwrap(), "x and more");
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "");
}

/// Case 51. The same the other way round.
#[tokio::test]
async fn the_apiserver_may_end_its_half_first() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    server.send("done").await;
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "done");
    client.send("and more").await;
    assert_eq!(server.read(8).await, b"and more");
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"");
}

/// Case 51. A half that never ends is not waited for longer than `half_close_timeout`, and is then cut.
#[tokio::test]
async fn the_second_half_of_a_tunnel_ends_after_a_while() {
    let rest = Duration::from_millis(300);
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world
        .proxy(apiserver.upstream.address())
        .timeouts(|timeouts| timeouts.half_close_timeout = rest)
        .start();

    let (mut client, mut server) = open(&proxy, &apiserver).await;
    let began = tokio::time::Instant::now();
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"");
    let cut = client.end().await.unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
    assert!(began.elapsed() >= rest, "{:?}", began.elapsed());

    let (mut client, mut server) = open(&proxy, &apiserver).await;
    let began = tokio::time::Instant::now();
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "");
    assert!(server.read_to_end().await.is_err(), "a cut");
    assert!(began.elapsed() >= rest, "{:?}", began.elapsed());
}

/// A TLS stream that stops without `close_notify` may be an attacker's cut: it never looks like an end.
#[tokio::test]
async fn a_cut_by_the_apiserver_is_a_cut_for_the_client() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    server.send("half of").await;
    assert_eq!(client.take(7).await.unwrap(), "half of");
    let (mut tcp, _) = server.stream.into_inner();
    tcp.shutdown().await.unwrap();
    let cut = client.end().await.unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
}

/// The same for a client that is gone.
#[tokio::test]
async fn a_cut_by_the_client_is_a_cut_for_the_apiserver() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    client.send("half of").await;
    assert_eq!(server.read(7).await, b"half of");
    client.into_parts().0.reset();
    assert!(server.read_to_end().await.is_err(), "a cut");
}

/// The end of one tunnel closes the apiserver's connection, so that no exec is left running.
#[tokio::test]
async fn a_tunnel_that_ended_both_ways_closes_both_connections() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"");
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "");
}
