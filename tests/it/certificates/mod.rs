//! Users with client certificates: who the apiserver is told that they are, on which connections, and until when.

mod ends;
mod hostile;
mod impersonation;
mod refused;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use kube_tls_proxy::config::{ClientCertificatesConfig, IdentityFiles, NamingConfig};
use standin::{
    client::{CertificateRequests, Client},
    pki::{Ca, Identity},
    upstream::{Builder, Received, RequestBody, ResponseBody, Upstream, full},
};

use crate::{
    proxy::{HOST, Proxy, Setup, World},
    responses::{BOTH, ClientResponse, Protocol},
    spoofing::{FORGED, spellings},
    upgrades::{SPDY, WEBSOCKET},
};

/// The CA of users, and the one of front proxies.
pub(super) struct Authorities {
    pub(super) users: Ca,
    front_proxies: Ca,
}

impl Authorities {
    pub(super) fn new() -> Self {
        Self {
            users: Ca::new("users"),
            front_proxies: Ca::new("front-proxy-ca"),
        }
    }

    /// The section of a cluster, and its files.
    pub(super) fn section(&self, world: &World) -> ClientCertificatesConfig {
        let identity = self.front_proxies.client("front-proxy", &[]);
        let (certificate, key) = identity.write(&world.dir, "front-proxy");
        ClientCertificatesConfig {
            ca: world.dir.write("users.crt", self.users.pem()),
            crl: None,
            naming: NamingConfig::FrontProxy(IdentityFiles { certificate, key }),
            allow_system: false,
        }
    }

    /// A proxy that asks for client certificates.
    pub(super) fn proxy<'a>(&self, world: &'a World, upstream: &Upstream) -> Setup<'a> {
        let section = self.section(world);
        world
            .proxy(upstream.address())
            .cluster(|cluster| cluster.client_certificates = Some(section))
    }

    /// Jane, of two groups.
    pub(super) fn jane(&self) -> Identity {
        self.users.client("jane", &["developers", "on call"])
    }
}

/// An apiserver that authenticates as kube-apiserver does. `/livez` is open to everyone.
pub(super) fn apiserver(world: &World) -> Builder {
    world
        .apiserver()
        .http(async |request: Request<RequestBody>| {
            let headers = request.headers();
            let is_user = headers.contains_key("x-remote-user")
                || headers
                    .get("authorization")
                    .is_some_and(|token| token == "Bearer good");
            let mut response: Response<ResponseBody> = Response::new(full("ok"));
            if !is_user && request.uri().path() != "/livez" {
                *response.status_mut() = http::StatusCode::UNAUTHORIZED;
            }
            response
        })
}

/// Sends a GET on a new connection of this client.
pub(super) async fn get(
    client: &Client,
    protocol: Protocol,
    host: &str,
    fields: &[(&str, &str)],
) -> ClientResponse {
    match protocol {
        Protocol::Http1 => {
            let mut head = String::new();
            for (name, value) in fields {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            let mut client = client.http1().await;
            client.get(host, "/api/v1/pods", &head).await.into()
        }
        Protocol::Http2 => {
            let mut request = Request::get(format!("https://{host}/api/v1/pods"));
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let client = client.http2().await;
            let request = request.body(Bytes::new()).unwrap();
            client.request(request).await.unwrap().into()
        }
    }
}

/// A client with this certificate.
pub(super) fn client(proxy: &Proxy, identity: Identity) -> Client {
    proxy.client().identity(identity)
}

/// Whether the upstream connection of this request has a certificate of the proxy.
pub(super) fn is_front_proxy(upstream: &Upstream, request: &Received) -> bool {
    let connections = upstream.connections();
    !connections[request.connection]
        .client_certificates
        .is_empty()
}

/// Asserts for all requests so far: the fields of the proxy travel on connections with its certificate, and nothing
/// else does.
#[track_caller]
pub(super) fn assert_never_mixed(upstream: &Upstream) {
    for request in upstream.requests() {
        let says_who = request.lines("x-remote-user").len() == 1;
        assert_eq!(says_who, is_front_proxy(upstream, &request), "{request:?}");
        let is_own = |name: &str| name.to_ascii_lowercase().starts_with("x-remote-");
        let any = request.headers.iter().any(|(name, _)| is_own(name));
        assert_eq!(any, says_who, "{request:?}");
        assert!(
            !says_who || request.lines("authorization").is_empty(),
            "{request:?}"
        );
    }
}

/// The SHA-256 of a certificate, as kube-apiserver writes it.
fn credential_id(identity: &Identity) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &identity.chain[0]);
    let hex: String = hash
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("X509SHA256={hex}")
}

