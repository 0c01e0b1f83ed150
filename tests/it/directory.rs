//! Clusters from a directory come and go under load, and a bad file is seen where an operator looks.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kube_tls_proxy::config::{self, Environment, ServeArgs};
use standin::{upstream::Upstream, within};

use crate::{
    admin::{get, scrape},
    binary::run,
    drain::slow_or_endless,
    proxy::{Proxy, World},
};

/// A proxy whose clusters come from a directory. All are one apiserver, which sees each under its own host.
pub(crate) struct Clusters<'a> {
    world: &'a World,
    apiserver: SocketAddr,
}

impl<'a> Clusters<'a> {
    /// With one file for each of these names.
    pub(crate) fn new(
        world: &'a World,
        upstream: &Upstream,
        names: impl IntoIterator<Item = String>,
    ) -> Self {
        let (certificate, key) =
            (world.public_ca.server(&["*.clusters.test"])).write(&world.dir, "clusters-public");
        let text = format!(
            "listen: [\"127.0.0.1:0\"]\nworkers: 1\nadmin: {{listen: \"127.0.0.1:0\"}}\n\
             certificates: [{{certificate: {}, key: {}}}]\n\
             clustersFrom: {{directory: clusters, hostTemplate: \"{{name}}.clusters.test\"}}\n\
             timeouts: {{probeInterval: 0s, reload: 1h, drain: 1s, drainDelay: 0s, drainTunnels: 1s}}\n",
            certificate.display(),
            key.display()
        );
        world.dir.write("proxy.yaml", text);
        world.dir.write("cluster-ca.crt", world.cluster_ca.pem());
        fs::create_dir(world.dir.path().join("clusters")).unwrap();
        let clusters = Self {
            world,
            apiserver: upstream.address(),
        };
        for name in names {
            clusters.write(&name);
        }
        clusters
    }

    pub(crate) fn write(&self, name: &str) {
        let text = format!(
            "current-context: a\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: u, user: {{token: token-of-the-kubeconfig}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"https://{}\", certificate-authority: ../cluster-ca.crt}}}}]\n",
            self.apiserver
        );
        self.write_text(name, &text);
    }

    fn write_text(&self, name: &str, text: &str) {
        self.world.dir.write(&format!("clusters/{name}.yaml"), text);
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.world.dir.path().join("proxy.yaml")
    }

    fn remove(&self, name: &str) {
        let file = format!("clusters/{name}.yaml");
        fs::remove_file(self.world.dir.path().join(file)).unwrap();
    }

    fn start(&self) -> Proxy {
        let args = ServeArgs {
            config: Some(self.config()),
            ..ServeArgs::default()
        };
        let source = Box::new(move || config::load(&args, &Environment::from_process()));
        self.world.proxy(self.apiserver).start_from(source)
    }
}

fn host(name: &str) -> String {
    format!("{name}.clusters.test")
}

/// The status of a request on a new connection.
async fn status(proxy: &Proxy, name: &str) -> u16 {
    let host = host(name);
    let mut client = proxy.client().sni(&host).http1().await;
    client.get(&host, "/healthz", "").await.status
}

async fn wait_for_status(proxy: &Proxy, name: &str, wanted: u16) {
    let reached = async { while status(proxy, name).await != wanted {} };
    within(&format!("{wanted} of {name}"), reached).await;
}

