//! Resets a response whose client has not read for [`CLIENT_STALL`] while data for it was pending.
//!
//! h2 does not limit how long a response waits for the window of its client. A client that opens no
//! window would keep the memory of a hundred responses per connection until it leaves.
//!
//! While memory is short, a client may leave [`MAX_UNREAD_WHEN_SHORT`] responses unread; the others are reset at once,
//! or with the next tick.
//!
//! Only pending data counts: a watch whose apiserver sends nothing stays open. `ServerStream` asks [`StallGuard`] for
//! the next frame as soon as h2 has taken the one before. So a body that has yielded a frame and was not asked for
//! another one waits for its client, and a body that was asked and has no frame waits for the apiserver.
//!
//! The task of a stream ends when h2 has taken the last frame, even if the window has room for one byte of it only.
//! [`LastFrames`] counts the responses that h2 has not written to their end then, and [`LastFramesClock`] ends a
//! connection whose client does not read them.

use std::{
    future::Future as _,
    mem,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tracing::debug;

use super::super::CLIENT_STALL;
use crate::{
    memory::MemoryPressure,
    metrics::{Connected, Limit},
};

/// What a response body did when it was polled.
#[derive(Debug, Clone, Copy)]
enum BodyPoll {
    /// It waits for the apiserver.
    WaitsForServer,
    /// It can yield no frame before the client has read.
    WaitsForClient,
    /// It yielded a frame, so h2 has taken the one before.
    Yielded,
}

/// What h2 has written of a response. h2 writes only what the window of the client allows.
#[derive(Debug, Default)]
struct WrittenResponse {
    /// Set whenever h2 writes some data.
    some: AtomicBool,
    /// Set when the body has ended. Dropped when h2 has written or dropped the last frame.
    end: OnceLock<LastFrame>,
}

type ReadFlag = Arc<WrittenResponse>;

/// A body that may have to wait for its client before it yields a frame.
pub(super) trait PacedBody: Body<Data = Bytes> {
    /// Whether the last poll was pending because of the client.
    fn waits_for_client(&self) -> bool;

    /// The client did not read the rest.
    fn abort(&mut self);
}

/// A response body that notices when its client does not read.
#[derive(Debug)]
pub(super) struct StallGuard<B> {
    body: B,
    /// Made with the first frame that another one follows, because most responses have one frame.
    read_flag: Option<ReadFlag>,
    /// What the body did since [`StallGuard::poll_stalled`] was last called. `None` if it was not polled.
    last_poll: Option<BodyPoll>,
    /// Made when the response first waits for the client, because most responses never do.
    clock: Option<Box<StallClock>>,
    unread: Arc<UnreadResponses>,
}

impl<B: PacedBody> StallGuard<B> {
    pub(super) fn new(body: B, unread: Arc<UnreadResponses>) -> Self {
        Self {
            body,
            read_flag: None,
            last_poll: None,
            clock: None,
            unread,
        }
    }

    /// Call it whenever the response has to wait. Ready if the stream must be reset, because the client does not read.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sheds = false;
        match (self.last_poll.take(), &mut self.clock) {
            (Some(polled), Some(clock)) => clock.body_was_polled(polled),
            (Some(BodyPoll::WaitsForClient | BodyPoll::Yielded), clock @ None) => {
                *clock = Some(Box::new(StallClock::new(Arc::clone(&self.unread))));
                sheds = self.unread.must_shed();
            }
            // If the body was not polled, the stream waits for the same side as before.
            (Some(BodyPoll::WaitsForServer), None) | (None, _) => {}
        }
        while let Some(clock) = &mut self.clock
            && (sheds || clock.tick.as_mut().poll(cx).is_ready())
        {
            if !clock.waits_for_client {
                self.clock = None;
                continue;
            }
            let has_stalled = clock.has_stalled(self.read_flag.as_deref());
            sheds |= self.unread.must_shed();
            if has_stalled || sheds {
                let connected = &self.unread.connected;
                connected.counters().limits_hit.count(if has_stalled {
                    Limit::ClientStall
                } else {
                    Limit::Memory
                });
                debug!(client.address = %connected.client(), "response not read; stream reset");
                // It no longer counts.
                self.clock = None;
                self.body.abort();
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl<B: PacedBody + Unpin> Body for StallGuard<B> {
    type Data = TrackedData;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<TrackedData>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let is_last = this.body.is_end_stream();
        if polled.is_ready() && this.read_flag.is_none() && !is_last {
            this.read_flag = Some(ReadFlag::default());
        }
        // Perhaps with no data or with trailers: then h2 still has the frames before.
        if is_last && let Some(written) = &this.read_flag {
            written
                .end
                .get_or_init(|| LastFrame::new(&this.unread.last_frames));
        }
        this.last_poll = Some(if polled.is_ready() {
            BodyPoll::Yielded
        } else if this.body.waits_for_client() {
            BodyPoll::WaitsForClient
        } else {
            BodyPoll::WaitsForServer
        });
        polled.map(|frame| {
            frame.map(|frame| {
                frame.map(|frame| {
                    frame.map_data(|data| TrackedData {
                        data,
                        read_flag: this.read_flag.clone(),
                        last: (is_last && this.read_flag.is_none())
                            .then(|| LastFrame::new(&this.unread.last_frames)),
                    })
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The data of a frame. It notes when h2 writes a part of it.
#[derive(Debug, Default)]
pub(super) struct TrackedData {
    data: Bytes,
    read_flag: Option<ReadFlag>,
    /// Set if this is the whole body, until it is written.
    last: Option<LastFrame>,
}

impl Buf for TrackedData {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
        if let Some(written) = &self.read_flag {
            written.some.store(true, Ordering::Relaxed);
            if let Some(last) = written.end.get() {
                last.was_written();
            }
        }
        if let Some(last) = &self.last {
            last.was_written();
            if !self.data.has_remaining() {
                self.last = None;
            }
        }
    }
}

/// The responses of one connection that h2 has to their end and has not written, because the client does not read.
#[derive(Debug, Default)]
pub(super) struct LastFrames {
    /// Periods of [`CLIENT_STALL`] that have begun while there were such responses.
    period: AtomicUsize,
    /// The responses by the period in which h2 last wrote some of them, at its remainder.
    unwritten: [AtomicUsize; PERIODS],
    /// A part of one of them was written since this was last asked.
    was_written: AtomicBool,
}

impl LastFrames {
    fn unwritten(&self) -> usize {
        let each = self.unwritten.iter();
        each.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn written_in(&self, period: usize) -> Option<&AtomicUsize> {
        self.unwritten.get(period % PERIODS)
    }

    /// Returns how many responses h2 has not written in the last two periods. They then count as written in the new
    /// one, so that they are counted once more after two further periods.
    fn begin_period(&self) -> usize {
        let new = self.period.load(Ordering::Relaxed).wrapping_add(1);
        self.period.store(new, Ordering::Relaxed);
        let before = self.written_in(new);
        before.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

/// Counts one response until dropped.
#[derive(Debug)]
struct LastFrame {
    frames: Arc<LastFrames>,
    /// The period in which it counts.
    period: AtomicUsize,
}

impl LastFrame {
    fn new(frames: &Arc<LastFrames>) -> Self {
        let period = frames.period.load(Ordering::Relaxed);
        if let Some(count) = frames.written_in(period) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Self {
            frames: Arc::clone(frames),
            period: period.into(),
        }
    }

    fn was_written(&self) {
        let frames = &self.frames;
        frames.was_written.store(true, Ordering::Relaxed);
        let now = frames.period.load(Ordering::Relaxed);
        let before = self.period.swap(now, Ordering::Relaxed);
        if now != before {
            if let Some(count) = frames.written_in(before) {
                count.fetch_sub(1, Ordering::Relaxed);
            }
            if let Some(count) = frames.written_in(now) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for LastFrame {
    fn drop(&mut self) {
        let period = self.period.load(Ordering::Relaxed);
        if let Some(count) = self.frames.written_in(period) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Counts how long a client has read nothing of the [`LastFrames`] of its connection. The task of the connection polls
/// it.
#[derive(Debug, Default)]
pub(super) struct LastFramesClock {
    frames: Arc<LastFrames>,
    /// Runs while frames are unwritten.
    tick: Option<Pin<Box<Sleep>>>,
    ticks: u32,
    silent_ticks: u32,
}

impl LastFramesClock {
    pub(super) fn frames(&self) -> Arc<LastFrames> {
        Arc::clone(&self.frames)
    }

    /// Ready once the client has read nothing for twice [`CLIENT_STALL`]. By then [`StallGuard`] has reset each stream
    /// that still has a task.
    ///
    /// Also ready once the client has left more than [`MAX_UNREAD_ENDS`] of them unread for that time, whatever else it
    /// reads: small responses in between would keep the memory of a hundred large ones. A client that leaves fewer
    /// keeps its connection and the watches on it, because h2 can no longer reset these responses alone.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.frames.unwritten() > 0 {
            let tick = self.tick.get_or_insert_with(|| {
                (self.ticks, self.silent_ticks) = (0, 0);
                Box::pin(sleep(TICK))
            });
            ready!(tick.as_mut().poll(cx));
            tick.as_mut().reset(Instant::now() + TICK);
            if self.frames.was_written.swap(false, Ordering::Relaxed) {
                self.silent_ticks = 0;
            } else {
                self.silent_ticks += 1;
            }
            self.ticks += 1;
            let left = if self.ticks.is_multiple_of(TICKS) {
                self.frames.begin_period()
            } else {
                0
            };
            if self.silent_ticks > 2 * TICKS || left > MAX_UNREAD_ENDS {
                return Poll::Ready(());
            }
        }
        self.tick = None;
        Poll::Pending
    }
}

/// The responses of one connection that wait for their client.
#[derive(Debug)]
pub(super) struct UnreadResponses {
    connected: Arc<Connected>,
    memory: Arc<MemoryPressure>,
    count: AtomicUsize,
    last_frames: Arc<LastFrames>,
}

impl UnreadResponses {
    pub(super) fn new(
        connected: Arc<Connected>,
        memory: Arc<MemoryPressure>,
        last_frames: Arc<LastFrames>,
    ) -> Self {
        Self {
            connected,
            memory,
            count: AtomicUsize::new(0),
            last_frames,
        }
    }

    /// Whether one of them must be reset, because memory is short.
    fn must_shed(&self) -> bool {
        self.memory.is_short() && self.count.load(Ordering::Relaxed) > MAX_UNREAD_WHEN_SHORT
    }
}

/// Counts how long a client has read no data.
#[derive(Debug)]
struct StallClock {
    /// Not reset for each frame, because a large download waits for its client thousands of times.
    tick: Pin<Box<Sleep>>,
    /// Whether the stream has data that the client does not accept.
    waits_for_client: bool,
    /// Whether the client has read something since the last tick.
    has_read: bool,
    /// Ticks in a row between which the client read nothing.
    silent_ticks: u32,
    unread: Arc<UnreadResponses>,
}

impl Drop for StallClock {
    fn drop(&mut self) {
        self.set_waiting(false);
    }
}

impl StallClock {
    fn new(unread: Arc<UnreadResponses>) -> Self {
        let mut clock = Self {
            tick: Box::pin(sleep(TICK)),
            waits_for_client: false,
            has_read: false,
            silent_ticks: 0,
            unread,
        };
        clock.set_waiting(true);
        clock
    }

    /// The clock runs on for a while after a wait, and only a response that waits now is unread.
    fn set_waiting(&mut self, waits_for_client: bool) {
        let count = &self.unread.count;
        match (self.waits_for_client, waits_for_client) {
            (false, true) => drop(count.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(count.fetch_sub(1, Ordering::Relaxed)),
            (true, true) | (false, false) => {}
        }
        self.waits_for_client = waits_for_client;
    }

    fn body_was_polled(&mut self, polled: BodyPoll) {
        self.has_read |= matches!(polled, BodyPoll::Yielded);
        // A wait that begins between two ticks begins with the next one.
        self.has_read |= !self.waits_for_client;
        self.set_waiting(!matches!(polled, BodyPoll::WaitsForServer));
    }

    /// Called at each tick: whether the client has read nothing for [`CLIENT_STALL`].
    fn has_stalled(&mut self, written: Option<&WrittenResponse>) -> bool {
        let was_written = written.is_some_and(|flag| flag.some.swap(false, Ordering::Relaxed));
        if mem::take(&mut self.has_read) || was_written {
            self.silent_ticks = 0;
        } else {
            self.silent_ticks += 1;
        }
        self.tick.as_mut().reset(Instant::now() + TICK);
        self.silent_ticks == TICKS
    }
}

const TICKS: u32 = 12;
/// The reset comes at most this much later. Short, because memory is freed only then when it is short.
const TICK: Duration = Duration::from_secs(CLIENT_STALL.as_secs() / TICKS as u64);
/// A person reads one response at a time, and a controller reads its watches at once.
const MAX_UNREAD_WHEN_SHORT: usize = 8;
/// They need half a megabyte. A program may stop in the middle of a response while its other requests go on.
const MAX_UNREAD_ENDS: usize = 8;
/// The current one and the two before it.
const PERIODS: usize = 3;

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::{Future, poll_fn},
        task::ready,
    };

    use h2::{Reason, RecvStream, client};
    use http::{Request, Response};
    use tokio::sync::mpsc;

    use super::{
        super::{
            StreamTasks, Streams,
            budget::RequestInProgress,
            server::{Server, ServerStream},
        },
        *,
    };
    use crate::{
        clients::ClientTable,
        config::Limits,
        downstream::http2::monitor::ClientFrames,
        drain::Drain,
        hosts::PeerAddr,
        metrics::{Counters, Protocol},
        transport::{PingTimer, frames::FrameMonitor},
    };

    /// A body of the frames that come on a channel.
    struct Scripted {
        frames: mpsc::UnboundedReceiver<Bytes>,
        waits_for_client: bool,
        aborted: Arc<AtomicBool>,
    }

    impl Body for Scripted {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let data = ready!(self.frames.poll_recv(cx));
            Poll::Ready(data.map(|data| Ok(Frame::data(data))))
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_closed() && self.frames.is_empty()
        }
    }

    impl PacedBody for Scripted {
        fn waits_for_client(&self) -> bool {
            self.waits_for_client
        }

        fn abort(&mut self) {
            self.aborted.store(true, Ordering::Relaxed);
        }
    }

    fn scripted(waits_for_client: bool) -> (mpsc::UnboundedSender<Bytes>, Scripted) {
        let (sender, frames) = mpsc::unbounded_channel();
        let body = Scripted {
            frames,
            waits_for_client,
            aborted: Arc::default(),
        };
        (sender, body)
    }

    fn connected(counters: &Arc<Counters>) -> Arc<Connected> {
        let client = "192.0.2.1:1".parse().unwrap();
        let place = ClientTable::new(&Limits::default()).enter(PeerAddr(client), false);
        Arc::new(Connected::new(
            Arc::clone(counters),
            PeerAddr(client),
            None,
            Protocol::Http2,
            place.unwrap(),
            Drain::new(),
        ))
    }

    fn unread(counters: &Arc<Counters>, memory: &Arc<MemoryPressure>) -> Arc<UnreadResponses> {
        let (memory, last_frames) = (Arc::clone(memory), Arc::default());
        let unread = UnreadResponses::new(connected(counters), memory, last_frames);
        Arc::new(unread)
    }

    /// A client with this window per stream, the response to its one request, and how often a client stalled.
    async fn open(window: u32, body: Scripted) -> (Response<RecvStream>, Arc<Counters>) {
        open_counted(window, body, Arc::default()).await
    }

    /// The same, with the counter of last frames.
    async fn open_counted(
        window: u32,
        body: Scripted,
        last_frames: Arc<LastFrames>,
    ) -> (Response<RecvStream>, Arc<Counters>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let counters = Arc::default();
        let tasks = StreamTasks {
            drain: Drain::new(),
            streams: Arc::new(Streams::new()),
            max: 100,
            connected: connected(&counters),
        };
        let unread = UnreadResponses::new(connected(&counters), Arc::default(), last_frames);
        let mut body = Some(StallGuard::new(body, Arc::new(unread)));
        let (frames, observed) = ClientFrames::new(CLIENT_STALL, 1024, 100);
        let stream = FrameMonitor::of_client(near, frames);
        let hour = Duration::from_secs(3600);
        let pings = PingTimer {
            interval: hour,
            timeout: hour,
            last_read: observed.last_read,
        };
        let budget = observed.requests;
        let builder = h2::server::Builder::new();
        let server = Server::new(&builder, stream, pings, move |_, respond| {
            let response = Response::new(body.take().unwrap());
            let handled = std::future::ready(response);
            let progress = RequestInProgress::new(&budget);
            tasks.start(ServerStream::new(handled, respond, progress, None));
        });
        Drain::new().spawn(server);
        let (mut sender, connection) = client::Builder::new()
            .initial_window_size(window)
            .handshake::<_, Bytes>(far)
            .await
            .unwrap();
        Drain::new().spawn(connection);
        let request = Request::new(());
        let response = sender.send_request(request, true).unwrap().0.await.unwrap();
        // The connection stays open without a sender as long as the stream does.
        (response, counters)
    }

    /// The apiserver ends a response with its last data or with an empty frame.
    #[tokio::test(start_paused = true)]
    async fn client_that_leaves_the_end_unread_is_found() {
        for (window, pieces, knows_last) in
            [(10, 1, true), (10, 1, false), (60, 2, true), (60, 2, false)]
        {
            let (sender, body) = scripted(false);
            for _ in 0..pieces {
                sender.send(vec![b'x'; 100 / pieces].into()).unwrap();
            }
            let sender = (!knows_last).then_some(sender);
            let mut clock = LastFramesClock::default();
            let (mut response, _) = open_counted(window, body, clock.frames()).await;
            sleep(TICK).await;
            drop(sender);
            // Reads half of it, slowly. The window grows when half of it is used up.
            let mut received = 0;
            while received < 50 {
                let stalled = poll_fn(|cx| clock.poll_stalled(cx));
                let waited = tokio::time::timeout(CLIENT_STALL, stalled).await;
                assert!(waited.is_err(), "{window} {knows_last}: {received} read");
                let data = response.body_mut().data().await.unwrap().unwrap();
                received += data.len();
                if received < 50 {
                    let mut flow = response.body_mut().flow_control().clone();
                    flow.release_capacity(data.len()).unwrap();
                }
            }
            let stalled = poll_fn(|cx| clock.poll_stalled(cx));
            let ended = tokio::time::timeout(CLIENT_STALL * 3, stalled).await;
            assert!(ended.is_ok(), "{window} {knows_last}");
            drop(response);
            sleep(TICK).await;
            assert_eq!(clock.frames.unwritten(), 0, "{window} {knows_last}");
        }
    }

    /// The end of a response with two bytes that h2 has and may not write.
    fn last_frame(clock: &LastFramesClock) -> TrackedData {
        TrackedData {
            data: Bytes::from_static(b"xx"),
            read_flag: None,
            last: Some(LastFrame::new(&clock.frames)),
        }
    }

    /// Each of the responses counts alone: a small request per minute is no progress of the others.
    #[tokio::test(start_paused = true)]
    async fn many_unread_ends_are_found_beside_other_requests() {
        for (unread, is_closed) in [(MAX_UNREAD_ENDS + 1, true), (MAX_UNREAD_ENDS, false)] {
            let mut clock = LastFramesClock::default();
            let left: Vec<_> = (0..unread).map(|_| last_frame(&clock)).collect();
            let mut closed_after = None;
            for minute in 1..10 {
                let stalled = poll_fn(|cx| clock.poll_stalled(cx));
                if tokio::time::timeout(CLIENT_STALL, stalled).await.is_ok() {
                    closed_after = Some(minute);
                    break;
                }
                last_frame(&clock).advance(2);
            }
            assert_eq!(closed_after.is_some(), is_closed, "{unread}");
            assert!(closed_after.is_none_or(|minute| minute <= 4));
            drop(left);
            assert_eq!(clock.frames.unwritten(), 0);
        }
    }

    /// A byte of each response is progress, too.
    #[tokio::test(start_paused = true)]
    async fn slowly_read_ends_keep_their_connection() {
        const READS: usize = 20;
        let mut clock = LastFramesClock::default();
        let slow = |_| TrackedData {
            data: Bytes::from_static(&[b'x'; READS + 1]),
            ..last_frame(&clock)
        };
        let mut slow: Vec<_> = (0..99).map(slow).collect();
        for _ in 0..READS {
            let stalled = poll_fn(|cx| clock.poll_stalled(cx));
            let ended = tokio::time::timeout(CLIENT_STALL, stalled).await;
            assert!(ended.is_err());
            slow.iter_mut().for_each(|frame| frame.advance(1));
        }
        assert_eq!(clock.frames.unwritten(), 99);
    }

    fn stalls(counters: &Counters) -> u64 {
        counters.limits_hit.value(Limit::ClientStall)
    }

    #[tokio::test(start_paused = true)]
    async fn response_that_is_never_read_is_reset_and_freed() {
        for (window, frames, closes) in [
            (0, &[1][..], true),
            (0, &[1, 1], false),
            (0, &[100_000, 1], true),
            (10, &[100, 100], false),
        ] {
            let (sender, body) = scripted(false);
            let aborted = Arc::clone(&body.aborted);
            for length in frames {
                sender.send(vec![b'x'; *length].into()).unwrap();
            }
            let sender = (!closes).then_some(sender);
            let started = Instant::now();
            let (mut response, counters) = open(window, body).await;
            let error = loop {
                match response.body_mut().data().await.unwrap() {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            // Never `CANCEL`, which some clients take for a complete body.
            assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
            let lasted = started.elapsed();
            assert!(
                lasted >= CLIENT_STALL && lasted <= CLIENT_STALL + TICK * 2,
                "{lasted:?}"
            );
            assert_eq!(stalls(&counters), 1);
            assert!(aborted.load(Ordering::Relaxed));
            assert!(sender.is_none_or(|sender| sender.is_closed()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_keeps_its_response() {
        let (sender, body) = scripted(false);
        for _ in 0..4 {
            sender.send(vec![b'x'; 16 * 1024].into()).unwrap();
        }
        let (mut response, counters) = open(1, body).await;
        for _ in 0..100 {
            let data = response.body_mut().data().await.unwrap().unwrap();
            assert_eq!(data.len(), 1);
            sleep(CLIENT_STALL - Duration::from_secs(1)).await;
            response
                .body_mut()
                .flow_control()
                .release_capacity(1)
                .unwrap();
        }
        assert_eq!(stalls(&counters), 0);
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn silent_watch_stays_open() {
        let (sender, body) = scripted(false);
        let (mut response, counters) = open(4, body).await;
        for event in ["event", "another"] {
            let mut received = 0;
            // The second of them waits in the stream.
            for _ in 0..2 {
                sender.send(event.into()).unwrap();
            }
            while received < 2 * event.len() {
                let data = response.body_mut().data().await.unwrap().unwrap();
                let mut flow = response.body_mut().flow_control().clone();
                // Late, so that the rest of the event waits for the window.
                sleep(TICK).await;
                flow.release_capacity(data.len()).unwrap();
                received += data.len();
            }
            sleep(CLIENT_STALL * 60).await;
        }
        assert_eq!(stalls(&counters), 0);
    }

    /// Polls a body as its stream does.
    fn poll_body(body: &mut StallGuard<Scripted>, cx: &mut Context<'_>) -> Poll<()> {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => body.poll_stalled(cx),
        }
    }

    /// The limit of small frames makes a body wait for its client, too.
    #[tokio::test(start_paused = true)]
    async fn body_that_waits_for_its_client_stalls() {
        for waits_for_client in [true, false] {
            let (_sender, body) = scripted(waits_for_client);
            let counters = Arc::default();
            let mut body = StallGuard::new(body, unread(&counters, &Arc::default()));
            let stream = poll_fn(|cx| poll_body(&mut body, cx));
            let ended = tokio::time::timeout(CLIENT_STALL * 2, stream).await;
            assert_eq!(ended.is_ok(), waits_for_client);
            assert_eq!(stalls(&counters), u64::from(waits_for_client));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn response_that_waits_no_longer_is_not_unread() {
        let (counters, memory) = (Arc::default(), Arc::default());
        let unread = unread(&counters, &memory);
        memory.set_short(true);
        let clock = |_| StallClock::new(Arc::clone(&unread));
        let mut clocks: Vec<_> = (0..=MAX_UNREAD_WHEN_SHORT).map(clock).collect();
        assert!(unread.must_shed());
        clocks[0].body_was_polled(BodyPoll::WaitsForServer);
        assert!(!unread.must_shed());
        clocks[0].body_was_polled(BodyPoll::Yielded);
        assert!(unread.must_shed());
        clocks[0].body_was_polled(BodyPoll::WaitsForServer);
        drop(clocks);
        assert_eq!(unread.count.load(Ordering::Relaxed), 0);
    }

    /// Responses that are not read at all, and whether each is reset.
    struct Unread(Vec<Pin<Box<dyn Future<Output = ()>>>>);

    impl Unread {
        fn open(&mut self, unread: &Arc<UnreadResponses>) {
            let (sender, body) = scripted(true);
            let mut body = StallGuard::new(body, Arc::clone(unread));
            self.0.push(Box::pin(poll_fn(move |cx| {
                assert!(!sender.is_closed());
                poll_body(&mut body, cx)
            })));
        }

        /// Polls all of them; returns how many are left.
        async fn left(&mut self) -> usize {
            poll_fn(|cx| {
                self.0.retain_mut(|one| one.as_mut().poll(cx).is_pending());
                Poll::Ready(self.0.len())
            })
            .await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn short_memory_costs_a_client_most_unread_responses() {
        let (counters, memory) = (Arc::default(), Arc::default());
        let greedy = unread(&counters, &memory);
        let modest = unread(&counters, &memory);
        let (mut of_greedy, mut of_modest) = (Unread(Vec::new()), Unread(Vec::new()));
        for _ in 0..100 {
            of_greedy.open(&greedy);
        }
        for _ in 0..MAX_UNREAD_WHEN_SHORT {
            of_modest.open(&modest);
        }
        assert_eq!(of_greedy.left().await, 100);
        assert_eq!(of_modest.left().await, MAX_UNREAD_WHEN_SHORT);
        memory.set_short(true);
        sleep(TICK * 2).await;
        assert_eq!(of_greedy.left().await, MAX_UNREAD_WHEN_SHORT);
        assert_eq!(of_modest.left().await, MAX_UNREAD_WHEN_SHORT);
        assert_eq!(counters.limits_hit.value(Limit::Memory), 92);
        // A further one does not wait for a tick.
        of_greedy.open(&greedy);
        assert_eq!(of_greedy.left().await, MAX_UNREAD_WHEN_SHORT);
        memory.set_short(false);
        of_greedy.open(&greedy);
        assert_eq!(of_greedy.left().await, MAX_UNREAD_WHEN_SHORT + 1);
    }
}