/// Cases 32, 36.
#[tokio::test]
async fn owner_of_certificate_is_named_to_apiserver() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for protocol in BOTH {
        for fields in [&[][..], &[("authorization", "Bearer good")]] {
            let jane = cas
                .users
                .leaf(&[])
                .client_auth()
                .common_name("jane")
                .organizations(&["developers", "on call"])
                .attribute(&[1, 3, 6, 1, 4, 1, 57683, 2], "7d1a")
                .build();
            let id = credential_id(&jane);
            let response = get(&client(&proxy, jane), protocol, HOST, fields).await;
            assert_eq!(response.code, 200, "{}", response.text());
            let request = upstream.next_request().await;
            assert_eq!(request.lines("x-remote-user"), ["jane"]);
            assert_eq!(request.lines("x-remote-group"), ["developers", "on call"]);
            assert_eq!(request.lines("x-remote-uid"), ["7d1a"]);
            let extra = "x-remote-extra-authentication.kubernetes.io%2fcredential-id";
            assert_eq!(request.lines(extra), [id]);
        }
    }
    assert_never_mixed(&upstream);
}

/// Cases 30, 31. Also after a user with a certificate has left a connection in the idle pool.
#[tokio::test]
async fn clients_without_certificate_never_use_front_proxy() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for protocol in BOTH {
        let response = get(&client(&proxy, cas.jane()), protocol, HOST, &[]).await;
        assert_eq!(response.code, 200, "{}", response.text());
        let token = [("authorization", "Bearer good")];
        assert_eq!(get(&proxy.client(), protocol, HOST, &token).await.code, 200);
        assert_eq!(get(&proxy.client(), protocol, HOST, &[]).await.code, 401);
        assert_eq!(proxy.get(protocol, "/livez").await.code, 200);
    }
    assert_never_mixed(&upstream);
    let requests = upstream.requests();
    let users = requests
        .iter()
        .filter(|request| is_front_proxy(&upstream, request));
    assert_eq!(users.count(), 2);
}

/// Users of certificates share the idle connections of the front proxy, as clients with tokens share theirs.
#[tokio::test]
async fn idle_front_proxy_connection_serves_the_next_user() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for protocol in BOTH {
        let mut connections = Vec::new();
        for user in ["jane", "joe"] {
            let client = client(&proxy, cas.users.client(user, &[]));
            assert_eq!(get(&client, protocol, HOST, &[]).await.code, 200);
            let request = upstream.next_request().await;
            assert_eq!(request.lines("x-remote-user"), [user]);
            connections.push(request.connection);
        }
        assert_eq!(connections[0], connections[1], "{protocol:?}");
    }
}

/// Case 28. In every spelling, with and without a certificate.
#[tokio::test]
async fn forged_fields_never_reach_apiserver_beside_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let mut cases = 0;
    for protocol in BOTH {
        for with_certificate in [true, false] {
            let client = if with_certificate {
                client(&proxy, cas.jane())
            } else {
                proxy.client()
            };
            let forged = FORGED.iter().filter(|name| name.starts_with("x-remote-"));
            for names in forged.flat_map(|name| spellings(name)) {
                // A name in upper case makes an HTTP/2 request malformed.
                if protocol == Protocol::Http2 && names[0] != names[0].to_ascii_lowercase() {
                    continue;
                }
                cases += 1;
                let mut fields = vec![("authorization", "Bearer good")];
                fields.extend(names.iter().map(|name| (name.as_str(), "forged")));
                let response = get(&client, protocol, HOST, &fields).await;
                assert_eq!(response.code, 200, "{names:?}: {}", response.text());
                let request = upstream.next_request().await;
                assert_eq!(is_front_proxy(&upstream, &request), with_certificate);
                for (name, value) in &request.headers {
                    let value = String::from_utf8_lossy(value);
                    assert!(!value.contains("forged"), "{names:?}: {name}: {value}");
                }
            }
        }
    }
    // `Connection` names them, which must not remove those of the proxy.
    for connection in [
        "x-remote-user",
        "X-Remote-Group, x-remote-user",
        "close, X-REMOTE-USER",
    ] {
        let fields = [("connection", connection), ("x-remote-user", "forged")];
        let response = get(&client(&proxy, cas.jane()), Protocol::Http1, HOST, &fields).await;
        assert_eq!(response.code, 200, "{connection}");
        let request = upstream.next_request().await;
        assert_eq!(request.lines("x-remote-user"), ["jane"], "{connection}");
        assert_eq!(request.lines("x-remote-group").len(), 2, "{connection}");
    }
    assert!(cases >= 60, "{cases} cases");
    assert_never_mixed(&upstream);
}

