//! What every connection costs before a byte is buffered for it: the size of its future.

use std::future::Future;

use super::{http::serve_connection, serve};

/// The size of the future that this function returns.
fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

/// Each is what was measured and a tenth more. A future that has grown past it has taken something in
/// that was on the heap, or that is only needed for a while; raise the number only for what is worth it
/// to every idle connection.
#[test]
fn the_future_of_a_connection_stays_small() {
    let of_http = size(|(stream, protocol, service)| serve_connection(stream, protocol, service));
    assert!(of_http <= OF_HTTP, "HTTP: {of_http} bytes");
    let whole = size(|(stream, peer, permit, shared, worker, drain)| {
        serve(stream, peer, permit, shared, worker, drain)
    });
    assert!(whole <= WHOLE, "from handshake to end: {whole} bytes");
}

const OF_HTTP: usize = 1_260;
const WHOLE: usize = 1_460;
