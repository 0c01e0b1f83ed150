//! Which endpoint is tried first, and what is remembered of it.

use tokio::time::advance;

use super::*;

impl Endpoints {
    /// A name that resolved to these.
    pub(in crate::upstream) fn resolved(addresses: &[SocketAddr]) -> Self {
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

fn of(endpoints: &Endpoints, wanted: u8) -> Arc<Endpoint> {
    let all = endpoints.list.load();
    let found = all.iter().find(|endpoint| host(endpoint) == wanted);
    Arc::clone(found.unwrap())
}

#[tokio::test]
async fn takes_turns_among_equals() {
    let endpoints = endpoints([A, B, C]);
    let first: Vec<_> = (0..4).map(|_| picked(&endpoints)[0]).collect();
    assert_eq!(first, [A, B, C, A]);
}

#[tokio::test]
async fn the_one_with_the_fewest_connections_comes_first() {
    let endpoints = endpoints([A, B, C]);
    let _held = [A, A, B].map(|host| of(&endpoints, host).count());
    for _ in 0..3 {
        assert_eq!(picked(&endpoints), [C, B, A]);
    }
    let _more = [(); 3].map(|()| of(&endpoints, C).count());
    assert_eq!(picked(&endpoints), [B, A, C]);
}

#[tokio::test(start_paused = true)]
async fn an_ill_endpoint_comes_last_until_it_worked_again() {
    let endpoints = endpoints([A, B]);
    let _held = [(); 9].map(|()| of(&endpoints, B).count());
    endpoints.mark_unhealthy(&of(&endpoints, A), "refused".into());
    assert_eq!(picked(&endpoints), [B, A]);
    advance(Duration::from_secs(60)).await;
    assert_eq!(picked(&endpoints), [B, A], "time alone heals nothing");
    endpoints.mark_healthy(&of(&endpoints, A));
    assert_eq!(picked(&endpoints), [A, B]);
}

#[tokio::test]
async fn when_all_are_ill_all_are_tried_and_none_is_passed_over() {
    let endpoints = endpoints([A, B]);
    endpoints.mark_healthy(&of(&endpoints, B));
    endpoints.mark_unhealthy(&of(&endpoints, A), "refused".into());
    assert!(of(&endpoints, A).is_ejected(), "B is well");
    endpoints.mark_unhealthy(&of(&endpoints, B), "refused".into());
    assert_eq!(endpoints.pick().len(), 2);
    assert!(!of(&endpoints, A).is_ejected());
    assert!(!of(&endpoints, B).is_ejected());
}

#[tokio::test]
async fn keeps_the_last_good_addresses_when_a_lookup_fails() {
    let mut endpoints = endpoints([A, B]);
    endpoints.host = "name.invalid".into();
    endpoints.resolve().await.unwrap_err();
    assert_eq!(picked(&endpoints), [A, B]);
}

#[tokio::test]
async fn what_is_known_of_an_address_outlives_a_change_of_the_others() {
    let endpoints = endpoints([A, B]);
    let _held = of(&endpoints, B).count();
    endpoints.mark_unhealthy(&of(&endpoints, B), "refused".into());
    endpoints.publish(&[B, C].map(|host| UpstreamAddr(address(host))));
    let health = endpoints.health();
    assert_eq!(
        health.iter().map(|one| one.state).collect::<Vec<_>>(),
        [Health::Unhealthy, Health::Unknown]
    );
    assert_eq!(health[0].leases, 1);
}

#[tokio::test]
async fn a_single_endpoint_is_probed_only_until_it_is_known_to_be_well() {
    let single = endpoints([A]);
    assert_eq!(single.probe_targets().len(), 1);
    single.mark_healthy(&of(&single, A));
    assert!(single.probe_targets().is_empty());
    let two = endpoints([A, B]);
    two.mark_healthy(&of(&two, A));
    two.mark_healthy(&of(&two, B));
    assert_eq!(two.probe_targets().len(), 2);
}

#[tokio::test]
async fn an_address_literal_needs_no_lookup() {
    let endpoints = Endpoints::new("::1", 6443);
    let health = endpoints.health();
    assert_eq!(
        health[0].address,
        UpstreamAddr("[::1]:6443".parse().unwrap())
    );
    endpoints.resolve().await.unwrap();
}

/// Workers find out on threads of their own; the last word must be about how all of them are in the end.
#[test]
fn two_that_fall_ill_at_once_are_not_passed_over_for_each_other() {
    for round in 0..3_000 {
        let endpoints = endpoints([A, B]);
        let both = [A, B].map(|host| of(&endpoints, host));
        both.iter()
            .for_each(|endpoint| endpoints.mark_healthy(endpoint));
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            for endpoint in &both {
                threads.spawn(|| {
                    start.wait();
                    endpoints.mark_unhealthy(endpoint, "refused".into());
                });
            }
        });
        let ejected = both.each_ref().map(|one| one.is_ejected());
        assert_eq!(ejected, [false, false], "round {round}");
    }
}

/// A probe that fails does so while nobody waits for the next round.
#[tokio::test(start_paused = true)]
async fn one_that_was_ill_for_a_moment_is_looked_at_soon_and_then_taken_back() {
    const INTERVAL: Duration = Duration::from_secs(600);
    for _ in 0..50 {
        let endpoints = endpoints([A, B]);
        let a = of(&endpoints, A);
        let probe_requests = endpoints.probe_requests();
        let began = Instant::now();
        endpoints.mark_unhealthy(&a, "no answer".into());
        endpoints.next_round(probe_requests, INTERVAL).await;
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        endpoints.mark_healthy(&a);
        assert_eq!(a.state(), Health::Healthy, "after {:?}", began.elapsed());
    }
}
