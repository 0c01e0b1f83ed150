//! What a change of a key does on the wire without a restart. `hot_file` proves that each key can change under load;
//! here are the keys whose effect no other test observes.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use standin::{
    client::Http2,
    outbound::{CONNECTED, Outbound, Script},
    pki::Ca,
    tcp::{Behaviour, Peer, Relay},
    upstream::full,
    within,
};
use tokio::io::AsyncWriteExt as _;

use crate::{
    admin::get,
    hot_file::{Hot, merge},
    proxy::{APISERVER, HOST, World, watch_or_ok},
    retry::{Apiserver, Outcome},
    tunnels::timer,
    upgrades::{ManualApiserver, SPDY, SPDY_101},
};

/// The host of the second cluster, which the tests change.
const OTHER: &str = "other.test";

impl Hot {
    /// The file of the start with this change of the second cluster.
    fn with_other(&self, change: Value) -> Value {
        let mut text = self.base.clone();
        merge(&mut text["clusters"][1], change);
        text
    }

    /// Lets the second cluster have this URL from the start.
    async fn move_other(&mut self, url: String) {
        self.base = self.with_other(json!({"upstream": { "url": url }}));
        self.write(&self.base).await;
    }
}

async fn send(client: &Http2, host: &str, target: &str, line: (&str, &str)) -> (u16, String) {
    let request = Request::get(format!("https://{host}{target}"));
    let request = request.header(line.0, line.1).body(Bytes::new()).unwrap();
    let response = client.request(request).await.unwrap();
    (response.status.as_u16(), response.text())
}

