//! What the benches measure of counting.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::{Counts, Done, Protocol, Resource, Verb};

/// All that is counted for one request that lists pods.
pub fn count_request(counts: &Arc<Counts>) {
    counts.request(&Done {
        verb: Verb::List,
        resource: Resource::of("", "pods", None),
        status: Some(StatusCode::OK),
        protocol: Protocol::Http2,
        head: Some(Duration::from_millis(3)),
        whole: Some(Duration::from_millis(4)),
    });
    counts.sent(1000);
    counts.received(0);
}
