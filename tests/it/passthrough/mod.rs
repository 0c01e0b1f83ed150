//! Connections that are passed through: the apiserver gets the bytes of the client, and the client those of the
//! apiserver.

mod ends;
mod failures;
mod hello;
mod hostile;
mod log;

use std::net::SocketAddr;

use kube_tls_proxy::config::TrustSource;
use standin::{client::Client, upstream::Upstream, within};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    admin::{get, wait_for_numbers},
    balancers::list,
    proxy::{HOST, Proxy, Setup, World},
};

/// The passthrough host, which every certificate of kubeadm has.
const PASSED: &str = "kubernetes";
/// An answer to a `ClientHello`. The proxy must not mind that it is no TLS.
const ANSWER: &[u8] = b"answer of the apiserver";

/// An apiserver that shows the bytes of each connection.
struct RawApiserver(TcpListener);

impl RawApiserver {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    async fn accept(&self) -> TcpStream {
        let (stream, _) = within("a connection", self.0.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Accepts a connection, reads this `ClientHello` and answers it.
    async fn greet(&self, hello: &[u8]) -> TcpStream {
        let mut stream = self.accept().await;
        assert!(read(&mut stream, hello.len()).await == hello);
        stream.write_all(ANSWER).await.unwrap();
        stream
    }
}

/// The next bytes of a connection, this many.
async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    within("the bytes", stream.read_exact(&mut bytes))
        .await
        .unwrap();
    bytes
}

/// All bytes until the end of a connection.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within("the end", stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    bytes
}

/// A proxy that terminates [`HOST`] before `terminated`, and passes [`PASSED`] to `direct` without a CA.
fn setup<'a>(world: &'a World, terminated: SocketAddr, direct: SocketAddr) -> Setup<'a> {
    let mut setup = world
        .proxy(terminated)
        .admin()
        .second_cluster("direct", PASSED, direct);
    let cluster = &mut setup.config.clusters[1];
    (cluster.passthrough, cluster.trust) = (true, TrustSource::Clients);
    cluster.expected_name = PASSED.try_into().unwrap();
    setup
}

/// A `ClientHello` for this name.
fn hello(name: &str) -> Vec<u8> {
    Client::new(([127, 0, 0, 1], 0).into())
        .sni(name)
        .alpn(&["h2", "http/1.1"])
        .hello()
}

/// Opens a passed connection: returns the client side and the apiserver side.
async fn open(proxy: &Proxy, apiserver: &RawApiserver) -> (TcpStream, TcpStream) {
    let mut client = connect(proxy).await;
    let hello = hello(PASSED);
    client.write_all(&hello).await.unwrap();
    let server = apiserver.greet(&hello).await;
    assert_eq!(read(&mut client, ANSWER.len()).await, ANSWER);
    (client, server)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    client.set_nodelay(true).unwrap();
    client
}

/// An apiserver with a certificate of kubeadm, and a proxy that passes to it.
async fn with_kubeadm(world: &World) -> (Upstream, Upstream, Proxy) {
    let identity = world.cluster_ca.server(&[PASSED, "kubernetes.default.svc"]);
    let direct = Upstream::builder(identity).start().await;
    let terminated = world.apiserver().start().await;
    let proxy = setup(world, terminated.address(), direct.address()).start();
    (terminated, direct, proxy)
}

/// The client speaks TLS with the apiserver itself, so that a client certificate works and no header is added. The
/// other host of the same port is terminated.
#[tokio::test]
async fn both_kinds_of_hosts_are_served_on_one_port() {
    let world = World::new();
    let (terminated, direct, proxy) = with_kubeadm(&world).await;
    let client = Client::new(proxy.address()).trust(&world.cluster_ca);
    let mut http1 = client.clone().sni(PASSED).http1().await;
    assert_eq!(http1.get(PASSED, "/version", "").await.text(), "ok");
    let http2 = client.sni(PASSED).http2().await;
    let response = http2.get("https://kubernetes/version").await.unwrap();
    assert_eq!(response.text(), "ok");
    let requests = direct.requests();
    assert_eq!(requests.len(), 2);
    for request in requests {
        let added = ["x-forwarded-for", "x-request-id", "x-forwarded-host"];
        let mut names = request.headers.iter().map(|(name, _)| name.as_str());
        assert!(!names.any(|name| added.contains(&name)), "{request:?}");
    }
    let mut ours = proxy.client().http1().await;
    assert_eq!(ours.get(HOST, "/version", "").await.text(), "ok");
    assert_eq!(terminated.requests().len(), 1);
}

/// A wildcard of a terminated cluster covers a passthrough host: the exact name decides, and a request for it on a
/// connection for another name is refused, because its client must verify the apiserver itself.
#[tokio::test]
async fn exact_name_decides_between_wildcard_and_passthrough() {
    let world = World::new();
    let identity = world.public_ca.server(&["*.kube.test"]);
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let mut setup = setup(&world, terminated.address(), direct.address());
    let (certificate, key) = identity.write(&world.dir, "wildcard");
    setup.config.identities =
        vec![kube_tls_proxy::config::IdentityFiles { certificate, key }.into()];
    setup.config.clusters[0].hosts = vec!["*.kube.test".to_owned()];
    setup.config.clusters[1].hosts = vec!["direct.kube.test".to_owned()];
    let proxy = setup.start();
    let mut client = proxy.client().sni("a.kube.test").http1().await;
    let response = client.get("a.kube.test", "/version", "").await;
    assert_eq!(response.status, 200);
    let mut client = proxy.client().sni("a.kube.test").http1().await;
    let response = client.get("direct.kube.test", "/api/v1/pods", "").await;
    assert_eq!(response.status, 421);
    assert_eq!(terminated.requests().len(), 1);
    let bytes = hello("direct.kube.test");
    let mut client = connect(&proxy).await;
    client.write_all(&bytes).await.unwrap();
    direct.greet(&bytes).await;
}

