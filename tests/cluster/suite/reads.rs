//! Read requests, and the identity of the user.

use serde_json::{Value, json};

use crate::kubectl::{Kubectl, assert_same, same_on_both};
use crate::suite::{on_both, shared};

#[test]
fn get_prints_the_same_table() {
    let Some(suite) = shared() else { return };
    let [direct, proxied] = on_both(|route| {
        Kubectl::new(&suite, route)
            .run(&["get", "pods", "-o", "wide"])
            .ok()
    });
    assert_eq!(without_age(&direct), without_age(&proxied));
    assert!(direct.contains("shell"), "{direct}");
    let [direct, proxied] =
        on_both(|route| Kubectl::new(&suite, route).run(&["get", "pods", "-A"]).ok());
    assert_eq!(without_age(&direct), without_age(&proxied));
}

#[test]
fn get_prints_the_same_object() {
    let Some(suite) = shared() else { return };
    let yaml = same_on_both(&suite, &["get", "pod", "shell", "-o", "yaml"]).ok();
    assert!(yaml.contains("kind: Pod"), "{yaml}");
    same_on_both(&suite, &["get", "nodes", "-o", "json"]).ok();
    same_on_both(&suite, &["describe", "role", "viewer"]).ok();
}

#[test]
fn discovery_and_explain_are_the_same() {
    let Some(suite) = shared() else { return };
    let resources = same_on_both(&suite, &["api-resources", "--sort-by=name"]).ok();
    assert!(resources.contains("configmaps"), "{resources}");
    same_on_both(&suite, &["api-versions"]).ok();
    same_on_both(&suite, &["explain", "pod.spec.containers"]).ok();
    same_on_both(&suite, &["version", "-o", "json"]).ok();
}

#[test]
fn missing_object_gives_the_same_error() {
    let Some(suite) = shared() else { return };
    let outcome = same_on_both(&suite, &["get", "pod", "absent"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("NotFound"), "{}", outcome.stderr);
}

#[test]
fn whoami_shows_the_same_user() {
    let Some(suite) = shared() else { return };
    let [direct, proxied] = on_both(|route| {
        let who = Kubectl::new(&suite, route).run(&["auth", "whoami", "-o", "json"]);
        let who: Value = serde_json::from_str(&who.ok()).unwrap();
        // The rest of the object has the time.
        who["status"]["userInfo"].clone()
    });
    assert_eq!(direct, proxied);
    assert_eq!(direct["username"], suite.way.user());
}

#[test]
fn impersonation_reaches_the_apiserver() {
    let Some(suite) = shared() else { return };
    let (user, group) = (
        suite.fixture.impersonated_user(),
        suite.fixture.impersonated_group(),
    );
    let pods = ["get", "pods", "-o", "name"];
    same_on_both(&suite, &[&["--as", user], &pods[..]].concat()).ok();
    same_on_both(
        &suite,
        &[&["--as", "eve", "--as-group", group], &pods[..]].concat(),
    )
    .ok();
    let refused = same_on_both(&suite, &[&["--as", "eve"], &pods[..]].concat());
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("\"eve\" cannot list"),
        "{}",
        refused.stderr
    );
    let who = [
        "--as",
        user,
        "--as-uid",
        "7",
        "--as-group",
        "a",
        "--as-group",
        "b",
        "auth",
        "whoami",
    ];
    let who = same_on_both(&suite, &who).ok();
    assert!(
        who.contains(user) && who.contains("[a b system:authenticated]"),
        "{who}"
    );
}

#[test]
fn unusually_many_header_fields_reach_the_apiserver() {
    let Some(suite) = shared() else { return };
    // Many servers accept 100 header lines. The proxy's limit is 128, and the apiserver has no limit.
    let groups: Vec<String> = (0..105).map(|n| format!("--as-group=group-{n}")).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let whoami = ["--as", "eve", "auth", "whoami"];
    let who = same_on_both(&suite, &[&whoami[..], &groups].concat()).ok();
    assert!(who.contains("group-104 system:authenticated"), "{who}");
}

#[test]
fn bad_token_gives_the_same_error() {
    let Some(suite) = shared() else { return };
    let [direct, proxied] = on_both(|route| {
        let kubectl = Kubectl::new(&suite, route).with_user(json!({"token": "bad"}));
        // Without the cache of discovery, which other cases fill, kubectl would fail with another sentence.
        kubectl.run(&["get", "--raw", "/api/v1/namespaces/suite/pods"])
    });
    let outcome = assert_same(direct, proxied);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.contains("Unauthorized"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn aggregated_api_responds() {
    let Some(suite) = shared() else { return };
    let list = same_on_both(&suite, &["get", "--raw", suite.fixture.aggregated_path()]).ok();
    assert!(list.contains("NodeMetricsList"), "{list}");
    same_on_both(&suite, &["top", "nodes"]).ok();
}

/// Removes the column AGE from a table, because it changes while the test runs. No cell of the table is empty or has a
/// blank.
fn without_age(table: &str) -> String {
    let header = table.lines().next().unwrap();
    let age = header.split_whitespace().position(|name| name == "AGE");
    let age = age.unwrap();
    let without = |line: &str| {
        let mut cells: Vec<_> = line.split_whitespace().collect();
        cells.remove(age);
        cells.join(" ")
    };
    table.lines().map(without).collect::<Vec<_>>().join("\n")
}
