//! A year of operation in a minute: the binary runs under steady load while certificates, CAs and processes are
//! replaced, files are broken and apiservers fail. The tests count what clients notice; it must be nothing.
//!
//! The default run is short, so that it can run with every change. `SOAK=full cargo test --release --test soak`
//! uses the numbers of the acceptance test: 300 requests per second, 20 certificates, 5 CAs, 3 rolling restarts.
//! It fails if the machine does not reach them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    reason = "this crate is all tests, also outside a #[test]; a test has no Drain"
)]

mod apiserver;
mod balancer;
mod endpoints;
mod instance;
mod load;
mod watches;

use std::time::{Duration, Instant};

use standin::{TempDir, pki::Ca};
use tokio::sync::Mutex;

use apiserver::Apiserver;
use balancer::Balancer;
use instance::Instance;
use load::{Load, Shape};

/// The public name in the proxy's certificate.
const HOST: &str = "kube.test";
/// The name in the apiserver's certificate.
const APISERVER: &str = "kubernetes.default.svc";

/// Each test needs the whole machine.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The size of a run.
struct Size {
    shape: Shape,
    /// Whether the test fails if the machine does not reach the rate.
    is_full: bool,
    certificates: usize,
    cas: usize,
    broken: usize,
    restarts: usize,
    /// The interval at which the proxies read their files.
    reload: &'static str,
}

fn size() -> Size {
    if std::env::var_os("SOAK").is_some_and(|size| size == "full") {
        return Size {
            shape: Shape {
                requests_per_second: 300,
                watches: 100,
                tunnels: 20,
            },
            is_full: true,
            certificates: 20,
            cas: 5,
            broken: 5,
            restarts: 3,
            reload: "10s",
        };
    }
    Size {
        shape: Shape {
            requests_per_second: 40,
            watches: 30,
            tunnels: 6,
        },
        is_full: false,
        certificates: 3,
        cas: 1,
        broken: 2,
        restarts: 1,
        reload: "1s",
    }
}

/// The CAs and files that all instances of a test share.
struct World {
    public_ca: Ca,
    dir: TempDir,
    reload: &'static str,
}

impl World {
    fn new(cluster_ca: &Ca, reload: &'static str) -> Self {
        let world = Self {
            public_ca: Ca::new("public"),
            dir: TempDir::new(),
            reload,
        };
        world.new_certificate();
        world.dir.write("ca.crt", cluster_ca.pem());
        world
    }

    /// Replaces the certificate and returns the new leaf.
    fn new_certificate(&self) -> Vec<u8> {
        let identity = self.public_ca.server(&[HOST, "127.0.0.1"]);
        identity.write(&self.dir, "tls");
        identity.chain[0].to_vec()
    }
}

