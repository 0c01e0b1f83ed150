//! Which endpoint is tried first, and what the proxy remembers about it.

use tokio::time::advance;

use super::*;

impl Endpoints {
    /// A name that resolved to these addresses.
    pub(crate) fn resolved(addresses: &[SocketAddr]) -> Self {
        let endpoints = Self::new("apiserver.test", 6443);
        let addresses: Vec<_> = addresses.iter().copied().map(UpstreamAddr).collect();
        endpoints.publish(&addresses);
        endpoints
    }
}

const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 3;

fn endpoints<const N: usize>(hosts: [u8; N]) -> Endpoints {
    Endpoints::resolved(&hosts.map(address))
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, host], 6443))
}

fn picked(endpoints: &Endpoints) -> Vec<u8> {
    let picked = endpoints.pick();
    picked.iter().map(|endpoint| host(endpoint)).collect()
}

fn host(endpoint: &Endpoint) -> u8 {
    match endpoint.address().0.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => unreachable!("only IPv4 here"),
    }
}

fn endpoint(endpoints: &Endpoints, wanted: u8) -> Arc<Endpoint> {
    let all = endpoints.list.load();
    let found = all.iter().find(|endpoint| host(endpoint) == wanted);
    Arc::clone(found.unwrap())
}

#[tokio::test]
async fn equal_endpoints_take_turns() {
    let endpoints = endpoints([A, B, C]);
    let first: Vec<_> = (0..4).map(|_| picked(&endpoints)[0]).collect();
    assert_eq!(first, [A, B, C, A]);
}

#[tokio::test]
async fn endpoint_with_fewest_connections_comes_first() {
    let endpoints = endpoints([A, B, C]);
    let _held = [A, A, B].map(|host| endpoint(&endpoints, host).count());
    for _ in 0..3 {
        assert_eq!(picked(&endpoints), [C, B, A]);
    }
    let _more = [(); 3].map(|()| endpoint(&endpoints, C).count());
    assert_eq!(picked(&endpoints), [B, A, C]);
}

#[tokio::test(start_paused = true)]
async fn unhealthy_endpoint_comes_last_until_it_works_again() {
    let endpoints = endpoints([A, B]);
    let _held = [(); 9].map(|()| endpoint(&endpoints, B).count());
    endpoints.mark_unhealthy(&endpoint(&endpoints, A), "refused", "refused".into(), true);
    assert_eq!(picked(&endpoints), [B, A]);
    advance(Duration::from_secs(60)).await;
    assert_eq!(
        picked(&endpoints),
        [B, A],
        "time alone does not make it healthy"
    );
    endpoints.mark_healthy(&endpoint(&endpoints, A));
    assert_eq!(picked(&endpoints), [A, B]);
}

#[tokio::test]
async fn no_endpoint_is_ejected_when_all_are_unhealthy() {
    let endpoints = endpoints([A, B]);
    endpoints.mark_healthy(&endpoint(&endpoints, B));
    endpoints.mark_unhealthy(&endpoint(&endpoints, A), "refused", "refused".into(), true);
    assert!(endpoint(&endpoints, A).is_ejected(), "B is healthy");
    endpoints.mark_unhealthy(&endpoint(&endpoints, B), "refused", "refused".into(), true);
    assert_eq!(endpoints.pick().len(), 2);
    assert!(!endpoint(&endpoints, A).is_ejected());
    assert!(!endpoint(&endpoints, B).is_ejected());
}

#[tokio::test]
async fn keeps_addresses_when_a_lookup_fails() {
    let mut endpoints = endpoints([A, B]);
    endpoints.host = "name.invalid".into();
    endpoints.resolve().await.unwrap_err();
    assert_eq!(picked(&endpoints), [A, B]);
}

#[tokio::test]
async fn endpoint_keeps_its_health_when_other_addresses_change() {
    let endpoints = endpoints([A, B]);
    let _held = endpoint(&endpoints, B).count();
    endpoints.mark_unhealthy(&endpoint(&endpoints, B), "refused", "refused".into(), true);
    endpoints.publish(&[B, C].map(|host| UpstreamAddr(address(host))));
    let health = endpoints.health();
    assert_eq!(
        health.iter().map(|one| one.state).collect::<Vec<_>>(),
        [Health::Unhealthy, Health::Unknown]
    );
    assert_eq!(health[0].connections, 1);
}

