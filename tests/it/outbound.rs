//! An outbound proxy between the proxy and the apiserver: CONNECT, CONNECT in TLS, and SOCKS 5.

use std::{net::SocketAddr, sync::Arc, sync::Mutex, time::Duration};

use kube_tls_proxy::{config::OutboundProxy, upstream::Health};
use serde_json::Value;
use standin::{
    outbound::{CONNECTED, Outbound, Script},
    pki::Ca,
    tcp::refused,
    within,
};

use crate::{
    binary::{Binary, run},
    proxy::{APISERVER, HOST, Proxy, World},
    responses::BOTH,
    tunnels::exchange,
    upgrades::{SPDY, echo},
};

/// Only the outbound proxies of these tests know this host.
const INSIDE: &str = "apiserver.inside.test";

fn url(text: &str, address: SocketAddr) -> OutboundProxy {
    text.replace("AT", &address.to_string()).parse().unwrap()
}

/// A proxy whose apiserver is [`INSIDE`], reached through an outbound proxy at this URL.
fn start(world: &World, outbound: OutboundProxy) -> Proxy {
    let setup = world.proxy(refused_address());
    let setup = setup.cluster(|cluster| {
        cluster.upstream_host = INSIDE.into();
        cluster.upstream_port = 6443;
        cluster.outbound = Some(outbound);
    });
    let setup = setup.timeouts(|timeouts| timeouts.upstream_connect = Duration::from_secs(2));
    setup.start()
}

/// Not used by a proxy whose apiserver is reached through another one.
fn refused_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

#[tokio::test]
async fn requests_and_exec_pass_each_kind_of_outbound_proxy() {
    let basic = "Proxy-Authorization: Basic bWU6cEBzcw==\r\n";
    let connect =
        |more: &str| format!("CONNECT {INSIDE}:6443 HTTP/1.1\r\nHost: {INSIDE}:6443\r\n{more}\r\n");
    let login = Script::Socks(Some(("me", "p@ss")), 0);
    for (text, script, asked) in [
        ("http://AT", Script::Connects(CONNECTED), connect("")),
        (
            "http://me:p%40ss@AT",
            Script::Connects(CONNECTED),
            connect(basic),
        ),
        (
            "https://me:p%40ss@AT/",
            Script::Connects(CONNECTED),
            connect(basic),
        ),
        (
            "socks5://AT",
            Script::Socks(None, 0),
            format!(" {INSIDE}:6443"),
        ),
        (
            "socks5h://me:p%40ss@AT",
            login,
            format!("me:p@ss {INSIDE}:6443"),
        ),
    ] {
        let world = World::new();
        let upstream = world.apiserver().http(echo).start().await;
        let identity = world.cluster_ca.server(&["127.0.0.1"]);
        let tls = text.starts_with("https").then_some(&identity);
        let outbound = Outbound::start(script, upstream.address(), tls).await;
        let proxy = start(&world, url(text, outbound.address()));
        for version in BOTH {
            assert_eq!(proxy.get(version, "/api").await.code, 200, "{text}");
        }
        let mut client = proxy.client().http1().await;
        client.send(SPDY).await;
        assert_eq!(client.head().await.unwrap().status, 101, "{text}");
        let (tunnel, _) = client.into_parts();
        within("the data of the tunnel", exchange(tunnel, 4 << 20)).await;
        assert!(
            outbound.asked().iter().all(|one| *one == asked),
            "{:?}",
            outbound.asked()
        );
        assert!(outbound.asked().len() >= 2, "{text}");
        for received in upstream.requests() {
            assert_eq!(received.header("proxy-authorization"), None, "{text}");
        }
    }
}

/// The bytes after the head are those of the apiserver. Here they are no TLS, so a lost byte would show as success.
#[tokio::test]
async fn bytes_after_the_head_of_the_outbound_proxy_are_kept() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let early = "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-OpenSSH\r\n";
    let outbound = Outbound::start(Script::Connects(early), upstream.address(), None).await;
    let proxy = start(&world, url("http://AT", outbound.address()));
    assert_eq!(proxy.get(BOTH[1], "/").await.code, 503);
    let why = proxy.health(outbound.address()).why.unwrap();
    let expected = format!(
        "through the outbound proxy http://{0}: the TLS handshake with {0} failed: ",
        outbound.address()
    );
    assert!(why.starts_with(&expected), "{why}");
    assert_eq!(upstream.requests().len(), 0);
}

