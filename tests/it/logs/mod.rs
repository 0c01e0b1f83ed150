//! The contents of the log, and what it must never contain.

mod control;
mod endings;
mod failures;
mod users;

use std::net::SocketAddr;

use http::{Request, Response, StatusCode};
use serde_json::Value;
use standin::{
    tcp,
    upstream::{RequestBody, ResponseBody, channel, full},
};

use crate::{
    binary::Binary,
    proxy::{HOST, World},
    upgrades::{WEBSOCKET, echo},
};

/// Part of every secret in these tests.
const CANARY: &str = "Canary5ecret";

/// Starts the binary with a JSON log and this filter.
pub(crate) async fn start(world: &World, upstream: SocketAddr, filter: &str) -> Binary {
    Binary::start(
        world,
        upstream,
        &["--log-format", "json", "--log-level", filter],
    )
    .await
}

/// All events so far. Every line is one JSON object.
pub(crate) fn events(binary: &Binary) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
    binary.stderr().iter().map(parse).collect()
}

/// Waits for the event with this message and this path.
pub(crate) async fn event(binary: &Binary, message: &str, path: &str) -> Value {
    let find = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        (event["message"] == message && event["url.path"] == path).then_some(event)
    };
    binary.wait_for(&format!("{message} {path}"), find).await
}

fn secret_lines() -> String {
    format!(
        "Authorization: Bearer {CANARY}\r\nCookie: session={CANARY}\r\nImpersonate-User: {CANARY}\r\n\
         Impersonate-Group: {CANARY}\r\nImpersonate-Extra-{CANARY}: {CANARY}\r\nX-Remote-User: {CANARY}\r\n\
         Proxy-Authorization: Basic {CANARY}\r\nX-Secret: {CANARY}\r\n"
    )
}

async fn answer(request: Request<RequestBody>) -> Response<ResponseBody> {
    if request.uri().path() == "/401" {
        let response = Response::builder().status(StatusCode::UNAUTHORIZED);
        let response = response.header("Set-Cookie", format!("session={CANARY}"));
        return response.body(full(CANARY)).unwrap();
    }
    echo(request).await
}

