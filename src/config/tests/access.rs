//! Access rules: what is refused, with its place, and what only gets a warning.

use super::*;

/// A configuration whose cluster has these rules.
fn text(access: &str) -> String {
    format!(
        "clusters:\n- name: prod\n  upstream: {{url: 'https://10.0.0.1', ca: ca.crt}}\n  access:\n{access}\n"
    )
}

fn args(scratch: &TempDir, access: &str) -> ServeArgs {
    ServeArgs {
        config: Some(scratch.write("proxy.yaml", text(access))),
        upstream: None,
        upstream_ca: None,
        ..enough()
    }
}

/// The place and the error.
fn error(access: &str) -> String {
    let scratch = TempDir::new();
    let error = load(&args(&scratch, access), &outside_pod()).unwrap_err();
    let sentence = sentence(&error);
    let (_, found) = sentence.split_once(", line ").unwrap_or(("", &sentence));
    found.to_owned()
}

#[test]
fn rules_that_match_nothing_are_refused_with_their_place() {
    for (access, expected) in [
        ("    []", "5, column 5: `access` has no rule"),
        (
            "  - {}",
            "5, column 5: the rule has neither `allow` nor `deny`",
        ),
        (
            "  - {allow: }",
            "5, column 5: the rule has neither `allow` nor `deny`",
        ),
        (
            "  - {allow: {}, deny: {}}",
            "5, column 5: the rule has both `allow` and `deny`",
        ),
        ("  - permit: {}", "5, column 5: unknown key `permit`"),
        (
            "  - deny: {form: [10.0.0.0/8]}",
            "5, column 12: unknown key `form`; did you mean `from`?",
        ),
        ("  - deny: {from: []}", "5, column 18: the list is empty"),
        ("  - deny: {verbs: []}", "5, column 19: the list is empty"),
        (
            "  - deny: {from: 10.0.0.1}",
            "5, column 18: this must be a list",
        ),
        (
            "  - deny: {from: [10.0.0.1/8]}",
            "`10.0.0.1/8` is not the first address of its range; write 10.0.0.0/8",
        ),
        (
            "  - deny: {from: [10.0.0.1], unlessFrom: [10.0.0.1]}",
            "`from` and `unlessFrom` have the same addresses",
        ),
        (
            "  - deny: {credentials: [jwt, token]}",
            "5, column 31: `token` is not a kind of credential",
        ),
        (
            "  - deny: {credentials: [None]}",
            "`None` is not a kind of credential",
        ),
        ("  - deny: {issuers: ['']}", "is not an issuer"),
        (
            "  - deny: {issuers: [a], credentials: [none, opaque]}",
            "only tokens of the kinds `jwt` and `serviceAccount` have an issuer",
        ),
        (
            "  - deny: {verbs: [GET]}",
            "`GET` is not a verb; write it in lower case",
        ),
        (
            "  - deny: {resources: [pods], paths: [/a]}",
            "no request matches both `paths` and `resources`",
        ),
        (
            "  - deny: {namespaces: [a], paths: [/a]}",
            "no request matches both `paths` and `resources`",
        ),
        (
            "  - deny: {resources: [Secrets]}",
            "`Secrets` is not a resource",
        ),
        (
            "  - deny: {resources: [pods/]}",
            "`pods/` is not a resource",
        ),
        (
            "  - deny: {resources: [/pods]}",
            "`/pods` is not a resource",
        ),
        (
            "  - deny: {resources: [a/b/c/d]}",
            "`a/b/c/d` is not a resource",
        ),
        ("  - deny: {resources: ['po*']}", "`po*` is not a resource"),
        (
            "  - deny: {resources: ['*.example.com/a']}",
            "is not a resource",
        ),
        (
            "  - deny: {resources: [apps]}",
            "`apps` is an API group; write GROUP/RESOURCE",
        ),
        (
            "  - deny: {resources: [deployments.apps]}",
            "write the group first, such as apps/deployments",
        ),
        (
            "  - deny: {resources: ['*/*']}",
            "could be all resources or all subresources",
        ),
        (
            "  - deny: {namespaces: [Kube]}",
            "`Kube` is not a namespace",
        ),
        (
            "  - deny: {namespaces: ['*-system']}",
            "`*-system` is not a namespace",
        ),
        ("  - deny: {paths: [metrics]}", "`metrics` is not a path"),
        ("  - deny: {paths: [/a/../b]}", "`/a/../b` is not a path"),
        ("  - deny: {paths: [/a%20b]}", "`/a%20b` is not a path"),
        ("  - deny: {paths: [/a*b]}", "`/a*b` is not a path"),
        ("  - deny: {paths: ['/api?x']}", "`/api?x` is not a path"),
        (
            "  - deny: {paths: [/api/v1/secrets]}",
            "`/api/v1/secrets` is the path of a resource",
        ),
        (
            "  - deny: {paths: [/apis/apps/v1/deployments]}",
            "is the path of a resource",
        ),
    ] {
        let found = error(access);
        assert!(found.contains(expected), "{access}\n{found}");
    }
    let many = "  - allow: {}\n".repeat(101);
    assert!(error(&many).contains("more than 100 rules"));
}

