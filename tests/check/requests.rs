//! Problems after a verified connection: no apiserver, not ready, a wrong clock, blocked upgrades.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use standin::{
    kubernetes::Kubernetes,
    upstream::{RequestBody, ResponseBody, full},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{RunResult, World, path};

/// Checks a proxy in front of an apiserver that responds with `answer`.
async fn check_with_responses<F>(
    answer: impl Fn(Request<RequestBody>, Kubernetes) -> F + Send + Sync + 'static,
) -> RunResult
where
    F: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let world = World::new();
    let cluster = Kubernetes::new();
    let apiserver = world
        .apiserver()
        .http(move |request| answer(request, cluster.clone()));
    let upstream = apiserver.start().await;
    world.check(upstream.address(), &[]).await
}

fn is_upgrade(request: &Request<RequestBody>) -> bool {
    request.headers().contains_key(header::UPGRADE)
}

fn page(status: StatusCode, text: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response
}

#[tokio::test]
async fn wrong_clock_fails() {
    for (hours, seconds, which) in [
        (1, 0, "minutes behind"),
        (0, 8_650_000, "100 days ahead of"),
    ] {
        let result = check_with_responses(move |request, cluster| async move {
            let mut response = cluster.respond(request).await;
            let date = SystemTime::now() + Duration::from_secs(hours * 3600)
                - Duration::from_secs(seconds);
            let date = HeaderValue::from_str(&httpdate::fmt_http_date(date)).unwrap();
            response.headers_mut().insert(header::DATE, date);
            response
        })
        .await;
        result.assert_finding(
            1,
            '✗',
            "clock",
            &format!(" {which} the apiserver's"),
            "synchronize both clocks with NTP",
        );
        assert_eq!(result.marked('✗'), ["clock"], "{}", result.stdout);
    }
}

/// An apiserver that is not ready lists its failing checks; a middlebox does not.
#[tokio::test]
async fn middlebox_error_is_not_blamed_on_apiserver() {
    let result = check_with_responses(|request, cluster| async move {
        if request.uri().path() == "/readyz" {
            return page(StatusCode::INTERNAL_SERVER_ERROR, "<html>oops</html>");
        }
        cluster.respond(request).await
    })
    .await;
    result.assert_finding(
        1,
        '✗',
        "readyz",
        "the response to /readyz is not from an apiserver: 500 Internal Server Error: <html>oops</html>",
        "check the URL of the apiserver",
    );
}

#[tokio::test]
async fn upgrade_answered_by_middlebox_fails() {
    let result = check_with_responses(|request, cluster| async move {
        if is_upgrade(&request) {
            return page(StatusCode::BAD_GATEWAY, "<html>no\x1b[2Jgood</html>\nmore");
        }
        cluster.respond(request).await
    })
    .await;
    result.assert_finding(
        1,
        '✗',
        "upgrade",
        "the response to an upgrade request is not from the apiserver (502 Bad Gateway: <html>no\\u{1b}[2Jgood</html>)",
        "configure the load balancer or proxy between the proxy and the apiserver to forward TCP unchanged, or to allow WebSocket",
    );
    assert_eq!(result.marked('✗'), ["upgrade"]);
}

#[tokio::test]
async fn upgrade_whose_connection_is_closed_fails() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .alpn(&["http/1.1"])
        .raw(|mut raw| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                // The first connection only tests the handshake.
                let Ok(byte) = raw.stream.read_u8().await else {
                    return;
                };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            if head.contains("Upgrade") || head.contains("upgrade") {
                return;
            }
            let body = if head.starts_with("GET /version ") {
                r#"{"gitVersion":"v1.32.4"}"#
            } else {
                "ok"
            };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            raw.stream.write_all(answer.as_bytes()).await.unwrap();
            raw.stream.shutdown().await.unwrap();
        })
        .start()
        .await;
    let result = world.check(upstream.address(), &[]).await;
    result.assert_finding(
        1,
        '✗',
        "upgrade",
        "an upgrade request gets no response, although plain requests do",
        "to allow WebSocket",
    );
    // A response without a date does not tell the clock.
    assert_eq!(result.marked('–'), ["clock"], "{}", result.stdout);
}

