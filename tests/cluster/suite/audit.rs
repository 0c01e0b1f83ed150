//! The source addresses and the user of a request in the apiserver's audit log.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use standin::haproxy::HaProxy;

use crate::process::run;
use crate::suite::{Credential, Route, Server, Suite, shared};

#[test]
fn audit_shows_client_and_proxy_and_no_spoofed_address() {
    let Some(suite) = shared() else { return };
    for protocol in ["-http1=true", "-http1=false"] {
        let mut fetch = suite.raw_client("fetch", Route::Proxied, &suite.credential());
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

/// The proxy reads the name of a service account from its token, and the apiserver verifies the token. A token with the same
/// claims and a wrong signature has no name, in either log.
#[test]
fn audit_log_and_access_log_name_the_same_user() {
    let Some(suite) = shared() else { return };
    let flags = ["--log-user", "subject", "--drain-delay", "0s"];
    let proxy = suite.another_proxy(&suite.upstream(), &flags);
    let token = suite.fixture.token();
    let (claims, signature) = token.rsplit_once('.').unwrap();
    let reversed: String = signature.chars().rev().collect();
    let forged = format!("{claims}.{reversed}");
    let paths = [
        ("/api/v1/namespaces/suite/pods/quiet", token, 200),
        ("/api/v1/namespaces/suite/pods/named", token, 404),
        ("/api/v1/namespaces/suite/pods/forged", &forged, 401),
    ];
    for (path, token, _) in paths {
        let credential = Credential::token(token);
        let mut fetch = suite.raw_client_of("fetch", &proxy.server(), &credential);
        fetch.args(["-path", path]);
        run(fetch, Vec::new(), Duration::from_secs(30)).ok();
    }
    let log = proxy.stop();
    for (path, _, status) in paths {
        let event = event_of(&suite, path);
        assert_eq!(event["responseStatus"]["code"], status, "{event}");
        let line = log.lines().find(|line| line.contains(path)).unwrap();
        let id = line
            .split_once("enduser.id=")
            .map(|(_, rest)| rest.split(' ').next().unwrap());
        let expected = (status != 401).then_some("system:serviceaccount:suite:admin");
        assert_eq!(id, expected, "{line}");
        assert_eq!(event["user"]["username"].as_str(), expected, "{event}");
    }
}

/// HAProxy with each version of the PROXY header, and an HTTP proxy that writes `X-Forwarded-For`.
#[test]
fn audit_shows_client_that_balancer_or_trusted_proxy_names() {
    let Some(suite) = shared() else { return };
    let from = |flag| suite.another_proxy(&suite.upstream(), &[flag, "127.0.0.1"]);
    let (named, trusting) = (from("--proxy-protocol-from"), from("--trusted-proxies"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let fetch = |server: &Server, path: &str, more: &[&str]| {
        let mut fetch = suite.raw_client_of("fetch", server, &suite.credential());
        fetch.args(["-path", path]);
        fetch.args(more);
        run(fetch, Vec::new(), Duration::from_secs(30)).ok();
        event_of(&suite, path)["sourceIPs"].clone()
    };
    let dir = standin::TempDir::new();
    for options in ["send-proxy", "send-proxy-v2"] {
        let started = HaProxy::start(
            &dir,
            [127, 0, 0, 1].into(),
            ([127, 0, 0, 1], named.port()).into(),
            options,
        );
        let Some(haproxy) = runtime.block_on(started) else {
            return;
        };
        let server = Server {
            url: format!("https://localhost:{}", haproxy.address.port()),
            ..named.server()
        };
        for protocol in ["-http1=true", "-http1=false"] {
            let path = format!("/api/v1/namespaces/default/configmaps/{options}{protocol}");
            let spoofed = ["-header", "X-Forwarded-For: 6.6.6.6"];
            let more = [&[protocol, "-from", CLIENT][..], &spoofed].concat();
            let sources = fetch(&server, &path, &more);
            assert_eq!(sources, serde_json::json!([CLIENT, "127.0.0.1"]));
        }
    }
    for protocol in ["-http1=true", "-http1=false"] {
        let path = format!("/api/v1/namespaces/default/configmaps/trusted{protocol}");
        let headers = ["-header", "X-Forwarded-For: 6.6.6.6, 198.51.100.7"];
        let more = [&[protocol][..], &headers].concat();
        let sources = fetch(&trusting.server(), &path, &more);
        assert_eq!(sources, serde_json::json!(["198.51.100.7", "127.0.0.1"]));
    }
}

/// Waits for the audit event of a request. The apiserver may write it shortly after the response.
#[track_caller]
pub(crate) fn event_of(suite: &Suite, path: &str) -> Value {
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
