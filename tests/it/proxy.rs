//! The setup of a test: a cluster CA, a public CA, and a proxy.

use std::{future::pending, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::RecvStream;
use http::{Request, Response};
use kube_tls_proxy::{
    app::{App, BoundAddresses, FastStop},
    cidr::AddressList,
    config::{
        Capacity, ClusterConfig, Config, IdentityFiles, Limits, LogConfig, LogFormat, LoggedUser,
        PeerPolicy, RequestHost, Timeouts, TrustSource,
    },
    drain::Phase,
    heartbeat::{Heartbeat, Heartbeats},
    reload::{ConfigLoader, ReloadReport},
    upstream::{EndpointHealth, Health},
};
use rustls_pki_types::ServerName;
use standin::{
    TempDir,
    client::{Client, TlsConnection},
    frames::FrameConnection,
    pki::{Ca, Identity},
    upstream::{Builder, RequestBody, ResponseBody, Upstream, channel, full},
    within,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
};

/// The public name that the proxy's certificate carries.
pub(crate) const HOST: &str = "kube.test";
/// The name that the apiserver's certificate carries.
pub(crate) const APISERVER: &str = "kubernetes.default.svc";

/// The two CAs of a test and the files of its proxy.
pub(crate) struct World {
    pub(crate) public_ca: Ca,
    pub(crate) cluster_ca: Ca,
    pub(crate) dir: TempDir,
}

/// A proxy that is about to start.
pub(crate) struct Setup<'a> {
    world: &'a World,
    pub(crate) config: Config,
}

/// A running proxy; drop stops it.
pub(crate) struct Proxy {
    address: SocketAddr,
    bound: BoundAddresses,
    admin: Option<SocketAddr>,
    client: Client,
    reload_now: Arc<Notify>,
    stop: FastStop,
    heartbeats: Heartbeats,
    phase: watch::Receiver<Phase>,
    report: watch::Receiver<ReloadReport>,
    shutdown: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            public_ca: Ca::new("public"),
            cluster_ca: Ca::new("cluster"),
            dir: TempDir::new(),
        }
    }

    /// A world with an apiserver that responds 200 to everything, and a proxy in front of it with all defaults.
    pub(crate) async fn with_proxy() -> (Self, Upstream, Proxy) {
        let world = Self::new();
        let upstream = world.apiserver().start().await;
        let proxy = world.proxy(upstream.address()).start();
        (world, upstream, proxy)
    }

    /// An apiserver with a valid certificate.
    pub(crate) fn apiserver(&self) -> Builder {
        Upstream::builder(self.cluster_ca.server(&[APISERVER, "127.0.0.1"]))
    }

    /// A proxy in front of `upstream`. Every setting has its default, except for a short drain without delay
    /// and no probes.
    pub(crate) fn proxy(&self, upstream: SocketAddr) -> Setup<'_> {
        self.proxy_as(upstream, &self.public_ca.server(&[HOST, "127.0.0.1"]))
    }

    /// As [`World::proxy`], with this certificate.
    pub(crate) fn proxy_as(&self, upstream: SocketAddr, identity: &Identity) -> Setup<'_> {
        let (certificate, key) = identity.write(&self.dir, "public");
        let ca = self.dir.write("cluster-ca.crt", self.cluster_ca.pem());
        let config = Config {
            sources: Vec::new(),
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            trusted_proxies: AddressList::default(),
            reuse_port: false,
            workers: NonZeroUsize::MIN,
            identities: vec![IdentityFiles { certificate, key }.into()],
            clusters: vec![ClusterConfig {
                name: "test".into(),
                hosts: Vec::new(),
                upstream_host: upstream.ip().to_string(),
                upstream_port: upstream.port(),
                url_place: String::new(),
                addresses: Vec::new(),
                discovery: None,
                path_prefix: String::new(),
                expected_name: ServerName::try_from(APISERVER).unwrap(),
                request_host: RequestHost::Client,
                file: None,
                public_prefix: None,
                passthrough: false,
                trust: TrustSource::File(ca),
                client_certificates: None,
                access: Vec::new(),
                outbound: None,
                publish: None,
            }],
            directory: None,
            limits: Limits::default(),
            capacity: Capacity::default(),
            timeouts: Timeouts {
                drain: Duration::from_secs(2),
                drain_tunnels: Duration::from_secs(2),
                drain_delay: Duration::ZERO,
                // Probes would disturb tests that count requests.
                probe_interval: Duration::ZERO,
                ..Timeouts::default()
            },
            log: LogConfig {
                format: LogFormat::Text,
                filter: "info".into(),
                access: true,
                user: LoggedUser::Off,
            },
            warnings: Vec::new(),
            admin: None,
            hints: true,
        };
        Setup {
            world: self,
            config,
        }
    }
}

