//! Memory: responses that are never read, uploads that never end, and many silent clients.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use standin::frames::{END_STREAM, encode_fields, kind};
use tokio::{
    sync::Barrier,
    time::{Instant, sleep, sleep_until},
};

use super::cases;
use crate::{
    apiserver::LIST,
    attacker::{Attacker, Outcome, TOKEN, fields, frame, headers, write},
    stage::{Conditions, HOST},
};

/// The memory of the shipped manifests, and descriptors for some thousand clients.
const SHIPPED: Conditions = Conditions {
    config: "",
    open_files: Some(16_000),
    memory: Some(512),
    balancers: 0,
};
/// The default number of connections follows from the memory; here it is the number that has to fit.
const SMALL: Conditions = Conditions {
    config: "limits: {connections: 6000}\n",
    memory: Some(256),
    ..SHIPPED
};

cases! {
    /// The full run is the one that killed a proxy without these bounds: 2,000 connections in 512 MiB for ten minutes.
    unread_responses_hold_bounded_memory: "F01", unread_responses, [grows: (40, 440), keeps: (32, 128)],
        full: SHIPPED, seconds: (2.0, 600.0);
    unread_errors_hold_bounded_memory: "F01", unread_errors, [grows: (40, 440), keeps: (32, 128)],
        full: SHIPPED, seconds: (2.0, 60.0);
    #[ignore = "takes 90 s"]
    unread_responses_are_reset_within_75_seconds: "F01", reset_of_unread_responses, [grows: (64, 64)],
        seconds: (80.0, 80.0);
    #[ignore = "takes 90 s"]
    unread_download_is_cut_within_75_seconds: "slow read", unread_download, [grows: (32, 32)], seconds: (76.0, 76.0);
    unread_downloads_hold_bounded_memory: "F09", unread_downloads, [grows: (48, 256), keeps: (40, 32)], seconds: (1.5, 90.0);
    unfinished_uploads_hold_bounded_copies: "F03", unfinished_uploads, [grows: (40, 64)];
    one_byte_frames_hold_bounded_memory: "tiny frames", one_byte_frames, [grows: (16, 32)];
    one_byte_chunks_hold_bounded_memory: "tiny chunks", one_byte_chunks, [grows: (16, 32)];
    /// One field that fills the table, and then references to it.
    header_bomb_holds_bounded_memory: "HTTP/2 Bomb", header_bomb, [grows: (32, 128), upstream: (0, 0)];
    /// 40 KiB for each client of the full run, and the test build needs twice that.
    silent_watches_hold_bounded_memory: "F10", silent_watches, [grows: (16, 200)], full: SMALL, seconds: (0.5, 10.0);
    silent_connections_hold_bounded_memory: "F10", silent_connections, [grows: (8, 80)], full: SMALL, seconds: (0.5, 10.0);
}

/// 100 small responses per connection that are never read; pings are answered.
async fn unread_responses(attacker: Attacker) -> Outcome {
    unread(attacker, TOKEN, 25, 2_000).await
}

/// The same with 401s, each of which comes on an upstream connection of its own.
async fn unread_errors(attacker: Attacker) -> Outcome {
    unread(attacker, None, 10, 500).await
}

async fn unread(
    attacker: Attacker,
    token: Option<&'static str>,
    quick: usize,
    full: usize,
) -> Outcome {
    attacker
        .on_each(attacker.size.pick(quick, full), |attacker, _| async move {
            // A connection that was closed is opened again.
            attacker
                .again(|attacker| async move {
                    let mut outcome = Outcome::default();
                    let Ok(mut wire) = attacker.wire(Some(0)).await else {
                        return outcome;
                    };
                    for number in 0..100 {
                        wire.push(&headers(
                            2 * number + 1,
                            &fields("GET", "/small", token),
                            END_STREAM,
                        ));
                    }
                    wire.until_end(attacker.end).await;
                    outcome.wire(&wire);
                    outcome
                })
                .await
        })
        .await
        .with_codes()
}

