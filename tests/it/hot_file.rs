//! The configuration file is hot as a whole: each key changes under load, takes effect as docs/configuration.md says,
//! and no request fails.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use kube_tls_proxy::{
    app::App,
    config::{Environment, ListenConfig, ServeArgs, load, schema},
};
use serde_json::{Value, json};
use standin::{
    client::{Client, Http2},
    frames::kind,
    pki::Ca,
    upstream::{Received, Upstream, full},
    within,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    binary::Binary,
    drain::refuses_connections,
    proxy::{APISERVER, HOST, Proxy, World, watch_or_ok},
    responses::BOTH,
};

const DOCS: &str = include_str!("../../docs/configuration.md");

/// When the docs say that a key takes effect.
const REQUESTS: &str = "new requests";
const CONNECTIONS: &str = "new connections";
const NOW: &str = "at once";
const NEXT: &str = "from the next one on";
const STOP: &str = "at the stop";
const RESTART: &str = "at the next restart; the log says so";

/// For each key of the schema: when it takes effect, and a change. That of a key of `clusters` and `listen` is for the
/// second entry, whose clients send no load; that of `certificates` adds an entry.
fn changes(file: &dyn Fn(&str) -> String) -> Vec<(&'static str, &'static str, Value)> {
    let exec = json!({"kubeconfig": {"exec": {"command": "a", "args": ["b"]}}});
    let (ca, front_proxy) = (file("users.crt"), file("front.crt"));
    let users = json!({"clientCertificates": {
        "ca": ca, "crl": file("users.crl"), "allowSystem": true,
        "frontProxy": {"certificate": front_proxy, "key": file("front.key")},
    }});
    let impersonate = json!({"clientCertificates": {
        "ca": ca, "impersonate": {"tokenFile": file("token")},
    }});
    let kubeconfig =
        json!({"upstream": null, "kubeconfig": file("cluster.conf"), "context": "other"});
    let publish =
        json!({"publish": {"kubeconfig": {"exec": {"command": "a", "args": ["b"]}, "ca": ca}}});
    let from = |more: Value| {
        let mut section = json!({"directory": file("clusters"), "hostTemplate": "{name}.dir.test"});
        merge(&mut section, more);
        json!({ "clustersFrom": section })
    };
    // Nothing listens at this directory.
    let acme = |more: Value| {
        let mut section = json!({
            "domains": ["acme.test"], "directory": "https://127.0.0.1:1/dir", "store": file("store"),
        });
        merge(&mut section, more);
        json!({ "acme": section })
    };
    let eab = || json!({"eab": {"kid": "key-1", "keyFile": file("eab.key")}});
    let limits = |value: Value| json!({ "limits": value });
    let timeouts = |key: &str, value: &str| json!({ "timeouts": { key: value } });
    vec![
        ("listen[].address", NOW, json!({"address": "127.0.0.2:0"})),
        (
            "listen[].allow",
            CONNECTIONS,
            json!({"allow": ["192.0.2.0/24"]}),
        ),
        (
            "listen[].deny",
            CONNECTIONS,
            json!({"deny": ["192.0.2.0/24"]}),
        ),
        (
            "listen[].proxyProtocol.from",
            CONNECTIONS,
            json!({"proxyProtocol": {"from": ["192.0.2.0/24"]}}),
        ),
        (
            "trustedProxies",
            REQUESTS,
            json!({"trustedProxies": ["192.0.2.0/24"]}),
        ),
        (
            "reusePort",
            NEXT,
            json!({"reusePort": true, "listen": ["127.0.0.1:0", "127.0.0.2:0"]}),
        ),
        ("workers", RESTART, json!({"workers": 3})),
        (
            "certificates[].certificate",
            CONNECTIONS,
            json!({"certificate": file("more.crt"), "key": file("more.key")}),
        ),
        (
            "certificates[].key",
            CONNECTIONS,
            json!({"certificate": file("more.crt"), "key": file("more.key")}),
        ),
        ("certificates[].acme.domains", CONNECTIONS, acme(json!({}))),
        (
            "certificates[].acme.email",
            CONNECTIONS,
            acme(json!({"email": "ops@example.com"})),
        ),
        (
            "certificates[].acme.directory",
            CONNECTIONS,
            acme(json!({})),
        ),
        (
            "certificates[].acme.directoryCa",
            CONNECTIONS,
            acme(json!({"directoryCa": ca})),
        ),
        ("certificates[].acme.eab.kid", CONNECTIONS, acme(eab())),
        ("certificates[].acme.eab.keyFile", CONNECTIONS, acme(eab())),
        (
            "certificates[].acme.http01Listen",
            CONNECTIONS,
            acme(json!({"http01Listen": "127.0.0.1:1"})),
        ),
        (
            "certificates[].acme.profile",
            CONNECTIONS,
            acme(json!({"profile": "shortlived"})),
        ),
        ("certificates[].acme.store", CONNECTIONS, acme(json!({}))),
        ("clusters[].name", REQUESTS, json!({"name": "renamed"})),
        (
            "clusters[].hosts",
            REQUESTS,
            json!({"hosts": ["third.test"]}),
        ),
        (
            "clusters[].passthrough",
            REQUESTS,
            json!({"passthrough": true, "upstream": {"name": null}}),
        ),
        (
            "clusters[].upstream.url",
            REQUESTS,
            json!({"upstream": {"url": "https://127.0.0.1:1"}}),
        ),
        (
            "clusters[].upstream.addresses",
            REQUESTS,
            json!({"upstream": {"addresses": ["127.0.0.1:1"]}}),
        ),
        (
            "clusters[].upstream.proxyUrl",
            REQUESTS,
            json!({"upstream": {"proxyUrl": "http://127.0.0.1:1"}}),
        ),
        (
            "clusters[].upstream.ca",
            REQUESTS,
            json!({"upstream": {"ca": ca}}),
        ),
        (
            "clusters[].upstream.name",
            REQUESTS,
            json!({"upstream": {"name": "kubernetes"}}),
        ),
        (
            "clusters[].upstream.host",
            REQUESTS,
            json!({"upstream": {"host": "upstream"}}),
        ),
        ("clusters[].kubeconfig", REQUESTS, kubeconfig.clone()),
        ("clusters[].context", REQUESTS, kubeconfig),
        (
            "clusters[].inCluster.discover",
            REQUESTS,
            json!({"upstream": null, "inCluster": {"discover": "endpoints"}}),
        ),
        (
            "clusters[].clientCertificates.ca",
            CONNECTIONS,
            users.clone(),
        ),
        (
            "clusters[].clientCertificates.crl",
            CONNECTIONS,
            users.clone(),
        ),
        (
            "clusters[].clientCertificates.frontProxy.certificate",
            CONNECTIONS,
            users.clone(),
        ),
        (
            "clusters[].clientCertificates.frontProxy.key",
            CONNECTIONS,
            users.clone(),
        ),
        (
            "clusters[].clientCertificates.impersonate.tokenFile",
            CONNECTIONS,
            impersonate,
        ),
        (
            "clusters[].clientCertificates.allowSystem",
            CONNECTIONS,
            users,
        ),
        (
            "clusters[].access",
            REQUESTS,
            json!({"access": [{"allow": {}}]}),
        ),
        (
            "clusters[].publish.kubeconfig.exec.command",
            REQUESTS,
            publish.clone(),
        ),
        (
            "clusters[].publish.kubeconfig.exec.args",
            REQUESTS,
            publish.clone(),
        ),
        (
            "clusters[].publish.kubeconfig.ca",
            REQUESTS,
            publish.clone(),
        ),
        (
            "publish.kubeconfig.exec.command",
            REQUESTS,
            json!({"publish": exec}),
        ),
        (
            "publish.kubeconfig.exec.args",
            REQUESTS,
            json!({"publish": exec}),
        ),
        ("publish.kubeconfig.ca", REQUESTS, publish),
        (
            "clusters[].pathPrefix",
            REQUESTS,
            json!({"pathPrefix": "/clusters/other"}),
        ),
        ("clustersFrom.directory", REQUESTS, from(json!({}))),
        (
            "clustersFrom.hostTemplate",
            REQUESTS,
            from(json!({"hostTemplate": "{name}.other.test"})),
        ),
        (
            "clustersFrom.pathPrefix",
            REQUESTS,
            from(json!({"pathPrefix": "/clusters/{name}"})),
        ),
        (
            "clustersFrom.access",
            REQUESTS,
            from(json!({"access": [{"allow": {}}]})),
        ),
        ("hints", CONNECTIONS, json!({"hints": false})),
        (
            "admin.listen",
            RESTART,
            json!({"admin": {"listen": "127.0.0.1:0"}}),
        ),
        ("log.format", NOW, json!({"log": {"format": "json"}})),
        ("log.filter", NOW, json!({"log": {"filter": "warn"}})),
        ("log.access", NOW, json!({"log": {"access": false}})),
        ("log.user", REQUESTS, json!({"log": {"user": "subject"}})),
        (
            "limits.connections",
            NOW,
            limits(json!({"connections": 90})),
        ),
        (
            "limits.connectionsPerClient",
            CONNECTIONS,
            limits(json!({"connectionsPerClient": 80})),
        ),
        (
            "limits.requestsPerClient.rate",
            REQUESTS,
            limits(json!({"requestsPerClient": {"rate": 100_000, "burst": 1_000_000}})),
        ),
        (
            "limits.requestsPerClient.burst",
            REQUESTS,
            limits(json!({"requestsPerClient": {"rate": 100_000, "burst": 1_000_000}})),
        ),
        (
            "limits.unauthorizedPerClient.count",
            REQUESTS,
            limits(json!({"unauthorizedPerClient": {"count": 61, "per": "1m"}})),
        ),
        (
            "limits.unauthorizedPerClient.per",
            REQUESTS,
            limits(json!({"unauthorizedPerClient": {"count": 60, "per": "2m"}})),
        ),
        ("limits.handshakes", NOW, limits(json!({"handshakes": 20}))),
        (
            "limits.streamsPerConnection",
            CONNECTIONS,
            limits(json!({"streamsPerConnection": 90})),
        ),
        (
            "limits.headerBytes",
            CONNECTIONS,
            limits(json!({"headerBytes": "32KiB"})),
        ),
        (
            "limits.headerFields",
            CONNECTIONS,
            limits(json!({"headerFields": 100})),
        ),
        (
            "limits.uriBytes",
            CONNECTIONS,
            limits(json!({"uriBytes": "2KiB"})),
        ),
        (
            "limits.replayBytes",
            CONNECTIONS,
            limits(json!({"replayBytes": 0})),
        ),
        (
            "limits.idleUpstreamConnections",
            NOW,
            limits(json!({"idleUpstreamConnections": 2})),
        ),
        (
            "timeouts.handshake",
            CONNECTIONS,
            timeouts("handshake", "6s"),
        ),
        (
            "timeouts.requestHead",
            CONNECTIONS,
            timeouts("requestHead", "11s"),
        ),
        (
            "timeouts.clientIdle",
            CONNECTIONS,
            timeouts("clientIdle", "76s"),
        ),
        (
            "timeouts.clientPingInterval",
            CONNECTIONS,
            timeouts("clientPingInterval", "31s"),
        ),
        (
            "timeouts.clientPingTimeout",
            CONNECTIONS,
            timeouts("clientPingTimeout", "21s"),
        ),
        (
            "timeouts.upstreamConnect",
            NEXT,
            timeouts("upstreamConnect", "6s"),
        ),
        (
            "timeouts.upstreamIdle",
            NOW,
            timeouts("upstreamIdle", "61s"),
        ),
        (
            "timeouts.upstreamPingInterval",
            NEXT,
            timeouts("upstreamPingInterval", "31s"),
        ),
        (
            "timeouts.upstreamPingTimeout",
            NEXT,
            timeouts("upstreamPingTimeout", "16s"),
        ),
        (
            "timeouts.tcpKeepalive",
            CONNECTIONS,
            timeouts("tcpKeepalive", "31s"),
        ),
        (
            "timeouts.tcpUserTimeout",
            CONNECTIONS,
            timeouts("tcpUserTimeout", "46s"),
        ),
        (
            "timeouts.halfCloseTimeout",
            CONNECTIONS,
            timeouts("halfCloseTimeout", "31s"),
        ),
        (
            "timeouts.probeInterval",
            NOW,
            timeouts("probeInterval", "1s"),
        ),
        (
            "timeouts.probeTimeout",
            NEXT,
            timeouts("probeTimeout", "3s"),
        ),
        ("timeouts.drainDelay", STOP, timeouts("drainDelay", "1s")),
        ("timeouts.drain", STOP, timeouts("drain", "3s")),
        (
            "timeouts.drainTunnels",
            STOP,
            timeouts("drainTunnels", "61s"),
        ),
        ("timeouts.resolve", NEXT, timeouts("resolve", "31s")),
        ("timeouts.reload", NEXT, timeouts("reload", "50m")),
    ]
}

