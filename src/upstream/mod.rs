//! Stages 5 and 6: sends one request on the lease of its downstream connection.
//!
//! A request is sent a second time only when the apiserver provably did not process the first.

mod body;
mod connect;
mod endpoint;
mod error;
mod frames;
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
pub use error::{LostCause, UpstreamError};
pub use h1::{Fault, Switched};
pub(crate) use steps::{Offer, Reached};
pub use tls::ClientTls;
pub use verify::VerifyFailure;

use crate::{
    config::{Limits, Timeouts},
    drain::Drain,
    metrics::{Counters, LeaseEnd},
    telemetry::causes,
};
use lease::{Age, Connection, Found, Held, IdleSet, Slot};
use upload::Upload;

/// The fuzz bodies of this stage: finding frames, and the answers of HTTP/1.1.
pub(crate) const FUZZ: [fn(&[u8]); 3] = {
    let [head, chunks] = h1::FUZZ;
    [frames::fuzz, head, chunks]
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
    fn report_ill(&self, endpoint: &endpoint::Endpoint, why: String) {
        if endpoint.state() != Health::Ill {
            warn!(cluster = self.name, error = why, "upstream probe failed");
        }
        self.endpoints.mark_ill(endpoint, why);
    }

    /// Where it is.
    #[must_use]
    pub fn endpoints(&self) -> &Arc<Endpoints> {
        &self.endpoints
    }
}

/// What the connections of one worker share: its idle leases and its settings.
#[derive(Debug)]
pub struct Worker {
    idle: Arc<IdleSet>,
    limits: Limits,
    timeouts: Timeouts,
    drain: Drain,
    counts: Arc<Counters>,
}

impl Worker {
    /// A worker without connections. Sweeping starts with the first call of [`Worker::sweep`].
    #[must_use]
    pub fn new(limits: Limits, timeouts: Timeouts, drain: Drain) -> Self {
        let idle = IdleSet::new(
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
pub struct Lease {
    worker: Arc<Worker>,
    held: Arc<Held>,
    /// One dial serves all streams that wait for it, and its failure fails them all: a hundred streams
    /// must not wait for a dead apiserver one after the other.
    dialling: Mutex<Option<DialFailure>>,
}

impl Lease {
    /// A lease that holds no connection yet.
    #[must_use]
    pub fn new(worker: Arc<Worker>) -> Self {
        let held = Held::new(Arc::clone(&worker.idle));
        Self {
            worker,
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
        let upload = Upload::new(body, self.worker.limits.replay_bytes);
        let slot = match self.held.find(cluster.id, wants_h2, Age::Any) {
            Found::Slot(slot) => slot,
            // What is rare is on the heap here: a stream keeps the room of its largest step to its end.
            Found::MustDial | Found::MustDialH1 => {
                Box::pin(self.slot(cluster, wants_h2, Age::Any)).await?
            }
        };
        let first_try = Instant::now();
        let (head, again) = match self.exchange(cluster, slot, head, upload).await {
            Ok(response) => return checked(response),
            Err(Failed { error, again: None }) => return Err(error),
            Err(Failed {
                error,
                again: Some(again),
            }) => {
                debug!(
                    error = %causes(&error),
                    "request is sent once more"
                );
                *again
            }
        };
        Box::pin(async {
            // A newer connection, because whatever ended the first one may have ended all of its age.
            let slot = self.slot(cluster, wants_h2, Age::After(first_try)).await?;
            let answered = self.exchange(cluster, slot, head, again).await;
            answered.map_err(|failed| failed.error).and_then(checked)
        })
        .await
    }

    /// Sends an upgrade request on an HTTP/1.1 connection of its own, which is never used again.
    /// [`ResponseBody::into_switched`] of a 101 response gives the upgraded connection.
    ///
    /// # Errors
    ///
    /// As [`Lease::send`]; nothing is sent twice.
    pub async fn send_upgrade(
        &self,
        cluster: &Cluster,
        head: Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let connected = connect::connect(&self.worker, cluster, &cluster.tls.h1);
        let connection = Box::pin(connected).await?;
        connection.stats().set_end_reason(LeaseEnd::Upgrade);
        match connection {
            Connection::H1(connection) => {
                Box::pin(connection.exchange(head, body, None, &self.worker.drain))
                    .await
                    .map_err(|unanswered| unanswered.error)
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
        age: Age,
    ) -> Result<Slot, UpstreamError> {
        match self.held.find(cluster.id, wants_h2, age) {
            Found::Slot(slot) => return Ok(slot),
            Found::MustDialH1 => return self.dial(cluster, wants_h2).await,
            Found::MustDial => {}
        }
        let asked = Instant::now();
        let mut last_failure = self.dialling.lock().await;
        match self.held.find(cluster.id, wants_h2, age) {
            Found::Slot(slot) => return Ok(slot),
            Found::MustDialH1 => {
                drop(last_failure);
                return self.dial(cluster, wants_h2).await;
            }
            Found::MustDial => {}
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

    async fn dial(&self, cluster: &Cluster, wants_h2: bool) -> Result<Slot, UpstreamError> {
        let config = if wants_h2 {
            &cluster.tls.h2
        } else {
            &cluster.tls.h1
        };
        let connection = connect::connect(&self.worker, cluster, config).await?;
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
        slot: Slot,
        head: Parts,
        mut upload: Upload,
    ) -> Result<Response<ResponseBody>, Failed> {
        match slot {
            Slot::H2(stream) => stream
                .exchange(&head, &mut upload, &self.worker.drain)
                .await
                .map_err(|error| {
                    let again = if error.wants_another_connection() {
                        upload.rewind().map(|upload| Box::new((head, upload)))
                    } else {
                        None
                    };
                    Failed { error, again }
                }),
            Slot::H1(connection) => {
                let endpoint = connection.endpoint();
                let Some(body) = upload.into_body() else {
                    let what =
                        "HTTP/1.1 after HTTP/2 to a request that is too large to be sent again";
                    return Err(Failed {
                        error: UpstreamError::Protocol { endpoint, what },
                        again: None,
                    });
                };
                let give_back = self.held.give_back_to(cluster.id);
                connection
                    .exchange(head, body, Some(give_back), &self.worker.drain)
                    .await
                    .map_err(|unanswered| {
                        let again = unanswered.unsent.map(|(head, body)| {
                            let upload = Upload::new(body, self.worker.limits.replay_bytes);
                            Box::new((head, upload))
                        });
                        Failed {
                            error: unanswered.error,
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
struct Failed {
    error: UpstreamError,
    again: Option<Box<(Parts, Upload)>>,
}

/// hyper switches protocols on any 101, asked for or not; here it is never an answer.
fn checked(response: Response<ResponseBody>) -> Result<Response<ResponseBody>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::UnsolicitedSwitch);
    }
    Ok(response)
}

#[cfg(test)]
mod tests;
