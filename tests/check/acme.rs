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
async fn proxy_without_port_443_is_warned_of_with_acme() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let other_port = refused().await.to_string();
    let result = run(&world, &url(&ca), &[("--listen", &other_port)], &[]).await;
    let fix = "add a listener on [::]:443";
    result.assert_finding(0, '!', "listen", "connects to port 443", fix);
}

#[tokio::test]
async fn port_of_the_http_challenge_is_checked() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let other_port = refused().await.to_string();
    let free = ("--acme-http01-listen", other_port.as_str());
    // Port 443 does not matter then.
    let result = run(&world, &url(&ca), &[free, ("--listen", "127.0.0.1:0")], &[]).await;
    let text = format!("`http01Listen` is {other_port}");
    let fix = "have port 80 of the public address forwarded to this one";
    result.assert_finding(0, '!', "listen", &text, fix);
    assert!(!result.stdout.contains("port 443"), "{}", result.stdout);
    let opened = format!("{other_port} can be opened for the challenge http-01");
    assert!(result.stdout.contains(&opened), "{}", result.stdout);
    let result = run(&world, &url(&ca), &[free], &["--offline"]).await;
    assert!(!result.stdout.contains(&opened), "{}", result.stdout);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let taken = ("--acme-http01-listen", address.as_str());
    let result = run(&world, &url(&ca), &[taken], &[]).await;
    let text = format!("cannot open {address} for the challenge http-01: another process uses");
    result.assert_finding(1, '✗', "listen", &text, "stop it or choose another");
}

#[tokio::test]
async fn unusable_acme_store_is_found() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let file = world.dir.write("a-file", "");
    let result = run(&world, &url(&ca), &[("--acme-store", path(&file))], &[]).await;
    let text = "cannot open the ACME store";
    let fix = "set `store` (--acme-store) to a folder that this user may write";
    result.assert_finding(1, '✗', "certificate", text, fix);
}

#[tokio::test]
async fn acme_name_without_address_is_found() {
    let world = World::new();
    let ca = directory(&world, StatusCode::OK, DIRECTORY).await;
    let result = run(&world, &url(&ca), &[("--acme", "kube.invalid")], &[]).await;
    let text = "kube.invalid has no address in DNS";
    result.assert_finding(1, '✗', "hosts", text, "add an A or AAAA record");
}

#[tokio::test]
async fn acme_directory_that_cannot_be_used_is_found() {
    let world = World::new();
    let stranger = directory(&World::new(), StatusCode::OK, DIRECTORY).await;
    let no_page = directory(&world, StatusCode::NOT_FOUND, DIRECTORY).await;
    let no_directory = directory(&world, StatusCode::OK, "{}").await;
    let closed = format!("https://{}/dir", refused().await);
    for (directory, text) in [
        (closed, "/dir: cannot connect to 127.0.0.1:"),
        (url(&stranger), "/dir: cannot connect to 127.0.0.1:"),
        (url(&no_page), "/dir: the response is 404 Not Found"),
        (
            url(&no_directory),
            "/dir: the response is not an ACME directory",
        ),
    ] {
        let result = run(&world, &directory, &[], &[]).await;
        result.assert_finding(1, '✗', "certificate", text, "`directoryCa`");
    }
}
