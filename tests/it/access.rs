//! Access rules: what the client gets, and that nothing of a denied request reaches the apiserver, not even a
//! connection.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request};
use kube_tls_proxy::config::{AccessRule, Environment, ServeArgs, TokenBucketSize, load};
use serde_json::Value;
use standin::{TempDir, within};

use crate::{
    admin::{get, scrape, wait_for_numbers},
    binary::Binary,
    certificates::{self, Authorities, apiserver},
    logs::event,
    proxy::{HOST, Setup, World, data, watch_or_ok},
    responses::BOTH,
    upgrades::{SPDY, WEBSOCKET},
};

/// The rules of a configuration file.
pub(crate) fn rules(access: &str) -> Vec<AccessRule> {
    let dir = TempDir::new();
    let text = format!(
        "certificates: [{{certificate: tls.crt, key: tls.key}}]\n\
         clusters:\n- name: test\n  upstream: {{url: 'https://10.0.0.1', ca: ca.crt}}\n  access:\n{access}"
    );
    let args = ServeArgs {
        config: Some(dir.write("proxy.yaml", text)),
        ..ServeArgs::default()
    };
    let config = load(&args, &Environment::from_process()).unwrap();
    config.clusters[0].access.clone()
}

/// Sets the rules of the cluster.
pub(crate) fn with_rules<'a>(setup: Setup<'a>, access: &str) -> Setup<'a> {
    setup.cluster(|cluster| cluster.access = rules(access))
}

