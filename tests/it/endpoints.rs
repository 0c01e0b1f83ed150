//! Several endpoints: an endpoint that is dead, silent or the wrong server is ejected, fails no request after
//! that, and comes back when it works again.

use std::{net::SocketAddr, time::Duration};

use http::{Request, Response, StatusCode};
use kube_tls_proxy::upstream::Health;
use standin::{
    pki::Ca,
    tcp::{Relay, refused},
    upstream::{RequestBody, ResponseBody, Upstream, full},
    within,
};
use tokio::time::Instant;

use crate::proxy::{APISERVER, HOST, Proxy, World};

/// A proxy that probes these endpoints often.
fn probing(world: &World, endpoints: &[SocketAddr]) -> Proxy {
    let setup = world.proxy(endpoints[0]);
    setup
        .cluster(|cluster| cluster.addresses = endpoints.to_vec())
        .timeouts(|timeouts| {
            timeouts.probe_interval = Duration::from_millis(100);
            timeouts.probe_timeout = Duration::from_millis(300);
        })
        .start()
}

/// Sends one request as a new client.
async fn request_of_new_client(proxy: &Proxy) -> StatusCode {
    let mut client = proxy.client().http1().await;
    let response = client.get(HOST, "/version", "").await;
    StatusCode::from_u16(response.status).unwrap()
}

/// The number of requests without the probes.
fn client_requests(upstream: &Upstream) -> usize {
    let requests = upstream.requests();
    let requests = requests.iter().filter(|one| one.target == "/version");
    requests.count()
}

#[tokio::test]
async fn connections_are_spread_over_the_endpoints() {
    let world = World::new();
    let upstreams = [
        world.apiserver().start().await,
        world.apiserver().start().await,
    ];
    let proxy = probing(&world, &upstreams.each_ref().map(Upstream::address));
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = proxy.client().http1().await;
        client.get(HOST, "/version", "").await;
        clients.push(client);
    }
    assert_eq!(upstreams.each_ref().map(client_requests), [3, 3]);
    let leases = upstreams
        .each_ref()
        .map(|one| proxy.health(one.address()).connections);
    assert!(leases.iter().all(|leases| *leases >= 3), "{leases:?}");
}

#[tokio::test]
async fn refusing_endpoint_is_ejected_and_returns() {
    let world = World::new();
    let healthy = world.apiserver().start().await;
    let dead = refused().await;
    let proxy = probing(&world, &[dead, healthy.address()]);
    for _ in 0..4 {
        assert_eq!(request_of_new_client(&proxy).await, StatusCode::OK);
    }
    proxy.wait_for_health(dead, Health::Unhealthy).await;
    let why = proxy.health(dead).why.unwrap();
    assert!(why.contains("refused"), "{why}");
    let listener = tokio::net::TcpListener::bind(dead).await.unwrap();
    let _back = world.apiserver().serve(listener);
    proxy.wait_for_health(dead, Health::Healthy).await;
    assert_eq!(proxy.health(dead).why, None);
}

/// A dead host does not refuse connections: a dial would wait for the whole connect timeout.
#[tokio::test]
async fn silent_endpoint_delays_few_requests_and_is_ejected() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let (healthy, silent) = (
        world.apiserver().start().await,
        Relay::start(upstream.address()).await,
    );
    silent.freeze();
    let proxy = probing(&world, &[silent.address(), healthy.address()]);
    let start = Instant::now();
    for _ in 0..4 {
        assert_eq!(request_of_new_client(&proxy).await, StatusCode::OK);
    }
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    proxy
        .wait_for_health(silent.address(), Health::Unhealthy)
        .await;
    assert_eq!(client_requests(&upstream), 0);
    silent.thaw();
    proxy
        .wait_for_health(silent.address(), Health::Healthy)
        .await;
}

/// A client may keep its connection for hours, but not to a dead apiserver.
#[tokio::test]
async fn lease_of_unhealthy_endpoint_is_not_reused() {
    let world = World::new();
    let upstreams = [
        world.apiserver().start().await,
        world.apiserver().start().await,
    ];
    let relays = [
        Relay::start(upstreams[0].address()).await,
        Relay::start(upstreams[1].address()).await,
    ];
    let proxy = probing(&world, &relays.each_ref().map(Relay::address));
    for relay in &relays {
        proxy
            .wait_for_health(relay.address(), Health::Healthy)
            .await;
    }
    let http2 = proxy.client().http2().await;
    let mut http1 = proxy.client().http1().await;
    assert_eq!(
        http2.get("https://kube.test/version").await.unwrap().status,
        200
    );
    assert_eq!(http1.get(HOST, "/version", "").await.status, 200);
    let counts = upstreams.each_ref().map(client_requests);
    assert_eq!(counts, [1, 1], "one lease on each");

    relays[0].freeze();
    proxy
        .wait_for_health(relays[0].address(), Health::Unhealthy)
        .await;
    let responses = async {
        assert_eq!(
            http2.get("https://kube.test/version").await.unwrap().status,
            200
        );
        assert_eq!(http1.get(HOST, "/version", "").await.status, 200);
    };
    within("responses of the other endpoint", responses).await;
    assert_eq!(client_requests(&upstreams[1]), 3);
}

