//! Bad credentials: what they cost the apiserver, and what their client sees.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use standin::{
    client::Http2,
    frames::{END_STREAM, kind},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::cases;
use crate::{
    attacker::{Attacker, Outcome, TOKEN, Wire, fields, headers},
    stage::{Conditions, HOST},
};

const FEW_DESCRIPTORS: Conditions = Conditions {
    config: "",
    open_files: Some(256),
    memory: None,
    balancers: 0,
};

cases! {
    /// As `kubectl` in a loop with an expired token.
    loop_with_expired_token_costs_the_client_most: "F08", expired_token, [slower: (50.0, 1.5)], seconds: (1.5, 60.0);
    expired_token_reaches_apiserver_within_budget: "401 budget", expired_token_often, [upstream: (70, 130)],
        seconds: (2.0, 60.0);
    #[ignore = "takes 60 s"]
    new_tokens_reach_apiserver_within_budget: "401 budget", guessed_tokens, [upstream: (700, 1_300)],
        seconds: (2.0, 60.0);
    requests_at_once_with_expired_token_get_401: "F08", expired_token_at_once, [];
    /// The GOAWAY of a 401 leaves the upstream connection open for the watch.
    watch_and_401_in_turns_hold_few_sockets: "F02", watch_and_401, [descriptors: 250], quick: FEW_DESCRIPTORS,
        full: FEW_DESCRIPTORS;
}

pub(super) fn get(token: &str) -> Request<Bytes> {
    let request = Request::get(format!("https://{HOST}/api/v1/pods"));
    let request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    request.body(Bytes::new()).unwrap()
}

/// Statuses, and errors that a client answers with a new connection.
#[derive(Default)]
struct Responses {
    statuses: BTreeMap<u16, usize>,
    gone: usize,
}

impl Responses {
    async fn send(&mut self, client: &Http2, token: &str) -> bool {
        let response = client.request(get(token)).await;
        self.add(response.map(|response| response.status.as_u16()))
    }

    fn add(&mut self, status: Result<u16, h2::Error>) -> bool {
        match status {
            Ok(status) => *self.statuses.entry(status).or_default() += 1,
            Err(_) => self.gone += 1,
        }
        status.is_ok()
    }

    /// Only 401, and 429 from the proxy itself.
    fn outcome(self, mut outcome: Outcome) -> Outcome {
        outcome.note(format!(
            "statuses {:?}, {} requests refused by a GOAWAY",
            self.statuses, self.gone
        ));
        if let Some(wrong) = self
            .statuses
            .keys()
            .find(|status| !matches!(status, 401 | 429))
        {
            outcome.fault(format!("status {wrong} for a wrong token"));
        }
        outcome
    }
}

async fn expired_token(attacker: Attacker) -> Outcome {
    wrong_tokens(attacker, 0, |_| "expired".to_owned()).await
}

/// More often than the budget allows, however long that takes.
async fn expired_token_often(attacker: Attacker) -> Outcome {
    wrong_tokens(attacker, 130, |_| "expired".to_owned()).await
}

/// Each request has another token.
async fn guessed_tokens(attacker: Attacker) -> Outcome {
    wrong_tokens(attacker, 0, |number| format!("guess-{number}")).await
}

/// Sends at least this number of requests, at most 500 per second, with a new connection after each GOAWAY.
async fn wrong_tokens(attacker: Attacker, least: usize, token: fn(usize) -> String) -> Outcome {
    let (mut outcome, mut responses) = (Outcome::default(), Responses::default());
    let before = attacker.upstream.accepted();
    let (mut clients, mut number) = (Vec::new(), 0);
    let last = Instant::now() + Duration::from_secs(40);
    while !attacker.is_over() || (number < least && Instant::now() < last) {
        // Several at once, because one alone waits for each round trip.
        while clients.len() < 8 {
            let Some(client) = attacker.http2().await else {
                break;
            };
            outcome.connections += 1;
            clients.push(client);
        }
        let due = Instant::now() + Duration::from_millis(16);
        let mut kept = Vec::new();
        for client in clients.drain(..) {
            number += 1;
            let is_gone = |client: &Http2| {
                client
                    .frames()
                    .iter()
                    .any(|frame| frame.kind == kind::GOAWAY)
            };
            if responses.send(&client, &token(number)).await && !is_gone(&client) {
                kept.push(client);
            }
        }
        clients = kept;
        tokio::time::sleep_until(due).await;
    }
    let handshakes = attacker.upstream.accepted() - before;
    outcome.note(format!(
        "{handshakes} handshakes of the apiserver, {} of the client",
        outcome.connections
    ));
    // The victim's new connections may need some, too.
    if handshakes > outcome.connections + 20 {
        outcome.fault("the apiserver had more handshakes than the client");
    }
    responses.outcome(outcome)
}

/// A dashboard with an expired token.
async fn expired_token_at_once(attacker: Attacker) -> Outcome {
    let mut all = Responses::default();
    let mut outcome = Outcome::default();
    for _ in 0..attacker.size.pick(3, 20) {
        let Some(client) = attacker.http2().await else {
            outcome.fault("a connection was refused");
            continue;
        };
        outcome.connections += 1;
        let mut begun = JoinSet::new();
        for _ in 0..100 {
            let (parts, _) = get("expired").into_parts();
            match client.begin(Request::from_parts(parts, ()), true).await {
                Ok((response, _)) => {
                    begun.spawn(async move { Ok(response.await?.status().as_u16()) });
                }
                Err(_) => all.gone += 1,
            }
        }
        while let Some(status) = begun.join_next().await {
            all.add(status.unwrap());
        }
    }
    if all.statuses.is_empty() {
        outcome.fault("no response");
    }
    all.outcome(outcome)
}

/// Three clients that each begin a watch and then send a request without a token, again and again.
async fn watch_and_401(attacker: Attacker) -> Outcome {
    attacker
        .on_each(3, |attacker, _| async move {
            let (mut open, mut rounds) = (Vec::<Wire>::new(), 0);
            // A proxy that passes the GOAWAY on needs a connection per round, the other kind needs one in all.
            while open.len() < 20 && rounds < 85 {
                let Ok(mut wire) = attacker.wire(None).await else {
                    break;
                };
                for round in 0.. {
                    rounds += 1;
                    wire.push(&headers(
                        4 * round + 1,
                        &fields("GET", "/quiet", TOKEN),
                        END_STREAM,
                    ));
                    let until = Instant::now() + Duration::from_secs(2);
                    wire.wait(|seen| seen.heads as u32 > 2 * round, until).await;
                    wire.push(&headers(
                        4 * round + 3,
                        &fields("GET", "/small", None),
                        END_STREAM,
                    ));
                    let is_done = wire
                        .wait(|seen| seen.heads as u32 > 2 * round + 1, until)
                        .await;
                    if !is_done || wire.seen.goaway.is_some() || rounds >= 85 {
                        break;
                    }
                }
                open.push(wire);
            }
            sleep(Duration::from_millis(500)).await;
            let mut outcome = Outcome::default();
            for wire in &open {
                outcome.wire(wire);
            }
            outcome.note(format!("{rounds} rounds"));
            outcome
        })
        .await
}
