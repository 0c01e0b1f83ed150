//! Users with client certificates: their files, and who they are for the apiserver.

use http::{Request, Response, StatusCode};
use serde_json::json;
use standin::{
    kubernetes::Kubernetes,
    pki::Ca,
    upstream::{Builder, RequestBody, ResponseBody, full},
};

use crate::world::{APISERVER, RunResult, World, check, flags, path};

/// What the apiserver believes of the fields of a front proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    All,
    NoId,
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
    let user = all("x-remote-user");
    let by_proxy = !user.is_empty();
    let (status, info) = if by_proxy && belief == Belief::Nothing {
        (StatusCode::UNAUTHORIZED, json!(null))
    } else if by_proxy {
        let uid = if belief == Belief::All {
            all("x-remote-uid")
        } else {
            Vec::new()
        };
        let groups = all("x-remote-group");
        let info = json!({"username": user.concat(), "uid": uid.concat(), "groups": groups});
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

/// Checks a proxy with `clientCertificates` in front of this apiserver, with a certificate that this CA has issued.
async fn run(world: &World, belief: Belief, users: &Ca, issuer: &Ca, crl: &str) -> RunResult {
    let upstream = apiserver(world, belief).start().await;
    // Writes the files that the configuration names.
    world.flags(upstream.address());
    world.dir.write("users.crt", users.pem());
    let front_proxies = Ca::new("front-proxy-ca");
    front_proxies
        .client("front-proxy", &[])
        .write(&world.dir, "front-proxy");
    let config = format!(
        "listen: [\"127.0.0.1:0\"]
certificates: [{{ certificate: public.crt, key: public.key }}]
clusters:
- name: a
  upstream: {{ url: \"https://{}\", ca: cluster-ca.crt, name: {APISERVER} }}
  clientCertificates:
    ca: users.crt
{crl}    frontProxy: {{ certificate: front-proxy.crt, key: front-proxy.key }}
",
        upstream.address()
    );
    let file = world.dir.write("config.yaml", config);
    let jane = issuer.leaf(&[]).client_auth().common_name("jane");
    let jane = jane.organizations(&["developers"]);
    let jane = jane
        .attribute(&[1, 3, 6, 1, 4, 1, 57683, 2], "7d1a")
        .build();
    let (certificate, key) = jane.write(&world.dir, "jane");
    let client = [
        ("--config", path(&file)),
        ("--client-cert", path(&certificate)),
        ("--client-key", path(&key)),
    ];
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
