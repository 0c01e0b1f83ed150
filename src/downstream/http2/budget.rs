//! What one HTTP/2 client may send that costs the proxy or the apiserver work and is no use to the client: control
//! frames, and requests that it cancels before their response begins.
//!
//! h2 answers or skips each control frame and sets no limit, so a client that sends nothing else could keep a
//! worker busy. A client past a budget gets GOAWAY with `ENHANCE_YOUR_CALM`, and its connection ends.

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::monitor::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS};

/// The frames that one client sent in the current window, by type.
///
/// A window ends when a budget is used up and [`WINDOW`] has passed since it began. The clock is read only then.
#[derive(Debug)]
pub(super) struct FrameBudget {
    begun: Instant,
    /// One number for each type of frame, and one for all unknown types.
    counts: [u32; TYPES],
    /// Whether a frame was counted since [`Self::is_exceeded`] last ran.
    is_counted: bool,
    /// Frames that begin a request or end it with trailers.
    heads: u32,
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
            counts: [0; TYPES],
            is_counted: false,
            heads: 0,
            max_streams,
            written: 0,
            unspent: 0,
        }
    }

    /// Counts a frame by its header.
    pub(super) fn count(&mut self, kind: u8, flags: u8, length: usize) {
        match kind {
            HEADERS => {
                self.heads = self.heads.saturating_add(1);
                return;
            }
            // The last frame of a body may be empty.
            DATA if length > 0 || flags & END_STREAM != 0 => return,
            // A client fills each frame of a large head but the last one. h2 limits the frames of one head.
            CONTINUATION if length >= SMALL_FRAGMENT || flags & END_HEADERS != 0 => return,
            _ => {}
        }
        if let Some(count) = self.counts.get_mut(usize::from(kind).min(TYPES - 1)) {
            *count = count.saturating_add(1);
            self.is_counted = true;
        }
    }

    /// Whether the client sent more than it may. `written` returns the bytes that were written to it so far.
    pub(super) fn is_exceeded(&mut self, written: impl FnOnce() -> u64) -> bool {
        if !mem::take(&mut self.is_counted) || !self.has_more_than_budget(0) {
            return false;
        }
        self.pay(written());
        if !self.has_more_than_budget(0) {
            return false;
        }
        let now = Instant::now();
        if now.duration_since(self.begun) >= WINDOW {
            self.begun = now;
            self.counts = [0; TYPES];
            self.heads = 0;
            return false;
        }
        // Each request pays for one more frame of each type: its cancellation, its priority, a ping with it.
        self.has_more_than_budget(self.heads)
    }

    fn has_more_than_budget(&self, heads: u32) -> bool {
        let mut counts = self.counts.iter().zip(BUDGETS).enumerate();
        counts.any(|(kind, (count, budget))| {
            let budget = if kind == RST_STREAM {
                // A client may cancel everything that it has open.
                budget.max(self.max_streams)
            } else {
                budget
            };
            *count > budget.saturating_add(heads)
        })
    }

    /// Forgets the frames that the client sends for what it receives, if it received enough bytes for them.
    fn pay(&mut self, written: u64) {
        let new = written.saturating_sub(self.written);
        self.written = written;
        self.unspent = self.unspent.saturating_add(new).min(MAX_UNSPENT);
        for kind in [WINDOW_UPDATE, RST_STREAM] {
            if let Some(count) = self.counts.get_mut(kind)
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
/// Such a request costs the apiserver work, and the client nothing (Rapid Reset, CVE-2023-44487). The end of a
/// watch that has begun does not count: a dashboard ends thousands of them at once.
#[derive(Debug)]
pub(super) struct RequestBudget {
    /// Streams that may be open at once.
    max_streams: u32,
    responses: AtomicU32,
    cancelled: Mutex<Cancelled>,
    is_exceeded: AtomicBool,
    last_stream: AtomicU32,
}

/// The cancelled requests of a window.
#[derive(Debug)]
struct Cancelled {
    begun: Option<Instant>,
    count: u32,
    /// [`RequestBudget::responses`] when the window began.
    responses_before: u32,
}

impl RequestBudget {
    pub(super) fn new(max_streams: u32) -> Arc<Self> {
        Arc::new(Self {
            max_streams,
            responses: AtomicU32::new(0),
            cancelled: Mutex::new(Cancelled {
                begun: None,
                count: 0,
                responses_before: 0,
            }),
            is_exceeded: AtomicBool::new(false),
            last_stream: AtomicU32::new(0),
        })
    }

    /// Whether the connection must end because a budget is used up, this one or that of the frames.
    pub(super) fn is_exceeded(&self) -> bool {
        self.is_exceeded.load(Ordering::Relaxed)
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

    fn count_cancelled(&self) {
        let responses = self.responses.load(Ordering::Relaxed);
        let now = Instant::now();
        let mut cancelled = self
            .cancelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_old = |begun| now.duration_since(begun) >= WINDOW;
        if cancelled.begun.is_none_or(is_old) {
            *cancelled = Cancelled {
                begun: Some(now),
                count: 0,
                responses_before: responses,
            };
        }
        cancelled.count = cancelled.count.saturating_add(1);
        let responses = responses.wrapping_sub(cancelled.responses_before);
        if cancelled.count > self.max_streams.saturating_add(responses) {
            self.is_exceeded.store(true, Ordering::Relaxed);
        }
    }
}

/// One request. Dropped before its response begins, it counts as cancelled.
#[derive(Debug)]
pub(super) struct RequestInProgress(Option<Arc<RequestBudget>>);

impl RequestInProgress {
    pub(super) fn new(budget: &Arc<RequestBudget>) -> Self {
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
/// The known types of frames (RFC 9113 §6), and one place for all others.
const TYPES: usize = 11;
const RST_STREAM: usize = 3;
const WINDOW_UPDATE: usize = 8;
const GOAWAY: u8 = 7;
/// The error code for a peer that does too much (RFC 9113 §7).
const ENHANCE_YOUR_CALM: u32 = 11;
/// Frames of each type per window, in the order of the types.
const BUDGETS: [u32; TYPES] = [
    100,  // DATA without data; h2 has a budget for small frames with data
    0,    // HEADERS are not counted: they are the requests
    200,  // PRIORITY, which older browsers send when they connect and with each request
    100,  // RST_STREAM that no received bytes pay for
    50,   // SETTINGS; a client sends them once and acknowledges ours
    100,  // PUSH_PROMISE, which a client must not send
    100,  // PING; Go sends one per 30 s, and some clients one per round trip at the beginning
    100,  // GOAWAY
    1000, // WINDOW_UPDATE that no received bytes pay for
    100,  // small CONTINUATION
    100,  // unknown types, such as PRIORITY_UPDATE of browsers
];
/// A client sends at most two frames for each DATA frame: updates of both windows, or, after it has cancelled and
/// forgotten the stream (h2's client does), one update and another reset. The smallest DATA frame has ten bytes.
const BYTES_PER_REPLY: u64 = 5;
/// What a client may save up, because it may read late what it received early. This pays for the updates of 400 MiB by
/// Go's client, which sends two per 4 KiB.
const MAX_UNSPENT: u64 = 1024 * 1024;
/// A CONTINUATION with fewer bytes than this, and another one after it, is small.
const SMALL_FRAGMENT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the first of these frames that is too many, sent one by one.
    fn first_over(budget: &mut FrameBudget, kind: u8, length: usize) -> Option<u32> {
        (1..=5000).find(|_| {
            budget.count(kind, 0, length);
            budget.is_exceeded(|| 0)
        })
    }

    #[tokio::test(start_paused = true)]
    async fn each_flood_of_frames_is_over_its_budget() {
        for (kind, length, expected) in [
            (DATA, 0, 101),
            (2, 5, 201),
            (3, 4, 101),
            (4, 0, 51),
            (6, 8, 101),
            (8, 4, 1001),
            (CONTINUATION, 0, 101),
            (0x10, 4, 101),
            (0xff, 0, 101),
        ] {
            let mut budget = FrameBudget::new(100);
            let over = first_over(&mut budget, kind, length);
            assert_eq!(over, Some(expected), "type {kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn useful_frames_are_never_over() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..100_000 {
            budget.count(HEADERS, END_HEADERS, 100);
            budget.count(CONTINUATION, 0, 16_384);
            budget.count(CONTINUATION, END_HEADERS, 1);
            budget.count(DATA, 0, 1);
            budget.count(DATA, END_STREAM, 0);
            assert!(!budget.is_exceeded(|| 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_control_frames_are_never_over() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..1000 {
            for _ in 0..50 {
                budget.count(6, 0, 8);
                budget.count(4, 1, 0);
                assert!(!budget.is_exceeded(|| 0));
            }
            tokio::time::advance(WINDOW).await;
        }
        // A flood after it is.
        assert!(first_over(&mut budget, 6, 8).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn received_bytes_pay_for_window_updates() {
        let mut budget = FrameBudget::new(100);
        let mut written = 0;
        // Go's client, which reads a list of 1 GiB.
        for _ in 0..262_144 {
            written += 4096;
            budget.count(8, 0, 4);
            budget.count(8, 0, 4);
            assert!(!budget.is_exceeded(|| written));
        }
        // It waits, and then reads the 4 MiB that it has buffered.
        for _ in 0..2048 {
            budget.count(8, 0, 4);
            assert!(!budget.is_exceeded(|| written));
        }
        // A watch of small events, whose client acknowledges each frame twice.
        for _ in 0..10_000 {
            written += 10;
            budget.count(8, 0, 4);
            budget.count(8, 0, 4);
            assert!(!budget.is_exceeded(|| written));
        }
        let flood = (1..=1_000_000).find(|_| {
            budget.count(8, 0, 4);
            budget.is_exceeded(|| written)
        });
        assert!(flood.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_may_be_cancelled_once() {
        let mut budget = FrameBudget::new(100);
        for _ in 0..100 {
            budget.count(HEADERS, END_HEADERS, 100);
        }
        for _ in 0..3000 {
            budget.count(HEADERS, END_HEADERS, 100);
            budget.count(3, 0, 4);
            budget.count(6, 0, 8);
            assert!(!budget.is_exceeded(|| 0));
        }
        assert_eq!(first_over(&mut budget, 3, 4), Some(201));
        // Everything that is open may be cancelled, also when that is more than the budget.
        assert_eq!(first_over(&mut FrameBudget::new(1000), 3, 4), Some(1001));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_cancelled_without_a_response_are_limited() {
        let budget = RequestBudget::new(100);
        for _ in 0..1000 {
            RequestInProgress::new(&budget).response_begins();
            drop(RequestInProgress::new(&budget));
            assert!(!budget.is_exceeded());
        }
        tokio::time::advance(WINDOW).await;
        for _ in 0..100 {
            drop(RequestInProgress::new(&budget));
            assert!(!budget.is_exceeded());
        }
        drop(RequestInProgress::new(&budget));
        assert!(budget.is_exceeded());
    }

    #[test]
    fn goaway_names_the_last_stream_and_the_reason() {
        let budget = RequestBudget::new(100);
        budget.exceed(0x0102);
        let expected = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 11];
        assert_eq!(budget.goaway(), expected);
    }
}
