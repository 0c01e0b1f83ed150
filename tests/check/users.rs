//! Users with client certificates: their files, and who they are for the apiserver.

use std::path::{Path, PathBuf};

use http::{Request, Response, StatusCode};
use serde_json::json;
use standin::{
    kubernetes::Kubernetes,
    pki::Ca,
    upstream::{Builder, RequestBody, ResponseBody, Upstream, full},
};

use crate::world::{APISERVER, RunResult, World, check, flags, path};

/// What the apiserver believes of the fields of a front proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    All,
    NoId,
    /// It takes the user for another one.
    Other,
    Nothing,
}

/// An apiserver whose users have certificates. It tells users who they are.
fn apiserver(world: &World, belief: Belief) -> Builder {
    let kubernetes = Kubernetes::new();
    world
        .apiserver()
        .http(move |request: Request<RequestBody>| {
            let kubernetes = kubernetes.clone();
            async move {
                if request.uri().path().ends_with("/selfsubjectreviews") {
                    review(&request, belief)
                } else {
                    kubernetes.respond(request).await
                }
            }
        })
}

fn review(request: &Request<RequestBody>, belief: Belief) -> Response<ResponseBody> {
    let headers = request.headers();
    let all = |name: &str| -> Vec<String> {
        let lines = headers.get_all(name).iter();
        lines
            .map(|line| line.to_str().unwrap().to_owned())
            .collect()
    };
    let impersonates = all("authorization") == ["Bearer proxy-token"];
    let prefix = if impersonates {
        "impersonate"
    } else {
        "x-remote"
    };
    let user = all(&format!("{prefix}-user"));
    let by_proxy = !user.is_empty();
    let (status, info) = if by_proxy && belief == Belief::Nothing {
        let refused = if impersonates { 403 } else { 401 };
        (StatusCode::from_u16(refused).unwrap(), json!(null))
    } else if by_proxy {
        let uid = if belief == Belief::All {
            all(&format!("{prefix}-uid"))
        } else {
            Vec::new()
        };
        let groups = all(&format!("{prefix}-group"));
        let user = if belief == Belief::Other {
            "other".to_owned()
        } else {
            user.concat()
        };
        let info = json!({"username": user, "uid": uid.concat(), "groups": groups});
        (StatusCode::CREATED, info)
    } else {
        let info = json!({"username": "jane", "uid": "7d1a", "groups": ["developers"]});
        (StatusCode::CREATED, info)
    };
    let body = json!({"kind": "SelfSubjectReview", "status": {"userInfo": info}});
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = status;
    response
}

