//! Discovery: the groups, versions and resources that kubectl asks for first.

use serde_json::{Value, json};

/// The document at a discovery path.
pub(super) fn document(path: &str, version: &str) -> Option<Value> {
    Some(match path {
        "/version" | "/version/" => {
            let mut numbers = version.trim_start_matches('v').split('.');
            json!({
                "major": numbers.next(), "minor": numbers.next(), "gitVersion": version, "gitCommit": "standin",
                "gitTreeState": "clean", "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.23.0",
                "compiler": "gc", "platform": "linux/amd64",
            })
        }
        "/api" => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "192.0.2.10:6443" }],
        }),
        "/api/v1" => resources(
            "v1",
            &[
                resource(
                    "namespaces",
                    "Namespace",
                    false,
                    &["get", "list", "watch"],
                    &["ns"],
                ),
                resource(
                    "pods",
                    "Pod",
                    true,
                    &["create", "delete", "get", "list", "watch"],
                    &["po"],
                ),
                resource("pods/log", "Pod", true, &["get"], &[]),
                resource("pods/exec", "PodExecOptions", true, &["create", "get"], &[]),
            ],
        ),
        "/apis" => {
            let v1 = json!({ "groupVersion": "authentication.k8s.io/v1", "version": "v1" });
            json!({
                "kind": "APIGroupList", "apiVersion": "v1",
                "groups": [{ "name": "authentication.k8s.io", "versions": [v1], "preferredVersion": v1 }],
            })
        }
        "/apis/authentication.k8s.io/v1" => resources(
            "authentication.k8s.io/v1",
            &[resource(
                "selfsubjectreviews",
                "SelfSubjectReview",
                false,
                &["create"],
                &[],
            )],
        ),
        _ => return None,
    })
}

fn resources(group_version: &str, resources: &[Value]) -> Value {
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
}

fn resource(name: &str, kind: &str, namespaced: bool, verbs: &[&str], short: &[&str]) -> Value {
    json!({
        "name": name, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind,
        "verbs": verbs, "shortNames": short,
    })
}
