//! Proofs about leases and the idle pool that need no apiserver.

use std::{net::SocketAddr, time::Duration};

use arc_swap::ArcSwap;
use http::{Request, StatusCode, Version};
use standin::{pki::Ca, upstream::Upstream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::{advance, pause, timeout},
};

use super::*;
use crate::{
    config::Settings,
    drain::Drain,
    hosts::UpstreamAddr,
    metrics::{ClusterLabels, Counters},
    upstream::{
        ClientTls, Endpoints, SpareSockets, context::IdlePool, endpoint::Endpoint, h1::H1Connection,
    },
};

fn endpoint() -> Arc<Endpoint> {
    let address = SocketAddr::from(([127, 0, 0, 1], 6443));
    Arc::new(Endpoint::new(UpstreamAddr(address)))
}

fn sockets() -> Arc<ClientSockets> {
    ClientSockets::new(Arc::new(SpareSockets::new(usize::MAX)))
}

fn table(idle: Arc<IdlePool>) -> Arc<LeaseTable> {
    LeaseTable::new(idle, sockets(), 1)
}

fn idle_pool(capacity: usize, drain: Drain) -> IdlePool {
    let mut settings = Settings::default();
    settings.limits.idle_upstream_connections = capacity;
    settings.timeouts.upstream_idle = MAX_AGE;
    IdlePool::new(Arc::new(ArcSwap::from_pointee(settings)), drain)
}

const MAX_AGE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn http1_connection_idle_too_long_is_not_reused() {
    pause();
    for (idle, used_again) in [(MAX_AGE - Duration::from_millis(1), true), (MAX_AGE, false)] {
        let drain = Drain::new();
        let table = table(Arc::new(idle_pool(1, drain.clone())));
        let (near, _far) = duplex(1024);
        let endpoint = endpoint();
        let connection = H1Connection::new(Box::new(near), endpoint);
        table.give_back(1, connection);
        advance(idle).await;
        let found = table.find(1, false, None);
        let found = matches!(found, Lookup::Found(Leased::H1(_)));
        assert_eq!(found, used_again, "after {idle:?}");
    }
}

#[tokio::test]
async fn idle_pool_keeps_no_more_than_its_limit() {
    for capacity in 0..3 {
        let drain = Drain::new();
        let idle = idle_pool(capacity, drain.clone());
        let mut ends = Vec::new();
        for _ in 0..4 {
            let (near, far) = duplex(1024);
            let endpoint = endpoint();
            let connection = H1Connection::new(Box::new(near), endpoint);
            ends.push(far);
            idle.put(1, Connection::H1(connection));
        }
        let kept = (0..4)
            .filter(|_| idle.take(1, false, &sockets()).is_some())
            .count();
        assert_eq!(kept, capacity);
    }
}

/// A task that did much without a pause gets "not ready" from tokio. If that were taken for silence, a closed
/// connection would get the next request.
#[tokio::test]
async fn closed_connections_are_found_however_many_there_are() {
    const MANY: usize = 300;
    let table = table(Arc::new(idle_pool(1, Drain::new())));
    for _ in 0..MANY {
        let (near, far) = duplex(1024);
        let endpoint = endpoint();
        table.give_back(1, H1Connection::new(Box::new(near), endpoint));
        drop(far);
    }
    let found = table.find(1, false, None);
    assert!(matches!(found, Lookup::MustDialH1), "{found:?}");
}

#[tokio::test]
async fn connection_closed_by_apiserver_is_not_counted_as_age() {
    let (counters, in_use) = (Arc::new(Counters::default()), Arc::new(()));
    let idle = idle_pool(1, Drain::new());
    let (near, far) = duplex(1024);
    let endpoint = endpoint();
    let connection = H1Connection::new(Box::new(near), endpoint);
    connection
        .stats()
        .on_dial(&counters, &in_use, Arc::default());
    idle.put(1, Connection::H1(connection));
    drop(far);
    assert!(idle.take(1, false, &sockets()).is_none());
    assert_eq!(counters.leases_retired.value(LeaseEnd::Closed), 1);
    assert_eq!(counters.leases_retired.value(LeaseEnd::Age), 0);
}

/// The response to the abandoned request would be taken for the response to the next one.
#[tokio::test]
async fn reused_connection_is_closed_when_its_request_is_abandoned() {
    const COMPLETE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const HALF: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx";
    for second in [b"".as_slice(), HALF] {
        let drain = Drain::new();
        let table = table(Arc::new(idle_pool(1, drain.clone())));
        let (near, mut far) = duplex(1024);
        let connection = Connection::H1(H1Connection::new(Box::new(near), endpoint()));
        let mut found = table.add(1, connection, false);
        for response in [COMPLETE, second] {
            let Some(Leased::H1(connection)) = found.take() else {
                panic!("no connection for {response:?}");
            };
            let (head, ()) = Request::get("https://kube.test/")
                .body(())
                .unwrap()
                .into_parts();
            let exchange = h1::exchange(connection, head, RequestBody::empty(), &drain);
            let (received, ()) = tokio::join!(timeout(SOON, exchange), async {
                assert!(far.read(&mut [0; 1024]).await.unwrap() > 0);
                far.write_all(response).await.unwrap();
            });
            assert_eq!(received.is_ok(), !response.is_empty());
            drop(received);
            if let Lookup::Found(leased) = table.find(1, false, None) {
                found = Some(leased);
            }
        }
        assert!(found.is_none(), "{second:?}");
    }
}

const SOON: Duration = Duration::from_millis(50);

/// Each lease that may move is one that another client does not move.
#[tokio::test]
async fn request_that_cannot_move_its_lease_uses_up_no_move() {
    let (ca, name) = (Ca::new("cluster"), "kubernetes.default.svc");
    let upstream = Upstream::builder(ca.server(&[name])).start().await;
    let tls = ClientTls::new(Arc::new(ca.roots()), name.try_into().unwrap()).unwrap();
    let label = ClusterLabels::default().label("test");
    let endpoints = Arc::new(Endpoints::resolved(&[upstream.address()]));
    let cluster = Cluster::new(label, String::new(), Arc::clone(&endpoints), tls);
    let context = UpstreamContext::new(Arc::default(), Drain::new());
    let leases = ClientLeases::new(Arc::new(context));
    let get = async || {
        let request = Request::get(format!("https://{name}/")).version(Version::HTTP_2);
        let (head, ()) = request.body(()).unwrap().into_parts();
        let request = UpstreamRequest::from_client(&cluster, head);
        let response = leases.send(request, RequestBody::empty()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    };
    get().await;
    let endpoint = &endpoints.all()[0];
    endpoint.set_surplus(1);
    let other_dial = leases.dialling.lock().await;
    get().await;
    assert!(endpoint.has_surplus(), "it did not move");
    drop(other_dial);
    get().await;
    assert!(!endpoint.has_surplus(), "it has moved");
}
