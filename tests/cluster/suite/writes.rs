//! Write requests, and `kubectl wait`.

use std::time::Duration;

use crate::kubectl::{Kubectl, assert_same, same_on_both};
use crate::suite::{Route, Suite, on_both, shared};

#[test]
fn apply_patch_and_delete_give_the_same_output() {
    let Some(suite) = shared() else { return };
    let [direct, proxied] = on_both(|route| config_map_lifecycle(&suite, route));
    assert_eq!(direct, proxied);
}

fn config_map_lifecycle(suite: &Suite, route: Route) -> Vec<String> {
    let kubectl = Kubectl::new(suite, route);
    let name = format!("written-{}", route.name());
    let manifest = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n"
        )
        .into_bytes()
    };
    let apply = ["apply", "-f", "-"];
    let get = ["get", "configmap", &name, "-o", "jsonpath={.data.key}"];
    let patch = r#"{"data":{"key":"third"}}"#;
    let server_side = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    [
        kubectl.run_with_input(&apply, manifest("first")),
        kubectl.run_with_input(&apply, manifest("first")),
        kubectl.run_with_input(&apply, manifest("second")),
        kubectl.run(&get),
        kubectl.run(&["patch", "configmap", &name, "-p", patch]),
        kubectl.run(&get),
        kubectl.run_with_input(&server_side, manifest("fourth")),
        kubectl.run(&["label", "configmap", &name, "a=b"]),
        kubectl.run(&["delete", "configmap", &name]),
        kubectl.run(&get),
    ]
    .into_iter()
    .map(|outcome| {
        let all = format!("{:?} {} {}", outcome.code, outcome.text(), outcome.stderr);
        all.replace(&name, "NAME")
    })
    .collect()
}

#[test]
fn wait_returns_when_the_condition_is_met() {
    let Some(suite) = shared() else { return };
    on_both(|route| {
        let kubectl = Kubectl::new(&suite, route);
        kubectl
            .run(&[
                "wait",
                "--for=condition=Ready",
                "pod/shell",
                "--timeout=20s",
            ])
            .ok();
        let name = format!("waited-{}", route.name());
        kubectl.run(&["create", "configmap", &name]).ok();
        let waiting = kubectl.start(&[
            "wait",
            "--for=jsonpath={.data.done}=yes",
            &format!("configmap/{name}"),
            "--timeout=60s",
        ]);
        let patch = r#"{"data":{"done":"yes"}}"#;
        kubectl
            .run(&["patch", "configmap", &name, "-p", patch])
            .ok();
        let (lines, code) = waiting.finish(Duration::from_secs(30));
        assert_eq!(code, Some(0));
        assert_eq!(lines, [format!("configmap/{name} condition met")]);
    });
}

#[test]
fn too_large_body_gives_the_same_error() {
    let Some(suite) = shared() else { return };
    // The apiserver responds before it has received the whole body.
    let body = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"a":"{}"}}}}"#,
        "x".repeat(4 << 20)
    );
    let [direct, proxied] = on_both(|route| {
        let kubectl = Kubectl::new(&suite, route);
        kubectl.run_with_input(&["create", "-f", "-"], body.clone().into_bytes())
    });
    let outcome = assert_same(direct, proxied);
    assert_eq!(outcome.code, Some(1));
    let limit = "Request entity too large: limit is 3145728";
    assert!(outcome.stderr.contains(limit), "{}", outcome.stderr);
}

#[test]
fn warning_of_the_apiserver_is_shown() {
    let Some(suite) = shared() else { return };
    let kubectl = Kubectl::new(&suite, Route::Direct);
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: warned\n  labels: \
        {pod-security.kubernetes.io/warn: restricted}\n";
    kubectl
        .run_with_input(&["create", "-f", "-"], namespace.into())
        .ok();
    kubectl
        .run(&["create", "serviceaccount", "default", "-n", "warned"])
        .ok();
    let run = [
        "run",
        "p",
        "-n",
        "warned",
        "--image=example.invalid/p",
        "--dry-run=server",
    ];
    let outcome = same_on_both(&suite, &run);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("Warning: would violate PodSecurity"),
        "{}",
        outcome.stderr
    );
}