async fn reset_of_unread_responses(attacker: Attacker) -> Outcome {
    const STREAMS: usize = 50;
    let mut outcome = Outcome::default();
    let mut wire = attacker.wire(Some(0)).await.unwrap();
    for number in 0..STREAMS {
        let stream = u32::try_from(2 * number + 1).unwrap();
        wire.push(&headers(
            stream,
            &fields("GET", "/small", TOKEN),
            END_STREAM,
        ));
    }
    let begun = Instant::now();
    let are_reset = wire
        .wait(
            |seen| seen.resets.values().sum::<usize>() == STREAMS,
            attacker.end,
        )
        .await;
    outcome.note(format!(
        "{:?} after {:.1} s",
        wire.seen.resets,
        begun.elapsed().as_secs_f64()
    ));
    if !are_reset && wire.ended.is_none() {
        outcome.fault(format!(
            "of {STREAMS} unread streams these were reset: {:?}",
            wire.seen.resets
        ));
    }
    outcome
}

/// Asks for a list over HTTP/1.1 and does not read it. Afterwards the rest must be missing.
async fn unread_download(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let mut tls = attacker.tls("http/1.1").await.unwrap();
    let get =
        format!("GET /list HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer attacker\r\n\r\n");
    write(&mut tls, get.as_bytes(), attacker.end).await;
    sleep_until(attacker.end).await;
    let mut received = 0;
    let mut space = vec![0; 64 << 10];
    loop {
        match tokio::io::AsyncReadExt::read(&mut tls, &mut space).await {
            Ok(0) | Err(_) => break,
            Ok(count) => received += count,
        }
    }
    outcome.note(format!("{received} of {LIST} bytes came"));
    if received >= LIST {
        outcome.fault("the whole list came");
    }
    outcome
}

/// 100 lists per connection, of which only the first window is taken. The full run lasts longer than a client may leave
/// a response unread, so the proxy has reset all of them while their connections are still open.
async fn unread_downloads(attacker: Attacker) -> Outcome {
    const LISTS: u32 = 100;
    let until = attacker.end;
    attacker
        .on_each(attacker.size.pick(8, 50), |attacker, _| async move {
            let mut outcome = Outcome::default();
            let Ok(mut wire) = attacker.wire(None).await else {
                return outcome;
            };
            for number in 0..LISTS {
                wire.push(&headers(
                    2 * number + 1,
                    &fields("GET", "/list", TOKEN),
                    END_STREAM,
                ));
            }
            wire.until_end(until).await;
            let reset = wire.seen.resets.values().sum::<usize>();
            if attacker.size.is_full() && wire.ended.is_none() && reset < LISTS as usize {
                outcome.fault(format!("{reset} of {LISTS} unread lists were reset"));
            }
            outcome.wire(&wire);
            outcome
        })
        .await
}

/// Uploads of 1 MiB each that lack their end. The proxy keeps copies of request bodies, to send a request again that
/// the apiserver did not process.
async fn unfinished_uploads(attacker: Attacker) -> Outcome {
    const UPLOAD: usize = 1 << 20;
    let (connections, uploads) = attacker.size.pick((2, 40), (5, 100));
    attacker
        .on_each(connections, |attacker, _| async move {
            let mut outcome = Outcome::default();
            let Some(client) = attacker.http2().await else {
                return outcome;
            };
            let mut open = Vec::new();
            for _ in 0..uploads {
                let request = Request::post(format!("https://{HOST}/upload"));
                let request = request
                    .header(header::AUTHORIZATION, "Bearer attacker")
                    .body(())
                    .unwrap();
                let Ok((response, mut upload)) = client.begin(request, false).await else {
                    break;
                };
                upload
                    .send_data(Bytes::from(vec![b'x'; UPLOAD]), false)
                    .ok();
                open.push((response, upload));
            }
            let all = connections * uploads * UPLOAD;
            let until = Instant::now() + standin::WAIT;
            while attacker.counts.uploaded() < all && Instant::now() < until {
                sleep(Duration::from_millis(20)).await;
            }
            outcome.note(format!("{} MiB arrived", attacker.counts.uploaded() >> 20));
            sleep(Duration::from_millis(300)).await;
            outcome
        })
        .await
}

