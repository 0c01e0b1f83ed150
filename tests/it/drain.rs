//! From the signal to stop to the end: what runs is finished, what is new is refused, nothing is waited for
//! without end.

use std::{io::ErrorKind, time::Duration};

use http::{Request, Response};
use standin::{
    client::{Client, Http1, TlsConnection},
    upstream::{ResponseBody, channel, empty, full},
    within,
};
use tokio::{net::TcpStream, time::Instant};

use crate::{
    proxy::{HOST, Proxy, World},
    tunnels,
    upgrades::ManualApiserver,
};

/// An apiserver's answer: `/endless` sends one event and never ends, `/slow` takes a while.
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

/// A client whose request to [`slow_or_endless`] never ends; its first event is there.
pub(crate) async fn endless(client: &Client) -> Http1<TlsConnection> {
    let mut client = client.http1().await;
    client
        .send(format!("GET /endless HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.chunk().await.unwrap(), "event\n");
    client
}

/// Waits until no new connection is taken.
pub(crate) async fn refuses_connections(proxy: &Proxy) {
    let refused = async {
        while TcpStream::connect(proxy.address()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("new connections to be refused", refused).await;
}

/// Case 56. HTTP/1.1: the running request completes with `Connection: close`, an idle client is let go
/// in order.
#[tokio::test]
async fn an_http1_request_completes_and_the_connection_closes() {
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

/// Case 56. HTTP/1.1: who has connected before the signal and asks after it gets an answer.
#[tokio::test]
async fn a_first_request_is_answered_although_the_drain_has_begun() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    proxy.begin_shutdown();
    refuses_connections(&proxy).await;
    let response = client.get(HOST, "/version", "").await;
    assert_eq!(response.text(), "ok");
    assert_eq!(response.head.header("connection"), Some("close"));
    assert_eq!(client.end().await.unwrap(), "");
    proxy.wait_until_stopped().await;
}

/// Case 56. h2: GOAWAY, then the running streams end as they would have.
#[tokio::test]
async fn an_http2_connection_says_goaway_and_finishes_its_streams() {
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
    // Its own GOAWAY may meet a closed socket.
    client.end().await.ok();
    assert!(
        client.get("https://kube.test/version").await.is_err(),
        "nothing new"
    );
    proxy.wait_until_stopped().await;
}

/// Case 56. Nobody new gets in while the rest is finished.
#[tokio::test]
async fn new_connections_are_refused_while_a_request_runs() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let mut proxy = world.proxy(upstream.address()).long_drain().start();
    let endless = endless(&proxy.client()).await;
    proxy.begin_shutdown();
    refuses_connections(&proxy).await;
    drop(endless);
    proxy.wait_until_stopped().await;
}

/// Case 56. Watches, logs and exec hold the end up to the drain timeout; then they are cut, and are seen
/// to be cut.
#[tokio::test]
async fn what_never_ends_is_cut_at_the_drain_timeout() {
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

    let began = Instant::now();
    proxy.begin_shutdown();
    http2.goaway().await;
    let cut = http1.chunk().await.unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
    assert!(
        within("the end of the watch", watch.data())
            .await
            .unwrap()
            .is_err()
    );
    assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
    proxy.wait_until_stopped().await;
}

/// Case 56. A tunnel goes on while the drain lasts, ends it by its own end, and is cut at the timeout.
#[tokio::test]
async fn a_tunnel_is_waited_for_and_cut_at_the_drain_timeout() {
    let limit = Duration::from_millis(700);
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    for ends in [true, false] {
        let mut proxy = world
            .proxy(apiserver.upstream.address())
            .timeouts(|timeouts| timeouts.drain = if ends { standin::WAIT * 10 } else { limit })
            .start();
        let (mut client, mut server) = tunnels::open(&proxy, &apiserver).await;
        let began = Instant::now();
        proxy.begin_shutdown();
        refuses_connections(&proxy).await;
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
            assert!(server.read_to_end().await.is_err(), "a cut");
            assert!(began.elapsed() >= limit, "{:?}", began.elapsed());
        }
        proxy.wait_until_stopped().await;
    }
}

/// With nothing running the end comes at once, whatever the timeout.
#[tokio::test]
async fn an_idle_proxy_ends_at_once() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut proxy = world.proxy(upstream.address()).long_drain().start();
    let mut http1 = proxy.client().http1().await;
    http1.get(HOST, "/version", "").await;
    let http2 = proxy.client().http2().await;
    http2.get("https://kube.test/version").await.unwrap();
    proxy.begin_shutdown();
    assert_eq!(http2.goaway().await, h2::Reason::NO_ERROR);
    // Its own GOAWAY may meet a closed socket.
    http2.end().await.ok();
    assert_eq!(http1.end().await.unwrap(), "");
    proxy.wait_until_stopped().await;
}
