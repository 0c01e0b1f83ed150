//! Request heads: slow ones, large ones, and targets that the apiserver would read in another way.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use standin::{
    client::Http1,
    frames::{END_STREAM, encode_fields, kind},
};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, sleep},
};

use super::{SHORT, cases};
use crate::{
    attacker::{Attacker, Outcome, TOKEN, fields, frame, headers, write_slowly},
    stage::HOST,
};

cases! {
    head_without_end_is_closed: "F04", endless_head, [closed: Some((3.0, 12.0)), grows: (16, 64)], quick: SHORT;
    continuation_flood_is_closed: "CVE-2024-27316", continuation_flood, [closed: Some((2.0, 2.0)), grows: (16, 32)];
    slow_head_is_closed: "slowloris", slow_head, [closed: Some((3.0, 12.0))], quick: SHORT;
    slow_head_over_http2_is_closed: "slowloris", slow_head_over_http2, [closed: Some((3.0, 12.0))], quick: SHORT;
    /// The apiserver would see `/configmaps/`, and a DELETE of that deletes all of them.
    ambiguous_target_is_refused: "F11", ambiguous_targets, [upstream: (0, 0)];
    large_head_is_refused: "large heads", large_heads, [upstream: (0, 0), grows: (16, 32)];
    malformed_field_over_http2_is_refused: "h2 downgrade", malformed_fields, [upstream: (0, 0)];
    slow_heads_leave_the_admin_port_alive: "admin port", slow_admin, [];
}

/// HEADERS and CONTINUATION frames of which none ends the head, on many connections. Together they stay below the limit
/// of the head, so that only the deadline ends them.
async fn endless_head(attacker: Attacker) -> Outcome {
    let value = "x".repeat(12_000);
    let fragment = encode_fields(&[("x-filler", &value)]);
    let mut head = frame(
        kind::HEADERS,
        END_STREAM,
        1,
        encode_fields(&fields("GET", "/", None)),
    );
    for _ in 0..4 {
        head.extend(frame(kind::CONTINUATION, 0, 1, fragment.clone()));
    }
    let until = Instant::now()
        + attacker
            .size
            .pick(Duration::from_secs(4), Duration::from_secs(20));
    attacker
        .on_each(attacker.size.pick(20, 200), |attacker, _| {
            let head = head.clone();
            async move {
                let mut outcome = Outcome::default();
                let Ok(mut wire) = attacker.wire(None).await else {
                    return outcome;
                };
                // Another frame between those of a head ends the connection at once.
                wire.answers = false;
                wire.push(&head);
                wire.until_end(until).await;
                outcome.wire(&wire);
                outcome
            }
        })
        .await
        .with_codes()
}

/// CONTINUATION frames without end, each with one byte of the head.
async fn continuation_flood(attacker: Attacker) -> Outcome {
    let outcome = attacker.again(|attacker| async move {
        let mut outcome = Outcome::default();
        let Ok(mut wire) = attacker.wire(None).await else {
            return outcome;
        };
        wire.push(&frame(
            kind::HEADERS,
            END_STREAM,
            1,
            encode_fields(&fields("GET", "/", None)),
        ));
        let chunk = frame(kind::CONTINUATION, 0, 1, vec![0x82]).repeat(500);
        let until = Instant::now() + Duration::from_secs(3);
        wire.pump(|_| Some(chunk.clone()), Duration::ZERO, until)
            .await;
        outcome.wire(&wire);
        outcome
    });
    outcome.await.with_codes()
}

/// One byte of a head each 200 ms.
async fn slow_head(attacker: Attacker) -> Outcome {
    let until = Instant::now()
        + attacker
            .size
            .pick(Duration::from_secs(5), Duration::from_secs(20));
    attacker
        .on_each(attacker.size.pick(30, 1_000), |attacker, _| async move {
            let mut outcome = Outcome::default();
            let Ok(tls) = attacker.tls("http/1.1").await else {
                return outcome;
            };
            let head = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; 1000]].concat();
            let pace = Duration::from_millis(200);
            outcome.connection(write_slowly(tls, &head, pace, until).await);
            outcome
        })
        .await
}

/// One byte of a frame each 200 ms.
async fn slow_head_over_http2(attacker: Attacker) -> Outcome {
    let until = Instant::now()
        + attacker
            .size
            .pick(Duration::from_secs(5), Duration::from_secs(20));
    attacker
        .on_each(attacker.size.pick(30, 300), |attacker, _| async move {
            let mut outcome = Outcome::default();
            let Ok(mut wire) = attacker.wire(None).await else {
                return outcome;
            };
            wire.answers = false;
            let mut bytes = headers(1, &fields("GET", "/", None), END_STREAM).into_iter();
            wire.pump(
                |_| bytes.next().map(|byte| vec![byte]),
                Duration::from_millis(200),
                until,
            )
            .await;
            outcome.wire(&wire);
            outcome
        })
        .await
        .with_codes()
}

