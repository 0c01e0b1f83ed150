//! Upstream connections: one client each, the protocol of the client, more streams than fit, end and reuse.

use std::time::Duration;

use http::Response;
use standin::{
    client::{Http2, whole},
    upstream::{Upstream, full},
    within,
};
use tokio::net::TcpListener;

use crate::proxy::{APISERVER, HOST, World, data, watch_or_ok};

const OK: &str = "https://kube.test/ok";
const WATCH: &str = "https://kube.test/watch";
const GOAWAY: &str = "https://kube.test/goaway";

async fn get(client: &Http2) -> String {
    client.get(OK).await.unwrap().text()
}

/// Sends GET with a token and waits for the head. A GOAWAY for a request without one would reach the client.
async fn open_with_token(client: &Http2, url: &str) -> Response<h2::RecvStream> {
    let request = http::Request::get(url).header("authorization", "Bearer good");
    let (response, _) = client.begin(request.body(()).unwrap(), true).await.unwrap();
    within("the head of a response", response).await.unwrap()
}

/// The connection of each request, in order of arrival.
fn connections(upstream: &Upstream) -> Vec<usize> {
    upstream
        .requests()
        .iter()
        .map(|request| request.connection)
        .collect()
}

#[tokio::test]
async fn mirrors_the_protocol_of_the_client() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    assert_eq!(get(&proxy.client().http2().await).await, "ok");
    let mut http1 = proxy.client().http1().await;
    assert_eq!(http1.get(HOST, "/ok", "").await.text(), "ok");
    let seen: Vec<_> = upstream
        .connections()
        .into_iter()
        .map(|connection| (connection.alpn_offered.unwrap(), connection.alpn.unwrap()))
        .collect();
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        seen,
        [
            (owned(&["h2", "http/1.1"]), "h2".to_owned()),
            (owned(&["http/1.1"]), "http/1.1".to_owned())
        ]
    );
}

#[tokio::test]
async fn two_clients_never_share_an_upstream_connection() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    // One connection is idle already; only one of the two clients may use it.
    assert_eq!(get(&proxy.client().http2().await).await, "ok");
    let (first, second) = (proxy.client().http2().await, proxy.client().http2().await);
    for client in [&first, &second, &first, &second] {
        assert_eq!(get(client).await, "ok");
    }
    assert_eq!(connections(&upstream), [0, 0, 1, 0, 1]);
    let (mut third, mut fourth) = (proxy.client().http1().await, proxy.client().http1().await);
    for client in [&mut third, &mut fourth] {
        client.get(HOST, "/ok", "").await;
    }
    for client in [&mut third, &mut fourth] {
        client.get(HOST, "/ok", "").await;
    }
    assert_eq!(connections(&upstream)[5..], [2, 3, 2, 3]);
}

#[tokio::test]
async fn reusable_connection_goes_to_the_next_client() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for _ in 0..3 {
        assert_eq!(get(&proxy.client().http2().await).await, "ok");
    }
    assert_eq!(connections(&upstream), [0, 0, 0]);
    for _ in 0..3 {
        let mut client = proxy.client().http1().await;
        client.get(HOST, "/ok", "").await;
    }
    assert_eq!(connections(&upstream)[3..], [1, 1, 1]);
}

/// Lets one client poison its connection, and returns whether the next client gets that connection.
async fn is_reused_after<F>(upstream: &Upstream, proxy: &crate::proxy::Proxy, poison: F) -> bool
where
    F: AsyncFnOnce(Http2),
{
    poison(proxy.client().http2().await).await;
    let poisoned = upstream.requests().last().unwrap().connection;
    assert_eq!(get(&proxy.client().http2().await).await, "ok");
    upstream.requests().last().unwrap().connection == poisoned
}

#[tokio::test]
async fn connection_with_reset_stream_is_not_reused() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let reused = is_reused_after(&upstream, &proxy, async |client| {
        drop(client.open(WATCH).await.unwrap());
        upstream.wait_for_open_responses(0).await;
        // The same client may keep using it: the connection is poisoned only for others.
        assert_eq!(get(&client).await, "ok");
        assert_eq!(connections(&upstream), [0, 0]);
    });
    assert!(!reused.await);
    upstream.connection_end(0).await;
}

