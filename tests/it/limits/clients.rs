//! Limits of one client: connections, requests, and requests that the apiserver refuses.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use http::{Request, Response};
use kube_tls_proxy::config::TokenBucketSize;
use standin::{
    upstream::{RequestBody, ResponseBody, Upstream, full},
    within,
};
use tokio::io::AsyncReadExt as _;

use crate::{
    admin::wait_for_numbers,
    proxy::{HOST, Proxy, World},
    responses::{BOTH, ClientResponse, Protocol},
};

const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// No token comes back while a test runs.
const HOUR: Duration = Duration::from_secs(3600);
const BUDGET: u32 = 5;

/// Accepts one token, and `/livez` without a token.
pub(crate) async fn authenticated(request: Request<RequestBody>) -> Response<ResponseBody> {
    let token = request.headers().get("authorization");
    let status = match (token, request.uri().path()) {
        (Some(token), _) if token.as_bytes().starts_with(b"Bearer good") => 200,
        (None, "/livez") => 200,
        (None, _) => 403,
        (Some(_), _) => 401,
    };
    Response::builder()
        .status(status)
        .body(full("from the apiserver"))
        .unwrap()
}

/// The proxy gives the 401 of the apiserver, since after a 429 client-go would repeat each request ten times, and
/// kubectl would not say that the token is the problem.
#[tokio::test]
async fn refused_token_reaches_the_apiserver_budget_times() {
    let world = World::new();
    for protocol in BOTH {
        let upstream = world.apiserver().http(authenticated).start().await;
        let proxy = world
            .proxy(upstream.address())
            .admin()
            .limits(|limits| {
                limits.unauthorized_per_client = TokenBucketSize::new(BUDGET, HOUR);
            })
            .start();
        let expired = [("authorization", "Bearer expired")];
        for request in 0..30 {
            let response = proxy
                .request(protocol, "GET", "/api/v1/pods", &expired, b"")
                .await;
            assert_eq!(response.code, 401, "{protocol:?} {request}");
            if request >= BUDGET {
                let message = response.assert_status(401, "Unauthorized");
                assert!(message.contains("log in again"), "{message}");
                assert_eq!(response.lines("www-authenticate"), ["Bearer"]);
                assert_eq!(response.lines("retry-after"), [""; 0]);
                // kubectl prints no message of a 401, and every warning.
                let hint = "299 kube-tls-proxy \"the apiserver has refused this credential too often; log in again\"";
                assert_eq!(response.lines("warning"), [hint]);
            } else {
                assert_eq!(response.lines("warning"), [""; 0]);
            }
            // A colleague at the same address.
            let good = [("authorization", "Bearer good")];
            let response = proxy
                .request(protocol, "GET", "/api/v1/pods", &good, b"")
                .await;
            assert_eq!(response.code, 200, "{protocol:?} {request}");
        }
        let requests = upstream.requests();
        let refused = requests.iter().filter(|request| {
            let mut headers = request.headers.iter();
            headers.any(|(_, value)| value == b"Bearer expired")
        });
        assert_eq!(refused.count(), BUDGET as usize, "{protocol:?}");
        let hits = "limits_hit_total{limit=\"client_unauthorized\"}";
        wait_for_numbers(proxy.admin(), &[(hits, 25.0)]).await;
    }
}

/// A proxy with a budget of refusals, before an apiserver that checks credentials.
async fn with_budget(world: &World) -> (Upstream, Proxy) {
    let upstream = world.apiserver().http(authenticated).start().await;
    let proxy = world
        .proxy(upstream.address())
        .limits(|limits| limits.unauthorized_per_client = TokenBucketSize::new(BUDGET, HOUR))
        .start();
    (upstream, proxy)
}

/// A token that is new on each request has a full bucket, but its client has one too.
#[tokio::test]
async fn guessed_tokens_do_not_stop_a_new_valid_one() {
    let world = World::new();
    let (upstream, proxy) = with_budget(&world).await;
    let mut guessing = proxy.client().http1().await;
    let mut codes = Vec::new();
    for guess in 0..80 {
        let line = format!("Authorization: Bearer {guess}\r\n");
        let response: ClientResponse = guessing.get(HOST, "/api/v1/pods", &line).await.into();
        if response.code == 429 {
            response.assert_status(429, "TooManyRequests");
            let wait = response.lines("retry-after")[0].parse::<u32>().unwrap();
            assert!((1..=3600).contains(&wait), "{wait}");
        }
        codes.push(response.code);
    }
    let refused = codes.iter().filter(|code| **code == 401).count();
    let budget = 10 * BUDGET as usize;
    // The connection has one guess when the budget is used up.
    assert_eq!((refused, codes.len() - refused), (budget + 1, 29));
    assert_eq!(upstream.requests().len(), budget + 1);
    for protocol in BOTH {
        for token in ["Bearer good 1", "Bearer good 2"] {
            let fields = [("authorization", token)];
            let response = proxy
                .request(protocol, "GET", "/api/v1/pods", &fields, b"")
                .await;
            assert_eq!(response.code, 200, "{protocol:?} {token}");
        }
    }
}

