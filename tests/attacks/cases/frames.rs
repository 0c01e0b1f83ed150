//! HTTP/2 frames: those of no use, and requests that are cancelled.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use standin::frames::{END_STREAM, kind};
use tokio::time::Instant;

use super::cases;
use crate::{
    attacker::{Attacker, Outcome, TOKEN, Wire, fields, frame, headers},
    stage::HOST,
};

cases! {
    control_frame_floods_are_closed: "F07", all_floods, [closed: Some((10.0, 10.0))], seconds: (1.5, 15.0);
    #[ignore = "one kind of frame, for the figures of the full run"]
    ping_flood_is_closed: "F07", ping, [closed: Some((10.0, 10.0))];
    #[ignore = "one kind of frame, for the figures of the full run"]
    settings_flood_is_closed: "F07", settings, [closed: Some((10.0, 10.0))];
    #[ignore = "one kind of frame, for the figures of the full run"]
    window_update_flood_is_closed: "F07", window_update, [closed: Some((10.0, 10.0))];
    #[ignore = "one kind of frame, for the figures of the full run"]
    late_reset_flood_is_closed: "F07", late_reset, [closed: Some((10.0, 10.0))];
    #[ignore = "one kind of frame, for the figures of the full run"]
    priority_flood_is_closed: "F07", priority, [closed: Some((10.0, 10.0))];
    #[ignore = "one kind of frame, for the figures of the full run"]
    unknown_type_flood_is_closed: "F07", unknown, [closed: Some((10.0, 10.0))];
    #[ignore = "one kind of frame, for the figures of the full run"]
    empty_data_flood_is_closed: "F07", empty_data, [closed: Some((10.0, 10.0))];
    /// Each connection may reset some requests before it is closed.
    rapid_reset_of_begun_requests_is_closed: "F06", rapid_reset, [closed: Some((2.0, 1.0)), upstream: (2_000, 30_000)];
    rapid_reset_in_one_write_is_closed: "F06", rapid_reset_at_once, [closed: Some((2.0, 1.0)), upstream: (1_000, 20_000)];
    /// Errors of the client for which the proxy resets streams that have begun.
    provoked_resets_are_closed: "CVE-2025-8671", provoked_resets, [closed: Some((2.0, 2.0)), upstream: (4_000, 60_000)];
    /// No attack: an apiserver that answers uploads before their end makes the proxy reset them.
    client_of_300_early_answers_stays: "early answers", early_answers, [];
}

/// One frame of each kind that h2 answers or skips without a limit.
fn useless_frames() -> [Vec<u8>; 7] {
    [
        frame(kind::PING, 0, 0, vec![0; 8]),
        frame(kind::SETTINGS, 0, 0, vec![]),
        frame(kind::WINDOW_UPDATE, 0, 0, vec![0, 0, 0, 1]),
        frame(kind::RST_STREAM, 0, 1, vec![0, 0, 0, 8]),
        frame(kind::PRIORITY, 0, 1, vec![0, 0, 0, 0, 15]),
        frame(0xff, 0xff, 7, vec![]),
        frame(kind::DATA, 0, 3, vec![]),
    ]
}

/// All kinds at once, each on a connection of its own.
async fn all_floods(attacker: Attacker) -> Outcome {
    let floods = |attacker, number: usize| async move { flood(attacker, number).await };
    let outcome = attacker.on_each(useless_frames().len(), floods);
    outcome.await.with_codes()
}

async fn ping(attacker: Attacker) -> Outcome {
    flood(attacker, 0).await.with_codes()
}

async fn settings(attacker: Attacker) -> Outcome {
    flood(attacker, 1).await.with_codes()
}

async fn window_update(attacker: Attacker) -> Outcome {
    flood(attacker, 2).await.with_codes()
}

async fn late_reset(attacker: Attacker) -> Outcome {
    flood(attacker, 3).await.with_codes()
}

async fn priority(attacker: Attacker) -> Outcome {
    flood(attacker, 4).await.with_codes()
}

async fn unknown(attacker: Attacker) -> Outcome {
    flood(attacker, 5).await.with_codes()
}

async fn empty_data(attacker: Attacker) -> Outcome {
    flood(attacker, 6).await.with_codes()
}

/// Sends frames of this kind at full speed, on one connection after the other.
async fn flood(attacker: Attacker, number: usize) -> Outcome {
    let frame = &useless_frames()[number];
    let chunk = frame.repeat(32 * 1024 / frame.len());
    attacker
        .again(|attacker| {
            let chunk = chunk.clone();
            async move {
                let Ok(mut wire) = attacker.wire(None).await else {
                    return Outcome::default();
                };
                open_streams(&mut wire).await;
                wire.answers = false;
                // A connection that is never closed shows here.
                let until = Instant::now()
                    + attacker
                        .size
                        .pick(Duration::from_secs(3), Duration::from_secs(12));
                wire.pump(|_| Some(chunk.clone()), Duration::ZERO, until)
                    .await;
                let mut outcome = Outcome::default();
                outcome.wire(&wire);
                outcome
            }
        })
        .await
}

