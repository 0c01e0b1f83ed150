//! Keeps the addresses of the clusters current, and finds out which of them are ill.
//!
//! A cluster that is no longer served is probed no longer, whoever still holds it: what its old CA says
//! about an endpoint must not pass for how that is.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{
    downstream::Shared,
    drain::Drain,
    upstream::{Cluster, Endpoints, UpstreamContext},
};

/// What is done for the clusters that are served, beside their requests.
pub(super) struct EndpointUpkeep {
    prober: Arc<UpstreamContext>,
    drain: Drain,
    probed: Vec<(Arc<Cluster>, JoinHandle<()>)>,
}

impl EndpointUpkeep {
    /// For no cluster yet.
    pub(super) fn new(shared: &Shared) -> Self {
        let drain = Drain::new();
        // Probes dial as clients do; they have no client whose worker they could use.
        let (limits, timeouts) = (shared.limits.clone(), shared.timeouts.clone());
        Self {
            prober: Arc::new(UpstreamContext::new(limits, timeouts, drain.clone())),
            drain,
            probed: Vec::new(),
        }
    }

    /// Goes over to these clusters. Waits for a first answer about the names that are new, so that no
    /// request fails for want of an address.
    pub(super) async fn update(&mut self, clusters: &[Arc<Cluster>]) {
        let mut lookups = Vec::new();
        for endpoints in clusters.iter().map(|cluster| cluster.endpoints()) {
            let mut known = self.probed.iter().map(|(known, _)| known.endpoints());
            if !known.any(|known| Arc::ptr_eq(known, endpoints)) {
                lookups.push(self.look_up(endpoints));
            }
        }
        first_answers(lookups).await;
        let mut left = std::mem::take(&mut self.probed);
        for cluster in clusters {
            let at = left
                .iter()
                .position(|(known, _)| Arc::ptr_eq(known, cluster));
            self.probed.push(match at {
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

    /// Keeps these addresses current; what is returned hears when they were looked up once.
    fn look_up(&self, endpoints: &Arc<Endpoints>) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let (endpoints, interval) = (Arc::clone(endpoints), self.prober.resolve_interval());
        self.drain.spawn(async move {
            // What goes wrong is said by the lookups that follow.
            drop(endpoints.resolve().await);
            tell.send(()).ok();
            endpoints.keep_resolved(interval).await;
        });
        told
    }
}

/// Waits for these, not for long, and not for one after the other: nobody is served meanwhile.
async fn first_answers(lookups: Vec<oneshot::Receiver<()>>) {
    let until = Instant::now() + FIRST_LOOKUP;
    for told in lookups {
        timeout_at(until, told).await.ok();
    }
}

/// How long the start, or a reload, waits for names to resolve; requests that come before there is an
/// address get a 503.
const FIRST_LOOKUP: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dead_resolver_holds_many_clusters_up_no_longer_than_one() {
        let (tells, lookups): (Vec<_>, Vec<_>) = (0..10).map(|_| oneshot::channel()).unzip();
        let began = Instant::now();
        first_answers(lookups).await;
        assert_eq!(began.elapsed(), FIRST_LOOKUP);
        drop(tells);
    }
}
