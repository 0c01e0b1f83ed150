//! `kube-tls-proxy check` as an operator sees it: the lines, the fix below them, the exit code.
//!
//! Every fault is a real one: a file, a socket or a stand-in apiserver that is wrong in one way.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "all of this crate is tests, also what stands outside of a #[test]; a test has no Drain"
)]

mod certificates;
mod configuration;
mod kubeconfig;
mod network;
mod requests;
mod through;
mod watch;
mod well;
mod world;
