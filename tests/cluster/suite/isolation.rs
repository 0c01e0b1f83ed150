//! One client must not affect another, and many watches must not block the other requests of a client.

use std::time::Duration;

use serde_json::Value;

use crate::kubectl::Kubectl;
use crate::process::Running;
use crate::suite::{Credential, Route, Suite, alone};

#[test]
fn unauthenticated_requests_end_no_watch_of_another_client() {
    let Some(suite) = alone() else { return };
    for route in [Route::Direct, Route::Proxied] {
        let name = format!("beside-the-hammer-{}", route.name());
        let mut watches = open_watches(&suite, route, 50, &name);
        // The apiserver responds to each of these requests with a GOAWAY on its connection.
        let anonymous = hammer(&suite, route, "");
        let bad_token = hammer(&suite, route, "bad");
        for (hammer, status) in [(anonymous, "200"), (bad_token, "401")] {
            let output = hammer.json(Duration::from_mins(1));
            let tally = &output["tally"];
            assert_eq!(tally["status"][status], HAMMER_COUNT, "{route:?} {output}");
            assert_eq!(
                tally["protocols"]["HTTP/2.0"], HAMMER_COUNT,
                "{route:?} {output}"
            );
        }
        assert_all_receive_an_event(&suite, route, &watches, 50, &name);
        watches.end_input();
        assert_eq!(
            watches.json(Duration::from_secs(20))["ended"],
            0,
            "{route:?}"
        );
    }
}

#[test]
fn get_succeeds_with_more_open_watches_than_streams() {
    let Some(suite) = alone() else { return };
    for route in [Route::Direct, Route::Proxied] {
        let name = format!("watched-by-many-{}", route.name());
        let mut watches = open_watches(&suite, route, 120, &name);
        assert_all_receive_an_event(&suite, route, &watches, 120, &name);
        watches.end_input();
        assert_eq!(
            watches.json(Duration::from_secs(20))["ended"],
            0,
            "{route:?}"
        );
    }
}

/// Opens watches of the `ConfigMap` `name` with one client, and asserts that a GET of the same client is
/// fast.
#[track_caller]
fn open_watches(suite: &Suite, route: Route, count: usize, name: &str) -> Running {
    let mut command = suite.raw_client("watches", route, &suite.credential());
    command.args(["-count", &count.to_string(), "-name", name]);
    let watches = Running::start(command);
    let output: Value = watches.json(Duration::from_mins(2));
    eprintln!("{route:?}: {output}");
    assert_eq!(output["open"], count, "{route:?} {output}");
    assert_eq!(output["get"], 200, "{route:?} {output}");
    assert!(
        output["getMillis"].as_u64().unwrap() < 1000,
        "{route:?} {output}"
    );
    watches
}

#[track_caller]
fn assert_all_receive_an_event(
    suite: &Suite,
    route: Route,
    watches: &Running,
    count: usize,
    name: &str,
) {
    Kubectl::new(suite, route)
        .run(&["create", "configmap", name])
        .ok();
    assert_eq!(
        watches.json(Duration::from_secs(20))["seen"],
        count,
        "{route:?}"
    );
}

fn hammer(suite: &Suite, route: Route, token: &str) -> Running {
    let mut command = suite.raw_client("hammer", route, &Credential::token(token));
    command.args(["-rate", "50", "-count", &HAMMER_COUNT.to_string()]);
    Running::start(command)
}

const HAMMER_COUNT: usize = 300;
