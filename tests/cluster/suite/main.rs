//! Runs the real kubectl against a real apiserver, directly and through the proxy.
//!
//! Every case runs on both routes, so the proxy causes every difference. The cases need Go, the Go
//! modules of `tests/cluster` and kubectl. If one of them is missing, the cases print it and pass; with
//! `REQUIRE_CLUSTER=1` they fail.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test reports a failure with a panic"
)]
#![expect(
    clippy::disallowed_types,
    reason = "the awaited processes do not follow a paused clock"
)]

mod access;
mod acme;
mod audit;
mod certificates;
mod check;
mod copy;
mod discovery;
mod exec;
mod fixture;
mod forward;
mod guides;
mod impersonation;
mod informers;
mod isolation;
mod kubectl;
mod lists;
mod logs;
mod manifests;
mod passthrough;
#[expect(
    dead_code,
    clippy::disallowed_methods,
    reason = "shared with tests/acme, which uses all of it"
)]
#[path = "../../acme/pebble.rs"]
mod pebble;
mod process;
mod proxy;
mod reads;
mod restart;
mod spellings;
mod suite;
mod terminal;
mod watch;
mod way;
mod writes;