async fn one_byte_frames(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let mut wire = attacker.wire(None).await.unwrap();
    wire.push(&headers(1, &fields("POST", "/upload", TOKEN), 0));
    let chunk = frame(kind::DATA, 0, 1, vec![b'x']).repeat(1000);
    // No more than the window of the stream, whatever the proxy grants.
    let mut left = 200;
    let next = |_: &_| {
        left -= 1;
        (left > 0).then(|| chunk.clone())
    };
    wire.pump(next, Duration::ZERO, attacker.end).await;
    outcome.note(format!("{} bytes arrived", attacker.counts.uploaded()));
    outcome.wire(&wire);
    outcome.with_codes()
}

async fn one_byte_chunks(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let mut tls = attacker.tls("http/1.1").await.unwrap();
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer attacker\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let chunks = "1\r\nx\r\n".repeat(1000);
    let mut is_open = write(&mut tls, head.as_bytes(), attacker.end).await;
    while is_open && !attacker.is_over() {
        is_open = write(&mut tls, chunks.as_bytes(), attacker.end).await;
    }
    outcome.note(format!("{} bytes arrived", attacker.counts.uploaded()));
    outcome
}

async fn header_bomb(attacker: Attacker) -> Outcome {
    // A literal with incremental indexing, which becomes entry 62, and references to that entry.
    let mut block = encode_fields(&fields("GET", "/", TOKEN));
    let value = "x".repeat(3900);
    block.extend([0x40, 1, b'a']);
    block.extend(encode_fields(&[("", &value)]).split_off(2));
    block.extend([0xbe].repeat(10_000));
    attacker
        .on_each(attacker.size.pick(4, 100), |attacker, _| {
            let block = block.clone();
            async move {
                let mut outcome = Outcome::default();
                let Ok(mut wire) = attacker.wire(Some(0)).await else {
                    return outcome;
                };
                for number in 0..100 {
                    let flags = END_STREAM | standin::frames::END_HEADERS;
                    wire.push(&frame(kind::HEADERS, flags, 2 * number + 1, block.clone()));
                }
                wire.until_end(attacker.end).await;
                outcome.wire(&wire);
                outcome
            }
        })
        .await
        .with_codes()
}

/// One HTTP/2 connection with one watch for each client.
async fn silent_watches(attacker: Attacker) -> Outcome {
    silent(attacker, true).await
}

/// HTTP/2 connections that are idle after one request, for a host that the proxy does not serve: so they have no lease.
async fn silent_connections(attacker: Attacker) -> Outcome {
    silent(attacker, false).await
}

async fn silent(attacker: Attacker, watches: bool) -> Outcome {
    // Few at a time: the handshakes are not what is measured.
    const OPENERS: usize = 8;
    let (count, rest) = attacker.size.pick(
        (104, Duration::from_millis(500)),
        (5_000, Duration::from_secs(10)),
    );
    let all_are_open = Arc::new(Barrier::new(OPENERS));
    attacker
        .on_each(OPENERS, |attacker, _| {
            let all_are_open = Arc::clone(&all_are_open);
            async move {
                let mut outcome = Outcome::default();
                let mut open = Vec::new();
                let mut request = fields("GET", "/quiet", TOKEN);
                if !watches {
                    request[2].1 = "other.test";
                }
                let request = headers(1, &request, END_STREAM);
                for _ in 0..count / OPENERS {
                    let Ok(mut wire) = attacker.wire(None).await else {
                        outcome.fault("a connection was refused");
                        break;
                    };
                    wire.push(&request);
                    let until = Instant::now() + standin::WAIT;
                    if !wire.wait(|seen| seen.heads > 0, until).await {
                        outcome.fault("no response");
                        break;
                    }
                    open.push(wire);
                }
                all_are_open.wait().await;
                sleep(rest).await;
                for wire in &open {
                    outcome.wire(wire);
                }
                outcome
            }
        })
        .await
}