pub(crate) fn jwt(claims: &str) -> String {
    format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

fn request(method: &str, path: &str, authorization: &str) -> Request<Bytes> {
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(format!("https://{HOST}{path}"));
    if !authorization.is_empty() {
        request = request.header("authorization", authorization);
    }
    request.body(Bytes::new()).unwrap()
}

/// Each selector, with a request that it lets pass and one that it does not, over both versions of HTTP.
#[tokio::test]
async fn each_selector_closes_what_it_names_and_no_more() {
    let account =
        jwt(r#"{"iss":"https://kubernetes.default.svc","kubernetes.io":{"namespace":"a"}}"#);
    let jane = jwt(r#"{"iss":"https://login.test","sub":"jane"}"#);
    let (opaque, pods) = ("Bearer x".to_owned(), "/api/v1/namespaces/a/pods");
    let exec = "/api/v1/namespaces/a/pods/b/exec";
    for (access, (method, path, token), denied) in [
        (
            "  - deny: {from: [127.0.0.0/8]}\n  - allow: {}",
            ("GET", "/version", &opaque),
            true,
        ),
        (
            "  - deny: {from: [192.0.2.0/24]}\n  - allow: {}",
            ("GET", "/version", &opaque),
            false,
        ),
        (
            "  - deny: {unlessFrom: [192.0.2.0/24]}\n  - allow: {}",
            ("GET", "/version", &opaque),
            true,
        ),
        (
            "  - deny: {unlessFrom: [127.0.0.1]}\n  - allow: {}",
            ("GET", "/version", &opaque),
            false,
        ),
        (
            "  - deny: {credentials: [serviceAccount]}\n  - allow: {}",
            ("GET", pods, &account),
            true,
        ),
        (
            "  - deny: {credentials: [serviceAccount]}\n  - allow: {}",
            ("GET", pods, &jane),
            false,
        ),
        (
            "  - allow: {issuers: ['https://login.test']}",
            ("GET", pods, &account),
            true,
        ),
        (
            "  - allow: {issuers: ['https://login.test']}",
            ("GET", pods, &jane),
            false,
        ),
        (
            "  - deny: {verbs: [create]}\n  - allow: {}",
            ("POST", pods, &opaque),
            true,
        ),
        (
            "  - deny: {verbs: [create]}\n  - allow: {}",
            ("GET", pods, &opaque),
            false,
        ),
        (
            "  - deny: {resources: [pods/exec]}\n  - allow: {}",
            ("GET", exec, &opaque),
            true,
        ),
        (
            "  - deny: {resources: [pods/exec]}\n  - allow: {}",
            ("GET", pods, &opaque),
            false,
        ),
        (
            "  - deny: {namespaces: [a]}\n  - allow: {}",
            ("GET", pods, &opaque),
            true,
        ),
        (
            "  - deny: {namespaces: [b]}\n  - allow: {}",
            ("GET", pods, &opaque),
            false,
        ),
        (
            "  - deny: {paths: [/metrics]}\n  - allow: {}",
            ("GET", "/metrics", &opaque),
            true,
        ),
        (
            "  - deny: {paths: [/metrics]}\n  - allow: {}",
            ("GET", "/version", &opaque),
            false,
        ),
    ] {
        let world = World::new();
        let upstream = world.apiserver().start().await;
        let proxy = with_rules(world.proxy(upstream.address()), access).start();
        let http2 = proxy.client().http2().await;
        let found = http2.request(request(method, path, token)).await.unwrap();
        let mut http1 = proxy.client().alpn(&["http/1.1"]).http1().await;
        http1
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {token}\r\nContent-Length: 0\r\n\r\n"
            ))
            .await;
        let found = (found.status.as_u16(), http1.response().await.status);
        let expected = if denied { (403, 403) } else { (200, 200) };
        assert_eq!(found, expected, "{access}: {method} {path}");
        let seen = if denied { (0, 0) } else { (2, 2) };
        assert_eq!(
            (upstream.requests().len(), upstream.accepted()),
            seen,
            "{access}"
        );
    }
}

/// kubectl prints `Error from server (Forbidden): ` and the message, or `You must be logged in to the server` and it.
#[tokio::test]
async fn denial_is_a_status_that_kubectl_prints() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "
  - deny: {credentials: [none]}
  - deny: {resources: [pods/exec]}
  - allow: {resources: ['*']}
";
    let proxy = with_rules(world.proxy(upstream.address()), access).start();
    let http2 = proxy.client().http2().await;
    let exec = "/api/v1/namespaces/a/pods/b/exec";
    for (path, token, code, reason, message) in [
        (
            exec,
            "Bearer x",
            403,
            "Forbidden",
            "kube-tls-proxy: pods/exec is not open to 127.0.0.1 (rule 2 of cluster test)",
        ),
        (
            exec,
            "",
            401,
            "Unauthorized",
            "kube-tls-proxy: pods/exec is not open to a request without a credential from 127.0.0.1 (rule 1 of cluster test)",
        ),
        (
            "/metrics",
            "Bearer x",
            403,
            "Forbidden",
            "kube-tls-proxy: /metrics is not open to this token from 127.0.0.1 (no rule of cluster test allows it)",
        ),
    ] {
        let response = http2.request(request("GET", path, token)).await.unwrap();
        let fields = &response.headers;
        let status: Value = serde_json::from_str(&response.text()).unwrap();
        assert_eq!(response.status, code);
        assert_eq!(
            (&status["reason"], &status["message"]),
            (&reason.into(), &message.into())
        );
        assert_eq!(status["code"], code);
        assert!(!fields.contains_key("retry-after"));
        let challenge = fields
            .get("www-authenticate")
            .map(|value| value.to_str().unwrap());
        assert_eq!(challenge, (code == 401).then_some("Bearer"));
        // kubectl prints the message of a 403, but not of a 401.
        let warning = fields.get("warning").map(|value| value.to_str().unwrap());
        let text = message.trim_start_matches("kube-tls-proxy: ");
        let expected = (code == 401).then(|| format!("299 kube-tls-proxy \"{text}\""));
        assert_eq!(warning, expected.as_deref());
    }
    // client-go returns the body of discovery unread.
    let response = http2
        .request(request("GET", "/api", "Bearer x"))
        .await
        .unwrap();
    assert_eq!(response.status, 403);
    assert_eq!(
        response.text(),
        "kube-tls-proxy: /api is not open to this token from 127.0.0.1 (no rule of cluster test allows it)"
    );
    assert_eq!(upstream.accepted(), 0);
}

