//! TLS handshakes: many at once, slow ones, and those that never begin.

use std::time::Duration;

use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout_at},
};

use super::cases;
use crate::attacker::{Attacker, Outcome, write};

cases! {
    /// One ClientHello, sent again and again: the proxy computes, the attacker does not.
    handshake_flood_leaves_requests_fast: "F05", replayed_hello, [];
}

async fn replayed_hello(attacker: Attacker) -> Outcome {
    let hello = attacker.client.clone().alpn(&["h2"]).hello();
    let connections = attacker.size.pick(32, 128);
    let mut outcome = attacker
        .on_each(connections, |attacker, _| {
            let hello = hello.clone();
            async move {
                let mut outcome = Outcome::default();
                while !attacker.is_over() {
                    let Ok(mut tcp) = attacker.tcp().await else {
                        continue;
                    };
                    outcome.connections += 1;
                    let mut space = [0; 16 << 10];
                    if write(&mut tcp, &hello, attacker.end).await
                        && matches!(
                            timeout_at(attacker.end, tcp.read(&mut space)).await,
                            Ok(Ok(1..))
                        )
                    {
                        outcome.closed += 1;
                    }
                    standin::tcp::reset(tcp);
                }
                outcome
            }
        })
        .await;
    let answered = outcome.closed;
    outcome.note(format!("{answered} hellos answered"));
    outcome
}
