//! What one HTTP/2 client may send that costs the proxy or the apiserver work and is no use to the client: control
//! frames, frames of streams that have ended, requests that h2 refuses, and requests that the client cancels before
//! their response begins.
//!
//! h2 answers or skips each such frame and sets no limit, or one for the life of the connection, which an honest client
//! reaches one day. A client past a budget gets GOAWAY with `ENHANCE_YOUR_CALM`, and its connection ends.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::transport::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHeader, GOAWAY, HEADERS, RST_STREAM,
    WINDOW_UPDATE,
};

/// The frames that one client sent in the current window, by type.
///
/// A window ends when a budget is used up and [`WINDOW`] has passed since it began. The clock is read only then.
#[derive(Debug)]
pub(super) struct FrameBudget {
    begun: Instant,
    pub(super) counts: [u32; COUNTS],
    /// Whether a count is over its budget, so that the others need no look.
    is_over: bool,
    /// Frames that begin a request or end it with trailers.
    heads: u32,
    /// The requests that the frames began so far, and how many of them h2 has not handed to the proxy, or never will,
    /// since before the window.
    requests: u64,
    unserved_before: u64,
    /// Late frames that the client may still send.
    late: u32,
    /// Streams that may be open at once.
    max_streams: u32,
    /// Bytes that were written to the client when [`Self::pay`] last ran, and how many of them no frame has used up.
    written: u64,
    unspent: u64,
}

impl FrameBudget {
    pub(super) fn new(max_streams: u32) -> Self {
        Self {
            begun: Instant::now(),
            counts: [0; COUNTS],
            is_over: false,
            heads: 0,
            requests: 0,
            unserved_before: 0,
            late: 0,
            max_streams,
            written: 0,
            unspent: 0,
        }
    }

    /// Counts a frame by its header.
    pub(super) fn count(&mut self, frame: FrameHeader) {
        match frame.kind {
            HEADERS => self.heads = self.heads.saturating_add(1),
            // The last frame of a body may be empty.
            DATA if frame.length > 0 || frame.has(END_STREAM) => {}
            // A client fills each frame of a large head but the last one. h2 limits the frames of one head.
            CONTINUATION if frame.length >= SMALL_FRAGMENT || frame.has(END_HEADERS) => {}
            kind => self.add(usize::from(kind).min(UNKNOWN)),
        }
    }

    /// Counts a head that begins a request.
    pub(super) fn count_request(&mut self) {
        self.requests += 1;
    }

    /// Counts a part of a request body whose stream has ended.
    pub(super) fn count_late(&mut self) {
        match self.late.checked_sub(1) {
            Some(late) => self.late = late,
            None => self.add(LATE),
        }
    }

    /// The proxy has ended a request body early: what is on the way may still come.
    pub(super) fn allow_late(&mut self) {
        self.late = self.late.saturating_add(LATE_PER_STREAM).min(MAX_LATE);
    }

    /// Counts a stream that h2 has reset for an error of the client.
    pub(super) fn count_refused(&mut self) {
        self.add(REFUSED);
    }

    fn add(&mut self, place: usize) {
        if let Some((count, budget)) = self.counts.get_mut(place).zip(BUDGETS.get(place)) {
            *count = count.saturating_add(1);
            self.is_over |= *count > *budget;
        }
    }

    /// Whether the client sent more than it may. `written` is the number of bytes that were written to it so far.
    pub(super) fn is_exceeded(&mut self, written: u64, requests: &RequestBudget) -> bool {
        let unserved = self.requests.saturating_sub(requests.served());
        self.unserved_before = self.unserved_before.min(unserved);
        let max_unserved = u64::from(self.max_streams.max(MIN_BURST)) * MAX_UNSERVED;
        let has_unserved = unserved - self.unserved_before > max_unserved;
        if !self.is_over && !has_unserved {
            return false;
        }
        self.pay(written);
        self.is_over = self.has_more_than_budget(0);
        if !self.is_over && !has_unserved {
            return false;
        }
        let now = Instant::now();
        if now.duration_since(self.begun) >= WINDOW {
            self.begun = now;
            self.counts = [0; COUNTS];
            self.is_over = false;
            self.heads = 0;
            self.unserved_before = unserved;
            return false;
        }
        // Each request pays for one more frame of each type: its cancellation, its priority, a ping with it.
        has_unserved || self.has_more_than_budget(self.heads)
    }

