//! The drain: running requests finish, new connections are refused, and every wait has a limit.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use http::{Request, Response};
use standin::{
    client::{Client, Http1, TlsConnection},
    upstream::{ResponseBody, channel, empty, full},
    within,
};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    proxy::{HOST, World},
    tunnels,
    upgrades::ManualApiserver,
};

/// Response of the apiserver: `/endless` sends one event and never ends, `/slow` takes 500 ms.
pub(crate) async fn slow_or_endless<B>(request: Request<B>) -> Response<ResponseBody> {
    match request.uri().path() {
        "/endless" => {
            let (sender, body) = channel();
            tokio::spawn(async move {
                sender.send("event\n").await.ok();
                sender.closed().await;
            });
            Response::new(body)
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Response::new(full("late"))
        }
        _ => Response::new(empty()),
    }
}

/// A client that has received the first event of an endless response of [`slow_or_endless`].
pub(crate) async fn endless(client: &Client) -> Http1<TlsConnection> {
    let mut client = client.http1().await;
    client
        .send(format!("GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.chunk().await.unwrap(), "event\n");
    client
}

/// Waits until the proxy refuses new connections.
pub(crate) async fn refuses_connections(address: SocketAddr) {
    let refused = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("new connections to be refused", refused).await;
}

/// Case 56. HTTP/1.1: the response of a running request has `Connection: close`, and the connection of an idle
/// client is closed with `close_notify`.
#[tokio::test]
async fn drain_completes_http1_request_and_closes_connection() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world.proxy(upstream.address()).start();
    let mut idle = proxy.client().http1().await;
    idle.get(HOST, "/version", "").await;
    let mut slow = proxy.client().http1().await;
    slow.send(format!("GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    upstream.wait_for_open_responses(1).await;
    proxy.begin_shutdown();
    assert_eq!(idle.end().await.unwrap(), "");
    let response = slow.response().await;
    assert_eq!(response.text(), "late");
    assert_eq!(response.head.header("connection"), Some("close"));
    assert_eq!(slow.end().await.unwrap(), "");
    proxy.wait_until_stopped().await;
}

/// Case 56. HTTP/1.1: a client that connected before the signal may still send its first request.
#[tokio::test]
async fn drain_serves_first_request_of_connected_client() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    proxy.begin_shutdown();
    refuses_connections(proxy.address()).await;
    let response = client.get(HOST, "/version", "").await;
    assert_eq!(response.text(), "ok");
    assert_eq!(response.head.header("connection"), Some("close"));
    assert_eq!(client.end().await.unwrap(), "");
    proxy.wait_until_stopped().await;
}

/// Case 56. HTTP/2: the proxy sends GOAWAY, and running streams complete.
#[tokio::test]
async fn drain_sends_goaway_and_completes_http2_streams() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let slow = client.get("https://kube.test/slow");
    let stop = async {
        upstream.wait_for_open_responses(1).await;
        proxy.begin_shutdown();
        assert_eq!(client.goaway().await, h2::Reason::NO_ERROR);
    };
    let (slow, ()) = tokio::join!(slow, stop);
    assert_eq!(slow.unwrap().text(), "late");
    // The client's own GOAWAY may arrive at a closed socket.
    client.end().await.ok();
    assert!(
        client.get("https://kube.test/version").await.is_err(),
        "new streams are refused"
    );
    proxy.wait_until_stopped().await;
}

/// Case 56.
#[tokio::test]
async fn drain_refuses_new_connections_while_a_request_runs() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world.proxy(upstream.address()).long_drain().start();
    let endless = endless(&proxy.client()).await;
    proxy.begin_shutdown();
    refuses_connections(proxy.address()).await;
    drop(endless);
    proxy.wait_until_stopped().await;
}

/// Case 56. The drain waits for endless responses until its timeout. Then it aborts them, and clients see that
/// they are incomplete.
#[tokio::test]
async fn endless_responses_are_aborted_at_the_drain_timeout() {
    let limit = Duration::from_millis(700);
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.drain = limit)
        .start();
    let mut http1 = endless(&proxy.client()).await;
    let http2 = proxy.client().http2().await;
    let mut watch = http2
        .open("https://kube.test/endless")
        .await
        .unwrap()
        .into_body();
    assert_eq!(watch.data().await.unwrap().unwrap(), "event\n");

    let start = Instant::now();
    proxy.begin_shutdown();
    http2.goaway().await;
    let error = http1.chunk().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(
        within("the end of the watch", watch.data())
            .await
            .unwrap()
            .is_err()
    );
    assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
    proxy.wait_until_stopped().await;
}

/// Case 56. A tunnel keeps working during the drain. The drain ends with the tunnel, or aborts it at the timeout.
#[tokio::test]
async fn drain_waits_for_tunnel_and_aborts_it_at_the_timeout() {
    let limit = Duration::from_millis(700);
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    for ends in [true, false] {
        let mut proxy = world
            .proxy(apiserver.upstream.address())
            .timeouts(|timeouts| timeouts.drain = if ends { standin::WAIT * 10 } else { limit })
            .start();
        let (mut client, mut server) = tunnels::open(&proxy, &apiserver).await;
        let start = Instant::now();
        proxy.begin_shutdown();
        refuses_connections(proxy.address()).await;
        client.send("still").await;
        assert_eq!(server.read(5).await, b"still");
        if ends {
            server.shutdown().await;
            assert_eq!(client.end().await.unwrap(), "");
            drop(client);
        } else {
            assert_eq!(
                client.end().await.unwrap_err().kind(),
                ErrorKind::UnexpectedEof
            );
            assert!(
                server.read_to_end().await.is_err(),
                "the tunnel was not aborted"
            );
            assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
        }
        proxy.wait_until_stopped().await;
    }
}

/// The timeout does not matter without running requests.
#[tokio::test]
async fn idle_proxy_stops_at_once() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world.proxy(upstream.address()).long_drain().start();
    let mut http1 = proxy.client().http1().await;
    http1.get(HOST, "/version", "").await;
    let http2 = proxy.client().http2().await;
    http2.get("https://kube.test/version").await.unwrap();
    proxy.begin_shutdown();
    assert_eq!(http2.goaway().await, h2::Reason::NO_ERROR);
    // The client's own GOAWAY may arrive at a closed socket.
    http2.end().await.ok();
    assert_eq!(http1.end().await.unwrap(), "");
    proxy.wait_until_stopped().await;
}
