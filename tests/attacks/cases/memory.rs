//! Memory: responses that are never read, uploads that never end, and many silent clients.

use std::time::Duration;

use standin::frames::END_STREAM;
use tokio::time::{Instant, sleep};

use super::cases;
use crate::attacker::{Attacker, Outcome, TOKEN, fields, headers};

cases! {
    unread_responses_hold_bounded_memory: "F01", unread_responses, [grows: (40, 256)];
}

/// 100 small responses per connection that are never read; pings are answered.
async fn unread_responses(attacker: Attacker) -> Outcome {
    let until = attacker.end;
    attacker
        .on_each(attacker.size.pick(40, 2_000), |attacker, _| async move {
            let mut outcome = Outcome::default();
            let Ok(mut wire) = attacker.wire(Some(0)).await else {
                return outcome;
            };
            for number in 0..100 {
                wire.push(&headers(
                    2 * number + 1,
                    &fields("GET", "/small", TOKEN),
                    END_STREAM,
                ));
            }
            wire.until_end(until).await;
            outcome.wire(&wire);
            outcome
        })
        .await
}
