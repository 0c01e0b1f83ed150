//! Access rules with a real kubectl: the sentence that it prints, and the audit log, which has no denied request.

use std::fs;

use serde_json::json;

use crate::audit::event_of;
use crate::kubectl::{Kubectl, STREAMINGS};
use crate::proxy::Proxy;
use crate::suite::{Route, Suite, shared};

/// A proxy with rules. The token of the suite is that of a service account.
fn proxy_with_rules(suite: &Suite) -> Proxy {
    let config = json!({
        "clusters": [{
            "name": "test",
            "upstream": suite.upstream(),
            "access": [
                {"deny": {"resources": ["pods/exec", "pods/portforward", "secrets"], "unlessFrom": ["192.0.2.0/24"]}},
                {"deny": {"credentials": ["serviceAccount"], "resources": ["nodes"]}},
                {"deny": {"paths": ["/metrics"]}},
                {"allow": {"from": ["127.0.0.0/8"]}},
            ],
        }],
    });
    suite.proxy.another(&suite.fixture, &config, &[])
}

#[test]
fn kubectl_prints_denials_and_the_apiserver_sees_none() {
    let Some(suite) = shared() else { return };
    let proxy = proxy_with_rules(&suite);
    for streaming in STREAMINGS {
        let kubectl = Kubectl::new(&suite, Route::Proxied)
            .with_server(proxy.server())
            .streaming(streaming);
        let denied = |args: &[&str], reason: &str| {
            let outcome = kubectl.run(args);
            assert_eq!(outcome.code, Some(1), "{args:?} {}", outcome.stderr);
            let found = &outcome.stderr;
            assert!(
                found.contains(reason),
                "{} {args:?}: {found}",
                streaming.name()
            );
        };
        let forbidden = "Error from server (Forbidden): kube-tls-proxy: ";
        let by_rule_1 = |what: &str| {
            format!("{forbidden}{what} is not open to 127.0.0.1 (rule 1 of cluster test)")
        };
        denied(&["get", "secret", "denied-by-rule"], &by_rule_1("secrets"));
        denied(
            &["get", "secrets", "--all-namespaces"],
            &by_rule_1("secrets"),
        );
        denied(
            &["exec", "shell", "--", "true"],
            "pods/exec is not open to 127.0.0.1 (rule 1 of cluster test)",
        );
        denied(
            &["get", "node", "denied-by-rule"],
            &format!(
                "{forbidden}nodes is not open to the token of a service account from 127.0.0.1 (rule 2 of cluster test)"
            ),
        );
        denied(
            &["get", "--raw", "/metrics"],
            "/metrics is not open to 127.0.0.1 (rule 3 of cluster test)",
        );
        kubectl.run(&["get", "pod", "shell"]).ok();
        kubectl.run(&["auth", "whoami"]).ok();
    }
    let kubectl = Kubectl::new(&suite, Route::Proxied).with_server(proxy.server());
    let missing = kubectl.run(&[
        "get",
        "--raw",
        "/api/v1/namespaces/suite/pods/allowed-by-rule",
    ]);
    assert_eq!(missing.code, Some(1), "{}", missing.stderr);
    event_of(&suite, "/api/v1/namespaces/suite/pods/allowed-by-rule");
    let log = fs::read_to_string(suite.fixture.audit()).unwrap();
    assert!(
        !log.contains("denied-by-rule"),
        "the apiserver has seen a denied request"
    );
}
