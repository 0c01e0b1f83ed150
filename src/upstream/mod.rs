//! Stages 5 and 6: sends one request on the lease of its downstream connection.
//!
//! A request is sent a second time only when the apiserver provably did not process the first.

mod body;
mod dial;
mod endpoint;
mod error;
mod h1;
mod h2;
mod lease;
mod probe;
mod steps;
mod tls;
mod upload;
mod verify;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Response, StatusCode, request::Parts};
use tokio::{sync::Mutex, time::Instant};
use tracing::{debug, warn};

pub use body::{DownloadError, RequestBody, ResponseBody, UploadError};
pub use endpoint::{EndpointHealth, Endpoints, Health};
pub use error::{HttpError, UpstreamError};
pub use h1::{H1Error, Upgraded};
pub(crate) use steps::{Offer, TcpConnected};
pub use tls::ClientTls;
pub use verify::VerifyError;

use crate::{
    config::{Limits, Timeouts},
    drain::Drain,
    metrics::{Counters, LeaseEnd},
    text::error_chain,
};
use lease::{Connection, Freshness, IdlePool, LeaseTable, LeasedSlot, Lookup};
use upload::Upload;

/// The fuzz bodies of this stage: finding frames, and the answers of HTTP/1.1.
pub(crate) const FUZZ: [fn(&[u8]); 3] = {
    let [head, chunks] = h1::FUZZ;
    [h2::fuzz, head, chunks]
};

/// One apiserver as requests see it: where it is, and how it proves itself.
#[derive(Debug)]
pub struct Cluster {
    id: u64,
    name: String,
    path_prefix: String,
    endpoints: Arc<Endpoints>,
    tls: ClientTls,
    /// Gone when this generation is.
    generation: Arc<()>,
}

impl Cluster {
    /// A cluster of a new trust generation: connections of an older one are not used for it.
    #[must_use]
    pub fn new(
        name: String,
        path_prefix: String,
        endpoints: Arc<Endpoints>,
        tls: ClientTls,
    ) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            name,
            path_prefix,
            endpoints,
            tls,
            generation: Arc::default(),
        }
    }

    /// What log lines call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What is put before every path.
    #[must_use]
    pub fn path_prefix(&self) -> &str {
        &self.path_prefix
    }

    /// Notes that a probe failed; the log hears of it once.
    fn report_unhealthy(&self, endpoint: &endpoint::Endpoint, why: String) {
        if endpoint.state() != Health::Unhealthy {
            warn!(cluster = self.name, error = why, "upstream probe failed");
        }
        self.endpoints.mark_unhealthy(endpoint, why);
    }

    /// Where it is.
    #[must_use]
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }
}

/// What the connections of one worker share: its idle leases and its settings.
#[derive(Debug)]
pub struct UpstreamContext {
    idle: Arc<IdlePool>,
    limits: Limits,
    timeouts: Timeouts,
    drain: Drain,
    counts: Arc<Counters>,
}

impl UpstreamContext {
    /// A context without connections. Sweeping starts with the first call of [`UpstreamContext::sweep`].
    #[must_use]
    pub fn new(limits: Limits, timeouts: Timeouts, drain: Drain) -> Self {
        let idle = IdlePool::new(
            limits.idle_upstream_connections,
            timeouts.upstream_idle,
            drain.clone(),
        );
        Self {
            idle: Arc::new(idle),
            limits,
            timeouts,
            drain,
            counts: Arc::default(),
        }
    }

    /// The same, with these counters in place of its own.
    #[must_use]
    pub fn counting(self, counts: Arc<Counters>) -> Self {
        Self { counts, ..self }
    }

    /// What is counted on this worker.
    #[must_use]
    pub fn counts(&self) -> &Arc<Counters> {
        &self.counts
    }

    /// How often names are to be resolved.
    #[must_use]
    pub fn resolve_interval(&self) -> Duration {
        self.timeouts.resolve
    }

    /// Closes idle upstream connections that grew too old, for ever.
    pub async fn sweep(&self) {
        let interval = (self.timeouts.upstream_idle / 4).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(interval).await;
            self.idle.sweep();
        }
    }

    /// Closes all idle upstream connections; those that come back later are closed too once the
    /// drain has begun.
    pub fn close_idle(&self) {
        self.idle.clear();
    }
}

/// The upstream side of one downstream connection.
#[derive(Debug)]
pub struct ClientLeases {
    context: Arc<UpstreamContext>,
    held: Arc<LeaseTable>,
    /// One dial serves all streams that wait for it, and its failure fails them all: a hundred streams
    /// must not wait for a dead apiserver one after the other.
    dialling: Mutex<Option<DialFailure>>,
}

impl ClientLeases {
    /// A lease that holds no connection yet.
    #[must_use]
    pub fn new(context: Arc<UpstreamContext>) -> Self {
        let held = LeaseTable::new(Arc::clone(&context.idle));
        Self {
            context,
            held,
            dialling: Mutex::new(None),
        }
    }

