//! A stand-in for kube-apiserver, together with the certificates and the clients that tests need around it.
//!
//! | module | what it offers |
//! | --- | --- |
//! | [`pki`] | throw-away CAs and leaves, good ones and bad ones |
//! | [`upstream`] | a scriptable TLS server that records what reaches it |
//! | [`client`] | clients that see TLS records, exact bytes and single frames |
//! | [`frames`] | HTTP/2 frames, read, written and counted by hand |
//! | [`tcp`] | peers that fail below HTTP, and a relay that can be frozen or cut |
//! | [`kubernetes`] | handlers that behave like a small apiserver, enough for kubectl |
//!
//! Everything listens on port 0 of 127.0.0.1, and every wait is bounded by [`WAIT`]: what does not come in
//! time fails the test with a sentence that names it.

pub mod client;
pub mod frames;
pub mod kubernetes;
pub mod pki;
pub mod tcp;
mod temp;
pub mod upstream;

use std::time::Duration;

pub use temp::TempDir;

/// How long anything here waits for a peer before it fails the test.
pub const WAIT: Duration = Duration::from_secs(10);

/// Resolves as `future` does.
///
/// # Panics
///
/// When [`WAIT`] has passed; `what` says what was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(WAIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: did not come within {WAIT:?}"),
    }
}