/// Responds to `/readyz` with this status, and to other requests with 200.
fn readiness(status: StatusCode, request: &Request<RequestBody>) -> Response<ResponseBody> {
    let mut response = Response::new(full("ok"));
    if request.uri().path() == "/readyz" {
        *response.status_mut() = status;
    }
    response
}

/// Probes carry no credentials, and many clusters reject anonymous users.
#[tokio::test]
async fn probe_of_401_or_403_is_healthy_and_of_500_is_unhealthy() {
    let world = World::new();
    for (status, state) in [
        (StatusCode::UNAUTHORIZED, Health::Healthy),
        (StatusCode::FORBIDDEN, Health::Healthy),
        (StatusCode::INTERNAL_SERVER_ERROR, Health::Unhealthy),
    ] {
        let answer = move |request| std::future::ready(readiness(status, &request));
        let upstream = world.apiserver().http(answer).start().await;
        let proxy = probing(&world, &[upstream.address()]);
        proxy.wait_for_health(upstream.address(), state).await;
        let probe = upstream.next_request().await;
        assert_eq!(probe.target, "/readyz");
        assert_eq!(probe.header("authorization"), None);
        let agent = probe.header("user-agent").unwrap();
        assert!(agent.ends_with(" probe"), "{agent}");
        // A single endpoint is used even if it is unhealthy.
        assert_eq!(request_of_new_client(&proxy).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn probe_sends_nothing_to_an_unverified_server() {
    let world = World::new();
    let foreign = Upstream::builder(Ca::new("foreign").server(&[APISERVER]));
    let (foreign, healthy) = (foreign.start().await, world.apiserver().start().await);
    let proxy = probing(&world, &[foreign.address(), healthy.address()]);
    proxy
        .wait_for_health(foreign.address(), Health::Unhealthy)
        .await;
    let why = proxy.health(foreign.address()).why.unwrap();
    assert!(why.contains("not signed by the cluster CA"), "{why}");
    foreign.connection_end(0).await;
    assert_eq!(foreign.connections()[0].bytes_received, 0);
}

/// Without a choice, the health of an endpoint changes nothing.
#[tokio::test]
async fn single_healthy_endpoint_is_not_probed_again() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = probing(&world, &[upstream.address()]);
    proxy
        .wait_for_health(upstream.address(), Health::Healthy)
        .await;
    // Several probe intervals.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(upstream.requests().len(), 1);
}

/// The known health was found with the old CA.
#[tokio::test]
async fn single_endpoint_is_probed_again_after_a_ca_change() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = probing(&world, &[upstream.address()]);
    let (address, ca) = (upstream.address(), "cluster-ca.crt");
    proxy.wait_for_health(address, Health::Healthy).await;
    world.dir.write(ca, Ca::new("wrong").pem());
    proxy.reload();
    proxy.wait_for_health(address, Health::Unhealthy).await;
    world.dir.write(ca, world.cluster_ca.pem());
    proxy.reload();
    proxy.wait_for_health(address, Health::Healthy).await;
}

/// A running request keeps its old snapshot, but the probes of the old snapshot must stop.
#[tokio::test]
async fn reload_stops_probes_under_the_old_ca() {
    let world = World::new();
    let answer = |request: Request<RequestBody>| async move {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        Response::new(full("ok"))
    };
    let upstreams = [
        world.apiserver().http(answer).start().await,
        world.apiserver().http(answer).start().await,
    ];
    let [one, other] = upstreams.each_ref().map(Upstream::address);
    let proxy = probing(&world, &[one, other]);
    let mut waiting = proxy.client().http1().await;
    waiting
        .send(format!("GET /never HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    let open = async {
        while upstreams
            .iter()
            .map(Upstream::open_responses)
            .sum::<usize>()
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the pending request", open).await;
    world.dir.write("cluster-ca.crt", Ca::new("next").pem());
    proxy.reload();
    for address in [one, other] {
        proxy.wait_for_health(address, Health::Unhealthy).await;
    }
    let probes = || {
        let requests = upstreams.iter().flat_map(Upstream::requests);
        requests.filter(|one| one.target == "/readyz").count()
    };
    let (answered, dialled) = (probes(), upstreams[0].connections().len());
    // Probes under the new CA send nothing, so their connections measure the time.
    upstreams[0]
        .wait_for("ten more probes", |connections| {
            (connections.len() >= dialled + 10).then_some(())
        })
        .await;
    assert!(probes() <= answered + 2, "more than the probes in flight");
}