/// Case 37. The apiserver decides, with the user of the certificate as the one who asks.
#[tokio::test]
async fn impersonation_fields_pass_beside_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for protocol in BOTH {
        let fields = [("impersonate-user", "bob"), ("impersonate-group", "g")];
        let response = get(&client(&proxy, cas.jane()), protocol, HOST, &fields).await;
        assert_eq!(response.code, 200);
        let request = upstream.next_request().await;
        assert_eq!(request.lines("x-remote-user"), ["jane"]);
        for (name, value) in fields {
            assert_eq!(request.lines(name), [value]);
        }
    }
}

/// `kubectl exec` with a certificate.
#[tokio::test]
async fn upgrade_goes_to_front_proxy_connection_of_its_own() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = world.apiserver().http(crate::upgrades::echo).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    for request in [WEBSOCKET, SPDY] {
        let mut client = client(&proxy, cas.jane()).http1().await;
        client.send(request).await;
        assert_eq!(client.head().await.unwrap().status, 101);
        let received = upstream.next_request().await;
        assert_eq!(received.lines("x-remote-user"), ["jane"]);
        assert_eq!(received.lines("authorization"), [""; 0]);
        assert!(is_front_proxy(&upstream, &received));
    }
    assert_never_mixed(&upstream);
}

const OTHER: &str = "other.test";

/// A proxy with two clusters, and both apiservers. The second cluster has the section of the first, or none.
async fn two_clusters<'a>(
    world: &'a World,
    cas: &Authorities,
    second_asks: bool,
) -> (Setup<'a>, Upstream, Upstream) {
    let (first, second) = (
        apiserver(world).start().await,
        apiserver(world).start().await,
    );
    let identity = world.public_ca.server(&[HOST, OTHER, "127.0.0.1"]);
    let section = cas.section(world);
    let mut setup = world
        .proxy_as(first.address(), &identity)
        .cluster(|cluster| cluster.client_certificates = Some(section))
        .second_cluster("second", OTHER, second.address());
    if !second_asks {
        setup.config.clusters[1].client_certificates = None;
    }
    (setup, first, second)
}

/// An HTTP/2 client may use a connection for each name in the certificate of the proxy, and HTTP/1.1 names any host.
#[tokio::test]
async fn certificate_never_counts_for_another_cluster() {
    let (world, cas) = (World::new(), Authorities::new());
    let (setup, first, second) = two_clusters(&world, &cas, true).await;
    let proxy = setup.start();
    let jane = client(&proxy, cas.jane());
    for protocol in BOTH {
        assert_eq!(get(&jane, protocol, HOST, &[]).await.code, 200);
        let refused = get(&jane, protocol, OTHER, &[]).await;
        let message = refused.assert_status(421, "MisdirectedRequest");
        assert!(message.contains("another host name"), "{message}");
        assert_eq!(second.requests().len(), 0);
    }
    for protocol in BOTH {
        let token = [("authorization", "Bearer good")];
        assert_eq!(get(&jane, protocol, OTHER, &token).await.code, 200);
        assert!(!is_front_proxy(&second, &second.next_request().await));
    }
    // On a connection of its own the same certificate counts.
    let other = jane.sni(OTHER);
    assert_eq!(get(&other, Protocol::Http2, OTHER, &[]).await.code, 200);
    assert!(is_front_proxy(&second, &second.next_request().await));
    assert_never_mixed(&first);
    assert_never_mixed(&second);
}

#[tokio::test]
async fn certificate_is_asked_for_only_under_names_of_its_cluster() {
    let (world, cas) = (World::new(), Authorities::new());
    let (setup, first, second) = two_clusters(&world, &cas, false).await;
    let proxy = setup.start();
    for (name, is_asked) in [(HOST, true), (OTHER, false), ("127.0.0.1", false)] {
        let seen = Arc::new(CertificateRequests::default());
        let client = client(&proxy, cas.jane()).recording(&seen).sni(name);
        for protocol in BOTH {
            let fields = [("authorization", "Bearer good")];
            let host = if is_asked { HOST } else { OTHER };
            assert_eq!(
                get(&client, protocol, host, &fields).await.code,
                200,
                "{name}"
            );
        }
        let asked = seen.all();
        assert_eq!(asked.len(), if is_asked { 2 } else { 0 }, "{name}");
        for names in asked {
            let ca = webpki::anchor_from_trusted_cert(&cas.users.der())
                .unwrap()
                .to_owned();
            assert_eq!(names.len(), 1);
            assert!(
                names[0].ends_with(ca.subject.as_ref()),
                "the name of the CA"
            );
        }
    }
    assert_never_mixed(&first);
    assert_never_mixed(&second);
}