#[tokio::test]
async fn connection_with_401_is_not_reused() {
    let world = World::new();
    let refuse = |status: u16| {
        move |request: http::Request<_>| async move {
            let bad = request.headers().contains_key("authorization");
            let status = if bad { status } else { 200 };
            Response::builder().status(status).body(full("ok")).unwrap()
        }
    };
    for (status, expected) in [(401, false), (403, true)] {
        let upstream = world.apiserver().http(refuse(status)).start().await;
        let proxy = world.proxy(upstream.address()).start();
        let reused = is_reused_after(&upstream, &proxy, async |client| {
            let request = http::Request::get(OK).header("authorization", "Bearer no");
            let answer = client.request(request.body("".into()).unwrap()).await;
            assert_eq!(answer.unwrap().status, status);
        });
        assert_eq!(reused.await, expected, "{status} over h2");

        let mut client = proxy.client().http1().await;
        client
            .get(HOST, "/ok", "Authorization: Bearer no\r\n")
            .await;
        drop(client);
        proxy.client().http1().await.get(HOST, "/ok", "").await;
        let last_two: Vec<usize> = connections(&upstream).into_iter().rev().take(2).collect();
        assert_eq!(last_two[0] == last_two[1], expected, "{status} over h1");
    }
}

#[tokio::test]
async fn connection_with_goaway_is_not_reused() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|request| async move {
            let response = Response::builder();
            match request.uri().path() {
                "/ok" => response,
                _ => response.header("connection", "close"),
            }
            .body(full("ok"))
            .unwrap()
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let reused = is_reused_after(&upstream, &proxy, async |client| {
        let response = open_with_token(&client, GOAWAY).await;
        assert_eq!(whole(response).await.unwrap().body, "ok");
        // Not even by the same client, which does not receive the GOAWAY.
        assert_eq!(get(&client).await, "ok");
        assert_eq!(connections(&upstream), [0, 1]);
        let goaways = client.frames();
        assert!(
            goaways
                .iter()
                .all(|frame| frame.kind != standin::frames::kind::GOAWAY)
        );
    });
    // The second connection is reusable.
    assert!(reused.await);
    assert_eq!(connections(&upstream), [0, 1, 1]);
}

#[tokio::test]
async fn running_streams_complete_after_goaway() {
    let world = World::new();
    let (events, body) = standin::upstream::channel();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = world
        .apiserver()
        .http(move |request| {
            let response = Response::builder();
            let response = match request.uri().path() {
                "/watch" => response.body(body.lock().unwrap().take().unwrap()),
                "/goaway" => response.header("connection", "close").body(full("ok")),
                _ => response.body(full("ok")),
            };
            async { response.unwrap() }
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut watch = open_with_token(&client, WATCH).await;
    let response = open_with_token(&client, GOAWAY).await;
    assert_eq!(whole(response).await.unwrap().body, "ok");
    for _ in 0..3 {
        assert_eq!(get(&client).await, "ok");
    }
    assert_eq!(connections(&upstream), [0, 0, 1, 1, 1]);
    events.send("still here").await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "still here");
    drop(events);
    assert_eq!(whole(watch).await.unwrap().body, "");
}

#[tokio::test]
async fn connection_with_abandoned_response_is_not_reused() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let mut client = proxy.client().http1().await;
    client
        .send("GET /watch HTTP/1.1\r\nHost: kube.test\r\n\r\n")
        .await;
    client.head().await.unwrap();
    drop(client);
    upstream.connection_end(0).await;
    proxy.client().http1().await.get(HOST, "/ok", "").await;
    assert_eq!(connections(&upstream), [0, 1]);
}

#[tokio::test]
async fn connection_with_abandoned_upload_is_not_reused() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|request| async move {
            let early = request.uri().path() == "/early";
            if !early {
                drop(request.into_body().read().await);
            }
            Response::new(full("ok"))
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let reused = is_reused_after(&upstream, &proxy, async |client| {
        let request = http::Request::post("https://kube.test/early");
        let (response, upload) = client
            .begin(request.body(()).unwrap(), false)
            .await
            .unwrap();
        let response = within("the response", response).await.unwrap();
        assert_eq!(whole(response).await.unwrap().text(), "ok");
        drop(upload);
    });
    assert!(!reused.await);
}

#[tokio::test]
async fn upgrade_uses_a_new_connection_that_is_never_reused() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|request| async move {
            if request.headers().contains_key("upgrade") {
                return Response::builder().status(403).body(full("no")).unwrap();
            }
            Response::new(full("ok"))
        })
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let mut client = proxy.client().http1().await;
    client.get(HOST, "/ok", "").await;
    let refused = client.get(HOST, "/exec", upgrade).await;
    assert_eq!(refused.status, 403);
    drop(client);
    let mut client = proxy.client().http1().await;
    client.get(HOST, "/ok", "").await;
    assert_eq!(connections(&upstream), [0, 1, 0]);
    upstream.connection_end(1).await;
}