/// kubectl falls back to SPDY only after a response, and shows the reason of the second one.
#[tokio::test]
async fn denied_exec_gets_a_response_and_no_tunnel() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "  - deny: {resources: [pods/exec]}\n  - allow: {}";
    let proxy = with_rules(world.proxy(upstream.address()), access).start();
    for upgrade in [WEBSOCKET, SPDY] {
        let mut client = proxy.client().http1().await;
        client
            .send(format!(
                "{upgrade}GET /secret HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
            ))
            .await;
        let response = client.response().await;
        assert_eq!(
            (response.status, response.head.header("connection")),
            (403, Some("close"))
        );
        assert!(
            response
                .text()
                .contains("pods/exec is not open to 127.0.0.1"),
            "{}",
            response.text()
        );
        assert_eq!(
            client.end().await.unwrap(),
            "",
            "no bytes after the response"
        );
    }
    assert_eq!(upstream.accepted(), 0);
}

/// The token of the subprotocol is judged like the one in `Authorization`, and one does not help the other.
#[tokio::test]
async fn token_in_the_subprotocol_is_judged() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "  - deny: {credentials: [none, serviceAccount]}\n  - allow: {}";
    let proxy = with_rules(world.proxy(upstream.address()), access).start();
    let account = jwt(r#"{"kubernetes.io":{}}"#);
    let encoded = URL_SAFE_NO_PAD.encode(account.trim_start_matches("Bearer "));
    let protocol = format!("base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io");
    let offered = WEBSOCKET.replace("v5.channel.k8s.io", &protocol);
    for upgrade in [
        offered.clone(),
        offered.replace("Authorization: Bearer t\r\n", ""),
    ] {
        let mut client = proxy.client().http1().await;
        client.send(&upgrade).await;
        assert_eq!(client.response().await.status, 403, "{upgrade}");
    }
    assert_eq!(upstream.accepted(), 0);
}

/// A certificate that the proxy has verified is a credential of its own kind. Without the section it is none.
#[tokio::test]
async fn client_certificate_is_judged_as_a_certificate() {
    let by_certificate = "  - deny: {credentials: [certificate]}\n  - allow: {}";
    let anonymous = "  - deny: {credentials: [none]}\n  - allow: {}";
    for (access, has_section, token, expected) in [
        (by_certificate, true, "", 403),
        (anonymous, true, "", 200),
        (anonymous, false, "", 401),
        (by_certificate, false, "Bearer good", 200),
    ] {
        let world = World::new();
        let (authorities, upstream) = (Authorities::new(), apiserver(&world).start().await);
        let setup = if has_section {
            authorities.proxy(&world, &upstream)
        } else {
            world.proxy(upstream.address())
        };
        let proxy = with_rules(setup, access).start();
        for protocol in BOTH {
            let client = proxy.client().identity(authorities.jane());
            let fields = [("authorization", token)];
            let fields = if token.is_empty() { &[][..] } else { &fields };
            let response = certificates::get(&client, protocol, HOST, fields).await;
            assert_eq!(response.code, expected, "{access} {has_section}");
        }
        let seen = if expected == 200 { 2 } else { 0 };
        assert_eq!(upstream.requests().len(), seen, "{access} {has_section}");
    }
}

/// The apiserver reads the first one; another server may read the last one.
#[tokio::test]
async fn two_authorization_lines_are_refused_where_rules_exist() {
    let lines = "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n";
    for (access, status, requests) in [
        (None, 200, 1),
        (Some("  - deny: {from: [192.0.2.1]}\n  - allow: {}"), 400, 0),
        (
            Some("  - deny: {credentials: [none]}\n  - allow: {}"),
            400,
            0,
        ),
    ] {
        let world = World::new();
        let upstream = world.apiserver().start().await;
        let setup = world.proxy(upstream.address());
        let proxy = match access {
            Some(access) => with_rules(setup, access).start(),
            None => setup.start(),
        };
        let mut client = proxy.client().alpn(&["http/1.1"]).http1().await;
        assert_eq!(
            client.get(HOST, "/version", lines).await.status,
            status,
            "{access:?}"
        );
        assert_eq!(upstream.requests().len(), requests, "{access:?}");
    }
}