/// A token in place of a name must not be in the message.
#[test]
fn secret_in_a_rule_is_not_repeated() {
    let token = format!("eyJhbGciOiJSUzI1NiJ9.{}", "Canary5ecretAbC9".repeat(4));
    for key in [
        "from",
        "credentials",
        "verbs",
        "resources",
        "namespaces",
        "paths",
    ] {
        let found = error(&format!("  - deny: {{{key}: ['{token}']}}"));
        assert!(!found.contains("Canary"), "{found}");
    }
}

#[test]
fn suspicious_rules_give_warnings() {
    for (access, expected) in [
        ("  - allow: {}", &[][..]),
        (
            "  - deny: {resources: [pods/exec, apps/deployments, a.b/c/d, 'pods/*', nodes/proxy]}\n  - allow: {}",
            &[],
        ),
        (
            "  - deny: {verbs: [get, options], paths: [/a]}\n  - allow: {}",
            &[],
        ),
        (
            "  - deny: {verbs: [connect], resources: [secrets]}\n  - allow: {}",
            &[
                "access rule 1 of cluster prod has the verb `connect`, which no request has for resources; write one of get",
            ],
        ),
        (
            "  - deny: {verbs: [connect]}\n  - allow: {}",
            &[
                "which no request has for any request; write one of get, list, watch, create, update, patch, delete, deletecollection, proxy, head, post, put, options",
            ],
        ),
        (
            "  - deny: {verbs: [list], paths: [/a]}\n  - allow: {}",
            &["has the verb `list`, which no request has for paths; write one of get, head"],
        ),
        (
            "  - deny: {verbs: [post], namespaces: [a]}\n  - allow: {}",
            &["has the verb `post`"],
        ),
        (
            "  - allow: {from: [10.0.0.1]}\n  - deny: {verbs: [create], resources: [secrets, pods/exec]}\n  - allow: {}",
            &[
                "access rule 2 of cluster prod names verbs for exec, whose verb depends on client and version",
            ],
        ),
        (
            "  - deny: {resources: [deployments, pods/exce, nodes/log]}\n  - allow: {}",
            &[
                "names the resource `deployments`, which the core group does not have; write GROUP/RESOURCE",
                "names the resource `pods/exce`",
                "names the resource `nodes/log`",
            ],
        ),
        (
            "  - allow: {}\n  - deny: {resources: [secrets]}",
            &[
                "access rule 2 of cluster prod has no effect, because rule 1 matches every request; move rule 1 to the end",
            ],
        ),
        (
            "  - deny: {resources: [secrets]}",
            &[
                "the access rules of cluster prod allow nothing, because a request that no rule matches is denied; add `- allow: {}`",
            ],
        ),
        (
            "  - allow: {resources: ['*']}",
            &[
                "the access rules of cluster prod allow no discovery, which kubectl needs before most commands; add an `allow` rule",
            ],
        ),
    ] {
        let scratch = TempDir::new();
        let warnings = load(&args(&scratch, access), &outside_pod())
            .unwrap()
            .warnings;
        assert_eq!(warnings.len(), expected.len(), "{access}\n{warnings:?}");
        for (warning, expected) in warnings.iter().zip(expected) {
            assert!(warning.contains(expected), "{access}\n{warning}");
        }
    }
}
