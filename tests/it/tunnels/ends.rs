//! How a tunnel ends: the proxy forwards a clean close as a clean close, and an abort as an abort.

use std::{io::ErrorKind, time::Duration};

use tokio::io::AsyncWriteExt as _;

use super::open;
use crate::{proxy::World, upgrades::ManualApiserver};

/// Case 51. `echo x | kubectl exec -i p -- cat`: the end of the input does not end the output.
#[tokio::test]
async fn client_may_close_its_half_first() {
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

/// Case 51. The same in the other direction.
#[tokio::test]
async fn apiserver_may_close_its_half_first() {
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

/// Case 51. The proxy aborts a half-closed tunnel after `half_close_timeout`.
#[tokio::test]
async fn half_closed_tunnel_is_aborted_after_the_timeout() {
    let timeout = Duration::from_millis(300);
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world
        .proxy(apiserver.upstream.address())
        .timeouts(|timeouts| timeouts.half_close_timeout = timeout)
        .start();

    let (mut client, mut server) = open(&proxy, &apiserver).await;
    let began = tokio::time::Instant::now();
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"");
    let error = client.end().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(began.elapsed() >= timeout, "{:?}", began.elapsed());

    let (mut client, mut server) = open(&proxy, &apiserver).await;
    let began = tokio::time::Instant::now();
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "");
    assert!(server.read_to_end().await.is_err(), "an abort");
    assert!(began.elapsed() >= timeout, "{:?}", began.elapsed());
}

/// An attacker may have truncated a TLS stream without `close_notify`, so it must never look like a clean close.
#[tokio::test]
async fn abort_by_the_apiserver_is_an_abort_for_the_client() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    server.send("half of").await;
    assert_eq!(client.take(7).await.unwrap(), "half of");
    let (mut tcp, _) = server.stream.into_inner();
    tcp.shutdown().await.unwrap();
    let error = client.end().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

/// The same for a client that resets its connection.
#[tokio::test]
async fn abort_by_the_client_is_an_abort_for_the_apiserver() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    client.send("half of").await;
    assert_eq!(server.read(7).await, b"half of");
    client.into_parts().0.reset();
    assert!(server.read_to_end().await.is_err(), "an abort");
}

/// After a tunnel ends, the proxy closes the connection to the apiserver, so that no exec is left running.
#[tokio::test]
async fn tunnel_closed_by_both_peers_closes_both_connections() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let (mut client, mut server) = open(&proxy, &apiserver).await;
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"");
    server.shutdown().await;
    assert_eq!(client.end().await.unwrap(), "");
}