/// Sends every kind of secret in every kind of request that is logged.
async fn send_secrets(world: &World, binary: &Binary) {
    let lines = secret_lines();
    let http1 = binary.client(world).alpn(&["http/1.1"]);
    for path in ["/version", "/401"] {
        let mut client = http1.http1().await;
        client
            .get(HOST, &format!("{path}?token={CANARY}"), &lines)
            .await;
    }
    // Refused requests: unknown host, two lengths, malformed field, unsupported expectation.
    for (host, more) in [
        ("unknown.test", ""),
        (HOST, "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
        (HOST, "Broken Field\r\n"),
        (HOST, "Expect: Canary5ecret\r\n"),
    ] {
        let mut client = http1.http1().await;
        let target = format!("/refused?token={CANARY}");
        client.get(host, &target, &format!("{lines}{more}")).await;
    }
    let mut aborted = http1.http1().await;
    aborted
        .send(format!(
            "GET /cut?token={CANARY} HTTP/1.1\r\nHost: {HOST}\r\n{lines}"
        ))
        .await;
    aborted.into_parts().0.reset();

    let mut exec = http1.http1().await;
    let protocol = format!("base64url.bearer.authorization.k8s.io.{CANARY}, v5.channel.k8s.io");
    let request = WEBSOCKET.replace("v5.channel.k8s.io", &protocol);
    exec.send(request.replace("command=ls", &format!("command={CANARY}")))
        .await;
    exec.head().await.unwrap();
    exec.send(CANARY).await;
    drop(exec);

    let http2 = binary.client(world).http2().await;
    for path in ["/version", "/401"] {
        let mut request = Request::post(format!("https://{HOST}{path}?token={CANARY}"));
        for line in lines.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let body = bytes::Bytes::from(format!("token={CANARY}"));
        http2.request(request.body(body).unwrap()).await.unwrap();
    }
}

/// Case 39. The log contains no token, cookie, identity, query or body, over both protocols and for every kind of
/// failure, even with all libraries at level trace.
#[tokio::test]
async fn log_contains_no_secret_with_any_filter() {
    let world = World::new();
    let upstream = world.apiserver().http(answer).start().await;
    let dead = tcp::refused().await;
    let everything = "trace,h2=trace,h2::codec=trace,h2::proto=trace,hyper=trace,hyper::proto=trace,\
                      hyper_util=trace,rustls=trace,tokio_rustls=trace,kube_tls_proxy=trace";
    for (address, filter) in [
        (upstream.address(), "trace"),
        (upstream.address(), everything),
        (dead, everything),
    ] {
        let mut binary = start(&world, address, filter).await;
        send_secrets(&world, &binary).await;
        event(&binary, "request", "/401").await;
        binary.signal("TERM").await;
        assert_eq!(binary.exit_code().await, Some(0));
        binary.wait_for_line("stopped").await;
        for event in events(&binary) {
            let text = event.to_string();
            assert!(!text.contains(CANARY), "{text}");
            let target = event["target"].as_str().unwrap();
            assert!(target.starts_with("kube_tls_proxy"), "{text}");
        }
    }
}

#[tokio::test]
async fn each_request_is_one_line_with_all_fields() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|request| async {
            drop(request.into_body().read().await);
            let response = Response::builder().status(StatusCode::CREATED);
            response
                .header("Audit-Id", "7c3b")
                .body(full("created"))
                .unwrap()
        })
        .start()
        .await;
    let binary = start(&world, upstream.address(), "info").await;
    let path = "/api/v1/namespaces/default/pods";

    let mut client = binary.client(&world).http1().await;
    let address = client.stream().tcp().local_addr().unwrap().to_string();
    client
        .send(format!(
            "POST {path}?fieldManager=x HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: kubectl/v1.36\r\n\
             X-Request-Id: from-client\r\nContent-Length: 5\r\n\r\nhello"
        ))
        .await;
    assert_eq!(client.response().await.status, 201);
    let line = event(&binary, "request", path).await;
    for (field, value) in [
        ("level", Value::from("INFO")),
        ("http.request.method", "POST".into()),
        ("url.path", path.into()),
        ("http.response.status_code", 201.into()),
        ("k8s.verb", "create".into()),
        ("k8s.resource", "pods".into()),
        ("k8s.namespace", "default".into()),
        ("k8s.audit_id", "7c3b".into()),
        ("cluster", "default".into()),
        ("user_agent.original", "kubectl/v1.36".into()),
        ("http.request.id", "from-client".into()),
        ("url.domain", HOST.into()),
        ("upstream.address", upstream.address().to_string().into()),
        ("upstream.reused", false.into()),
        ("client.address", address.into()),
        ("network.protocol.version", "1.1".into()),
        ("received_bytes", 5.into()),
        ("sent_bytes", 7.into()),
        ("outcome", "complete".into()),
        ("ended_by", "apiserver".into()),
        ("reason", "eof".into()),
    ] {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    let (head, whole) = (
        line["time_to_headers_seconds"].as_f64(),
        line["duration_seconds"].as_f64(),
    );
    assert!(
        head.unwrap() > 0.0 && whole.unwrap() >= head.unwrap(),
        "{line}"
    );

    let http2 = binary.client(&world).http2().await;
    for path in ["/version", "/api/v1/nodes/n"] {
        let url = format!("https://{HOST}{path}");
        http2.get(&url).await.unwrap();
    }
    let line = event(&binary, "request", "/version").await;
    assert_eq!(line["upstream.reused"], false);
    for field in [
        "k8s.resource",
        "k8s.namespace",
        "user_agent.original",
        "suppressed_lines",
    ] {
        assert!(line.get(field).is_none(), "{field} has no value: {line}");
    }
    let line = event(&binary, "request", "/api/v1/nodes/n").await;
    assert_eq!(line["network.protocol.version"], "2");
    assert_eq!(
        (&line["url.domain"], &line["upstream.reused"]),
        (&HOST.into(), &true.into())
    );
    assert_eq!(
        (&line["k8s.verb"], &line["k8s.resource"]),
        (&"get".into(), &"nodes".into())
    );
    let of_requests = |event: &&Value| event["message"] == "request";
    assert_eq!(events(&binary).iter().filter(of_requests).count(), 3);
}