/// Each change counts for the next request on a connection that is open. The other apiserver is at another address.
#[tokio::test]
async fn keys_of_a_cluster_change_for_new_requests() {
    let mut hot = Hot::start(json!({"admin": {"listen": "127.0.0.1:0"}})).await;
    let (world, first) = (&hot.world, hot.upstream.address());
    let second = world.apiserver().http(watch_or_ok).start().await;
    let through = Outbound::start(Script::Connects(CONNECTED), first, None).await;
    let file = |name: &str| world.dir.path().join(name).to_str().unwrap().to_owned();
    world.dir.write("foreign.crt", Ca::new("foreign").pem());
    let named = |name: &str| {
        json!({"name": name, "cluster": {
            "server": format!("https://{first}/{name}"), "tls-server-name": APISERVER,
            "certificate-authority": file("cluster-ca.crt"),
        }})
    };
    let context = |name: &str| json!({"name": name, "context": {"cluster": name}});
    let kubeconfig = json!({
        "clusters": [named("one"), named("two")],
        "contexts": [context("one"), context("two")],
        "current-context": "one",
    });
    world.dir.write("cluster.conf", kubeconfig.to_string());
    let conf = |more: Value| {
        let mut change = json!({"upstream": null, "kubeconfig": file("cluster.conf")});
        merge(&mut change, more);
        change
    };
    let upstream = |key: &str, value: Value| json!({"upstream": { key: value }});
    let own = format!("127.0.0.1:{}", second.address().port());
    // The key, its change, host and target of a request, and which apiserver sees which host, target and SNI.
    let rows = [
        (
            "hosts",
            json!({"hosts": ["third.test"]}),
            OTHER,
            "421".to_owned(),
        ),
        (
            "hosts",
            json!({"hosts": ["third.test"]}),
            "third.test",
            format!("second third.test /x {APISERVER}"),
        ),
        (
            "upstream.url",
            upstream("url", json!(format!("https://{first}/p"))),
            OTHER,
            format!("first {OTHER} /p/x {APISERVER}"),
        ),
        (
            "upstream.addresses",
            upstream("addresses", json!([first])),
            OTHER,
            format!("first {OTHER} /x {APISERVER}"),
        ),
        (
            "upstream.proxyUrl",
            upstream("proxyUrl", json!(format!("http://{}", through.address()))),
            OTHER,
            format!("first {OTHER} /x {APISERVER}"),
        ),
        (
            "upstream.ca",
            upstream("ca", json!(file("foreign.crt"))),
            OTHER,
            "503".to_owned(),
        ),
        (
            "upstream.name",
            upstream("name", json!("127.0.0.1")),
            OTHER,
            format!("second {OTHER} /x -"),
        ),
        (
            "upstream.host",
            upstream("host", json!("upstream")),
            OTHER,
            format!("second {own} /x {APISERVER}"),
        ),
        (
            "kubeconfig",
            conf(json!({})),
            OTHER,
            format!("first {OTHER} /one/x {APISERVER}"),
        ),
        (
            "context",
            conf(json!({"context": "two"})),
            OTHER,
            format!("first {OTHER} /two/x {APISERVER}"),
        ),
        (
            "inCluster",
            json!({"upstream": null, "inCluster": true}),
            OTHER,
            format!("first {OTHER} /x {APISERVER}"),
        ),
        (
            "pathPrefix",
            json!({"pathPrefix": "/x"}),
            OTHER,
            format!("second {OTHER} / {APISERVER}"),
        ),
    ];
    hot.base = hot.with_other(upstream(
        "url",
        json!(format!("https://{}", second.address())),
    ));
    hot.write(&hot.base).await;
    let open = hot.proxy.client().http2().await;
    let usual = format!("second {OTHER} /x {APISERVER}");
    let observe = async |host: &str| {
        let servers = [("first", &hot.upstream), ("second", &second)];
        let known = servers.map(|(_, server)| server.requests().len());
        let (status, _) = send(&open, host, "/x", ("x-a", "b")).await;
        for ((name, server), known) in servers.into_iter().zip(known) {
            if let Some(request) = server.requests().get(known) {
                let sni = server.connections()[request.connection].sni.clone();
                let authority = request.authority.clone().unwrap();
                let sni = sni.unwrap_or_else(|| "-".to_owned());
                return format!("{name} {authority} {} {sni}", request.target);
            }
        }
        status.to_string()
    };
    for (key, change, host, expected) in rows {
        assert_eq!(observe(OTHER).await, usual, "before {key}");
        hot.write(&hot.with_other(change)).await;
        assert_eq!(observe(host).await, expected, "{key}");
        hot.write(&hot.base).await;
    }
    assert_eq!(through.asked().len(), 1);
    hot.write(&hot.with_other(json!({"name": "renamed"}))).await;
    assert_eq!(observe(OTHER).await, usual);
    let metrics = get(hot.proxy.admin(), "/metrics").await.text();
    assert!(metrics.contains("{cluster=\"renamed\""), "{metrics}");
}

#[tokio::test]
async fn published_command_changes_for_new_requests() {
    let hot = Hot::start(json!({})).await;
    let open = hot.proxy.client().http2().await;
    let published = async |host: &str| {
        send(&open, host, "/.well-known/kubeconfig", ("x-a", "b"))
            .await
            .1
    };
    let publish = |command: &str| json!({"publish": {"kubeconfig": {"exec": {"command": command, "args": [format!("of-{command}")]}}}});
    for command in ["first-helper", "second-helper"] {
        hot.change(publish(command)).await;
        let all = published(HOST).await;
        hot.write(&hot.with_other(publish(command))).await;
        let one = published(OTHER).await;
        for text in [all, one] {
            assert!(
                text.contains(command) && text.contains(&format!("of-{command}")),
                "{text}"
            );
        }
        assert!(!published(HOST).await.contains(command));
    }
}

#[tokio::test]
async fn trusted_proxies_change_for_new_requests() {
    let hot = Hot::start(json!({})).await;
    let open = hot.proxy.client().http2().await;
    let sees_named = async || {
        send(&open, HOST, "/", ("x-forwarded-for", "203.0.113.9")).await;
        let requests = hot.upstream.requests();
        let field = requests.last().unwrap().header("x-forwarded-for").unwrap();
        field.contains("203.0.113.9")
    };
    for (change, expected) in [
        (json!({}), false),
        (json!({"trustedProxies": ["127.0.0.0/8"]}), true),
        (json!({"trustedProxies": ["192.0.2.0/24"]}), false),
    ] {
        hot.change(change.clone()).await;
        assert_eq!(sees_named().await, expected, "{change}");
    }
}

