//! kube-tls-proxy ends the TLS connection of a client, which sees a public certificate, and opens its own
//! TLS connection to a kube-apiserver, which it verifies against the cluster's own CA.
//!
//! `docs/architecture.md` follows one GET, one watch and one `kubectl exec` through this code, function by
//! function, and has a glossary. This page is its short form.
//!
//! # The life of a request
//!
//! | module | duty |
//! | --- | --- |
//! | [`listener`] | accepts TCP connections and bounds how many are open |
//! | [`downstream`] | runs the handshake under a deadline ([`downstream::spawn`]), then one HTTP/1.1 or h2 connection |
//! | [`proxy`] | one request in, one response out ([`proxy::handle`]): policy, headers, upgrade, errors as `Status` |
//! | [`upstream`] | leases, dials and verifies an apiserver connection ([`upstream::ClientLeases`]), sends one request on it |
//!
//! A watch is a request whose response does not end; `proxy::watch` ends it between two events when the
//! process stops. An exec is an upgrade; `proxy::upgrade` and `proxy::tunnel` join the two connections.
//!
//! Imports follow the request: a module uses the modules that a request meets later, and leaves, but never a
//! module that the request met earlier. `tests/tidy.rs` enforces this.
//!
//! # The two ideas
//!
//! A *lease* instead of a pool: an upstream connection serves one client connection at a time, so that a client
//! cannot harm another through it. *Workers* that share nothing on the request path: each has its own thread,
//! listening socket and idle pool; all global state is one immutable [`downstream::Snapshot`].
//!
//! # Beside the path
//!
//! [`cli`] starts [`app`], which binds the sockets and runs the workers. [`config`] and [`pki`] turn files into
//! checked values, [`reload`] does it again while the proxy runs, and [`drain`] ends running work in order.
//! [`metrics`], [`activity`], [`heartbeat`] and [`telemetry`] record what happens, and [`admin`] shows it.
//! [`check`] runs the same code as [`app`] and finds configuration and connection problems before users do.
//! [`translate`] makes a configuration file from the manifests of an ingress.
//!
//! # What is deliberately absent
//!
//! No switch that turns verification off. No pool that clients share. No buffering of bodies. No file or
//! environment variable is read on the path of a request, and no wall clock decides anything there, except
//! whether a certificate is still valid (rustls). No request is sent twice unless it provably
//! was not processed ([`upstream::ClientLeases::send`]).

pub mod acme;
pub mod activity;
pub mod admin;
pub mod app;
#[doc(hidden)]
pub mod bench;
pub mod check;
pub mod cidr;
pub mod cli;
pub mod clients;
pub mod config;
pub mod downstream;
pub mod drain;
pub mod ending;
#[doc(hidden)]
pub mod fuzz;
pub mod heartbeat;
pub mod hosts;
mod http1;
mod kubeconfig_document;
pub mod listen_error;
pub mod listener;
pub mod memory;
pub mod metrics;
pub mod pki;
mod plain_http;
mod process;
pub mod proxy;
mod quote;
pub mod reload;
mod socket;
pub mod telemetry;
mod text;
pub mod tls_error;
mod token_bucket;
pub mod translate;
mod transport;
mod upgrade_token;
pub mod upstream;
