//! Tests of the memory that a stream and a tunnel take before any byte is buffered: the size of their
//! futures and of the record of a request.

use std::{future::Future, time::Duration};

use super::{
    ClientConnection, Routes,
    access_log::AccessLog,
    handle,
    tunnel::{self, Carried},
    upgrade,
};
use crate::{http1::Upgraded, upstream::UpstreamRequest};

/// The size of the future that this function returns.
fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn future_of_request_stays_small() {
    type References = (&'static Routes, &'static ClientConnection);
    let request = size(
        |((routes, downstream), request, rejection): (References, _, _)| {
            handle(routes, downstream, request, rejection)
        },
    );
    assert!(request <= MAX_REQUEST, "{request} bytes");
}

#[test]
fn futures_of_upgrade_and_tunnel_stay_small() {
    type References = (
        &'static ClientConnection,
        UpstreamRequest<'static>,
        &'static mut AccessLog,
    );
    let upgrade = size(
        |((downstream, request, log), body, token): (References, _, _)| {
            upgrade::forward(downstream, request, body, token, log)
        },
    );
    assert!(upgrade <= MAX_UPGRADE, "until the 101: {upgrade} bytes");
    type Ends = (Upgraded, Upgraded, &'static mut Carried);
    let tunnel = size(
        |((client, apiserver, carried), timeout): (Ends, Duration)| {
            tunnel::join(client, apiserver, timeout, carried)
        },
    );
    assert!(tunnel <= MAX_TUNNEL, "after the 101: {tunnel} bytes");
}

/// The fields that few requests need, such as the name of the user, have an allocation of their own.
#[test]
fn record_of_request_stays_small() {
    let record = size_of::<AccessLog>();
    assert!(record <= MAX_RECORD, "{record} bytes");
}

// In bytes: the measured size and a tenth more. A future that outgrows its limit holds something that used to
// be on the heap, or that it needs only for a moment. Raise a limit only if that is worth it for every stream.
const MAX_REQUEST: usize = 720;
const MAX_UPGRADE: usize = 2_190;
const MAX_TUNNEL: usize = 790;
/// Without a tenth: there is one for each open request.
const MAX_RECORD: usize = 472;
