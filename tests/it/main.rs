//! The proxy as its peers see it: every test drives a real proxy over real sockets and asserts what the
//! client or the stand-in apiserver observes. `tests/README.md` lists the test cases.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "this crate is all tests, also outside a #[test]; a test has no Drain"
)]

mod proxy;
mod responses;

// One module per topic. A test belongs to the topic of the behaviour that it observes.
mod access;
mod admin;
mod authority;
mod balancers;
mod binary;
mod certificates;
mod directory;
mod discovery;
mod drain;
mod early_responses;
mod endpoints;
mod expect;
mod forwarding;
mod handover;
mod hostile_access;
mod hosts;
mod hot_file;
mod hot_keys;
mod http1_upstream;
mod isolation;
mod kube_client;
mod latency;
mod lease;
mod limits;
mod liveness;
mod logs;
#[cfg(target_os = "linux")]
mod memory;
mod outbound;
mod passthrough;
mod prefixes;
mod published;
mod rebalancing;
mod reloading;
mod retry;
mod smuggling;
#[cfg(target_os = "linux")]
mod sockets;
mod spoofing;
mod streams;
mod tls;
mod translated;
mod tunnels;
mod upgrades;
mod watch_ends;
mod watch_losses;
mod words;
mod wrong_upstreams;
