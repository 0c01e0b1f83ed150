//! A restart of the apiserver.

use std::time::Duration;

use crate::kubectl::Kubectl;
use crate::process::Running;
use crate::suite::{Route, Turn, alone, on_both};

#[test]
fn clients_recover_after_a_restart_of_the_apiserver() {
    let Some(suite) = alone() else { return };
    let [direct, proxied] = on_both(|route| start_reflector(&suite, route));
    let mut gets = suite.raw_client("gets", Route::Proxied, &suite.credential());
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
        // A reflector waits slightly more than 30 s at most before it tries again.
        let mut names =
            [reflector.json(STEP), reflector.json(STEP)].map(|output| output["added"].to_string());
        names.sort();
        assert_eq!(names, ["\"reflected-direct\"", "\"reflected-proxied\""]);
    }

    gets.end_input();
    let output = gets.json(STEP);
    eprintln!("{output}");
    let tally = &output["tally"];
    // While the apiserver is down, the right response is a 503 with a Retry-After. A 502 would mean that the
    // apiserver may have processed the request.
    for wrong in ["500", "502", "504"] {
        assert!(tally["status"][wrong].is_null(), "{output}");
    }
    assert_eq!(tally["bareUnavailable"], 0, "{output}");
    assert_eq!(tally["errors"], serde_json::json!({}), "{output}");
    assert!(
        tally["status"]["503"].as_u64() > Some(0),
        "no request failed during the restart: {output}"
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
