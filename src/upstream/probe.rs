//! Probes endpoints: each probe asks for `/readyz` on a connection of its own. Without a CA, which only a passthrough
//! cluster can lack, a probe ends in the TLS handshake.
//!
//! A probe asks whether an apiserver answers at this address. A 401 or 403 counts as much as a 200, because
//! a probe sends no credentials.

use std::sync::{Arc, Weak};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::timeout;
use tracing::warn;

use super::{
    Cluster, Health, UpstreamContext, UpstreamError, endpoint::Endpoint, own_get::own_get,
};

impl Cluster {
    /// Probes the endpoints of this cluster until all other handles of it are dropped. `context` has no
    /// clients, so the probes share no connection with one.
    pub async fn keep_probed(self: Arc<Self>, context: Arc<UpstreamContext>) {
        let interval = context.probe_interval();
        if interval.is_zero() {
            return;
        }
        let endpoints = Arc::clone(&self.endpoints);
        let cluster = Arc::downgrade(&self);
        drop(self);
        // Probes all of them once, because their state may come from another CA.
        let mut targets = endpoints.all();
        loop {
            let requested = endpoints.probe_requests();
            if !probe_all(&cluster, &context, targets).await {
                return;
            }
            endpoints.next_round(requested, interval).await;
            targets = endpoints.probe_targets();
        }
    }
}

/// Runs one round. Returns `false` when the `Cluster` has been dropped, for example because a reload replaced it.
async fn probe_all(
    cluster: &Weak<Cluster>,
    context: &Arc<UpstreamContext>,
    targets: Vec<Arc<Endpoint>>,
) -> bool {
    let Some(cluster) = cluster.upgrade() else {
        return false;
    };
    let mut probes = Vec::new();
    // In parallel, because a silent endpoint must not delay the probes of the others.
    for endpoint in targets {
        let (cluster, context) = (Arc::clone(&cluster), Arc::clone(context));
        let drain = context.drain.clone();
        probes.push(drain.spawn(async move {
            let limit = context.settings.load().timeouts.probe_timeout;
            let result = timeout(limit, probe(&context, &cluster, &endpoint)).await;
            let address = endpoint.address();
            let (why, is_down) = match result {
                Ok(Ok(None)) => return cluster.endpoints.mark_healthy(&endpoint),
                Ok(Ok(Some(status))) if !status.is_server_error() => {
                    let is_unknown = matches!(
                        status,
                        StatusCode::NOT_FOUND | StatusCode::MISDIRECTED_REQUEST
                    );
                    // Every kube-apiserver has /readyz. Only the first response is logged.
                    if is_unknown && endpoint.state() != Health::Healthy {
                        warn!(
                            cluster = cluster.name(),
                            upstream.address = %address,
                            host = cluster.probe_host,
                            status = status.as_u16(),
                            "upstream has no /readyz; check URL and path of the apiserver, and upstream.host"
                        );
                    }
                    return cluster.endpoints.mark_healthy(&endpoint);
                }
                Ok(Ok(Some(status))) => (format!("{address} answered /readyz with {status}"), true),
                Ok(Err(error)) => (cluster.describe(&error), error.is_outage()),
                Err(_elapsed) => {
                    let asked = if cluster.tls.has_anchors() { "/readyz" } else { "a TLS handshake" };
                    (
                        format!("{address} did not answer {asked} within timeouts.probeTimeout"),
                        true,
                    )
                }
            };
            // Only the first failure is logged.
            if endpoint.state() != Health::Unhealthy {
                warn!(
                    cluster = cluster.name(),
                    upstream.address = %address,
                    error = why,
                    "upstream probe failed"
                );
            }
            cluster
                .endpoints
                .mark_unhealthy(&endpoint, "probe", why, is_down);
        }));
    }
    for probe in probes {
        // A probe that panicked gives no information about its endpoint.
        probe.await.ok();
    }
    true
}

/// Returns the status code of `/readyz`; `None` if there is no CA and a TLS server answered.
async fn probe(
    context: &UpstreamContext,
    cluster: &Cluster,
    endpoint: &Arc<Endpoint>,
) -> Result<Option<StatusCode>, UpstreamError> {
    let agent = HeaderValue::from_static(USER_AGENT);
    let headers = HeaderMap::from_iter([(header::USER_AGENT, agent)]);
    match own_get(context, cluster, endpoint, "/readyz", headers).await {
        Err(UpstreamError::Verify { .. }) if !cluster.tls.has_anchors() => Ok(None),
        // The head is the result; the body is not read.
        answered => answered.map(|response| Some(response.status())),
    }
}

/// How probes appear in an audit log.
const USER_AGENT: &str = concat!("kube-tls-proxy/", env!("CARGO_PKG_VERSION"), " probe");
