//! `--through`: a running proxy as clients see it, and which leg is broken.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
};

use standin::{
    haproxy::HaProxy,
    kubernetes::Kubernetes,
    tcp::refused,
    upstream::{Received, Upstream, full},
    within,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::world::{APISERVER, RunResult, World, check, command, flags, path, run};

/// Checks the proxy at this port as its clients use it.
async fn through(world: &World, port: u16, more: &[&str]) -> RunResult {
    let url = format!("https://localhost:{port}");
    let flags = [flags(&[("--through", &url)]), world.clients_trust()].concat();
    check(&flags, more).await
}

/// The requests that the apiserver received from `check`, without the probes of the proxy.
fn requests_of_check(upstream: &Upstream) -> Vec<Received> {
    let mut requests = upstream.requests();
    requests.retain(|request| {
        let agent = request.header("user-agent").unwrap_or_default();
        agent.starts_with("kube-tls-proxy-check/")
    });
    requests
}

#[tokio::test]
async fn healthy_proxy_passes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let result = through(&world, serving.address.port(), &[]).await;
    assert_eq!(result.code, 0, "{}{}", result.stdout, result.stderr);
    // If localhost has two addresses, the second one is a warning.
    let mut passed = result.marked('✓');
    passed.dedup();
    assert_eq!(
        passed,
        [
            "dns", "tcp", "tls", "verify", "alpn", "version", "clock", "readyz", "upgrade"
        ],
        "{}",
        result.stdout
    );
    assert!(
        result.stdout.starts_with("Through https://localhost:"),
        "{}",
        result.stdout
    );
    let request = requests_of_check(&upstream).remove(0);
    assert_eq!(
        request.header("x-forwarded-for"),
        Some("127.0.0.1"),
        "it went through the proxy"
    );
}

#[tokio::test]
async fn flags_of_serve_and_through_check_both_sides() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let flags = world.flags(upstream.address());
    let serving = world.serve(&flags).await;
    let flags = [flags, world.clients_trust()].concat();
    let url = format!("https://localhost:{}", serving.address.port());
    let result = check(&flags, &["--through", &url]).await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    assert_eq!(result.of("version").len(), 2, "{}", result.stdout);
    assert_eq!(result.of("certificate").len(), 1, "{}", result.stdout);
}

#[tokio::test]
async fn unreachable_apiserver_breaks_the_upstream_leg() {
    let world = World::new();
    let serving = world.serve(&world.flags(refused().await)).await;
    let result = through(&world, serving.address.port(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "version",
        "proxy → apiserver: the proxy itself responds to /version with 502 Bad Gateway: the apiserver does not accept connections",
        "run `kube-tls-proxy check` where the proxy runs, with the flags of its `serve`",
    );
    assert_eq!(result.marked('–'), ["clock", "readyz", "upgrade"]);
    assert!(
        result
            .stdout
            .ends_with("The broken leg is proxy → apiserver.\n"),
        "{}",
        result.stdout
    );
    let document = through(&world, serving.address.port(), &["--output", "json"])
        .await
        .json();
    assert_eq!(document["brokenLeg"], "proxy-apiserver");
    assert_eq!(document["result"], "failed");
}

#[tokio::test]
async fn unverified_or_unreachable_proxy_breaks_the_client_leg() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let url = format!("https://localhost:{}", serving.address.port());
    // The proxy has a private CA, which is not among the public ones.
    let result = check(&flags(&[("--through", &url)]), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "verify",
        "is not signed by a public CA: it was issued by CN=public",
        "if it is your own CA, pass it with --through-ca",
    );
    assert!(
        result
            .stdout
            .ends_with("The broken leg is client → proxy.\n"),
        "{}",
        result.stdout
    );
    // The certificate is not valid for this name.
    let url = format!("https://127.0.0.1:{}", serving.address.port());
    let result = check(
        &[flags(&[("--through", &url)]), world.clients_trust()].concat(),
        &[],
    )
    .await;
    result.assert_finding(
        1,
        '✗',
        "verify",
        "client → proxy: the certificate of 127.0.0.1:",
        "use a name in the certificate",
    );
    // Nothing listens there.
    let url = format!("https://{}", refused().await);
    let result = check(&flags(&[("--through", &url)]), &["--output", "json"]).await;
    assert_eq!(
        (result.code, &result.json()["brokenLeg"]),
        (1, &"client-proxy".into())
    );
    assert_eq!(requests_of_check(&upstream).len(), 0, "nothing is sent");
}

/// kubectl connects through the proxy of the environment, so it may work where the check does not.
#[tokio::test]
async fn https_proxy_of_kubectl_is_mentioned_when_dns_fails() {
    let mut command = command("check");
    command.args(["--through", "https://proxy.invalid"]);
    let without = run(&mut command).await;
    assert!(
        !without.stdout.contains("HTTPS_PROXY"),
        "{}",
        without.stdout
    );
    let result = run(command.env("HTTPS_PROXY", "http://192.0.2.1:3128")).await;
    result.assert_finding(
        1,
        '✗',
        "dns",
        "(kubectl would connect through HTTPS_PROXY; this check connects directly)",
        "check the name in the URL of --through",
    );
}

