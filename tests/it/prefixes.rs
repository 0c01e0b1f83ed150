//! Clusters that share a host, each below a path prefix: what the apiserver sees, and which paths reach none.

use http::{Request, Response};
use standin::upstream::{Upstream, full};

use crate::{
    access::with_rules,
    admin::wait_for_numbers,
    binary::Binary,
    logs::event,
    proxy::{HOST, Proxy, Setup, World},
    responses::{BOTH, ClientResponse, Protocol},
    upgrades::{SPDY, WEBSOCKET, echo},
};

/// A proxy with the clusters `a` and `b` below `/clusters` of [`HOST`].
fn setup<'a>(world: &'a World, a: &Upstream, b: &Upstream) -> Setup<'a> {
    let mut setup = world
        .proxy(a.address())
        .second_cluster("b", HOST, b.address());
    for (cluster, name) in setup.config.clusters.iter_mut().zip(["a", "b"]) {
        cluster.name = name.to_owned();
        cluster.public_prefix = Some(format!("/clusters/{name}"));
    }
    setup
}

/// Two apiservers that respond at once, and their proxy.
async fn start(world: &World) -> (Upstream, Upstream, Proxy) {
    let a = world.apiserver().start().await;
    let b = world.apiserver().start().await;
    let proxy = setup(world, &a, &b).start();
    (a, b, proxy)
}

async fn get(proxy: &Proxy, protocol: Protocol, target: &str) -> ClientResponse {
    proxy.request(protocol, "GET", target, &[], b"").await
}

/// The targets that an apiserver has received.
fn targets(upstream: &Upstream) -> Vec<String> {
    let requests = upstream.requests().into_iter();
    requests.map(|request| request.target).collect()
}

#[tokio::test]
async fn prefix_is_removed_and_everything_else_stays() {
    let world = World::new();
    let redirect = |request: Request<_>| async move {
        let to_discovery = request.uri().path() == "/apis";
        let response = Response::builder().header("location", "/clusters/b/x?y");
        let text = if to_discovery {
            "{\"serverAddress\":\"10.0.0.1\"}"
        } else {
            "ok"
        };
        response.status(200).body(full(text)).unwrap()
    };
    let (a, b) = (
        world.apiserver().http(redirect).start().await,
        world.apiserver().start().await,
    );
    let proxy = setup(&world, &a, &b).start();
    for protocol in BOTH {
        for (target, sent) in [
            (
                "/clusters/a/api/v1/pods?watch=0&x=%2F..",
                "/api/v1/pods?watch=0&x=%2F..",
            ),
            ("/clusters/a", "/"),
            ("/clusters/a?q", "/?q"),
            ("/clusters/a//x/%2f;y/z%20", "//x/%2f;y/z%20"),
            ("/clusters/a/clusters/b/api", "/clusters/b/api"),
            ("/clusters/a/apis", "/apis"),
        ] {
            let response = get(&proxy, protocol, target).await;
            assert_eq!(response.code, 200, "{target}");
            assert_eq!(response.lines("location"), ["/clusters/b/x?y"]);
            assert_eq!(targets(&a).last().unwrap(), sent, "{protocol:?} {target}");
        }
        let response = get(&proxy, protocol, "/clusters/b/api").await;
        assert_eq!((response.code, &*targets(&b).pop().unwrap()), (200, "/api"));
    }
    assert_eq!(targets(&b), ["/api", "/api"]);
}

/// No spelling of a path reaches another cluster, or one at all.
#[tokio::test]
async fn ambiguous_path_reaches_no_cluster() {
    let world = World::new();
    let (a, b, proxy) = start(&world).await;
    for protocol in BOTH {
        for target in [
            "/",
            "/api",
            "/clusters",
            "/clusters/c/api",
            "/clusters/ab",
            "/clusters/A/api",
            "//clusters/b",
            "/clusters//b",
            "/clusters%2Fb/api",
            "/clusters/%62/api",
            "/%63lusters/b/api",
            "/./clusters/b",
            "/clusters/./b",
            "/x/../clusters/b",
            "/clusters/b%2fapi",
            "/clusters/b;x/api",
            "/clusters/b%00/api",
        ] {
            let response = get(&proxy, protocol, target).await;
            // A request that looks for the API gets a 403, which kubectl prints.
            let code = if target.ends_with("/api") { 403 } else { 421 };
            assert_eq!(response.code, code, "{protocol:?} {target}");
            assert!(
                response
                    .text()
                    .contains("no cluster is configured for this path")
            );
        }
        for target in [
            "/clusters/a/../b/api",
            "/clusters/a/..",
            "/clusters/a/./b",
            "/clusters/a/%2e%2e/b",
            "/clusters/a/%2E./b",
            "/clusters/a/%252e%252e/b",
            "/clusters/a/..%2fb",
            "/clusters/a/x%2f..%2f..%2fb",
            "/clusters/a/..;/b",
            "/clusters/a/..%5cb",
            "/clusters/a//../b",
            "/clusters/a/%20../b",
        ] {
            let response = get(&proxy, protocol, target).await;
            assert_eq!(response.code, 400, "{protocol:?} {target}");
        }
    }
    assert_eq!(
        (a.accepted(), b.accepted()),
        (0, 0),
        "no connection was made"
    );
}

