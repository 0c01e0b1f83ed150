//! One HTTP/2 connection to an apiserver: its streams, its pings, its end.
//!
//! The h2 crate is used directly, not through hyper, because "sent again only if provably not
//! processed" needs stream numbers and reset reasons, which hyper does not expose.

mod peer;
mod stream;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use h2::{
    Reason,
    client::{Connection, SendRequest},
};
use tokio::time::Instant;
use tracing::debug;

pub(super) use peer::fuzz;
pub(super) use stream::{H2Response, H2Stream};

use super::{
    endpoint::{Endpoint, LeavingConnection},
    sockets::SocketPermit,
};
use crate::{
    config::Timeouts,
    drain::Drain,
    hosts::UpstreamAddr,
    metrics::{ConnectionStats, LeaseEnd},
    text::error_chain,
    transport::{Http2Error, PingTimer, TlsWriter, WriteBatcher, frames::FrameMonitor},
};
use peer::{PeerFrames, PeerState};
use stream::StreamGuard;

/// A connection on which requests can be sent.
#[derive(Debug, Clone)]
pub(super) struct H2Connection {
    send: SendRequest<Bytes>,
    state: Arc<H2State>,
    socket_permit: Option<Arc<SocketPermit>>,
}

/// A connection that takes no new stream and stays until its streams have ended.
#[derive(Debug)]
pub(super) struct RetiredH2(Weak<H2State>);

#[derive(Debug)]
struct H2State {
    /// The endpoint of this connection. The connection is retired once the endpoint is ejected.
    endpoint: Arc<Endpoint>,
    established: Instant,
    peer: Arc<PeerState>,
    in_flight: AtomicUsize,
    /// Set when a stream is aborted or gets a 401: no other client may then use the connection.
    poisoned: AtomicBool,
    closed: AtomicBool,
    /// The peer has not replied to a ping.
    is_silent: AtomicBool,
    /// Set when the lease has moved to another endpoint.
    leaving: OnceLock<LeavingConnection>,
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

impl H2State {
    fn on_end(&self, ended: Result<(), Http2Error>) {
        self.closed.store(true, Ordering::Release);
        if self.in_flight.load(Ordering::Acquire) > 0 && !self.peer.is_going_away() {
            self.stats.set_end_reason(LeaseEnd::Closed);
        }
        if let Err(error) = ended {
            let is_silent = matches!(error, Http2Error::PingTimeout(_));
            self.is_silent.store(is_silent, Ordering::Release);
            debug!(
                upstream.address = %self.endpoint.address(),
                error = %error_chain(&error),
                "upstream connection ended early"
            );
        }
    }
}

impl H2Connection {
    /// Sends the HTTP/2 preface on an established stream, waits for the apiserver's, and starts the task
    /// that runs the connection. A client opens at most `max_streams` on it.
    ///
    /// # Errors
    ///
    /// When the apiserver does not speak HTTP/2 although it chose it.
    pub(super) async fn establish<S>(
        batcher: WriteBatcher<S>,
        endpoint: Arc<Endpoint>,
        timeouts: &Timeouts,
        max_streams: u32,
        drain: &Drain,
    ) -> Result<Self, h2::Error>
    where
        S: TlsWriter + Send + 'static,
    {
        let peer = Arc::new(PeerState::new());
        let frames = PeerFrames::new(&peer, max_streams);
        let monitor = FrameMonitor::of_apiserver(batcher.clone(), frames);
        let (send, mut connection) = settings().handshake(monitor).await?;
        wait_for_settings(&send, &mut connection, &batcher).await?;
        let state = Arc::new(H2State {
            endpoint,
            established: Instant::now(),
            peer,
            in_flight: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            leaving: OnceLock::new(),
            stats: ConnectionStats::default(),
        });
        let pings = PingTimer {
            interval: timeouts.upstream_ping_interval,
            timeout: timeouts.upstream_ping_timeout,
            last_read: state.peer.last_read.clone(),
        };
        let running = Arc::clone(&state);
        let connection = Box::new(connection);
        drain.spawn(async move {
            let ended = run(connection, &batcher, pings).await;
            running.on_end(ended);
        });
        Ok(Self {
            send,
            state,
            socket_permit: None,
        })
    }

    /// Keeps the permit of the socket until the connection is dropped.
    pub(super) fn with_socket_permit(self, permit: Arc<SocketPermit>) -> Self {
        Self {
            socket_permit: Some(permit),
            ..self
        }
    }

    pub(super) fn socket_permit(&self) -> Option<&SocketPermit> {
        self.socket_permit.as_deref()
    }

