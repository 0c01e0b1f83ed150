//! Resolves the endpoints of the clusters again and again, or asks the cluster for them, probes their health, and moves
//! leases between them.
//!
//! A cluster that is no longer configured is not probed, even if a connection still uses it: a probe made
//! under an old CA must not set an endpoint's health.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    downstream::Shared,
    drain::Drain,
    upstream::{Cluster, Endpoints, UpstreamContext},
};

/// Resolves and probes the endpoints of all configured clusters.
pub(super) struct EndpointUpkeep {
    prober: Arc<UpstreamContext>,
    drain: Drain,
    workers: usize,
    /// Between two probes of `probed`.
    interval: Duration,
    probed: Vec<(Arc<Cluster>, JoinHandle<()>)>,
    /// The clusters that name their endpoints themselves.
    discovered: Vec<(Arc<Cluster>, AbortOnDropHandle<()>)>,
}

impl EndpointUpkeep {
    /// Starts with no cluster.
    pub(super) fn new(shared: &Shared, workers: usize) -> Self {
        let drain = Drain::new();
        // Probes dial as requests do, but they belong to no client and therefore to no worker.
        let settings = Arc::clone(&shared.settings);
        Self {
            prober: Arc::new(UpstreamContext::new(settings, drain.clone())),
            drain,
            workers,
            interval: Duration::ZERO,
            probed: Vec::new(),
            discovered: Vec::new(),
        }
    }

    /// Replaces the clusters. Waits for the first lookup of new names, so that no request fails because there
    /// is no address yet, and for the first answer of new clusters that name their endpoints.
    pub(super) async fn update(&mut self, clusters: &[Arc<Cluster>]) {
        let mut lookups = Vec::new();
        for endpoints in clusters.iter().map(|cluster| cluster.endpoints()) {
            let mut known = self.probed.iter().map(|(known, _)| known.endpoints());
            if !known.any(|known| Arc::ptr_eq(known, endpoints)) {
                lookups.push(self.look_up(endpoints));
            }
        }
        let is_configured =
            |known: &Arc<Cluster>| clusters.iter().any(|one| Arc::ptr_eq(one, known));
        self.discovered.retain(|(known, _)| is_configured(known));
        for cluster in clusters {
            let mut known = self.discovered.iter();
            let is_known = known.any(|(known, _)| Arc::ptr_eq(known, cluster));
            if cluster.endpoints().discovery().is_some() && !is_known {
                let (asked, first) = oneshot::channel();
                let prober = Arc::clone(&self.prober);
                let discovering = Arc::clone(cluster).keep_discovered(prober, asked);
                let task = AbortOnDropHandle::new(self.drain.spawn(discovering));
                self.discovered.push((Arc::clone(cluster), task));
                lookups.push(first);
            }
        }
        wait_for_first(lookups).await;
        let interval = self.prober.probe_interval();
        let is_same = interval == self.interval;
        self.interval = interval;
        let mut left = std::mem::take(&mut self.probed);
        for cluster in clusters {
            let at = left
                .iter()
                .position(|(known, _)| Arc::ptr_eq(known, cluster));
            self.probed.push(match at.filter(|_| is_same) {
                Some(at) => left.swap_remove(at),
                None => {
                    let probing = Arc::clone(cluster).keep_probed(Arc::clone(&self.prober));
                    (Arc::clone(cluster), self.drain.spawn(probing))
                }
            });
        }
        for (_, probing) in left {
            probing.abort();
        }
    }

    /// Resolves and balances these endpoints again and again; the receiver learns when the first lookup has ended.
    fn look_up(&self, endpoints: &Arc<Endpoints>) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let prober = Arc::clone(&self.prober);
        let balanced = Arc::clone(endpoints);
        let interval = move || prober.probe_interval();
        self.drain
            .spawn(balanced.keep_balanced(self.workers, interval));
        let (endpoints, prober) = (Arc::clone(endpoints), Arc::clone(&self.prober));
        self.drain.spawn(async move {
            // The next lookups report an error.
            drop(endpoints.resolve().await);
            sender.send(()).ok();
            endpoints
                .keep_resolved(move || prober.resolve_interval())
                .await;
        });
        receiver
    }
}

/// Waits for all of these lookups together, for [`FIRST_LOOKUP_TIMEOUT`] at most: no client is served
/// meanwhile.
async fn wait_for_first(lookups: Vec<oneshot::Receiver<()>>) {
    let until = Instant::now() + FIRST_LOOKUP_TIMEOUT;
    for lookup in lookups {
        timeout_at(until, lookup).await.ok();
    }
}

/// How long the start or a reload waits for names to resolve. A request that comes before there is an address
/// gets a 503.
const FIRST_LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn dead_resolver_delays_many_clusters_no_longer_than_one() {
        let (senders, lookups): (Vec<_>, Vec<_>) = (0..10).map(|_| oneshot::channel()).unzip();
        let began = Instant::now();
        wait_for_first(lookups).await;
        assert_eq!(began.elapsed(), FIRST_LOOKUP_TIMEOUT);
        drop(senders);
    }
}
