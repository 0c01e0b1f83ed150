//! Several apiservers behind one name: one that dies, falls silent or is somebody else costs no request once
//! that is known, and is taken back when it works again.

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

/// One request of a client that has no connection yet.
async fn ask_as_a_stranger(proxy: &Proxy) -> StatusCode {
    let mut client = proxy.client().http1().await;
    let response = client.get(HOST, "/version", "").await;
    StatusCode::from_u16(response.status).unwrap()
}

/// Requests of clients, without the probes.
fn asked(upstream: &Upstream) -> usize {
    let requests = upstream.requests();
    let asked = requests.iter().filter(|one| one.target == "/version");
    asked.count()
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
    assert_eq!(upstreams.each_ref().map(asked), [3, 3]);
    let leases = upstreams
        .each_ref()
        .map(|one| proxy.health(one.address()).connections);
    assert!(leases.iter().all(|leases| *leases >= 3), "{leases:?}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_costs_nothing_and_is_taken_back() {
    let world = World::new();
    let well = world.apiserver().start().await;
    let dead = refused().await;
    let proxy = probing(&world, &[dead, well.address()]);
    for _ in 0..4 {
        assert_eq!(ask_as_a_stranger(&proxy).await, StatusCode::OK);
    }
    proxy.wait_for_health(dead, Health::Unhealthy).await;
    let why = proxy.health(dead).why.unwrap();
    assert!(why.contains("refused"), "{why}");
    let listener = tokio::net::TcpListener::bind(dead).await.unwrap();
    let _back = world.apiserver().serve(listener);
    proxy.wait_for_health(dead, Health::Healthy).await;
    assert_eq!(proxy.health(dead).why, None);
}

/// Hosts that are gone do not refuse; a dial would wait for its whole timeout.
#[tokio::test]
async fn a_silent_endpoint_costs_a_moment_and_after_that_nothing() {
    let world = World::new();
    let behind = world.apiserver().start().await;
    let (well, silent) = (
        world.apiserver().start().await,
        Relay::start(behind.address()).await,
    );
    silent.freeze();
    let proxy = probing(&world, &[silent.address(), well.address()]);
    let began = Instant::now();
    for _ in 0..4 {
        assert_eq!(ask_as_a_stranger(&proxy).await, StatusCode::OK);
    }
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    proxy
        .wait_for_health(silent.address(), Health::Unhealthy)
        .await;
    assert_eq!(asked(&behind), 0);
    silent.thaw();
    proxy
        .wait_for_health(silent.address(), Health::Healthy)
        .await;
}

/// A client keeps its connection for hours; it must not keep it to an apiserver that is gone.
#[tokio::test]
async fn a_lease_of_an_ill_endpoint_is_not_used_again() {
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
    let counts = upstreams.each_ref().map(asked);
    assert_eq!(counts, [1, 1], "one lease on each");

    relays[0].freeze();
    proxy
        .wait_for_health(relays[0].address(), Health::Unhealthy)
        .await;
    let answers = async {
        assert_eq!(
            http2.get("https://kube.test/version").await.unwrap().status,
            200
        );
        assert_eq!(http1.get(HOST, "/version", "").await.status, 200);
    };
    within("answers of the other endpoint", answers).await;
    assert_eq!(asked(&upstreams[1]), 3);
}

/// An answer to /readyz with this status.
fn readiness(status: StatusCode, request: &Request<RequestBody>) -> Response<ResponseBody> {
    let mut response = Response::new(full("ok"));
    if request.uri().path() == "/readyz" {
        *response.status_mut() = status;
    }
    response
}

/// Probes carry no credentials, and many clusters know no anonymous user.
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
        // The only one there is; ill or not, there is nothing better.
        assert_eq!(ask_as_a_stranger(&proxy).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_probe_says_nothing_to_an_apiserver_that_is_somebody_else() {
    let world = World::new();
    let foreign = Upstream::builder(Ca::new("foreign").server(&[APISERVER]));
    let (foreign, well) = (foreign.start().await, world.apiserver().start().await);
    let proxy = probing(&world, &[foreign.address(), well.address()]);
    proxy
        .wait_for_health(foreign.address(), Health::Unhealthy)
        .await;
    let why = proxy.health(foreign.address()).why.unwrap();
    assert!(why.contains("not signed by the cluster CA"), "{why}");
    foreign.connection_end(0).await;
    assert_eq!(foreign.connections()[0].bytes_received, 0);
}

/// What is known need not be asked again when there is no choice.
#[tokio::test]
async fn a_single_endpoint_is_probed_once() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = probing(&world, &[upstream.address()]);
    proxy
        .wait_for_health(upstream.address(), Health::Healthy)
        .await;
    // Many turns of the probe.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(upstream.requests().len(), 1);
}

/// What was known was found out under the old CA.
#[tokio::test]
async fn a_single_endpoint_is_probed_again_under_another_ca() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = probing(&world, &[upstream.address()]);
    let (address, ca) = (upstream.address(), "cluster-ca.crt");
    proxy.wait_for_health(address, Health::Healthy).await;
    world.dir.write(ca, Ca::new("mistaken").pem());
    proxy.reload();
    proxy.wait_for_health(address, Health::Unhealthy).await;
    world.dir.write(ca, world.cluster_ca.pem());
    proxy.reload();
    proxy.wait_for_health(address, Health::Healthy).await;
}

/// A request may wait for its answer for as long as it likes, and its cluster with it.
#[tokio::test]
async fn nobody_is_probed_under_a_ca_that_was_taken_out() {
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
    within("the request that waits", open).await;
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
    // The probes under the new CA are the measure of time; they send nothing.
    upstreams[0]
        .wait_for("ten probes more", |connections| {
            (connections.len() >= dialled + 10).then_some(())
        })
        .await;
    assert!(
        probes() <= answered + 2,
        "one round may have been under way"
    );
}