    /// Sends a request in the protocol it came in (`head.version`), and returns the response as soon
    /// as its head is there. `head.uri` is absolute: its authority becomes `:authority` or `Host`.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::is_unprocessed`] says whether the apiserver can have acted on the request.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request upstream.
    pub async fn send(
        &self,
        cluster: &Cluster,
        head: Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let wants_h2 = head.version == http::Version::HTTP_2;
        let upload = Upload::new(body, self.context.limits.replay_bytes);
        let slot = match self.held.find(cluster.id, wants_h2, Freshness::Any) {
            Lookup::Slot(slot) => slot,
            // What is rare is on the heap here: a stream keeps the room of its largest step to its end.
            Lookup::MustDial | Lookup::MustDialH1 => {
                Box::pin(self.slot(cluster, wants_h2, Freshness::Any)).await?
            }
        };
        let first_try = Instant::now();
        let (head, again) = match self.exchange(cluster, slot, head, upload).await {
            Ok(response) => return checked(response),
            Err(FailedExchange { error, again: None }) => return Err(error),
            Err(FailedExchange {
                error,
                again: Some(again),
            }) => {
                debug!(
                    error = %error_chain(&error),
                    "request is sent once more"
                );
                *again
            }
        };
        Box::pin(async {
            // A newer connection, because whatever ended the first one may have ended all of its age.
            let slot = self
                .slot(cluster, wants_h2, Freshness::After(first_try))
                .await?;
            let answered = self.exchange(cluster, slot, head, again).await;
            answered.map_err(|failed| failed.error).and_then(checked)
        })
        .await
    }

    /// Sends an upgrade request on an HTTP/1.1 connection of its own, which is never used again.
    /// [`ResponseBody::into_upgraded`] of a 101 response gives the upgraded connection.
    ///
    /// # Errors
    ///
    /// As [`ClientLeases::send`]; nothing is sent twice.
    pub async fn send_upgrade(
        &self,
        cluster: &Cluster,
        head: Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let connected = dial::connect(&self.context, cluster, &cluster.tls.h1);
        let connection = Box::pin(connected).await?;
        connection.stats().set_end_reason(LeaseEnd::Upgrade);
        match connection {
            Connection::H1(connection) => {
                Box::pin(connection.exchange(head, body, None, &self.context.drain))
                    .await
                    .map_err(|failed| failed.error)
            }
            Connection::H2(connection) => Err(UpstreamError::Protocol {
                endpoint: connection.endpoint(),
                what: "with HTTP/2, which was not offered",
            }),
        }
    }

    /// A stream or connection that is free now, or a new one.
    async fn slot(
        &self,
        cluster: &Cluster,
        wants_h2: bool,
        age: Freshness,
    ) -> Result<LeasedSlot, UpstreamError> {
        match self.held.find(cluster.id, wants_h2, age) {
            Lookup::Slot(slot) => return Ok(slot),
            Lookup::MustDialH1 => return self.dial(cluster, wants_h2).await,
            Lookup::MustDial => {}
        }
        let asked = Instant::now();
        let mut last_failure = self.dialling.lock().await;
        match self.held.find(cluster.id, wants_h2, age) {
            Lookup::Slot(slot) => return Ok(slot),
            Lookup::MustDialH1 => {
                drop(last_failure);
                return self.dial(cluster, wants_h2).await;
            }
            Lookup::MustDial => {}
        }
        if let Some(failure) = &*last_failure
            && failure.at >= asked
            && failure.cluster == cluster.id
        {
            return Err(UpstreamError::Shared(Arc::clone(&failure.error)));
        }
        self.dial(cluster, wants_h2).await.map_err(|error| {
            let error = Arc::new(error);
            *last_failure = Some(DialFailure {
                at: Instant::now(),
                cluster: cluster.id,
                error: Arc::clone(&error),
            });
            UpstreamError::Shared(error)
        })
    }

    async fn dial(&self, cluster: &Cluster, wants_h2: bool) -> Result<LeasedSlot, UpstreamError> {
        let config = if wants_h2 {
            &cluster.tls.h2
        } else {
            &cluster.tls.h1
        };
        let connection = dial::connect(&self.context, cluster, config).await?;
        let endpoint = connection.endpoint();
        let slot = self.held.add(cluster.id, connection, wants_h2);
        slot.ok_or_else(|| UpstreamError::Connect {
            endpoint,
            source: io::Error::other("the new connection takes no request"),
        })
    }

    async fn exchange(
        &self,
        cluster: &Cluster,
        slot: LeasedSlot,
        head: Parts,
        mut upload: Upload,
    ) -> Result<Response<ResponseBody>, FailedExchange> {
        match slot {
            LeasedSlot::H2(stream) => stream
                .exchange(&head, &mut upload, &self.context.drain)
                .await
                .map_err(|error| {
                    let again = if error.wants_another_connection() {
                        upload.rewind().map(|upload| Box::new((head, upload)))
                    } else {
                        None
                    };
                    FailedExchange { error, again }
                }),
            LeasedSlot::H1(connection) => {
                let endpoint = connection.endpoint();
                let Some(body) = upload.into_body() else {
                    let what =
                        "HTTP/1.1 after HTTP/2 to a request that is too large to be sent again";
                    return Err(FailedExchange {
                        error: UpstreamError::Protocol { endpoint, what },
                        again: None,
                    });
                };
                let give_back = self.held.give_back_to(cluster.id);
                connection
                    .exchange(head, body, Some(give_back), &self.context.drain)
                    .await
                    .map_err(|failed| {
                        let again = failed.unsent.map(|(head, body)| {
                            let upload = Upload::new(body, self.context.limits.replay_bytes);
                            Box::new((head, upload))
                        });
                        FailedExchange {
                            error: failed.error,
                            again,
                        }
                    })
            }
        }
    }
}

/// Why the last dial gave no connection.
#[derive(Debug)]
struct DialFailure {
    at: Instant,
    cluster: u64,
    error: Arc<UpstreamError>,
}

/// A failed try, with the request if it was provably not processed and can be sent again.
struct FailedExchange {
    error: UpstreamError,
    again: Option<Box<(Parts, Upload)>>,
}

/// hyper switches protocols on any 101, asked for or not; here it is never an answer.
fn checked(response: Response<ResponseBody>) -> Result<Response<ResponseBody>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::UnsolicitedUpgrade);
    }
    Ok(response)
}

#[cfg(test)]
mod tests;
