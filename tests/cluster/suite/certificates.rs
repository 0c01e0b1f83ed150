//! Users with client certificates, which the proxy verifies and tells the apiserver about.

use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use standin::TempDir;
use standin::pki::{Ca, Identity};

use crate::audit::{event_of, user_of};
use crate::kubectl::{Kubectl, assert_same};
use crate::process::Outcome;
use crate::proxy::Proxy;
use crate::suite::{Credential, Route, Suite, on_both, shared};

/// Runs kubectl as this user on both routes.
fn both(suite: &Suite, user: &Value, args: &[&str]) -> Outcome {
    let [direct, proxied] = on_both(|route| {
        let kubectl = Kubectl::new(suite, route).with_user(user.clone());
        kubectl.run(args)
    });
    assert_same(direct, proxied)
}

/// The user that both routes show. The rest of the object has the time.
fn whoami(suite: &Suite, user: &Value, more: &[&str]) -> Value {
    let [direct, proxied] = on_both(|route| {
        let kubectl = Kubectl::new(suite, route).with_user(user.clone());
        let args = [more, &["auth", "whoami", "-o", "json"]].concat();
        let object: Value = serde_json::from_str(&kubectl.run(&args).ok()).unwrap();
        object["status"]["userInfo"].clone()
    });
    assert_eq!(direct, proxied);
    direct
}

/// Cases 30, 31, 32, 36. User, id, groups and the id of the credential are the same.
#[test]
fn whoami_shows_the_owner_of_the_certificate() {
    let Some(suite) = shared() else { return };
    let user = suite.credential().user();
    let who = whoami(&suite, &user, &[]);
    assert_eq!(who["username"], "jane");
    assert_eq!(who["uid"], "7d1a");
    for part in ["certificate-users", "on call", "X509SHA256="] {
        assert!(who.to_string().contains(part), "{part} in {who}");
    }

    // A token beside the certificate changes nothing.
    let token = suite.fixture.token();
    let mut with_token = user;
    with_token["token"] = json!(token);
    assert_eq!(whoami(&suite, &with_token, &[]), who);
    // A token alone, and no credential.
    let who = whoami(&suite, &json!({"token": token}), &[]).to_string();
    assert!(who.contains("system:serviceaccount:"), "{who}");
    // The apiserver ignores passwords; without any, kubectl would ask for one.
    let anonymous = json!({"username": "any", "password": "any"});
    let live = both(&suite, &anonymous, &["get", "--raw", "/livez"]).ok();
    assert_eq!(live, "ok");
}

/// Case 37.
#[test]
fn owner_of_certificate_impersonates_as_without_the_proxy() {
    let Some(suite) = shared() else { return };
    let user = suite.credential().user();
    let other = suite.fixture.impersonated_user();
    let as_other = whoami(&suite, &user, &["--as", other]);
    assert_eq!(as_other["username"], other);
    let refused = both(&suite, &user, &["--as", "eve", "get", "pods"]);
    assert_eq!(refused.code, Some(1));
}

/// A CA of users, its file, and a proxy that trusts it.
struct Users {
    dir: TempDir,
    ca: Ca,
    proxy: Proxy,
}

impl Users {
    fn new(suite: &Suite) -> Self {
        let (dir, ca) = (TempDir::new(), Ca::new("users"));
        let mut config = suite.way.config(&suite.fixture, &suite.upstream());
        let file = dir.write("users.crt", ca.pem());
        config["clusters"][0]["clientCertificates"]["ca"] = json!(file);
        config["timeouts"] = json!({"reload": "1s"});
        let proxy = suite.proxy.another(&suite.fixture, &config, &[]);
        Self { dir, ca, proxy }
    }

    /// The files of a certificate.
    fn credential(&self, identity: &Identity, name: &str) -> Credential {
        let (certificate, key) = identity.write(&self.dir, name);
        let [certificate, key] = [certificate, key].map(|file| file.display().to_string());
        Credential::Certificate { certificate, key }
    }

    /// Sends a GET for this object.
    fn get(&self, suite: &Suite, credential: &Credential, name: &str, flags: &[&str]) -> Value {
        suite.fetch(&self.proxy.server(), credential, &object(name), flags)
    }

    /// Sends requests until the proxy refuses one, and returns its object and the reason.
    fn get_until_refused(
        &self,
        suite: &Suite,
        credential: &Credential,
        name: &str,
    ) -> (String, String) {
        let deadline = Instant::now() + Duration::from_secs(30);
        for number in 0.. {
            let name = format!("{name}-{number}.");
            let response = self.get(suite, credential, &name, &[]);
            if response["status"] == 401 {
                return (name, response["body"].to_string());
            }
            assert!(Instant::now() < deadline, "{response}");
            thread::park_timeout(Duration::from_millis(200));
        }
        unreachable!("the deadline passes before the numbers end")
    }
}

