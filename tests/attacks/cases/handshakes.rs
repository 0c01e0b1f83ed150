//! TLS handshakes and places: many handshakes at once, slow ones, and connections on which nothing follows.

use std::time::Duration;

use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, interval, sleep, timeout_at},
};

use super::{SHORT, cases, credentials};
use crate::{
    attacker::{Attacker, Outcome, end_of, fields, headers, write, write_slowly},
    stage::Conditions,
};

/// Few places, so that few connections take them all.
const FEW_PLACES: Conditions = Conditions {
    config: "limits: {connections: 48}\n",
    open_files: None,
    memory: None,
    balancers: 0,
};
const FEW_DESCRIPTORS: Conditions = Conditions {
    config: "",
    open_files: Some(256),
    memory: None,
    balancers: 0,
};

/// Both clients come through one `HAProxy`. The attacker alone could take all places.
const BALANCER: Conditions = Conditions {
    balancers: 1,
    ..FEW_PLACES
};
const BALANCER_FULL: Conditions = Conditions {
    config: "limits: {connections: 8000}\n",
    balancers: 2,
    ..FEW_PLACES
};

/// Connections for `kubernetes` are passed through to the apiserver. Its CA is in the file that the stage writes.
const PASSED: Conditions = Conditions {
    config: "timeouts: {handshake: 1s}
clusters:
- {name: prod, hosts: [kube.test], upstream: {url: 'https://UPSTREAM', ca: ca.crt, name: kubernetes.default.svc}}
- {name: direct, hosts: [kubernetes], passthrough: true, upstream: {url: 'https://UPSTREAM'}}
",
    open_files: None,
    memory: None,
    balancers: 0,
};

/// The address of the attacker is denied.
const DENIED: Conditions = Conditions {
    config: "listen: [{address: '127.0.0.1:0', deny: [127.0.0.2]}]\n",
    open_files: None,
    memory: None,
    balancers: 0,
};

cases! {
    /// The line has the connections per second and the share of a CPU.
    denied_address_is_closed_before_it_costs: "denied", denied_connections,
        [closed: Some((1.0, 1.0)), upstream: (0, 0), cpu: (f64::INFINITY, 15.0)], quick: DENIED, full: DENIED;
    /// Through `HAProxy` with `send-proxy-v2`, beside a loop with an expired token.
    one_client_of_a_balancer_leaves_places: "F12", places_and_tokens,
        [fresh: (3.0, 1.0), grows: (32, 160), descriptors: 20_000], quick: BALANCER, full: BALANCER_FULL, seconds: (4.0, 60.0);
    /// One `ClientHello`, sent again and again: the proxy computes, the attacker does not.
    handshake_flood_leaves_requests_fast: "F05", replayed_hello, [];
    silent_tcp_is_closed: "slowloris", silent_tcp, [closed: Some((2.5, 10.0))], quick: SHORT;
    hello_in_pieces_is_closed: "slowloris", hello_in_pieces, [closed: Some((3.0, 10.0))], quick: SHORT;
    tls_without_request_is_closed: "slowloris", tls_without_request, [closed: Some((3.0, 12.0))], quick: SHORT;
    plain_http_on_tls_port_fills_no_log: "log flooding", plain_http, [closed: Some((2.0, 2.0))];
    one_address_with_idle_connections_leaves_places: "F12", idle_connections, [fresh: (3.0, 1.0)], quick: FEW_PLACES,
        full: FEW_PLACES, seconds: (4.0, 60.0);
    one_address_with_silent_tcp_leaves_places: "F12", silent_places, [fresh: (3.0, 1.0)], quick: FEW_PLACES,
        full: FEW_PLACES, seconds: (4.0, 30.0);
    passed_hello_in_pieces_is_closed: "slowloris", passed_hello_in_pieces, [closed: Some((3.0, 4.0))], quick: PASSED,
        full: PASSED;
    /// The apiserver runs these handshakes, and the victim waits for the same apiserver.
    flood_of_passed_hellos_leaves_requests_fast: "F05", replayed_passed_hello, [slower: (50.0, 50.0)], quick: PASSED,
        full: PASSED;
    few_descriptors_are_enough: "descriptors", idle_connections, [descriptors: 256, fresh: (3.0, 1.0)],
        quick: FEW_DESCRIPTORS, full: FEW_DESCRIPTORS, seconds: (4.0, 30.0);
}

/// 5,000 connections per second, or fewer on a slow machine.
async fn denied_connections(attacker: Attacker) -> Outcome {
    let begun = Instant::now();
    let mut outcome = attacker
        .on_each(16, |attacker, _| async move {
            let mut outcome = Outcome::default();
            // It catches up after a delay.
            let mut due = interval(Duration::from_micros(3_200));
            while !attacker.is_over() {
                due.tick().await;
                let begun = Instant::now();
                // The reset may come before `connect` returns.
                if let Ok(mut tcp) = attacker.tcp().await {
                    let byte = timeout_at(attacker.end, tcp.read_u8()).await;
                    if matches!(byte, Ok(Ok(_))) {
                        outcome.fault("a denied address has got a byte");
                    }
                }
                outcome.connection(Some(begun.elapsed()));
            }
            outcome
        })
        .await;
    let seconds = begun.elapsed().as_secs_f64();
    let rate = outcome.connections as f64 / seconds;
    outcome.note(format!("{rate:.0} denied connections per second"));
    outcome
}

async fn replayed_hello(attacker: Attacker) -> Outcome {
    let hello = attacker.client.clone().alpn(&["h2"]).hello();
    replay(attacker, hello).await
}

async fn replayed_passed_hello(attacker: Attacker) -> Outcome {
    let hello = attacker.client.clone().sni("kubernetes").hello();
    replay(attacker, hello).await
}