/// A proxy that is configured by a file.
pub(crate) struct Hot {
    pub(crate) world: World,
    pub(crate) upstream: Upstream,
    pub(crate) proxy: Proxy,
    /// The file as it was at the start.
    pub(crate) base: Value,
    file: PathBuf,
}

impl Hot {
    /// With two clusters at one apiserver, `change` of the file, and two listeners.
    pub(crate) async fn start(change: Value) -> Self {
        let world = World::new();
        let upstream = world.apiserver().http(watch_or_ok).start().await;
        Self::start_with(world, upstream, change)
    }

    pub(crate) fn start_with(world: World, upstream: Upstream, change: Value) -> Self {
        let setup = world.proxy(upstream.address());
        let cluster = |name: &str, host: &str| {
            json!({"name": name, "hosts": [host], "upstream": {
                "url": format!("https://{}", upstream.address()), "ca": "cluster-ca.crt", "name": APISERVER,
            }})
        };
        let mut base = json!({
            "listen": [{"address": "127.0.0.1:0"}, {"address": "127.0.0.1:0"}],
            "workers": 2,
            "certificates": [{"certificate": "public.crt", "key": "public.key"}],
            "clusters": [cluster("main", HOST), cluster("other", "other.test")],
            // Else the number depends on the machine.
            "limits": {"connections": 100, "handshakes": 10},
            "timeouts": {"reload": "1h", "probeInterval": "0s", "drainDelay": "0s", "drain": "2s"},
        });
        merge(&mut base, change);
        let file = world.dir.write("proxy.json", base.to_string());
        let args = ServeArgs {
            config: Some(file.clone()),
            ..ServeArgs::default()
        };
        let env = Environment {
            service_host: Some(upstream.address().ip().to_string()),
            service_port: Some(upstream.address().port().to_string()),
            service_account: world.dir.path().to_owned(),
            ..Environment::from_process()
        };
        world.dir.write("ca.crt", world.cluster_ca.pem());
        let proxy = setup.start_from(Box::new(move || load(&args, &env)));
        Self {
            world,
            upstream,
            proxy,
            base,
            file,
        }
    }