#[tokio::test]
async fn refusal_of_outbound_proxy_is_told_to_client_and_operator() {
    let says = |text: &str| Script::Says(text.as_bytes().to_vec());
    let forbidden = "HTTP/1.1 403 No\u{1b}[31mway to 10.9.8.7\r\n\r\n".replace('\u{1b}', "<");
    let endless = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(20)).into_bytes();
    let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(20_000));
    let many = [endless, vec![b'c'; 40_000]].concat();
    // The scheme, the script, the text of the client, the text of the operator, and whether to try again.
    let cases = [
        (
            "http",
            says(&forbidden),
            "refused to connect to it (403)",
            "it refused: 403 No<[31mway to 10.9.8.7",
            false,
        ),
        (
            "http",
            says("HTTP/1.1 502 Bad Gateway\r\n\r\n"),
            "(502)",
            "it refused: 502 Bad Gateway",
            true,
        ),
        (
            "http",
            says("HTTP/1.1 204 No Content\r\n\r\n"),
            "(204)",
            "it refused: 204 No Content",
            false,
        ),
        (
            "http",
            says("HTTP/1.1 407 Login\r\n\r\n"),
            "refused the credentials of this proxy",
            "it refused: 407 Login; check user name and password in its URL",
            false,
        ),
        (
            "http",
            says("SSH-2.0-OpenSSH\r\n"),
            "sent no valid response",
            "its response is not that of an HTTP proxy; check the scheme in its URL",
            false,
        ),
        (
            "http",
            says(&long),
            "sent no valid response",
            "its response is longer than 16384 bytes",
            false,
        ),
        (
            "http",
            Script::Says(many),
            "sent no valid response",
            "its response is longer than 16384 bytes",
            false,
        ),
        (
            "http",
            says("HTTP/1.1 200"),
            "has not connected to it in time",
            "it has not connected to the apiserver within timeouts.upstreamConnect",
            true,
        ),
        (
            "http",
            Script::Ends(b"HTTP/1.1 200 O".to_vec()),
            "closed the connection before its response",
            "it closed the connection before its response",
            true,
        ),
        (
            "https",
            says("HTTP/1.1 400 Bad Request\r\n\r\n"),
            "failed the TLS handshake",
            "the TLS handshake with it failed: ",
            false,
        ),
        (
            "socks5",
            says("HTTP/1.1 400 Bad Request\r\n\r\n"),
            "sent no valid response",
            "its response is not that of a SOCKS 5 proxy; check the scheme in its URL",
            false,
        ),
        (
            "socks5",
            Script::Socks(Some(("me", "right")), 0),
            "refused the credentials",
            "it refused: the login is wrong; check user name and password in its URL",
            false,
        ),
        (
            "socks5",
            Script::Socks(None, 5),
            "refused to connect to it: the apiserver refused the connection (SOCKS reply 5)",
            "it refused: the apiserver refused the connection (SOCKS reply 5)",
            true,
        ),
        (
            "socks5",
            Script::Socks(None, 2),
            "its rules do not allow",
            "it refused: its rules do not allow the connection (SOCKS reply 2)",
            false,
        ),
        (
            "socks5",
            says("\u{5}"),
            "has not connected to it in time",
            "within timeouts.upstreamConnect",
            true,
        ),
    ];
    let world = World::new();
    for (scheme, script, for_client, for_operator, again) in cases {
        let case = format!("{scheme} {script:?}");
        let upstream = world.apiserver().start().await;
        let outbound = Outbound::start(script, upstream.address(), None).await;
        let address = outbound.address();
        let proxy = start(
            &world,
            url(&format!("{scheme}://me:wrong-p4ss@AT"), address),
        );
        let response = proxy.get(BOTH[1], "/api/v1/pods").await;
        let status: Value = serde_json::from_slice(&response.body).unwrap();
        let message = status["message"].as_str().unwrap();
        assert_eq!(response.code, 503, "{case}: {message}");
        let begins = "kube-tls-proxy: the outbound proxy before the apiserver ";
        assert!(
            message.starts_with(begins) && message.contains(for_client),
            "{case}: {message}"
        );
        assert!(
            !message.contains("127.0.0.1") && !message.contains("10.9.8.7"),
            "{message}"
        );
        assert_eq!(
            response.lines("retry-after").len(),
            usize::from(again),
            "{case}"
        );
        let why = proxy.health(address).why.unwrap();
        let begins = format!("no connection through the outbound proxy {scheme}://{address}: ");
        assert!(
            why.starts_with(&begins) && why.contains(for_operator),
            "{case}: {why}"
        );
        assert!(!why.contains("p4ss"), "{why}");
        assert_eq!(proxy.health(address).is_down, again, "{case}");
        assert_eq!(upstream.accepted(), 0, "{case}");
    }
}

