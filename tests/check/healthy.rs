//! Setups without problems.

use serde_json::{Value, json};
use standin::kubernetes::Kubernetes;

use crate::world::{HOST, World, check, flags, path};

#[tokio::test]
async fn healthy_setup_has_one_line_per_check_and_exit_code_0() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let result = world.check(upstream.address(), &[]).await;
    assert_eq!(result.code, 0, "{}{}", result.stdout, result.stderr);
    assert_eq!(
        result.marked('✓'),
        [
            "configuration",
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
        result.stdout
    );
    assert_eq!(result.lines().len(), 16, "{}", result.stdout);
    assert!(
        result.stdout.ends_with("\nAll checks passed.\n"),
        "{}",
        result.stdout
    );
    let page = include_str!("../../docs/check.md");
    for check in result
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
    assert_eq!(result.stderr, "", "progress is printed only on terminals");
    assert!(
        !result.stdout.contains('\x1b'),
        "colours are printed only on terminals"
    );
}

/// `check` sends the documented requests, with the host of a client, and a token only with `--token-file`.
#[tokio::test]
async fn requests_are_those_of_a_client() {
    let world = World::new();
    let cluster = Kubernetes::new().token("s3cret", "jane", &[]);
    let upstream = world.apiserver().kubernetes(&cluster).start().await;
    let token = world.dir.write("token", "s3cret\n");
    for (more, sent) in [
        (vec![], None),
        (vec!["--token-file", path(&token)], Some("Bearer s3cret")),
    ] {
        let result = world.check(upstream.address(), &more).await;
        assert_eq!(result.code, 0, "{}", result.stdout);
        for (target, version) in [
            ("/version", http::Version::HTTP_2),
            ("/readyz", http::Version::HTTP_2),
            (
                "/api/v1/pods?watch=true&fieldSelector=metadata.name%3Dkube-tls-proxy-check&timeoutSeconds=40",
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
        assert!(!result.stdout.contains("s3cret"), "{}", result.stdout);
    }
}

#[tokio::test]
async fn json_document_has_every_key() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let result = world.check(upstream.address(), &["--output", "json"]).await;
    assert_eq!((result.code, result.stderr.as_str()), (0, ""));
    let report = result.json();
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
        [json!(16), json!(0), json!(0), json!(0)]
    );
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        let mut keys: Vec<_> = check.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(
            keys,
            [
                "check",
                "excerpt",
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
    let local = &checks[0];
    assert_eq!(
        (&local["section"], &local["leg"], &local["target"]),
        (&json!("local"), &Value::Null, &Value::Null)
    );
}

/// `check` recognises the running proxy on its own port by the certificate.
#[tokio::test]
async fn port_of_running_proxy_passes() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let url = format!("https://{}", upstream.address());
    for names in [[HOST, "localhost"].as_slice(), &["*.kube.test"]] {
        let mut flags = world.flags_as(&url, &world.public_ca.server(names));
        let serving = world.serve(&flags).await;
        flags[1] = serving.address.to_string();
        let result = check(&[flags, world.clients_trust()].concat(), &[]).await;
        assert_eq!(result.code, 0, "{names:?} {}", result.stdout);
        let listen = &result.of("listen")[0];
        assert!(
            listen.message.contains("is in use by the running proxy"),
            "{listen:?}"
        );
    }
}

/// Such a proxy closes connections without a PROXY header, and those of clients that it does not serve.
#[tokio::test]
async fn running_proxy_with_lists_of_addresses_is_recognized() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let of_flags = world.flags(upstream.address());
    let start = |listen: &str| {
        let file = world
            .dir
            .write("listen.yaml", format!("listen: [{listen}]"));
        let mut flags = flags(&[("--config", path(&file))]);
        flags.extend_from_slice(&of_flags[2..]);
        flags
    };
    let balancer = "proxyProtocol: {from: [127.0.0.1]}";
    let others = "allow: [192.0.2.1]";
    for (keys, mark, text) in [
        (balancer, '✓', "is in use by the running proxy"),
        (others, '–', "keep this machine out, so check cannot ask it"),
        (
            &format!("{balancer}, {others}"),
            '–',
            "keep this machine out, so check cannot ask it",
        ),
    ] {
        let serving = world
            .serve(&start(&format!("{{address: '127.0.0.1:0', {keys}}}")))
            .await;
        let flags = start(&format!("{{address: '{}', {keys}}}", serving.address));
        let result = check(&[flags, world.clients_trust()].concat(), &[]).await;
        assert_eq!(result.code, 0, "{keys} {}", result.stdout);
        let listen = &result.of("listen")[0];
        assert_eq!(listen.mark, mark, "{keys} {listen:?}");
        assert!(listen.message.contains(text), "{keys} {listen:?}");
    }
}

/// The running proxy keeps its last valid certificate; the operator must not be told to stop it.
#[tokio::test]
async fn port_in_use_is_skipped_when_certificate_is_invalid() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let mut flags = world.flags(upstream.address());
    let serving = world.serve(&flags).await;
    flags[1] = serving.address.to_string();
    world.dir.write("public.crt", "");
    let result = check(&[flags, world.clients_trust()].concat(), &[]).await;
    assert_eq!(result.marked('✗'), ["certificate"], "{}", result.stdout);
    let listen = &result.of("listen")[0];
    let message = format!(
        "skipped: {} is in use, perhaps by the proxy itself; check recognizes the running proxy only by a valid certificate",
        serving.address
    );
    assert_eq!((listen.mark, &listen.message), ('–', &message));
}
