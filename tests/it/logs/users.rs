//! Whose name the log and the status page show: that of a user whose token the apiserver has accepted, and no other.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use standin::upstream::{RequestBody, ResponseBody, Upstream, api, empty};
use tokio::time::{Instant, sleep};

use super::{event, events};
use crate::{
    admin::{get, scrape},
    binary::Binary,
    proxy::{HOST, World},
    upgrades::{SPDY, WEBSOCKET},
};

const WATCH: &str = "/api/v1/namespaces/default/pods";
const EXEC: &str = "/api/v1/namespaces/default/pods/p/exec";
const ISSUER: &str = "https://login.test";

/// A token that [`apiserver`] accepts.
fn good(claims: &Value) -> String {
    signed(claims, "Z29vZA")
}

/// A token that [`apiserver`] refuses, as it refuses every token with a wrong signature.
fn forged(subject: &str) -> String {
    signed(&json!({"iss": ISSUER, "sub": subject}), "YmFk")
}

fn signed(claims: &Value, signature: &str) -> String {
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    format!("e30.{payload}.{signature}")
}

fn user(subject: &str) -> String {
    good(&json!({"iss": ISSUER, "sub": subject}))
}

/// The subprotocol with this token.
fn subprotocol(token: &str) -> String {
    let token = URL_SAFE_NO_PAD.encode(token);
    format!("base64url.bearer.authorization.k8s.io.{token}")
}

/// The request for an exec over WebSocket with these credentials.
fn exec(bearer: Option<&str>, protocol: Option<&str>) -> String {
    let authorization = bearer.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let request = WEBSOCKET.replace(
        "Authorization: Bearer t\r\n",
        &authorization.unwrap_or_default(),
    );
    let protocol = protocol.map(|token| format!(", {}", subprotocol(token)));
    request.replace(
        "v5.channel.k8s.io",
        &format!("v5.channel.k8s.io{}", protocol.unwrap_or_default()),
    )
}

/// The tokens that kube-apiserver tries, one after the other: that of the first `Authorization`, and on a WebSocket
/// upgrade that of the subprotocol.
fn tokens(headers: &HeaderMap) -> Vec<String> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let mut words = value.split(' ');
        let is_bearer = words.next()?.eq_ignore_ascii_case("bearer");
        words.next().filter(|token| is_bearer && !token.is_empty())
    });
    let upgrade = text(header::UPGRADE).filter(|token| token.eq_ignore_ascii_case("websocket"));
    let protocols = upgrade
        .and_then(|_| text(header::SEC_WEBSOCKET_PROTOCOL))
        .unwrap_or_default();
    let encoded = protocols
        .split(", ")
        .filter_map(|item| item.split_once(".authorization.k8s.io."));
    let decoded = encoded.map(|(_, token)| URL_SAFE_NO_PAD.decode(token).unwrap());
    let decoded = decoded.map(|token| String::from_utf8(token).unwrap());
    bearer
        .map(str::to_owned)
        .into_iter()
        .chain(decoded)
        .collect()
}

/// Like kube-apiserver: serves a request with a good token or without one, and answers a preflight request before it
/// looks at tokens.
async fn apiserver(request: Request<RequestBody>) -> Response<ResponseBody> {
    let tokens = tokens(request.headers());
    let is_known = tokens.is_empty() || tokens.iter().any(|token| token.ends_with(".Z29vZA"));
    let is_preflight = request.method() == "OPTIONS";
    let status = if is_preflight {
        Some(StatusCode::NO_CONTENT)
    } else if !is_known {
        Some(StatusCode::UNAUTHORIZED)
    } else if request.uri().path() == "/forbidden" {
        Some(StatusCode::FORBIDDEN)
    } else {
        None
    };
    let mut response = match status {
        Some(status) => Response::builder().status(status).body(empty()).unwrap(),
        None => api(request).await,
    };
    let audit = HeaderValue::from_static("7c3b");
    response.headers_mut().insert("audit-id", audit);
    response
}

async fn start(world: &World, more: &[&str]) -> (Upstream, Binary) {
    let upstream = world.apiserver().http(apiserver).start().await;
    let flags = ["--log-format", "json"].iter().chain(more).copied();
    let flags: Vec<&str> = flags.collect();
    let binary = Binary::start(world, upstream.address(), &flags).await;
    (upstream, binary)
}

