//! Drives the real kubectl against a real apiserver, directly and through the proxy.
//!
//! Every case runs on both routes, and what differs between them is the proxy's doing. The cases
//! need Go, the Go modules of `tests/cluster` and a kubectl; without one of them they say so and
//! pass, unless `KUBE_TLS_PROXY_REQUIRE_CLUSTER=1` forbids that.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test says what is wrong by ending"
)]
#![expect(
    clippy::disallowed_types,
    reason = "the processes that are waited for do not obey a paused clock"
)]

mod audit;
mod check;
mod copy;
mod exec;
mod fixture;
mod forward;
mod isolation;
mod kubectl;
mod lists;
mod logs;
mod manifests;
mod process;
mod proxy;
mod reads;
mod restart;
mod suite;
mod terminal;
mod watch;
mod writes;