/// The other way round: a passthrough wildcard, and a terminated name below it.
#[tokio::test]
async fn terminated_name_below_passthrough_wildcard_stays_ours() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let mut setup = setup(&world, terminated.address(), direct.address());
    setup.config.clusters[1].hosts = vec!["*.test".to_owned()];
    let proxy = setup.start();
    let mut ours = proxy.client().http1().await;
    assert_eq!(ours.get(HOST, "/version", "").await.text(), "ok");
    let bytes = hello("other.test");
    let mut client = connect(&proxy).await;
    client.write_all(&bytes).await.unwrap();
    direct.greet(&bytes).await;
}

/// What an operator sees of a passed connection: the metrics while it is open and after it.
#[tokio::test]
async fn passed_connection_is_counted_as_a_tunnel() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let (mut client, mut server) = open(&proxy, &direct).await;
    let admin = proxy.admin();
    let while_open = [
        ("handshakes_total{result=\"passed\"}", 1.0),
        ("connections_total{protocol=\"passthrough\"}", 1.0),
        ("connections", 1.0),
        ("tunnels{cluster=\"direct\"}", 1.0),
        ("requests_in_flight{cluster=\"direct\"}", 0.0),
        (
            "upstream_dials_total{cluster=\"direct\",result=\"ok\"}",
            1.0,
        ),
    ];
    wait_for_numbers(admin, &while_open).await;
    let status = get(admin, "/status.json").await.text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let passed = [0, 1].map(|at| status["clusters"][at]["passthrough"].as_bool());
    assert_eq!(passed, [Some(false), Some(true)]);
    let row = &status["open_tunnels"][0];
    assert_eq!(row["cluster"], "direct");
    assert_eq!(row["resource"], "passthrough");
    assert_eq!(row["name"], PASSED);
    assert_eq!(row["client"], client.local_addr().unwrap().to_string());
    client.write_all(b"more").await.unwrap();
    assert_eq!(read(&mut server, 4).await, b"more");
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    drop(server);
    assert_eq!(rest(&mut client).await, b"");
    let up = hello(PASSED).len() as f64 + 4.0;
    let after = [
        ("connections", 0.0),
        ("tunnels{cluster=\"direct\"}", 0.0),
        (
            "tunnels_ended_total{cluster=\"direct\",end=\"complete\"}",
            1.0,
        ),
        ("received_bytes_total", up),
        ("sent_bytes_total", ANSWER.len() as f64),
    ];
    let scrape = wait_for_numbers(admin, &after).await;
    let mut names = scrape.names();
    let request = |name: &str| name.contains("requests_total{cluster=\"direct\"");
    assert!(!names.any(request), "no request was seen: {}", scrape.text);
}

/// With one terminated cluster the names in the certificates lead to it, but not a name that is listed for passthrough.
#[tokio::test]
async fn certificate_with_a_passed_name_does_not_terminate_it() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let mut setup = setup(&world, terminated.address(), direct.address());
    let identity = world.public_ca.server(&[HOST, PASSED, "127.0.0.1"]);
    let (certificate, key) = identity.write(&world.dir, "both");
    setup.config.identities =
        vec![kube_tls_proxy::config::IdentityFiles { certificate, key }.into()];
    setup.config.clusters[0].hosts = Vec::new();
    let proxy = setup.start();
    open(&proxy, &direct).await;
    let mut ours = proxy.client().http1().await;
    assert_eq!(ours.get(HOST, "/version", "").await.text(), "ok");
    assert_eq!(ours.get(PASSED, "/api/v1/pods", "").await.status, 421);
}

/// Behind a load balancer the client is the one of the PROXY header, and the apiserver gets nothing of that header.
#[tokio::test]
async fn proxy_header_comes_before_the_passed_hello() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address())
        .peers(|peers| peers.balancers = list(&["127.0.0.1"]))
        .start();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".to_vec();
    let bytes = hello(PASSED);
    let mut client = connect(&proxy).await;
    client
        .write_all(&[header, bytes.clone()].concat())
        .await
        .unwrap();
    let mut server = direct.greet(&bytes).await;
    read(&mut client, ANSWER.len()).await;
    let status = get(proxy.admin(), "/status.json").await.text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["open_tunnels"][0]["client"], "192.0.2.7:56324");
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    // Without the header the connection is refused.
    let mut client = connect(&proxy).await;
    client.write_all(&bytes).await.ok();
    let mut received = Vec::new();
    within("the end", client.read_to_end(&mut received))
        .await
        .ok();
    assert_eq!(received, b"");
    let numbers = [
        ("handshakes_total{result=\"proxy_header\"}", 1.0),
        ("handshakes_total{result=\"passed\"}", 1.0),
    ];
    wait_for_numbers(proxy.admin(), &numbers).await;
}