impl Setup<'_> {
    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.config.limits);
        self
    }

    pub(crate) fn timeouts(mut self, change: impl FnOnce(&mut Timeouts)) -> Self {
        change(&mut self.config.timeouts);
        self
    }

    /// Changes which peers may connect.
    pub(crate) fn peers(mut self, change: impl FnOnce(&mut PeerPolicy)) -> Self {
        change(&mut self.config.listen[0].peers);
        self
    }

    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.config.workers = NonZeroUsize::new(workers).unwrap();
        self
    }

    pub(crate) fn cluster(mut self, change: impl FnOnce(&mut ClusterConfig)) -> Self {
        change(&mut self.config.clusters[0]);
        self
    }

    /// Adds a cluster for the host name `host`. The first cluster then serves [`HOST`] only.
    pub(crate) fn second_cluster(mut self, name: &str, host: &str, upstream: SocketAddr) -> Self {
        let first = &mut self.config.clusters[0];
        first.hosts = vec![HOST.parse().unwrap()];
        let second = ClusterConfig {
            name: name.into(),
            hosts: vec![host.parse().unwrap()],
            upstream_host: upstream.ip().to_string(),
            upstream_port: upstream.port(),
            ..first.clone()
        };
        self.config.clusters.push(second);
        self
    }

    /// Gives the drain more time than any test takes.
    pub(crate) fn long_drain(self) -> Self {
        self.timeouts(|timeouts| timeouts.drain = standin::WAIT * 10)
    }

    /// Opens the admin port.
    pub(crate) fn admin(mut self) -> Self {
        self.config.admin = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        self
    }

    /// Starts the proxy on the current runtime; its workers have threads of their own.
    pub(crate) fn start(self) -> Proxy {
        let config = self.config.clone();
        self.start_from(Box::new(move || Ok(config.clone())))
    }

    /// Starts the proxy with a configuration that may change from reload to reload.
    pub(crate) fn start_from(self, source: ConfigLoader) -> Proxy {
        let app = App::bind(source).unwrap();
        let bound = app.bound();
        let address = bound.load()[0];
        let admin = app.admin_address();
        let (reload_now, stop, phase) = (app.reload_now(), app.stop(), app.phase());
        let (heartbeats, report) = (app.heartbeats(), app.reloader().report());
        let (shutdown, requested) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let requested = async {
                if requested.await.is_err() {
                    pending::<()>().await;
                }
            };
            app.run(requested).await.unwrap();
        });
        Proxy {
            address,
            bound,
            admin,
            client: Client::new(address).trust(&self.world.public_ca).sni(HOST),
            reload_now,
            stop,
            heartbeats,
            phase,
            report,
            shutdown: Some(shutdown),
            running,
        }
    }
}