/// Writes a configuration with `clientCertificates` that ends with these lines, and the files that it names.
fn configuration(world: &World, upstream: &Upstream, users: &Ca, naming: &str) -> PathBuf {
    world.flags(upstream.address());
    world.dir.write("users.crt", users.pem());
    let config = format!(
        "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- name: a
  upstream: {{ url: \"https://{}\", ca: cluster-ca.crt, name: {APISERVER} }}
  clientCertificates:
    ca: users.crt
{naming}",
        upstream.address()
    );
    world.dir.write("config.yaml", config)
}

/// Checks a front proxy for this apiserver, with a certificate that this CA has issued.
async fn run(world: &World, belief: Belief, users: &Ca, issuer: &Ca, crl: &str) -> RunResult {
    let upstream = apiserver(world, belief).start().await;
    let front_proxies = Ca::new("front-proxy-ca");
    front_proxies
        .client("front-proxy", &[])
        .write(&world.dir, "front-proxy");
    let front_proxy = "    frontProxy: { certificate: front-proxy.crt, key: front-proxy.key }\n";
    let file = configuration(world, &upstream, users, &format!("{crl}{front_proxy}"));
    let jane_files = jane(world, issuer);
    let client = with_client(&file, &jane_files);
    let result = check(&[flags(&client), world.clients_trust()].concat(), &[]).await;
    let front_proxy = upstream.connections();
    let uses_certificate =
        |connection: &standin::upstream::Connection| !connection.client_certificates.is_empty();
    assert!(
        front_proxy.iter().any(uses_certificate),
        "{}",
        result.stdout
    );
    result
}

/// Checks a proxy that impersonates with the token in this file, with a certificate of `users` or without any.
async fn run_impersonating(
    world: &World,
    belief: Belief,
    token: Option<&str>,
    with_certificate: bool,
) -> RunResult {
    let (users, upstream) = (Ca::new("users"), apiserver(world, belief).start().await);
    if let Some(token) = token {
        world.dir.write("token", token);
    }
    let naming = "    impersonate: { tokenFile: token }\n";
    let file = configuration(world, &upstream, &users, naming);
    let jane_files = jane(world, &users);
    let mut client = with_client(&file, &jane_files);
    if !with_certificate {
        client.truncate(1);
    }
    let result = check(&[flags(&client), world.clients_trust()].concat(), &[]).await;
    for request in upstream.requests() {
        let is_ours = request.lines("authorization") == ["Bearer proxy-token"];
        let users = request.lines("impersonate-user").len();
        assert_eq!(users, usize::from(is_ours), "{request:?}");
    }
    result
}

/// The files of a certificate of Jane.
fn jane(world: &World, issuer: &Ca) -> (PathBuf, PathBuf) {
    let jane = issuer.leaf(&[]).client_auth().common_name("jane");
    let jane = jane.organizations(&["developers"]);
    let jane = jane
        .attribute(&[1, 3, 6, 1, 4, 1, 57683, 2], "7d1a")
        .build();
    jane.write(&world.dir, "jane")
}

/// The flags for this configuration and this certificate.
fn with_client<'a>(
    file: &'a Path,
    (certificate, key): &'a (PathBuf, PathBuf),
) -> Vec<(&'static str, &'a str)> {
    vec![
        ("--config", path(file)),
        ("--client-cert", path(certificate)),
        ("--client-key", path(key)),
    ]
}

#[tokio::test]
async fn same_user_direct_and_by_impersonation_passes() {
    let world = World::new();
    let result = run_impersonating(&world, Belief::All, Some("proxy-token\n"), true).await;
    assert_eq!(result.code, 0, "{}{}", result.stdout, result.stderr);
    let [clients] = &result.of("clients")[..] else {
        panic!("{}", result.stdout);
    };
    let text = "are impersonated with the token in";
    assert!(clients.message.contains(text), "{clients:?}");
    let [whoami] = &result.of("whoami")[..] else {
        panic!("{}", result.stdout);
    };
    assert_eq!(whoami.mark, '✓');
    assert!(whoami.message.ends_with("by impersonation"), "{whoami:?}");
}

/// Without the certificate of a user, the apiserver is asked about an invented one.
#[tokio::test]
async fn check_asks_whether_the_token_may_impersonate() {
    let world = World::new();
    let result = run_impersonating(&world, Belief::All, Some("proxy-token"), false).await;
    assert_eq!(result.code, 0, "{}{}", result.stdout, result.stderr);
    let [whoami] = &result.of("whoami")[..] else {
        panic!("{}", result.stdout);
    };
    assert_eq!(whoami.mark, '✓');
    assert!(whoami.message.contains("may impersonate"), "{whoami:?}");
    let result = run_impersonating(&world, Belief::Nothing, Some("proxy-token"), false).await;
    let text = "the token may not impersonate any user";
    result.assert_finding(0, '!', "whoami", text, "ClusterRole");
}

#[tokio::test]
async fn faults_of_impersonation_are_found() {
    for (token, text, fix) in [
        (None, "no such file", "check the path"),
        (Some(""), "it is empty", "ServiceAccount"),
        (Some("secret secret"), "it has a blank", "without `Bearer`"),
    ] {
        let result = run_impersonating(&World::new(), Belief::All, token, true).await;
        result.assert_finding(1, '✗', "clients", text, fix);
        assert!(!result.stdout.contains("secret"), "{}", result.stdout);
    }
    let world = World::new();
    let result = run_impersonating(&world, Belief::Nothing, Some("proxy-token"), true).await;
    let text = "the token may not impersonate this user";
    result.assert_finding(1, '✗', "whoami", text, "ClusterRole");
    for (with_certificate, text) in [
        (true, "but other (developers) by impersonation"),
        (false, "the impersonated user is other ()"),
    ] {
        let token = Some("proxy-token");
        let result = run_impersonating(&world, Belief::Other, token, with_certificate).await;
        result.assert_finding(1, '✗', "whoami", text, "check the token");
    }
}

#[tokio::test]
async fn same_user_direct_and_as_front_proxy_passes() {
    let (world, users) = (World::new(), Ca::new("users"));
    let result = run(&world, Belief::All, &users, &users, "").await;
    assert_eq!(result.code, 0, "{}{}", result.stdout, result.stderr);
    let [clients] = &result.of("clients")[..] else {
        panic!("{}", result.stdout);
    };
    assert_eq!(clients.mark, '✓');
    assert!(
        clients.message.contains("revocation is not checked"),
        "{clients:?}"
    );
    let [whoami] = &result.of("whoami")[..] else {
        panic!("{}", result.stdout);
    };
    assert_eq!(whoami.mark, '✓');
    assert!(
        whoami.message.starts_with("jane (developers)"),
        "{whoami:?}"
    );
    let page = include_str!("../../docs/check.md");
    for check in ["clients", "whoami"] {
        assert!(
            page.contains(&format!("\n| `{check}` | ")),
            "docs/check.md lacks {check}"
        );
    }
}

#[tokio::test]
async fn faults_of_client_certificates_are_found() {
    let (world, users, other) = (World::new(), Ca::new("users"), Ca::new("other"));
    let result = run(&world, Belief::NoId, &users, &users, "").await;
    let fix = "--requestheader-uid-headers";
    result.assert_finding(0, '!', "whoami", "without the user id", fix);
    let result = run(&world, Belief::Nothing, &users, &users, "").await;
    let text = "does not accept the front-proxy certificate";
    result.assert_finding(1, '✗', "whoami", text, "--requestheader-client-ca-file");
    let result = run(&world, Belief::Other, &users, &users, "").await;
    let text = "but other (developers) with the front-proxy certificate";
    result.assert_finding(1, '✗', "whoami", text, "--requestheader-client-ca-file");
    let result = run(&world, Belief::All, &users, &other, "").await;
    let text = "the proxy does not accept the client certificate";
    result.assert_finding(1, '✗', "whoami", text, "clientCertificates.ca");
    let result = run(
        &world,
        Belief::All,
        &users,
        &users,
        "    crl: missing.crl\n",
    )
    .await;
    let fix = "check the path";
    result.assert_finding(1, '✗', "clients", "revocation list", fix);
    let past = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    world
        .dir
        .write("users.crl", users.revocation_list(&[], past));
    let result = run(&world, Belief::All, &users, &users, "    crl: users.crl\n").await;
    let text = "the revocation list is out of date";
    result.assert_finding(1, '!', "clients", text, "write the current list");
}
