//! The source addresses and the user of a request in the apiserver's audit log.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use standin::haproxy::HaProxy;

use crate::suite::{Credential, Route, Server, Suite, shared};

#[test]
fn audit_shows_client_and_proxy_and_no_spoofed_address() {
    let Some(suite) = shared() else { return };
    let server = suite.server(Route::Proxied);
    for protocol in ["-http1=true", "-http1=false"] {
        let path = format!("/api/v1/namespaces/default/configmaps/audited{protocol}");
        // The client uses another address than the proxy, so that the log shows which is which.
        let mut flags = vec![protocol, "-from", CLIENT];
        for header in [
            "X-Forwarded-For: 6.6.6.6",
            "X-Forwarded-For: 7.7.7.7",
            "X-Real-Ip: 8.8.8.8",
        ] {
            flags.extend(["-header", header]);
        }
        suite.fetch(&server, &suite.credential(), &path, &flags);
        let event = event_of(&suite, &path);
        assert_eq!(
            event["sourceIPs"],
            serde_json::json!([CLIENT, "127.0.0.1"]),
            "{event}"
        );
    }
}

/// The proxy reads the name of a service account from its token, and the apiserver verifies the token. A token with the
/// same claims and a wrong signature has no name, in either log.
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
        suite.fetch(&proxy.server(), &Credential::token(token), path, &[]);
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

/// Case 28. In the audit log the user is that of the credential, whatever fields the client adds.
#[test]
fn audit_names_owner_of_credential_despite_forged_fields() {
    let Some(suite) = shared() else { return };
    let server = suite.server(Route::Proxied);
    let spellings = [
        ["X-Remote-User: fixture", "X-Remote-Group: system:masters"],
        ["x-remote-user: fixture", "x-remote-group: system:masters"],
        ["X-REMOTE-USER: fixture", "X-REMOTE-GROUP: system:masters"],
        ["X-Remote-Uid: 0", "X-Remote-Extra-Scopes: all"],
        ["x_remote_user: fixture", "X_Remote_Group: system:masters"],
        ["X-Remote-User: fixture", "Connection: X-Remote-Group"],
        [
            "X-Remote-Group: system:masters",
            "Connection: X-Remote-User",
        ],
    ];
    let credentials = [
        (suite.credential(), suite.way.user()),
        (
            Credential::token(suite.fixture.token()),
            "system:serviceaccount:suite:admin",
        ),
        (Credential::token(""), "system:anonymous"),
    ];
    for (number, (credential, user)) in credentials.iter().enumerate() {
        for (spelling, fields) in spellings.iter().enumerate() {
            for protocol in ["-http1=true", "-http1=false"] {
                // HTTP/2 has no field `Connection`.
                if protocol == "-http1=false" && fields[1].starts_with("Connection") {
                    continue;
                }
                let name = format!("forged-{number}-{spelling}{protocol}");
                let path = format!("/api/v1/namespaces/suite/configmaps/{name}");
                let flags = [protocol, "-header", fields[0], "-header", fields[1]];
                suite.fetch(&server, credential, &path, &flags);
                let event = event_of(&suite, &path);
                let seen = user_of(&event);
                assert_eq!(seen["username"], *user, "{fields:?} {event}");
                let seen = seen.to_string();
                for forged in ["fixture", "system:masters", "scopes", r#""uid":"0""#] {
                    assert!(!seen.contains(forged), "{fields:?} {event}");
                }
            }
        }
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
        suite.fetch(server, &suite.credential(), path, more);
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

/// As whom the apiserver served a request: a proxy may have impersonated its user.
pub(crate) fn user_of(event: &Value) -> &Value {
    event
        .get("impersonatedUser")
        .unwrap_or_else(|| &event["user"])
}

/// On Linux every loopback address works without configuration.
const CLIENT: &str = "127.0.0.2";