/// How many of ten requests with a refused credential reach the apiserver.
#[tokio::test]
async fn budget_of_refusals_changes_for_new_requests() {
    let world = World::new();
    let refuse = |_request| async {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response
    };
    let upstream = world.apiserver().http(refuse).start().await;
    let hot = Hot::start_with(world, upstream, json!({}));
    for (count, per, expected) in [(20, "1h", 10), (2, "1h", 2), (2, "1ms", 10)] {
        let limit = json!({"unauthorizedPerClient": {"count": count, "per": per}});
        hot.change(json!({ "limits": limit })).await;
        let before = hot.upstream.requests().len();
        let token = format!("Bearer {count}{per}");
        for _ in 0..10 {
            // A connection ends after a 401.
            let client = hot.proxy.client().http2().await;
            let answer = send(&client, HOST, "/api/v1/pods", ("authorization", &token)).await;
            assert_eq!(answer.0, 401);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let reached = hot.upstream.requests().len() - before;
        assert_eq!(reached, expected, "{limit}");
    }
}

#[tokio::test]
async fn replay_bytes_change_for_new_connections() {
    for (bytes, expected) in [(2048, 200), (16, 503)] {
        let mut hot = Hot::start(json!({})).await;
        let apiserver = Apiserver::start(&hot.world, Outcome::Refused, 1).await;
        hot.move_other(format!("https://{}", apiserver.upstream.address()))
            .await;
        let mut text = hot.base.clone();
        merge(&mut text, json!({"limits": { "replayBytes": bytes }}));
        hot.write(&text).await;
        let client = hot.proxy.client().http2().await;
        assert_eq!(send(&client, OTHER, "/first", ("x-a", "b")).await.0, 200);
        let request = Request::post(format!("https://{OTHER}/second"));
        let response = client
            .request(request.body(vec![b'x'; 1024].into()).unwrap())
            .await;
        assert_eq!(response.unwrap().status, expected, "{bytes}");
    }
}

#[tokio::test]
async fn timeouts_of_apiservers_change_for_the_next_dial() {
    let slow = json!({"timeouts": {
        "upstreamConnect": "1h", "upstreamPingInterval": "1h", "upstreamPingTimeout": "1h", "probeTimeout": "1h",
    }});
    let mut hot = Hot::start(slow).await;
    let short = |keys: &[&str], base: &Value| {
        let mut text = base.clone();
        for key in keys {
            text["timeouts"][key] = "50ms".into();
        }
        text
    };
    let silent = Peer::start(Behaviour::Silent).await;
    hot.move_other(format!("https://{}", silent.address()))
        .await;
    hot.write(&short(&["upstreamConnect"], &hot.base)).await;
    let client = hot.proxy.client().http2().await;
    let failed = send(&client, OTHER, "/api/v1/pods", ("x-a", "b"));
    assert_eq!(within("the end of the dial", failed).await.0, 503);

    hot.write(&short(&["probeInterval", "probeTimeout"], &hot.base))
        .await;
    let ended = async {
        loop {
            let why = hot.proxy.health(silent.address()).why.unwrap_or_default();
            if why.contains("within timeouts.probeTimeout") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("the end of a probe", ended).await;

    let relay = Relay::start(hot.upstream.address()).await;
    hot.move_other(format!("https://{}", relay.address())).await;
    hot.write(&short(&["upstreamPingInterval"], &hot.base))
        .await;
    let watch = async |client: &Http2| {
        client
            .open(&format!("https://{OTHER}/watch"))
            .await
            .unwrap()
    };
    let first = watch(&client).await;
    let pinged = hot.upstream.wait_for("a ping", |connections| {
        connections
            .last()
            .is_some_and(|one| one.pings() > 0)
            .then_some(())
    });
    pinged.await;
    drop(first);
    let both = ["upstreamPingInterval", "upstreamPingTimeout"];
    // Another URL, so that a new connection is made.
    hot.move_other(format!("https://{}/p", relay.address()))
        .await;
    hot.write(&short(&both, &hot.base)).await;
    let mut second = hot
        .proxy
        .client()
        .http2()
        .await
        .open(&format!("https://{OTHER}/watch"))
        .await
        .unwrap();
    relay.freeze();
    let ended = async { while let Some(Ok(_)) = second.body_mut().data().await {} };
    within("the end of the watch", ended).await;
}

#[tokio::test]
async fn ping_timeout_and_keepalive_change_for_new_clients() {
    let slow = json!({"timeouts": {"clientPingTimeout": "1h", "tcpKeepalive": "20s"}});
    let hot = Hot::start(slow).await;
    let address = hot.proxy.address();
    let local = async || {
        let mut client = hot.proxy.client().http1().await;
        client.get(HOST, "/", "").await;
        let local = client.stream().tcp().local_addr().unwrap();
        (client, local)
    };
    let (_old, old) = local().await;
    hot.change(json!({"timeouts": {"clientPingInterval": "50ms", "clientPingTimeout": "50ms", "tcpKeepalive": "1h"}})).await;
    let (_new, new) = local().await;
    let armed = async {
        loop {
            let timers = [old, new].map(|client| timer(address, client));
            if let [Some((first, old)), Some((second, new))] = timers
                && first == "02"
                && second == "02"
            {
                return [old, new];
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let [old, new] = within("the keepalive timers", armed).await;
    assert!(old <= 20 * 100 && new > 60 * 100, "{old} {new}");
    // This client answers no ping.
    let mut frames = hot.proxy.frame_client().await;
    let ended = async { while let Ok(Some(_)) = frames.next().await {} };
    within("the end of a client that answers no ping", ended).await;
}

#[tokio::test]
async fn times_of_tunnels_follow_the_file() {
    let mut hot =
        Hot::start(json!({"timeouts": {"halfCloseTimeout": "1h", "drainTunnels": "1h"}})).await;
    let apiserver = ManualApiserver::start(&hot.world).await;
    hot.move_other(format!("https://{}", apiserver.upstream.address()))
        .await;
    let mut text = hot.base.clone();
    merge(
        &mut text,
        json!({"timeouts": {"halfCloseTimeout": "50ms", "drainTunnels": "50ms", "drain": "50ms"}}),
    );
    hot.write(&text).await;
    let open = async || {
        let mut client = hot.proxy.client().http1().await;
        client.send(SPDY.replace(HOST, OTHER)).await;
        let mut server = apiserver.next_request().await;
        server.send(SPDY_101).await;
        assert_eq!(client.head().await.unwrap().status, 101);
        (client, server)
    };
    let (mut client, mut server) = open().await;
    client.stream().shutdown().await.unwrap();
    assert_eq!(server.read_to_end().await.unwrap(), b"");
    within("the end of the other half", client.end())
        .await
        .unwrap_err();
    let (_client, _server) = open().await;
    hot.proxy.begin_shutdown();
    hot.proxy.wait_until_stopped().await;
}

#[tokio::test]
async fn number_of_connections_follows_the_file() {
    let hot = Hot::start(json!({"admin": {"listen": "127.0.0.1:0"}})).await;
    let limit = async || {
        let text = get(hot.proxy.admin(), "/metrics").await.text();
        let line = text
            .lines()
            .find(|line| line.starts_with("kube_tls_proxy_connections_limit "));
        line.unwrap().to_owned()
    };
    assert!(limit().await.ends_with(" 100"));
    let kept = hot.proxy.client().http2().await;
    hot.change(json!({"admin": {"listen": "127.0.0.1:0"}, "limits": {"connections": 7}}))
        .await;
    assert!(limit().await.ends_with(" 7"));
    assert_eq!(send(&kept, HOST, "/", ("x-a", "b")).await.0, 200);
}