    /// Writes the file of the start with `change`, and reloads it. Returns the keys that need a restart, and whether
    /// anything else has changed.
    pub(crate) async fn change(&self, change: Value) -> (Vec<&'static str>, bool) {
        let mut text = self.base.clone();
        merge(&mut text, change);
        self.write(&text).await
    }

    pub(crate) async fn write(&self, text: &Value) -> (Vec<&'static str>, bool) {
        fs::write(&self.file, text.to_string()).unwrap();
        let mut report = self.proxy.report();
        let before = report.borrow_and_update().clone();
        self.proxy.reload();
        let sum = |reloaded: u64, unchanged: u64, failed: u64| reloaded + unchanged + failed;
        let before_sum = sum(before.reloaded, before.unchanged, before.failed);
        let done = report.wait_for(|now| sum(now.reloaded, now.unchanged, now.failed) > before_sum);
        let now = within("the reload", done).await.unwrap().clone();
        assert_eq!(now.failure, None, "{text}");
        (now.needs_restart, now.reloaded > before.reloaded)
    }

    fn client(&self, address: SocketAddr) -> Client {
        Client::new(address).trust(&self.world.public_ca).sni(HOST)
    }
}

/// JSON Merge Patch (RFC 7386).
pub(crate) fn merge(to: &mut Value, patch: Value) {
    match (to, patch) {
        (Value::Object(to), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    to.remove(&key);
                } else {
                    merge(to.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (to, patch) => *to = patch,
    }
}

/// Adds the path of each key below `part` of the schema that has no keys of its own.
fn leaves(part: &Value, defs: &Value, path: &str, found: &mut Vec<String>) {
    let part = match part["$ref"].as_str() {
        Some(name) => &defs[name.trim_start_matches("#/$defs/")],
        None => part,
    };
    let any = part["anyOf"].as_array().cloned().unwrap_or_default();
    // Access rules have a test of their own: all of them are one value for a reload.
    let is_whole = path.ends_with("access");
    let mut inner = Vec::new();
    for option in &any {
        leaves(option, defs, path, &mut inner);
    }
    if let Some(keys) = part["properties"].as_object() {
        for (key, value) in keys {
            let separator = if path.is_empty() { "" } else { "." };
            leaves(value, defs, &format!("{path}{separator}{key}"), &mut inner);
        }
    }
    if part["items"].is_object() && !is_whole {
        leaves(&part["items"], defs, &format!("{path}[]"), &mut inner);
    }
    inner.retain(|one| one != path);
    if inner.is_empty() || is_whole {
        found.push(path.trim_end_matches("[]").to_owned());
    } else {
        found.append(&mut inner);
    }
}

/// When the table of the docs says that `key` takes effect: the row with the longest part of it.
fn documented(key: &str) -> &'static str {
    let (_, section) = DOCS.split_once("## What changes while it runs").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut best = ("", "");
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.split(" | ").collect();
        for name in cells[0].split('`').skip(1).step_by(2) {
            let rest = key.strip_prefix(name);
            let is_part = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
            if is_part && name.len() > best.0.len() {
                best = (name, cells[1].trim_end_matches(" |"));
            }
        }
    }
    assert!(
        !best.0.is_empty(),
        "docs/configuration.md does not say when `{key}` takes effect"
    );
    best.1
}

