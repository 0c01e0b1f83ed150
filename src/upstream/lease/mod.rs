//! A lease instead of a pool: an upstream connection serves one downstream connection at a time.
//!
//! kube-apiserver answers every anonymous or 401 request over HTTP/2 with GOAWAY, ends a connection
//! with too many early resets, and lets 100 streams run. On a shared connection each of these would
//! let one client break all others; on a lease it harms only itself.
//!
//! The proxy sends a request again only if the apiserver provably did not process it the first time.

mod table;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use hyper::body::{Body, Frame, SizeHint};
use rustls::ClientConfig;
use tokio::{
    sync::{Mutex, MutexGuard, Notify},
    time::Instant,
};
use tracing::debug;

pub(super) use table::{LeaseTable, LeasedH1};

use super::{
    Cluster, DownloadError, RefusedAuthorization, RequestBody, UpstreamContext, UpstreamError,
    UpstreamRequest,
    context::Connection,
    dial,
    h1::{self, H1Connection, H1Response},
    h2::{H2Response, H2Stream},
    request_body::{ClientReplayBudget, Upload},
    sockets::ClientSockets,
    user_naming::has_user,
};
use crate::{
    config::Limits,
    hosts::UpstreamAddr,
    http1::Upgraded,
    metrics::{Histogram, LeaseEnd},
    text::error_chain,
};
use table::{Leased, Lookup};

/// The upstream side of one downstream connection.
#[derive(Debug)]
pub struct ClientLeases {
    context: Arc<UpstreamContext>,
    table: Arc<LeaseTable>,
    replay_budget: Arc<ClientReplayBudget>,
    /// Held while a dial runs. One dial serves all streams that wait for it, and its failure fails them
    /// all: a hundred streams must not wait for a dead apiserver one after the other.
    dialling: Mutex<Option<DialFailure>>,
    /// Held while a request has its last try. Its connection counts like any other, so that many last tries at
    /// once would exceed the bound.
    last_try: Mutex<()>,
    /// Notified when [`ClientLeases::unauthenticated`] shall return.
    unauthenticated: Arc<Notify>,
}

impl ClientLeases {
    /// Leases that hold no connection yet.
    #[must_use]
    pub fn new(context: Arc<UpstreamContext>) -> Self {
        let settings = context.settings.load();
        let table = LeaseTable::new(
            Arc::clone(&context.idle),
            ClientSockets::new(Arc::clone(&context.spare_sockets)),
            max_connections(&settings.limits),
        );
        let replay_budget = ClientReplayBudget::new(
            &settings.limits,
            Arc::clone(&context.replay_budget),
            Arc::clone(&context.counters),
        );
        drop(settings);
        Self {
            context,
            table,
            replay_budget: Arc::new(replay_budget),
            dialling: Mutex::new(None),
            last_try: Mutex::new(()),
            unauthenticated: Arc::default(),
        }
    }

    /// Returns once the apiserver has sent GOAWAY on a connection of this client and has answered a request
    /// there that had no valid credential.
    ///
    /// The apiserver sends this GOAWAY so that each such request costs its sender a TLS handshake. The client
    /// connection must end too. Otherwise the proxy and the apiserver pay for all handshakes, and the client
    /// for none.
    pub async fn unauthenticated(&self) {
        self.unauthenticated.notified().await;
    }

    /// Sends a request in the protocol it came in, and returns the response once its head
    /// is there. The target of the request is absolute; the authority in it becomes `:authority` or `Host`.
    ///
    /// # Errors
    ///
    /// No response came, and another try was not allowed or the last one failed too.
    /// `UpstreamError::wants_another_connection` decides over HTTP/2 whether there is another try, and
    /// `ExchangeError::unsent` over HTTP/1.1.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request upstream.
    pub async fn send(
        &self,
        request: UpstreamRequest<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let UpstreamRequest { cluster, head } = request;
        let wants_h2 = head.version == http::Version::HTTP_2;
        let upload = Upload::new(body, &self.replay_budget);
        let leased = match self.table.find(cluster.id, wants_h2, None) {
            Lookup::Found(leased) => leased,
            Lookup::Surplus(leased) => Box::pin(self.move_lease(cluster, wants_h2, leased)).await,
            // On the heap, because it is rare: the future of each stream is as large as the largest future that it
            // awaits.
            Lookup::MustDial | Lookup::MustDialH1 | Lookup::Full => {
                Box::pin(self.find_or_dial(cluster, wants_h2, None)).await?
            }
        };
        let tried = Instant::now();
        match self.send_once(leased, head, upload).await {
            Ok(response) => refuse_unsolicited_101(response),
            Err(failed) => Box::pin(self.send_again(cluster, wants_h2, failed, tried)).await,
        }
    }

