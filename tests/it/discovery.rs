//! `discover: endpoints`: the proxy asks the cluster for its apiservers with the token of the pod, and uses all of them.

use std::{
    fs,
    future::pending,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use kube_tls_proxy::{
    config::{self, Environment, ServeArgs},
    upstream::DiscoveryReport,
};
use serde_json::{Value, json};
use standin::{
    upstream::{RequestBody, ResponseBody, Upstream, channel, full},
    within,
};
use tokio::{net::TcpListener, sync::watch, time::Instant};

use crate::{
    admin::{get, scrape},
    drain::slow_or_endless,
    proxy::{HOST, Proxy, World},
};

/// What the cluster says about its apiservers.
#[derive(Debug, Clone)]
enum Said {
    /// These are ready, at this port.
    Named(Vec<IpAddr>, u16),
    /// The `EndpointSlice` has no endpoints, which Go writes as `null`.
    Nothing,
    Refused(u16),
    /// It does not answer.
    Silence,
    /// It may list, but not watch.
    OnlyList(Vec<IpAddr>, u16),
}

/// How the watch learns of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Learns {
    Event,
    /// The apiserver has forgotten the state from which the watch began.
    Gone,
    /// The connection of the watch is cut.
    Cut,
}

/// What the cluster says now.
#[derive(Debug, Clone)]
struct Now {
    said: Said,
    learns: Learns,
    /// The `resourceVersion`.
    version: u32,
}

/// The `EndpointSlice` `default/kubernetes`, and the token that may read it.
#[derive(Clone)]
struct Slice {
    now: Arc<watch::Sender<Now>>,
    token: Arc<Mutex<String>>,
}

impl Slice {
    fn new(said: Said) -> Self {
        let now = Now {
            said,
            learns: Learns::Event,
            version: 1,
        };
        Self {
            now: Arc::new(watch::Sender::new(now)),
            token: Arc::new(Mutex::new("first".into())),
        }
    }

    fn say(&self, said: Said) {
        self.change(said, Learns::Event);
    }

    fn change(&self, said: Said, learns: Learns) {
        self.now.send_modify(|now| {
            *now = Now {
                said,
                learns,
                version: now.version + 1,
            };
        });
    }

    async fn respond(self, request: Request<RequestBody>) -> Response<ResponseBody> {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        if request.uri().path() != path {
            return slow_or_endless(request).await;
        }
        let query = request.uri().query().unwrap();
        assert!(query.starts_with("fieldSelector=metadata.name%3Dkubernetes"));
        let expected = format!("Bearer {}", self.token.lock().unwrap());
        if request.headers()[header::AUTHORIZATION] != *expected {
            return status(401, "Unauthorized");
        }
        let is_watch = query.contains("watch=1");
        let mut changes = self.now.subscribe();
        let Now { said, version, .. } = changes.borrow_and_update().clone();
        match &said {
            Said::Refused(code) => return status(*code, "endpointslices is forbidden"),
            Said::OnlyList(..) if is_watch => return status(403, "no watch"),
            Said::Silence => pending().await,
            Said::Named(..) | Said::Nothing | Said::OnlyList(..) => {}
        }
        if !is_watch {
            let items = [object(&said)];
            let list =
                json!({"metadata": {"resourceVersion": version.to_string()}, "items": items});
            return Response::new(full(list.to_string()));
        }
        let from = query.split("&resourceVersion=").nth(1).unwrap();
        let mut seen: u32 = from.split('&').next().unwrap().parse().unwrap();
        let (events, body) = channel();
        tokio::spawn(async move {
            loop {
                let now = changes.borrow_and_update().clone();
                if now.version > seen {
                    seen = now.version;
                    let (kind, object) = match now.learns {
                        Learns::Cut => return events.abort().await,
                        Learns::Gone => ("ERROR", json!({"kind": "Status", "code": 410})),
                        Learns::Event => ("MODIFIED", object(&now.said)),
                    };
                    let event = json!({"type": kind, "object": object});
                    let sent = events.send(format!("{event}\n")).await;
                    if sent.is_err() || now.learns == Learns::Gone {
                        return;
                    }
                }
                tokio::select! {
                    changed = changes.changed() => changed.unwrap(),
                    () = events.closed() => return,
                }
            }
        });
        Response::new(body)
    }
}

