//! An attacker of our own and a victim beside it, against the built binary.
//!
//! Each test is one attack. The attacker has the address 127.0.0.2, raw TLS, single HTTP/2 frames and raw HTTP/1.1; the
//! victim has 127.0.0.3, sends requests at a steady rate and follows watches. A test prints one line and fails when the
//! attack costs more than its bounds allow, when the victim sees a failure, or when a watch loses an event.
//!
//! | run | command |
//! | --- | --- |
//! | quick, with every change | `cargo test --test attacks` |
//! | full, with the figures of a release | `ATTACKS=full cargo test --release --test attacks -- --include-ignored --nocapture` |
//! | small GETs in mixed load, beside nginx and `HAProxy` | `benches/peers/compare.py --cells mixed --contenders ours,nginx,haproxy-h1` |
//!
//! `ATTACKS_BINARY=PATH` attacks another binary. `ATTACKS_REPORT=FILE` appends the lines to a file. The full run puts
//! the proxy on CPU 0 and the rest on CPU 1, so it needs a quiet machine with two CPUs.
//!
//! The lines say: requests of the attacker that reached the apiserver; when its connections were closed; the victim's
//! times before and during the attack; its failures; memory and descriptors before, at most during, and after the
//! attack.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "this crate is all tests, also outside a #[test]; a test has no Drain"
)]

mod apiserver;
mod attacker;
mod cases;
mod report;
mod stage;
mod victim;
