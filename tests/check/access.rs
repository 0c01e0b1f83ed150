//! `--explain-access`: which access rule decides, without network.

use standin::pki::Ca;

use crate::world::{World, check, flags, path};

const RULES: &str = "
  - deny: {credentials: [serviceAccount], unlessFrom: [10.0.0.0/8]}
  - deny: {resources: [pods/exec, secrets]}
  - allow: {credentials: [jwt, serviceAccount]}
";

/// A configuration file whose certificate and CA do not exist: the question needs neither.
fn config(world: &World) -> String {
    let text = format!(
        "certificates: [{{certificate: tls.crt, key: tls.key}}]\n\
         clusters:\n- name: prod\n  hosts: [a.test]\n  upstream: {{url: 'https://192.0.2.1', ca: ca.crt}}\n  access:{RULES}\
         - name: open\n  hosts: [b.test]\n  upstream: {{url: 'https://192.0.2.1', ca: ca.crt}}\n"
    );
    path(&world.dir.write("proxy.yaml", text)).to_owned()
}

/// The token of a service account, and that of a user.
const ACCOUNT: &str = "e30.eyJrdWJlcm5ldGVzLmlvIjp7fX0.c2ln";
const USER: &str = "e30.eyJpc3MiOiJhIn0.c2ln";

#[tokio::test]
async fn explanation_names_the_rule_that_decides() {
    let world = World::new();
    let config = config(&world);
    for (request, from, token, code, mark, message) in [
        (
            "GET /api/v1/pods",
            "192.0.2.9",
            Some(USER),
            0,
            '✓',
            "allowed by rule 3",
        ),
        (
            "GET /api/v1/pods",
            "10.1.2.3",
            Some(ACCOUNT),
            0,
            '✓',
            "allowed by rule 3",
        ),
        (
            "GET /api/v1/pods",
            "192.0.2.9",
            Some(ACCOUNT),
            1,
            '✗',
            "denied by rule 1, for the credential of kind `serviceAccount`",
        ),
        (
            "POST /api/v1/namespaces/a/pods/b/exec?command=sh",
            "10.1.2.3",
            Some(USER),
            1,
            '✗',
            "denied by rule 2",
        ),
        (
            "GET /version",
            "10.1.2.3",
            None,
            1,
            '✗',
            "denied, because no rule allows it, for the credential of kind `none`",
        ),
        (
            "GET /api/v1/%73ecrets",
            "10.1.2.3",
            Some(USER),
            1,
            '✗',
            "refused with 400 before a rule is asked: path with more than one meaning",
        ),
    ] {
        let mut more = vec!["--explain-access", request, "--from", from];
        let file = token.map(|token| world.dir.write("token", token));
        if let Some(file) = &file {
            more.extend(["--token-file", path(file)]);
        }
        let result = check(&flags(&[("--config", &config)]), &more).await;
        assert_eq!(result.code, code, "{}{}", result.stdout, result.stderr);
        let found = result.of("access");
        assert_eq!(
            (found[0].mark, found[0].message.as_str()),
            (mark, message),
            "{request}"
        );
        assert_eq!(found[0].fix.is_some(), mark == '✗');
        assert_eq!(
            (found[1].mark, found[1].message.as_str()),
            ('✓', "allowed: the cluster has no access rules")
        );
        assert!(!result.stdout.contains("e30."), "the token is not printed");
    }
    let question = [
        "--explain-access",
        "GET /apis/apps/v1/namespaces/a/deployments/b/scale",
        "--from",
        "::1",
    ];
    let result = check(&flags(&[("--config", &config)]), &question).await;
    let title = "`get` of apps/deployments/scale in namespace a in cluster prod, from ::1";
    assert!(result.stdout.contains(title), "{}", result.stdout);
}

/// A client certificate counts only where the cluster has `clientCertificates`; a passthrough cluster has no rule.
#[tokio::test]
async fn explanation_judges_a_client_certificate() {
    let world = World::new();
    let upstream = "hosts: [HOST], upstream: {url: 'https://192.0.2.1', ca: ca.crt}";
    let rules = "access: [{deny: {credentials: [certificate]}}, {allow: {}}]";
    let section = "clientCertificates: {ca: a.crt, frontProxy: {certificate: b.crt, key: b.key}}";
    let text = format!(
        "certificates: [{{certificate: tls.crt, key: tls.key}}]\nclusters:\n\
         - {{name: asks, {}, {rules}, {section}}}\n- {{name: asks-not, {}, {rules}}}\n\
         - {{name: passes, hosts: [c.test], passthrough: true, upstream: {{url: 'https://192.0.2.1'}}}}\n",
        upstream.replace("HOST", "a.test"),
        upstream.replace("HOST", "b.test"),
    );
    let config = world.dir.write("proxy.yaml", text);
    let (certificate, key) = Ca::new("users")
        .client("jane", &[])
        .write(&world.dir, "jane");
    let client = flags(&[
        ("--config", path(&config)),
        ("--client-cert", path(&certificate)),
        ("--client-key", path(&key)),
    ]);
    let question = ["--explain-access", "GET /version", "--from", "192.0.2.9"];
    let result = check(&client, &question).await;
    let found: Vec<_> = result
        .of("access")
        .iter()
        .map(|line| line.message.clone())
        .collect();
    assert_eq!(
        found,
        [
            "denied by rule 1, for the credential of kind `certificate`",
            "allowed by rule 2",
            "allowed: the connections of this cluster are passed through, so no rule applies",
        ],
        "{}",
        result.stderr
    );
}

#[tokio::test]
async fn unusable_question_is_one_sentence() {
    let world = World::new();
    let config = config(&world);
    for (question, expected) in [
        (
            &["--explain-access", "/version", "--from", "::1"][..],
            "is not a request; write METHOD PATH",
        ),
        (
            &["--explain-access", "GET version", "--from", "::1"],
            "is not a request; write METHOD PATH",
        ),
        (
            &["--explain-access", "GET https://a/version", "--from", "::1"],
            "is not a request; write METHOD PATH",
        ),
        (&["--explain-access", "GET /version"], "--from <ADDRESS>"),
        (
            &["--explain-access", "GET /version", "--from", "office"],
            "invalid",
        ),
        (&["--from", "::1"], "--explain-access"),
        (
            &[
                "--explain-access",
                "GET /version",
                "--from",
                "::1",
                "--through",
                "https://a",
            ],
            "cannot be used with",
        ),
    ] {
        let result = check(&flags(&[("--config", &config)]), question).await;
        assert_eq!(result.code, 2, "{question:?} {}", result.stdout);
        assert!(
            result.stderr.contains(expected),
            "{question:?} {}",
            result.stderr
        );
    }
}
