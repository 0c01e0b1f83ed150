//! A certificate by ACME: the store, the directory of the CA, DNS, and that `check` itself asks for no certificate.

use std::future::ready;

use http::{Request, Response, StatusCode};
use standin::{
    tcp::refused,
    upstream::{RequestBody, Upstream, full},
};

use crate::world::{APISERVER, PrintedFinding, RunResult, World, check, flags, path};

/// A CA whose directory has this status and content.
async fn directory(world: &World, status: StatusCode, content: &'static str) -> Upstream {
    let respond = move |_: Request<RequestBody>| {
        let mut response = Response::new(full(content));
        *response.status_mut() = status;
        ready(response)
    };
    let identity = world.public_ca.server(&["127.0.0.1"]);
    Upstream::builder(identity).http(respond).start().await
}

/// Checks a proxy that gets its certificate from the directory at this address.
async fn run(world: &World, directory: &str, given: &[(&str, &str)], more: &[&str]) -> RunResult {
    let upstream = world.apiserver().start().await;
    let ca = world.dir.write("cluster-ca.crt", world.cluster_ca.pem());
    let (directory_ca, store) = (world.public_ca_file(), world.dir.path().join("store"));
    let mut pairs = vec![
        ("--acme", "localhost"),
        ("--acme-store", path(&store)),
        ("--listen", "127.0.0.1:443"),
    ];
    pairs.retain(|(flag, _)| !given.iter().any(|(other, _)| flag == other));
    pairs.extend(given);
    let url = format!("https://{}", upstream.address());
    pairs.extend([
        ("--acme-directory", directory),
        ("--acme-directory-ca", path(&directory_ca)),
        ("--upstream", &url),
        ("--upstream-ca", path(&ca)),
        ("--upstream-name", APISERVER),
    ]);
    check(&flags(&pairs), more).await
}

fn url(ca: &Upstream) -> String {
    format!("https://{}/dir", ca.address())
}

const DIRECTORY: &str =
    r#"{"newNonce": "https://ca.test/nonce", "newOrder": "https://ca.test/order"}"#;

#[tokio::test]
async fn check_of_acme_passes_and_orders_nothing() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let result = run(&world, &url(&ca), &[], &[]).await;
    let certificates = result.of("certificate");
    for text in [
        "localhost: no certificate yet; `serve` gets one by ACME",
        "store has not been used yet",
        "/dir answers",
    ] {
        let is_said = |line: &PrintedFinding| line.mark == '✓' && line.message.contains(text);
        assert!(certificates.iter().any(is_said), "{}", result.stdout);
    }
    assert!(
        result.of("hosts")[0]
            .message
            .starts_with("DNS leads from localhost to 127.0.0.1"),
        "{}",
        result.stdout
    );
    let requests = ca.requests();
    let [request] = requests.as_slice() else {
        panic!("{requests:?}");
    };
    assert_eq!(
        (request.method.as_str(), request.target.as_str()),
        ("GET", "/dir")
    );
    assert!(!world.dir.path().join("store").exists());
}

#[tokio::test]
async fn offline_check_of_acme_does_not_ask_the_ca() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let result = run(&world, &url(&ca), &[], &["--offline"]).await;
    let text = "the ACME directory is not asked (--offline)";
    assert!(result.stdout.contains(text), "{}", result.stdout);
    assert_eq!(ca.requests().len(), 0);
}

#[tokio::test]
async fn faults_of_acme_are_found() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let good = url(&ca);
    let refused = refused().await.to_string();
    let result = run(&world, &good, &[("--listen", &refused)], &[]).await;
    let fix = "add a listener on [::]:443";
    result.assert_finding(0, '!', "listen", "connects to port 443", fix);
    let file = world.dir.write("a-file", "");
    let result = run(&world, &good, &[("--acme-store", path(&file))], &[]).await;
    let (text, fix) = (
        "cannot open the ACME store",
        "give a folder that this user may write",
    );
    result.assert_finding(1, '✗', "certificate", text, fix);
    let result = run(&world, &good, &[("--acme", "kube.invalid")], &[]).await;
    let (text, fix) = (
        "kube.invalid has no address in DNS",
        "add an A or AAAA record",
    );
    result.assert_finding(1, '✗', "hosts", text, fix);
    let refused = format!("https://{refused}/dir");
    let result = run(&world, &refused, &[], &[]).await;
    let (text, fix) = (
        "/dir: cannot connect to 127.0.0.1:",
        "the firewall for outgoing",
    );
    result.assert_finding(1, '✗', "certificate", text, fix);
    for (status, content, text) in [
        (
            StatusCode::NOT_FOUND,
            DIRECTORY,
            "/dir: the response is 404 Not Found",
        ),
        (
            StatusCode::OK,
            "{}",
            "/dir: the response is not an ACME directory",
        ),
    ] {
        let ca = directory(&world, status, content).await;
        let result = run(&world, &url(&ca), &[], &[]).await;
        result.assert_finding(1, '✗', "certificate", text, "check the URL");
    }
    let stranger = World::new();
    let ca = directory(&stranger, StatusCode::OK, DIRECTORY).await;
    let result = run(&world, &url(&ca), &[], &[]).await;
    let text = "/dir: cannot connect to 127.0.0.1:";
    result.assert_finding(1, '✗', "certificate", text, "`directoryCa`");
}