#[tokio::test]
async fn each_key_changes_under_load_as_documented() {
    let hot = Hot::start(json!({})).await;
    let dir = &hot.world.dir;
    let users = Ca::new("users");
    dir.write("users.crt", users.pem());
    dir.write("token", "e30.e30.c2ln");
    let next = std::time::SystemTime::now() + Duration::from_secs(86_400);
    dir.write("users.crl", users.revocation_list(&[], next));
    Ca::new("fronts").client("proxy", &[]).write(dir, "front");
    hot.world
        .public_ca
        .server(&["more.test"])
        .write(dir, "more");
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let server = format!("https://{}", hot.upstream.address());
    let kubeconfig = json!({
        "clusters": [{"name": "c", "cluster": {
            "server": server, "certificate-authority": file("cluster-ca.crt"), "tls-server-name": APISERVER,
        }}],
        "contexts": [{"name": "other", "context": {"cluster": "c"}}],
    });
    dir.write("cluster.conf", kubeconfig.to_string());
    fs::create_dir(dir.path().join("clusters")).unwrap();
    let mut kubeconfig = kubeconfig;
    kubeconfig["current-context"] = "other".into();
    dir.write("clusters/one.yaml", kubeconfig.to_string());

    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let kept = hot.proxy.client().http2().await;
    let client = hot.proxy.client();
    let load = tokio::spawn({
        let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
        async move {
            let url = format!("https://{HOST}/version");
            while !stop.load(Ordering::Relaxed) {
                let old = kept.get(&url).await.unwrap();
                let new = client.http2().await.get(&url).await.unwrap();
                let http1 = client.http1().await.get(HOST, "/version", "").await;
                assert_eq!((old.status, new.status), (StatusCode::OK, StatusCode::OK));
                assert_eq!(http1.status, 200);
                sent.fetch_add(3, Ordering::Relaxed);
            }
        }
    });

    let mut keys = Vec::new();
    let schema = schema();
    leaves(&schema, &schema["$defs"], "", &mut keys);
    let changes = changes(&file);
    let changes: BTreeMap<_, _> = changes
        .iter()
        .map(|(key, when, value)| (*key, (when, value)))
        .collect();
    for key in &keys {
        let (when, value) = changes.get(key.as_str()).unwrap_or_else(|| {
            panic!("`{key}` is new: say when it takes effect, here and in docs/configuration.md")
        });
        assert_eq!(documented(key), **when, "{key}");
        let mut text = hot.base.clone();
        let (top, _) = key.split_once("[].").unwrap_or((key, ""));
        match top {
            "clusters" | "listen" => merge(&mut text[top][1], (*value).clone()),
            "certificates" => text[top].as_array_mut().unwrap().push((*value).clone()),
            _ => merge(&mut text, (*value).clone()),
        }
        let before = sent.load(Ordering::Relaxed);
        let (needs_restart, has_reloaded) = hot.write(&text).await;
        if **when == RESTART {
            let (top, _) = key.split_once('.').unwrap_or((key, ""));
            assert_eq!((needs_restart, has_reloaded), (vec![top], false), "{key}");
        } else {
            assert_eq!((needs_restart, has_reloaded), (vec![], true), "{key}");
        }
        let served = async {
            while sent.load(Ordering::Relaxed) <= before + 3 && !load.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        within("requests after the change", served).await;
        assert!(
            !load.is_finished(),
            "a request has failed after a change of {key}"
        );
        hot.write(&hot.base).await;
    }
    assert_eq!(keys.len(), changes.len(), "{keys:#?}");
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
}

async fn status(client: &Http2, target: &str, fields: usize, bytes: usize) -> u16 {
    let mut request = Request::get(format!("https://{HOST}{target}"));
    for number in 0..fields {
        request = request.header(format!("x-{number}"), "a".repeat(bytes));
    }
    let request = request.body(Bytes::new()).unwrap();
    client.request(request).await.unwrap().status.as_u16()
}

#[tokio::test]
async fn limits_of_requests_change_for_new_connections() {
    let hot = Hot::start(json!({})).await;
    let long = format!("/{}", "a".repeat(1500));
    let old = hot.proxy.client().http2().await;
    let limits = json!({"uriBytes": 1024, "headerFields": 16, "headerBytes": 8192, "streamsPerConnection": 7});
    hot.change(json!({ "limits": limits })).await;
    let new = hot.proxy.client().http2().await;
    for (client, codes) in [(&old, [200, 200, 200]), (&new, [414, 431, 431])] {
        let found = [
            status(client, &long, 0, 0).await,
            status(client, "/", 20, 1).await,
            status(client, "/", 2, 5000).await,
        ];
        assert_eq!(found, codes);
    }
    let mut frames = hot.proxy.frame_client().await;
    let settings = frames.expect(kind::SETTINGS).await.unwrap();
    let streams = [&[0, 3], &7_u32.to_be_bytes()[..]].concat();
    assert!(
        settings.payload.chunks(6).any(|one| one == streams),
        "{settings:?}"
    );
}

#[tokio::test]
async fn limits_of_clients_change_at_once() {
    let hot = Hot::start(json!({})).await;
    let old = hot.proxy.client().http2().await;
    assert_eq!(status(&old, "/", 0, 0).await, 200);
    let requests = |rate: u32, burst: u32| json!({"limits": {"requestsPerClient": {"rate": rate, "burst": burst}}});
    hot.change(requests(1, 1)).await;
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(status(&old, "/", 0, 0).await);
    }
    assert!(codes.contains(&429), "{codes:?}");
    hot.change(json!({"limits": {"connectionsPerClient": 1}}))
        .await;
    assert_eq!(
        status(&old, "/", 0, 0).await,
        200,
        "the limit of requests is gone"
    );
    hot.proxy.client().connect().await.unwrap_err();
    hot.change(json!({})).await;
    hot.proxy.client().connect().await.unwrap();
}

