//! Serves the streams of one HTTP/2 connection until it ends, is idle or drains.

mod budget;
mod hpack;
mod monitor;
mod server;
mod stall;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{Request, Response, header};
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::PollSemaphore;
use tracing::debug;

use self::{
    budget::RequestInProgress,
    monitor::ClientFrames,
    server::{Server, ServerStream},
    stall::{LastFramesClock, PacedBody, StallGuard, TrackedData, UnreadResponses},
};
use super::{CLOSE_TIMEOUT, Service};
use crate::{
    drain::Drain,
    ending::{EndReason, Ending},
    metrics::{Connected, Limit},
    proxy::{self, Rejection},
    transport::{
        Http2Error, LINGER, PingTimer, ReadAhead, WriteBatcher, frames::FrameMonitor, send_last,
    },
    upstream::RequestBody,
};

/// The fuzz bodies of this module: what the frames of a client say, and their budgets.
pub(super) const FUZZ: [fn(&[u8]); 2] = [monitor::fuzz, budget::fuzz];

/// Serves one connection until it ends. The client gets a GOAWAY once the drain begins, another client needs its
/// place, no stream was open for `timeouts.clientIdle`, or the apiserver has sent one because of a request without a
/// valid credential.
///
/// # Errors
///
/// When the connection does not end in order.
pub(super) async fn serve(
    stream: Box<TlsStream<ReadAhead>>,
    service: Arc<Service>,
) -> Result<(), Http2Error> {
    let drain = service.downstream.drain.clone();
    let limits = &service.downstream.settings.limits;
    let fields = limits.header_fields.saturating_add(PSEUDO_FIELDS);
    // Twice the limit, so that a head just over it reaches the proxy, which names the limit. To a larger head
    // h2 itself responds with a bare 431.
    let max_header_list =
        (limits.uri_bytes + limits.header_bytes + fields.saturating_mul(FIELD_OVERHEAD))
            .saturating_mul(2);
    let max_streams = usize::try_from(limits.streams_per_connection).unwrap_or(usize::MAX);
    let streams = Arc::new(Streams::new());
    let tasks = StreamTasks {
        drain: drain.clone(),
        streams: Arc::clone(&streams),
        max: max_streams,
        connected: Arc::clone(&service.downstream.connected),
    };
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams_per_connection)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(max_header_list).unwrap_or(u32::MAX))
        // A client may cancel all that it has just opened. `RequestBudget` limits how often.
        .max_pending_accept_reset_streams(max_streams)
        // h2 counts them for the life of a connection, and an honest client that sends many bodies which the apiserver
        // does not want reaches any number. `FrameBudget` counts them per window.
        .max_local_error_reset_streams(None)
        .max_send_buffer_size(MAX_SEND_BUFFER);
    // The block drops the box. Moving the value out of it would keep the empty box until the connection ends.
    let batcher = {
        let stream = stream;
        WriteBatcher::new(*stream)
    };
    let timeouts = &service.downstream.settings.timeouts;
    let (frames, observed) = ClientFrames::new(
        timeouts.request_head,
        max_header_list,
        limits.streams_per_connection,
    );
    let pings = PingTimer {
        interval: timeouts.client_ping_interval,
        timeout: timeouts.client_ping_timeout,
        last_read: observed.last_read,
    };
    let (cut_targets, budget) = (observed.cut_targets, observed.requests);
    let connected = Arc::clone(&service.downstream.connected);
    let frames = frames.of_connection(Arc::clone(&connected));
    let stream = FrameMonitor::of_client(batcher.clone(), frames);
    let client_idle = timeouts.client_idle;
    let goaway_timeout = timeouts.client_ping_timeout;
    let downstream = Arc::clone(&service.downstream);
    let mut last_frames = LastFramesClock::default();
    let start = {
        let memory = Arc::clone(&service.shared.memory);
        let unread = UnreadResponses::new(Arc::clone(&connected), memory, last_frames.frames());
        let unread = Arc::new(unread);
        let (cut_targets, budget) = (Arc::clone(&cut_targets), Arc::clone(&budget));
        move |request: Request<RecvStream>, stream: SendResponse<TrackedData>| {
            budget.accept(stream.stream_id().into());
            let (head, body) = request.into_parts();
            let rejection = cut_targets.refuses(&head.uri).then_some(Rejection::Target);
            let progress = RequestInProgress::new(&budget);
            let expects_continue = !body.is_end_stream()
                && (head.headers.get(header::EXPECT))
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            let (body, rest) = RequestBody::from_http2(body, expects_continue);
            let request = Request::from_parts(head, body);
            let (service, unread) = (Arc::clone(&service), Arc::clone(&unread));
            let handled = respond(service, request, rejection, unread);
            tasks.start(ServerStream::new(handled, stream, progress, rest));
        }
    };
    let end_if_exceeded = async || {
        if budget.is_exceeded() {
            connected.counters().limits_hit.count(Limit::Frames);
            say_goodbye(&batcher, &budget.goaway()).await;
        }
    };
    // Before the tasks of its streams run again: their log lines say how the client left.
    let note_end = |ended: &Result<(), Http2Error>| {
        connected.set_end(if budget.is_exceeded() {
            Ending::by_proxy(EndReason::Limit)
        } else {
            let reason = match ended {
                Err(Http2Error::PingTimeout(_)) => EndReason::PingTimeout,
                Err(Http2Error::Failed(_)) => batcher.read_end().unwrap_or(EndReason::Protocol),
                Ok(()) => batcher.read_end().unwrap_or(EndReason::Eof),
            };
            Ending::by_client(reason)
        });
    };
    let mut connection = Server::new(&builder, stream, pings, start);
    let serving = poll_fn(|cx| match batcher.drive(Pin::new(&mut connection), cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        // The monitor can no longer follow the client, so the connection ends.
        Poll::Pending if cut_targets.refuses_all() => Poll::Ready(None),
        Poll::Pending => last_frames.poll_stalled(cx).map(|()| {
            last_frames_unread(&connected);
            Some(Ok(()))
        }),
    });
    tokio::select! {
        ended = serving => if let Some(ended) = ended {
            note_end(&ended);
            end_if_exceeded().await;
            return ended;
        },
        () = drain.begun() => {}
        // A ping is not a request: without this, a client that only replies to pings would stay connected.
        () = streams.idle(client_idle) => {}
        () = connected.place().closing() => {}
        () = proxy::certificate_ended(downstream.certificate.as_deref()) => {
            connected.set_end(Ending::by_proxy(EndReason::Certificate));
            return Ok(());
        }
        () = downstream.leases.unauthenticated() => {
            debug!(client.address = %downstream.peer, "sending GOAWAY after a request without a valid credential");
        }
    }
    connection.drain();
    // Until the client has seen the GOAWAY it may use each of its streams once more.
    let last_stream = streams.begun().saturating_add(max_streams);
    let serving = poll_fn(|cx| match batcher.drive(Pin::new(&mut connection), cx) {
        // h2 accepts new streams until the client has acknowledged the GOAWAY, which it may never do.
        Poll::Pending if streams.begun() > last_stream => Poll::Ready(None),
        ended @ (Poll::Ready(_) | Poll::Pending) => ended.map(Some),
    });
    tokio::select! {
        ended = serving => {
            let Some(ended) = ended else {
                connected.set_end(Ending::by_proxy(EndReason::Limit));
                debug!(client.address = %downstream.peer, "client ignores GOAWAY; its connection is closed");
                return Ok(());
            };
            note_end(&ended);
            end_if_exceeded().await;
            ended
        }
        // The client had time to close the connection and did not.
        () = streams.idle(goaway_timeout) => Ok(()),
        () = drain.deadline() => Ok(()),
        () = proxy::certificate_ended(downstream.certificate.as_deref()) => {
            connected.set_end(Ending::by_proxy(EndReason::Certificate));
            Ok(())
        }
        // Another client needs the place, perhaps only now.
        () = async {
            connected.place().closing().await;
            sleep(CLOSE_TIMEOUT).await;
        } => Ok(()),
    }
}

