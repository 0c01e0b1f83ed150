//! Asks endpoints for `/readyz` over HTTP/1.1 and a connection of its own each time, verified as every
//! other one.
//!
//! What is asked for is whether this is an apiserver that answers: a 401 or 403 is as good as a 200,
//! because no credentials are sent.

use std::sync::{Arc, Weak};

use http::{Request, StatusCode, Uri, header, uri::Scheme};
use tokio::time::timeout;

use super::{
    Cluster, RequestBody, UpstreamContext, UpstreamError, dial, endpoint::Endpoint,
    h1::H1Connection,
};
use crate::{hosts::url_host, text::error_chain};

impl Cluster {
    /// Probes the endpoints of this cluster for as long as somebody else holds it. `context` has no
    /// clients; the dials of the probes are its own.
    pub async fn keep_probed(self: Arc<Self>, context: Arc<UpstreamContext>) {
        let interval = context.timeouts.probe_interval;
        if interval.is_zero() {
            return;
        }
        let endpoints = Arc::clone(&self.endpoints);
        let cluster = Arc::downgrade(&self);
        drop(self);
        // Once in any case: what is known may have been found out under another CA.
        let mut worth = endpoints.all();
        loop {
            let probe_requests = endpoints.probe_requests();
            if !probe_all(&cluster, &context, worth).await {
                return;
            }
            endpoints.next_round(probe_requests, interval).await;
            worth = endpoints.probe_targets();
        }
    }
}

/// One round; `false` when the cluster is gone.
async fn probe_all(
    cluster: &Weak<Cluster>,
    context: &Arc<UpstreamContext>,
    worth: Vec<Arc<Endpoint>>,
) -> bool {
    let Some(cluster) = cluster.upgrade() else {
        return false;
    };
    let mut probes = Vec::new();
    // Side by side: one that is silent must not make the others wait.
    for endpoint in worth {
        let (cluster, context) = (Arc::clone(&cluster), Arc::clone(context));
        let drain = context.drain.clone();
        probes.push(drain.spawn(async move {
            let asked = timeout(
                context.timeouts.probe_timeout,
                ask(&context, &cluster, &endpoint),
            );
            let address = endpoint.address();
            let why = match asked.await {
                Ok(Ok(status)) if !status.is_server_error() => {
                    return cluster.endpoints.mark_healthy(&endpoint);
                }
                Ok(Ok(status)) => format!("{address} answered {status} to /readyz"),
                Ok(Err(error)) => error_chain(&error).to_string(),
                Err(_elapsed) => {
                    format!("{address} did not answer /readyz within timeouts.probeTimeout")
                }
            };
            cluster.report_unhealthy(&endpoint, why);
        }));
    }
    for probe in probes {
        // A probe that panicked has said nothing about its endpoint.
        probe.await.ok();
    }
    true
}

async fn ask(
    context: &UpstreamContext,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
) -> Result<StatusCode, UpstreamError> {
    let address = endpoint.address();
    let stream = dial::handshake(context, cluster, &cluster.tls.h1, endpoint).await?;
    let connection = H1Connection::new(Box::new(stream), address);
    let target = format!("{}/readyz", cluster.path_prefix);
    let request = Uri::builder()
        .scheme(Scheme::HTTPS)
        .authority(&*url_host(&cluster.tls.name.to_str()))
        .path_and_query(target)
        .build()
        .and_then(|uri| {
            Request::get(uri)
                .header(header::USER_AGENT, AGENT)
                .header(header::CONNECTION, "close")
                .body(())
        });
    let Ok(request) = request else {
        return Err(UpstreamError::Protocol {
            endpoint: address,
            what: "to a name that no request can carry",
        });
    };
    let (head, ()) = request.into_parts();
    // The head has said it; nobody waits for the rest.
    let answered = connection
        .exchange(head, RequestBody::empty(), None, &context.drain)
        .await;
    answered
        .map(|response| response.status())
        .map_err(|failed| failed.error)
}

/// How probes show up in an audit log.
const AGENT: &str = concat!("kube-tls-proxy/", env!("CARGO_PKG_VERSION"), " probe");