    fn has_more_than_budget(&self, heads: u32) -> bool {
        let mut counts = self.counts.iter().zip(BUDGETS).enumerate();
        counts.any(|(place, (count, budget))| {
            let allowed = match place {
                // A client may cancel everything that it has open.
                RESETS => budget.max(self.max_streams).saturating_add(heads),
                // These are requests themselves.
                LATE | REFUSED => budget,
                _ => budget.saturating_add(heads),
            };
            *count > allowed
        })
    }

    /// Forgets the frames that the client sends for what it receives, if it received enough bytes for them.
    fn pay(&mut self, written: u64) {
        let new = written.saturating_sub(self.written);
        self.written = written;
        self.unspent = self.unspent.saturating_add(new).min(MAX_UNSPENT);
        for place in [UPDATES, RESETS] {
            if let Some(count) = self.counts.get_mut(place)
                && let Some(rest) = self
                    .unspent
                    .checked_sub(u64::from(*count) * BYTES_PER_REPLY)
            {
                self.unspent = rest;
                *count = 0;
            }
        }
    }
}

/// The requests that one client cancelled before their response began, and whether its connection must end.
///
/// Such a request costs the apiserver work, and the client nothing (Rapid Reset, CVE-2023-44487): without cancelling, a
/// client that may have 100 streams open begins 100 requests per second if each takes a second. So a client may cancel
/// as many at once, and as many per second: an honest one shows another namespace and cancels all that it has open, and
/// does so again. The end of a watch that has begun does not count: a dashboard ends thousands of them at once.
#[derive(Debug)]
pub(super) struct RequestBudget {
    /// Requests that may be cancelled at once.
    burst: u32,
    served: AtomicU64,
    responses: AtomicU32,
    cancelled: Mutex<Option<Cancelled>>,
    is_exceeded: AtomicBool,
    last_stream: AtomicU32,
    accepted: AcceptedStreams,
}

/// The streams whose requests h2 has handed to the proxy. It refuses a malformed request by itself.
#[derive(Debug, Default)]
struct AcceptedStreams {
    /// The last of them, above one bit for each of the 32 possible streams before it.
    last_and_before: AtomicU64,
}

impl AcceptedStreams {
    /// h2 hands requests over in the order of their streams, whose numbers are odd.
    fn add(&self, stream: u32) {
        let state = self.last_and_before.load(Ordering::Relaxed);
        let bits = (state & u64::from(u32::MAX)) << 1 | 1;
        let distance = stream.saturating_sub(last_stream(state)) / 2;
        let bits = bits.checked_shl(distance.saturating_sub(1)).unwrap_or(0) & u64::from(u32::MAX);
        let state = u64::from(stream) << 32 | bits;
        self.last_and_before.store(state, Ordering::Relaxed);
    }

    /// Whether h2 has not handed over this stream. Of streams long before the last one this is not known.
    fn lacks(&self, stream: u32) -> bool {
        let state = self.last_and_before.load(Ordering::Relaxed);
        let last = last_stream(state);
        match last.checked_sub(stream).map(|distance| distance / 2) {
            None => true,
            Some(before @ 1..=32) => state >> (before - 1) & 1 == 0,
            Some(_) => false,
        }
    }
}

fn last_stream(state: u64) -> u32 {
    u32::try_from(state >> 32).unwrap_or(u32::MAX)
}

