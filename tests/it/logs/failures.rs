//! Lines about requests and handshakes that fail: what they say, and how many there are.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;
use standin::{
    client::Client,
    pki::Ca,
    tcp,
    upstream::{RequestBody, ResponseBody, full},
};
use tokio::{io::AsyncWriteExt as _, task::JoinSet, time::Instant};

use super::{event, events, start};
use crate::{
    binary::Binary,
    proxy::{APISERVER, HOST, World},
};

/// The events with this message so far.
fn all(binary: &Binary, message: &str) -> Vec<Value> {
    let mut events = events(binary);
    events.retain(|event| event["message"] == message);
    events
}

async fn wait_for(binary: &Binary, message: &str) -> Value {
    let find = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap();
        (event["message"] == message).then_some(event)
    };
    binary.wait_for(message, find).await
}

async fn request_id(request: Request<RequestBody>) -> Response<ResponseBody> {
    let mut ids = request.headers().get_all("x-request-id").iter();
    let id = ids.next().map(|id| id.as_bytes().to_vec());
    assert!(ids.next().is_none(), "one line");
    Response::new(full(id.unwrap_or_default()))
}

/// The apiserver, the client and the log have the same id, over both protocols.
#[tokio::test]
async fn request_id_is_kept_or_made_and_passed_on() {
    let world = World::new();
    let upstream = world.apiserver().http(request_id).start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let http2 = binary.client(&world).http2().await;
    let mut made = BTreeSet::new();
    for (number, (name, value, kept)) in [
        ("x-request-id", "abc-1", Some("abc-1")),
        ("traceparent", &*parent, Some(trace)),
        ("x-request-id", "a b", None),
        ("x-other", "1", None),
    ]
    .into_iter()
    .enumerate()
    {
        for is_http2 in [false, true] {
            let path = format!("/{number}/{is_http2}");
            let seen = if is_http2 {
                let request = Request::get(format!("https://{HOST}{path}")).header(name, value);
                let request = request.body(Bytes::new()).unwrap();
                http2.request(request).await.unwrap().text()
            } else {
                let mut http1 = binary.client(&world).alpn(&["http/1.1"]).http1().await;
                let lines = format!("{name}: {value}\r\nConnection: X-Request-Id\r\n");
                http1.get(HOST, &path, &lines).await.text()
            };
            let line = event(&binary, "request", &path).await;
            assert_eq!(line["http.request.id"], seen, "{name}: {value}");
            match kept {
                Some(kept) => assert_eq!(seen, kept),
                None => {
                    assert_eq!(seen.len(), 16, "{seen}");
                    assert!(made.insert(seen), "a new one for each request");
                }
            }
        }
    }
}

/// A user who sends the id that kubectl shows with `-v=8` leads the operator to the cause.
#[tokio::test]
async fn own_response_and_both_lines_have_the_same_id() {
    let world = World::new();
    let endpoint = tcp::refused().await;
    let binary = start(&world, endpoint, "debug").await;
    let path = "/api/v1/namespaces/default/pods";
    let mut client = binary.client(&world).http1().await;
    let response = client.get(HOST, path, "").await;
    assert_eq!(response.status, 503);
    let id = response.head.header("x-request-id").unwrap().to_owned();
    let status: Value = serde_json::from_str(&response.text()).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], id);
    for message in ["request failed", "request"] {
        let line = event(&binary, message, path).await;
        for (field, value) in [
            ("http.request.id", &*id),
            ("cluster", "default"),
            ("k8s.verb", "list"),
            ("http.request.method", "GET"),
        ] {
            assert_eq!(line[field], value, "{field} of {line}");
        }
    }
    let line = event(&binary, "request failed", path).await;
    assert_eq!(line["upstream.address"], endpoint.to_string());
    let line = event(&binary, "request", path).await;
    assert_eq!(line["ended_by"], "apiserver");
    assert_eq!(line["reason"], "no_connection");
}