#[tokio::test]
async fn outbound_proxy_with_an_unknown_certificate_gets_no_password() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    for identity in [
        Ca::new("foreign").server(&["127.0.0.1"]),
        world.cluster_ca.server(&["other.test"]),
    ] {
        let script = Script::Connects(CONNECTED);
        let outbound = Outbound::start(script, upstream.address(), Some(&identity)).await;
        let proxy = start(&world, url("https://me:p4ss@AT", outbound.address()));
        assert_eq!(proxy.get(BOTH[1], "/").await.code, 503);
        assert_eq!(outbound.asked(), [""; 0]);
    }
}

#[tokio::test]
async fn unverified_apiserver_through_outbound_proxy_gets_no_byte() {
    let world = World::new();
    let foreign = Ca::new("foreign").server(&[APISERVER]);
    let upstream = standin::upstream::Upstream::builder(foreign).start().await;
    let script = Script::Connects(CONNECTED);
    let outbound = Outbound::start(script, upstream.address(), None).await;
    let proxy = start(&world, url("http://AT", outbound.address()));
    assert_eq!(proxy.get(BOTH[1], "/").await.code, 503);
    let why = proxy.health(outbound.address()).why.unwrap();
    let begins = format!(
        "through the outbound proxy http://{}: cannot verify",
        outbound.address()
    );
    assert!(why.starts_with(&begins), "{why}");
    upstream.connection_end(0).await;
    assert_eq!(upstream.connections()[0].bytes_received, 0);
}

#[tokio::test]
async fn outbound_proxy_that_is_down_is_named() {
    let world = World::new();
    let address = refused().await;
    let proxy = start(&world, url("socks5://AT", address));
    let response = proxy.get(BOTH[1], "/").await;
    let text = String::from_utf8_lossy(&response.body).into_owned();
    assert!(
        text.contains("the outbound proxy before the apiserver accepts no connection"),
        "{text}"
    );
    proxy.wait_for_health(address, Health::Unhealthy).await;
    let why = proxy.health(address).why.unwrap();
    assert!(why.contains("cannot connect to it: "), "{why}");
}

#[tokio::test]
async fn new_outbound_proxy_gets_connections_of_its_own() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let outbound = || Outbound::start(Script::Connects(CONNECTED), upstream.address(), None);
    let (old, new) = (outbound().await, outbound().await);
    let mut setup = world.proxy(upstream.address());
    setup.config.clusters[0].outbound = Some(url("http://AT", old.address()));
    let config = Arc::new(Mutex::new(setup.config.clone()));
    let source = Arc::clone(&config);
    let proxy = setup.start_from(Box::new(move || Ok(source.lock().unwrap().clone())));
    let open = proxy.client().http2().await;
    let get = async |text: &str| {
        open.get(&format!("https://{HOST}{text}"))
            .await
            .unwrap()
            .status
    };
    assert_eq!(get("/one").await, 200);
    assert_eq!(proxy.get(BOTH[0], "/").await.code, 200);
    let before = old.asked().len();
    // Another password is another way, too.
    for text in ["http://AT", "http://me:p@AT", "http://me:q@AT"] {
        let known = new.asked().len();
        config.lock().unwrap().clusters[0].outbound = Some(url(text, new.address()));
        // Other bytes of a certificate, so that the files count as changed.
        world.public_ca.server(&[HOST]).write(&world.dir, "public");
        let mut report = proxy.report();
        let reloaded = report.borrow().reloaded;
        proxy.reload();
        let done = report.wait_for(|report| report.reloaded > reloaded);
        drop(within("the reload", done).await.unwrap());
        assert_eq!(get("/two").await, 200);
        assert_eq!(new.asked().len(), known + 1, "{text}");
    }
    assert_eq!(old.asked().len(), before);
}