/// kubectl reads text there.
#[tokio::test]
async fn discovery_of_an_unknown_prefix_gets_a_sentence() {
    let world = World::new();
    let (_a, _b, proxy) = start(&world).await;
    for protocol in BOTH {
        let response = get(&proxy, protocol, "/clusters/typo/api").await;
        assert_eq!(response.code, 403);
        assert_eq!(response.lines("content-type"), ["text/plain"]);
        let text = response.text();
        assert!(
            text.starts_with("kube-tls-proxy: no cluster is configured for this path"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn upgrade_below_a_prefix_reaches_its_cluster() {
    let world = World::new();
    let a = world.apiserver().start().await;
    let b = world.apiserver().http(echo).start().await;
    let proxy = setup(&world, &a, &b).start();
    for upgrade in [WEBSOCKET, SPDY] {
        let mut client = proxy.client().http1().await;
        client
            .send(upgrade.replace(" /api", " /clusters/b/api"))
            .await;
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 101);
        let received = b.next_request().await;
        assert!(
            received
                .target
                .starts_with("/api/v1/namespaces/default/pods/p/exec?")
        );
        assert!(received.header("upgrade").is_some());
    }
    let mut client = proxy.client().http1().await;
    client
        .send(WEBSOCKET.replace(" /api", " /clusters/b/../a/api"))
        .await;
    assert_eq!(client.response().await.status, 400);
    assert_eq!(a.accepted(), 0);
}

/// The rules of a cluster see the path that its apiserver gets.
#[tokio::test]
async fn access_rules_judge_the_path_without_the_prefix() {
    let world = World::new();
    let (a, b) = (
        world.apiserver().start().await,
        world.apiserver().start().await,
    );
    let rules = "  - allow: {paths: [/healthz]}\n  - allow: {resources: [pods], verbs: [list]}\n";
    let proxy: Proxy = with_rules(setup(&world, &a, &b), rules).start();
    for protocol in BOTH {
        for (target, status) in [
            ("/clusters/a/healthz", 200),
            ("/clusters/a/api/v1/namespaces/x/pods", 200),
            ("/clusters/a/api/v1/namespaces/x/secrets", 401),
            ("/clusters/b/api/v1/namespaces/x/secrets", 200),
        ] {
            let response = get(&proxy, protocol, target).await;
            assert_eq!(response.code, status, "{protocol:?} {target}");
        }
    }
}

#[tokio::test]
async fn log_and_metrics_show_cluster_and_path_of_apiserver() {
    let world = World::new();
    let a = world.apiserver().start().await;
    let (certificate, key) = world.public_ca.server(&[HOST]).write(&world.dir, "public");
    let ca = world.dir.write("ca.crt", world.cluster_ca.pem());
    let text = format!(
        "listen: [\"127.0.0.1:0\"]\nworkers: 1\nadmin: {{listen: \"127.0.0.1:0\"}}\npublish: {{kubeconfig: {{}}}}\nlog: {{format: json}}\n\
         certificates: [{{certificate: {}, key: {}}}]\n\
         clusters: [{{name: a, pathPrefix: /clusters/a, upstream: {{url: \"https://{}\", ca: {}, name: 127.0.0.1}}}}]\n",
        certificate.display(),
        key.display(),
        a.address(),
        ca.display()
    );
    let binary = Binary::start_from_file(&world.dir.write("proxy.yaml", text)).await;
    let mut client = binary.client(&world).http1().await;
    let target = "/clusters/a/api/v1/namespaces/x/pods";
    assert_eq!(client.get(HOST, target, "").await.status, 200);
    let line = event(&binary, "request", "/api/v1/namespaces/x/pods").await;
    assert_eq!(line["cluster"], "a");
    assert_eq!(line["k8s.resource"], "pods");
    let published = client
        .get(HOST, "/clusters/a/.well-known/kubeconfig", "")
        .await;
    let server = "https://kube.test/clusters/a";
    assert!(published.text().contains(server), "{}", published.text());
    assert_eq!(client.get(HOST, "/clusters/typo", "").await.status, 421);
    let refused = event(&binary, "request", "/clusters/typo").await;
    assert_eq!(refused["reason"], "path_not_configured");
    let published = "/.well-known/kubeconfig";
    let delete = format!("DELETE /clusters/a{published} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    client.send(delete).await;
    assert_eq!(client.response().await.status, 405);
    let is_refusal = |line: &str| line.contains(published) && line.contains("\"published_method\"");
    let find = |line: &str| is_refusal(line).then_some(());
    binary.wait_for("the refused DELETE", find).await;
    let series = "requests_total{cluster=\"a\",verb=\"list\",resource=\"pods\",code=\"200\",protocol=\"http/1.1\"}";
    wait_for_numbers(binary.admin().await, &[(series, 1.0)]).await;
}
