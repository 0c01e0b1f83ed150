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
                    &[
                        "create", "delete", "get", "list", "patch", "update", "watch",
                    ],
                    &["po"],
                ),
                resource("pods/log", "Pod", true, &["get"], &[]),
                resource("pods/exec", "PodExecOptions", true, &["create", "get"], &[]),
            ],
        ),
        // kubectl 1.27 and newer asks these before it sends an object, and then leaves the validation to the apiserver.
        "/openapi/v3" => {
            json!({ "paths": { "api/v1": { "serverRelativeURL": "/openapi/v3/api/v1" } } })
        }
        "/openapi/v3/api/v1" => {
            let parameters = ["fieldValidation", "dryRun"]
                .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }));
            let pod = json!({ "group": "", "version": "v1", "kind": "Pod" });
            let patch = json!({
                "parameters": parameters, "responses": { "200": { "description": "OK" } },
                "x-kubernetes-group-version-kind": pod,
            });
            let schema = json!({
                "type": "object", "properties": {}, "x-kubernetes-group-version-kind": [pod],
                "description": "The stand-in apiserver does not describe the fields of a pod; a real one does.",
            });
            json!({
                "openapi": "3.0.0", "info": { "title": "stand-in", "version": version },
                "paths": { "/api/v1/namespaces/{namespace}/pods/{name}": { "patch": patch } },
                "components": { "schemas": { "io.k8s.api.core.v1.Pod": schema } },
            })
        }
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
    let mut resource = json!({
        "name": name, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind,
        "verbs": verbs, "shortNames": short,
    });
    if name == "pods" {
        resource["categories"] = json!(["all"]);
    }
    resource
}
