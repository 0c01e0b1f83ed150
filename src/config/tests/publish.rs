//! Kubeconfigs that hosts publish.

use super::*;
use crate::config::PublishConfig;

const CLUSTERS: &str = "clusters:
- {name: own, hosts: [own.test], upstream: {url: 'https://10.0.0.1', ca: ca.crt}, publish: {kubeconfig: {}}}
- {name: all, hosts: [all.test], upstream: {url: 'https://10.0.0.1', ca: ca.crt}}
- {name: off, hosts: [off.test], upstream: {url: 'https://10.0.0.1', ca: ca.crt}, publish: {}}
- {name: direct, hosts: [kubernetes], passthrough: true, upstream: {url: 'https://10.0.0.1'}}
";

fn args(scratch: &TempDir, text: &str) -> ServeArgs {
    ServeArgs {
        config: Some(scratch.write("proxy.yaml", text)),
        upstream: None,
        upstream_ca: None,
        ..enough()
    }
}

#[test]
fn publish_of_a_cluster_replaces_that_of_the_file() {
    let scratch = TempDir::new();
    let publish = "publish: {kubeconfig: {exec: {command: login, args: [a, '']}, ca: public.crt}}";
    let refused = load(
        &args(&scratch, &format!("{CLUSTERS}{publish}")),
        &outside_pod(),
    );
    let sentence = sentence(&refused.unwrap_err());
    assert!(sentence.contains("line 6, column"), "{sentence}");
    assert!(sentence.contains("is empty"), "{sentence}");
    let publish = publish.replace(", ''", ", b");
    let config = load(
        &args(&scratch, &format!("{CLUSTERS}{publish}")),
        &outside_pod(),
    );
    let clusters = config.unwrap().clusters;
    let found: Vec<_> = clusters.iter().map(|one| one.publish.clone()).collect();
    let all = PublishConfig {
        exec: Some(("login".to_owned(), vec!["a".to_owned(), "b".to_owned()])),
        ca: Some(scratch.path().join("public.crt")),
    };
    let own = PublishConfig::default();
    assert_eq!(found, [Some(own), Some(all), None, None]);
}

#[test]
fn secrets_and_passthrough_are_not_published() {
    let secret = format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", "A".repeat(40));
    for (text, expected) in [
        (
            format!(
                "{CLUSTERS}publish: {{kubeconfig: {{exec: {{command: x, args: [{secret}]}}}}}}"
            ),
            "everyone can read the published kubeconfig",
        ),
        (
            CLUSTERS.replace(
                "passthrough: true",
                "passthrough: true, publish: {kubeconfig: {}}",
            ),
            "has `passthrough` and `publish`; remove `publish`",
        ),
        (
            format!("{CLUSTERS}publish: {{kubeconfig: {{exec: {{args: [a]}}}}}}"),
            "`command` is missing",
        ),
        (
            format!("{CLUSTERS}publish: {{kubeconfig: {{token: abc}}}}"),
            "unknown key `token`",
        ),
    ] {
        let scratch = TempDir::new();
        let error = load(&args(&scratch, &text), &outside_pod()).unwrap_err();
        let sentence = sentence(&error);
        assert!(sentence.contains(expected), "{sentence}");
        assert!(sentence.contains(", line "), "{sentence}");
        assert!(!sentence.contains(&secret), "{sentence}");
    }
}