    /// Sends the request on this stream or connection. A failure comes with the request, if it may be sent again.
    async fn send_once(
        &self,
        leased: Leased,
        head: Parts,
        upload: Upload,
    ) -> Result<Response<ResponseBody>, FailedExchange> {
        match leased {
            Leased::H2(stream) => self.send_h2(stream, head, upload).await,
            Leased::H1(connection) => self.send_h1(connection, head, upload).await,
        }
    }

    async fn send_h2(
        &self,
        stream: H2Stream,
        head: Parts,
        mut upload: Upload,
    ) -> Result<Response<ResponseBody>, FailedExchange> {
        match stream
            .exchange(&head, &mut upload, &self.context.drain)
            .await
        {
            Ok(mut response) => {
                RefusedAuthorization::keep_for(&mut response, &head.headers);
                if is_unauthenticated(&head, response.status()) {
                    let waiting = Arc::clone(&self.unauthenticated);
                    response.body().notify_of_goaway(waiting);
                }
                let times = response.body().stats().time_to_headers();
                Ok(ResponseBody::from_h2(response, times))
            }
            Err(error) if error.wants_another_connection() => {
                let upload = upload.rewind(&self.replay_budget);
                let retry = upload.map(|upload| Box::new((head, upload)));
                Err(FailedExchange { error, retry })
            }
            Err(error) => Err(FailedExchange { error, retry: None }),
        }
    }

    async fn send_h1(
        &self,
        mut connection: LeasedH1,
        head: Parts,
        upload: Upload,
    ) -> Result<Response<ResponseBody>, FailedExchange> {
        let endpoint = connection.as_mut().address();
        let times = connection.as_mut().stats().time_to_headers();
        let Some(body) = upload.into_body() else {
            let reason = "it changed to HTTP/1.1 and the request is too large to be sent again";
            return Err(FailedExchange {
                error: UpstreamError::Protocol { endpoint, reason },
                retry: None,
            });
        };
        h1::exchange(connection, head, body, &self.context.drain)
            .await
            .map(|response| ResponseBody::from_h1(response, times))
            .map_err(|failed| FailedExchange {
                error: failed.error,
                retry: failed
                    .unsent
                    .map(|(head, body)| Box::new((head, Upload::without_copy(body)))),
            })
    }

    /// Sends a request again that was not processed when it was sent at `tried`. Returns the error if it must not
    /// be sent again.
    ///
    /// One 401 ends a connection for all requests that the apiserver has not read yet. When a client sends many
    /// requests with a bad token at once, one request can meet several such connections. So each try uses a
    /// newer connection, and the last one a connection of its own, which only its own response can end.
    async fn send_again(
        &self,
        cluster: &Cluster,
        wants_h2: bool,
        mut failed: FailedExchange,
        mut tried: Instant,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let (mut tries, mut is_last) = (1, false);
        let mut _last_try = None;
        loop {
            let FailedExchange { error, retry } = failed;
            let Some(request) = retry.filter(|_| !is_last) else {
                return Err(error);
            };
            debug!(error = %error_chain(&error), tries, "retrying request");
            tries += 1;
            let leased = if wants_h2 && tries == MAX_TRIES {
                let asked = Instant::now();
                _last_try = Some(self.last_try.lock().await);
                self.dial_own(cluster, asked).await?
            } else {
                self.find_or_dial(cluster, wants_h2, Some(tried)).await?
            };
            // A new connection over HTTP/1.1 serves this request alone already.
            is_last = tries == MAX_TRIES || matches!(leased, Leased::H1(_));
            tried = Instant::now();
            let (head, upload) = *request;
            match self.send_once(leased, head, upload).await {
                Ok(response) => return refuse_unsolicited_101(response),
                Err(again) => failed = again,
            }
        }
    }

    /// Sends an upgrade request on an HTTP/1.1 connection of its own, which is never used again.
    /// [`ResponseBody::into_upgraded`] of a 101 response returns the upgraded connection.
    ///
    /// # Errors
    ///
    /// As [`ClientLeases::send`]; nothing is sent twice.
    pub async fn send_upgrade(
        &self,
        request: UpstreamRequest<'_>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let UpstreamRequest { cluster, head } = request;
        let connection = Box::pin(self.dial_endpoints(cluster, &cluster.tls.h1)).await?;
        connection.stats().set_end_reason(LeaseEnd::Upgrade);
        let connection = match connection {
            Connection::H1(connection) => LeasedH1::without_table(connection),
            Connection::H2(connection) => {
                return Err(UpstreamError::Protocol {
                    endpoint: connection.address(),
                    reason: "it chose HTTP/2, which was not offered",
                });
            }
        };
        Box::pin(h1::exchange(connection, head, body, &self.context.drain))
            .await
            .map(|response| ResponseBody::from_h1(response, None))
            .map_err(|failed| failed.error)
    }

