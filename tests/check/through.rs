//! From outside, through a running proxy: which leg fails.

use standin::{
    tcp::refused,
    upstream::{Received, Upstream, full},
};

use crate::world::{APISERVER, Ended, Serving, World, check, flags, path};

/// Looks through the proxy as its clients do.
async fn through(world: &World, serving: &Serving, more: &[&str]) -> Ended {
    let url = format!("https://localhost:{}", serving.address.port());
    let flags = [flags(&[("--through", &url)]), world.clients_trust()].concat();
    check(&flags, more).await
}

/// What the apiserver was asked for, but for the probes of the proxy itself.
fn of_check(upstream: &Upstream) -> Vec<Received> {
    let mut requests = upstream.requests();
    requests.retain(|request| {
        let agent = request.header("user-agent").unwrap_or_default();
        agent.starts_with("kube-tls-proxy-check/")
    });
    requests
}

#[tokio::test]
async fn all_well() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let ended = through(&world, &serving, &[]).await;
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    // Where localhost has two addresses, the other one is a warning.
    let mut well = ended.marked('✓');
    well.dedup();
    assert_eq!(
        well,
        [
            "dns", "tcp", "tls", "verify", "alpn", "version", "clock", "readyz", "upgrade"
        ],
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.starts_with("Through https://localhost:"),
        "{}",
        ended.stdout
    );
    let request = of_check(&upstream).remove(0);
    assert_eq!(
        request.header("x-forwarded-for"),
        Some("127.0.0.1"),
        "it went through the proxy"
    );
}

/// Here and from outside in one run.
#[tokio::test]
async fn with_the_flags_of_serve_both_are_checked() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let flags = world.flags(upstream.address());
    let serving = world.serve(&flags).await;
    let flags = [flags, world.clients_trust()].concat();
    let url = format!("https://localhost:{}", serving.address.port());
    let ended = check(&flags, &["--through", &url]).await;
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert_eq!(ended.of("version").len(), 2, "{}", ended.stdout);
    assert_eq!(ended.of("certificate").len(), 1, "{}", ended.stdout);
}

#[tokio::test]
async fn the_leg_to_the_apiserver_is_broken() {
    let world = World::new();
    let serving = world.serve(&world.flags(refused().await)).await;
    let ended = through(&world, &serving, &[]).await;
    ended.names(
        1,
        '✗',
        "version",
        "proxy → apiserver: the proxy answers /version itself, with 503 Service Unavailable: the apiserver does not accept connections",
        "run `kube-tls-proxy check` where the proxy runs, with the flags of its `serve`",
    );
    assert_eq!(ended.marked('–'), ["clock", "readyz", "upgrade"]);
    assert!(
        ended
            .stdout
            .ends_with("The broken leg is proxy → apiserver.\n"),
        "{}",
        ended.stdout
    );
    let document = through(&world, &serving, &["--output", "json"])
        .await
        .json();
    assert_eq!(document["brokenLeg"], "proxy-apiserver");
    assert_eq!(document["result"], "failed");
}

#[tokio::test]
async fn the_leg_to_the_proxy_is_broken() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let serving = world.serve(&world.flags(upstream.address())).await;
    let url = format!("https://localhost:{}", serving.address.port());
    // Its CA is a private one, which the public does not know.
    let ended = check(&flags(&[("--through", &url)]), &[]).await;
    ended.names(
        1,
        '✗',
        "verify",
        "is not signed by the public CAs: it was issued by CN=public",
        "if it is a CA of your own, give it with --through-ca",
    );
    assert!(
        ended
            .stdout
            .ends_with("The broken leg is client → proxy.\n"),
        "{}",
        ended.stdout
    );
    // Another name than the certificate has.
    let url = format!("https://127.0.0.1:{}", serving.address.port());
    let ended = check(
        &[flags(&[("--through", &url)]), world.clients_trust()].concat(),
        &[],
    )
    .await;
    ended.names(
        1,
        '✗',
        "verify",
        "client → proxy: the certificate of 127.0.0.1:",
        "use a name that the certificate has",
    );
    // Nobody there.
    let url = format!("https://{}", refused().await);
    let ended = check(&flags(&[("--through", &url)]), &["--output", "json"]).await;
    assert_eq!(
        (ended.code, &ended.json()["brokenLeg"]),
        (1, &"client-proxy".into())
    );
    assert_eq!(of_check(&upstream).len(), 0, "nothing is sent");
}

#[tokio::test]
async fn a_host_that_the_proxy_does_not_serve() {
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
    let ended = through(&world, &serving, &[]).await;
    ended.names(
        1,
        '✗',
        "version",
        "client → proxy: the proxy serves no cluster under localhost:",
        "add this one with --host or `hosts`",
    );
}

/// Something else that has the name, such as a load balancer without a target.
#[tokio::test]
async fn a_stranger_before_the_proxy() {
    let world = World::new();
    let stranger = Upstream::builder(world.identity())
        .http(|_| async {
            let mut response = http::Response::new(full("<html>503 no healthy target</html>"));
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            response
        })
        .start()
        .await;
    let url = format!("https://localhost:{}", stranger.address().port());
    let flags = [flags(&[("--through", &url)]), world.clients_trust()].concat();
    check(&flags, &[]).await.names(
        1,
        '✗',
        "version",
        "client → proxy: /version is answered by something that is no apiserver: 503 Service Unavailable: <html>503 no healthy target</html>",
        "what stands before the proxy",
    );
}