/// The cancelled requests of a window.
#[derive(Debug)]
struct Cancelled {
    begun: Instant,
    count: u32,
    /// [`RequestBudget::responses`] when the window began.
    responses_before: u32,
    /// When the last of them is made up for, at the rate that a client has.
    settled: Instant,
}

impl RequestBudget {
    pub(super) fn new(max_streams: u32) -> Arc<Self> {
        Arc::new(Self {
            burst: max_streams.max(MIN_BURST),
            served: AtomicU64::new(0),
            responses: AtomicU32::new(0),
            cancelled: Mutex::new(None),
            is_exceeded: AtomicBool::new(false),
            last_stream: AtomicU32::new(0),
            accepted: AcceptedStreams::default(),
        })
    }

    /// Whether the connection must end because a budget is used up, this one or that of the frames.
    pub(super) fn is_exceeded(&self) -> bool {
        self.is_exceeded.load(Ordering::Relaxed)
    }

    /// h2 has handed over the request of this stream.
    pub(super) fn accept(&self, stream: u32) {
        self.accepted.add(stream);
    }

    /// Whether h2 has not handed over the request of this stream, and if it resets the stream, never will.
    pub(super) fn lacks(&self, stream: u32) -> bool {
        self.accepted.lacks(stream)
    }

    /// Ends the connection, on which no stream after `last_stream` began.
    pub(super) fn exceed(&self, last_stream: u32) {
        self.last_stream.store(last_stream, Ordering::Relaxed);
        self.is_exceeded.store(true, Ordering::Relaxed);
    }

    /// The frame that tells the client why its connection ends (RFC 9113 §6.8).
    pub(super) fn goaway(&self) -> Vec<u8> {
        let mut frame = vec![0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
        frame.extend(self.last_stream.load(Ordering::Relaxed).to_be_bytes());
        frame.extend(ENHANCE_YOUR_CALM.to_be_bytes());
        frame
    }

    /// The requests that h2 has handed to the proxy.
    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn count_cancelled(&self) {
        let responses = self.responses.load(Ordering::Relaxed);
        let now = Instant::now();
        let mut cancelled = self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let new = Cancelled {
            begun: now,
            count: 0,
            responses_before: responses,
            settled: now,
        };
        let cancelled = cancelled.get_or_insert(new);
        if now.duration_since(cancelled.begun) >= WINDOW {
            cancelled.begun = now;
            cancelled.count = 0;
            cancelled.responses_before = responses;
        }
        cancelled.count = cancelled.count.saturating_add(1);
        cancelled.settled = cancelled.settled.max(now) + BURST_PERIOD / self.burst;
        let is_too_fast = cancelled.settled > now + BURST_PERIOD;
        let responses = responses.wrapping_sub(cancelled.responses_before);
        let is_too_often = cancelled.count > self.burst.saturating_mul(BURSTS_PER_WINDOW)
            && cancelled.count > responses;
        if is_too_fast || is_too_often {
            self.is_exceeded.store(true, Ordering::Relaxed);
        }
    }
}

/// One request. Dropped before its response begins, it counts as cancelled.
#[derive(Debug)]
pub(super) struct RequestInProgress(Option<Arc<RequestBudget>>);

impl RequestInProgress {
    pub(super) fn new(budget: &Arc<RequestBudget>) -> Self {
        budget.served.fetch_add(1, Ordering::Relaxed);
        Self(Some(Arc::clone(budget)))
    }