#[tokio::test]
async fn clusters_come_and_go_without_a_failed_request() {
    let world = World::new();
    let upstream = world.apiserver().http(slow_or_endless).start().await;
    let name = |number: usize| format!("c{number:03}");
    let clusters = Clusters::new(&world, &upstream, (0..200).map(name));
    let proxy = clusters.start();
    let (stop, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let mut load = Vec::new();
    let mut watches = Vec::new();
    for number in 0..10 {
        // Those that stay are 50 to 199.
        let host = host(&name(50 + number * 15));
        let client = proxy.client().sni(&host).http2().await;
        let watch = client
            .open(&format!("https://{host}/endless"))
            .await
            .unwrap();
        watches.push(watch.into_body());
        let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
        load.push(tokio::spawn(async move {
            let url = format!("https://{host}/version");
            while !stop.load(Ordering::Relaxed) {
                let response = client.get(&url).await.unwrap();
                assert_eq!(response.status, 200, "{host}");
                served.fetch_add(1, Ordering::Relaxed);
            }
            client
        }));
    }
    for round in 0..5 {
        let before = served.load(Ordering::Relaxed);
        for number in round * 10..(round + 1) * 10 {
            clusters.remove(&name(number));
            clusters.write(&name(200 + number));
        }
        proxy.reload();
        wait_for_status(&proxy, &name(209 + round * 10), 200).await;
        assert_eq!(status(&proxy, &name(round * 10)).await, 421);
        assert!(served.load(Ordering::Relaxed) > before, "there is a load");
    }
    stop.store(true, Ordering::Relaxed);
    let mut clients = Vec::new();
    for load in load {
        clients.push(within("the load", load).await.unwrap());
    }
    assert_eq!(upstream.open_responses(), 10, "every watch is still open");
    for number in [0, 25, 49] {
        assert_eq!(status(&proxy, &name(number)).await, 421, "removed");
    }
    for number in [50, 199, 200, 249] {
        assert_eq!(status(&proxy, &name(number)).await, 200);
        let last = upstream.requests().pop().unwrap();
        assert_eq!(last.header("host"), Some(&*host(&name(number))));
    }
    let requests = upstream.requests();
    let sent = requests
        .iter()
        .any(|one| one.header("authorization").is_some());
    assert!(!sent, "the users of the kubeconfigs are not used");
}

#[tokio::test]
async fn metrics_of_removed_cluster_keep_only_its_counters() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let clusters = Clusters::new(&world, &upstream, ["a".to_owned(), "b".to_owned()]);
    let proxy = clusters.start();
    assert_eq!(status(&proxy, "b").await, 200);
    clusters.remove("b");
    proxy.reload();
    wait_for_status(&proxy, "b", 421).await;
    let scrape = scrape(proxy.admin()).await;
    let of_b = scrape.names().filter(|name| name.contains("cluster=\"b\""));
    let of_b: Vec<_> = of_b.collect();
    assert!(
        of_b.iter().any(|name| name.contains("requests_total")),
        "{of_b:?}"
    );
    let is_of_files = |name: &&&str| name.contains("endpoint_") || name.contains("ca_not_after");
    assert_eq!(of_b.iter().find(is_of_files), None);
}

#[tokio::test]
async fn bad_cluster_file_is_seen_and_stops_no_other_cluster() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let clusters = Clusters::new(&world, &upstream, ["a".to_owned(), "b".to_owned()]);
    clusters.write_text(
        "left-out",
        "users: [{name: u, user: {token: never-printed}}]\n",
    );
    let proxy = clusters.start();
    let ready = get(proxy.admin(), "/readyz?verbose").await;
    let dir = world.dir.path().display().to_string();
    let line = "[+]clusterFiles ok, but a cluster is left out: kubeconfig DIR/clusters/left-out.yaml: the file has no contexts; check the path\n";
    let text = ready.text().replace(&dir, "DIR");
    assert!(text.contains(line), "{text}");
    assert_eq!(status(&proxy, "left-out").await, 421);

    clusters.write_text("b", "[");
    clusters.write("left-out");
    proxy.reload();
    wait_for_status(&proxy, "left-out", 200).await;
    assert_eq!(status(&proxy, "b").await, 200, "its last good state");
    let ready = get(proxy.admin(), "/readyz?verbose").await.text();
    assert!(
        ready.contains("[+]clusterFiles ok, but b: the last good state stays in use: kubeconfig "),
        "{ready}"
    );
    let page = get(proxy.admin(), "/status.json").await.text();
    assert!(
        page.contains("b: the last good state stays in use"),
        "{page}"
    );
    assert_eq!(
        scrape(proxy.admin()).await.get("unusable_cluster_files"),
        1.0
    );

    let config = clusters.config();
    let check = ["check", "--offline", "--config", config.to_str().unwrap()];
    let ended = run(&check).await;
    // `serve` starts without that cluster, so the configuration is valid.
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stdout.contains("✗ cluster "), "{}", ended.stdout);
    assert!(
        ended.stdout.contains("3 kubeconfigs in "),
        "{}",
        ended.stdout
    );
    assert!(
        ended
            .stdout
            .contains("/clusters/b.yaml, line 1, column 1: unclosed bracket '['"),
        "{}",
        ended.stdout
    );
    clusters.write("b");
    proxy.reload();
    let good = async {
        while get(proxy.admin(), "/readyz?verbose")
            .await
            .text()
            .contains("ok, but b:")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the end of the problem", good).await;
    let ended = run(&check).await;
    assert!(ended.stdout.contains("3 clusters"), "{}", ended.stdout);
}

#[tokio::test]
async fn proxy_starts_with_an_empty_directory() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let clusters = Clusters::new(&world, &upstream, []);
    let proxy = clusters.start();
    let ready = get(proxy.admin(), "/readyz").await;
    assert_eq!((ready.status, &*ready.text()), (200, "ok"));
    assert_eq!(status(&proxy, "first").await, 421);
    clusters.write("first");
    proxy.reload();
    wait_for_status(&proxy, "first", 200).await;
}
