//! Users with client certificates whom the proxy impersonates with a token of its own: what the apiserver receives for
//! them, and that no other request gets this token.

use std::{fs, path::PathBuf, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD};
use http::{Request, Response, StatusCode};
use kube_tls_proxy::config::{ClientCertificatesConfig, NamingConfig, TokenBucketSize};
use standin::{
    client::{Client, Http2},
    pki::Ca,
    upstream::{Builder, Received, RequestBody, ResponseBody, Upstream, full},
    within,
};

use super::{
    Authorities, client, credential_id,
    ends::{assert_closed, in_a_day, tunnel, watch},
    get, is_front_proxy,
};
use crate::{
    admin,
    binary::Binary,
    proxy::{HOST, Proxy, Setup, World, watch_or_ok},
    responses::{BOTH, Protocol},
    spoofing::spellings,
    upgrades::{SPDY, WEBSOCKET, echo},
};

/// What the token file has at first.
const TOKEN: &str = "proxy.token.one";
const EXTRA: &str = "impersonate-extra-authentication.kubernetes.io%2fcredential-id";

fn token_file(world: &World) -> PathBuf {
    world.dir.path().join("token")
}

/// The section of a cluster, and its files.
fn section(cas: &Authorities, world: &World) -> ClientCertificatesConfig {
    fs::write(token_file(world), TOKEN).unwrap();
    ClientCertificatesConfig {
        naming: NamingConfig::Impersonate(token_file(world)),
        ..cas.section(world)
    }
}

/// A proxy that impersonates the owners of certificates.
fn setup<'a>(cas: &Authorities, world: &'a World, upstream: &Upstream) -> Setup<'a> {
    let section = section(cas, world);
    world
        .proxy(upstream.address())
        .cluster(|cluster| cluster.client_certificates = Some(section))
}

/// A configuration file of a binary that names users in this way, and the files that it names.
fn file(world: &World, cas: &Authorities, upstream: &Upstream, naming: &str) -> PathBuf {
    section(cas, world);
    world.public_ca.server(&[HOST]).write(&world.dir, "public");
    world.dir.write("cluster-ca.crt", world.cluster_ca.pem());
    let text = format!(
        "listen: ['127.0.0.1:0']\ntimeouts: {{drainDelay: 0s}}\n\
         log: {{format: json, filter: 'trace,h2=trace,h2::codec=trace,kube_tls_proxy=trace'}}\n\
         certificates: [{{certificate: public.crt, key: public.key}}]\n\
         clusters:\n- name: prod\n  hosts: [{HOST}]\n  \
         upstream: {{url: 'https://{}', ca: cluster-ca.crt, name: kubernetes.default.svc}}\n  \
         clientCertificates: {{ca: users.crt, {naming}}}\n",
        upstream.address()
    );
    world.dir.write("proxy.yaml", text)
}

/// An apiserver that knows the token of the proxy and that of one user. `/livez` is open to everyone.
fn apiserver(world: &World) -> Builder {
    world
        .apiserver()
        .http(async |request: Request<RequestBody>| {
            let token = request.headers().get("authorization");
            let is_known = token.is_some_and(|token| {
                token == "Bearer good" || token.as_bytes().starts_with(b"Bearer proxy.token.")
            });
            let mut response = Response::new(full("ok"));
            if !is_known && request.uri().path() != "/livez" {
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            response
        })
}

/// The lines that say who sends a request or who it is for, sorted, with names in lower case.
fn identity(request: &Received) -> Vec<String> {
    let mut lines: Vec<String> = request
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(value)))
        .filter(|(name, _)| {
            let name = name.replace('_', "-");
            let is = |beginning| name.starts_with(beginning);
            is("impersonate") || is("x-remote") || is("authorization")
        })
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.sort();
    lines
}

/// What the apiserver receives for Jane.
fn of_jane(id: &str) -> Vec<String> {
    let mut lines = vec![
        format!("authorization: Bearer {TOKEN}"),
        format!("{EXTRA}: {id}"),
        "impersonate-group: developers".to_owned(),
        "impersonate-group: on call".to_owned(),
        "impersonate-user: jane".to_owned(),
    ];
    lines.sort();
    lines
}