fn last_frames_unread(connected: &Connected) {
    connected.counters().limits_hit.count(Limit::ClientStall);
    debug!(
        client.address = %connected.client(),
        "client did not read the last frames of its responses; connection closed"
    );
}

/// Returns the response to the request of one stream.
async fn respond(
    service: Arc<Service>,
    request: Request<RequestBody>,
    rejection: Option<Rejection>,
    unread: Arc<UnreadResponses>,
) -> Response<StallGuard<SmallFrameLimit<proxy::Body>>> {
    let routes = Arc::clone(&service.shared.snapshot.load().routes);
    let response = proxy::handle(&routes, &service.downstream, request, rejection).await;
    response.map(|body| StallGuard::new(limit_small_frames(body), unread))
}

/// Sends this frame after h2's connection has failed, and closes the connection.
async fn say_goodbye(batcher: &WriteBatcher<TlsStream<ReadAhead>>, frame: &[u8]) {
    // The client does not read, and has perhaps received a part of another frame.
    if batcher.is_full() {
        return;
    }
    let mut goodbye = pin!(send_last(batcher.clone(), frame));
    timeout(LINGER, poll_fn(|cx| batcher.drive(goodbye.as_mut(), cx)))
        .await
        .ok();
}

/// Starts the tasks of streams on the drain, and counts them.
#[derive(Debug)]
struct StreamTasks {
    drain: Drain,
    streams: Arc<Streams>,
    /// Streams that may be open at once.
    max: usize,
    connected: Arc<Connected>,
}

/// The streams of one connection. They wake no task: [`Streams::idle`] looks when the time may be up, so that a request
/// costs no timer.
#[derive(Debug)]
struct Streams(Mutex<StreamCounts>);

#[derive(Debug)]
struct StreamCounts {
    /// Those that are open now.
    open: usize,
    /// Those that have begun.
    begun: usize,
    /// When the number of open ones last became zero.
    idle_since: Instant,
}

