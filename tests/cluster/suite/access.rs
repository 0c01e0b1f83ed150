//! Access rules with a real kubectl: the sentence that it prints, and the audit log, which has no denied request.

use std::fs;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::json;

use crate::audit::event_of;
use crate::kubectl::{Kubectl, STREAMINGS};
use crate::proxy::Proxy;
use crate::suite::{Credential, Route, Suite, shared};

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

/// Rules about the kind and the issuer of a token. The users of two identity providers may view pods; the rules allow
/// one.
fn proxy_with_issuer_rules(suite: &Suite, issuer: &str) -> Proxy {
    let config = json!({
        "log": {"user": "subject"},
        "clusters": [{
            "name": "test",
            "upstream": suite.upstream(),
            "access": [
                {"deny": {"credentials": ["none"]}},
                {"allow": {"issuers": [issuer]}},
                {"deny": {"credentials": ["jwt"]}},
                {"deny": {"credentials": ["serviceAccount"], "resources": ["configmaps", "pods/exec"]}},
                {"allow": {"credentials": ["serviceAccount"]}},
            ],
        }],
    });
    let flags = ["--drain-delay", "0s"];
    suite.proxy.another(&suite.fixture, &config, &flags)
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// The apiserver has authenticated this user.
    Of(&'static str),
    /// As above, with one of two tokens. The access log names no user then.
    OfOneToken(&'static str),
    /// The apiserver has refused its credential.
    Unauthenticated,
    /// The proxy has refused it with this status, and the apiserver has not seen it.
    Refused(u64, &'static str),
}

const BY_RULE_1: Fate = Fate::Refused(401, "(rule 1 of cluster test)");
const BY_RULE_3: Fate = Fate::Refused(403, "(rule 3 of cluster test)");
const BY_RULE_4: Fate = Fate::Refused(403, "(rule 4 of cluster test)");
const BY_NO_RULE: Fate = Fate::Refused(403, "(no rule of cluster test allows it)");

/// The audit log has the requests of allowed credentials with the user that the access log names, and no other request.
#[test]
fn audit_log_has_only_requests_of_allowed_credentials() {
    let Some(suite) = shared() else { return };
    let [ana, otto] = suite.fixture.issuers();
    let proxy = proxy_with_issuer_rules(&suite, ana.url);
    let account = suite.fixture.token();
    let part = |token: &str, at: usize| token.split('.').nth(at).unwrap().to_owned();
    let forged = |claims: &str, signature: &str| {
        [part(signature, 0), part(claims, 1), part(signature, 2)].join(".")
    };
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let of_ana = Fate::Of("ana");
    let of_account = Fate::Of("system:serviceaccount:suite:admin");
    let basic = "Authorization: Basic YW55OmFueQ==".to_owned();
    let mixed_case = format!("authorization: bEaReR {}", otto.token);
    let requests: Vec<(&str, Vec<String>, Fate)> = vec![
        ("configmaps", vec![bearer(ana.token)], of_ana),
        ("pods", vec![bearer(ana.token)], of_ana),
        ("pods", vec![bearer(account)], of_account),
        ("configmaps", vec![bearer(account)], BY_RULE_4),
        ("pods", vec![bearer(otto.token)], BY_RULE_3),
        ("pods", vec![mixed_case], BY_RULE_3),
        ("pods", vec![], BY_RULE_1),
        (
            "pods",
            vec![basic],
            Fate::Refused(403, "(rule 1 of cluster test)"),
        ),
        ("pods", vec![bearer("bad")], BY_NO_RULE),
        // The claims of an allowed token under another signature pass the rules, and no apiserver.
        (
            "pods",
            vec![bearer(&forged(ana.token, otto.token))],
            Fate::Unauthenticated,
        ),
        (
            "pods",
            vec![bearer(&forged(ana.token, account))],
            Fate::Unauthenticated,
        ),
        (
            "pods",
            vec![bearer(&forged(otto.token, ana.token))],
            BY_RULE_3,
        ),
        (
            "pods",
            vec![bearer(ana.token), bearer(otto.token)],
            Fate::Refused(400, "Authorization"),
        ),
        (
            "pods",
            vec![bearer(otto.token), bearer(ana.token)],
            Fate::Refused(400, "Authorization"),
        ),
    ];
    let protocol = |token: &str| {
        let token = BASE64_URL_SAFE_NO_PAD.encode(token);
        let names = format!("base64url.bearer.authorization.k8s.io.{token}, v5.channel.k8s.io");
        let field = |name: &str, value: &str| format!("{name}: {value}");
        vec![
            field("Connection", "Upgrade"),
            field("Upgrade", "websocket"),
            field("Sec-WebSocket-Version", "13"),
            field("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            field("Sec-WebSocket-Protocol", &names),
        ]
    };
    let both = |one: &str, other: &str| [vec![bearer(one)], protocol(other)].concat();
    let upgrades: Vec<(&str, Vec<String>, Fate)> = vec![
        ("exec", protocol(ana.token), of_ana),
        ("exec", protocol(otto.token), BY_RULE_3),
        ("exec", protocol(account), BY_RULE_4),
        ("exec", protocol("bad"), BY_NO_RULE),
        ("exec", both(ana.token, otto.token), BY_RULE_3),
        ("exec", both(otto.token, ana.token), BY_RULE_3),
        ("exec", both(account, ana.token), BY_RULE_4),
        ("exec", both(ana.token, ana.token), Fate::OfOneToken("ana")),
    ];
    let both_versions = ["-http1=true", "-http1=false"]
        .into_iter()
        .flat_map(|version| requests.iter().map(move |request| (version, request)));
    let only_http1 = upgrades.iter().map(|request| ("-http1=true", request));
    let mut sent = Vec::new();
    for (number, (version, (what, headers, fate))) in both_versions.chain(only_http1).enumerate() {
        // The dot keeps a name from being the begin of another.
        let name = format!("by-issuer-{number}.");
        let namespace = "/api/v1/namespaces/suite";
        let path = match *what {
            "exec" => format!("{namespace}/pods/{name}/exec?command=true"),
            resource => format!("{namespace}/{resource}/{name}"),
        };
        let mut flags = vec![version];
        flags.extend(headers.iter().flat_map(|header| ["-header", header]));
        let response = suite.fetch(&proxy.server(), &Credential::token(""), &path, &flags);
        let body = response["body"].as_str().unwrap();
        let by_proxy = body.contains("kube-tls-proxy: ");
        match fate {
            Fate::Of(_) | Fate::OfOneToken(_) => {
                assert!(!by_proxy && response["status"] != 401, "{path} {response}")
            }
            Fate::Unauthenticated => {
                assert!(!by_proxy && response["status"] == 401, "{path} {response}");
            }
            Fate::Refused(status, reason) => {
                assert_eq!(response["status"], *status, "{path} {fate:?} {response}");
                assert!(by_proxy && body.contains(reason), "{path} {response}");
            }
        }
        sent.push((name, path, *fate));
    }
    let log = proxy.stop();
    for (name, path, fate) in &sent {
        let line = log.lines().find(|line| line.contains(name));
        let (user, named) = match *fate {
            Fate::Of(user) => (Some(user), Some(user)),
            Fate::OfOneToken(user) => (Some(user), None),
            Fate::Unauthenticated => (None, None),
            Fate::Refused(..) => continue,
        };
        let event = event_of(&suite, path);
        assert_eq!(event["user"]["username"].as_str(), user, "{event}");
        let line = line.unwrap();
        let id = line
            .split_whitespace()
            .find_map(|field| field.strip_prefix("enduser.id="));
        assert_eq!(id, named, "{line}");
    }
    let audit = fs::read_to_string(suite.fixture.audit()).unwrap();
    for (name, path, fate) in &sent {
        let is_seen = audit.contains(name);
        let is_refused = matches!(fate, Fate::Refused(..));
        assert_ne!(is_seen, is_refused, "{path} {fate:?}");
    }
}

#[test]
fn kubectl_works_with_allowed_issuer_and_says_why_not() {
    let Some(suite) = shared() else { return };
    let [ana, otto] = suite.fixture.issuers();
    let proxy = proxy_with_issuer_rules(&suite, ana.url);
    let kubectl = |token: &str| {
        let kubectl = Kubectl::new(&suite, Route::Proxied).with_server(proxy.server());
        kubectl.with_user(json!({"token": token}))
    };
    let pods = kubectl(ana.token).run(&["get", "pods", "-o", "name"]).ok();
    assert!(pods.contains("pod/shell"), "{pods}");
    let who = kubectl(ana.token).run(&["auth", "whoami"]).ok();
    assert!(who.contains(ana.user), "{who}");
    let denied = kubectl(otto.token).run(&["get", "pods"]);
    assert_eq!(denied.code, Some(1));
    let reason = "is not open to this token from 127.0.0.1 (rule 3 of cluster test)";
    assert!(denied.stderr.contains(reason), "{}", denied.stderr);
    // The apiserver itself would let him in.
    let direct = Kubectl::new(&suite, Route::Direct).with_user(json!({"token": otto.token}));
    direct.run(&["get", "pods"]).ok();
}