/// Asserts for all requests so far: the token of the proxy travels beside exactly one user, and never with a
/// certificate of the proxy.
#[track_caller]
fn assert_token_only_for_users(upstream: &Upstream) {
    for request in upstream.requests() {
        let tokens = request.lines("authorization");
        let is_ours = tokens.iter().any(|token| token.contains("proxy.token"));
        if is_ours {
            assert_eq!(tokens.len(), 1, "{request:?}");
            assert_eq!(request.lines("impersonate-user").len(), 1, "{request:?}");
            assert_eq!(request.lines(EXTRA).len(), 1, "{request:?}");
        }
        assert!(!is_front_proxy(upstream, &request), "{request:?}");
    }
}

/// Sends requests until one has this status.
async fn wait_for_status(client: &Client, code: u16) {
    let reached = async {
        while get(client, Protocol::Http2, HOST, &[]).await.code != code {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the token file to count", reached).await;
}

#[tokio::test]
async fn owner_of_certificate_is_impersonated() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = setup(&cas, &world, &upstream).start();
    for protocol in BOTH {
        // A token of the client is removed, so the apiserver never sees two.
        for fields in [&[][..], &[("authorization", "Bearer good")]] {
            let jane = cas.users.leaf(&[]).client_auth().common_name("jane");
            let jane = jane.organizations(&["developers", "on call"]);
            let jane = jane
                .attribute(&[1, 3, 6, 1, 4, 1, 57683, 2], "7d1a")
                .build();
            let mut expected = of_jane(&credential_id(&jane));
            expected.push("impersonate-uid: 7d1a".to_owned());
            expected.sort();
            let response = get(&client(&proxy, jane), protocol, HOST, fields).await;
            assert_eq!(response.code, 200, "{}", response.text());
            let request = upstream.next_request().await;
            assert_eq!(identity(&request), expected);
            let groups = request.lines("impersonate-group");
            assert_eq!(groups, ["developers", "on call"], "in this order");
        }
    }
    assert_token_only_for_users(&upstream);
}

/// With a token, without any credential, and with a certificate that does not count: also after users with certificates
/// have left connections in the idle pool.
#[tokio::test]
async fn no_request_without_valid_certificate_gets_the_token() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = setup(&cas, &world, &upstream).start();
    let stranger = || Ca::new("users").client("jane", &[]);
    for protocol in BOTH {
        let jane = client(&proxy, cas.jane());
        assert_eq!(get(&jane, protocol, HOST, &[]).await.code, 200);
        upstream.next_request().await;
        for client in [proxy.client(), client(&proxy, stranger())] {
            // Its own fields pass as they are, those of impersonation too.
            let fields = [
                ("authorization", "Bearer good"),
                ("impersonate-user", "bob"),
                ("impersonate-extra-a", "b"),
            ];
            assert_eq!(get(&client, protocol, HOST, &fields).await.code, 200);
            let lines = fields.map(|(name, value)| format!("{name}: {value}"));
            let mut lines = lines.to_vec();
            lines.sort();
            assert_eq!(identity(&upstream.next_request().await), lines);
        }
        let before = upstream.requests().len();
        let refused = get(&client(&proxy, stranger()), protocol, HOST, &[]).await;
        let message = refused.assert_status(401, "Unauthorized");
        assert!(message.contains("is not signed by the CA"), "{message}");
        assert_eq!(upstream.requests().len(), before);
        assert_eq!(get(&proxy.client(), protocol, HOST, &[]).await.code, 401);
        assert_eq!(identity(&upstream.next_request().await), [""; 0]);
        assert_eq!(proxy.get(protocol, "/livez").await.code, 200);
        assert_eq!(identity(&upstream.next_request().await), [""; 0]);
    }
    assert_token_only_for_users(&upstream);
}

/// Names of impersonation that clients could send, and what a server could read as one.
const IMPERSONATION: &[&str] = &[
    "impersonate-user",
    "impersonate-group",
    "impersonate-uid",
    "impersonate-extra-x",
    "impersonate-extra-",
    "impersonate-extra-acme.com%2fproject",
    "impersonate-extra-authentication.kubernetes.io%2fcredential-id",
    "impersonate-foo",
    "impersonate-",
];

