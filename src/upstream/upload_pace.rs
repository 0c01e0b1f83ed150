//! Ends a request whose client sends its body too slowly.
//!
//! A client that announces a body and sends one byte a minute would hold a connection to the apiserver, and a worker of
//! the apiserver, for as long as it likes. Only the wait for the client counts: a body that waits for the apiserver
//! is not asked for more, and its pace is not polled.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

/// The pace of one request body. Made when the body first waits for its client, because most bodies come at once.
#[derive(Debug)]
pub(super) struct UploadPace {
    tick: Pin<Box<Sleep>>,
    /// Bytes received at the last tick.
    received: u64,
    /// Bytes that the client is ahead of [`MIN_BYTES_PER_TICK`], at most [`GRACE_BYTES`].
    ahead: u64,
}

impl UploadPace {
    /// The pace of a body of which this many bytes have come.
    pub(super) fn new(received: &AtomicU64) -> Self {
        Self {
            tick: Box::pin(sleep(TICK)),
            received: received.load(Ordering::Relaxed),
            ahead: GRACE_BYTES,
        }
    }

    /// Ready when the client is too slow. Called while the body waits for its client, so that `received` has all that
    /// the client has sent.
    pub(super) fn poll_too_slow(&mut self, cx: &mut Context<'_>, received: &AtomicU64) -> Poll<()> {
        loop {
            ready!(self.tick.as_mut().poll(cx));
            // A tick that comes late, because the apiserver did not read, counts once: the window of the client is
            // smaller than what it could have sent.
            self.tick.as_mut().reset(Instant::now() + TICK);
            let before = std::mem::replace(&mut self.received, received.load(Ordering::Relaxed));
            let ahead = self.ahead.saturating_add(self.received - before);
            let Some(ahead) = ahead.checked_sub(MIN_BYTES_PER_TICK) else {
                return Poll::Ready(());
            };
            self.ahead = ahead.min(GRACE_BYTES);
        }
    }
}

/// A slow mobile link sends ten times as much.
const MIN_BYTES_PER_SECOND: u64 = 1024;
/// How long a client may send nothing at all.
const GRACE: Duration = Duration::from_secs(30);
const GRACE_BYTES: u64 = MIN_BYTES_PER_SECOND * GRACE.as_secs();
/// The request ends at most this much later.
const TICK: Duration = Duration::from_secs(5);
const MIN_BYTES_PER_TICK: u64 = MIN_BYTES_PER_SECOND * TICK.as_secs();

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    /// How long a client lasts that sends this many bytes each second.
    async fn lasts(bytes_per_second: u64) -> Option<Duration> {
        const LONG: Duration = Duration::from_secs(3600);
        let received = AtomicU64::new(0);
        let mut pace = UploadPace::new(&received);
        let started = Instant::now();
        while started.elapsed() < LONG {
            let second = Duration::from_secs(1);
            let too_slow = poll_fn(|cx| pace.poll_too_slow(cx, &received));
            if timeout(second, too_slow).await.is_ok() {
                return Some(started.elapsed());
            }
            received.fetch_add(bytes_per_second, Ordering::Relaxed);
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn client_below_the_rate_ends_after_the_grace() {
        let seconds = async |rate| lasts(rate).await.map(|lasted| lasted.as_secs());
        assert_eq!(seconds(0).await, Some(35));
        assert_eq!(seconds(100).await, Some(35));
        assert_eq!(seconds(512).await, Some(60));
        assert_eq!(seconds(1024).await, None);
        assert_eq!(seconds(2048).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn grace_begins_again_after_a_burst() {
        let received = AtomicU64::new(0);
        let mut pace = UploadPace::new(&received);
        for _ in 0..10 {
            let silence = GRACE - Duration::from_secs(1);
            let too_slow = poll_fn(|cx| pace.poll_too_slow(cx, &received));
            assert!(timeout(silence, too_slow).await.is_err());
            received.fetch_add(1 << 20, Ordering::Relaxed);
        }
        let too_slow = poll_fn(|cx| pace.poll_too_slow(cx, &received));
        assert!(timeout(GRACE * 2, too_slow).await.is_ok());
    }

    /// An apiserver that reads nothing for an hour is no fault of the client.
    #[tokio::test(start_paused = true)]
    async fn pause_of_the_apiserver_counts_as_one_tick() {
        let received = AtomicU64::new(0);
        let mut pace = UploadPace::new(&received);
        for _ in 0..3 {
            tokio::time::advance(Duration::from_secs(3600)).await;
            let too_slow = poll_fn(|cx| pace.poll_too_slow(cx, &received));
            let short = Duration::from_millis(1);
            assert!(timeout(short, too_slow).await.is_err());
        }
    }
}
