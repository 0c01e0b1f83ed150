//! Hostile spellings of requests against rules, what each selector means, and random paths.

use http::Request;
use standin::TempDir;

use super::*;
use crate::config::{Environment, ServeArgs, load};

/// The rules of a configuration file.
fn rules(access: &str) -> AccessRules {
    let dir = TempDir::new();
    let text = format!(
        "certificates: [{{certificate: tls.crt, key: tls.key}}]\n\
         clusters:\n- name: prod\n  upstream: {{url: 'https://10.0.0.1', ca: ca.crt}}\n  access:\n{access}"
    );
    let args = ServeArgs {
        config: Some(dir.write("proxy.yaml", text)),
        ..ServeArgs::default()
    };
    let config = load(&args, &Environment::from_process()).unwrap();
    AccessRules::new("prod", &config.clusters[0].access).unwrap()
}

fn head(request: &str, fields: &[(&str, &str)]) -> Parts {
    let (method, target) = request.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// `open 2`, `rule 1`, `none`, or `400`.
fn decision(rules: &AccessRules, from: &str, request: &str, fields: &[(&str, &str)]) -> String {
    let decided = explain(rules, &head(request, fields), from.parse().unwrap(), false);
    match decided {
        Ok((AccessDecision::Allowed(rule), _)) => format!("open {rule}"),
        Ok((AccessDecision::Denied(Some(rule)), _)) => format!("rule {rule}"),
        Ok((AccessDecision::Denied(None), _)) => "none".to_owned(),
        Err(_) => "400".to_owned(),
    }
}

/// The decision about a request with an opaque token, from an address outside of every list.
fn outside(rules: &AccessRules, request: &str) -> String {
    decision(
        rules,
        "198.51.100.9",
        request,
        &[("authorization", "Bearer x")],
    )
}

fn jwt(claims: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
}

const CLOSED: &str = "
  - deny: {resources: [pods/exec, pods/ephemeralcontainers, nodes/proxy, secrets]}
  - deny: {namespaces: [kube-*]}
  - deny: {paths: [/metrics, /logs/*]}
  - allow: {}
";

#[test]
fn hostile_spellings_open_nothing() {
    let rules = rules(CLOSED);
    let mut wrong = Vec::new();
    for (request, expected) in HOSTILE {
        let found = outside(&rules, request);
        if found != *expected {
            wrong.push(format!("{request}: {found} and not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(HOSTILE.len() >= 100, "{} requests", HOSTILE.len());
}

/// Each request, and the rule that denies it; `400` for a spelling that servers read in different ways.
const HOSTILE: &[(&str, &str)] = &[
    // What the rules are for.
    ("GET /api/v1/secrets", "rule 1"),
    ("GET /api/v1/namespaces/a/secrets/b", "rule 1"),
    ("HEAD /api/v1/namespaces/a/secrets/b", "rule 1"),
    ("POST /api/v1/namespaces/a/secrets", "rule 1"),
    ("PATCH /api/v1/namespaces/a/secrets/b", "rule 1"),
    ("DELETE /api/v1/namespaces/a/secrets", "rule 1"),
    ("OPTIONS /api/v1/namespaces/a/secrets", "rule 1"),
    ("get /api/v1/namespaces/a/secrets", "rule 1"),
    ("FOO /api/v1/namespaces/a/secrets", "rule 1"),
    ("GET /api/v1/namespaces/a/pods/b/exec", "rule 1"),
    ("POST /api/v1/namespaces/a/pods/b/exec", "rule 1"),
    (
        "PATCH /api/v1/namespaces/a/pods/b/ephemeralcontainers",
        "rule 1",
    ),
    // Absolute targets, and queries that change the verb.
    ("GET https://kube.test/api/v1/secrets", "rule 1"),
    ("GET /api/v1/secrets?watch=1", "rule 1"),
    ("GET /api/v1/secrets?watch=true&watch=false", "rule 1"),
    (
        "GET /api/v1/secrets?fieldSelector=metadata.name=b",
        "rule 1",
    ),
    ("GET /api/v1/secrets?/api/v1/pods", "rule 1"),
    (
        "GET /api/v1/namespaces/a/pods/b/exec?command=sh&stdin=true",
        "rule 1",
    ),
    // The old ways to watch and to proxy.
    ("GET /api/v1/watch/secrets", "rule 1"),
    ("GET /api/v1/watch/namespaces/a/secrets/b", "rule 1"),
    ("GET /api/v1/proxy/namespaces/a/secrets/b", "rule 1"),
    ("GET /api/v1/watch/namespaces/a/pods/b/exec", "rule 1"),
    // Slashes and parts at the ends.
    ("GET /api/v1/secrets/", "rule 1"),
    ("GET /api/v1/secrets//", "rule 1"),
    ("GET //api/v1/secrets", "rule 1"),
    ("GET ///api/v1/secrets", "rule 1"),
    ("GET /api/v1/namespaces/a/pods/b/exec/", "rule 1"),
    ("GET /api/v1/namespaces/a/pods/b/exec/more", "rule 1"),
    // Empty parts and dots.
    ("GET /api//v1/secrets", "400"),
    ("GET /api/v1//secrets", "400"),
    ("GET /apis//v1/secrets", "400"),
    ("GET /api/v1/namespaces//secrets", "400"),
    ("GET /api/v1/namespaces/a//secrets", "400"),
    ("GET /api/v1/namespaces/a/pods//exec", "400"),
    ("GET /api/v1/namespaces/a/pods/b//exec", "400"),
    ("GET /api/v1/./secrets", "400"),
    ("GET /api/./v1/secrets", "400"),
    ("GET /./api/v1/secrets", "400"),
    ("GET /x/../api/v1/secrets", "400"),
    ("GET /../api/v1/secrets", "400"),
    ("GET /api/v1/x/../secrets", "400"),
    ("GET /api/v1/namespaces/a/configmaps/../secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/log/../exec", "400"),
    ("GET /api/v1/namespaces/a/pods/./exec", "400"),
    ("GET /version/../api/v1/secrets", "400"),
    // Escapes of letters, once and twice.
    ("GET /%61pi/v1/secrets", "400"),
    ("GET /api/v1/%73ecrets", "400"),
    ("GET /api/v1/secret%73", "400"),
    ("GET /api/v1/%2573ecrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/%65xec", "400"),
    ("GET /api/v1/namespaces/a/pods/b/%2565xec", "400"),
    ("GET /api/v1/names%70aces/a/secrets", "400"),
    ("GET /api/v1/n%6fdes/n/proxy/run", "400"),
    // Escapes of slashes and dots, once and twice.
    ("GET /api%2fv1%2fsecrets", "400"),
    ("GET /api%2Fv1/secrets", "400"),
    ("GET /api/v1%2fsecrets", "400"),
    ("GET /%2fapi/v1/secrets", "400"),
    ("GET /api/v1/namespaces/a%2fsecrets", "400"),
    ("GET /api/v1/namespaces%2fa/secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b%2fexec", "400"),
    ("GET /api/v1/namespaces/a/pods/b%252fexec", "400"),
    ("GET /api/v1/namespaces/a/pods%2fb/exec", "400"),
    ("GET /api/v1/namespaces/a/configmaps/%2e%2e/secrets", "400"),
    (
        "GET /api/v1/namespaces/a/configmaps/%252e%252e/secrets",
        "400",
    ),
    ("GET /api/v1/namespaces/a/configmaps/.%2e%2fsecrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b%5cexec", "400"),
    ("GET /api/v1/namespaces/a/pods/b%255cexec", "400"),
    // What some servers cut off.
    ("GET /api/v1/secrets;a=b", "400"),
    ("GET /api/v1/;a=b/secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec;a=b", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%3ba", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%253ba", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%20", "400"),
    ("GET /api/v1/namespaces/a/pods/b/%20exec", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%09", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%0a", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%00", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%00.txt", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%3f", "400"),
    ("GET /api/v1/namespaces/a/pods/b/exec%23", "400"),
    ("GET /api/v1/secrets%3fwatch=1", "400"),
    // Not an escape.
    ("GET /api/v1/secrets%", "400"),
    ("GET /api/v1/secrets%zz", "400"),
    ("GET /api/v1/namespaces/a/pods/%/exec", "400"),
    // Case.
    ("GET /api/v1/Secrets", "400"),
    ("GET /api/v1/SECRETS", "400"),
    ("GET /API/v1/secrets", "400"),
    ("GET /Api/V1/secrets", "400"),
    ("GET /api/v1/namespaces/a/pods/b/EXEC", "400"),
    ("GET /api/v1/namespaces/a/Pods/b/exec", "400"),
    ("GET /api/v1/NAMESPACES/a/secrets", "400"),
    // The kubelet through the apiserver, with the port and scheme in the name, or an escape there.
    ("GET /api/v1/nodes/n/proxy", "rule 1"),
    ("GET /api/v1/nodes/n/proxy/exec/a/b/c", "rule 1"),
    ("POST /api/v1/nodes/n:10250/proxy/run/a/b/c", "rule 1"),
    ("GET /api/v1/nodes/https:n:10250/proxy/pods", "rule 1"),
    ("GET /api/v1/nodes/n%3a10250/proxy/pods", "rule 1"),
    ("GET /api/v1/nodes/n/proxy/../proxy/pods", "rule 1"),
    ("GET /api/v1/nodes/n/proxy/a%2fb", "rule 1"),
    ("GET /api/v1/nodes/n/proxy//pods", "rule 1"),
    (
        "GET /api/v1/namespaces/a/services/web/proxy/../../../secrets",
        "400",
    ),
    (
        "GET /api/v1/namespaces/a/services/web/proxy/%2e%2e/%2e%2e/%2e%2e/secrets",
        "400",
    ),
    (
        "GET /api/v1/namespaces/a/services/web/proxy/..%2f..%2f..%2fsecrets",
        "400",
    ),
    ("GET /api/v1/namespaces/a/pods/proxy//exec", "400"),
    // A namespace, and all namespaces at once.
    ("GET /api/v1/namespaces/kube-system/configmaps", "rule 2"),
    (
        "GET /apis/apps/v1/namespaces/kube-system/deployments",
        "rule 2",
    ),
    ("DELETE /api/v1/namespaces/kube-system", "rule 2"),
    ("PUT /api/v1/namespaces/kube-system/finalize", "rule 2"),
    ("GET /api/v1/configmaps", "rule 2"),
    (
        "GET /api/v1/configmaps?fieldSelector=metadata.namespace=a",
        "rule 2",
    ),
    ("GET /api/v1/watch/configmaps", "rule 2"),
    ("DELETE /api/v1/pods", "rule 2"),
    ("GET /apis/example.com/v1/widgets", "rule 2"),
    ("GET /api/v1/namespaces/kube%2dsystem/configmaps", "400"),
    ("GET /api/v1/namespaces/Kube-System/configmaps", "400"),
    ("GET /api/v1/namespaces/kube-system%20/configmaps", "400"),
    ("GET /api/v1/namespaces/a/../kube-system/configmaps", "400"),
    // Paths without a resource.
    ("GET /metrics", "rule 3"),
    ("GET /metrics/", "rule 3"),
    ("GET /metrics?a=b", "rule 3"),
    ("get /metrics", "rule 3"),
    ("GET /logs/", "rule 3"),
    ("GET /logs/audit.log", "rule 3"),
    ("GET //metrics", "400"),
    ("GET /metrics//", "400"),
    ("GET /./metrics", "400"),
    ("GET /x/../metrics", "400"),
    ("GET /%6detrics", "400"),
    ("GET /%256detrics", "400"),
    ("GET /metrics%20", "400"),
    ("GET /metrics%00", "400"),
    ("GET /metrics;a=b", "400"),
    ("GET /logs%2faudit.log", "400"),
    ("GET /healthz/..%2fmetrics", "400"),
];

/// The same words in places where they mean something else, and spellings that clients use.
#[test]
fn honest_requests_stay_open() {
    let rules = rules(CLOSED);
    for request in [
        "GET /api",
        "GET /api/",
        "GET /apis/apps/v1",
        "GET /version?timeout=32s",
        "GET /openapi/v3/apis/apps/v1?hash=ABC",
        "GET /.well-known/openid-configuration",
        "OPTIONS *",
        "GET /",
        "GET /METRICS",
        "GET /api/v1/namespaces",
        "GET /api/v1/namespaces/a",
        "GET /api/v1/nodes",
        "GET /api/v1/nodes/proxy",
        "GET /api/v1/persistentvolumes",
        "GET /api/v1/namespaces/a/pods/exec",
        "GET /api/v1/namespaces/secrets/pods/secrets",
        "GET /api/v1/namespaces/a/pods/secrets/log?follow=true",
        "GET /apis/example.com/v1/namespaces/a/secrets",
        "GET /apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
        "GET /apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "POST /apis/authentication.k8s.io/v1/selfsubjectreviews",
        "GET /api/v1/namespaces/a/services/https:web:443/proxy/A/b.html?c=D",
        "GET /api/v1/namespaces/a/services/https%3Aweb%3A443/proxy/a",
        "GET /api/v1/namespaces/a/services/web/proxy/api/label/a%2Fb/c%25d",
        "GET /api/v1/namespaces/a/services/web/proxy//a/../b;c=d/%E4",
        "GET /api/v1/namespaces/a/configmaps/kube-root-ca.crt",
        "GET /api/v1/namespaces/akube-x/configmaps",
    ] {
        assert_eq!(outside(&rules, request), "open 4", "{request}");
    }
}

/// Without a rule about what a request asks for, no spelling of a path matters.
#[test]
fn rules_about_clients_leave_paths_alone() {
    let rules = rules("  - allow: {from: [198.51.100.0/24]}");
    for path in ["/api//v1/%73ecrets", "/a/../b", "/api/v1/x%zz"] {
        assert_eq!(outside(&rules, &format!("GET {path}")), "open 1", "{path}");
    }
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

/// Whatever a server before the apiserver does to a path that is open, the result is open, too.
#[test]
fn no_reading_of_an_open_path_is_closed() {
    const PIECES: [&str; 34] = [
        "/",
        "/",
        "/",
        "/",
        "/",
        "/api",
        "/v1",
        "/apis",
        "/namespaces",
        "/pods",
        "/secrets",
        "/exec",
        "/proxy",
        "/nodes",
        "/kube-system",
        "/metrics",
        "a",
        ".",
        "..",
        "%2e",
        "%2f",
        "%252f",
        "%61pi",
        "%70ods",
        ";",
        "%3b",
        "%00",
        "%20",
        "%5c",
        "%3f",
        "%25",
        "S",
        "/watch",
        "x",
    ];
    let rules = rules(CLOSED);
    let (mut state, mut open) = (7_u64, 0);
    let mut next = |below: usize| {
        // Knuth's MMIX constants. Only the high bits are random enough.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..50_000 {
        let prefix = ["/api/v1", "/api/v1/namespaces/a", "/apis/apps/v1", ""][next(4)];
        let pieces: String = (0..=next(7)).map(|_| PIECES[next(PIECES.len())]).collect();
        let path = format!("{prefix}/{pieces}");
        if !outside(&rules, &format!("GET {path}")).starts_with("open") {
            continue;
        }
        open += 1;
        for reading in readings(&path) {
            let found = outside(&rules, &format!("GET {reading}"));
            assert!(
                !found.starts_with("rule"),
                "{path} is open, but {reading} is {found}"
            );
        }
    }
    assert!(open > 1000, "{open} paths are open");
}

/// The path decoded up to twice, and each of these with dots resolved, slashes merged and parameters cut. Written
/// without the code that it tests.
fn readings(path: &str) -> Vec<String> {
    let decode = |path: &str| {
        let (mut bytes, mut rest) = (Vec::new(), path.as_bytes());
        while let [first, more @ ..] = rest {
            let digits = more.get(..2).and_then(|digits| str::from_utf8(digits).ok());
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            match byte.filter(|_| *first == b'%') {
                Some(byte) => (bytes.push(byte), rest = &more[2..]).1,
                None => (bytes.push(*first), rest = more).1,
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let once = decode(path);
    let twice = decode(&once);
    let mut readings = Vec::new();
    for reading in [path.to_owned(), once, twice] {
        let cut = reading.split(['?', '#', '\0']).next().unwrap();
        let mut parts: Vec<&str> = Vec::new();
        for part in cut.split(['/', '\\']) {
            match part.split(';').next().unwrap().trim() {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        readings.push(format!("/{}", parts.join("/")));
        readings.push(format!("/{}", parts.join("/").to_lowercase()));
        readings.push(reading);
    }
    readings.retain(|reading| {
        reading
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"<>`{}\\^|#?".contains(&byte))
    });
    readings
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
