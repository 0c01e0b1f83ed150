//! `kube-tls-proxy check` against a real apiserver, directly and through the proxy.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::run;
use crate::suite::{Suite, shared};

#[test]
fn check_reports_ok_with_and_without_a_token() {
    let Some(suite) = shared() else { return };
    let report = check(&suite, &[]);
    for found in checks(&report, "readyz").chain(checks(&report, "version")) {
        assert_eq!(found["result"], "ok", "{found}");
    }
    // The apiserver upgrades nothing for an anonymous user, but the proxy says that upgrades arrive.
    let upgrades: Vec<_> = checks(&report, "upgrade")
        .map(|found| &found["result"])
        .collect();
    assert_eq!(upgrades, ["skipped", "ok", "skipped"], "{report:#}");

    let token = suite.fixture.scratch().join("check-token");
    fs::write(&token, suite.fixture.token()).unwrap();
    let report = check(&suite, &["--long", "--token-file", token.to_str().unwrap()]);
    let upgrades: Vec<_> = checks(&report, "upgrade")
        .map(|found| &found["result"])
        .collect();
    assert_eq!(upgrades, ["ok", "ok", "ok"], "{report:#}");
    assert_eq!(checks(&report, "watch").count(), 2);
    for found in checks(&report, "watch") {
        assert_eq!(
            found["message"], "a watch is still open after 20 s",
            "{found}"
        );
    }
    for found in checks(&report, "version") {
        let what = found["message"].as_str().unwrap();
        assert!(what.starts_with("Kubernetes v1."), "{found}");
    }
}

/// Runs `check` directly and through the proxy, and asserts that it reports no failure and no warning.
#[track_caller]
fn check(suite: &Suite, more: &[&str]) -> Value {
    let file = |name: &str| suite.fixture.scratch().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tls-proxy"));
    command
        .args(["check", "--output", "json", "--listen", "127.0.0.1:0"])
        .arg("--cert")
        .arg(file("public.crt"))
        .arg("--key")
        .arg(file("public.key"))
        .args(["--upstream", suite.fixture.server()])
        .args(["--upstream-ca", suite.fixture.ca()])
        .args(["--through", &suite.proxy.server().url])
        .args(["--through-ca", &suite.proxy.server().ca])
        .args(more);
    let outcome = run(command, Vec::new(), Duration::from_mins(2));
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap_or_default();
    assert_eq!(
        (outcome.code, &report["result"]),
        (Some(0), &"ok".into()),
        "{report:#}"
    );
    report
}

fn checks<'a>(report: &'a Value, name: &'a str) -> impl Iterator<Item = &'a Value> {
    let all = report["checks"].as_array().unwrap().iter();
    all.filter(move |found| found["check"] == name)
}
