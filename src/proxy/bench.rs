//! Entry points of the benches: rewriting a head, counting a request, and reading what it asks of Kubernetes.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};

use super::{
    ClientConnection,
    access_log::AccessLog,
    credential::CredentialCache,
    headers::{self, Forwarded},
    request_id::RequestId,
    request_info::RequestInfo,
};
use crate::{
    clients::ClientTable,
    config::Settings,
    drain::Drain,
    ending::{EndReason, Ending},
    hosts::PeerAddr,
    metrics::{ClusterLabel, ClusterLabels, Connected, Histogram, Protocol},
    upstream::{ClientLeases, UpstreamContext},
};

/// Rewrites the header of a request that is not an upgrade, as the proxy does before it forwards the request.
pub fn rewrite_request(headers: &mut HeaderMap, client: &HeaderValue, host: &str) {
    let request_id = RequestId::from_headers(headers).header_value();
    let forwarded = Forwarded {
        client,
        host,
        request_id,
    };
    headers::rewrite_request(headers, forwarded, None);
}

/// Counts requests that are not logged.
#[derive(Debug)]
pub struct Counting {
    downstream: ClientConnection,
    request: Request<()>,
    fields: HeaderMap,
    cluster: ClusterLabel,
    endpoint: Histogram,
}

impl Counting {
    /// A counter of requests for this target, all from one client.
    ///
    /// # Panics
    ///
    /// Never: the table is empty.
    #[must_use]
    pub fn new(target: &Uri) -> Self {
        let settings = Arc::new(Settings::default());
        let worker = Arc::new(UpstreamContext::new(Arc::default(), Drain::new()));
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let place = ClientTable::new(&settings.limits).enter(PeerAddr(peer), false);
        let connected = Connected::new(
            Arc::clone(worker.counters()),
            PeerAddr(peer),
            None,
            Protocol::Http2,
            place.expect("an empty table has a place"),
            Drain::new(),
        );
        let mut request = Request::new(());
        target.clone_into(request.uri_mut());
        Self {
            downstream: ClientConnection {
                certificate: None,
                peer: PeerAddr(peer),
                sni: None,
                local: None,
                forwarded_for: ClientConnection::forwarded_for(PeerAddr(peer)),
                leases: ClientLeases::new(worker),
                settings,
                connected: Arc::new(connected),
                drain: Drain::new(),
                credentials: CredentialCache::default(),
            },
            request,
            fields: HeaderMap::new(),
            cluster: ClusterLabels::default().label("prod"),
            endpoint: Histogram::default(),
        }
    }

    /// Counts one request whose response body is one frame.
    pub fn one(&self) {
        let mut log = AccessLog::new(&self.downstream, &self.request, None);
        log.routed(&self.cluster);
        self.endpoint.observe(log.headers_arrived());
        log.response_started(StatusCode::OK, &self.fields);
        log.sent(1000);
        log.completed(Ending::by_apiserver(EndReason::Eof));
    }
}

/// Verb, resource and namespace of a request, as in its log line.
#[must_use]
pub fn classify(method: &Method, uri: &Uri) -> (&'static str, String, String) {
    let info = RequestInfo::new(method, uri);
    (info.verb, info.resource_name(), info.namespace.into_owned())
}