async fn ambiguous_targets(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let configmaps = "/api/v1/namespaces/default/configmaps";
    for (target, host) in [
        (format!("{configmaps}/#y"), HOST),
        (format!("{configmaps}#"), HOST),
        ("/x?a=b#c".to_owned(), HOST),
        ("/#/../x".to_owned(), HOST),
        ("/x".to_owned(), "kube.test:abc"),
        ("/x".to_owned(), "kube.test:99999"),
    ] {
        let mut client = Http1::new(attacker.tls("http/1.1").await.unwrap());
        let request = format!(
            "DELETE {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer attacker\r\n\r\n"
        );
        client.send(request).await;
        let status = client.head().await.map(|head| head.status);
        if !matches!(status, Ok(400 | 421)) {
            outcome.fault(format!("HTTP/1.1 {target} for {host}: {status:?}"));
        }
    }
    for (target, host) in [
        (format!("{configmaps}/#y"), HOST),
        ("?x".to_owned(), HOST),
        ("#/..".to_owned(), HOST),
        ("/x#y".to_owned(), HOST),
        ("x".to_owned(), HOST),
        (String::new(), HOST),
        ("/x y".to_owned(), HOST),
        ("/x".to_owned(), "kube.test:abc"),
        ("/x".to_owned(), "kube.test:99999"),
    ] {
        let mut wire = attacker.wire(None).await.unwrap();
        let mut delete = fields("DELETE", &target, TOKEN);
        delete[2].1 = host;
        wire.push(&headers(1, &delete, END_STREAM));
        // The case counts what reaches the apiserver; here the client must get an end.
        let until = Instant::now() + Duration::from_secs(2);
        wire.wait(
            |seen| seen.heads + seen.resets.len() > 0 || seen.goaway.is_some(),
            until,
        )
        .await;
        if wire.seen.heads + wire.seen.resets.len() == 0
            && wire.seen.goaway.is_none()
            && wire.ended.is_none()
        {
            outcome.fault(format!("HTTP/2 {target:?} for {host}: no end"));
        }
    }
    outcome
}

async fn large_heads(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let request = || {
        Request::get(format!("https://{HOST}/x")).header(header::AUTHORIZATION, "Bearer attacker")
    };
    let many = (0..200).fold(request(), |request, number| {
        request.header(format!("x-{number}"), "1")
    });
    let long = request().header("x-long", "x".repeat(70_000));
    for (what, request) in [("200 fields", many), ("a field of 70,000 bytes", long)] {
        let client = attacker.http2().await.unwrap();
        let response = client.request(request.body(Bytes::new()).unwrap()).await;
        let status = response.map(|response| response.status.as_u16());
        if !matches!(status, Ok(431)) {
            outcome.fault(format!("{what} over HTTP/2: {status:?} and not 431"));
        }
    }
    let long = "x".repeat(70_000);
    for (what, head, expected) in [
        (
            "a target of 70,000 bytes",
            format!("GET /{long} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
            414,
        ),
        (
            "a field of 70,000 bytes",
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {long}\r\n\r\n"),
            431,
        ),
    ] {
        let mut client = Http1::new(attacker.tls("http/1.1").await.unwrap());
        client.try_send(head).await.ok();
        let status = client.head().await.map(|head| head.status);
        if !matches!(&status, Ok(status) if *status == expected) {
            outcome.fault(format!(
                "{what} over HTTP/1.1: {status:?} and not {expected}"
            ));
        }
    }
    outcome
}

/// Fields that HTTP/1.1 would read as something else.
async fn malformed_fields(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    for (name, value) in [
        ("x", "a\r\nTransfer-Encoding: chunked"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("x\r\ny", "a"),
        ("x y", "a"),
        ("x:", "a"),
        ("X-Upper", "a"),
        ("transfer-encoding", "chunked"),
        ("connection", "authorization"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("content-length", ""),
        ("content-length", "+1"),
        ("content-length", "1, 1"),
        (":method", "GET"),
        (":authority", "other.test"),
        (":unknown", "a"),
        ("host", "other.test"),
    ] {
        let mut wire = attacker.wire(None).await.unwrap();
        let mut request = fields("GET", "/x", TOKEN);
        request.push((name, value));
        wire.push(&headers(1, &request, END_STREAM));
        let until = Instant::now() + Duration::from_secs(2);
        wire.wait(
            |seen| seen.heads + seen.resets.len() > 0 || seen.goaway.is_some(),
            until,
        )
        .await;
        if attacker.counts.attacker() > 0 {
            outcome.fault(format!("the apiserver received {name:?}: {value:?}"));
            break;
        }
    }
    outcome
}

/// Connections that hold the admin port with heads without end, while a liveness probe waits at most a second.
async fn slow_admin(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let mut open = Vec::new();
    for _ in 0..100 {
        let Ok(mut tcp) = tokio::net::TcpStream::connect(attacker.admin).await else {
            break;
        };
        tcp.write_all(b"GET /livez HTTP/1.1\r\n").await.ok();
        open.push(tcp);
    }
    sleep(Duration::from_millis(200)).await;
    let probe = async {
        let mut client = Http1::new(tokio::net::TcpStream::connect(attacker.admin).await?);
        client
            .try_send("GET /livez HTTP/1.1\r\nHost: admin\r\n\r\n")
            .await?;
        client.head().await
    };
    match tokio::time::timeout(Duration::from_secs(1), probe).await {
        Ok(Ok(head)) if head.status == 200 => {}
        other => outcome.fault(format!("a liveness probe beside slow heads: {other:?}")),
    }
    outcome
}