/// The path is logged as the client wrote it. Resource and namespace are those that the apiserver serves.
#[tokio::test]
async fn encoded_path_is_logged_with_its_real_resource() {
    let world = World::new();
    let upstream = world.apiserver().http(echo).start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let path = "/api/v1/namespaces/suite%2F%63onfigmaps/c";
    let http2 = binary.client(&world).http2().await;
    http2.get(&format!("https://{HOST}{path}")).await.unwrap();
    let line = event(&binary, "request", path).await;
    for (field, value) in [
        ("k8s.verb", "get"),
        ("k8s.resource", "configmaps"),
        ("k8s.namespace", "suite"),
    ] {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    let requests = upstream.requests();
    assert!(requests.iter().any(|request| request.target == path));
}

/// Requests that may take hours are logged at their start, too.
#[tokio::test]
async fn watches_and_tunnels_are_logged_at_start_and_end() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|request| async {
            if request.uri().path() != "/api/v1/pods" {
                return echo(request).await;
            }
            crate::drain::slow_or_endless(Request::get("/endless").body(()).unwrap()).await
        })
        .start()
        .await;
    let binary = start(&world, upstream.address(), "info").await;

    let mut exec = binary.client(&world).http1().await;
    exec.send(WEBSOCKET).await;
    exec.head().await.unwrap();
    let path = "/api/v1/namespaces/default/pods/p/exec";
    let line = event(&binary, "tunnel started", path).await;
    assert_eq!(line["k8s.resource"], "pods/exec");
    assert_eq!(line["http.response.status_code"], 101);
    exec.send("four").await;
    exec.take(4).await.unwrap();
    tokio::io::AsyncWriteExt::shutdown(exec.stream())
        .await
        .unwrap();
    exec.end().await.unwrap();
    let line = event(&binary, "request", path).await;
    assert_eq!(
        (&line["received_bytes"], &line["sent_bytes"]),
        (&4.into(), &4.into()),
        "{line}"
    );
    assert_eq!(line["outcome"], "complete");

    let mut watch = binary.client(&world).http1().await;
    watch
        .send(format!(
            "GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
        ))
        .await;
    watch.head().await.unwrap();
    watch.chunk().await.unwrap();
    let line = event(&binary, "stream started", "/api/v1/pods").await;
    assert_eq!(line["k8s.verb"], "watch");
    drop(watch);
    let line = event(&binary, "request", "/api/v1/pods").await;
    assert_eq!(
        (&line["sent_bytes"], &line["outcome"]),
        (&6.into(), &"client_gone".into()),
        "{line}"
    );
}

/// The log has the cause that an operator needs; the response to the client does not.
#[tokio::test]
async fn failure_is_logged_with_its_cause() {
    let world = World::new();
    let dead = tcp::refused().await;
    let binary = start(&world, dead, "info").await;
    let mut client = binary.client(&world).http1().await;
    let response = client.get(HOST, "/version", "").await;
    assert_eq!(response.status, 502);
    assert!(
        !response.text().contains("127.0.0.1"),
        "{}",
        response.text()
    );
    let line = binary.wait_for_line("request failed").await;
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["error.type"], "connect");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains(&format!("connect to {dead}: ")), "{line}");
    assert!(error.contains("refused"), "{line}");
    assert_eq!(
        event(&binary, "request", "/version").await["outcome"],
        "connect"
    );
}

