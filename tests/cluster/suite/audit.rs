//! The source addresses of a request in the apiserver's audit log.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::run;
use crate::suite::{Route, Suite, shared};

#[test]
fn audit_shows_client_and_proxy_and_no_spoofed_address() {
    let Some(suite) = shared() else { return };
    for protocol in ["-http1=true", "-http1=false"] {
        let mut fetch = suite.raw_client("fetch", Route::Proxied, suite.fixture.token());
        let path = format!("/api/v1/namespaces/default/configmaps/audited{protocol}");
        fetch.args(["-path", &path, protocol]);
        // The client uses another address than the proxy, so that the log shows which is which.
        fetch.args(["-from", CLIENT]);
        for header in [
            "X-Forwarded-For: 6.6.6.6",
            "X-Forwarded-For: 7.7.7.7",
            "X-Real-Ip: 8.8.8.8",
        ] {
            fetch.args(["-header", header]);
        }
        run(fetch, Vec::new(), Duration::from_secs(30)).ok();
        let event = event_of(&suite, &path);
        assert_eq!(
            event["sourceIPs"],
            serde_json::json!([CLIENT, "127.0.0.1"]),
            "{event}"
        );
    }
}

/// Waits for the audit event of a request. The apiserver may write it shortly after the response.
#[track_caller]
fn event_of(suite: &Suite, path: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let log = fs::read_to_string(suite.fixture.audit()).unwrap();
        let found = log
            .lines()
            .filter(|line| line.contains(path))
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|event| event["requestURI"] == path);
        if let Some(event) = found {
            return event;
        }
        assert!(Instant::now() < deadline, "no audit event for {path}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// On Linux every loopback address works without configuration.
const CLIENT: &str = "127.0.0.2";
