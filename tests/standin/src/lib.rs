//! A stand-in for kube-apiserver, together with the certificates and the clients that tests need around it.
//!
//! It shares no code with the proxy, so that a fault in the proxy's parsers cannot hide itself.
//!
//! # Map
//!
//! | file | duty |
//! | --- | --- |
//! | `pki.rs` ([`pki`]) | makes temporary CAs and leaf certificates, valid ones and faulty ones |
//! | `tcp.rs` ([`tcp`]) | peers that fail below HTTP, and a TCP relay that a test can freeze or reset |
//! | `frames.rs` ([`frames`]) | reads, writes and counts single HTTP/2 frames |
//! | `gzip/mod.rs` ([`gzip`]) | gzip members as Go and zlib write them |
//! | `haproxy.rs` ([`haproxy`]) | `HAProxy` in front of a proxy, if it is installed |
//! | `temp.rs` ([`TempDir`]) | a temporary directory that is removed when the test ends |
//!
//! [`client`]: clients that show single TLS records, exact bytes and single frames.
//!
//! | file | duty |
//! | --- | --- |
//! | `client/mod.rs` | the settings of a client: trust, SNI, ALPN, versions, certificate |
//! | `client/tls.rs` | a TLS connection that a test can read record by record |
//! | `client/http1.rs` | an HTTP/1.1 client that writes exact bytes and parses the response |
//! | `client/http2.rs` | an HTTP/2 client that shows resets, GOAWAY frames and pings |
//!
//! [`upstream`]: a TLS server whose responses a test defines, and which records what it receives.
//!
//! | file | duty |
//! | --- | --- |
//! | `upstream/mod.rs` | the builder, the running server and what a test can ask it |
//! | `upstream/serve.rs` | handles one connection: handshake, then HTTP or the script of the test |
//! | `upstream/wire.rs` | records the decrypted bytes, and sends GOAWAY as Go does |
//! | `upstream/heads.rs` | extracts the request heads of HTTP/1.1 byte for byte |
//! | `upstream/body.rs` | request bodies that are recorded, response bodies that a test writes |
//! | `upstream/record.rs` | the record of connections and requests, and waiting for it |
//!
//! [`kubernetes`]: handlers that behave like a small kube-apiserver, enough for a real kubectl.
//!
//! | file | duty |
//! | --- | --- |
//! | `kubernetes/mod.rs` | authentication, routing, and the requests with a short response |
//! | `kubernetes/pods.rs` | requests that create, read, change or delete one pod |
//! | `kubernetes/store.rs` | the pods, and the events that change them |
//! | `kubernetes/selector.rs`, `patch.rs` | label and field selectors; merge patches |
//! | `kubernetes/watch.rs` | lists, watches and logs |
//! | `kubernetes/discovery.rs` | the groups, versions and resources that kubectl asks for first |
//! | `kubernetes/exec.rs` | the session of an exec over WebSocket |
//! | `kubernetes/websocket.rs` | the server side of WebSocket |
//! | `kubernetes/shell.rs` | the commands that exec can run |
//! | `kubernetes/query.rs`, `response.rs`, `clock.rs` | parse queries, build responses, format times |
//!
//! Every server listens on port 0 of 127.0.0.1. [`WAIT`] bounds every wait. A wait that exceeds it fails the test
//! with a message that names what did not arrive.

pub mod client;
pub mod frames;
pub mod gzip;
pub mod haproxy;
pub mod kubernetes;
pub mod outbound;
pub mod pki;
pub mod tcp;
mod temp;
pub mod upstream;

use std::time::Duration;

pub use temp::TempDir;

/// The longest wait for a peer before the test fails.
pub const WAIT: Duration = Duration::from_secs(10);

/// Waits for `future` and returns its output.
///
/// # Panics
///
/// When `future` takes longer than [`WAIT`]. `what` names the awaited thing in the message.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: did not arrive within {WAIT:?}"),
    }
}