impl Proxy {
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The admin port, which must be open.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.unwrap()
    }

    /// A client that trusts the public CA and asks for [`HOST`].
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// An HTTP/2 client that sends and reads single frames.
    pub(crate) async fn frame_client(&self) -> FrameConnection<TlsConnection> {
        let tls = self.client().alpn(&["h2"]).connect().await.unwrap();
        FrameConnection::client(tls, &[]).await.unwrap()
    }

    /// The addresses that it listens on now.
    pub(crate) fn bound(&self) -> Vec<SocketAddr> {
        self.bound.load().to_vec()
    }

    /// The results of its reloads.
    pub(crate) fn report(&self) -> watch::Receiver<ReloadReport> {
        self.report.clone()
    }

    /// Makes the proxy reload its files now.
    pub(crate) fn reload(&self) {
        self.reload_now.notify_one();
    }

    /// Makes the proxy reload files of which one is invalid, and waits until that has failed.
    pub(crate) async fn fail_to_reload(&self) {
        let mut report = self.report.clone();
        let before = report.borrow().failed;
        self.reload();
        let failed = report.wait_for(|report| report.failed > before);
        drop(within("the reload to fail", failed).await.unwrap());
    }

    /// The health of the endpoint at `address`.
    pub(crate) fn health(&self, address: SocketAddr) -> EndpointHealth {
        let report = self.report.borrow();
        let health = report.clusters.iter();
        let mut health = health.flat_map(|cluster| cluster.endpoints().health());
        health.find(|one| one.address.0 == address).unwrap()
    }

    /// Waits until the endpoint at `address` has this health.
    pub(crate) async fn wait_for_health(&self, address: SocketAddr, wanted: Health) {
        let reached = async {
            while self.health(address).state != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(&format!("{address} to be {wanted:?}"), reached).await;
    }

    /// Begins the drain, as SIGTERM does.
    pub(crate) fn begin_shutdown(&mut self) {
        self.shutdown.take().unwrap().send(()).unwrap();
    }

    /// Shortens the drain, as a second SIGTERM does.
    pub(crate) fn stop(&self) -> &FastStop {
        &self.stop
    }

    /// The current heartbeats of its workers.
    pub(crate) fn heartbeats(&self) -> Vec<Heartbeat> {
        self.heartbeats.now()
    }

    /// Waits until the drain is in this phase.
    pub(crate) async fn wait_for_phase(&mut self, wanted: Phase) {
        let reached = self.phase.wait_for(|phase| *phase == wanted);
        drop(within("the phase", reached).await.unwrap());
    }

    /// Waits until the proxy has stopped.
    pub(crate) async fn wait_until_stopped(self) {
        within("the end of the proxy", self.running).await.unwrap();
    }
}

/// The fields that each request for [`HOST`] over HTTP/2 has.
pub(crate) fn request_fields<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [
        (":method", method),
        (":scheme", "https"),
        (":authority", HOST),
        (":path", path),
    ]
}

/// Responds to paths that begin with `/watch` with one event, and keeps the response open until the client
/// closes it. Responds `ok` to all other requests after it has read their body.
pub(crate) async fn watch_or_ok(request: Request<RequestBody>) -> Response<ResponseBody> {
    if request.uri().path().starts_with("/watch") {
        let (events, body) = channel();
        tokio::spawn(async move {
            if events.send("first").await.is_ok() {
                events.closed().await;
            }
        });
        return Response::new(body);
    }
    // The stand-in records how the body ended.
    drop(request.into_body().read().await);
    Response::new(full("ok"))
}

/// Waits for the next data of a response body.
pub(crate) async fn data(response: &mut Response<RecvStream>) -> Result<Bytes, h2::Error> {
    let body = response.body_mut();
    let data = within("data", body.data())
        .await
        .expect("the response has not ended")?;
    body.flow_control().release_capacity(data.len())?;
    Ok(data)
}

/// Returns the sum of all numbers until no more arrive for [`QUIET`].
pub(crate) async fn sum_until_quiet(numbers: &mut mpsc::UnboundedReceiver<usize>) -> usize {
    let mut sum = 0;
    while let Ok(Some(more)) = tokio::time::timeout(QUIET, numbers.recv()).await {
        sum += more;
    }
    sum
}

/// Longer than any buffer needs to fill up.
const QUIET: Duration = Duration::from_millis(700);