/// Waits until every instance presents this certificate. Returns how long that took.
async fn wait_for_certificate(instances: &[Instance], leaf: &[u8]) -> Duration {
    let began = Instant::now();
    for instance in instances {
        while instance.presents().await != leaf {
            let waited = began.elapsed();
            assert!(
                waited < Duration::from_secs(15),
                "an instance does not present the new certificate after 15 s"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    began.elapsed()
}

/// The number of lists and the number of resumed watches. Waits for the watches whose process has just ended.
async fn count_resumed(apiserver: &Apiserver, watches: usize) -> (usize, usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (lists, requested) = apiserver.requested();
        if requested >= 2 * watches || Instant::now() > deadline {
            return (lists, requested - watches);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Replaces certificates, CAs and whole processes, and breaks files. No client may notice it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_client_notices_rotations_broken_files_and_restarts() {
    let _alone = ALONE.lock().await;
    let size = size();
    let mut ca = Ca::new("cluster");
    let world = World::new(&ca, size.reload);
    let apiserver = Apiserver::start(ca.server(&[APISERVER])).await;
    let mut instances = vec![
        Instance::start(&world, &[apiserver.address()]).await,
        Instance::start(&world, &[apiserver.address()]).await,
    ];
    let balancer = Balancer::start(instances.iter().map(Instance::address)).await;
    let load = Load::start(&world, balancer.address(), &apiserver, size.shape);

    let mut slowest = Duration::ZERO;
    for _ in 0..size.certificates {
        let leaf = world.new_certificate();
        slowest = slowest.max(wait_for_certificate(&instances, &leaf).await);
    }
    for number in 0..size.cas {
        let new = Ca::new(&format!("cluster {number}"));
        // As an operator does it: first both CAs, then the new certificate of the apiserver, then only the new CA.
        for (cas, present) in [(ca.pem() + &new.pem(), true), (new.pem(), false)] {
            let seen: Vec<_> = instances
                .iter()
                .map(|one| one.count("certificates reloaded"))
                .collect();
            world.dir.write("ca.crt", cas);
            for (instance, seen) in instances.iter().zip(seen) {
                instance.wait_for("certificates reloaded", seen + 1).await;
            }
            if present {
                apiserver.present(&new.server(&[APISERVER]));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        ca = new;
    }
    for _ in 0..size.broken {
        let good = std::fs::read(world.dir.path().join("tls.key")).unwrap();
        let leaf = instances[0].presents().await;
        let seen: Vec<_> = instances
            .iter()
            .map(|one| one.count("reload failed"))
            .collect();
        world.dir.write("tls.key", "broken");
        for (instance, seen) in instances.iter().zip(seen) {
            instance.wait_for("reload failed", seen + 1).await;
            assert_eq!(
                instance.presents().await,
                leaf,
                "the proxy keeps the old certificate when the key file is broken"
            );
            // The alert KubeTlsProxyReloadFailed uses this gauge.
            instance.wait_for_gauge("last_reload_successful", "0").await;
        }
        world.dir.write("tls.key", good);
        for instance in &instances {
            let seen = instance.count("reload failed");
            instance.wait_for("reload works again", seen).await;
            instance.wait_for_gauge("last_reload_successful", "1").await;
        }
    }
    let mut exits = Vec::new();
    for _ in 0..size.restarts * instances.len() {
        let new = Instance::start(&world, &[apiserver.address()]).await;
        balancer.add(new.address());
        let old = instances.remove(0);
        instances.push(new);
        old.terminate().await;
        // A load balancer notices the drain within the delay.
        tokio::time::sleep(instance::DELAY / 2).await;
        balancer.remove(old.address());
        exits.push(old.exit().await);
    }
    let rate = load.tally().rate();
    apiserver.stop_changes();
    let reflectors = load.reflectors().count();
    load.reflectors().compare(&apiserver, load.tally()).await;
    let (lists, resumed) = count_resumed(&apiserver, size.shape.watches).await;
    let tally = load.finish().await;
    println!(
        "{rate}\n{tally}\n{reflectors} reflectors, whose stores match the apiserver, listed {lists} times; \
         {resumed} watches resumed\nslowest certificate reload {slowest:?}; exits after {exits:?}"
    );
    tally.assert_clean();
    assert_eq!(lists, reflectors, "each reflector lists once");
    assert!(
        resumed >= size.shape.watches,
        "each watch is resumed at least once after the restarts: {resumed}"
    );
    if size.is_full {
        rate.assert_reached();
    }
}

/// A process ends under load: no request fails, every watch ends at a line end, and the process ends in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_fails_no_request() {
    let _alone = ALONE.lock().await;
    let size = size();
    let ca = Ca::new("cluster");
    let world = World::new(&ca, size.reload);
    let apiserver = Apiserver::start(ca.server(&[APISERVER])).await;
    let instances = [
        Instance::start(&world, &[apiserver.address()]).await,
        Instance::start(&world, &[apiserver.address()]).await,
    ];
    let balancer = Balancer::start(instances.iter().map(Instance::address)).await;
    let load = Load::start(&world, balancer.address(), &apiserver, size.shape);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let [old, _stays] = instances;
    let connections = balancer.open(old.address());
    old.terminate().await;
    tokio::time::sleep(instance::DELAY / 2).await;
    balancer.remove(old.address());
    let stopped = old.stopped_line();
    let took = old.exit().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rate = load.tally().rate();
    let tally = load.finish().await;
    println!("{rate}\n{tally}\nexit after {took:?} with {connections} connections");
    let stopped = stopped.await;
    tally.assert_clean();
    assert!(connections > 0, "the process had no connections");
    assert!(stopped.contains("connections_closed=0"), "{stopped}");
    assert!(stopped.contains("tunnels_closed=0"), "{stopped}");
    assert!(took <= instance::DELAY + instance::DRAIN_TUNNELS + Duration::from_secs(1));
    if size.is_full {
        rate.assert_reached();
    }
}