/// Id and issuer in a line.
fn shown(line: &Value) -> [Option<&str>; 2] {
    ["enduser.id", "enduser.issuer"].map(|field| line.get(field).map(|text| text.as_str().unwrap()))
}

#[tokio::test]
async fn accepted_user_is_in_the_line_over_both_protocols() {
    let world = World::new();
    let (_upstream, binary) = start(&world, &["--log-user", "subject"]).await;
    let account = good(&json!({
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:ci:deployer",
        "kubernetes.io": {"namespace": "ci", "serviceaccount": {"name": "deployer", "uid": "1"}},
    }));
    let jane = [Some("jane@example.com"), Some(ISSUER)];
    let deployer = [
        Some("system:serviceaccount:ci:deployer"),
        Some("https://kubernetes.default.svc"),
    ];
    let http2 = binary.client(&world).http2().await;
    let mut http1 = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    let tokens = [
        (user("jane@example.com"), jane),
        (account, deployer),
        (good(&json!({"sub": "jane"})), [Some("jane"), None]),
        (good(&json!({"iss": ISSUER})), [None, None]),
        ("opaque.Z29vZA".to_owned(), [None, None]),
    ];
    // Twice: the second time the connection knows the tokens.
    for (number, (token, expected)) in tokens.iter().chain(&tokens).enumerate() {
        let path = format!("/h2/{number}");
        let request = Request::get(format!("https://{HOST}{path}"));
        let request = request.header("authorization", format!("Bearer {token}"));
        let response = http2
            .request(request.body(bytes::Bytes::new()).unwrap())
            .await;
        assert_eq!(response.unwrap().status, 200);
        assert_eq!(
            shown(&event(&binary, "request", &path).await),
            *expected,
            "{path}"
        );
        let path = format!("/h1/{number}");
        let line = format!("Authorization: bEARER {token} ignored\r\n");
        assert_eq!(http1.get(HOST, &path, &line).await.status, 200);
        assert_eq!(
            shown(&event(&binary, "request", &path).await),
            *expected,
            "{path}"
        );
    }
    // The apiserver has accepted the token and refuses the request.
    let line = format!("Authorization: Bearer {}\r\n", user("jane"));
    assert_eq!(http1.get(HOST, "/forbidden", &line).await.status, 403);
    let line = event(&binary, "request", "/forbidden").await;
    assert_eq!(shown(&line)[0], Some("jane"));
}

/// Any client can write any name into a token.
#[tokio::test]
async fn name_in_a_token_that_was_not_accepted_is_not_shown() {
    let world = World::new();
    let flags = ["--log-user", "subject", "--admin-listen", "127.0.0.1:0"];
    let (upstream, binary) = start(&world, &flags).await;
    let (mallory, jane) = (forged("mallory"), user("jane"));
    let http1 = binary.client(&world).alpn(&["http/1.1"]);
    let protocol = subprotocol(&mallory);
    let ordinary = format!("Sec-WebSocket-Protocol: v4.channel.k8s.io, {protocol}\r\n");
    for (number, (lines, status)) in [
        (format!("Authorization: Bearer {mallory}\r\n"), 401),
        (
            format!("Authorization: Bearer {jane}\r\nAuthorization: Bearer {mallory}\r\n"),
            200,
        ),
        (ordinary, 200),
        (format!("Authorization: Bearer  {mallory}\r\n"), 200),
        (format!("Authorization: Bearer\t{mallory}\r\n"), 200),
        (format!("Authorization: Token {mallory}\r\n"), 200),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/ordinary/{number}");
        let response = http1.http1().await.get(HOST, &path, &lines).await;
        assert_eq!(response.status, status, "{lines}");
        assert_eq!(
            shown(&event(&binary, "request", &path).await),
            [None, None],
            "{lines}"
        );
    }
    let http2 = binary.client(&world).http2().await;
    let preflight = Request::options(format!("https://{HOST}/preflight"));
    let preflight = preflight.header("authorization", format!("Bearer {mallory}"));
    let response = http2
        .request(preflight.body(bytes::Bytes::new()).unwrap())
        .await;
    assert_eq!(response.unwrap().status, 204);
    assert_eq!(
        shown(&event(&binary, "request", "/preflight").await),
        [None, None]
    );
    // The apiserver refuses the watch and the first upgrades. It accepts one of two tokens, and does not say which. No
    // `Connection` line removes the token of the last upgrade.
    let refused = exec(Some(&mallory), None);
    let spdy = SPDY.replace("Bearer t", &format!("Bearer {mallory}"));
    let kept = exec(None, Some(&mallory)).replace(
        "Connection: Upgrade",
        "Connection: Upgrade, Sec-WebSocket-Protocol",
    );
    for (path, request, status) in [
        (
            WATCH,
            format!(
                "GET {WATCH}?watch=1 HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {mallory}\r\n\r\n"
            ),
            401,
        ),
        ("/exec/0", refused, 401),
        ("/exec/1", exec(None, Some(&mallory)), 401),
        ("/exec/2", spdy, 401),
        ("/exec/3", exec(Some(&mallory), Some(&jane)), 101),
        ("/exec/4", exec(Some(&jane), Some(&mallory)), 101),
        ("/exec/5", kept, 401),
    ] {
        let mut client = http1.http1().await;
        client.send(request.replace(EXEC, path)).await;
        assert_eq!(client.head().await.unwrap().status, status, "{path}");
        if status == 101 {
            assert_eq!(
                shown(&event(&binary, "tunnel started", path).await),
                [None, None],
                "{path}"
            );
        }
        drop(client);
        assert_eq!(
            shown(&event(&binary, "request", path).await),
            [None, None],
            "{path}"
        );
    }
    let status = get(binary.admin().await, "/status.json").await.text();
    for text in binary.stderr().iter().chain([&status]) {
        assert!(
            !text.contains("mallory") && !text.contains("jane"),
            "{text}"
        );
    }
    assert!(upstream.requests().len() >= 13);
}

