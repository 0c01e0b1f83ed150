//! Which clients, credentials and requests each selector matches, and how a denial is worded.

use super::*;

fn jwt(claims: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

#[test]
fn addresses_select_clients() {
    let rules = rules(
        "
  - deny: {from: [10.0.0.0/8], unlessFrom: [10.1.0.0/16]}
  - deny: {unlessFrom: [10.0.0.0/8, 2001:db8::/32]}
  - allow: {from: [10.1.2.3, 2001:db8::7]}
",
    );
    for (from, expected) in [
        ("10.2.0.1", "rule 1"),
        ("::ffff:10.2.0.1", "rule 1"),
        ("192.0.2.1", "rule 2"),
        ("2001:db9::1", "rule 2"),
        ("10.1.2.3", "open 3"),
        ("::ffff:10.1.2.3", "open 3"),
        ("2001:db8::7", "open 3"),
        ("10.1.2.4", "none"),
    ] {
        assert_eq!(
            decision(&rules, from, "GET /version", &[]),
            expected,
            "{from}"
        );
    }
}

#[test]
fn kinds_and_issuers_select_credentials() {
    let rules = rules(
        "
  - deny: {credentials: [none]}
  - deny: {credentials: [serviceAccount, opaque]}
  - allow: {issuers: ['https://login.test', 'https://accounts.google.com']}
",
    );
    let account = jwt(r#"{"iss":"https://login.test","kubernetes.io":{}}"#);
    let (jane, mallory) = (
        jwt(r#"{"iss":"https://login.test","sub":"jane"}"#),
        jwt(r#"{"iss":"https://login.test/"}"#),
    );
    for (authorization, expected) in [
        ("", "rule 1"),
        ("Bearer", "rule 1"),
        ("Bearer  x", "rule 1"),
        ("Bearer\tx", "rule 1"),
        ("Token x", "rule 1"),
        ("Basic eDp5", "rule 1"),
        ("basic", "rule 1"),
        ("Bearer x", "rule 2"),
        ("Bearer e30.e30.c2ln.more", "rule 2"),
        ("Bearer e30.e30.c2ln", "none"),
        (&account, "rule 2"),
        (&jane, "open 3"),
        (&format!("{jane} more"), "open 3"),
        (&mallory, "none"),
        (&jwt(r#"{"iss":"accounts.google.com"}"#), "open 3"),
        (&jwt(r#"{"iss":["https://login.test"]}"#), "none"),
        (&jwt(r#"{"iss":"https://LOGIN.test"}"#), "none"),
        (&jwt(r#"{"iss":"https://login.test","iss":"b"}"#), "400"),
        (&jwt(r#"{"iss":"a","ISS":"https://login.test"}"#), "400"),
        (&jwt(r#"{"iss":"https://login.test""#), "400"),
    ] {
        let fields = [("authorization", authorization)];
        let found = decision(&rules, "192.0.2.1", "GET /version", &fields);
        assert_eq!(found, expected, "{authorization}");
    }
    let twice = [("authorization", &*jane), ("authorization", &*jane)];
    assert_eq!(decision(&rules, "192.0.2.1", "GET /version", &twice), "400");
}

/// A token in the subprotocol must not help one in `Authorization`, or a request on which the apiserver ignores it.
#[test]
fn every_credential_of_a_request_must_pass() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let rules = rules(
        "
  - deny: {credentials: [none, serviceAccount]}
  - allow: {issuers: ['https://login.test']}
",
    );
    let jane = jwt(r#"{"iss":"https://login.test"}"#);
    let account = jwt(r#"{"iss":"https://login.test","kubernetes.io":{}}"#);
    let protocol = |authorization: &str| {
        let token = authorization.trim_start_matches("Bearer ");
        let encoded = URL_SAFE_NO_PAD.encode(token);
        format!("base64url.bearer.authorization.k8s.io.{encoded}, v5.channel.k8s.io")
    };
    let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket")];
    let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    for (authorization, subprotocol, fields, expected) in [
        (None, Some(&jane), &upgrade[..], "open 2"),
        (None, Some(&account), &upgrade[..], "rule 1"),
        (Some(&*jane), Some(&jane), &upgrade[..], "open 2"),
        (Some(&*jane), Some(&account), &upgrade[..], "rule 1"),
        (Some(&*account), Some(&jane), &upgrade[..], "rule 1"),
        (Some("Basic eDp5"), Some(&jane), &upgrade[..], "rule 1"),
        // The apiserver ignores the subprotocol.
        (None, Some(&jane), &[][..], "rule 1"),
        (None, Some(&jane), &spdy[..], "rule 1"),
        (Some(&*jane), Some(&account), &[][..], "open 2"),
        (Some(&*jane), None, &upgrade[..], "open 2"),
    ] {
        let subprotocol = subprotocol.map(|token| protocol(token));
        let mut all = fields.to_vec();
        all.extend(authorization.map(|value| ("authorization", value)));
        all.extend(
            subprotocol
                .as_deref()
                .map(|value| ("sec-websocket-protocol", value)),
        );
        let found = decision(
            &rules,
            "192.0.2.1",
            "GET /api/v1/namespaces/a/pods/b/exec",
            &all,
        );
        assert_eq!(
            found, expected,
            "{authorization:?} {subprotocol:?} {fields:?}"
        );
    }
    let (one, other) = (protocol(&jane), protocol(&account));
    let twice = [
        upgrade[0],
        upgrade[1],
        ("sec-websocket-protocol", &*one),
        ("sec-websocket-protocol", &*other),
    ];
    assert_eq!(decision(&rules, "192.0.2.1", "GET /version", &twice), "400");
}

/// Rancher and other servers before an apiserver accept passwords.
#[test]
fn rule_that_allows_passwords_comes_before_none() {
    let rules = rules("  - allow: {credentials: [basic]}\n  - deny: {credentials: [none]}\n");
    let with = |value| {
        decision(
            &rules,
            "192.0.2.1",
            "GET /version",
            &[("authorization", value)],
        )
    };
    assert_eq!(
        (with("Basic eDp5"), with("Token x")),
        ("open 1".into(), "rule 2".into())
    );
}

/// `get`, `list` and `watch` alone must not open a shell: a WebSocket exec is a GET.
#[test]
fn read_only_rules_open_no_tunnel() {
    let rules = rules(
        "
  - allow: {verbs: [get, list, watch], resources: ['*']}
  - allow: {verbs: [get], paths: ['*']}
",
    );
    let upgrade = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("authorization", "Bearer x"),
    ];
    for (request, fields, expected) in [
        ("GET /api/v1/namespaces/a/pods/b", 2.., "open 1"),
        ("HEAD /api/v1/namespaces/a/pods/b", 2.., "open 1"),
        ("GET /api/v1/namespaces/a/pods?watch=1", 0.., "open 1"),
        ("GET /api/v1/namespaces/a/pods/b/log", 2.., "open 1"),
        ("GET /api/v1/namespaces/a/services/b/proxy/c", 2.., "open 1"),
        ("GET /version", 2.., "open 2"),
        ("HEAD /version", 2.., "none"),
        ("get /version", 2.., "none"),
        ("POST /api/v1/namespaces/a/pods", 2.., "none"),
        ("DELETE /api/v1/namespaces/a/pods", 2.., "none"),
        ("OPTIONS /api/v1/namespaces/a/pods", 2.., "none"),
        ("GET /api/v1/namespaces/a/pods/b/exec", 0.., "none"),
        ("GET /api/v1/namespaces/a/pods/b/exec", 2.., "none"),
        ("GET /api/v1/namespaces/a/pods/b/attach", 0.., "none"),
        ("GET /api/v1/namespaces/a/pods/b/portforward", 0.., "none"),
        ("GET /api/v1/nodes/n/proxy/exec/a/b/c", 0.., "none"),
    ] {
        let found = decision(&rules, "192.0.2.1", request, &upgrade[fields]);
        assert_eq!(found, expected, "{request}");
    }
}

/// A method that the proxy does not know may be one of the verbs of a rule.
#[test]
fn unknown_method_counts_as_every_denied_verb() {
    let rules = rules("  - deny: {verbs: [get], paths: [/metrics]}\n  - allow: {verbs: ['*']}\n");
    for (request, expected) in [
        ("GET /metrics", "rule 1"),
        ("get /metrics", "rule 1"),
        ("Get /metrics", "rule 1"),
        ("POST /metrics", "open 2"),
        ("GET /version", "open 2"),
    ] {
        assert_eq!(outside(&rules, request), expected, "{request}");
    }
}

#[test]
fn resource_patterns_match_as_in_rbac() {
    for (pattern, matching, others) in [
        ("pods", "/pods", "/pods/exec apps/pods"),
        ("pods/exec", "/pods/exec", "/pods /pods/log apps/pods/exec"),
        ("pods/*", "/pods/exec /pods/log", "/pods /services/proxy"),
        ("core/pods", "/pods", "core/pods /pods/exec"),
        ("core/pods/exec", "/pods/exec", "/pods"),
        (
            "apps/deployments",
            "apps/deployments",
            "/deployments apps/deployments/scale",
        ),
        (
            "apps/deployments/*",
            "apps/deployments/scale",
            "apps/deployments",
        ),
        (
            "apps/*",
            "apps/deployments apps/deployments/scale",
            "/pods batch/jobs",
        ),
        ("core/*", "/pods /pods/exec", "apps/deployments"),
        (
            "example.com/widgets",
            "example.com/widgets",
            "example.org/widgets",
        ),
        (
            "*/scale",
            "apps/deployments/scale /x/scale",
            "apps/deployments",
        ),
        ("*/*/*", "/pods/exec apps/deployments/scale", "/pods"),
        (
            "*/widgets/status",
            "a.b/widgets/status /widgets/status",
            "a.b/widgets",
        ),
        ("*", "/pods /pods/exec apps/deployments/scale", ""),
    ] {
        let pattern: crate::config::ResourcePattern = pattern.parse().unwrap();
        let is_matching = |name: &str| {
            let parts: Vec<_> = name.split('/').collect();
            pattern.matches(parts[0], parts[1], parts.get(2).copied())
        };
        assert!(matching.split_whitespace().all(is_matching), "{pattern:?}");
        assert!(!others.split_whitespace().any(is_matching), "{pattern:?}");
    }
}

#[test]
fn denial_says_who_may_not_do_what() {
    let denial = |rule, credential| Denial {
        cluster: "prod".into(),
        rule,
        client: "203.0.113.9".parse().unwrap(),
        asked: "pods/exec".to_owned(),
        credential,
        is_anonymous: false,
    };
    for (rule, credential, expected) in [
        (
            Some(3),
            None,
            "pods/exec is not open to 203.0.113.9 (rule 3 of cluster prod)",
        ),
        (
            Some(2),
            Some(CredentialKind::ServiceAccount),
            "pods/exec is not open to the token of a service account from 203.0.113.9 (rule 2 of cluster prod)",
        ),
        (
            None,
            None,
            "pods/exec is not open to 203.0.113.9 (no rule of cluster prod allows it)",
        ),
    ] {
        assert_eq!(denial(rule, credential).message(), expected);
    }
}
