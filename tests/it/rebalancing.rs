//! Leases move to an apiserver that was restarted: its share comes back, and no client notices.

use std::{net::SocketAddr, time::Duration};

use http::{Request, Response};
use kube_tls_proxy::upstream::Health;
use standin::{
    client::{Http1, Http2, TlsConnection},
    tcp::{Relay, refused},
    upstream::{RequestBody, ResponseBody, Upstream},
    within,
};

use crate::{
    admin::scrape,
    proxy::{HOST, Proxy, World, data, watch_or_ok},
    upgrades::{SPDY, echo},
};

const HTTP2_CLIENTS: usize = 16;
const HTTP1_CLIENTS: usize = 8;
const WATCH: &str = "https://kube.test/watch";

/// Three apiservers. The last one can be stopped and started again.
struct Apiservers {
    upstreams: [Upstream; 3],
    last: Relay,
}

impl Apiservers {
    async fn start(world: &World) -> Self {
        let start = || world.apiserver().http(serve).start();
        let upstreams = [start().await, start().await, start().await];
        let last = Relay::start(upstreams[2].address()).await;
        Self { upstreams, last }
    }

    fn addresses(&self) -> [SocketAddr; 3] {
        let [one, other, _] = self.upstreams.each_ref().map(Upstream::address);
        [one, other, self.last.address()]
    }

    async fn stop_last(&self, proxy: &Proxy) {
        self.last.retarget(refused().await);
        self.last.reset_all();
        let address = self.last.address();
        proxy.wait_for_health(address, Health::Unhealthy).await;
    }

    async fn start_last(&self, proxy: &Proxy) {
        self.last.retarget(self.upstreams[2].address());
        let address = self.last.address();
        proxy.wait_for_health(address, Health::Healthy).await;
    }

    /// How many requests with this target each apiserver has received.
    fn received(&self, target: &str) -> [usize; 3] {
        self.upstreams.each_ref().map(|upstream| {
            let requests = upstream.requests();
            requests.iter().filter(|one| one.target == target).count()
        })
    }
}

async fn serve(request: Request<RequestBody>) -> Response<ResponseBody> {
    if request.headers().contains_key("upgrade") {
        return echo(request).await;
    }
    watch_or_ok(request).await
}

struct Clients {
    http2: Vec<Http2>,
    http1: Vec<Http1<TlsConnection>>,
}

impl Clients {
    async fn connect(proxy: &Proxy) -> Self {
        let (mut http2, mut http1) = (Vec::new(), Vec::new());
        for _ in 0..HTTP2_CLIENTS {
            http2.push(proxy.client().http2().await);
        }
        for _ in 0..HTTP1_CLIENTS {
            http1.push(proxy.client().http1().await);
        }
        Self { http2, http1 }
    }

    /// Each client sends one request.
    async fn get(&mut self, path: &str) {
        for client in &self.http2 {
            let url = format!("https://{HOST}{path}");
            assert_eq!(client.get(&url).await.unwrap().status, 200);
        }
        for client in &mut self.http1 {
            assert_eq!(client.get(HOST, path, "").await.status, 200);
        }
    }
}

#[tokio::test]
async fn restarted_apiserver_gets_its_share_back() {
    let world = World::new();
    let apiservers = Apiservers::start(&world).await;
    let addresses = apiservers.addresses();
    let proxy = world.proxy(addresses[0]).workers(2).admin();
    let proxy = proxy
        .cluster(|cluster| cluster.addresses = addresses.to_vec())
        .timeouts(|timeouts| {
            // Leases move after twelve of them.
            timeouts.probe_interval = Duration::from_millis(50);
            timeouts.probe_timeout = Duration::from_secs(2);
        })
        .start();
    for address in addresses {
        proxy.wait_for_health(address, Health::Healthy).await;
    }
    let mut clients = Clients::connect(&proxy).await;
    clients.get("/before").await;
    assert_eq!(apiservers.received("/before"), [8, 8, 8]);

    apiservers.stop_last(&proxy).await;
    clients.get("/during").await;
    let [one, other, last] = apiservers.received("/during");
    assert_eq!((one + other, last), (24, 0));
    let mut watches = Vec::new();
    for client in &clients.http2 {
        let mut watch = client.open(WATCH).await.unwrap();
        assert_eq!(data(&mut watch).await.unwrap(), "first");
        watches.push(watch);
    }
    let mut tunnel = proxy.client().http1().await;
    tunnel.send(SPDY).await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);

    apiservers.start_last(&proxy).await;
    let mut rounds = 0;
    let balanced = async {
        loop {
            rounds += 1;
            let path = format!("/after/{rounds}");
            clients.get(&path).await;
            let received = apiservers.received(&path);
            assert_eq!(received.iter().sum::<usize>(), 24);
            if received[2] >= 6 {
                return received;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let shares = within("the share of the restarted apiserver", balanced).await;
    assert!(
        shares.iter().all(|share| (6..=10).contains(share)),
        "{shares:?}"
    );
    // Nothing moves on and on: each lease stays where it is now.
    for path in ["/late/1", "/late/2"] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        clients.get(path).await;
        assert_eq!(apiservers.received(path), shares);
    }
    // Streams on connections that take no new request go on.
    let open = apiservers
        .upstreams
        .each_ref()
        .map(Upstream::open_responses);
    assert_eq!((open[0] + open[1], open[2]), (HTTP2_CLIENTS, 0), "{open:?}");
    for connection in apiservers.upstreams[..2]
        .iter()
        .flat_map(Upstream::connections)
    {
        assert_eq!(connection.resets(), []);
    }
    tunnel.send("ping").await;
    assert_eq!(tunnel.take(4).await.unwrap(), "ping");
    // A connection counts when its streams have ended.
    drop((watches, clients));
    let counted = async {
        let series = "leases_retired_total{reason=\"balance\"}";
        while scrape(proxy.admin()).await.get(series) < shares[2] as f64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the count of leases that have moved", counted).await;
}
