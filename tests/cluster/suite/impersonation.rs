//! Users with client certificates whom the proxy impersonates, with the roles that this repository ships.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::audit::event_of;
use crate::certificates::SAFE_NAMES;
use crate::fixture::Fixture;
use crate::kubectl::{Kubectl, STREAMINGS};
use crate::process::run;
use crate::suite::{Route, shared};

/// Where the shipped roles are.
const ROLES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/config/kubernetes/components/impersonation"
);
const NAMESPACE: &str = "kube-tls-proxy";

/// The role for this version of Kubernetes, and the one for older versions.
pub(crate) const ROLE: &str = "role.yaml";
const OLDER_ROLE: &str = "older-role.yaml";

/// The file with the token of a new `ServiceAccount` of this name, which has one of the shipped roles.
pub(crate) fn token_file(fixture: &Fixture, role: &str, name: &str) -> PathBuf {
    let kubectl = |args: &[&str], input: String| {
        let mut command = Command::new("kubectl");
        command
            .args(args)
            .env("HOME", fixture.scratch())
            .env("KUBECONFIG", fixture.kubeconfig());
        run(command, input.into_bytes(), LIMIT).ok()
    };
    let role = fs::read_to_string(Path::new(ROLES).join(role)).unwrap();
    // The groups of all certificates in the suite.
    let mut groups = vec!["certificate-users", "on call", "developers"];
    groups.push(fixture.impersonated_group());
    groups.extend(SAFE_NAMES);
    let account = |name| format!("{{kind: ServiceAccount, name: {name}, namespace: {NAMESPACE}}}");
    let changes = [
        (
            "resourceNames: [developers]".to_owned(),
            format!("resourceNames: {}", json!(groups)),
        ),
        (
            "name: kube-tls-proxy-impersonation".to_owned(),
            format!("name: {name}"),
        ),
        (account(NAMESPACE), account(name)),
    ];
    let role = changes.iter().fold(role, |role, (from, to)| {
        assert!(role.contains(from), "{from} in {role}");
        role.replace(from, to)
    });
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE},
    });
    // kubectl reads input that begins with a brace as JSON to its end.
    let objects = format!("{role}\n---\n{namespace}\n---\n{account}");
    kubectl(&["apply", "-f", "-"], objects);
    let create = ["create", "token", name, "--namespace", NAMESPACE];
    let token = kubectl(&create, String::new());
    let file = fixture.scratch().join(format!("{name}.token"));
    // A proxy that runs reads it again.
    let draft = file.with_extension("draft");
    fs::write(&draft, token).unwrap();
    fs::rename(&draft, &file).unwrap();
    file
}

fn whoami(kubectl: &Kubectl<'_>) -> Value {
    let json = kubectl.run(&["auth", "whoami", "-o", "json"]).ok();
    let object: Value = serde_json::from_str(&json).unwrap();
    object["status"]["userInfo"].clone()
}

/// Case 38. With both roles the user is the same as without the proxy, and the audit log has the user and the proxy.
#[test]
fn audit_log_names_user_and_proxy_with_both_shipped_roles() {
    let Some(suite) = shared() else { return };
    let direct = whoami(&Kubectl::new(&suite, Route::Direct));
    assert_eq!(direct["uid"], "7d1a");
    let mut config = suite.way.config(&suite.fixture, &suite.upstream());
    let older = token_file(&suite.fixture, OLDER_ROLE, "older");
    config["clusters"][0]["clientCertificates"]["impersonate"]["tokenFile"] = json!(older);
    let older = suite.proxy.another(&suite.fixture, &config, &[]);
    let proxies = [("suite", &suite.proxy), ("older", &older)];
    for (name, proxy) in proxies {
        let kubectl = || Kubectl::new(&suite, Route::Proxied).with_server(proxy.server());
        assert_eq!(whoami(&kubectl()), direct, "{name}");
        for streaming in STREAMINGS {
            let exec = ["exec", "-i", "shell", "--", "cat"];
            let kubectl = kubectl().streaming(streaming);
            let outcome = kubectl.run_with_input(&exec, b"x\n".to_vec());
            assert_eq!(outcome.ok(), "x\n", "{name}: {streaming:?}");
        }
        let map = format!("impersonated-{name}");
        kubectl().run(&["create", "configmap", &map]).ok();
        let path = format!("/api/v1/namespaces/suite/configmaps/{map}");
        kubectl().run(&["get", "--raw", &path]).ok();
        let event = event_of(&suite, &path);
        let account = format!("system:serviceaccount:{NAMESPACE}:{name}");
        assert_eq!(event["user"]["username"], account.as_str(), "{event}");
        assert_eq!(event["impersonatedUser"]["username"], "jane", "{event}");
        let refused = kubectl().run(&["--as", "eve", "get", "pods"]);
        let sentence = "cannot impersonate another user";
        assert!(refused.stderr.contains(sentence), "{}", refused.stderr);
    }
}

const LIMIT: Duration = Duration::from_mins(1);
