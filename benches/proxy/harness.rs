//! An apiserver and a proxy for one bench, and the loop that times it.

use std::{future::pending, net::SocketAddr, num::NonZeroUsize, time::Duration};

use criterion::{BenchmarkGroup, measurement::WallTime};
use kube_tls_proxy::{
    app::App,
    config::{
        Capacity, CertificateSource, ClusterConfig, Config, IdentityFiles, Limits, LogConfig,
        LogFormat, LoggedUser, RequestHost, Timeouts, TrustSource,
    },
};
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use standin::{TempDir, pki::Ca, upstream::Upstream, within};
use tokio::{
    runtime::{Builder, Runtime},
    time::Instant,
};

use crate::{apiserver, client::Client};

/// The public name of the proxy.
pub(crate) const HOST: &str = "kube.test";
const APISERVER: &str = "kubernetes.default.svc";

/// An apiserver, and a proxy in front of it on a separate worker thread.
pub(crate) struct World {
    runtime: Runtime,
    address: SocketAddr,
    public: Ca,
    pub(crate) upstream: Upstream,
    pub(crate) apiserver: apiserver::State,
    _files: TempDir,
}

impl World {
    /// Starts both. Client and apiserver share one thread; the proxy has another.
    pub(crate) fn start() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (public, cluster, files) = (Ca::new("public"), Ca::new("cluster"), TempDir::new());
        let (upstream, apiserver) =
            runtime.block_on(apiserver::start(cluster.server(&[APISERVER])));
        let (certificate, key) = public.server(&[HOST]).write(&files, "public");
        let ca = files.write("ca.crt", cluster.pem());
        let identities = vec![IdentityFiles { certificate, key }.into()];
        let config = config(upstream.address(), identities, TrustSource::File(ca));
        let app = App::bind(Box::new(move || Ok(config.clone()))).expect("a valid configuration");
        let address = *app.bound().load().first().expect("one address is bound");
        runtime.spawn(app.run(pending()));
        Self {
            runtime,
            address,
            public,
            upstream,
            apiserver,
            _files: files,
        }
    }

    /// A client with this kind of session resumption.
    pub(crate) fn client(&self, resumption: Resumption) -> Client {
        Client::new(self.address, &self.public, resumption)
    }

    /// Runs the setup of a bench.
    pub(crate) fn prepare<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(within("the setup of a bench", what))
    }

    /// Times `turn`. `turn` must panic on every fault, because the figure of a failing bench looks like a good one.
    pub(crate) fn time(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        mut turn: impl AsyncFnMut(),
    ) {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|turns| {
                self.runtime.block_on(async {
                    let begun = Instant::now();
                    for _ in 0..turns {
                        within("one turn of a bench", turn()).await;
                    }
                    begun.elapsed()
                })
            });
        });
    }
}

fn config(upstream: SocketAddr, identities: Vec<CertificateSource>, trust: TrustSource) -> Config {
    Config {
        sources: Vec::new(),
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()],
        trusted_proxies: kube_tls_proxy::cidr::AddressList::default(),
        reuse_port: false,
        workers: NonZeroUsize::MIN,
        identities,
        clusters: vec![ClusterConfig {
            name: "bench".into(),
            hosts: Vec::new(),
            upstream_host: upstream.ip().to_string(),
            upstream_port: upstream.port(),
            url_place: String::new(),
            addresses: Vec::new(),
            discovery: None,
            path_prefix: String::new(),
            expected_name: ServerName::try_from(APISERVER).expect("a DNS name"),
            request_host: RequestHost::Client,
            client_certificates: None,
            file: None,
            public_prefix: None,
            passthrough: false,
            trust,
            access: Vec::new(),
            outbound: None,
            publish: None,
        }],
        directory: None,
        limits: Limits::default(),
        capacity: Capacity::default(),
        timeouts: Timeouts {
            // A reload would change the result of a bench that takes ten seconds.
            reload: Duration::from_secs(3600),
            ..Timeouts::default()
        },
        log: LogConfig {
            format: LogFormat::Json,
            filter: "info".into(),
            access: false,
            user: LoggedUser::Off,
        },
        warnings: Vec::new(),
        admin: None,
        hints: true,
    }
}