async fn replay(attacker: Attacker, hello: Vec<u8>) -> Outcome {
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

/// Opens TCP connections, writes `bytes` on each, one per `pace`, and waits for their end.
async fn slow_tcp(attacker: Attacker, count: usize, bytes: Vec<u8>, pace: Duration) -> Outcome {
    let until = Instant::now()
        + attacker
            .size
            .pick(Duration::from_secs(5), Duration::from_secs(20));
    attacker
        .on_each(count, |attacker, _| {
            let bytes = bytes.clone();
            async move {
                let mut outcome = Outcome::default();
                let Ok(tcp) = attacker.tcp().await else {
                    return outcome;
                };
                outcome.connection(write_slowly(tcp, &bytes, pace, until).await);
                outcome
            }
        })
        .await
}

async fn silent_tcp(attacker: Attacker) -> Outcome {
    let count = attacker.size.pick(100, 1_000);
    slow_tcp(attacker, count, Vec::new(), Duration::ZERO).await
}

/// A `ClientHello` in records of one byte.
async fn hello_in_pieces(attacker: Attacker) -> Outcome {
    let hello = attacker.client.clone().hello();
    in_pieces(attacker, &hello).await
}

async fn passed_hello_in_pieces(attacker: Attacker) -> Outcome {
    let hello = attacker.client.clone().sni("kubernetes").hello();
    in_pieces(attacker, &hello).await
}

async fn in_pieces(attacker: Attacker, hello: &[u8]) -> Outcome {
    let pieces: Vec<u8> = hello[5..]
        .iter()
        .flat_map(|byte| [22, 3, 1, 0, 1, *byte])
        .collect();
    let count = attacker.size.pick(50, 500);
    slow_tcp(attacker, count, pieces, Duration::from_millis(20)).await
}

/// Half of the connections speak HTTP/1.1, the other half lack the preface of HTTP/2.
async fn tls_without_request(attacker: Attacker) -> Outcome {
    let until = Instant::now()
        + attacker
            .size
            .pick(Duration::from_secs(5), Duration::from_secs(20));
    attacker
        .on_each(attacker.size.pick(30, 300), |attacker, number| async move {
            let mut outcome = Outcome::default();
            let alpn = ["h2", "http/1.1"][number % 2];
            let Ok(mut tls) = attacker.tls(alpn).await else {
                return outcome;
            };
            outcome.connection(end_of(&mut tls, until).await);
            outcome
        })
        .await
}

async fn plain_http(attacker: Attacker) -> Outcome {
    let until = Instant::now() + Duration::from_secs(5);
    attacker
        .on_each(attacker.size.pick(300, 3_000), |attacker, _| async move {
            let mut outcome = Outcome::default();
            let Ok(mut tcp) = attacker.tcp().await else {
                return outcome;
            };
            write(
                &mut tcp,
                b"GET / HTTP/1.1\r\nHost: kube.test\r\n\r\n",
                until,
            )
            .await;
            outcome.connection(end_of(&mut tcp, until).await);
            outcome
        })
        .await
}

/// In the full run through two `HAProxy` processes, because each needs two descriptors per connection.
async fn places_and_tokens(attacker: Attacker) -> Outcome {
    let count = attacker.size.pick(150, 10_000);
    let (mut outcome, tokens) = tokio::join!(
        connections_with_requests(attacker.clone(), count),
        expired_token(attacker)
    );
    outcome.add(tokens);
    outcome
}

/// At most 500 requests per second, with a new connection after each GOAWAY.
async fn expired_token(attacker: Attacker) -> Outcome {
    let (mut outcome, mut refused) = (Outcome::default(), 0);
    while !attacker.is_over() {
        let Some(client) = attacker.http2().await else {
            continue;
        };
        outcome.connections += 1;
        while !attacker.is_over() {
            let Ok(response) = client.request(credentials::get("expired")).await else {
                break;
            };
            refused += usize::from(response.status == 401);
            sleep(Duration::from_millis(2)).await;
        }
    }
    outcome.note(format!("{refused} times 401"));
    outcome
}

/// More connections than there are places, each with a request of `/livez` now and then, as a client has that stays.
async fn idle_connections(attacker: Attacker) -> Outcome {
    let count = attacker.size.pick(150, 1_000);
    connections_with_requests(attacker, count).await
}

async fn connections_with_requests(attacker: Attacker, count: usize) -> Outcome {
    attacker
        .on_each(count, |attacker, number| async move {
            // The kernel drops connections that come all at once.
            sleep(Duration::from_millis(number as u64)).await;
            attacker
                .again(|attacker| async move {
                    let mut outcome = Outcome::default();
                    let Ok(Ok(mut wire)) = timeout_at(attacker.end, attacker.wire(None)).await
                    else {
                        return outcome;
                    };
                    let mut stream = 1;
                    let next = |_: &_| {
                        let request = headers(
                            stream,
                            &fields("GET", "/livez", None),
                            standin::frames::END_STREAM,
                        );
                        stream += 2;
                        Some(request)
                    };
                    wire.pump(next, Duration::from_secs(2), attacker.end).await;
                    outcome.wire(&wire);
                    outcome
                })
                .await
        })
        .await
        .with_codes()
}

async fn silent_places(attacker: Attacker) -> Outcome {
    let until = attacker.end;
    attacker
        .on_each(attacker.size.pick(150, 1_000), |attacker, _| async move {
            attacker
                .again(|attacker| async move {
                    let mut outcome = Outcome::default();
                    if let Ok(mut tcp) = attacker.tcp().await {
                        outcome.connection(end_of(&mut tcp, until).await);
                    }
                    outcome
                })
                .await
        })
        .await
}
