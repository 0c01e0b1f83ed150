//! Who ended a request, and why, as the access log says it.

use http::{Request, Response};
use serde_json::Value;
use standin::upstream::{BodySender, RequestBody, ResponseBody, Upstream, channel};
use tokio::{
    io::AsyncWriteExt as _,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
};

use super::event;
use crate::{
    binary::Binary,
    proxy::{HOST, World},
    upgrades::{ManualApiserver, PendingRequest, WEBSOCKET, WEBSOCKET_101},
};

const EXEC: &str = "/api/v1/namespaces/default/pods/p/exec";
const WATCH: &str = "/api/v1/pods";

/// Outcome, side and reason of a line.
fn end(line: &Value) -> [&str; 3] {
    ["outcome", "ended_by", "reason"].map(|field| line[field].as_str().unwrap_or_default())
}

/// The binary with a JSON log, no probes, and this time for the drain.
async fn start(world: &World, upstream: &Upstream, drain: &str) -> Binary {
    let timeouts =
        format!("timeouts: {{drain: {drain}, drainTunnels: {drain}, probeInterval: 0s}}");
    let config = world.dir.write("drain.yaml", &timeouts);
    let flags = ["--log-format", "json", "--config", config.to_str().unwrap()];
    Binary::start(world, upstream.address(), &flags).await
}

/// The three causes that an operator has to distinguish, and those that look like them.
#[tokio::test]
async fn each_death_of_an_exec_has_its_own_reason() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    for (case, expected) in [
        ("client killed", ["aborted", "client", "tls_eof"]),
        ("client reset", ["aborted", "client", "reset"]),
        ("client ends", ["complete", "client", "eof"]),
        ("apiserver killed", ["aborted", "apiserver", "tls_eof"]),
        ("apiserver ends", ["complete", "apiserver", "eof"]),
        ("drain", ["drained", "proxy", "drain"]),
        ("second signal", ["drained", "proxy", "second_signal"]),
    ] {
        let drain = if case == "second signal" { "1h" } else { "0s" };
        let binary = start(&world, &apiserver.upstream, drain).await;
        let mut client = binary.client(&world).http1().await;
        client.send(WEBSOCKET).await;
        let mut server: PendingRequest = apiserver.next_request().await;
        server.send(WEBSOCKET_101).await;
        client.head().await.unwrap();
        let line = event(&binary, "tunnel started", EXEC).await;
        assert_eq!(line["k8s.verb"], "connect", "as in the metrics");
        client.send("in").await;
        assert_eq!(server.read(2).await, b"in");
        server.send("output").await;
        client.take(6).await.unwrap();
        match case {
            "client killed" => {
                // The kernel closes the socket of a killed process, and TLS says nothing.
                drop(client);
                server.read_to_end().await.unwrap_err();
            }
            "client reset" => {
                client.into_parts().0.reset();
                server.read_to_end().await.unwrap_err();
            }
            "client ends" => {
                client.stream().shutdown().await.unwrap();
                server.read_to_end().await.unwrap();
                server.shutdown().await;
                client.end().await.unwrap();
            }
            "apiserver killed" => {
                drop(server);
                client.end().await.unwrap_err();
            }
            "apiserver ends" => {
                server.shutdown().await;
                client.end().await.unwrap();
                client.stream().shutdown().await.unwrap();
                server.read_to_end().await.unwrap();
            }
            "drain" => {
                binary.signal("TERM").await;
                client.end().await.unwrap_err();
            }
            _ => {
                binary.signal("TERM").await;
                binary.wait_for_line("draining").await;
                binary.signal("TERM").await;
                client.end().await.unwrap_err();
            }
        }
        let line = event(&binary, "request", EXEC).await;
        assert_eq!(end(&line), expected, "{case}: {line}");
        let bytes = ["received_bytes", "sent_bytes"].map(|field| line[field].as_u64());
        assert_eq!(bytes, [Some(2), Some(6)], "{case}: {line}");
    }
}

/// The counter says the same as the log.
#[tokio::test]
async fn tunnels_are_counted_by_who_ended_them() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).admin().start();
    for ends in ["client", "apiserver"] {
        let mut client = proxy.client().http1().await;
        client.send(WEBSOCKET).await;
        let mut server = apiserver.next_request().await;
        server.send(WEBSOCKET_101).await;
        client.head().await.unwrap();
        if ends == "client" {
            drop(client);
            server.read_to_end().await.unwrap_err();
        } else {
            drop(server);
            client.end().await.unwrap_err();
        }
    }
    let counts = [
        ("client", 1.0),
        ("apiserver", 1.0),
        ("complete", 0.0),
        ("drained", 0.0),
    ];
    let series = counts.map(|(end, count)| {
        let series = format!("tunnels_ended_total{{cluster=\"test\",end=\"{end}\"}}");
        (series, count)
    });
    let wanted: Vec<_> = series
        .iter()
        .map(|(name, count)| (name.as_str(), *count))
        .collect();
    crate::admin::wait_for_numbers(proxy.admin(), &wanted).await;
}

