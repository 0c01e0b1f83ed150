//! What one client does must not be felt by another, and many watches must not starve a client.

use std::time::Duration;

use serde_json::Value;

use crate::kubectl::Kubectl;
use crate::process::Running;
use crate::suite::{Route, Suite, alone};

#[test]
fn unauthenticated_requests_end_no_watch_of_another_client() {
    let Some(suite) = alone() else { return };
    for route in [Route::Direct, Route::Proxied] {
        let name = format!("beside-the-hammer-{}", route.name());
        let mut watches = open_watches(&suite, route, 50, &name);
        // The apiserver answers each of these requests with a GOAWAY on its connection.
        let anonymous = hammer(&suite, route, "");
        let bad_token = hammer(&suite, route, "bad");
        for (hammer, status) in [(anonymous, "200"), (bad_token, "401")] {
            let said = hammer.json(Duration::from_mins(1));
            let tally = &said["tally"];
            assert_eq!(tally["status"][status], HAMMER_COUNT, "{route:?} {said}");
            assert_eq!(
                tally["protocols"]["HTTP/2.0"], HAMMER_COUNT,
                "{route:?} {said}"
            );
        }
        all_see_an_event(&suite, route, &watches, 50, &name);
        watches.end_input();
        assert_eq!(
            watches.json(Duration::from_secs(20))["ended"],
            0,
            "{route:?}"
        );
    }
}

#[test]
fn get_is_answered_beside_more_watches_than_streams() {
    let Some(suite) = alone() else { return };
    for route in [Route::Direct, Route::Proxied] {
        let name = format!("watched-by-many-{}", route.name());
        let mut watches = open_watches(&suite, route, 120, &name);
        all_see_an_event(&suite, route, &watches, 120, &name);
        watches.end_input();
        assert_eq!(
            watches.json(Duration::from_secs(20))["ended"],
            0,
            "{route:?}"
        );
    }
}

/// Opens watches of the `ConfigMap` `name` on one client, and asserts that a GET of the same client
/// is answered soon.
#[track_caller]
fn open_watches(suite: &Suite, route: Route, count: usize, name: &str) -> Running {
    let mut command = suite.raw_client("watches", route, suite.fixture.token());
    command.args(["-count", &count.to_string(), "-name", name]);
    let watches = Running::start(command);
    let said: Value = watches.json(Duration::from_mins(2));
    eprintln!("{route:?}: {said}");
    assert_eq!(said["open"], count, "{route:?} {said}");
    assert_eq!(said["get"], 200, "{route:?} {said}");
    assert!(
        said["getMillis"].as_u64().unwrap() < 1000,
        "{route:?} {said}"
    );
    watches
}

#[track_caller]
fn all_see_an_event(suite: &Suite, route: Route, watches: &Running, count: usize, name: &str) {
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
    let mut command = suite.raw_client("hammer", route, token);
    command.args(["-rate", "50", "-count", &HAMMER_COUNT.to_string()]);
    Running::start(command)
}

const HAMMER_COUNT: usize = 300;
