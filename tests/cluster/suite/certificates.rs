//! Users with client certificates, which the proxy verifies and tells the apiserver about.

use serde_json::{Value, json};

use crate::kubectl::{Kubectl, assert_same};
use crate::process::Outcome;
use crate::suite::{Suite, on_both, shared};

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

/// Cases 30, 31, 32, 36, 37. User, id, groups and the id of the credential are the same.
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
    let other = suite.fixture.impersonated_user();
    let as_other = whoami(&suite, &user, &["--as", other]);
    assert_eq!(as_other["username"], other);
    both(&suite, &user, &["--as", "eve", "get", "pods"]);

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