#[tokio::test]
async fn ambiguous_path_is_refused_where_rules_read_paths() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "  - deny: {resources: [secrets]}\n  - allow: {}";
    let proxy = with_rules(world.proxy(upstream.address()), access).start();
    let http2 = proxy.client().http2().await;
    let mut http1 = proxy.client().alpn(&["http/1.1"]).http1().await;
    for path in [
        "/api/v1/%73ecrets",
        "/api/v1/./secrets",
        "/api/v1//secrets",
        "/api/v1/secrets;a",
    ] {
        let response = http2
            .request(request("GET", path, "Bearer x"))
            .await
            .unwrap();
        assert_eq!(response.status, 400, "{path}");
        let response = http1.get(HOST, path, "Authorization: Bearer x\r\n").await;
        assert_eq!(response.status, 400, "{path}");
        assert!(
            response.text().contains("read in more than one way"),
            "{}",
            response.text()
        );
    }
    assert_eq!(upstream.accepted(), 0);
}

/// The client must not send a body that no server will read, and the connection stays usable or is closed in order.
#[tokio::test]
async fn body_of_a_denied_request_goes_nowhere() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "  - deny: {verbs: [create]}\n  - allow: {}";
    let proxy = with_rules(world.proxy(upstream.address()), access).start();
    let post = |more: &str| {
        format!(
            "POST /api/v1/namespaces/a/pods HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer x\r\nContent-Length: 5\r\n{more}\r\n"
        )
    };
    let mut client = proxy.client().alpn(&["http/1.1"]).http1().await;
    client.send(post("Expect: 100-continue\r\n")).await;
    assert_eq!(client.response().await.status, 403, "no 100 before it");
    let mut client = proxy.client().alpn(&["http/1.1"]).http1().await;
    client.send(format!("{}hello", post(""))).await;
    assert_eq!(client.response().await.status, 403);
    let response = client
        .get(HOST, "/version", "Authorization: Bearer x\r\n")
        .await;
    assert_eq!(response.status, 200, "the body was not read as a request");
    let paths: Vec<_> = upstream
        .requests()
        .iter()
        .map(|one| one.target.clone())
        .collect();
    assert_eq!(paths, ["/version"]);
}

/// A reload changes the rules between two requests of one connection. Leases, watches and other requests stay.
#[tokio::test]
async fn reload_changes_rules_while_requests_run() {
    let world = World::new();
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let setup = world.proxy(upstream.address()).admin();
    let configs = [
        "",
        "  - deny: {resources: [secrets]}\n  - allow: {}",
        "  - deny: {}\n",
    ]
    .map(|access| {
        let mut config = setup.config.clone();
        if !access.is_empty() {
            config.clusters[0].access = rules(access);
        }
        config
    });
    let current = Arc::new(AtomicUsize::new(0));
    let chosen = Arc::clone(&current);
    let proxy = setup.start_from(Box::new(move || {
        Ok(configs[chosen.load(Ordering::Relaxed)].clone())
    }));
    let client = proxy.client().http2().await;
    let mut watch = client.open(&format!("https://{HOST}/watch")).await.unwrap();
    assert_eq!(data(&mut watch).await.unwrap(), "first");
    let mut ca = world.cluster_ca.pem();
    for (config, secrets, pods) in [(1, 403, 200), (2, 403, 403), (0, 200, 200), (1, 403, 200)] {
        current.store(config, Ordering::Relaxed);
        // A reload reads the configuration again only if a file has changed. The CA stays the same.
        ca.push('\n');
        world.dir.write("cluster-ca.crt", &ca);
        proxy.reload();
        for (path, expected) in [("/api/v1/secrets", secrets), ("/api/v1/pods", pods)] {
            let changed = async {
                while client
                    .request(request("GET", path, "Bearer x"))
                    .await
                    .unwrap()
                    .status
                    != expected
                {}
            };
            within(
                &format!("{expected} for {path} with rules {config}"),
                changed,
            )
            .await;
        }
    }
    assert_eq!(upstream.accepted(), 1, "the lease stays");
    assert_eq!(upstream.open_responses(), 1, "the watch stays");
}