#[tokio::test]
async fn connection_of_an_older_generation_is_not_reused() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let other = standin::pki::Ca::new("other");
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut watch = client.open(WATCH).await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");
    drop(proxy.client().http2().await.get(OK).await.unwrap());

    upstream.present(&other.server(&[APISERVER]));
    world.dir.write("cluster-ca.crt", other.pem());
    proxy.reload();
    // Before the reload, responses use an older connection; a new connection shows that the reload is done.
    let until_reloaded = async {
        while upstream.connections().len() < 3 {
            assert_eq!(get(&client).await, "ok");
        }
    };
    within("a new connection", until_reloaded).await;
    assert_eq!(get(&client).await, "ok");
    assert_eq!(get(&proxy.client().http2().await).await, "ok");
    let last_two: Vec<usize> = connections(&upstream).into_iter().rev().take(2).collect();
    assert!(last_two.iter().all(|id| *id > 1), "{last_two:?}");
    // Streams from before the reload keep running.
    assert_eq!(upstream.open_responses(), 1);
}

#[tokio::test]
async fn idle_connection_is_closed_after_its_timeout() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .timeouts(|timeouts| timeouts.upstream_idle = Duration::from_millis(200))
        .start();
    assert_eq!(get(&proxy.client().http2().await).await, "ok");
    proxy.client().http1().await.get(HOST, "/ok", "").await;
    // No request triggers the close; each connection ends with `close_notify`.
    for id in [0, 1] {
        assert_eq!(
            upstream.connection_end(id).await,
            standin::upstream::ConnectionEnd::Clean
        );
    }
    assert_eq!(get(&proxy.client().http2().await).await, "ok");
    assert_eq!(connections(&upstream), [0, 1, 2]);
}

/// Case 1. Watches never end, so a stream above the limit of the apiserver must not wait for one of them.
#[tokio::test]
async fn client_beyond_the_stream_limit_gets_a_second_connection() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.streams_per_connection = 200)
        .start();
    let client = proxy.client().http2().await;
    // All at once, before the limit of the apiserver is known.
    let mut opening = Vec::new();
    for number in 0..120 {
        let url = format!("{WATCH}/{number}");
        let request = http::Request::get(url).body(()).unwrap();
        opening.push(client.begin(request, true).await.unwrap().0);
    }
    let mut watches = Vec::new();
    for opening in opening {
        let mut watch = within("the head of a watch", opening).await.unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), "first");
        watches.push(watch);
    }
    assert_eq!(get(&client).await, "ok");
    let by_connection: Vec<usize> = upstream
        .connections()
        .iter()
        .map(|connection| connection.requests)
        .collect();
    assert_eq!(by_connection, [100, 21]);
}

#[tokio::test]
async fn one_dial_serves_a_burst_of_first_streams() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut opening = Vec::new();
    for _ in 0..50 {
        let request = http::Request::get(WATCH).body(()).unwrap();
        opening.push(client.begin(request, true).await.unwrap().0);
    }
    for opening in opening {
        within("the head of a watch", opening).await.unwrap();
    }
    assert_eq!(upstream.connections().len(), 1);
}

#[tokio::test]
async fn http2_clients_reach_an_http1_apiserver() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .alpn(&["http/1.1"])
        .http(watch_or_ok)
        .start()
        .await;
    let proxy = world.proxy(upstream.address()).start();
    let client = proxy.client().http2().await;
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(client.open(WATCH).await.unwrap());
    }
    assert_eq!(
        connections(&upstream),
        [0, 1, 2],
        "one connection per stream"
    );
    for _ in 0..3 {
        assert_eq!(get(&client).await, "ok");
    }
    assert_eq!(
        connections(&upstream)[3..],
        [3, 3, 3],
        "one connection for all"
    );
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    let world = World::new();
    let mut addresses: Vec<_> = tokio::net::lookup_host(("localhost", 0))
        .await
        .unwrap()
        .collect();
    addresses.sort_unstable();
    // If there are two, nothing listens on the first one.
    let listener = TcpListener::bind(addresses.pop().unwrap()).await.unwrap();
    let upstream = world.apiserver().serve(listener);
    let proxy = world
        .proxy(upstream.address())
        .cluster(|cluster| cluster.upstream_host = "localhost".into())
        .start();
    for _ in 0..4 {
        assert_eq!(get(&proxy.client().http2().await).await, "ok");
    }
}
