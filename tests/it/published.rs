//! The kubeconfig at `/.well-known/kubeconfig`: the proxy itself serves it, and only if it is configured.

use std::{fs, net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use kube_tls_proxy::config::{PublishConfig, TokenBucketSize};
use serde_json::{Value, json};
use standin::{pki::Ca, upstream::Upstream, within};

use crate::{
    access::with_rules,
    proxy::{HOST, Setup, World, watch_or_ok},
    responses::{BOTH, ClientResponse},
};

const PATH: &str = "/.well-known/kubeconfig";

fn publish() -> PublishConfig {
    let args = vec!["oidc-login".to_owned(), "get-token".to_owned()];
    PublishConfig {
        exec: Some(("kubectl".to_owned(), args)),
        ca: None,
    }
}

fn publishing<'a>(world: &'a World, upstream: &Upstream, publish: PublishConfig) -> Setup<'a> {
    let setup = world.proxy(upstream.address());
    setup.cluster(|cluster| cluster.publish = Some(publish))
}

fn document(response: &ClientResponse) -> Value {
    assert_eq!(response.code, 200, "{response:?}");
    serde_saphyr::from_str(&response.text()).unwrap()
}

#[tokio::test]
async fn kubeconfig_is_for_the_host_that_was_asked_for() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = publishing(&world, &upstream, publish()).start();
    for protocol in BOTH {
        let response = proxy.get(protocol, PATH).await;
        assert_eq!(
            document(&response),
            json!({
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": HOST, "cluster": {
                    "server": format!("https://{HOST}"), "tls-server-name": HOST,
                }}],
                "users": [{"name": HOST, "user": {"exec": {
                    "apiVersion": "client.authentication.k8s.io/v1",
                    "command": "kubectl",
                    "args": ["oidc-login", "get-token"],
                    "interactiveMode": "IfAvailable",
                }}}],
                "contexts": [{"name": HOST, "context": {"cluster": HOST, "user": HOST}}],
                "current-context": HOST,
            })
        );
        for (name, value) in [
            ("content-type", "application/yaml"),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
            ("content-disposition", "attachment; filename=kubeconfig"),
        ] {
            assert_eq!(response.lines(name), [value], "{protocol:?} {name}");
        }
        assert_eq!(response.lines("x-request-id").len(), 1);
        // With a query too.
        assert_eq!(proxy.get(protocol, &format!("{PATH}?a=b")).await.code, 200);
    }
    for (host, server, name) in [
        ("KUBE.test.:8443", "https://kube.test:8443", "kube.test"),
        ("kube.test:443", "https://kube.test", "kube.test"),
        // The client has verified the name of the handshake.
        ("192.0.2.1:6443", "https://192.0.2.1:6443", "kube.test"),
        ("[2001:db8::1]", "https://[2001:db8::1]", "kube.test"),
    ] {
        let mut client = proxy.client().http1().await;
        let head = format!("GET {PATH} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        client.send(&head).await;
        let found = document(&client.response().await.into());
        let cluster = &found["clusters"][0]["cluster"];
        assert_eq!(cluster["server"], server, "{host}");
        assert_eq!(cluster["tls-server-name"], name, "{host}");
    }
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn known_version_is_not_sent_again() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = publishing(&world, &upstream, publish()).start();
    let first = proxy.get(BOTH[1], PATH).await;
    let [tag] = first.lines("etag")[..] else {
        panic!("{first:?}");
    };
    // One connection: no response has a body that the client does not expect.
    let mut client = proxy.client().http1().await;
    for (known, code) in [
        (tag.to_owned(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"other\", {tag}"), 304),
        ("*".to_owned(), 304),
        ("\"other\"".to_owned(), 200),
        (tag.trim_matches('"').to_owned(), 200),
    ] {
        let fields = [("if-none-match", known.as_str())];
        let response = proxy.request(BOTH[1], "GET", PATH, &fields, b"").await;
        assert_eq!(response.code, code, "{known}");
        assert_eq!(response.lines("etag"), [tag], "{known}");
        assert_eq!(response.body.is_empty(), code == 304, "{known}");
        let head = format!("GET {PATH} HTTP/1.1\r\nHost: {HOST}\r\nIf-None-Match: {known}\r\n\r\n");
        client.send(&head).await;
        let received = if code == 304 {
            client.response_to_head().await
        } else {
            client.response().await.head
        };
        assert_eq!(received.status, code, "{known}");
        assert_eq!(received.header("etag"), Some(tag));
    }
    let response = proxy.request(BOTH[1], "HEAD", PATH, &[], b"").await;
    assert_eq!((response.code, response.lines("etag")), (200, vec![tag]));
    assert!(response.body.is_empty());
    client
        .send(&format!("HEAD {PATH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    let received = client.response_to_head().await;
    assert_eq!((received.status, received.header("etag")), (200, Some(tag)));
    assert_eq!(client.get(HOST, PATH, "").await.body, first.body);
    assert!(upstream.requests().is_empty());
}

#[tokio::test]
async fn no_method_reaches_the_apiserver_at_a_published_path() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = publishing(&world, &upstream, publish()).start();
    for protocol in BOTH {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let body = if method == "POST" { &b"x"[..] } else { b"" };
            let response = proxy.request(protocol, method, PATH, &[], body).await;
            response.assert_status(405, "MethodNotAllowed");
            assert_eq!(response.lines("allow"), ["GET, HEAD"], "{method}");
        }
    }
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
    let response = proxy.request(BOTH[0], "GET", PATH, &upgrade, b"").await;
    response.assert_status(405, "MethodNotAllowed");
    assert_eq!(response.lines("connection"), ["close"]);
    assert!(upstream.requests().is_empty());
}

