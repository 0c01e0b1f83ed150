//! What every stream and every tunnel costs before a byte is buffered for it: the size of its future.

use std::{future::Future, sync::Arc, time::Duration};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::{Downstream, Routes, access::Access, handle, tunnel, upgrade};
use crate::upstream::Cluster;

/// The size of the future that this function returns.
fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

/// The numbers are as in `downstream::sizes`.
#[test]
fn the_future_of_a_request_stays_small() {
    type Borrowed = (&'static Routes, &'static Arc<Downstream>);
    let request = size(
        |((routes, downstream), request, broken): (Borrowed, _, _)| {
            handle(routes, downstream, request, broken)
        },
    );
    assert!(request <= REQUEST, "{request} bytes");
}

#[test]
fn the_futures_of_an_upgrade_and_of_a_tunnel_stay_small() {
    type Borrowed = (
        &'static Arc<Downstream>,
        &'static Cluster,
        &'static mut Option<Box<Access>>,
    );
    let asked = size(
        |((downstream, cluster, access), head, body, token): (Borrowed, _, _, _)| {
            upgrade::forward(downstream, cluster, head, body, token, access)
        },
    );
    assert!(asked <= UPGRADE, "until the 101: {asked} bytes");
    type Ends = (TokioIo<Upgraded>, crate::upstream::Upgraded);
    let joined =
        size(|((client, apiserver), rest): (Ends, Duration)| tunnel::join(client, apiserver, rest));
    assert!(joined <= TUNNEL, "behind it: {joined} bytes");
}

const REQUEST: usize = 650;
const UPGRADE: usize = 2_190;
const TUNNEL: usize = 710;
