//! HTTP/2 frames: those of no use, requests that are cancelled, and heads without end.

use std::time::Duration;

use standin::frames::{END_STREAM, encode_fields, kind};
use tokio::time::Instant;

use super::{SHORT, cases};
use crate::attacker::{Attacker, Outcome, TOKEN, Wire, fields, frame, headers};

cases! {
    ping_flood_is_closed: "F07", ping, [closed: Some((10.0, 10.0))];
    settings_flood_is_closed: "F07", settings, [closed: Some((10.0, 10.0))];
    window_update_flood_is_closed: "F07", window_update, [closed: Some((10.0, 10.0))];
    late_reset_flood_is_closed: "F07", late_reset, [closed: Some((10.0, 10.0))];
    priority_flood_is_closed: "F07", priority, [closed: Some((10.0, 10.0))];
    unknown_type_flood_is_closed: "F07", unknown, [closed: Some((10.0, 10.0))];
    empty_data_flood_is_closed: "F07", empty_data, [closed: Some((10.0, 10.0))];
    /// Each connection may reset some requests before it is closed.
    rapid_reset_of_begun_requests_is_closed: "F06", rapid_reset, [closed: Some((2.0, 1.0)), upstream: (2_000, 30_000)];
    rapid_reset_in_one_write_is_closed: "F06", rapid_reset_at_once, [closed: Some((2.0, 1.0)), upstream: (1_000, 20_000)];
    head_without_end_is_closed: "F04", endless_head, [closed: Some((3.0, 12.0)), grows: (16, 64)], quick: SHORT;
}

async fn ping(attacker: Attacker) -> Outcome {
    flood(attacker, &frame(kind::PING, 0, 0, vec![0; 8])).await
}

async fn settings(attacker: Attacker) -> Outcome {
    flood(attacker, &frame(kind::SETTINGS, 0, 0, vec![])).await
}

async fn window_update(attacker: Attacker) -> Outcome {
    flood(
        attacker,
        &frame(kind::WINDOW_UPDATE, 0, 0, vec![0, 0, 0, 1]),
    )
    .await
}

async fn late_reset(attacker: Attacker) -> Outcome {
    flood(attacker, &frame(kind::RST_STREAM, 0, 1, vec![0, 0, 0, 8])).await
}

async fn priority(attacker: Attacker) -> Outcome {
    flood(attacker, &frame(kind::PRIORITY, 0, 1, vec![0, 0, 0, 0, 15])).await
}

async fn unknown(attacker: Attacker) -> Outcome {
    flood(attacker, &frame(0xff, 0xff, 7, vec![])).await
}

async fn empty_data(attacker: Attacker) -> Outcome {
    flood(attacker, &frame(kind::DATA, 0, 3, vec![])).await
}

/// Sends this frame at full speed, on one connection after the other.
async fn flood(attacker: Attacker, frame: &[u8]) -> Outcome {
    let chunk = frame.repeat(32 * 1024 / frame.len());
    let outcome = attacker
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
        .await;
    outcome.with_codes()
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

/// HEADERS and 15 CONTINUATION frames of which none ends the head, on many connections.
async fn endless_head(attacker: Attacker) -> Outcome {
    let value = "x".repeat(3500);
    let fragment = encode_fields(&[("x-filler", &value)]);
    let mut head = frame(
        kind::HEADERS,
        END_STREAM,
        1,
        encode_fields(&fields("GET", "/", None)),
    );
    for _ in 0..15 {
        head.extend(frame(kind::CONTINUATION, 0, 1, fragment.clone()));
    }
    let until = Instant::now()
        + attacker
            .size
            .pick(Duration::from_secs(5), Duration::from_secs(20));
    let outcome = attacker
        .on_each(attacker.size.pick(20, 200), |attacker, _| {
            let head = head.clone();
            async move {
                let mut outcome = Outcome::default();
                let Ok(mut wire) = attacker.wire(None).await else {
                    return outcome;
                };
                wire.push(&head);
                wire.until_end(until).await;
                outcome.wire(&wire);
                outcome
            }
        })
        .await;
    outcome.with_codes()
}