#[tokio::test]
async fn single_endpoint_is_probed_only_until_it_is_healthy() {
    let single = endpoints([A]);
    assert_eq!(single.probe_targets().len(), 1);
    single.mark_healthy(&endpoint(&single, A));
    assert!(single.probe_targets().is_empty());
    let two = endpoints([A, B]);
    two.mark_healthy(&endpoint(&two, A));
    two.mark_healthy(&endpoint(&two, B));
    assert_eq!(two.probe_targets().len(), 2);
}

#[tokio::test]
async fn address_literal_needs_no_lookup() {
    let endpoints = Endpoints::new("::1", 6443);
    let health = endpoints.health();
    assert_eq!(
        health[0].address,
        UpstreamAddr("[::1]:6443".parse().unwrap())
    );
    endpoints.resolve().await.unwrap();
}

/// Workers record failures on threads of their own; the last result must reflect the final state of both.
#[test]
fn endpoints_that_fail_at_once_are_not_ejected() {
    for round in 0..3_000 {
        let endpoints = endpoints([A, B]);
        let both = [A, B].map(|host| endpoint(&endpoints, host));
        both.iter()
            .for_each(|endpoint| endpoints.mark_healthy(endpoint));
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            for endpoint in &both {
                threads.spawn(|| {
                    start.wait();
                    endpoints.mark_unhealthy(endpoint, "refused", "refused".into(), true);
                });
            }
        });
        let ejected = both.each_ref().map(|one| one.is_ejected());
        assert_eq!(ejected, [false, false], "round {round}");
    }
}

/// A probe fails before the wait for the next round begins.
#[tokio::test(start_paused = true)]
async fn short_failure_is_probed_soon_and_then_ends() {
    const INTERVAL: Duration = Duration::from_secs(600);
    for _ in 0..50 {
        let endpoints = endpoints([A, B]);
        let a = endpoint(&endpoints, A);
        let requested = endpoints.probe_requests();
        let began = Instant::now();
        endpoints.mark_unhealthy(&a, "refused", "no answer".into(), true);
        endpoints.next_round(requested, INTERVAL).await;
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        endpoints.mark_healthy(&a);
        assert_eq!(a.state(), Health::Healthy, "after {:?}", began.elapsed());
    }
}

fn one_endpoint() -> Endpoint {
    Endpoint::new(UpstreamAddr(([127, 0, 0, 1], 6443).into()))
}

/// Advances the clock until a success counts, and returns how long that took.
async fn recovery(endpoint: &Endpoint) -> Duration {
    let from = Instant::now();
    while !endpoint.set_healthy() {
        advance(Duration::from_millis(100)).await;
    }
    from.elapsed()
}

#[tokio::test(start_paused = true)]
async fn unhealthy_time_doubles_with_each_failure() {
    let endpoint = one_endpoint();
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        assert!(endpoint.set_unhealthy("refused".into(), true));
        let took = recovery(&endpoint).await;
        let (min, max) = (seconds * 800, seconds * 1200 + 100);
        assert!(
            (min..=max).contains(&took.as_millis()),
            "{took:?} instead of {seconds} s"
        );
    }
    advance(FORGIVE_AFTER).await;
    endpoint.set_unhealthy("refused".into(), true);
    assert!(recovery(&endpoint).await < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn further_failures_do_not_extend_the_unhealthy_time() {
    let endpoint = one_endpoint();
    assert!(endpoint.set_unhealthy("refused".into(), true));
    for _ in 0..100 {
        assert!(!endpoint.set_unhealthy("still refused".into(), true));
    }
    assert_eq!(endpoint.health().why.unwrap(), "still refused");
    assert!(recovery(&endpoint).await < Duration::from_secs(2));
}

#[test]
fn connections_are_counted_until_they_are_dropped() {
    let endpoint = Arc::new(one_endpoint());
    let (one, two) = (endpoint.count(), endpoint.count());
    assert_eq!(endpoint.health().connections, 2);
    drop((one, two));
    assert_eq!(endpoint.health().connections, 0);
}