#[tokio::test]
async fn watches_and_tunnels_name_their_user() {
    let world = World::new();
    let flags = ["--log-user", "subject", "--admin-listen", "127.0.0.1:0"];
    let (_upstream, binary) = start(&world, &flags).await;
    let http1 = binary.client(&world).alpn(&["http/1.1"]);
    let mut watch = http1.http1().await;
    let token = user("jane");
    watch
        .send(format!(
            "GET {WATCH}?watch=1 HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n\r\n"
        ))
        .await;
    assert_eq!(watch.head().await.unwrap().status, 200);
    let jane = [Some("jane"), Some(ISSUER)];
    assert_eq!(shown(&event(&binary, "stream started", WATCH).await), jane);
    let mut tunnels = Vec::new();
    for (path, request) in [
        ("/by-header", exec(Some(&token), None)),
        ("/by-protocol", exec(None, Some(&token))),
        (
            "/by-spdy",
            SPDY.replace("Bearer t", &format!("Bearer {token}")),
        ),
    ] {
        let mut tunnel = http1.http1().await;
        tunnel.send(request.replace(EXEC, path)).await;
        assert_eq!(tunnel.head().await.unwrap().status, 101);
        let line = event(&binary, "tunnel started", path).await;
        assert_eq!(shown(&line), jane, "{path}");
        tunnels.push((path, tunnel));
    }
    let admin = binary.admin().await;
    let status: Value = serde_json::from_slice(&get(admin, "/status.json").await.body).unwrap();
    for (list, rows) in [("open_watches", 1), ("open_tunnels", 3)] {
        let list = status[list].as_array().unwrap();
        assert_eq!(list.len(), rows);
        for row in list {
            assert_eq!(
                (&row["user"], &row["issuer"]),
                (&"jane".into(), &ISSUER.into())
            );
        }
    }
    let numbers = scrape(admin).await.text;
    assert!(
        !numbers.contains("jane") && !numbers.contains("login.test"),
        "a label names the user"
    );
    drop(watch);
    assert_eq!(shown(&event(&binary, "request", WATCH).await), jane);
    for (path, tunnel) in tunnels {
        drop(tunnel);
        assert_eq!(shown(&event(&binary, "request", path).await), jane);
    }
}

