//! Nothing is wrong.

use serde_json::{Value, json};
use standin::kubernetes::Kubernetes;

use crate::world::{HOST, World, check, path};

#[tokio::test]
async fn a_good_setup_is_a_line_for_each_check_and_exit_code_0() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let ended = world.check(upstream.address(), &[]).await;
    assert_eq!(ended.code, 0, "{}{}", ended.stdout, ended.stderr);
    assert_eq!(
        ended.marked('✓'),
        [
            "configuration",
            "certificate",
            "trust",
            "hosts",
            "listen",
            "ca",
            "dns",
            "tcp",
            "tls",
            "verify",
            "alpn",
            "version",
            "clock",
            "readyz",
            "upgrade"
        ],
        "{}",
        ended.stdout
    );
    assert_eq!(ended.lines().len(), 15, "{}", ended.stdout);
    assert!(
        ended
            .stdout
            .ends_with("\nEverything that was checked works.\n"),
        "{}",
        ended.stdout
    );
    let page = include_str!("../../docs/check.md");
    for check in ended
        .lines()
        .iter()
        .map(|line| line.check.as_str())
        .chain(["watch"])
    {
        assert!(
            page.contains(&format!("\n| `{check}` | ")),
            "docs/check.md lacks {check}"
        );
    }
    assert_eq!(ended.stderr, "", "progress is for terminals alone");
    assert!(!ended.stdout.contains('\x1b'), "colours are too");
}

/// It asks what it says it asks, as a client of the proxy would, and sends a token only when given one.
#[tokio::test]
async fn the_apiserver_is_asked_as_a_client_would() {
    let world = World::new();
    let cluster = Kubernetes::new().token("s3cret", "jane", &[]);
    let upstream = world.apiserver().kubernetes(&cluster).start().await;
    let token = world.dir.write("token", "s3cret\n");
    for (more, sent) in [
        (vec![], None),
        (vec!["--token-file", path(&token)], Some("Bearer s3cret")),
    ] {
        let ended = world.check(upstream.address(), &more).await;
        assert_eq!(ended.code, 0, "{}", ended.stdout);
        for (target, version) in [
            ("/version", http::Version::HTTP_2),
            ("/readyz", http::Version::HTTP_2),
            (
                "/api/v1/namespaces/default/pods/kube-tls-proxy-check/exec?command=true&stdout=true",
                http::Version::HTTP_11,
            ),
        ] {
            let request = upstream.next_request().await;
            assert_eq!(
                (request.target.as_str(), request.version),
                (target, version)
            );
            assert_eq!(request.header("authorization"), sent);
            let host = request
                .authority
                .as_deref()
                .or_else(|| request.header("host"));
            assert_eq!(host, Some("kube.test"));
        }
        assert!(!ended.stdout.contains("s3cret"), "{}", ended.stdout);
    }
}

#[tokio::test]
async fn the_document_for_machines_has_every_key() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let ended = world.check(upstream.address(), &["--output", "json"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let report = ended.json();
    let rest = |key: &str| report[key].clone();
    assert_eq!(rest("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(rest("result"), "ok");
    assert_eq!(rest("brokenLeg"), Value::Null);
    assert_eq!(
        [
            rest("ok"),
            rest("warnings"),
            rest("failed"),
            rest("skipped")
        ],
        [json!(15), json!(0), json!(0), json!(0)]
    );
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        let keys: Vec<_> = check.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "check",
                "fix",
                "leg",
                "message",
                "milliseconds",
                "result",
                "section",
                "target"
            ]
        );
        assert!(check["milliseconds"].is_u64(), "{check}");
    }
    let dns = checks.iter().find(|check| check["check"] == "dns").unwrap();
    assert_eq!(
        (
            &dns["section"],
            &dns["leg"],
            &dns["target"],
            &dns["result"],
            &dns["fix"]
        ),
        (
            &json!("upstream"),
            &json!("proxy-apiserver"),
            &json!("default"),
            &json!("ok"),
            &Value::Null
        )
    );
    let here = &checks[0];
    assert_eq!(
        (&here["section"], &here["leg"], &here["target"]),
        (&json!("local"), &Value::Null, &Value::Null)
    );
}

/// Run beside the proxy it checks, it does not take the proxy for somebody else on its port.
#[tokio::test]
async fn a_port_that_the_proxy_itself_has_is_no_fault() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let url = format!("https://{}", upstream.address());
    for names in [[HOST, "localhost"].as_slice(), &["*.kube.test"]] {
        let mut flags = world.flags_as(&url, &world.public_ca.server(names));
        let serving = world.serve(&flags).await;
        flags[1] = serving.address.to_string();
        let ended = check(&[flags, world.clients_trust()].concat(), &[]).await;
        assert_eq!(ended.code, 0, "{names:?} {}", ended.stdout);
        let listen = &ended.of("listen")[0];
        assert!(listen.what.contains("the proxy runs already"), "{listen:?}");
    }
}

/// The proxy goes on with the last good one; nobody shall be told to stop it.
#[tokio::test]
async fn a_port_is_not_called_somebody_elses_while_the_certificate_is_unusable() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut flags = world.flags(upstream.address());
    let serving = world.serve(&flags).await;
    flags[1] = serving.address.to_string();
    world.dir.write("public.crt", "");
    let ended = check(&[flags, world.clients_trust()].concat(), &[]).await;
    assert_eq!(ended.marked('✗'), ["certificate"], "{}", ended.stdout);
    let listen = &ended.of("listen")[0];
    let what = format!(
        "skipped: {} is in use, perhaps by the proxy itself, whose certificate would tell",
        serving.address
    );
    assert_eq!((listen.mark, &listen.what), ('–', &what));
}