/// Case 38. In every spelling, with and without a token, empty or not.
#[tokio::test]
async fn impersonation_by_owner_of_certificate_is_refused() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = setup(&cas, &world, &upstream).start();
    let jane = client(&proxy, cas.jane());
    let mut cases = 0;
    for protocol in BOTH {
        for names in IMPERSONATION.iter().flat_map(|name| spellings(name)) {
            // A name in upper case makes an HTTP/2 request malformed.
            if protocol == Protocol::Http2 && names[0] != names[0].to_ascii_lowercase() {
                continue;
            }
            for (value, token) in [("system:admin", false), ("", false), ("bob", true)] {
                cases += 1;
                let mut fields: Vec<_> = names.iter().map(|name| (name.as_str(), value)).collect();
                if token {
                    fields.push(("authorization", "Bearer good"));
                }
                let response = get(&jane, protocol, HOST, &fields).await;
                let message = response.assert_status(403, "Forbidden");
                assert!(
                    message.contains("cannot impersonate another user"),
                    "{message}"
                );
            }
        }
    }
    assert!(cases >= 200, "{cases} cases");
    assert_eq!(upstream.requests().len(), 0);
    // Names that only begin in the same way are no impersonation.
    for name in ["impersonated-user", "impersonate", "x-impersonate-user"] {
        let response = get(&jane, Protocol::Http1, HOST, &[(name, "a")]).await;
        assert_eq!(response.code, 200, "{name}");
    }
    assert_token_only_for_users(&upstream);
}

/// The fields of the proxy are set after the client's `Connection` lines have been read.
#[tokio::test]
async fn connection_field_removes_no_impersonation() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = setup(&cas, &world, &upstream).start();
    let jane = cas.jane();
    let expected = of_jane(&credential_id(&jane));
    let jane = client(&proxy, jane);
    for connection in [
        "impersonate-user",
        "Impersonate-Group, impersonate-user, authorization",
        "close, IMPERSONATE-USER",
    ] {
        let fields = [
            ("connection", connection),
            ("x-remote-user", "forged"),
            ("X_Remote_Group", "forged"),
        ];
        let response = get(&jane, Protocol::Http1, HOST, &fields).await;
        assert_eq!(response.code, 200, "{connection}");
        assert_eq!(
            identity(&upstream.next_request().await),
            expected,
            "{connection}"
        );
    }
}

/// `kubectl exec`, with a token of the client in every place that the apiserver reads.
#[tokio::test]
async fn upgrade_of_owner_of_certificate_is_impersonated() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(echo).start().await;
    let proxy = setup(&cas, &world, &upstream).start();
    let channel = "v5.channel.k8s.io";
    let token = "base64url.bearer.authorization.k8s.io.Z29vZA";
    for request in [
        WEBSOCKET.to_owned(),
        WEBSOCKET.replace(channel, &format!("{token}, {channel}")),
        SPDY.to_owned(),
    ] {
        let jane = cas.jane();
        let expected = of_jane(&credential_id(&jane));
        let jane = client(&proxy, jane);
        let mut open = jane.http1().await;
        open.send(&request).await;
        assert_eq!(open.head().await.unwrap().status, 101);
        open.send("hello").await;
        assert_eq!(open.take(5).await.unwrap(), "hello");
        let received = upstream.next_request().await;
        assert_eq!(identity(&received), expected);
        let protocols = received.lines("sec-websocket-protocol").join(",");
        assert!(!protocols.contains("bearer"), "{protocols}");
        let before = upstream.requests().len();
        let mut refused = jane.http1().await;
        let host = "Host: kube.test\r\n";
        let asking = request.replace(host, &format!("{host}Impersonate-User: bob\r\n"));
        refused.send(asking).await;
        assert_eq!(refused.head().await.unwrap().status, 403);
        assert_eq!(upstream.requests().len(), before);
    }
    assert_token_only_for_users(&upstream);
}

