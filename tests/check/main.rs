//! `kube-tls-proxy check` as an operator sees it: the lines, the fixes below them, and the exit code.
//!
//! Every fault is real: a file, a socket or a stand-in apiserver with one thing wrong.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "the whole crate is tests, including the functions without #[test]; a test has no Drain"
)]

mod access;
mod acme;
mod certificates;
mod configuration;
mod healthy;
mod kubeconfig;
mod network;
mod passthrough;
mod requests;
mod through;
mod users;
mod watch;
mod words;
mod world;
