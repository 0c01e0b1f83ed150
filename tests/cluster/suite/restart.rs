//! The apiserver goes away and comes back.

use std::time::Duration;

use crate::kubectl::Kubectl;
use crate::process::Running;
use crate::suite::{Route, Turn, alone, on_both};

#[test]
fn clients_recover_from_a_restart_of_the_apiserver() {
    let Some(suite) = alone() else { return };
    let [direct, proxied] = on_both(|route| start_reflector(&suite, route));
    let mut gets = suite.raw_client("gets", Route::Proxied, suite.fixture.token());
    gets.args(["-path", "/api/v1/namespaces/suite/pods/shell"]);
    let mut gets = Running::start(gets);
    assert_eq!(gets.json(STEP)["started"], true);

    suite.fixture.restart_apiserver();

    on_both(|route| {
        let kubectl = Kubectl::new(&suite, route);
        let name = format!("reflected-{}", route.name());
        kubectl.run(&["create", "configmap", &name]).ok();
        kubectl
            .run(&["label", "configmap", &name, "reflected=yes"])
            .ok();
    });
    for reflector in [direct, proxied] {
        // A reflector waits up to 30 s, and a bit, before it tries again.
        let mut names =
            [reflector.json(STEP), reflector.json(STEP)].map(|said| said["added"].to_string());
        names.sort();
        assert_eq!(names, ["\"reflected-direct\"", "\"reflected-proxied\""]);
    }

    gets.end_input();
    let said = gets.json(STEP);
    eprintln!("{said}");
    let tally = &said["tally"];
    // A 503 is right while the apiserver is away, provided that it says to try again. A 502 would
    // say that the request may have been carried out.
    for wrong in ["500", "502", "504"] {
        assert!(tally["status"][wrong].is_null(), "{said}");
    }
    assert_eq!(tally["bareUnavailable"], 0, "{said}");
    assert_eq!(tally["errors"], serde_json::json!({}), "{said}");
    assert!(
        tally["status"]["503"].as_u64() > Some(0),
        "the restart was not seen: {said}"
    );
}

fn start_reflector(suite: &Turn, route: Route) -> Running {
    let mut command = suite.fixture.client("reflect");
    command
        .arg("-kubeconfig")
        .arg(Kubectl::new(suite, route).kubeconfig());
    let reflector = Running::start(command);
    assert_eq!(reflector.json(STEP)["synced"], true);
    reflector
}

const STEP: Duration = Duration::from_mins(1);