/// The last token is not kept: its owner may have taken it away.
#[tokio::test]
async fn unusable_token_file_is_503_for_users_of_certificates_only() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let setup = setup(&cas, &world, &upstream);
    fs::remove_file(token_file(&world)).unwrap();
    let proxy = setup.admin().start();
    let jane = client(&proxy, cas.jane());
    for (content, reason) in [
        (None, "no such file"),
        (Some(&b""[..]), "it is empty"),
        (Some(b" \n"), "it is empty"),
        (Some(b"secret\nsecret"), "it has several lines"),
        (Some(b"Bearer secret"), "it has a blank"),
        (Some(b"s\0cret"), "it has a blank"),
    ] {
        if let Some(content) = content {
            fs::write(token_file(&world), TOKEN).unwrap();
            proxy.reload();
            wait_for_status(&jane, 200).await;
            fs::write(token_file(&world), content).unwrap();
            proxy.reload();
        }
        wait_for_status(&jane, 503).await;
        let before = upstream.requests().len();
        for protocol in BOTH {
            // Not even with a token of the client: the apiserver would take the certificate.
            for fields in [&[][..], &[("authorization", "Bearer good")]] {
                let refused = get(&jane, protocol, HOST, fields).await;
                let message = refused.assert_status(503, "ServiceUnavailable");
                assert!(message.contains("must fix the token file"), "{message}");
                assert_eq!(refused.lines("retry-after"), [""; 0]);
            }
        }
        assert_eq!(upstream.requests().len(), before);
        for protocol in BOTH {
            let token = [("authorization", "Bearer good")];
            assert_eq!(get(&proxy.client(), protocol, HOST, &token).await.code, 200);
            assert_eq!(proxy.get(protocol, "/livez").await.code, 200);
        }
        for target in ["/readyz?verbose", "/status.json"] {
            let page = admin::get(proxy.admin(), target).await;
            assert_eq!(page.status, 200, "{}", page.text());
            assert!(page.text().contains(reason), "{reason}: {}", page.text());
            assert!(!page.text().contains("secret"), "{}", page.text());
        }
    }
    fs::write(token_file(&world), format!("{TOKEN}\n")).unwrap();
    proxy.reload();
    wait_for_status(&jane, 200).await;
    let verbose = admin::get(proxy.admin(), "/readyz?verbose").await;
    assert!(!verbose.text().contains("token"), "{}", verbose.text());
    assert_token_only_for_users(&upstream);
}