    /// Whether a new stream may be opened now.
    pub(super) fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Acquire)
            && !self.state.peer.is_going_away()
            && !self.state.endpoint.is_ejected()
    }

    /// Takes one of the streams that the apiserver allows, if one is free.
    pub(super) fn take_stream(&self) -> Option<H2Stream> {
        let has_free =
            self.state.in_flight.load(Ordering::Acquire) < self.send.current_max_send_streams();
        (has_free && self.is_open()).then(|| H2Stream {
            send: self.send.clone(),
            guard: StreamGuard::new(Arc::clone(&self.state)),
        })
    }

    pub(super) fn address(&self) -> UpstreamAddr {
        self.state.endpoint.address()
    }

    pub(super) fn stats(&self) -> &ConnectionStats {
        &self.state.stats
    }

    pub(super) fn established(&self) -> Instant {
        self.state.established
    }

    /// Whether no stream is open.
    pub(super) fn is_unused(&self) -> bool {
        self.state.in_flight.load(Ordering::Acquire) == 0
    }

    /// This connection, without keeping it open.
    pub(super) fn retired(&self) -> RetiredH2 {
        RetiredH2(Arc::downgrade(&self.state))
    }

    /// Whether this is the connection of `stream`.
    pub(super) fn carries(&self, stream: &H2Stream) -> bool {
        Arc::ptr_eq(&self.state, &stream.guard.state)
    }

    /// Counts this connection as one whose lease has moved to another endpoint, until its streams have ended.
    pub(super) fn leave(&self) {
        self.stats().set_end_reason(LeaseEnd::Balance);
        self.state
            .leaving
            .get_or_init(|| self.state.endpoint.leave());
    }

    /// Whether another client may use this connection: no stream is open, and none ever ended badly.
    pub(super) fn is_reusable(&self) -> bool {
        self.is_open() && self.is_unused() && !self.state.poisoned.load(Ordering::Acquire)
    }
}

impl RetiredH2 {
    /// Whether it still has its socket.
    pub(super) fn is_open(&self) -> bool {
        // The task of the connection holds the state until the connection has ended.
        self.0
            .upgrade()
            .is_some_and(|state| !state.closed.load(Ordering::Acquire))
    }
}

fn settings() -> h2::client::Builder {
    let mut settings = h2::client::Builder::new();
    settings
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_RESPONSE_HEADER_BYTES)
        // No stream until the apiserver has said how many it allows: a request beyond its limit
        // would wait for streams that may never end.
        .initial_max_send_streams(0)
        .enable_push(false)
        .data_frame_budget(MAX_SMALL_FRAME_DEFICIT)
        // Late frames for streams that this client has cancelled cost only the client itself, and the
        // default, 1,024 in the life of a connection, would one day end its watches.
        .max_local_error_reset_streams(None);
    settings
}

/// Runs a new connection until the apiserver's SETTINGS have come: only they say how many streams it
/// allows.
async fn wait_for_settings<S: TlsWriter>(
    send: &SendRequest<Bytes>,
    connection: &mut Connection<FrameMonitor<WriteBatcher<S>, PeerFrames>, Bytes>,
    batcher: &WriteBatcher<S>,
) -> Result<(), h2::Error> {
    poll_fn(|cx| match batcher.drive(Pin::new(&mut *connection), cx) {
        Poll::Ready(ended) => Poll::Ready(ended.and(Err(Reason::PROTOCOL_ERROR.into()))),
        Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Runs the connection until it ends or a ping is not answered in time; then its streams fail at once.
async fn run<S: TlsWriter>(
    mut connection: Box<Connection<FrameMonitor<WriteBatcher<S>, PeerFrames>, Bytes>>,
    batcher: &WriteBatcher<S>,
    pings: PingTimer,
) -> Result<(), Http2Error> {
    let ping = connection
        .ping_pong()
        .expect("a new connection has its ping handle");
    let mut connection = Pin::new(connection);
    tokio::select! {
        ended = poll_fn(|cx| batcher.drive(connection.as_mut(), cx)) => Ok(ended?),
        error = pings.run(ping) => Err(error),
    }
}

/// Of one stream and of the whole connection. Small, because the connection serves one client: a reader
/// that stalls blocks only its own client (kube-apiserver itself grants 256 KiB per stream).
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// How many bytes unread frames below 256 bytes may lack to 256 bytes each, in sum. A frame of one byte
/// costs some hundred bytes of memory, so that without a bound the windows above could hold half a gigabyte.
/// The default would end the streams of a client that pauses one log of short lines (h2
/// `too_many_data_frames`); this value holds a full stream window of five-byte lines. A client that exceeds
/// it ends only its own connection.
const MAX_SMALL_FRAME_DEFICIT: usize = 16 * 1024 * 1024;
/// Larger than [`MAX_RESPONSE_HEAD`](crate::http1::MAX_RESPONSE_HEAD), so that a head just over that limit reaches the
/// proxy, which names the limit.
const MAX_RESPONSE_HEADER_BYTES: u32 = 512 * 1024;

#[cfg(test)]
mod tests;
