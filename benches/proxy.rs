//! What a client waits for: requests, handshakes and large lists through a proxy in this process.

use std::{future::pending, hint::black_box, net::SocketAddr, num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::Response;
use kube_tls_proxy::{
    app::App,
    config::{
        ClusterConfig, Config, IdentityFiles, Limits, LogConfig, LogFormat, Timeouts, TrustSource,
    },
};
use rustls_pki_types::ServerName;
use standin::{
    TempDir,
    client::Client,
    pki::Ca,
    upstream::{Upstream, full},
};
use tokio::runtime::{Builder, Runtime};

const HOST: &str = "kube.test";
const APISERVER: &str = "kubernetes.default.svc";
const SMALL: usize = 1024;
const LARGE: usize = 10 * 1024 * 1024;

/// An apiserver, a proxy on a worker thread of its own, and a client for it.
struct Bench {
    client: Client,
    _upstream: Upstream,
    _files: TempDir,
}

impl Bench {
    fn start(runtime: &Runtime, length: usize) -> Self {
        let (public, cluster, files) = (Ca::new("public"), Ca::new("cluster"), TempDir::new());
        let content = Bytes::from(vec![b'x'; length]);
        let upstream = runtime.block_on(
            Upstream::builder(cluster.server(&[APISERVER]))
                .http(move |_| {
                    let content = content.clone();
                    async move { Response::new(full(content)) }
                })
                .start(),
        );
        let (certificate, key) = public.server(&[HOST]).write(&files, "public");
        let ca = files.write("ca.crt", cluster.pem());
        let app = App::bind(Box::new({
            let identities = vec![IdentityFiles { certificate, key }];
            let config = config(upstream.address(), identities, TrustSource::File(ca));
            move || Ok(config.clone())
        }))
        .expect("the configuration is good");
        let address = *app.addresses().first().expect("one address is bound");
        let client = Client::new(address).trust(&public).sni(HOST);
        runtime.spawn(app.run(pending()));
        Self {
            client,
            _upstream: upstream,
            _files: files,
        }
    }
}

/// One thread for client and apiserver; the proxy has its own.
fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn config(upstream: SocketAddr, identities: Vec<IdentityFiles>, trust: TrustSource) -> Config {
    Config {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        workers: NonZeroUsize::MIN,
        identities,
        clusters: vec![ClusterConfig {
            name: "bench".into(),
            hosts: Vec::new(),
            upstream_host: upstream.ip().to_string(),
            upstream_port: upstream.port(),
            path_prefix: String::new(),
            expected_name: ServerName::try_from(APISERVER).expect("a DNS name"),
            trust,
        }],
        limits: Limits::default(),
        timeouts: Timeouts::default(),
        log: LogConfig {
            format: LogFormat::Json,
            filter: "info".into(),
            access: false,
        },
    }
}

fn requests(criterion: &mut Criterion, name: &str, length: usize) {
    let runtime = runtime();
    let bench = Bench::start(&runtime, length);
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(length as u64));
    let h2 = runtime.block_on(bench.client.http2());
    group.bench_function("h2", |bencher| {
        bencher.iter(|| {
            let response = runtime.block_on(h2.get("https://kube.test/api/v1/pods"));
            black_box(response.expect("an answer"));
        });
    });
    let mut http1 = runtime.block_on(bench.client.http1());
    group.bench_function("http1", |bencher| {
        bencher.iter(|| {
            black_box(runtime.block_on(http1.get(HOST, "/api/v1/pods", "")));
        });
    });
    group.finish();
}

fn small_get(criterion: &mut Criterion) {
    requests(criterion, "small_get", SMALL);
}

fn list(criterion: &mut Criterion) {
    requests(criterion, "list", LARGE);
}

fn handshake(criterion: &mut Criterion) {
    let runtime = runtime();
    let bench = Bench::start(&runtime, SMALL);
    criterion
        .benchmark_group("handshake")
        .bench_function("h2", |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let client = bench.client.http2().await;
                    black_box(
                        client
                            .get("https://kube.test/version")
                            .await
                            .expect("an answer"),
                    );
                });
            });
        });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(5));
    targets = small_get, handshake, list
}
criterion_main!(benches);