/// An apiserver whose watches send one event, and the senders of their other events.
async fn watches(world: &World) -> (Upstream, UnboundedReceiver<BodySender>) {
    let (sender, opened) = unbounded_channel();
    let upstream = world.apiserver().http(move |request: Request<_>| {
        let (events, body) = channel();
        if request.uri().path() == WATCH {
            sender.send(events).unwrap();
        }
        async move {
            let json = Response::builder().header("content-type", "application/json");
            json.body(body).unwrap()
        }
    });
    (upstream.start().await, opened)
}

/// No response reaches a client that has left, so the line is that of any cancelled request.
#[tokio::test]
async fn upload_whose_client_leaves_has_no_status() {
    const UPLOAD: &str = "/api/v1/namespaces/default/pods";
    let world = World::new();
    let reads = |request: Request<RequestBody>| async move {
        request.into_body().read().await.unwrap_err();
        std::future::pending::<Response<ResponseBody>>().await
    };
    let upstream = world.apiserver().http(reads).start().await;
    for (case, reasons) in [
        ("reset", &["cancel"][..]),
        ("leaves", &["eof"]),
        // The kernel resets a connection that has data for a process that was killed.
        ("killed", &["tls_eof", "reset"]),
    ] {
        let binary = start(&world, &upstream, "0s").await;
        let client = binary.client(&world).http2().await;
        if case == "reset" {
            let post = Request::post(format!("https://{HOST}{UPLOAD}"));
            let (_response, mut body) = client.begin(post.body(()).unwrap(), false).await.unwrap();
            body.send_data("half".into(), false).unwrap();
            upstream.next_request().await;
            body.send_reset(h2::Reason::CANCEL);
        } else {
            let mut client = binary.client(&world).http1().await;
            let head =
                format!("POST {UPLOAD} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9\r\n\r\n");
            client.send(head + "half").await;
            upstream.next_request().await;
            if case == "leaves" {
                client.stream().shutdown().await.unwrap();
            }
        }
        let line = event(&binary, "request", UPLOAD).await;
        let [outcome, by, reason] = end(&line);
        assert_eq!([outcome, by], ["client_gone", "client"], "{case}: {line}");
        assert!(reasons.contains(&reason), "{case}: {line}");
        assert_eq!(line["http.response.status_code"], 0, "{case}: {line}");
        assert!(
            line.get("time_to_headers_seconds")
                .is_none_or(|time| *time == 0.0)
        );
    }
}

/// Over both protocols, on both sides.
#[tokio::test]
async fn each_end_of_a_watch_has_its_own_reason() {
    let world = World::new();
    let (upstream, mut opened) = watches(&world).await;
    let request = format!("GET {WATCH}?watch=1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let url = format!("https://{HOST}{WATCH}?watch=1");
    let killed = ["client_gone", "client", "tls_eof"];
    let complete = ["complete", "apiserver", "eof"];
    let drained = ["drained", "proxy", "drain"];
    for (case, http1_end, http2_end) in [
        (
            "client leaves",
            ["client_gone", "client", "eof"],
            ["client_gone", "client", "cancel"],
        ),
        ("client killed", killed, killed),
        ("apiserver ends", complete, complete),
        (
            "apiserver aborts",
            // Between two events, so that the client resumes.
            ["complete", "apiserver", "tls_eof"],
            ["aborted", "apiserver", "cancel"],
        ),
        ("drain", drained, drained),
        ("drain in an event", drained, drained),
    ] {
        for is_http2 in [false, true] {
            let binary = start(&world, &upstream, "0s").await;
            let http1 = binary.client(&world).alpn(&["http/1.1"]);
            let mut http1_client = http1.http1().await;
            let http2_client = binary.client(&world).http2().await;
            let mut response = None;
            if is_http2 {
                response = Some(http2_client.open(&url).await.unwrap());
            } else {
                http1_client.send(&request).await;
                http1_client.head().await.unwrap();
            }
            let events = opened.recv().await.unwrap();
            let event_text = if case == "drain in an event" {
                "{"
            } else {
                "{}\n"
            };
            events.send(event_text).await.unwrap();
            if let Some(response) = &mut response {
                crate::proxy::data(response).await.unwrap();
            } else {
                http1_client.chunk().await.unwrap();
            }
            let mut kept = None;
            match case {
                "client leaves" => {
                    // Over HTTP/2 this resets the stream.
                    drop(response);
                    if !is_http2 {
                        http1_client.stream().shutdown().await.unwrap();
                    }
                    kept = Some(events);
                }
                "client killed" => {
                    drop((response, http1_client, http2_client));
                    kept = Some(events);
                }
                "apiserver ends" => drop(events),
                "apiserver aborts" => events.abort().await,
                _ => {
                    binary.signal("TERM").await;
                    kept = Some(events);
                }
            }
            let line = event(&binary, "request", WATCH).await;
            let expected = if is_http2 { http2_end } else { http1_end };
            assert_eq!(end(&line), expected, "{case}: {line}");
            drop(kept);
        }
    }
}
