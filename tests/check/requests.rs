//! Faults behind a verified connection: an apiserver that is not one, not ready, off in time, or cut off
//! from upgrades.

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

use crate::world::{Ended, World, path};

/// Checks before an apiserver with a word of its own: `None` leaves the answer to the cluster.
async fn answering<F>(
    answer: impl Fn(Request<RequestBody>, Kubernetes) -> F + Send + Sync + 'static,
) -> Ended
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
async fn clock() {
    for (hours, seconds, which) in [(1, 0, "behind"), (0, 3700, "ahead of")] {
        let ended = answering(move |request, cluster| async move {
            let mut response = cluster.answer(request).await;
            let date = SystemTime::now() + Duration::from_secs(hours * 3600)
                - Duration::from_secs(seconds);
            let date = HeaderValue::from_str(&httpdate::fmt_http_date(date)).unwrap();
            response.headers_mut().insert(header::DATE, date);
            response
        })
        .await;
        ended.names(
            1,
            '✗',
            "clock",
            &format!("s {which} the apiserver's"),
            "set both clocks by NTP",
        );
        assert_eq!(ended.marked('✗'), ["clock"], "{}", ended.stdout);
    }
}

/// An apiserver that is not ready says which of its checks fails.
#[tokio::test]
async fn an_error_of_something_on_the_way_is_not_laid_at_the_apiservers_door() {
    let ended = answering(|request, cluster| async move {
        if request.uri().path() == "/readyz" {
            return page(StatusCode::INTERNAL_SERVER_ERROR, "<html>oops</html>");
        }
        cluster.answer(request).await
    })
    .await;
    ended.names(
        1,
        '✗',
        "readyz",
        "/readyz is answered by something that is no apiserver: 500 Internal Server Error: <html>oops</html>",
        "check the URL of the apiserver",
    );
}

#[tokio::test]
async fn upgrade_answered_on_the_way() {
    let ended = answering(|request, cluster| async move {
        if is_upgrade(&request) {
            return page(StatusCode::BAD_GATEWAY, "<html>no\x1b[2Jgood</html>\nmore");
        }
        cluster.answer(request).await
    })
    .await;
    ended.names(
        1,
        '✗',
        "upgrade",
        "an upgrade is answered by something on the way and not by the apiserver (502 Bad Gateway: <html>no\\u{1b}[2Jgood</html>): WebSocket is blocked",
        "let what stands between proxy and apiserver pass connections on as they are (TCP), or allow WebSocket in it",
    );
    assert_eq!(ended.marked('✗'), ["upgrade"]);
}

#[tokio::test]
async fn upgrade_blocked_by_a_cut() {
    let world = World::new();
    let upstream = world
        .apiserver()
        .alpn(&["http/1.1"])
        .raw(|mut raw| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                // The first connection is dialled only to see whether it comes about.
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
    let ended = world.check(upstream.address(), &[]).await;
    ended.names(
        1,
        '✗',
        "upgrade",
        "an upgrade gets no answer, though plain requests do",
        "allow WebSocket in it",
    );
    // An answer without a date says nothing about the clock.
    assert_eq!(ended.marked('–'), ["clock"], "{}", ended.stdout);
}

#[tokio::test]
async fn upgrade_without_its_header() {
    let ended = answering(|request, cluster| async move {
        if is_upgrade(&request) {
            let status = r#"{"kind":"Status","apiVersion":"v1","message":"Upgrade request required","code":400}"#;
            return page(StatusCode::BAD_REQUEST, status);
        }
        cluster.answer(request).await
    })
    .await;
    ended.names(
        1,
        '✗',
        "upgrade",
        "the apiserver gets the request without its Upgrade header",
        "allow WebSocket in it",
    );
}

#[tokio::test]
async fn what_is_no_apiserver() {
    let ended = answering(|_, _| async { page(StatusCode::OK, "<html>Welcome</html>") }).await;
    ended.names(
        1,
        '✗',
        "version",
        "/version is answered by something that is no apiserver: 200 OK: <html>Welcome</html>",
        "check the URL of the apiserver",
    );
    assert_eq!(ended.marked('–'), ["clock", "readyz", "upgrade"]);
}

#[tokio::test]
async fn an_apiserver_that_is_not_ready() {
    let ended = answering(|request, cluster| async move {
        if request.uri().path() == "/readyz" {
            let said = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n";
            return page(StatusCode::INTERNAL_SERVER_ERROR, said);
        }
        cluster.answer(request).await
    })
    .await;
    ended.names(
        1,
        '✗',
        "readyz",
        "the apiserver says that it is not ready: [-]etcd failed: reason withheld",
        "look at the apiserver's log",
    );
}

/// Without a token, or with one that is not known, an apiserver is alive all the same.
#[tokio::test]
async fn denials_are_a_sign_of_life() {
    let world = World::new();
    let denying = Kubernetes::new().token("good", "jane", &[]);
    let upstream = world
        .apiserver()
        .http(move |request| {
            let cluster = denying.clone();
            async move {
                // As with --anonymous-auth=false.
                if request.headers().contains_key(header::AUTHORIZATION) {
                    return cluster.answer(request).await;
                }
                let status =
                    r#"{"kind":"Status","apiVersion":"v1","message":"Unauthorized","code":401}"#;
                page(StatusCode::UNAUTHORIZED, status)
            }
        })
        .start()
        .await;
    let ended = world.check(upstream.address(), &[]).await;
    assert_eq!(
        (ended.code, ended.marked('!')),
        (0, vec![]),
        "{}",
        ended.stdout
    );
    assert!(ended.of("readyz")[0].what.contains("(401 Unauthorized)"));

    let bad = world.dir.write("token", "bad");
    let ended = world
        .check(upstream.address(), &["--token-file", path(&bad)])
        .await;
    ended.names(
        0,
        '!',
        "version",
        "it does not accept the token in",
        "kubectl create token",
    );
}
