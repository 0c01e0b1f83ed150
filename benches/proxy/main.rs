//! Times requests of a client through a proxy in this process, and single steps of a request.
//! `benches/README.md` says how to read the figures.

#![expect(clippy::disallowed_methods, reason = "a bench has no Drain")]

mod apiserver;
mod client;
mod functions;
mod handshakes;
mod harness;
mod requests;
mod tunnels;
mod watches;

use std::time::Duration;

use criterion::{Criterion, criterion_group};
use tokio::time::Instant;

criterion_group! {
    name = over_sockets;
    config = settings(Duration::from_secs(9));
    targets = requests::small_get, requests::list, handshakes::handshake, tunnels::tunnel, watches::fan_out
}
criterion_group! {
    name = pure;
    config = settings(Duration::from_secs(4));
    targets = functions::headers, functions::parsing, functions::counting
}

/// Few samples, because each of them has many requests.
fn settings(measurement: Duration) -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_secs(2))
        .measurement_time(measurement)
}

#[expect(clippy::print_stderr, reason = "this is a program for a terminal")]
fn main() {
    let begun = Instant::now();
    over_sockets();
    pure();
    Criterion::default().configure_from_args().final_summary();
    eprintln!("all benches took {:.0?}", begun.elapsed());
}