/// A plain exec request reaches the apiserver, whose response is the same with and without the field. What `check`
/// sees is then the response of an apiserver, as this stand-in sends it.
#[tokio::test]
async fn through_without_upgrade_field_fails() {
    for cluster in [
        Kubernetes::new(),
        Kubernetes::new().token("good", "jane", &[]),
    ] {
        let world = World::new();
        let apiserver = Upstream::builder(world.identity()).kubernetes(&cluster);
        let upstream = apiserver.start().await;
        let result = through(&world, upstream.address().port(), &[]).await;
        result.assert_finding(1, '✗', "upgrade", WITHOUT_UPGRADE, "to allow WebSocket");
        assert_eq!(result.marked('✗'), ["upgrade"], "{}", result.stdout);
    }
}

/// `proxy_pass` and nothing else, as in nginx's guide: requests work, exec does not.
#[tokio::test]
async fn nginx_with_default_configuration_fails() {
    if !Path::new(NGINX).exists() {
        eprintln!("skipped: there is no {NGINX}");
        return;
    }
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let upgrades = "proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection \"upgrade\";";
    for (settings, code) in [("", 1), (upgrades, 0)] {
        let nginx = Nginx::start(&world, serving.address, settings).await;
        let result = through(&world, nginx.port, &[]).await;
        if code == 1 {
            result.assert_finding(1, '✗', "upgrade", WITHOUT_UPGRADE, "to allow WebSocket");
            assert_eq!(result.marked('✗'), ["upgrade"], "{}", result.stdout);
        } else {
            let ok: Vec<_> = result
                .of("upgrade")
                .into_iter()
                .map(|line| line.mark)
                .collect();
            assert_eq!(
                (result.code, &ok[..]),
                (0, &['✓', '✓'][..]),
                "{}",
                result.stdout
            );
        }
    }
}

/// Each side of the PROXY protocol alone breaks every connection.
#[tokio::test]
async fn proxy_header_on_one_side_only_is_named() {
    const MISSING: &str = "because it begins without a PROXY header";
    const UNEXPECTED: &str = "probably a PROXY header that it does not expect";
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let plain = world.flags(upstream.address());
    let from = flags(&[("--proxy-protocol-from", "127.0.0.0/8,::1")]);
    let expecting = world.serve(&[plain.clone(), from].concat()).await;
    let plain = world.serve(&plain).await;
    // This machine is in the list, and no load balancer is between.
    let result = through(&world, expecting.address.port(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "tls",
        MISSING,
        "take the address of this machine out",
    );
    for (serving, options, finding) in [
        (&expecting, "send-proxy-v2", None),
        (
            &expecting,
            "",
            Some((MISSING, "turn the PROXY protocol on")),
        ),
        (
            &plain,
            "send-proxy",
            Some((UNEXPECTED, "turn the PROXY protocol off")),
        ),
        (
            &plain,
            "send-proxy-v2",
            Some((UNEXPECTED, "proxyProtocol.from")),
        ),
    ] {
        let listen = [127, 0, 0, 1].into();
        let haproxy = HaProxy::start(&world.dir, listen, serving.address, options).await;
        let Some(haproxy) = haproxy else { return };
        let result = through(&world, haproxy.address.port(), &[]).await;
        match finding {
            Some((text, fix)) => result.assert_finding(1, '✗', "tls", text, fix),
            None => assert_eq!(result.code, 0, "{}", result.stdout),
        }
    }
}

/// Either sign of a passthrough host alone means nothing: the certificate may have any names, and the balancer may send
/// requests for every host to one cluster.
#[tokio::test]
async fn balancer_with_one_sign_of_passthrough_fails() {
    let world = World::new();
    let with_name = world.public_ca.server(&["localhost", APISERVER]);
    for (identity, serves_any_host) in [(with_name, false), (world.identity(), true)] {
        let balancer = Upstream::builder(identity)
            .http(move |mut request| async move {
                let host = request.headers().get("host");
                let is_unknown = host.is_some_and(|host| host.as_bytes().ends_with(b".invalid"));
                if !is_unknown || serves_any_host {
                    request.headers_mut().remove("upgrade");
                    return Kubernetes::new().respond(request).await;
                }
                let status = r#"{"kind":"Status","message":"kube-tls-proxy: no such host"}"#;
                let mut response = http::Response::new(full(status));
                *response.status_mut() = http::StatusCode::MISDIRECTED_REQUEST;
                response
            })
            .start()
            .await;
        let result = through(&world, balancer.address().port(), &[]).await;
        result.assert_finding(1, '✗', "upgrade", WITHOUT_UPGRADE, "to allow WebSocket");
    }
}

/// A load balancer that knows only WebSocket is good enough for kubectl 1.31 and newer.
#[tokio::test]
async fn through_without_spdy_is_a_warning() {
    let world = World::new();
    let balancer = Upstream::builder(world.identity())
        .http(|request| async move {
            if request.headers().contains_key("sec-websocket-protocol") {
                let status = r#"{"kind":"Status","message":"kube-tls-proxy: arrived","reason":"UpgradeCheck"}"#;
                let mut response = http::Response::new(full(status));
                *response.status_mut() = http::StatusCode::BAD_REQUEST;
                return response;
            }
            Kubernetes::new().respond(request).await
        })
        .start()
        .await;
    let result = through(&world, balancer.address().port(), &[]).await;
    result.assert_finding(
        0,
        '!',
        "upgrade",
        "WebSocket works, but SPDY does not",
        "forward TCP unchanged",
    );
}

/// Before DNS leads to the proxy: name and certificate are those of the URL, and only the address is another one.
#[tokio::test]
async fn connect_to_replaces_host_and_port_only() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let check_at = async |url: &str, connect_to: &str| {
        let flags = flags(&[("--through", url), ("--connect-to", connect_to)]);
        check(&[flags, world.clients_trust()].concat(), &[]).await
    };
    let address = serving.address.to_string();
    let result = check_at("https://kube.test", &address).await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    let requests = requests_of_check(&upstream);
    assert!(
        requests
            .iter()
            .any(|request| request.authority.as_deref() == Some("kube.test"))
    );
    // Without a port it is the one of the URL.
    let url = format!("https://kube.test:{}", serving.address.port());
    let result = check_at(&url, "127.0.0.1").await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    check_at("https://other.test", &address)
        .await
        .assert_finding(
            1,
            '✗',
            "verify",
            "is not valid for other.test",
            "use a name in the certificate",
        );
    let dead = refused().await.to_string();
    check_at("https://kube.test", &dead).await.assert_finding(
        1,
        '✗',
        "tcp",
        "refuses connections",
        "or correct the port in --connect-to",
    );
    for bad in ["https://127.0.0.1", "127.0.0.1:0", "a:b", "::1:x", ""] {
        let result = check_at("https://kube.test", bad).await;
        assert_eq!(result.code, 2, "{bad}");
        assert!(
            result
                .stderr
                .contains("--connect-to: the value is not an address"),
            "{bad}"
        );
    }
}