#[tokio::test]
async fn passthrough_host_is_reached_through_outbound_proxy() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let script = Script::Socks(None, 0);
    let outbound = Outbound::start(script, upstream.address(), None).await;
    let setup = world.proxy(upstream.address()).cluster(|cluster| {
        cluster.passthrough = true;
        cluster.hosts = vec![APISERVER.into()];
        cluster.outbound = Some(url("socks5://AT", outbound.address()));
    });
    let proxy = setup.start();
    let client = standin::client::Client::new(proxy.address()).trust(&world.cluster_ca);
    let client = client.sni(APISERVER);
    assert_eq!(
        client.http1().await.get(APISERVER, "/", "").await.status,
        200
    );
    assert_eq!(outbound.asked(), [format!(" {}", upstream.address())]);
}

/// In the log of the start and of a failure, the metrics and the status page, with a flag, a variable and a kubeconfig.
#[tokio::test]
async fn password_of_outbound_proxy_is_never_printed() {
    let world = World::new();
    let refuses = Script::Ends(b"HTTP/1.1 407 Login\r\n\r\n".to_vec());
    let upstream = world.apiserver().start().await;
    let outbound = Outbound::start(refuses, upstream.address(), None).await;
    let shown = format!("http://{}", outbound.address());
    let secret = format!("http://user:hunter2pass@{}", outbound.address());
    let environment = [
        ("KUBE_TLS_PROXY_UPSTREAM_PROXY_URL", secret.as_str()),
        ("KUBE_TLS_PROXY_LOG_LEVEL", "trace"),
    ];
    let more = ["--admin-listen", "127.0.0.1:0"];
    let binary = Binary::start_with(&world, upstream.address(), &more, &environment).await;
    let response = binary
        .client(&world)
        .http1()
        .await
        .get(HOST, "/api/v1/pods", "")
        .await;
    assert_eq!(response.status, 503);
    let admin = async |target: &str| crate::admin::get(binary.admin().await, target).await.text();
    let page = admin("/status.json").await;
    let status: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(status["clusters"][0]["outbound_proxy"], shown.as_str());
    let metrics = admin("/metrics").await;
    assert!(
        metrics.contains("result=\"outbound_proxy\"} 1"),
        "{metrics}"
    );
    let log = binary.stderr().join("\n");
    let line = format!("no connection through the outbound proxy {shown}: it refused: 407 Login");
    assert!(log.contains(&line), "{log}");
    assert!(
        log.contains(&format!("through {shown} as {APISERVER}")),
        "{log}"
    );
    for printed in [page, metrics, log] {
        assert!(!printed.contains("hunter2"), "{printed}");
        // The two in base64.
        assert!(!printed.contains("dXNlcjpodW50"), "{printed}");
    }
    let in_path = secret.replace("pass@", "p/ss@");
    for (bad, problem) in [
        (in_path.as_str(), "the value has a path"),
        ("user:hunter2pass", "the value is not the URL of a proxy"),
    ] {
        let text = format!(
            "clusters:\n- name: a\n  upstream:\n    url: https://a\n    ca: b\n    proxyUrl: {bad}\n"
        );
        let file = world.dir.write("bad.yaml", text);
        let by_file = run(&["serve", "--config", file.to_str().unwrap()]).await;
        let cluster = ["--upstream", "https://a", "--upstream-ca", "b"];
        let flags = [
            "serve",
            "--cert",
            "c",
            "--key",
            "k",
            "--upstream-proxy-url",
            bad,
        ];
        let by_flag = run(&[&flags[..], &cluster].concat()).await;
        for (ended, place) in [
            (by_file, "line 6, column 15: "),
            (by_flag, "--upstream-proxy-url: "),
        ] {
            let printed = ended.stderr;
            assert!(printed.contains(&format!("{place}{problem}")), "{printed}");
            assert!(!printed.contains("hunter2"), "{printed}");
        }
    }
}