#[tokio::test]
async fn idle_connections_to_the_apiserver_follow_the_file() {
    let hot = Hot::start(json!({"workers": 1})).await;
    let fresh = async || assert_eq!(hot.proxy.get(BOTH[0], "/").await.code, 200);
    fresh().await;
    let opened = hot.upstream.accepted();
    hot.change(json!({"workers": 1, "limits": {"idleUpstreamConnections": 0}}))
        .await;
    // The first one may use the connection that is idle now, and keeps none.
    fresh().await;
    fresh().await;
    fresh().await;
    assert!(hot.upstream.accepted() >= opened + 2);
    hot.change(json!({"workers": 1, "timeouts": {"upstreamIdle": "50ms"}}))
        .await;
    fresh().await;
    let opened = hot.upstream.accepted();
    let dialled = async {
        while hot.upstream.accepted() == opened {
            // Longer than the new limit, and much shorter than the old one.
            tokio::time::sleep(Duration::from_millis(60)).await;
            fresh().await;
        }
    };
    within("a dial in place of an old connection", dialled).await;
}

/// Whether the proxy closes this connection; `false` if it is still open.
async fn is_closed(tcp: &mut TcpStream) -> bool {
    let end = within("the end of a silent connection", tcp.read(&mut [0; 64])).await;
    !end.is_ok_and(|bytes| bytes > 0)
}