#[tokio::test]
async fn refused_requests_without_a_token_leave_health_checks_alone() {
    let world = World::new();
    let (upstream, proxy) = with_budget(&world).await;
    for protocol in BOTH {
        for _ in 0..20 {
            let response = proxy.get(protocol, "/api/v1/pods").await;
            assert_eq!(response.code, 403);
            assert_eq!(proxy.get(protocol, "/livez").await.code, 200);
        }
    }
    let refused = proxy.get(Protocol::Http2, "/api/v1/pods").await;
    refused.assert_status(403, "Forbidden");
    // The first 403 is not counted, because its request may have had a token.
    assert_eq!(upstream.requests().len(), 40 + 1 + BUDGET as usize);
}

#[tokio::test]
async fn requests_over_the_rate_get_429_with_retry_after() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .admin()
        .limits(|limits| {
            limits.requests_per_client = Some(TokenBucketSize {
                max_tokens: 3,
                fill_interval: HOUR / 100,
            });
        })
        .start();
    let mut first = proxy.client().from(GREEDY).http1().await;
    let second = proxy.client().from(GREEDY).http2().await;
    for _ in 0..2 {
        assert_eq!(first.get(HOST, "/", "").await.status, 200);
    }
    assert_eq!(second.get("https://kube.test/").await.unwrap().status, 200);
    let exceeded: [ClientResponse; 2] = [
        first.get(HOST, "/", "").await.into(),
        second.get("https://kube.test/").await.unwrap().into(),
    ];
    for response in exceeded {
        let message = response.assert_status(429, "TooManyRequests");
        assert!(message.ends_with("limits.requestsPerClient"), "{message}");
        assert_eq!(response.lines("retry-after"), ["36"]);
    }
    let mut other = proxy.client().from(OTHER).http1().await;
    assert_eq!(other.get(HOST, "/", "").await.status, 200);
    assert_eq!(upstream.requests().len(), 4);
    // A connection of its own does not give a client another budget.
    drop((first, second));
    let mut again = proxy.client().from(GREEDY).http1().await;
    assert_eq!(again.get(HOST, "/", "").await.status, 429);
    let hits = "limits_hit_total{limit=\"client_requests\"}";
    wait_for_numbers(proxy.admin(), &[(hits, 3.0)]).await;
    let status = crate::admin::get(proxy.admin(), "/status.json").await;
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(
        status["recent_errors"][0]["message"],
        format!("request refused: client is over limits.requestsPerClient ({GREEDY})")
    );
}

/// The refused connection costs no handshake.
#[tokio::test]
async fn connection_over_the_cap_is_reset_before_tls() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world
        .proxy(upstream.address())
        .admin()
        .limits(|limits| limits.connections_per_client = Some(2))
        .start();
    let greedy = proxy.client().from(GREEDY);
    let mut first = greedy.http1().await;
    let second = greedy.http1().await;
    let refused = async {
        let mut tcp = greedy.tcp().await?;
        tcp.read_u8().await
    };
    let error = within("a reset", refused).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut other = proxy.client().from(OTHER).http1().await;
    assert_eq!(other.get(HOST, "/", "").await.status, 200);
    assert_eq!(first.get(HOST, "/", "").await.status, 200);
    drop(second);
    let accepted = async { while greedy.connect().await.is_err() {} };
    within("a place", accepted).await;
    let numbers = wait_for_numbers(
        proxy.admin(),
        &[("handshakes_total{result=\"failed\"}", 0.0)],
    );
    let numbers = numbers.await;
    assert!(numbers.get("limits_hit_total{limit=\"client_connections\"}") >= 1.0);
}

/// The status page names the clients that take the places.
#[tokio::test]
async fn status_lists_the_clients_with_the_most_connections() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let mut open = Vec::new();
    for client in 2..10 {
        for _ in 0..client {
            let address = Ipv4Addr::new(127, 0, 0, client);
            open.push(proxy.client().from(address.into()).http1().await);
        }
    }
    let status = crate::admin::get(proxy.admin(), "/status.json").await;
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    let clients = status["clients"].as_array().unwrap();
    let clients = clients.iter().map(|one| {
        let client = one["client"].as_str().unwrap();
        (client, one["connections"].as_u64().unwrap())
    });
    assert!(clients.eq([
        ("127.0.0.9", 9),
        ("127.0.0.8", 8),
        ("127.0.0.7", 7),
        ("127.0.0.6", 6),
        ("127.0.0.5", 5),
    ]));
}

#[tokio::test]
async fn status_lists_a_busy_client_that_opens_new_connections() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let mut open = Vec::new();
    for client in 2..12 {
        let address = Ipv4Addr::new(127, 0, 0, client);
        open.push(proxy.client().from(address.into()).http1().await);
    }
    let busy: IpAddr = Ipv4Addr::new(127, 0, 0, 99).into();
    for _ in 0..20 {
        let mut client = proxy.client().from(busy).alpn(&["http/1.1"]).http1().await;
        assert_eq!(client.get(HOST, "/version", "").await.status, 200);
    }
    let status = crate::admin::get(proxy.admin(), "/status.json").await;
    let status: serde_json::Value = serde_json::from_slice(&status.body).unwrap();
    let first = &status["clients"][0];
    assert_eq!(first["client"], "127.0.0.99");
    assert!(
        first["requests_per_second"].as_f64().unwrap() > 0.0,
        "{first}"
    );
}