/// A client asked for a host that no cluster has. Only the log can say which one.
#[tokio::test]
async fn refused_request_is_logged_with_the_host_it_asked_for() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = start(&world, upstream.address(), "debug").await;
    let mut client = binary.client(&world).http1().await;
    let response = client.get("wrong.test", "/ok", "").await;
    assert_eq!(response.status, 421);
    let line = event(&binary, "request", "/ok").await;
    for (field, value) in [
        ("url.domain", "wrong.test"),
        ("outcome", "rejected"),
        ("ended_by", "proxy"),
        ("reason", "host_not_configured"),
    ] {
        assert_eq!(line[field], value, "{field} of {line}");
    }
    assert!(line.get("cluster").is_none(), "{line}");
    let refused = event(&binary, "request refused", "/ok").await;
    assert_eq!(refused["http.request.id"], line["http.request.id"]);
}

/// A token in a loop has mostly expired, and only the proxy tells the operator so. Hints to clients are another
/// setting.
#[tokio::test]
async fn refused_credential_is_logged_with_its_problem() {
    let world = World::new();
    let status_of_path = |request: Request<RequestBody>| async move {
        let code = request.uri().path()[1..4].parse().unwrap_or(200_u16);
        let mut response = Response::new(full("no"));
        *response.status_mut() = code.try_into().unwrap();
        response
    };
    let upstream = world.apiserver().http(status_of_path).start().await;
    let expired = "Bearer e30.eyJleHAiOjF9.c2ln";
    let config = world.dir.write("hints.yaml", "hints: false");
    let flags = ["--log-format", "json", "--config", config.to_str().unwrap()];
    let binary = Binary::start(&world, upstream.address(), &flags).await;
    let mut client = binary.client(&world).http1().await;
    for (path, token, problem) in [
        ("/401/expired", expired, Some("expired")),
        ("/401/opaque", "Bearer opaque", Some("invalid")),
        ("/401/none", "", Some("missing")),
        ("/403/none", "", Some("missing")),
        // The apiserver has accepted the token.
        ("/403/expired", expired, None),
        ("/200/none", "", None),
    ] {
        let field = match token {
            "" => String::new(),
            _ => format!("Authorization: {token}\r\n"),
        };
        client.get(HOST, path, &field).await;
        let line = event(&binary, "request", path).await;
        let logged = line.get("credential.problem").and_then(Value::as_str);
        assert_eq!(logged, problem, "{line}");
    }
}