/// A denied request is no refused credential: the apiserver has seen neither.
#[tokio::test]
async fn denials_use_up_no_budget_of_an_honest_client() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access = "  - deny: {credentials: [none]}\n  - deny: {resources: [secrets]}\n  - allow: {}";
    let proxy = with_rules(world.proxy(upstream.address()), access)
        .limits(|limits| {
            limits.unauthorized_per_client =
                TokenBucketSize::new(1, std::time::Duration::from_secs(3600));
        })
        .start();
    let client = proxy.client().http2().await;
    for number in 0..100 {
        let denied = client
            .request(request("GET", "/version", ""))
            .await
            .unwrap();
        assert_eq!(denied.status, 401, "{number}");
        let token = format!("Bearer guess-{number}");
        let denied = client
            .request(request("GET", "/api/v1/secrets", &token))
            .await
            .unwrap();
        assert_eq!(denied.status, 403, "{number}");
    }
    let allowed = client
        .request(request("GET", "/version", "Bearer x"))
        .await
        .unwrap();
    assert_eq!(allowed.status, 200);
    assert_eq!(upstream.requests().len(), 1);
}

#[tokio::test]
async fn denials_are_counted_by_rule_and_shown() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let access =
        "  - deny: {paths: [/metrics]}\n  - deny: {verbs: [create]}\n  - allow: {paths: ['*']}";
    let proxy = with_rules(world.proxy(upstream.address()), access)
        .admin()
        .start();
    let client = proxy.client().http2().await;
    let begin = scrape(proxy.admin()).await;
    let last = "kube_tls_proxy_access_denied_total{cluster=\"test\",rule=\"3\"}";
    assert!(begin.names().any(|name| name == last), "{}", begin.text);
    for path in ["/metrics", "/metrics", "/api/v1/pods", "/version"] {
        client
            .request(request("GET", path, "Bearer x"))
            .await
            .unwrap();
    }
    wait_for_numbers(
        proxy.admin(),
        &[
            ("access_denied_total{cluster=\"test\",rule=\"none\"}", 1.0),
            ("access_denied_total{cluster=\"test\",rule=\"1\"}", 2.0),
            ("access_denied_total{cluster=\"test\",rule=\"2\"}", 0.0),
            ("errors_total{cluster=\"test\",reason=\"denied\"}", 3.0),
            ("errors_total{cluster=\"test\",reason=\"rejected\"}", 0.0),
        ],
    )
    .await;
    let status = get(proxy.admin(), "/status.json").await;
    let status: Value = serde_json::from_slice(&status.body).unwrap();
    let cluster = &status["clusters"][0];
    assert_eq!(
        (&cluster["access_rules"], &cluster["denied_requests"]),
        (&3.into(), &3.into())
    );
    assert_eq!(
        status["problems"].as_array().unwrap().len(),
        0,
        "a denial is no problem"
    );
}

/// The whole way from the file to the log. The name of the rule stays out of a line about a request that passes.
#[tokio::test]
async fn denial_is_in_the_log_with_its_rule() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    world.public_ca.server(&[HOST]).write(&world.dir, "public");
    world.dir.write("cluster-ca.crt", world.cluster_ca.pem());
    let text = format!(
        "listen: ['127.0.0.1:0']\nlog: {{format: json}}\ntimeouts: {{drainDelay: 0s}}\n\
         certificates: [{{certificate: public.crt, key: public.key}}]\n\
         clusters:\n- name: prod\n  hosts: [{HOST}]\n  \
         upstream: {{url: 'https://{}', ca: cluster-ca.crt, name: kubernetes.default.svc}}\n  \
         access:\n  - deny: {{paths: [/closed]}}\n  - allow: {{paths: [/open]}}\n",
        upstream.address()
    );
    let binary = Binary::start_from_file(&world.dir.write("proxy.yaml", text)).await;
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    for (path, status, outcome, rule) in [
        ("/closed", 403, "denied", Some("1")),
        ("/other", 403, "denied", Some("none")),
        ("/open", 200, "complete", None),
    ] {
        let response = client.get(HOST, path, "Authorization: Bearer x\r\n").await;
        assert_eq!(response.status, status, "{path}");
        let event = event(&binary, "request", path).await;
        assert_eq!(event["outcome"], outcome, "{event}");
        assert_eq!(event["access.rule"].as_str(), rule, "{event}");
        assert_eq!(event["cluster"], "prod");
    }
}