    /// A stream or connection that is free now and was established after `newer_than`, otherwise a new one.
    async fn find_or_dial(
        &self,
        cluster: &Cluster,
        wants_h2: bool,
        newer_than: Option<Instant>,
    ) -> Result<Leased, UpstreamError> {
        let asked = Instant::now();
        let mut turn = None;
        loop {
            // Looks again once it holds the turn to dial, because another stream may have dialled meanwhile.
            match self.table.find(cluster.id, wants_h2, newer_than) {
                Lookup::Found(leased) | Lookup::Surplus(leased) => return Ok(leased),
                Lookup::Full => return Err(self.too_many_connections()),
                Lookup::MustDialH1 => {
                    drop(turn);
                    return self.dial(cluster, wants_h2).await;
                }
                Lookup::MustDial => match turn {
                    None => turn = Some(self.dialling.lock().await),
                    Some(turn) => {
                        return take_turn(turn, cluster, asked, self.dial(cluster, wants_h2)).await;
                    }
                },
            }
        }
    }

    /// A new connection in place of the one of `leased`, whose endpoint has too many leases. If there is none,
    /// the lease stays where it is: a move must not fail a request.
    async fn move_lease(&self, cluster: &Cluster, wants_h2: bool, leased: Leased) -> Leased {
        let Ok(_turn) = self.dialling.try_lock() else {
            return leased;
        };
        if wants_h2 && !self.table.make_room_for_h2() {
            return leased;
        }
        // Last, because each counts as a move: one busy client whose lease cannot move would use up those of all
        // others.
        if !leased.takes_surplus() {
            return leased;
        }
        match self.dial(cluster, wants_h2).await {
            Ok(new) => {
                self.table.give_up(cluster.id, leased);
                new
            }
            // The health of the endpoint has recorded why.
            Err(_) => leased,
        }
    }

    /// A new connection in the lease of this client.
    async fn dial(&self, cluster: &Cluster, wants_h2: bool) -> Result<Leased, UpstreamError> {
        let config = if wants_h2 {
            &cluster.tls.h2
        } else {
            &cluster.tls.h1
        };
        let connection = self.dial_endpoints(cluster, config).await?;
        let endpoint = connection.address();
        let leased = self.table.add(cluster.id, connection, wants_h2);
        leased.ok_or_else(|| accepts_no_request(endpoint))
    }

    /// A new connection that no other request of this client gets. If another dial of this cluster has failed since
    /// `asked`, it returns that error and does not dial again.
    async fn dial_own(&self, cluster: &Cluster, asked: Instant) -> Result<Leased, UpstreamError> {
        let turn = self.dialling.lock().await;
        if !self.table.make_room_for_h2() {
            return Err(self.too_many_connections());
        }
        let dial = async {
            let connection = self.dial_endpoints(cluster, &cluster.tls.h2).await?;
            let endpoint = connection.address();
            let leased = self.table.add_own(cluster.id, connection);
            leased.ok_or_else(|| accepts_no_request(endpoint))
        };
        take_turn(turn, cluster, asked, dial).await
    }

    async fn dial_endpoints(
        &self,
        cluster: &Cluster,
        config: &Arc<ClientConfig>,
    ) -> Result<Connection, UpstreamError> {
        dial::connect(&self.context, cluster, config, &self.table.sockets).await
    }

    fn too_many_connections(&self) -> UpstreamError {
        UpstreamError::TooManyConnections {
            max: max_connections(&self.context.settings.load().limits),
        }
    }
}

/// The body of one upstream response. Dropping it before its end cancels the exchange upstream at once:
/// `RST_STREAM(CANCEL)` over HTTP/2, closing the connection over HTTP/1.1.
#[derive(Debug)]
pub struct ResponseBody {
    body: ProtocolBody,
    /// The time to headers of the endpoint that sent the response.
    time_to_headers: Option<Arc<Histogram>>,
}

#[derive(Debug)]
enum ProtocolBody {
    /// Boxed, because it holds its connection; an HTTP/2 stream would waste that memory.
    H1(Box<H1Response<LeasedH1>>),
    H2(H2Response),
}

/// The upstream connection that a response comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The address of its endpoint.
    pub endpoint: UpstreamAddr,
    /// Whether the connection has served another request before.
    pub is_reused: bool,
}

