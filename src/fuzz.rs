//! The bodies of the fuzz targets: plain functions that panic when an invariant breaks.
//!
//! `tests/fuzz.rs` replays `fuzz/corpus` through them in every `cargo test`.

use crate::http1;
pub use crate::{
    http1::{ParsedRequest, RequestEnd, requests},
    proxy::{AccessRules, RequestAttributes, is_open, request_attributes},
};

/// The name of a target, which is also the folder of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Returns all targets.
#[must_use]
pub fn targets() -> [Target; 21] {
    let [targets, budgets, hello, proxy_headers] = crate::downstream::FUZZ;
    let [goaway, endpointslice, outbound] = crate::upstream::FUZZ;
    let [
        headers,
        host,
        path,
        events,
        credentials,
        access,
        clients,
        certificate,
        prefixes,
    ] = crate::proxy::FUZZ;
    [
        ("heads", http1::fuzz_requests),
        ("targets", targets),
        ("budgets", budgets),
        ("proxyheader", proxy_headers),
        ("hello", hello),
        ("frames", crate::transport::frames::fuzz),
        ("headers", headers),
        ("host", host),
        ("path", path),
        ("events", events),
        ("clients", clients),
        ("credentials", credentials),
        ("access", access),
        ("certificate", certificate),
        ("prefixes", prefixes),
        ("goaway", goaway),
        ("endpointslice", endpointslice),
        ("outbound", outbound),
        ("response", http1::fuzz_response_head),
        ("chunks", http1::fuzz_chunks),
        ("manifests", crate::translate::fuzz),
    ]
}