/// A kubeconfig with an address as its server sends no name.
#[tokio::test]
async fn only_cluster_asks_client_without_server_name() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let client = client(&proxy, cas.jane()).sni("127.0.0.1");
    for protocol in BOTH {
        assert_eq!(get(&client, protocol, "127.0.0.1", &[]).await.code, 200);
        assert_eq!(
            upstream.next_request().await.lines("x-remote-user"),
            ["jane"]
        );
    }
}

#[tokio::test]
async fn without_the_section_no_client_is_asked() {
    let (world, upstream, proxy) = World::with_proxy().await;
    let cas = Authorities::new();
    for name in [HOST, "127.0.0.1"] {
        let seen = Arc::new(CertificateRequests::default());
        let client = client(&proxy, cas.jane()).recording(&seen).sni(name);
        for protocol in BOTH {
            assert_eq!(get(&client, protocol, HOST, &[]).await.code, 200);
            assert!(!is_front_proxy(&upstream, &upstream.next_request().await));
        }
        assert_eq!(seen.all().len(), 0);
    }
    drop(world);
}

/// Access rules judge the certificate, and not a token beside it, which the apiserver does not see.
#[tokio::test]
async fn access_rules_judge_the_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let upstream = apiserver(&world).start().await;
    for (rules, with_certificate, with_token) in [
        (
            "  - deny: {credentials: [certificate]}\n  - allow: {}\n",
            403,
            200,
        ),
        ("  - allow: {credentials: [certificate]}\n", 200, 403),
        (
            "  - deny: {credentials: [opaque, none]}\n  - allow: {}\n",
            200,
            403,
        ),
    ] {
        let rules = crate::access::rules(rules);
        let setup = cas.proxy(&world, &upstream);
        let proxy = setup
            .cluster(|cluster| cluster.access = rules.clone())
            .start();
        let token = [("authorization", "Bearer good")];
        for protocol in BOTH {
            let jane = client(&proxy, cas.jane());
            for fields in [&[][..], &token] {
                let response = get(&jane, protocol, HOST, fields).await;
                assert_eq!(response.code, with_certificate, "{rules:?}");
            }
            let response = get(&proxy.client(), protocol, HOST, &token).await;
            assert_eq!(response.code, with_token, "{rules:?}");
        }
    }
    assert_never_mixed(&upstream);
}

/// A 403 is about a permission of its user, so it uses up no budget for credentials.
#[tokio::test]
async fn forbidden_requests_with_certificate_are_not_throttled() {
    let (world, cas) = (World::new(), Authorities::new());
    let forbid = async |_| {
        let mut response = Response::new(full("no"));
        *response.status_mut() = http::StatusCode::FORBIDDEN;
        response
    };
    let upstream = world.apiserver().http(forbid).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let mut jane = client(&proxy, cas.jane()).http1().await;
    for _ in 0..100 {
        assert_eq!(jane.get(HOST, "/api/v1/pods", "").await.status, 403);
    }
    assert_eq!(upstream.requests().len(), 100);
}

/// An apiserver with `--goaway-chance` ends its connection now and then, but the client's stays.
#[tokio::test]
async fn goaway_of_apiserver_does_not_reach_owner_of_certificate() {
    let (world, cas) = (World::new(), Authorities::new());
    let goaway = async |_| {
        let response = Response::builder().header("connection", "close");
        response.body(full("ok")).unwrap()
    };
    let upstream = world.apiserver().http(goaway).start().await;
    let proxy = cas.proxy(&world, &upstream).start();
    let jane = client(&proxy, cas.jane()).http2().await;
    for _ in 0..3 {
        let response = jane.get("https://kube.test/api/v1/pods").await.unwrap();
        assert_eq!(response.text(), "ok");
    }
    let goaway = standin::frames::kind::GOAWAY;
    assert!(jane.frames().iter().all(|frame| frame.kind != goaway));
}
