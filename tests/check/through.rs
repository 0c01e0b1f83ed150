//! `--through`: a running proxy as clients see it, and which leg is broken.

use standin::{
    tcp::refused,
    upstream::{Received, Upstream, full},
};

use crate::world::{APISERVER, RunResult, Serving, World, check, command, flags, path, run};

/// Checks the proxy as its clients use it.
async fn through(world: &World, serving: &Serving, more: &[&str]) -> RunResult {
    let url = format!("https://localhost:{}", serving.address.port());
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
    let result = through(&world, &serving, &[]).await;
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
    let result = through(&world, &serving, &[]).await;
    result.assert_finding(
        1,
        '✗',
        "version",
        "proxy → apiserver: the proxy itself responds to /version with 503 Service Unavailable: the apiserver does not accept connections",
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
    let document = through(&world, &serving, &["--output", "json"])
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

#[tokio::test]
async fn host_without_cluster_fails() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    world.flags(upstream.address());
    let at = format!(
        "upstream: {{ url: \"https://{}\", ca: cluster-ca.crt, name: {APISERVER} }}",
        upstream.address()
    );
    let config = format!(
        "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- {{ name: a, hosts: [a.test], {at} }}
- {{ name: b, hosts: [b.test], {at} }}
"
    );
    let file = world.dir.write("config.yaml", config);
    let serving = world.serve(&flags(&[("--config", path(&file))])).await;
    let result = through(&world, &serving, &[]).await;
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
    let url = format!("https://localhost:{}", balancer.address().port());
    let flags = [flags(&[("--through", &url)]), world.clients_trust()].concat();
    check(&flags, &[]).await.assert_finding(
        1,
        '✗',
        "version",
        "client → proxy: the response to /version is not from an apiserver: 503 Service Unavailable: <html>503 no healthy target</html>",
        "the load balancer or firewall in front of the proxy",
    );
}