impl Streams {
    fn new() -> Self {
        Self(Mutex::new(StreamCounts {
            open: 0,
            begun: 0,
            idle_since: Instant::now(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, StreamCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> usize {
        self.lock().begun
    }

    /// Returns once no stream was open for this long, counted from the call at the earliest.
    async fn idle(&self, limit: Duration) {
        let asked = Instant::now();
        let idle_since = || {
            let counts = self.lock();
            (counts.open == 0).then(|| counts.idle_since.max(asked))
        };
        loop {
            let since = idle_since();
            sleep_until(since.unwrap_or_else(Instant::now) + limit).await;
            if since.is_some() && since == idle_since() {
                return;
            }
        }
    }
}

pin_project! {
    /// The task of one stream. A type of its own, because an async block holds what it awaits twice.
    struct StreamTask<F> {
        #[pin]
        stream: F,
        open: StreamCount,
    }
}

impl<F: Future<Output = ()>> Future for StreamTask<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().stream.poll(cx)
    }
}

/// Counts one open stream until dropped.
struct StreamCount(Arc<Streams>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        let mut counts = self.0.lock();
        counts.open -= 1;
        if counts.open == 0 {
            counts.idle_since = Instant::now();
        }
    }
}

impl StreamTasks {
    fn start<F: Future<Output = ()> + Send + 'static>(&self, stream: F) {
        let mut counts = self.streams.lock();
        counts.open += 1;
        counts.begun += 1;
        if counts.open == self.max {
            self.connected.counters().limits_hit.count(Limit::Streams);
        }
        drop(counts);
        let open = StreamCount(Arc::clone(&self.streams));
        self.drain.spawn(StreamTask { stream, open });
    }
}

/// Wraps a response body so that it hands over at most [`MAX_SMALL_FRAMES`] small frames that are not yet
/// written, because the client does not read.
///
/// h2 limits the bytes that wait per stream. A frame of one byte costs h2 several hundred bytes, so a log
/// that arrives byte by byte, on each of a hundred streams, would hold gigabytes.
///
/// Small frames are copied. A slice would keep the read buffer of the upstream connection that it came in, which is
/// many times as large, until the client reads it.
fn limit_small_frames<B>(body: B) -> SmallFrameLimit<B> {
    SmallFrameLimit {
        body,
        permits: None,
    }
}

/// A response body whose unwritten small frames are limited.
#[derive(Debug)]
struct SmallFrameLimit<B> {
    body: B,
    /// Made with the first small frame, because most responses have none.
    permits: Option<Box<Permits>>,
}

#[derive(Debug)]
struct Permits {
    semaphore: PollSemaphore,
    /// The permit of the next frame, taken before the frame is read.
    next: Option<OwnedSemaphorePermit>,
}

/// The data of a small frame. It holds its permit until h2 has written or dropped it.
struct SmallFrame {
    data: Box<[u8]>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Permits {
    fn new() -> Self {
        let semaphore = Arc::new(Semaphore::new(MAX_SMALL_FRAMES));
        Self {
            next: Arc::clone(&semaphore).try_acquire_owned().ok(),
            semaphore: PollSemaphore::new(semaphore),
        }
    }

    /// Ready once there is a permit for the next frame.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none() {
            self.next = ready!(self.semaphore.poll_acquire(cx));
        }
        Poll::Ready(())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SmallFrameLimit<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(permits) = &mut this.permits {
            ready!(permits.poll_next(cx));
        }
        let mut frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        // No frame follows the last one, so it needs no limit.
        let is_last = this.body.is_end_stream();
        if let Some(Ok(frame)) = &mut frame
            && let Some(data) = frame.data_mut()
            && data.len() < SMALL
        {
            *data = if is_last {
                Bytes::copy_from_slice(data)
            } else {
                let permits = this.permits.get_or_insert_with(|| Box::new(Permits::new()));
                Bytes::from_owner(SmallFrame {
                    data: Box::from(&data[..]),
                    _permit: permits.next.take(),
                })
            };
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl PacedBody for SmallFrameLimit<proxy::Body> {
    fn waits_for_client(&self) -> bool {
        let permits = self.permits.as_ref();
        permits.is_some_and(|permits| permits.next.is_none())
    }

    fn abort(&mut self) {
        self.body.abort(Ending::by_proxy(EndReason::Stall));
    }
}

impl AsRef<[u8]> for SmallFrame {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Receive windows of one stream, as kube-apiserver has it, and of the whole connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes buffered per stream for a client that does not read: 6.4 MiB for 100 streams.
const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Bytes that HTTP/2 adds to each field when it counts a header list (RFC 9113 §6.5.2).
const FIELD_OVERHEAD: usize = 32;
/// The pseudo-fields of a request.
const PSEUDO_FIELDS: usize = 4;
/// Frames with fewer bytes than this count as small.
const SMALL: usize = 256;
/// As many frames of [`SMALL`] bytes fill the send buffer of a stream.
const MAX_SMALL_FRAMES: usize = 256;

#[cfg(test)]
mod tests;