#[tokio::test]
async fn timeouts_change_for_new_connections() {
    let forever = json!({"handshake": "1h", "requestHead": "1h", "clientIdle": "1h", "clientPingInterval": "1h"});
    let hot = Hot::start(json!({ "timeouts": forever })).await;
    let old = TcpStream::connect(hot.proxy.address()).await.unwrap();
    let shorter = |key: &str| json!({"timeouts": { key: "50ms" }});
    hot.change(shorter("handshake")).await;
    let mut silent = TcpStream::connect(hot.proxy.address()).await.unwrap();
    assert!(is_closed(&mut silent).await);
    assert!(
        old.try_read(&mut [0; 1]).is_err(),
        "an old connection keeps its timeout"
    );
    hot.change(shorter("requestHead")).await;
    let mut silent = hot.proxy.client().http1().await;
    drop(within("the end", silent.end()).await);
    hot.change(shorter("clientIdle")).await;
    let mut idle = hot.proxy.client().http1().await;
    idle.get(HOST, "/", "").await;
    drop(within("the end", idle.end()).await);
    hot.change(shorter("clientPingInterval")).await;
    let pinged = hot.proxy.client().http2().await;
    pinged.wait_for_pings(1).await;
    hot.change(shorter("probeInterval")).await;
    let probed = |requests: &[Received]| requests.iter().any(|one| one.target == "/readyz");
    let arrived = async {
        while !probed(&hot.upstream.requests()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("a probe", arrived).await;
}

#[tokio::test]
async fn reload_interval_and_drain_follow_the_file() {
    let forever = json!({"drainDelay": "1h", "drain": "1h"});
    let mut hot = Hot::start(json!({ "timeouts": forever })).await;
    let times = json!({"reload": "50ms", "drainDelay": "0s", "drain": "50ms"});
    hot.change(json!({ "timeouts": times })).await;
    let mut text = hot.base.clone();
    merge(&mut text, json!({"timeouts": times, "hints": false}));
    let reloaded = hot.proxy.report().borrow().reloaded;
    fs::write(&hot.file, text.to_string()).unwrap();
    let mut report = hot.proxy.report();
    let seen = report.wait_for(|report| report.reloaded > reloaded);
    drop(within("a reload without a signal", seen).await.unwrap());
    // A watch that would last for an hour.
    let client = hot.proxy.client().http2().await;
    let watch = client.open(&format!("https://{HOST}/watch")).await.unwrap();
    assert_eq!(watch.status(), StatusCode::OK);
    hot.proxy.begin_shutdown();
    hot.proxy.wait_until_stopped().await;
}

#[tokio::test]
async fn hints_change_for_new_connections() {
    let world = World::new();
    let refuse = |_request| async {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response
    };
    let upstream = world.apiserver().http(refuse).start().await;
    let hot = Hot::start_with(world, upstream, json!({}));
    let warns = async |client: &Http2| {
        let response = client
            .get(&format!("https://{HOST}/api/v1/pods"))
            .await
            .unwrap();
        response.headers.contains_key("warning")
    };
    let old = hot.proxy.client().http2().await;
    hot.change(json!({"hints": false})).await;
    assert!(warns(&old).await);
    assert!(!warns(&hot.proxy.client().http2().await).await);
}

#[tokio::test]
async fn address_is_added_and_removed_without_a_lost_request() {
    let hot = Hot::start(json!({})).await;
    let first = hot.proxy.bound();
    let (kept, removed) = (first[0], first[1]);
    let client = hot.client(removed).http2().await;
    let request = Request::post(format!("https://{HOST}/slow"))
        .body(())
        .unwrap();
    let (response, mut body) = client.begin(request, false).await.unwrap();
    body.send_data("first".into(), false).unwrap();
    hot.upstream.next_request().await;

    let listen = json!([{"address": "127.0.0.1:0"}, {"address": "127.0.0.2:0"}]);
    hot.change(json!({ "listen": listen })).await;
    let now = hot.proxy.bound();
    assert_eq!((now.len(), now[0]), (2, kept));
    let added = hot.client(now[1]).http1().await.get(HOST, "/", "").await;
    assert_eq!(added.status, 200);
    // A connection of the removed address gets GOAWAY, and ends once its request has its response.
    client.goaway().await;
    refuses_connections(removed).await;
    body.send_data("last".into(), true).unwrap();
    let response = within("the response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    client.end().await.unwrap();
    assert_eq!(hot.proxy.get(BOTH[1], "/").await.code, 200);
}

/// The wildcard address replaces a part of it: both sockets share the port for a moment.
#[tokio::test]
async fn wider_address_on_the_same_port_replaces_a_narrow_one() {
    let hot = Hot::start(json!({})).await;
    let port = hot.proxy.bound()[0].port();
    let listen = |addresses: &[&str]| json!({ "listen": addresses.iter().map(|ip| format!("{ip}:{port}")).collect::<Vec<_>>() });
    hot.change(listen(&["0.0.0.0"])).await;
    assert_eq!(hot.proxy.bound(), [SocketAddr::from(([0, 0, 0, 0], port))]);
    let other = SocketAddr::from(([127, 0, 0, 3], port));
    let response = hot.client(other).http1().await.get(HOST, "/", "").await;
    assert_eq!(response.status, 200);
    hot.change(listen(&["127.0.0.1"])).await;
    refuses_connections(other).await;
    assert_eq!(hot.proxy.get(BOTH[0], "/").await.code, 200);
}

#[tokio::test]
async fn address_that_cannot_be_opened_changes_nothing() {
    let hot = Hot::start(json!({})).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let before = hot.proxy.bound();
    let mut text = hot.base.clone();
    let change =
        json!({"listen": [{"address": address}], "hints": false, "limits": {"uriBytes": 1024}});
    merge(&mut text, change);
    fs::write(&hot.file, text.to_string()).unwrap();
    hot.proxy.fail_to_reload().await;
    let failure = hot.proxy.report().borrow().failure.clone().unwrap();
    assert!(
        failure.starts_with(&format!("cannot listen on {address}: ")),
        "{failure}"
    );
    assert_eq!(hot.proxy.bound(), before);
    let long = format!("/{}", "a".repeat(1500));
    assert_eq!(hot.proxy.get(BOTH[1], &long).await.code, 200);
    // The next try succeeds once the other process has left.
    drop(taken);
    let mut report = hot.proxy.report();
    hot.proxy.reload();
    let fixed = report.wait_for(|report| report.failure.is_none());
    drop(within("the next try", fixed).await.unwrap());
    assert_eq!(hot.proxy.bound(), [address]);
}

/// A client could connect to an address that opens and closes at each try. This one is taken, so that a try to open it
/// would be the first failure.
#[tokio::test]
async fn address_is_not_opened_while_another_part_is_wrong() {
    let hot = Hot::start(json!({})).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut text = hot.base.clone();
    merge(&mut text, json!({"listen": [{"address": address}]}));
    fs::write(&hot.file, text.to_string()).unwrap();
    let certificate = fs::read(hot.world.dir.path().join("public.crt")).unwrap();
    hot.world.dir.write("public.crt", "no certificate");
    let failure = || hot.proxy.report().borrow().failure.clone().unwrap();
    for _ in 0..2 {
        hot.proxy.fail_to_reload().await;
        assert!(failure().contains("public.crt"), "{}", failure());
    }
    hot.world.dir.write("public.crt", certificate);
    hot.proxy.fail_to_reload().await;
    let expected = format!("cannot listen on {address}: ");
    assert!(failure().starts_with(&expected), "{}", failure());
}

/// Its lists are unknown, so it could serve clients that the configuration keeps out.
#[tokio::test]
async fn inherited_socket_without_an_entry_is_refused() {
    let world = World::new();
    let config = world.proxy(SocketAddr::from(([127, 0, 0, 1], 1))).config;
    let bind = |listen: [SocketAddr; 2]| {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let mut config = config.clone();
        config.listen = listen.map(ListenConfig::from).into();
        config.listen[0].peers.deny = ["192.0.2.1".parse().unwrap()].into_iter().collect();
        if listen[1].port() == 0 {
            config.listen[1].address = address;
        }
        let bound = App::bind_or_inherit(Box::new(move || Ok(config.clone())), vec![socket]);
        (address, bound.err().map(|error| error.to_string()))
    };
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(bind([address(1), address(0)]).1, None);
    let (address, error) = bind([address(1), address(2)]);
    let beginning = format!("the inherited socket {address} has no entry in `listen`");
    assert!(error.as_ref().unwrap().starts_with(&beginning), "{error:?}");
}

/// Only the process that has opened the sockets can change them.
#[tokio::test]
async fn inherited_sockets_stay_and_their_lists_change() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let setup = world.proxy(upstream.address());
    let config = Arc::new(Mutex::new(setup.config));
    config.lock().unwrap().listen = vec![address.into()];
    let loaded = Arc::clone(&config);
    let source = Box::new(move || Ok(loaded.lock().unwrap().clone()));
    let app = App::bind_or_inherit(source, vec![socket]).unwrap();
    let (reload_now, mut report, bound) = (app.reload_now(), app.reloader().report(), app.bound());
    let running = tokio::spawn(app.run(std::future::pending()));
    let client = Client::new(address).trust(&world.public_ca).sni(HOST);
    assert_eq!(client.http1().await.get(HOST, "/", "").await.status, 200);
    let mut entry = ListenConfig::from(SocketAddr::from(([127, 0, 0, 1], address.port() - 1)));
    entry.peers.deny = ["127.0.0.0/8".parse().unwrap()].into_iter().collect();
    config.lock().unwrap().listen = vec![entry];
    // Other bytes of a certificate, so that the files count as changed.
    world.public_ca.server(&[HOST]).write(&world.dir, "public");
    reload_now.notify_one();
    let reloaded = report.wait_for(|report| report.needs_restart == ["listen"]);
    drop(within("the reload", reloaded).await.unwrap());
    assert_eq!(bound.load().as_slice(), [address]);
    client.connect().await.unwrap_err();
    running.abort();
}

#[tokio::test]
async fn log_format_changes_while_it_runs() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let write = |format: &str| {
        let text = format!("timeouts: {{reload: 1h}}\nlog: {{format: {format}}}\n");
        world.dir.write("log.yaml", text)
    };
    let config = write("text");
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    for (format, begins) in [("json", "{"), ("text", "time=")] {
        write(format);
        binary.signal("HUP").await;
        let mut client = binary.client(&world).http1().await;
        let target = format!("/{format}");
        let line = async {
            loop {
                client.get(HOST, &target, "").await;
                let lines = binary.stderr();
                let mut lines = lines.iter().filter(|line| line.contains(&target));
                if lines.any(|line| line.starts_with(begins)) {
                    return;
                }
            }
        };
        within(format, line).await;
    }
}
