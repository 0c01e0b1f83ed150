//! What the benches measure of this stage: rewriting a head, and reading what it asks of Kubernetes.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, request::Parts};
use tokio::sync::Semaphore;

use super::{
    Downstream,
    access::Access,
    headers::{self, Vouched},
    request_info::{RequestInfo, ResourceName},
};
use crate::{
    config::{Limits, Timeouts},
    drain::Drain,
    hosts::PeerAddr,
    metrics::{Connected, Protocol},
    upstream::{ClientLeases, UpstreamContext},
};

/// Makes a request's header fit for the apiserver, as for every request that is not an upgrade.
pub fn rewrite_request(headers: &mut HeaderMap, client: &HeaderValue, host: &str) {
    headers::rewrite_request(headers, Vouched { client, host }, None);
}

/// What is counted for every request that is not logged.
#[derive(Debug)]
pub struct Counting {
    downstream: Downstream,
    head: Parts,
    fields: HeaderMap,
}

impl Counting {
    /// Requests for this target, all of one client.
    ///
    /// # Panics
    ///
    /// Never: one permit of one is free.
    #[must_use]
    pub fn new(target: &Uri) -> Self {
        let (limits, timeouts) = (Limits::default(), Timeouts::default());
        let worker = Arc::new(UpstreamContext::new(limits.clone(), timeouts, Drain::new()));
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned();
        let connected = Connected::new(
            Arc::clone(worker.counts()),
            peer,
            Protocol::Http2,
            permit.expect("a new semaphore has its permit"),
        );
        let (mut head, ()) = Request::new(()).into_parts();
        head.uri = target.clone();
        Self {
            downstream: Downstream {
                peer: PeerAddr(peer),
                sni: None,
                forwarded_for: Downstream::forwarded_for(PeerAddr(peer)),
                lease: ClientLeases::new(worker),
                limits,
                half_close_timeout: std::time::Duration::ZERO,
                connected: Arc::new(connected),
                drain: Drain::new(),
            },
            head,
            fields: HeaderMap::new(),
        }
    }

    /// One request with an answer in one piece, from its head to its end.
    pub fn one(&self) {
        let mut access = Access::begin(&self.downstream, &self.head);
        access.answered(StatusCode::OK, &self.fields);
        access.sent(1000);
        access.complete();
    }
}

/// Verb, resource and namespace of a request, as its log line has them.
#[must_use]
pub fn classify(method: &Method, uri: &Uri) -> (&'static str, String, String) {
    let info = RequestInfo::new(method, uri);
    let resource = ResourceName(&info).to_string();
    (info.verb, resource, info.namespace.into_owned())
}