fn object(name: &str) -> String {
    format!("/api/v1/namespaces/suite/configmaps/{name}")
}

/// The user in the audit event of a request for this object.
fn audited_user(suite: &Suite, name: &str) -> Value {
    user_of(&event_of(suite, &object(name))).clone()
}

#[track_caller]
fn assert_unseen(suite: &Suite, names: &[String]) {
    let log = fs::read_to_string(suite.fixture.audit()).unwrap();
    for name in names {
        assert!(
            !log.contains(name.as_str()),
            "the apiserver has seen {name}"
        );
    }
}

/// Case 33. The apiserver would not know that the certificate has expired.
#[test]
fn expired_certificate_opens_nothing_and_ends_its_watch() {
    let Some(suite) = shared() else { return };
    let users = Users::new(&suite);
    let leaf = users.ca.leaf(&[]).client_auth().common_name("jane");
    // The group may watch pods.
    let leaf = leaf.organizations(&[suite.fixture.impersonated_group()]);
    let end = SystemTime::now() + Duration::from_secs(8);
    let jane = users.credential(&leaf.valid_until(end).build(), "jane");
    let kubectl = Kubectl::new(&suite, Route::Proxied)
        .with_server(users.proxy.server())
        .with_user(jane.user());
    let watch = kubectl.start(&["get", "pods", "-w", "-o", "name"]);
    watch.wait_for("pod/shell", Duration::from_secs(30));
    let (_, code) = watch.finish(Duration::from_secs(90));
    assert!(code.is_some());
    assert!(SystemTime::now() >= end, "the watch ended too early");
    let (refused, reason) = users.get_until_refused(&suite, &jane, "expired");
    assert!(reason.contains("has expired"), "{reason}");
    assert_unseen(&suite, &[refused]);
}

/// Case 34. The identity is that of the certificate on each connection, and of none after its CA was replaced.
#[test]
fn certificate_counts_until_its_ca_is_replaced() {
    let Some(suite) = shared() else { return };
    let users = Users::new(&suite);
    let jane = users.credential(&users.ca.client("jane", &["developers"]), "jane");
    for protocol in ["-http1=true", "-http1=false"] {
        let name = format!("resumed{protocol}");
        let response = users.get(&suite, &jane, &name, &["-resume", protocol]);
        assert_eq!(response["resumed"], false, "{response}");
        let user = audited_user(&suite, &name);
        assert_eq!(user["username"], "jane");
        assert_eq!(user["groups"][0], "developers");
    }
    let next = Ca::new("users");
    users.dir.write("users.crt", next.pem());
    let (refused, reason) = users.get_until_refused(&suite, &jane, "replaced");
    assert!(reason.contains("is not signed by the CA"), "{reason}");
    let joe = users.credential(&next.client("joe", &[]), "joe");
    users.get(&suite, &joe, "after-the-ca", &[]);
    assert_eq!(audited_user(&suite, "after-the-ca")["username"], "joe");
    assert_unseen(&suite, &[refused]);
}

/// Case 35. Other names arrive as they are.
#[test]
fn apiserver_sees_no_user_with_an_unsafe_name() {
    let Some(suite) = shared() else { return };
    let users = Users::new(&suite);
    let mut unseen = Vec::new();
    let refused = [
        ("admin ", "developers", 401),
        (" admin", "developers", 401),
        ("a\nb", "developers", 401),
        ("a\r\nX-Remote-Group: system:masters", "developers", 401),
        ("jane", "system:masters ", 401),
        ("", "developers", 401),
        ("jane", "system:masters", 403),
        ("system:kube-scheduler", "developers", 403),
    ];
    for (number, (user, group, status)) in refused.into_iter().enumerate() {
        for protocol in ["-http1=true", "-http1=false"] {
            let name = format!("unsafe-{number}{protocol}");
            let identity = users.ca.client(user, &[group]);
            let credential = users.credential(&identity, &name);
            let response = users.get(&suite, &credential, &name, &[protocol]);
            assert_eq!(response["status"], status, "{user:?} {group:?} {response}");
            unseen.push(name);
        }
    }
    for (number, user) in SAFE_NAMES.into_iter().enumerate() {
        let name = format!("safe-{number}");
        let credential = users.credential(&users.ca.client(user, &[user]), &name);
        users.get(&suite, &credential, &name, &[]);
        let seen = audited_user(&suite, &name);
        assert_eq!(seen["username"], user);
        assert_eq!(seen["groups"][0], user);
    }
    assert_unseen(&suite, &unseen);
}

/// Names of users and groups that arrive as they are.
pub(crate) const SAFE_NAMES: [&str; 4] = ["jane doe", "émile", "CN=x,O=y", "%41"];