/// A request on stream 1 that is complete, and one on stream 3 whose body is not.
async fn open_streams(wire: &mut Wire) {
    wire.push(&headers(1, &fields("GET", "/small", TOKEN), END_STREAM));
    wire.wait(|seen| seen.data_frames > 0, Instant::now() + standin::WAIT)
        .await;
    wire.push(&headers(3, &fields("POST", "/upload", TOKEN), 0));
}

/// Opens ten streams, gives them time to reach the apiserver, and resets them.
async fn rapid_reset(attacker: Attacker) -> Outcome {
    reset_in_turns(attacker, Duration::from_millis(2), false).await
}

/// Resets each stream in the write that opens it.
async fn rapid_reset_at_once(attacker: Attacker) -> Outcome {
    reset_in_turns(attacker, Duration::ZERO, true).await
}

async fn reset_in_turns(attacker: Attacker, pace: Duration, at_once: bool) -> Outcome {
    const STREAMS: u32 = 10;
    let outcome = attacker
        .again(|attacker| async move {
            let Ok(mut wire) = attacker.wire(None).await else {
                return Outcome::default();
            };
            let mut turn = 0;
            let next = |_: &_| {
                let (batch, opens, resets) = if at_once {
                    (turn, true, true)
                } else {
                    (turn / 2, turn % 2 == 0, turn % 2 == 1)
                };
                turn += 1;
                let mut bytes = Vec::new();
                for stream in (0..STREAMS).map(|number| 2 * (STREAMS * batch + number) + 1) {
                    if opens {
                        bytes.extend(headers(stream, &fields("GET", "/never", TOKEN), END_STREAM));
                    }
                    if resets {
                        bytes.extend(frame(kind::RST_STREAM, 0, stream, vec![0, 0, 0, 8]));
                    }
                }
                Some(bytes)
            };
            wire.pump(next, pace, Instant::now() + Duration::from_secs(5))
                .await;
            let mut outcome = Outcome::default();
            outcome.wire(&wire);
            outcome
        })
        .await;
    outcome.with_codes()
}

/// Each stream begins a request and then breaks a rule (`MadeYouReset`), on each connection another rule.
async fn provoked_resets(attacker: Attacker) -> Outcome {
    const RULES: usize = 5;
    const STREAMS: u32 = 10;
    let provoke = |attacker: Attacker, rule: usize| async move {
        attacker
            .again(|attacker| async move {
                let Ok(mut wire) = attacker.wire(None).await else {
                    return Outcome::default();
                };
                let mut batch = 0;
                let next = |_: &_| {
                    let mut bytes = Vec::new();
                    for number in 0..STREAMS {
                        bytes.extend(broken_request(2 * (STREAMS * batch + number) + 1, rule));
                    }
                    batch += 1;
                    Some(bytes)
                };
                let until = Instant::now() + Duration::from_secs(4);
                wire.pump(next, Duration::from_millis(2), until).await;
                let mut outcome = Outcome::default();
                outcome.wire(&wire);
                outcome
            })
            .await
    };
    let mut outcome = attacker.on_each(RULES, provoke).await.with_codes();
    let most = attacker.counts.most_running();
    outcome.note(format!("{most} requests at once"));
    if most > RULES * 100 {
        outcome.fault(format!("{most} requests at once on {RULES} connections"));
    }
    outcome
}

fn broken_request(stream: u32, rule: usize) -> Vec<u8> {
    let mut request = fields("GET", "/never", TOKEN);
    let broken = match rule {
        0 => frame(kind::WINDOW_UPDATE, 0, stream, vec![0; 4]),
        1 => frame(kind::WINDOW_UPDATE, 0, stream, vec![0x7f, 0xff, 0xff, 0xff]),
        2 => frame(kind::DATA, 0, stream, vec![b'x']),
        3 => frame(kind::PRIORITY, 0, stream, vec![0; 4]),
        _ => {
            // More bytes than the request announces.
            request = fields("POST", "/upload", TOKEN);
            request.push(("content-length", "1"));
            frame(kind::DATA, 0, stream, vec![b'x'; 16])
        }
    };
    let flags = if rule < 4 { END_STREAM } else { 0 };
    [headers(stream, &request, flags), broken].concat()
}

async fn early_answers(attacker: Attacker) -> Outcome {
    let mut outcome = Outcome::default();
    let client = attacker.http2().await.unwrap();
    for number in 0..300 {
        let request = Request::post(format!("https://{HOST}/early"));
        let request = request
            .header(header::AUTHORIZATION, "Bearer attacker")
            .body(())
            .unwrap();
        let due = Instant::now()
            + attacker
                .size
                .pick(Duration::from_millis(2), Duration::from_millis(10));
        let answer = async {
            let (response, mut upload) = client.begin(request, false).await?;
            upload.send_data(Bytes::from(vec![b'x'; 256 << 10]), false)?;
            let response = response.await?;
            Ok::<_, h2::Error>(response.status())
        };
        match answer.await {
            Ok(status) if status == 413 => {}
            other => {
                outcome.fault(format!("upload {number}: {other:?}"));
                break;
            }
        }
        tokio::time::sleep_until(due).await;
    }
    outcome
}