/// Sends requests until one has this token. Returns the connection of the last one.
async fn wait_for_token(client: &Http2, upstream: &Upstream, token: &str) -> usize {
    let reached = async {
        loop {
            client.get("https://kube.test/api").await.unwrap();
            let request = upstream.requests().pop().unwrap();
            assert_eq!(request.lines("impersonate-user"), ["jane"]);
            if request.lines("authorization") == [format!("Bearer {token}")] {
                return request.connection;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the new token", reached).await
}

/// A token in a pod changes every hour, and nothing ends then. A fault of another file does not keep the old one, which
/// expires.
#[tokio::test]
async fn new_token_is_used_at_once_and_ends_no_connection() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = setup(&cas, &world, &upstream).start();
    let jane = client(&proxy, cas.jane()).http2().await;
    let connection = wait_for_token(&jane, &upstream, TOKEN).await;
    fs::write(token_file(&world), "proxy.token.two").unwrap();
    proxy.reload();
    let same = wait_for_token(&jane, &upstream, "proxy.token.two").await;
    assert_eq!(same, connection);
    world.dir.write("users.crt", "no certificate");
    fs::write(token_file(&world), "proxy.token.three").unwrap();
    proxy.fail_to_reload().await;
    let same = wait_for_token(&jane, &upstream, "proxy.token.three").await;
    assert_eq!(same, connection);
    // Also after a reload that has replaced everything else.
    world.dir.write(
        "users.crt",
        format!("{}{}", cas.users.pem(), Ca::new("other").pem()),
    );
    fs::write(token_file(&world), "proxy.token.four").unwrap();
    proxy.reload();
    wait_for_token(&jane, &upstream, "proxy.token.four").await;
    fs::write(token_file(&world), "proxy.token.five").unwrap();
    proxy.reload();
    wait_for_token(&jane, &upstream, "proxy.token.five").await;
    assert_token_only_for_users(&upstream);
}

/// A proxy with a revocation list, and a client with a certificate that `revoke` puts there.
fn revocable(cas: &Authorities, world: &World, upstream: &Upstream) -> (Proxy, Client) {
    let list = cas.users.revocation_list(&[], in_a_day());
    let section = ClientCertificatesConfig {
        crl: Some(world.dir.write("users.crl", list)),
        ..section(cas, world)
    };
    let proxy = world
        .proxy(upstream.address())
        .cluster(|cluster| cluster.client_certificates = Some(section))
        .start();
    let leaf = cas.users.leaf(&[]).client_auth().common_name("jane");
    let jane = client(&proxy, leaf.serial(7).build());
    (proxy, jane)
}

fn revoke(cas: &Authorities, world: &World, proxy: &Proxy) {
    let list = cas.users.revocation_list(&[7], in_a_day());
    world.dir.write("users.crl", list);
    proxy.reload();
}

/// As in the mode of a front proxy: the connections share the leases of tokens, but end with the certificate.
#[tokio::test]
async fn revocation_ends_impersonated_watch_and_tunnel() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(watch_or_ok).start().await;
    let (proxy, jane) = revocable(&cas, &world, &upstream);
    let (_http2, mut open) = watch(&jane).await;
    revoke(&cas, &world, &proxy);
    let ended = within("the end of the watch", open.body_mut().data()).await;
    assert!(ended.is_none_or(|data| data.is_err()), "no more data comes");
    assert_token_only_for_users(&upstream);

    let upstream = world.apiserver().http(echo).start().await;
    let (proxy, jane) = revocable(&cas, &world, &upstream);
    let open = tunnel(&jane).await;
    revoke(&cas, &world, &proxy);
    assert_closed(open).await;
    assert_token_only_for_users(&upstream);
}

async fn refuse(_: Request<RequestBody>) -> Response<ResponseBody> {
    let mut response = Response::new(full("no"));
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response
}

/// The proxy has verified the user, so the apiserver does not believe the proxy. A hint about the expiry of the token
/// would be about that of the proxy.
#[tokio::test]
async fn apiserver_that_refuses_the_token_is_named() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(refuse).start().await;
    let setup = setup(&cas, &world, &upstream);
    let claims = URL_SAFE_NO_PAD.encode(r#"{"exp":1}"#);
    fs::write(token_file(&world), format!("e30.{claims}.c2ln")).unwrap();
    let proxy = setup.start();
    for protocol in BOTH {
        let response = get(&client(&proxy, cas.jane()), protocol, HOST, &[]).await;
        assert_eq!(response.code, 401);
        let [warning] = response.lines("warning")[..] else {
            panic!("{response:?}");
        };
        let text = "does not accept the impersonation token";
        assert!(warning.contains(text), "{warning}");
    }
}

/// A user who logs in again changes nothing when the apiserver refuses the proxy.
#[tokio::test]
async fn budget_of_401s_names_the_credential_of_the_proxy() {
    const BUDGET: u32 = 3;
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(refuse).start().await;
    for (setup, refused) in [
        (setup(&cas, &world, &upstream), "the impersonation token"),
        (cas.proxy(&world, &upstream), "the front-proxy certificate"),
    ] {
        let before = upstream.requests().len();
        let budget = TokenBucketSize::new(BUDGET, Duration::from_secs(3600));
        let setup = setup.limits(|limits| limits.unauthorized_per_client = budget);
        let proxy = setup.start();
        // One certificate: each has a budget of its own.
        let jane = client(&proxy, cas.jane());
        for request in 0..2 * BUDGET {
            let response = get(&jane, BOTH[(request % 2) as usize], HOST, &[]).await;
            let [warning] = response.lines("warning")[..] else {
                panic!("{response:?}");
            };
            let wanted = format!("does not accept {refused} of this proxy; ask its operator");
            assert!(warning.contains(&wanted), "{warning}");
            if request >= BUDGET {
                let message = response.assert_status(401, "Unauthorized");
                assert!(message.contains(&wanted), "{message}");
                assert!(!message.contains("log in"), "{message}");
            }
        }
        let reached = upstream.requests().len() - before;
        assert_eq!(reached, BUDGET as usize, "{refused}");
    }
}

#[tokio::test]
async fn user_of_system_is_impersonated_only_if_allowed() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let admin = || cas.users.client("kubernetes-admin", &["system:masters"]);
    let proxy = setup(&cas, &world, &upstream).start();
    let refused = get(&client(&proxy, admin()), Protocol::Http2, HOST, &[]).await;
    let message = refused.assert_status(403, "Forbidden");
    assert!(message.contains("begins with `system:`"), "{message}");
    assert_eq!(upstream.requests().len(), 0);
    let allow = |cluster: &mut kube_tls_proxy::config::ClusterConfig| {
        cluster.client_certificates.as_mut().unwrap().allow_system = true;
    };
    let proxy = setup(&cas, &world, &upstream).cluster(allow).start();
    let response = get(&client(&proxy, admin()), Protocol::Http2, HOST, &[]).await;
    assert_eq!(response.code, 200);
    let request = upstream.next_request().await;
    assert_eq!(request.lines("impersonate-group"), ["system:masters"]);
}