/// The name of a user is text of a stranger, too: an identity provider lets users choose it.
#[tokio::test]
async fn hostile_names_are_escaped_and_short() {
    let world = World::new();
    for format in ["json", "text"] {
        let flags = [
            "--log-format",
            format,
            "--log-user=subject",
            "--admin-listen=127.0.0.1:0",
        ];
        let upstream = world.apiserver().http(apiserver).start().await;
        let binary = Binary::start(&world, upstream.address(), &flags).await;
        let long = "x".repeat(10_000);
        let names = [
            "a\nlevel=error forged=yes\r\n{\"message\":\"forged\"}\u{1b}[2J\u{202e}".to_owned(),
            long.clone(),
            format!("{}\u{9b}", "\n".repeat(5_000)),
        ];
        let mut open = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let issuer: String = name.chars().take(1_000).collect();
            let token = good(&json!({"iss": issuer, "sub": name}));
            let mut watch = binary.client(&world).alpn(&["http/1.1"]).http1().await;
            watch
                .send(format!(
                    "GET /api/v1/things{number}?watch=1 HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n\r\n"
                ))
                .await;
            assert_eq!(watch.head().await.unwrap().status, 200);
            let line = binary
                .wait_for_line(&format!("/api/v1/things{number}"))
                .await;
            assert!(line.contains("enduser.id"), "{line}");
            assert!(line.len() < 2_000, "{} bytes", line.len());
            let is_odd = |char: char| char.is_control() || char == '\u{202e}';
            assert!(!line.contains(is_odd), "{line:?}");
            open.push(watch);
        }
        let forged = |line: &String| {
            line.starts_with("level=error") || line.starts_with("{\"message\":\"forged")
        };
        assert!(!binary.stderr().iter().any(forged));
        let status = get(binary.admin().await, "/status.json").await.text();
        assert!(
            status.len() < 20_000 && !status.contains(&long[..300]),
            "{}",
            status.len()
        );
        assert!(status.contains("a\\\\nlevel=error"), "{status}");
        drop(open);
    }
}

#[tokio::test]
async fn reload_changes_how_users_are_shown() {
    let world = World::new();
    let write = |user: &str| {
        let text = format!("timeouts: {{reload: 1h}}\nlog: {{format: json, user: {user}}}\n");
        world.dir.write("log.yaml", text)
    };
    let config = write("off");
    let upstream = world.apiserver().http(apiserver).start().await;
    let flags = ["--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    let line = format!("Authorization: Bearer {}\r\n", user("jane"));
    for (reloads, (setting, expected)) in [
        ("off", None),
        ("subject", Some("jane")),
        ("hash", Some("sha256:81f8f6dde88365f3")),
        ("false", None),
    ]
    .into_iter()
    .enumerate()
    {
        if reloads > 0 {
            write(setting);
            binary.signal("HUP").await;
            let is_reload =
                |event: &&Value| event["message"] == "configuration and certificates reloaded";
            let deadline = Instant::now() + standin::WAIT;
            while events(&binary).iter().filter(is_reload).count() < reloads {
                assert!(Instant::now() < deadline, "{:#?}", binary.stderr());
                sleep(Duration::from_millis(20)).await;
            }
        }
        let path = format!("/{setting}");
        assert_eq!(client.get(HOST, &path, &line).await.status, 200);
        let line = event(&binary, "request", &path).await;
        assert_eq!(shown(&line)[0], expected, "{setting}");
        assert_eq!(shown(&line)[1].is_some(), expected.is_some());
    }
    assert!(
        !binary
            .stderr()
            .iter()
            .any(|line| line.contains("need a restart"))
    );
}

#[tokio::test]
async fn status_page_names_users_without_an_access_log() {
    let world = World::new();
    let flags = ["--no-access-log", "--admin-listen", "127.0.0.1:0"];
    let upstream = world.apiserver().http(apiserver).start().await;
    for (setting, expected) in [("subject", json!("jane")), ("off", Value::Null)] {
        let environment = [("KUBE_TLS_PROXY_LOG_USER", setting)];
        let binary = Binary::start_with(&world, upstream.address(), &flags, &environment).await;
        let mut tunnel = binary.client(&world).alpn(&["http/1.1"]).http1().await;
        tunnel.send(exec(Some(&user("jane")), None)).await;
        assert_eq!(tunnel.head().await.unwrap().status, 101);
        let status = get(binary.admin().await, "/status.json").await.body;
        let status: Value = serde_json::from_slice(&status).unwrap();
        assert_eq!(status["open_tunnels"][0]["user"], expected);
        assert!(!binary.stderr().iter().any(|line| line.contains("jane")));
    }
}