/// A load balancer that speaks HTTP drops the field; the apiserver then sends a plain watch.
#[tokio::test]
async fn upgrade_without_its_header_fails() {
    let result = check_with_responses(|mut request, cluster| async move {
        request.headers_mut().remove(header::UPGRADE);
        cluster.respond(request).await
    })
    .await;
    result.assert_finding(
        1,
        '✗',
        "upgrade",
        "the request reaches the apiserver without its Upgrade header",
        "to allow WebSocket",
    );
}

/// The apiserver looks at the user first, so that its response says nothing about the upgrade.
#[tokio::test]
async fn upgrade_without_a_user_is_skipped() {
    let world = World::new();
    let cluster = Kubernetes::new().token("good", "jane", &[]);
    let upstream = world.apiserver().kubernetes(&cluster).start().await;
    let result = world.check(upstream.address(), &[]).await;
    assert_eq!(result.marked('–'), ["upgrade"], "{}", result.stdout);
    assert!(result.of("upgrade")[0].message.contains("--token-file"));
    for (token, mark) in [("good", '✓'), ("bad", '–')] {
        let file = world.dir.write("token", token);
        let flags = ["--token-file", path(&file)];
        let result = world.check(upstream.address(), &flags).await;
        assert_eq!(
            result.of("upgrade")[0].mark,
            mark,
            "{token} {}",
            result.stdout
        );
    }
}

#[tokio::test]
async fn web_server_instead_of_apiserver_fails() {
    let result =
        check_with_responses(|_, _| async { page(StatusCode::OK, "<html>Welcome</html>") }).await;
    result.assert_finding(
        1,
        '✗',
        "version",
        "the response to /version is not from an apiserver: 200 OK: <html>Welcome</html>",
        "and the host that requests ask for, kube.test: --upstream-host or `upstream.host` chooses",
    );
    assert_eq!(result.marked('–'), ["clock", "readyz", "upgrade"]);
}

/// nginx with `ssl_verify_client on` responds in HTML.
#[tokio::test]
async fn balancer_that_wants_a_client_certificate_is_named() {
    let page_of_nginx =
        "<html><head><title>400 No required SSL certificate was sent</title></head>";
    let result =
        check_with_responses(
            move |_, _| async move { page(StatusCode::BAD_REQUEST, page_of_nginx) },
        )
        .await;
    result.assert_finding(
        1,
        '✗',
        "version",
        "is not from an apiserver: 400 Bad Request",
        "it must not ask for a client certificate, because the proxy has none",
    );
}

#[tokio::test]
async fn apiserver_that_is_not_ready_fails() {
    let result = check_with_responses(|request, cluster| async move {
        if request.uri().path() == "/readyz" {
            let said = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n";
            return page(StatusCode::INTERNAL_SERVER_ERROR, said);
        }
        cluster.respond(request).await
    })
    .await;
    result.assert_finding(
        1,
        '✗',
        "readyz",
        "the apiserver is not ready: [-]etcd failed: reason withheld",
        "read the logs of the apiserver",
    );
}

/// An apiserver that rejects the request or the token is alive.
#[tokio::test]
async fn unauthorized_response_passes() {
    let world = World::new();
    let denying = Kubernetes::new().token("good", "jane", &[]);
    let upstream = world
        .apiserver()
        .http(move |request| {
            let cluster = denying.clone();
            async move {
                // As with --anonymous-auth=false.
                if request.headers().contains_key(header::AUTHORIZATION) {
                    return cluster.respond(request).await;
                }
                let status =
                    r#"{"kind":"Status","apiVersion":"v1","message":"Unauthorized","code":401}"#;
                page(StatusCode::UNAUTHORIZED, status)
            }
        })
        .start()
        .await;
    let result = world.check(upstream.address(), &[]).await;
    assert_eq!(
        (result.code, result.marked('!')),
        (0, vec![]),
        "{}",
        result.stdout
    );
    assert!(
        result.of("readyz")[0]
            .message
            .contains("(401 Unauthorized)")
    );

    let bad = world.dir.write("token", "bad");
    let result = world
        .check(upstream.address(), &["--token-file", path(&bad)])
        .await;
    result.assert_finding(
        0,
        '!',
        "version",
        "rejects the token in",
        "kubectl create token",
    );
}