    /// The response begins.
    pub(super) fn response_begins(mut self) {
        if let Some(budget) = self.0.take() {
            budget.responses.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for RequestInProgress {
    fn drop(&mut self) {
        if let Some(budget) = self.0.take() {
            budget.count_cancelled();
        }
    }
}

/// How long a client has for each budget.
const WINDOW: Duration = Duration::from_secs(10);
/// The error code for a peer that does too much (RFC 9113 §7).
const ENHANCE_YOUR_CALM: u32 = 11;
/// Places of the counts: the known types of frames (RFC 9113 §6), all other types, and streams that h2 refused.
const LATE: usize = HEADERS as usize;
const RESETS: usize = RST_STREAM as usize;
const UPDATES: usize = WINDOW_UPDATE as usize;
const UNKNOWN: usize = 10;
const REFUSED: usize = 11;
const COUNTS: usize = 12;
/// Frames per window, in the order of their places.
const BUDGETS: [u32; COUNTS] = [
    100,  // DATA without data; h2 has a budget for small frames with data
    100, // in place of HEADERS, which are requests: late DATA and HEADERS, of streams that have ended
    200, // PRIORITY, which older browsers send when they connect and with each request
    100, // RST_STREAM that no received bytes pay for
    50,  // SETTINGS; a client sends them once and acknowledges ours
    100, // PUSH_PROMISE, which a client must not send
    100, // PING; Go sends one per 30 s, and some clients one per round trip at the beginning
    100, // GOAWAY
    1000, // WINDOW_UPDATE that no received bytes pay for
    100, // small CONTINUATION
    100, // unknown types, such as PRIORITY_UPDATE of browsers
    100, // streams reset for an error of the client (MadeYouReset, CVE-2025-8671)
];
/// Late frames per request body that the proxy ended early: the window of a stream in frames of 4 KiB.
const LATE_PER_STREAM: u32 = 64;
/// Late frames that a client may save up.
const MAX_LATE: u32 = 100 * LATE_PER_STREAM;
/// How often a client may open all its streams while h2 refuses the requests, or has not handed them to the proxy yet.
/// It reads all that has come first.
const MAX_UNSERVED: u64 = 10;
/// A client sends at most two frames for each DATA frame: updates of both windows, or, after it has cancelled and
/// forgotten the stream (h2's client does), one update and another reset. The smallest DATA frame has ten bytes.
const BYTES_PER_REPLY: u64 = 5;
/// What a client may save up, because it may read late what it received early. This pays for the updates of 400 MiB by
/// Go's client, which sends two per 4 KiB.
const MAX_UNSPENT: u64 = 1024 * 1024;
/// A CONTINUATION with fewer bytes than this, and another one after it, is small.
const SMALL_FRAGMENT: usize = 1024;
/// The period in which a client may cancel as many requests as at once.
const BURST_PERIOD: Duration = Duration::from_secs(1);
/// Requests that may be cancelled at once, when fewer may be open.
const MIN_BURST: u32 = 100;
/// A client that cancels more requests per window than this, in bursts, must receive as many responses. Go's server
/// also ends a connection at four times the streams that may be open.
const BURSTS_PER_WINDOW: u32 = 4;

/// Fuzz target: a connection ends if, and only if, a count is over its budget.
pub(in crate::downstream) fn fuzz(bytes: &[u8]) {
    let requests = RequestBudget::new(MIN_BURST);
    let mut budget = FrameBudget::new(MIN_BURST);
    for step in bytes.chunks_exact(4) {
        let &[what, kind, flags, length] = step else {
            return;
        };
        match what % 8 {
            0 => budget.count_late(),
            1 => budget.allow_late(),
            2 => budget.count_refused(),
            3 => {
                budget.count_request();
                RequestInProgress::new(&requests).response_begins();
            }
            _ => budget.count(FrameHeader {
                length: usize::from(length),
                kind,
                flags,
                stream: 1,
            }),
        }
        let over = |heads: u32| {
            let mut counts = budget.counts.iter().zip(BUDGETS);
            counts.any(|(count, budget)| *count > budget.saturating_add(heads))
        };
        let (may_end, must_end) = (over(0), over(budget.heads));
        let ends = budget.is_exceeded(0, &requests);
        assert!(may_end || !ends, "ended within the budgets: {budget:?}");
        assert!(ends || !must_end, "open although over a budget: {budget:?}");
        if ends {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_streams_that_were_not_handed_over_are_lacking() {
        let accepted = AcceptedStreams::default();
        let lacking = || -> Vec<u32> {
            (1..=99)
                .step_by(2)
                .filter(|id| accepted.lacks(*id))
                .collect()
        };
        assert_eq!(lacking().len(), 50);
        for stream in [1, 3, 7, 9, 15] {
            accepted.add(stream);
        }
        assert_eq!(lacking()[..3], [5, 11, 13]);
        assert_eq!(lacking()[3..], (17..=99).step_by(2).collect::<Vec<_>>());
        accepted.add(67);
        // 65 - 3 is one too far back.
        let expected: Vec<u32> = [5, 11, 13].into_iter().chain((17..67).step_by(2)).collect();
        assert_eq!(lacking()[..expected.len()], expected);
        accepted.add(69);
        accepted.add(73);
        assert_eq!(lacking()[..3], [11, 13, 17]);
        accepted.add(1001);
        assert!(!accepted.lacks(73) && !accepted.lacks(935) && accepted.lacks(999));
        assert!(accepted.lacks(1003) && !accepted.lacks(1001));
    }

    fn count(budget: &mut FrameBudget, kind: u8, flags: u8, length: usize) {
        budget.count(FrameHeader {
            length,
            kind,
            flags,
            stream: 1,
        });
    }

    fn is_exceeded(budget: &mut FrameBudget, written: u64) -> bool {
        budget.is_exceeded(written, &RequestBudget::new(100))
    }

    /// The number of the first of these steps that is too many.
    fn first_over(budget: &mut FrameBudget, mut step: impl FnMut(&mut FrameBudget)) -> Option<u32> {
        (1..=5000).find(|_| {
            step(budget);
            is_exceeded(budget, 0)
        })
    }

    #[tokio::test(start_paused = true)]
    async fn each_flood_of_frames_is_over_its_budget() {
        for (kind, length, expected) in [
            (DATA, 0, 101),
            (2, 5, 201),
            (RST_STREAM, 4, 101),
            (4, 0, 51),
            (6, 8, 101),
            (WINDOW_UPDATE, 4, 1001),
            (CONTINUATION, 0, 101),
            (0x10, 4, 101),
            (0xff, 0, 101),
        ] {
            let mut budget = FrameBudget::new(100);
            let over = first_over(&mut budget, |budget| count(budget, kind, 0, length));
            assert_eq!(over, Some(expected), "type {kind}");
        }
        let over = first_over(&mut FrameBudget::new(100), FrameBudget::count_refused);
        assert_eq!(over, Some(101));
        let over = first_over(&mut FrameBudget::new(100), FrameBudget::count_request);
        assert_eq!(over, Some(1001), "requests that h2 does not hand over");
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_the_proxy_ended_may_still_come() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..1000 {
            budget.allow_late();
            for _ in 0..LATE_PER_STREAM {
                budget.count_late();
                assert!(!is_exceeded(&mut budget, 0));
            }
        }
        let over = first_over(&mut budget, FrameBudget::count_late);
        assert_eq!(over, Some(101));
    }

    #[tokio::test(start_paused = true)]
    async fn useful_frames_are_never_over() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..100_000 {
            count(&mut budget, HEADERS, END_HEADERS, 100);
            count(&mut budget, CONTINUATION, 0, 16_384);
            count(&mut budget, CONTINUATION, END_HEADERS, 1);
            count(&mut budget, DATA, 0, 1);
            count(&mut budget, DATA, END_STREAM, 0);
            assert!(!is_exceeded(&mut budget, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_control_frames_are_never_over() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..1000 {
            for _ in 0..50 {
                count(&mut budget, 6, 0, 8);
                count(&mut budget, 4, 1, 0);
                assert!(!is_exceeded(&mut budget, 0));
            }
            tokio::time::advance(WINDOW).await;
        }
        // A flood after it is.
        assert!(first_over(&mut budget, |budget| count(budget, 6, 0, 8)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn received_bytes_pay_for_window_updates() {
        let mut budget = FrameBudget::new(100);
        let mut written = 0;
        // Go's client, which reads a list of 1 GiB.
        for _ in 0..262_144 {
            written += 4096;
            count(&mut budget, WINDOW_UPDATE, 0, 4);
            count(&mut budget, WINDOW_UPDATE, 0, 4);
            assert!(!is_exceeded(&mut budget, written));
        }
        // It waits, and then reads the 4 MiB that it has buffered.
        for _ in 0..2048 {
            count(&mut budget, WINDOW_UPDATE, 0, 4);
            assert!(!is_exceeded(&mut budget, written));
        }
        // A watch of small events, whose client acknowledges each frame twice.
        for _ in 0..10_000 {
            written += 10;
            count(&mut budget, WINDOW_UPDATE, 0, 4);
            count(&mut budget, WINDOW_UPDATE, 0, 4);
            assert!(!is_exceeded(&mut budget, written));
        }
        let flood = (1..=1_000_000).find(|_| {
            count(&mut budget, WINDOW_UPDATE, 0, 4);
            is_exceeded(&mut budget, written)
        });
        assert!(flood.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_may_be_cancelled_once() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..100 {
            count(&mut budget, HEADERS, END_HEADERS, 100);
        }
        for _ in 0..3000 {
            count(&mut budget, HEADERS, END_HEADERS, 100);
            count(&mut budget, RST_STREAM, 0, 4);
            count(&mut budget, 6, 0, 8);
            assert!(!is_exceeded(&mut budget, 0));
        }
        let reset = |budget: &mut FrameBudget| count(budget, RST_STREAM, 0, 4);
        assert_eq!(first_over(&mut budget, reset), Some(201));
        // Everything that is open may be cancelled, also when that is more than the budget.
        let over = first_over(&mut FrameBudget::new(1000), reset);
        assert_eq!(over, Some(1001));
    }

    /// The number of the first of these cancelled requests that is too many.
    fn first_cancelled_over(budget: &Arc<RequestBudget>, requests: u32) -> Option<u32> {
        (1..=requests).find(|_| {
            drop(RequestInProgress::new(budget));
            budget.is_exceeded()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn all_open_requests_may_be_cancelled_at_once() {
        for (streams, expected) in [(100, 101), (10, 101), (1000, 1001)] {
            let budget = RequestBudget::new(streams);
            for _ in 0..3000 {
                RequestInProgress::new(&budget).response_begins();
            }
            let over = first_cancelled_over(&budget, 2000);
            assert_eq!(over, Some(expected), "{streams} streams");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_shows_other_namespaces_stays() {
        let budget = RequestBudget::new(100);
        // Everything is cancelled three times without a response, and again a window later.
        for _ in 0..10 {
            for _ in 0..3 {
                assert_eq!(first_cancelled_over(&budget, 100), None);
                tokio::time::advance(BURST_PERIOD).await;
            }
            tokio::time::advance(WINDOW).await;
        }
        // A client that gets responses may go on at that rate.
        for _ in 0..100 {
            for _ in 0..150 {
                RequestInProgress::new(&budget).response_begins();
            }
            assert_eq!(first_cancelled_over(&budget, 100), None);
            tokio::time::advance(BURST_PERIOD).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_cancelling_without_responses_is_limited() {
        let budget = RequestBudget::new(100);
        let mut cancelled = 0;
        while first_cancelled_over(&budget, 1).is_none() {
            cancelled += 1;
            assert!(cancelled <= 400);
            // Below the rate, and no response.
            tokio::time::advance(BURST_PERIOD / 90).await;
        }
        assert_eq!(cancelled, 400);
    }

    #[test]
    fn goaway_names_the_last_stream_and_the_reason() {
        let budget = RequestBudget::new(100);
        budget.exceed(0x0102);
        let expected = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 11];
        assert_eq!(budget.goaway(), expected);
    }
}