/// From a front proxy to impersonation: the next request already says who the user is in the new way, and in no other.
#[tokio::test]
async fn reload_changes_how_users_are_named() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().start().await;
    let mut setup = cas.proxy(&world, &upstream);
    // A reload reads the configuration again only if a file has changed.
    setup.config.sources = vec![world.dir.write("proxy.yaml", "")];
    let config = std::sync::Arc::new(std::sync::Mutex::new(setup.config.clone()));
    let source = std::sync::Arc::clone(&config);
    let proxy = setup.start_from(Box::new(move || Ok(source.lock().unwrap().clone())));
    let jane = client(&proxy, cas.jane()).http2().await;
    jane.get("https://kube.test/api").await.unwrap();
    let request = upstream.next_request().await;
    assert_eq!(request.lines("x-remote-user"), ["jane"]);
    config.lock().unwrap().clusters[0].client_certificates = Some(section(&cas, &world));
    world.dir.write("proxy.yaml", "changed");
    proxy.reload();
    let changed = async {
        loop {
            jane.get("https://kube.test/api").await.unwrap();
            let request = upstream.requests().pop().unwrap();
            let remote = !request.lines("x-remote-user").is_empty();
            assert_eq!(remote, is_front_proxy(&upstream, &request));
            if !remote {
                return request;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let request = within("the new section", changed).await;
    assert_eq!(request.lines("impersonate-user"), ["jane"]);
    assert_eq!(request.lines("authorization"), [format!("Bearer {TOKEN}")]);
}

/// The client sees a 401 and its warning. The operator sees the line, which names what to fix.
#[tokio::test]
async fn apiserver_that_refuses_the_proxy_is_logged() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(refuse).start().await;
    for (naming, line) in [
        (
            "impersonate: {tokenFile: token}",
            "apiserver refuses the impersonation token; renew the file",
        ),
        (
            "frontProxy: {certificate: front-proxy.crt, key: front-proxy.key}",
            "apiserver refuses the front-proxy certificate; check --requestheader-client-ca-file",
        ),
    ] {
        let binary = Binary::start_from_file(&file(&world, &cas, &upstream, naming)).await;
        let jane = binary.client(&world).identity(cas.jane());
        assert_eq!(get(&jane, Protocol::Http2, HOST, &[]).await.code, 401);
        binary.wait_for_line(line).await;
    }
}

/// Neither the start, nor requests, nor a damaged file, nor a new token, even with all libraries at level trace.
#[tokio::test]
async fn token_of_the_proxy_is_never_logged() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let naming = "impersonate: {tokenFile: token}";
    let file = file(&world, &cas, &upstream, naming);
    world.dir.write("token", "proxy.token.Canary5ecret");
    let mut binary = Binary::start_from_file(&file).await;
    binary.wait_for_line("impersonation token in use").await;
    let jane = || binary.client(&world).identity(cas.jane());
    for protocol in BOTH {
        assert_eq!(get(&jane(), protocol, HOST, &[]).await.code, 200);
    }
    for (content, event) in [
        ("Canary5ecret\nCanary5ecret", "impersonation token unusable"),
        (
            "proxy.token.new.Canary5ecret",
            "new impersonation token in use",
        ),
    ] {
        world.dir.write("token", content);
        binary.signal("HUP").await;
        binary.wait_for_line(event).await;
        for protocol in BOTH {
            get(&jane(), protocol, HOST, &[]).await;
        }
    }
    binary.signal("TERM").await;
    assert_eq!(binary.exit_code().await, Some(0));
    for line in binary.stderr() {
        assert!(!line.contains("Canary5ecret"), "{line}");
    }
    let sent = upstream.requests();
    let sent = sent
        .iter()
        .flat_map(|request| request.lines("authorization"));
    assert_eq!(
        sent.filter(|token| token.contains("Canary5ecret")).count(),
        4
    );
}