impl ResponseBody {
    /// The connection that the response comes from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match &self.body {
            ProtocolBody::H1(body) => body.origin(),
            ProtocolBody::H2(body) => body.origin(),
        }
    }

    pub(super) fn from_h1(
        response: Response<H1Response<LeasedH1>>,
        time_to_headers: Option<Arc<Histogram>>,
    ) -> Response<Self> {
        response.map(|body| Self {
            body: ProtocolBody::H1(Box::new(body)),
            time_to_headers,
        })
    }

    pub(super) fn from_h2(
        response: Response<H2Response>,
        time_to_headers: Option<Arc<Histogram>>,
    ) -> Response<Self> {
        response.map(|body| Self {
            body: ProtocolBody::H2(body),
            time_to_headers,
        })
    }

    /// Counts the time to the head of this response for the endpoint that sent it.
    pub fn observe_headers(&self, time: Duration) {
        if let Some(times) = &self.time_to_headers {
            times.observe(time);
        }
    }

    /// The stream of bytes after a 101; `None` for every other response.
    #[must_use]
    pub fn into_upgraded(self) -> Option<Upgraded> {
        match self.body {
            ProtocolBody::H1(body) => body
                .into_connection()
                .and_then(LeasedH1::into_connection)
                .map(H1Connection::into_upgraded),
            ProtocolBody::H2(_) => None,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match &mut self.body {
            ProtocolBody::H1(body) => body.poll_frame(cx).map_err(DownloadError::H1),
            ProtocolBody::H2(body) => {
                let frame = ready!(body.poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(|error| body.download_error(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            ProtocolBody::H1(body) => body.is_end_stream(),
            ProtocolBody::H2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            ProtocolBody::H1(body) => body.size_hint(),
            ProtocolBody::H2(body) => body.size_hint(),
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

/// A failed try, with the request if it provably was not processed and can be sent again.
struct FailedExchange {
    error: UpstreamError,
    retry: Option<Box<(Parts, Upload)>>,
}

/// Runs `dial`, unless another dial of this cluster has failed since `asked`. Holds `turn` until the dial ends.
async fn take_turn(
    mut turn: MutexGuard<'_, Option<DialFailure>>,
    cluster: &Cluster,
    asked: Instant,
    dial: impl Future<Output = Result<Leased, UpstreamError>>,
) -> Result<Leased, UpstreamError> {
    if let Some(failure) = &*turn
        && failure.at >= asked
        && failure.cluster == cluster.id
    {
        return Err(UpstreamError::Shared(Arc::clone(&failure.error)));
    }
    dial.await.map_err(|error| {
        let error = Arc::new(error);
        *turn = Some(DialFailure {
            at: Instant::now(),
            cluster: cluster.id,
            error: Arc::clone(&error),
        });
        UpstreamError::Shared(error)
    })
}

fn accepts_no_request(endpoint: UpstreamAddr) -> UpstreamError {
    UpstreamError::Connect {
        endpoint,
        source: io::Error::other("the new connection accepts no request"),
    }
}

/// Whether the apiserver ends an HTTP/2 connection after this response (`UnauthenticatedHTTP2DOSMitigation`): it
/// does so after each 401, and after each response to an anonymous request, whatever its status.
fn is_unauthenticated(request: &Parts, status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || !has_user(request)
}

/// A 101 is no valid response to a request that asked for no upgrade. Its connection would become a tunnel.
fn refuse_unsolicited_101(
    response: Response<ResponseBody>,
) -> Result<Response<ResponseBody>, UpstreamError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(UpstreamError::UnsolicitedUpgrade);
    }
    Ok(response)
}

/// How often a request is sent at most while the apiserver provably does not process it: as often as Go's HTTP/2
/// client does.
const MAX_TRIES: u32 = 7;
/// How many HTTP/2 connections one client connection may hold, retired ones included.
///
/// Connections over HTTP/1.1 need no bound of their own: each serves one request, of which a client has at
/// most `limits.streamsPerConnection` open, and an idle one is used before another is dialled.
fn max_connections(limits: &Limits) -> usize {
    let streams = usize::try_from(limits.streams_per_connection).unwrap_or(usize::MAX);
    MAX_RETIRED_CONNECTIONS + streams.div_ceil(STREAMS_PER_CONNECTION)
}

/// Connections that only finish their streams, after GOAWAY for example. A client without a token could
/// otherwise hold one for each of its streams: it opens a watch, and the 401 to its next request comes with a
/// GOAWAY. An honest client needs some: with `--goaway-chance=0.001`, 20 requests a second retire one in 50 s,
/// and the watches on it last for up to 10 minutes.
const MAX_RETIRED_CONNECTIONS: usize = 16;
/// What kube-apiserver allows.
const STREAMS_PER_CONNECTION: usize = 100;

#[cfg(test)]
mod tests;