const NGINX: &str = "/usr/sbin/nginx";
const WITHOUT_UPGRADE: &str =
    "client → proxy: the request reaches the proxy without its Upgrade header";

/// A running nginx; drop kills it.
struct Nginx {
    _child: Child,
    port: u16,
}

impl Nginx {
    /// nginx with these settings in front of the proxy, on a free port.
    async fn start(world: &World, proxy: SocketAddr, settings: &str) -> Self {
        let (certificate, key) = world.identity().write(&world.dir, "nginx");
        let (dir, proxy) = (world.dir.path().display(), proxy.port());
        loop {
            // nginx cannot say which port the kernel chose. If another process takes this one, the loop tries again.
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let config = format!(
                "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr notice; worker_processes 1; events {{}}
http {{
    access_log off; client_body_temp_path {dir}; proxy_temp_path {dir};
    fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {}; ssl_certificate_key {};
        location / {{ proxy_pass https://localhost:{proxy}; {settings} }}
    }}
}}
",
                path(&certificate),
                path(&key)
            );
            let config = world.dir.write("nginx.conf", config);
            let mut child = Command::new(NGINX)
                .args(["-c", path(&config)])
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
            while let Some(line) = within("nginx", lines.next_line()).await.unwrap() {
                if line.contains(" event method") {
                    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                    return Self {
                        _child: child,
                        port,
                    };
                }
                assert!(
                    !line.contains("[emerg]") || line.contains("bind()"),
                    "{line}"
                );
            }
        }
    }
}

#[tokio::test]
async fn host_without_cluster_fails() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let flags = world.flags_of_two_clusters(upstream.address());
    let serving = world.serve(&flags).await;
    let result = through(&world, serving.address.port(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "version",
        "client → proxy: the proxy has no cluster for the host localhost:",
        "add this name with --host or `hosts`",
    );
}

/// Another server answers under the name, such as a load balancer without a target.
#[tokio::test]
async fn load_balancer_error_is_not_blamed_on_apiserver() {
    let world = World::new();
    let balancer = Upstream::builder(world.identity())
        .http(|_| async {
            let mut response = http::Response::new(full("<html>503 no healthy target</html>"));
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            response
        })
        .start()
        .await;
    let result = through(&world, balancer.address().port(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "version",
        "client → proxy: the response to /version is not from an apiserver: 503 Service Unavailable: <html>503 no healthy target</html>",
        "the load balancer or firewall in front of the proxy",
    );
}