/// Sends this many requests from each of 20 clients, one after the other, without a pause.
async fn hammer(world: &World, binary: &Binary, each: usize) {
    let mut clients = JoinSet::new();
    for number in 1..=20 {
        let client = binary.client(world).from(IpAddr::from([127, 0, 0, number]));
        clients.spawn(async move {
            let mut client = client.alpn(&["http/1.1"]).http1().await;
            for _ in 0..each {
                let watch = "/api/v1/pods?watch=1";
                assert_eq!(client.get(HOST, watch, "").await.status, 503);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
}

/// Clients without a back-off and a dead apiserver: 2,000 failures are a few lines, and nothing but repetition is lost.
#[tokio::test]
async fn dead_apiserver_does_not_flood_the_log() {
    let world = World::new();
    let binary = start(&world, tcp::refused().await, "info").await;
    let began = Instant::now();
    hammer(&world, &binary, 100).await;
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    // The limiter admits 50 at once and ten a second; each is two lines.
    let lines = all(&binary, "request").len();
    assert!(lines >= 20, "each client is seen: {lines}");
    assert!(
        lines <= 50 + 10 * (seconds + 1),
        "{lines} lines in {seconds} s"
    );
    assert_eq!(all(&binary, "request failed").len(), lines, "a pair each");
    let mut clients: BTreeSet<_> = BTreeSet::new();
    for line in all(&binary, "request failed") {
        let address = line["client.address"].as_str().unwrap().to_owned();
        clients.insert(address.split(':').next().unwrap().to_owned());
    }
    assert!(clients.len() >= 5, "{clients:?}");
    assert_eq!(all(&binary, "upstream connection failed").len(), 1);
    assert_eq!(all(&binary, "upstream endpoint unhealthy").len(), 1);
    let bytes: usize = binary.stderr().iter().map(String::len).sum();
    assert!(bytes < 150_000, "{bytes} bytes");

    // The next line says how many were left out.
    let one = binary.client(&world).from(IpAddr::from([127, 0, 0, 1]));
    let mut client = one.alpn(&["http/1.1"]).http1().await;
    let deadline = Instant::now() + standin::WAIT;
    loop {
        assert_eq!(client.get(HOST, "/version", "").await.status, 502);
        let failed = all(&binary, "request");
        let last = failed.iter().rfind(|line| line["url.path"] == "/version");
        let suppressed = last.and_then(|line| line["suppressed_lines"].as_u64());
        if suppressed.is_some_and(|lines| lines > 0) {
            break;
        }
        assert!(Instant::now() < deadline, "no line says what was left out");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The description of a certificate is long. It is logged once, and each request has the reason.
#[tokio::test]
async fn refused_certificate_is_described_once() {
    let world = World::new();
    let foreign = Ca::new("foreign");
    let upstream = standin::upstream::Upstream::builder(foreign.server(&[APISERVER]));
    let upstream = upstream.start().await;
    let binary = start(&world, upstream.address(), "info").await;
    hammer(&world, &binary, 5).await;
    let described = binary.stderr();
    let described = described.iter().filter(|line| line.contains("SHA-256"));
    // Once by the probe, once by the first dial, and once as a CA that is in use.
    assert!(described.count() <= 3, "{:#?}", binary.stderr());
    let failed = wait_for(&binary, "request failed").await;
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("is not signed by the cluster CA"), "{error}");
}

/// An operator sees at `info` why clients do not connect, once for each client and reason.
#[tokio::test]
async fn failed_handshakes_are_logged_once_per_client_and_reason() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let binary = start(&world, upstream.address(), "info").await;
    let strangers = Ca::new("another");
    for _ in 0..3 {
        // A health check: no line.
        drop(binary.client(&world).tcp().await.unwrap());
        let distrusts = Client::new(binary.address()).trust(&strangers).sni(HOST);
        distrusts.connect().await.unwrap_err();
        let proxy_header: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n";
        for bytes in [proxy_header, b"SSH-2.0-x\r\n"] {
            let mut junk = binary.client(&world).tcp().await.unwrap();
            junk.write_all(bytes).await.unwrap();
        }
    }
    let alert = binary
        .wait_for("the alert", |line| {
            let event: Value = serde_json::from_str(line).unwrap();
            (event["reason"] == "client_alert").then_some(event)
        })
        .await;
    assert_eq!(alert["level"], "WARN");
    assert_eq!(alert["tls.client.server_name"], HOST);
    assert!(
        alert["error"].as_str().unwrap().contains("unknown_ca"),
        "{alert}"
    );
    binary.wait_for_line("\"not_tls\"").await;
    binary.wait_for_line("\"proxy_header\"").await;
    let mut reasons: Vec<_> = all(&binary, "downstream handshake failed")
        .iter()
        .map(|line| line["reason"].as_str().unwrap().to_owned())
        .collect();
    reasons.sort();
    assert_eq!(reasons, ["client_alert", "not_tls", "proxy_header"]);
}

/// Both directions have a line, and each names the cluster.
#[tokio::test]
async fn endpoint_that_fails_and_returns_has_a_line_each() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let relay = tcp::Relay::start(upstream.address()).await;
    let binary = start(&world, relay.address(), "info").await;
    let healthy = wait_for(&binary, "upstream endpoint healthy").await;
    assert_eq!(healthy["cluster"], "default");
    let mut client = binary.client(&world).alpn(&["http/1.1"]).http1().await;
    assert_eq!(client.get(HOST, "/version", "").await.status, 200);
    relay.retarget(tcp::refused().await);
    relay.reset_all();
    let deadline = Instant::now() + standin::WAIT;
    while all(&binary, "upstream endpoint unhealthy").is_empty() {
        client.get(HOST, "/version", "").await;
        assert!(Instant::now() < deadline, "{:#?}", binary.stderr());
    }
    let unhealthy = wait_for(&binary, "upstream endpoint unhealthy").await;
    for (field, value) in [
        ("cluster", "default"),
        ("upstream.address", &*relay.address().to_string()),
        ("level", "WARN"),
    ] {
        assert_eq!(unhealthy[field], value, "{field} of {unhealthy}");
    }
    assert!(unhealthy["reason"].is_string(), "{unhealthy}");
}