/// Off by default; neighbours of the path are never the proxy's.
#[tokio::test]
async fn path_is_forwarded_unless_a_kubeconfig_is_published() {
    let (_world, upstream, proxy) = World::with_proxy().await;
    for protocol in BOTH {
        assert_eq!(proxy.get(protocol, PATH).await.code, 200);
        assert_eq!(upstream.next_request().await.target, PATH);
    }
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let proxy = publishing(&world, &upstream, publish()).start();
    for neighbour in [
        "/.well-known/kubeconfig/",
        "/.well-known/kubeconfigs",
        "/.well-known/openid-configuration",
        "/a/.well-known/kubeconfig",
    ] {
        assert_eq!(proxy.get(BOTH[1], neighbour).await.code, 200);
        assert_eq!(upstream.next_request().await.target, neighbour);
    }
}

/// The rules are for requests to the apiserver. The budget of the client counts all requests.
#[tokio::test]
async fn access_rules_do_not_hide_it_and_budgets_apply() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let budget = TokenBucketSize::new(2, Duration::from_secs(3600));
    let setup = publishing(&world, &upstream, publish());
    let setup = with_rules(setup, "  - deny: {}");
    let setup = setup.limits(|limits| limits.requests_per_client = Some(budget));
    let proxy = setup.start();
    for _ in 0..2 {
        assert_eq!(proxy.get(BOTH[1], PATH).await.code, 200);
    }
    assert_eq!(proxy.get(BOTH[1], PATH).await.code, 429);
    assert!(upstream.requests().is_empty());
}

/// No apiserver has seen the credential. Else anyone could keep every place of the proxy with a token that is not one.
#[tokio::test]
async fn published_kubeconfig_accepts_no_credential() {
    const PLACES: usize = 4;
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let setup = publishing(&world, &upstream, publish());
    let proxy = setup.limits(|limits| limits.connections = PLACES).start();
    let mut busy = Vec::new();
    for _ in 0..PLACES {
        let client = proxy.client().from(IpAddr::from([127, 0, 0, 2]));
        let client = client.http2().await;
        let asked = Request::get(format!("https://{HOST}{PATH}"));
        let asked = asked.header("authorization", "Bearer not-a-token");
        let response = client.request(asked.body(Bytes::new()).unwrap()).await;
        assert_eq!(response.unwrap().status, StatusCode::OK);
        let watch = client.open(&format!("https://{HOST}/watch")).await;
        busy.push((client, watch.unwrap()));
    }
    // Another client gets a place, although a request runs on each connection.
    let other = proxy.client().from(IpAddr::from([127, 0, 0, 3]));
    let response = other.http1().await.get(HOST, "/", "").await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn private_ca_is_in_the_kubeconfig_and_follows_a_reload() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let file = world.dir.write("client-ca.crt", world.public_ca.pem());
    let publish = PublishConfig {
        ca: Some(file.clone()),
        ..publish()
    };
    let proxy = publishing(&world, &upstream, publish).start();
    let ca = |response: &ClientResponse| {
        let found = document(response);
        found["clusters"][0]["cluster"]["certificate-authority-data"].clone()
    };
    let first = proxy.get(BOTH[1], PATH).await;
    assert!(ca(&first).is_string(), "{first:?}");
    fs::write(&file, Ca::new("next").pem()).unwrap();
    proxy.reload();
    let changed = async { while ca(&proxy.get(BOTH[1], PATH).await) == ca(&first) {} };
    within("the new CA", changed).await;
}
