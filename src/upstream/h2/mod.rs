//! One HTTP/2 connection to an apiserver: its requests, its pings, its end.
//!
//! The h2 crate is used directly, not through hyper, because "sent again only if provably not
//! processed" needs stream numbers and reset reasons, which hyper keeps to itself.

mod frame_monitor;
mod liveness;
mod response;
mod stream;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::time::Instant;
use tracing::debug;

use super::endpoint::Endpoint;
use crate::{
    config::Timeouts,
    drain::Drain,
    hosts::UpstreamAddr,
    metrics::{ConnectionStats, LeaseEnd},
    text::error_chain,
    transport::{TlsWriter, WriteBatcher},
};

pub(super) use frame_monitor::fuzz;
use frame_monitor::{FrameMonitor, PeerState};
use liveness::drive;
pub(super) use response::H2Response;
pub(super) use stream::H2Stream;
use stream::StreamGuard;

/// A connection on which requests can be sent.
#[derive(Debug, Clone)]
pub(super) struct H2Connection {
    send: SendRequest<Bytes>,
    state: Arc<H2State>,
}

#[derive(Debug)]
struct H2State {
    endpoint: UpstreamAddr,
    /// What is known of that; retires the connection when it is nothing good.
    endpoint_health: OnceLock<Arc<Endpoint>>,
    established: Instant,
    peer: Arc<PeerState>,
    in_flight: AtomicUsize,
    /// Something happened after which no other client may use the connection.
    poisoned: AtomicBool,
    closed: AtomicBool,
    stats: ConnectionStats,
}

impl Drop for H2State {
    fn drop(&mut self) {
        if self.peer.is_going_away() {
            self.stats.set_end_reason(LeaseEnd::GoAway);
        } else if self.poisoned.load(Ordering::Acquire) {
            self.stats.set_end_reason(LeaseEnd::Reset);
        }
    }
}

impl H2Connection {
    /// Speaks the HTTP/2 preface on an established stream, waits for the apiserver's, and keeps the
    /// connection running.
    ///
    /// # Errors
    ///
    /// When the apiserver does not speak HTTP/2 after all.
    pub(super) async fn establish<S>(
        batcher: WriteBatcher<S>,
        endpoint: UpstreamAddr,
        timeouts: &Timeouts,
        drain: &Drain,
    ) -> Result<Self, h2::Error>
    where
        S: TlsWriter + Send + 'static,
    {
        let peer = Arc::new(PeerState::new());
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_RESPONSE_HEADER_BYTES)
            // None until the apiserver has said how many: what is sent before and turns out to be too
            // much would wait behind streams that never end.
            .initial_max_send_streams(0)
            .enable_push(false)
            .data_frame_budget(MAX_SMALL_FRAME_BYTES)
            // Likewise: frames that come late for streams this client has cancelled cost only itself, and
            // the default, 1,024 in a connection's life, would one day end its watches.
            .max_local_error_reset_streams(None)
            .handshake(FrameMonitor::new(batcher.clone(), Arc::clone(&peer)))
            .await?;
        settled(&send, &mut connection, &batcher).await?;
        let state = Arc::new(H2State {
            endpoint,
            endpoint_health: OnceLock::new(),
            established: Instant::now(),
            peer,
            in_flight: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            stats: ConnectionStats::default(),
        });
        let ping = connection
            .ping_pong()
            .expect("a new connection has its ping handle");
        let (interval, limit) = (
            timeouts.upstream_ping_interval,
            timeouts.upstream_ping_timeout,
        );
        let running = Arc::clone(&state);
        let connection = Box::new(connection);
        drain.spawn(async move {
            let ended = drive(connection, &batcher, ping, &running.peer, interval, limit).await;
            running.closed.store(true, Ordering::Release);
            if running.in_flight.load(Ordering::Acquire) > 0 && !running.peer.is_going_away() {
                running.stats.set_end_reason(LeaseEnd::Closed);
            }
            if let Err(error) = ended {
                debug!(upstream.address = %endpoint, error = %error_chain(&error), "upstream connection ended");
            }
        });
        Ok(Self { send, state })
    }

    /// The same, known to lead to this endpoint.
    pub(super) fn to(self, endpoint: Arc<Endpoint>) -> Self {
        self.state.endpoint_health.get_or_init(|| endpoint);
        self
    }

    /// Whether a new stream may be opened now.
    pub(super) fn is_open(&self) -> bool {
        let endpoint_health = self.state.endpoint_health.get();
        !self.state.closed.load(Ordering::Acquire)
            && !self.state.peer.is_going_away()
            && !endpoint_health.is_some_and(|endpoint_health| endpoint_health.is_ejected())
    }

    /// Takes one of the streams that the apiserver allows, if one is free.
    pub(super) fn take_stream(&self) -> Option<H2Stream> {
        let free =
            self.state.in_flight.load(Ordering::Acquire) < self.send.current_max_send_streams();
        (free && self.is_open()).then(|| {
            self.state.in_flight.fetch_add(1, Ordering::AcqRel);
            H2Stream {
                send: self.send.clone(),
                usage: StreamGuard {
                    state: Arc::clone(&self.state),
                    ended_well: false,
                },
            }
        })
    }

    pub(super) fn endpoint(&self) -> UpstreamAddr {
        self.state.endpoint
    }

    /// What is counted of it.
    pub(super) fn stats(&self) -> &ConnectionStats {
        &self.state.stats
    }

    pub(super) fn established(&self) -> Instant {
        self.state.established
    }

    /// Whether another client may have this connection: nothing runs, and nothing went wrong ever.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_open()
            && self.state.in_flight.load(Ordering::Acquire) == 0
            && !self.state.poisoned.load(Ordering::Acquire)
    }
}

/// Runs a new connection until the apiserver's SETTINGS have come: only they say how many streams
/// there may be.
async fn settled<S: TlsWriter>(
    send: &SendRequest<Bytes>,
    connection: &mut Connection<FrameMonitor<WriteBatcher<S>>, Bytes>,
    batcher: &WriteBatcher<S>,
) -> Result<(), h2::Error> {
    poll_fn(|cx| match batcher.drive(Pin::new(&mut *connection), cx) {
        Poll::Ready(ended) => Poll::Ready(ended.and(Err(h2::Reason::PROTOCOL_ERROR.into()))),
        Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Of one stream and of the whole connection. Small, because the connection serves one client: what
/// its stalled readers block is its own (kube-apiserver itself grants 256 KiB a stream).
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// What unread frames below 256 bytes may be short of that in sum. A frame of one byte costs some hundred
/// bytes of memory, so that without a bound the windows above could hold half a gigabyte. The default
/// would end the streams of a client that pauses one log of short lines (h2 `too_many_data_frames`);
/// this much carries a full stream window of five-byte lines. Whoever passes it breaks its own lease.
const MAX_SMALL_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Room for many `Warning` lines; kube-apiserver caps them at about 4 Ki characters each answer.
const MAX_RESPONSE_HEADER_BYTES: u32 = 256 * 1024;

#[cfg(test)]
mod tests;
