//! Tests the memory that every connection needs before a byte is buffered for it: the size of its future.

use std::future::Future;

use super::{http1, serve};

/// The size of the future that this function returns.
fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

/// Each bound is the measured size and a tenth more. A future that outgrows it now holds something that was
/// on the heap, or that is needed only for a while. Raise a bound only for something that every idle
/// connection needs.
#[test]
fn future_of_a_connection_stays_small() {
    let of_http1 = size(|(stream, service)| http1::serve(stream, service));
    assert!(of_http1 <= HTTP1, "HTTP/1.1: {of_http1} bytes");
    let whole = size(|(stream, peer, place, shared, context, drain)| {
        serve(stream, peer, place, shared, context, drain)
    });
    assert!(whole <= WHOLE, "from handshake to end: {whole} bytes");
}

const HTTP1: usize = 1_260;
const WHOLE: usize = 1_520;