/// A request cannot break a log line, forge one or reverse its text.
#[tokio::test]
async fn control_and_direction_characters_are_escaped() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .http(|_| async {
            Response::builder()
                .header("Audit-Id", "a\tb")
                .body(full("ok"))
                .unwrap()
        })
        .start()
        .await;
    for flags in [&["--log-format", "json"][..], &[]] {
        let binary = Binary::start(&world, upstream.address(), flags).await;
        let mut client = binary.client(&world).http1().await;
        client
            .get(HOST, "/a\u{202e}b\u{2066}c\u{9b}d%0ae%1b", "")
            .await;
        let line = binary.wait_for_line("url.path").await;
        for char in line.chars() {
            assert!(
                !char.is_control() && !"\u{202e}\u{2066}".contains(char),
                "{line:?}"
            );
        }
        assert!(
            line.contains("%0ae%1b"),
            "not as the client sent it: {line}"
        );
    }
}

/// Programs can read the address that the kernel chose without parsing a list.
#[tokio::test]
async fn start_event_has_plain_values() {
    let world = World::new();
    let binary = start(&world, tcp::refused().await, "info").await;
    let events = events(&binary);
    let started = events.iter().find(|event| event["message"] == "started");
    let started = started.unwrap();
    let address = started["listening"].as_str().unwrap();
    assert!(address.parse::<SocketAddr>().is_ok(), "{address}");
    assert_eq!(started["version"], env!("CARGO_PKG_VERSION"));
    assert!(started["process.pid"].as_u64().is_some(), "{started}");
}

/// The access log has the outcome; a second line for the same client has the cause.
#[tokio::test]
async fn aborted_response_is_logged_with_its_cause() {
    let world = World::new();
    let abort = |_| async {
        let (sender, body) = channel();
        tokio::spawn(async move {
            sender.send("half").await.ok();
            sender.abort().await;
        });
        Response::new(body)
    };
    let upstream = world.apiserver().http(abort).start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let client = binary.client(&world).http2().await;
    client.get("https://kube.test/cut").await.unwrap_err();
    let request = event(&binary, "request", "/cut").await;
    assert_eq!(request["outcome"], "aborted");
    let logged = events(&binary);
    let cause = logged
        .iter()
        .find(|event| event["message"] == "response aborted");
    let cause = cause.unwrap();
    assert_eq!(cause["client.address"], request["client.address"]);
    assert_eq!(cause["upstream.address"], upstream.address().to_string());
    let error = cause["error"].as_str().unwrap();
    assert!(
        error.starts_with("cannot read the response body: "),
        "{error}"
    );
}

/// The client left before the response, so no status was sent.
#[tokio::test]
async fn request_without_response_has_status_0_in_the_log() {
    let world = World::new();
    let never = |_| std::future::pending::<Response<ResponseBody>>();
    let upstream = world.apiserver().http(never).start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    client
        .send(format!("GET /never HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    // The proxy also sends a probe.
    while upstream.next_request().await.target != "/never" {}
    drop(client);
    let request = event(&binary, "request", "/never").await;
    assert_eq!(request["http.response.status_code"], 0);
    assert_eq!(request["outcome"], "client_gone");
}

/// A method can be as long as the limit for heads; the log line must stay short.
#[tokio::test]
async fn long_methods_are_truncated_in_the_log() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = Binary::start(&world, upstream.address(), &[]).await;
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    let method = "M".repeat(50_000);
    client
        .send(format!("{method} /long HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    client.response().await;
    let line = binary.wait_for_line("url.path").await;
    assert!(line.len() < 2000, "{} bytes", line.len());
}

/// `--no-access-log` removes only the lines about requests.
#[tokio::test]
async fn no_access_log_removes_only_request_lines() {
    let world = World::new();
    let dead = tcp::refused().await;
    let flags = [
        "--log-format",
        "json",
        "--no-access-log",
        "--log-level",
        "trace",
    ];
    let binary = Binary::start(&world, dead, &flags).await;
    let mut client = binary.client(&world).http1().await;
    client.get(HOST, "/version", "").await;
    binary.wait_for_line("request failed").await;
    let of_requests = |event: &Value| event["message"] == "request";
    assert!(!events(&binary).iter().any(of_requests));
}