fn object(said: &Said) -> Value {
    let (Said::Named(addresses, port) | Said::OnlyList(addresses, port)) = said else {
        return json!({"addressType": "IPv4", "endpoints": null, "ports": null});
    };
    let endpoint = |ready: bool, ip: &IpAddr| json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
    let mut endpoints: Vec<_> = addresses.iter().map(|ip| endpoint(true, ip)).collect();
    endpoints.push(endpoint(false, &IpAddr::from([127, 0, 0, 99])));
    json!({
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

fn status(code: u16, message: &str) -> Response<ResponseBody> {
    let body = json!({"kind": "Status", "message": message, "code": code});
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

/// The Service `kubernetes`, and two apiservers at one port of two addresses, as the nodes of a cluster have.
struct Cluster {
    world: World,
    slice: Slice,
    service: Upstream,
    apiservers: Vec<Upstream>,
}

impl Cluster {
    async fn new(said: impl FnOnce(Vec<IpAddr>, u16) -> Said) -> Self {
        let world = World::new();
        let (first, second) = loop {
            let first = TcpListener::bind("127.0.0.2:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            if let Ok(second) = TcpListener::bind(("127.0.0.3", port)).await {
                break (first, second);
            }
        };
        let port = first.local_addr().unwrap().port();
        let apiservers =
            [first, second].map(|one| world.apiserver().http(slow_or_endless).serve(one));
        let addresses = apiservers.iter().map(|one| one.address().ip());
        let slice = Slice::new(said(addresses.collect(), port));
        let asked = slice.clone();
        let service = world.apiserver();
        let service = service.http(move |request| asked.clone().respond(request));
        Self {
            service: service.start().await,
            apiservers: apiservers.into(),
            slice,
            world,
        }
    }

    async fn named() -> Self {
        Self::new(Said::Named).await
    }

    fn port(&self) -> u16 {
        self.apiservers[0].address().port()
    }

    fn ips(&self) -> Vec<IpAddr> {
        self.apiservers
            .iter()
            .map(|one| one.address().ip())
            .collect()
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.apiservers.iter().map(Upstream::address).collect()
    }

    /// Replaces the token that the cluster knows.
    fn accept(&self, token: &str) {
        token.clone_into(&mut self.slice.token.lock().unwrap());
    }

    /// Writes the file of the pod.
    fn mount(&self, token: &str) {
        self.world.dir.write("account/token", format!("{token}\n"));
    }

    /// Starts the proxy in a pod of this cluster, with this value of `inCluster`.
    fn start(&self, in_cluster: &str) -> Proxy {
        let dir = &self.world.dir;
        fs::create_dir_all(dir.path().join("account")).unwrap();
        self.mount("first");
        dir.write("account/ca.crt", self.world.cluster_ca.pem());
        let identity = self.world.public_ca.server(&[HOST]);
        let (certificate, key) = identity.write(dir, "pod-public");
        let text = format!(
            "listen: [\"127.0.0.1:0\"]\nworkers: 1\nadmin: {{listen: \"127.0.0.1:0\"}}\n\
             certificates: [{{certificate: {}, key: {}}}]\n\
             clusters: [{{name: here, inCluster: {in_cluster}}}]\n\
             timeouts: {{probeInterval: 0s, reload: 1h, drain: 1s, drainDelay: 0s, drainTunnels: 1s}}\n",
            certificate.display(),
            key.display()
        );
        let args = ServeArgs {
            config: Some(dir.write("pod.yaml", text)),
            ..ServeArgs::default()
        };
        let env = Environment {
            service_host: Some(self.service.address().ip().to_string()),
            service_port: Some(self.service.address().port().to_string()),
            service_account: dir.path().join("account"),
            ..Environment::from_process()
        };
        let source = Box::new(move || config::load(&args, &env));
        let setup = self.world.proxy(self.service.address());
        setup.start_from(source)
    }
}

/// The addresses that new connections may use.
fn used(proxy: &Proxy) -> Vec<SocketAddr> {
    let report = proxy.report();
    let health = report.borrow().clusters[0].endpoints().health();
    health.iter().map(|one| one.address.0).collect()
}

async fn wait_for(proxy: &Proxy, wanted: &[SocketAddr]) {
    let reached = async {
        while used(proxy) != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(&format!("the endpoints {wanted:?}"), reached).await;
}

/// Waits until the report is as wanted.
async fn wait_for_report(
    proxy: &Proxy,
    what: &str,
    is_wanted: impl Fn(&DiscoveryReport) -> bool,
) -> DiscoveryReport {
    let reached = async {
        loop {
            let report = proxy.report();
            let report = report.borrow().clusters[0].endpoints().discovery().unwrap();
            if is_wanted(&report) {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, reached).await
}

/// Sends one request as a new client with a token of its own.
async fn request_of_new_client(proxy: &Proxy) -> u16 {
    let mut client = proxy.client().http1().await;
    let token = "Authorization: Bearer of-the-client\r\n";
    client.get(HOST, "/version", token).await.status
}

/// The tokens of the requests for this path.
fn tokens(upstream: &Upstream, path: &str) -> Vec<String> {
    let requests = upstream.requests();
    let requests = requests.iter().filter(|one| one.target.starts_with(path));
    requests
        .map(|one| one.header("authorization").unwrap_or_default().to_owned())
        .collect()
}

const SLICES: &str = "/apis/discovery.k8s.io/";

#[tokio::test]
async fn clients_are_spread_over_every_apiserver_named() {
    let cluster = Cluster::named().await;
    let proxy = cluster.start("{discover: endpoints}");
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = proxy.client().http1().await;
        client
            .get(HOST, "/version", "Authorization: Bearer of-the-client\r\n")
            .await;
        clients.push(client);
    }
    let each = cluster.apiservers.iter().map(|one| tokens(one, "/version"));
    let each: Vec<_> = each.collect();
    assert_eq!(each, vec![vec!["Bearer of-the-client"; 3]; 2]);
    assert_eq!(
        tokens(&cluster.service, "/version"),
        [""; 0],
        "the Service is not used"
    );
    assert_eq!(
        used(&proxy),
        cluster.addresses(),
        "without the one that is not ready"
    );
    assert!(
        tokens(&cluster.service, SLICES)
            .iter()
            .all(|token| token == "Bearer first")
    );
    assert!(
        cluster
            .apiservers
            .iter()
            .all(|one| tokens(one, SLICES).is_empty())
    );
}

#[tokio::test]
async fn no_token_is_sent_without_discover() {
    let cluster = Cluster::named().await;
    let proxy = cluster.start("true");
    assert_eq!(request_of_new_client(&proxy).await, 200);
    assert_eq!(tokens(&cluster.service, "/"), ["Bearer of-the-client"]);
}

#[tokio::test]
async fn apiservers_that_join_and_leave_fail_no_request() {
    let cluster = Cluster::named().await;
    let (ips, port, all) = (cluster.ips(), cluster.port(), cluster.addresses());
    cluster.slice.say(Said::Named(ips[..1].to_vec(), port));
    let proxy = cluster.start("{discover: endpoints}");
    wait_for(&proxy, &all[..1]).await;
    let client = proxy.client().http2().await;
    let url = |path: &str| format!("https://{HOST}{path}");
    let mut stream = client.open(&url("/endless")).await.unwrap().into_body();
    cluster.slice.say(Said::Named(ips.clone(), port));
    wait_for(&proxy, &all).await;
    assert_eq!(client.get(&url("/version")).await.unwrap().status, 200);
    assert_eq!(
        tokens(&cluster.apiservers[0], "/version").len(),
        1,
        "the lease stays"
    );
    cluster.slice.say(Said::Named(ips[1..].to_vec(), port));
    wait_for(&proxy, &all[1..]).await;
    for _ in 0..3 {
        assert_eq!(client.get(&url("/version")).await.unwrap().status, 200);
    }
    assert_eq!(
        tokens(&cluster.apiservers[0], "/version").len(),
        1,
        "no new request"
    );
    assert_eq!(tokens(&cluster.apiservers[1], "/version").len(), 3);
    assert!(
        stream.data().await.unwrap().is_ok(),
        "the open stream continues"
    );
    assert_eq!(cluster.apiservers[0].open_responses(), 1);
}

#[tokio::test]
async fn failing_apiserver_does_not_end_the_search() {
    let cluster = Cluster::named().await;
    let proxy = cluster.start("{discover: endpoints}");
    wait_for(&proxy, &cluster.addresses()).await;
    cluster.slice.change(Said::Refused(503), Learns::Cut);
    let is_asked = |one: &Upstream| !tokens(one, SLICES).is_empty();
    let asked = async {
        while !cluster.apiservers.iter().any(is_asked) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("a request to an apiserver that was named", asked).await;
}

#[tokio::test]
async fn refused_discovery_uses_the_service_until_allowed() {
    let cluster = Cluster::new(|_, _| Said::Refused(403)).await;
    let proxy = cluster.start("{discover: endpoints}");
    assert_eq!(request_of_new_client(&proxy).await, 200);
    assert_eq!(tokens(&cluster.service, "/version").len(), 1);
    let failed = |report: &DiscoveryReport| report.failures > 0;
    let report = wait_for_report(&proxy, "a failure", failed).await;
    let why = report.failure.unwrap();
    assert!(why.contains("endpointslices is forbidden"), "{why}");
    assert!(
        why.contains("does not let the pod list") && why.contains("; create the Role"),
        "{why}"
    );
    assert_eq!((report.found, report.changed.is_some()), (0, false));
    let status: Value =
        serde_json::from_slice(&get(proxy.admin(), "/status.json").await.body).unwrap();
    assert_eq!(status["state"], "problems");
    let problem = status["problems"][0].as_str().unwrap();
    assert!(
        problem.starts_with("here: cannot find the apiservers"),
        "{problem}"
    );
    cluster
        .slice
        .say(Said::Named(cluster.ips(), cluster.port()));
    wait_for(&proxy, &cluster.addresses()).await;
    let works = |report: &DiscoveryReport| report.failure.is_none();
    assert_eq!(
        wait_for_report(&proxy, "the recovery", works).await.found,
        2
    );
    let metrics = scrape(proxy.admin()).await.text;
    for line in [
        "kube_tls_proxy_discovered_endpoints{cluster=\"here\"} 2",
        "kube_tls_proxy_discovery_successful{cluster=\"here\"} 1",
        "kube_tls_proxy_discovery_last_change_timestamp_seconds{cluster=\"here\"} ",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn missing_right_to_watch_is_named() {
    let cluster = Cluster::new(Said::OnlyList).await;
    let proxy = cluster.start("{discover: endpoints}");
    let failed = |report: &DiscoveryReport| report.failures > 0;
    let report = wait_for_report(&proxy, "a failure", failed).await;
    let why = report.failure.unwrap();
    assert!(why.contains("does not let the pod watch"), "{why}");
    assert_eq!(
        used(&proxy),
        cluster.addresses(),
        "what the list has named is used"
    );
}

#[tokio::test]
async fn empty_slice_keeps_the_last_apiservers() {
    let cluster = Cluster::named().await;
    let proxy = cluster.start("{discover: endpoints}");
    wait_for(&proxy, &cluster.addresses()).await;
    cluster.slice.say(Said::Nothing);
    let failed = |report: &DiscoveryReport| report.failures > 1;
    let report = wait_for_report(&proxy, "two failures", failed).await;
    let why = report.failure.unwrap();
    assert!(why.contains("names no apiserver"), "{why}");
    assert_eq!(used(&proxy), cluster.addresses());
    assert_eq!(request_of_new_client(&proxy).await, 200);
}

#[tokio::test]
async fn silent_cluster_delays_the_start_by_two_seconds() {
    let cluster = Cluster::new(|_, _| Said::Silence).await;
    let proxy = cluster.start("{discover: endpoints}");
    let start = Instant::now();
    assert_eq!(request_of_new_client(&proxy).await, 200);
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(tokens(&cluster.service, "/version").len(), 1);
}

#[tokio::test]
async fn watch_that_ends_is_followed_by_a_list() {
    let cluster = Cluster::named().await;
    let (ips, port, all) = (cluster.ips(), cluster.port(), cluster.addresses());
    let proxy = cluster.start("{discover: endpoints}");
    wait_for(&proxy, &all).await;
    for (left, how) in [(0..1, Learns::Gone), (1..2, Learns::Cut)] {
        cluster.service.wait_for_open_responses(1).await;
        let said = Said::Named(ips[left.clone()].to_vec(), port);
        cluster.slice.change(said, how);
        wait_for(&proxy, &all[left]).await;
    }
    let report = wait_for_report(&proxy, "a report", |_| true).await;
    assert_eq!(
        (report.failures, report.failure),
        (0, None),
        "such an end is no failure"
    );
}

#[tokio::test]
async fn rotated_token_is_read_for_each_request() {
    let cluster = Cluster::named().await;
    let proxy = cluster.start("{discover: endpoints}");
    wait_for(&proxy, &cluster.addresses()).await;
    cluster.service.wait_for_open_responses(1).await;
    cluster.accept("second");
    cluster.mount("second");
    let said = Said::Named(cluster.ips()[..1].to_vec(), cluster.port());
    cluster.slice.change(said, Learns::Cut);
    wait_for(&proxy, &cluster.addresses()[..1]).await;
    let sent = tokens(&cluster.service, SLICES);
    assert!(
        !sent.is_empty()
            && sent
                .iter()
                .all(|one| one == "Bearer first" || one == "Bearer second")
    );
    assert_eq!(
        sent.iter().filter(|one| *one == "Bearer first").count(),
        2,
        "list and watch"
    );
    fs::remove_file(cluster.world.dir.path().join("account/token")).unwrap();
    cluster.slice.change(Said::Nothing, Learns::Cut);
    let failed = |report: &DiscoveryReport| report.failures > 0;
    let why = wait_for_report(&proxy, "a failure", failed)
        .await
        .failure
        .unwrap();
    assert!(why.contains("account/token cannot be used: "), "{why}");
}

/// Another server must not get the token.
#[tokio::test]
async fn unverified_server_gets_no_token() {
    let cluster = Cluster::named().await;
    cluster
        .service
        .present(&standin::pki::Ca::new("foreign").server(&["kubernetes.default.svc"]));
    let proxy = cluster.start("{discover: endpoints}");
    let failed = |report: &DiscoveryReport| report.failures > 0;
    let why = wait_for_report(&proxy, "a failure", failed)
        .await
        .failure
        .unwrap();
    assert!(why.contains("is not signed by the cluster CA"), "{why}");
    assert!(cluster.service.requests().is_empty());
}
