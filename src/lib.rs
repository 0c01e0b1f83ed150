//! kube-tls-proxy terminates TLS with a public certificate and re-originates it, verified against the
//! cluster's own CA, to a kube-apiserver.
//!
//! # The life of a request
//!
//! | stage | module | its one duty |
//! | --- | --- | --- |
//! | 1 | [`listener`] | accept TCP connections and bound how many are open |
//! | 2, 3 | [`downstream`] | handshake under a deadline; drive one HTTP/1.1 or h2 connection |
//! | 4 | [`proxy`] | one request in, one response out: policy, headers, upgrade, errors as `Status` |
//! | 5, 6 | [`upstream`] | lease, dial and verify an apiserver connection; send one request on it |
//!
//! Imports follow the request: a module uses what a request meets later, never what it met before.
//! Under the HTTP of both legs lies `transport`, which reads ahead and gathers writes.
//! Beside the path stand [`app`] (builds the parts and runs the workers), [`check`] (finds what does not
//! work and says the mend), [`cli`], [`config`], [`pki`], [`reload`], [`drain`], [`metrics`] and [`admin`]
//! (what is counted, and who may read it), [`heartbeat`], [`telemetry`], [`hosts`] and `text`.
//!
//! # What is deliberately absent
//!
//! No switch that turns verification off. No pool that clients share: an upstream connection serves
//! one client at a time ([`upstream::ClientLeases`]). No buffering of bodies. No clock, file or environment
//! variable is read on the way of a request. No request is sent twice unless it provably was not
//! processed ([`upstream::UpstreamError::is_unprocessed`]).

pub mod activity;
pub mod admin;
pub mod app;
#[doc(hidden)]
pub mod bench;
pub mod check;
pub mod cli;
pub mod config;
pub mod downstream;
pub mod drain;
#[doc(hidden)]
pub mod fuzz;
pub mod heartbeat;
pub mod hosts;
pub mod listen_error;
pub mod listener;
pub mod metrics;
pub mod pki;
pub mod proxy;
mod quote;
pub mod reload;
mod socket;
pub mod telemetry;
mod text;
mod transport;
pub mod upstream;
