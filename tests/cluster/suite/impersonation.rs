//! A user with a client certificate whom the proxy impersonates, with the roles that this repository ships.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::audit::event_of;
use crate::kubectl::{Kubectl, STREAMINGS};
use crate::proxy::Proxy;
use crate::suite::{Route, Suite, shared};

/// Where the shipped roles are.
const ROLES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/config/kubernetes/components/impersonation"
);
const NAMESPACE: &str = "kube-tls-proxy";

/// A ServiceAccount with one of the shipped roles, under names of its own, and its token.
fn token(suite: &Suite, role: &str, name: &str) -> String {
    let kubectl = Kubectl::new(suite, Route::Direct);
    let role = fs::read_to_string(Path::new(ROLES).join(role)).unwrap();
    let groups = "resourceNames: [developers]";
    assert!(role.contains(groups), "{role}");
    let role = role.replace(groups, "resourceNames: [certificate-users, on call]");
    let role = role.replace(
        "name: kube-tls-proxy-impersonation",
        &format!("name: {name}"),
    );
    let account = format!("{{kind: ServiceAccount, name: {NAMESPACE}, namespace: {NAMESPACE}}}");
    assert!(role.contains(&account), "{role}");
    let own = format!("{{kind: ServiceAccount, name: {name}, namespace: {NAMESPACE}}}");
    let role = role.replace(&account, &own);
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE},
    });
    let objects = format!("{namespace}\n---\n{account}\n---\n{role}");
    kubectl
        .run_with_input(&["apply", "-f", "-"], objects.into_bytes())
        .ok();
    kubectl
        .run(&["create", "token", name, "--namespace", NAMESPACE])
        .ok()
}

/// A proxy that impersonates with this token.
fn proxy(suite: &Suite, token: &str, name: &str) -> Proxy {
    let fixture = &suite.fixture;
    let file = fixture.scratch().join(format!("{name}.token"));
    fs::write(&file, token).unwrap();
    let config = json!({
        "clusters": [{
            "name": "test",
            "upstream": {"url": fixture.server(), "ca": fixture.ca()},
            "clientCertificates": {"ca": fixture.ca(), "impersonate": {"tokenFile": file}},
        }],
    });
    let file = fixture.scratch().join(format!("{name}.yaml"));
    fs::write(&file, config.to_string()).unwrap();
    suite
        .proxy
        .another(fixture, &["--config", file.to_str().unwrap()])
}

/// A kubeconfig with the certificate of the suite's user, for this server.
fn kubeconfig(suite: &Suite, name: &str, server: &str, ca: &str) -> PathBuf {
    let fixture = &suite.fixture;
    let [certificate, key] = fixture.user_files();
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "it", "user": {"client-certificate": certificate, "client-key": key}}],
        "contexts": [{"name": "it", "context": {
            "cluster": "it", "user": "it", "namespace": fixture.namespace(),
        }}],
        "current-context": "it",
    });
    let file = fixture.scratch().join(format!("impersonation-{name}.json"));
    fs::write(&file, content.to_string()).unwrap();
    file
}

fn whoami(kubectl: &Kubectl<'_>) -> Value {
    let json = kubectl.run(&["auth", "whoami", "-o", "json"]).ok();
    let object: Value = serde_json::from_str(&json).unwrap();
    object["status"]["userInfo"].clone()
}

/// Case 38. With both roles: the user is the same as without the proxy, everything that the user may do works, and the audit
/// log has the user and the proxy.
#[test]
fn owner_of_certificate_is_impersonated_with_shipped_roles() {
    let Some(suite) = shared() else { return };
    let direct = kubeconfig(&suite, "direct", suite.fixture.server(), suite.fixture.ca());
    let direct = whoami(&Kubectl::new(&suite, Route::Direct).with_kubeconfig(&direct));
    assert_eq!(direct["username"], "jane");
    assert_eq!(direct["uid"], "7d1a");
    for (role, name) in [("role.yaml", "constrained"), ("older-role.yaml", "older")] {
        let proxy = proxy(&suite, &token(&suite, role, name), name);
        let ca = proxy.ca.display().to_string();
        let file = kubeconfig(&suite, name, &proxy.server, &ca);
        let kubectl = || Kubectl::new(&suite, Route::Proxied).with_kubeconfig(&file);
        assert_eq!(whoami(&kubectl()), direct, "{name}");
        for streaming in STREAMINGS {
            let exec = ["exec", "-i", "shell", "--", "cat"];
            let outcome = kubectl()
                .streaming(streaming)
                .run_with_input(&exec, b"x\n".to_vec());
            assert_eq!(outcome.ok(), "x\n", "{name}: {streaming:?}");
        }
        let map = format!("impersonated-{name}");
        kubectl().run(&["create", "configmap", &map]).ok();
        kubectl().run(&["label", "configmap", &map, "a=b"]).ok();
        assert_eq!(kubectl().run(&["get", "--raw", "/livez"]).ok(), "ok");
        kubectl().run(&["logs", "shell"]).ok();
        let path = format!("/api/v1/namespaces/suite/configmaps/{map}");
        kubectl().run(&["get", "--raw", &path]).ok();
        let event = event_of(&suite, &path);
        let account = format!("system:serviceaccount:{NAMESPACE}:{name}");
        assert_eq!(event["user"]["username"], account.as_str(), "{event}");
        assert_eq!(event["impersonatedUser"]["username"], "jane", "{event}");
        kubectl().run(&["delete", "configmap", &map]).ok();
        let refused = kubectl().run(&["--as", "eve", "get", "pods"]);
        let sentence = "cannot impersonate another user";
        assert!(refused.stderr.contains(sentence), "{}", refused.stderr);
    }
}
