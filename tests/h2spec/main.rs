//! h2spec, the conformance suite of HTTP/2, against the proxy.
//!
//! Needs `h2spec`: `.ci/run h2spec` builds it with Go from the versions in `tests/h2spec/go.mod`. If it is not
//! installed, the tests print a line and pass; with `REQUIRE_H2SPEC=1` they fail.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and has no Drain"
)]

#[expect(dead_code, reason = "shared with tests/it, which uses all of it")]
#[path = "../it/proxy.rs"]
mod proxy;

use std::{env, io::ErrorKind};

use http::{Method, Response};
use standin::upstream::full;
use tokio::process::Command;

use proxy::World;

/// Runs h2spec with these arguments. Asserts that it ran this many cases, and that all of them passed.
async fn assert_all_pass(arguments: &[&str], cases: usize) {
    let world = World::new();
    let apiserver = world.apiserver().http(|request| async {
        let has_body = request.method() != Method::HEAD;
        drop(request.into_body().read().await);
        // Some cases need a response that is longer than a small window.
        Response::new(full(if has_body { "a response" } else { "" }))
    });
    let upstream = apiserver.start().await;
    let identity = world.public_ca.server(&["127.0.0.1", "localhost"]);
    let proxy = world.proxy_as(upstream.address(), &identity).start();
    let port = proxy.address().port().to_string();
    let ran = Command::new("h2spec")
        .args([
            "--tls",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            &port,
        ])
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await;
    let output = match ran {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            assert!(
                env::var_os("REQUIRE_H2SPEC").is_none(),
                "h2spec is not installed; build it with \".ci/run\""
            );
            eprintln!("h2spec: NOT RUN, it is not installed");
            return;
        }
        ran => ran.unwrap(),
    };
    let report = String::from_utf8_lossy(&output.stdout);
    let expected = format!("{cases} tests, {cases} passed, 0 skipped, 0 failed");
    assert!(report.contains(&expected), "not \"{expected}\":\n{report}");
    assert!(output.status.success(), "{}", output.status);
}

#[tokio::test]
async fn every_case_passes() {
    assert_all_pass(&[], 145).await;
}

/// With the cases that RFC 9113 leaves to the server.
#[tokio::test]
async fn every_strict_case_passes() {
    assert_all_pass(&["--strict"], 146).await;
}
