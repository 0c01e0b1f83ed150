//! A token bucket: allows a burst, and then a rate. It bounds what a client may cost, in requests and in log lines.

use std::time::Duration;

use tokio::time::Instant;

/// The size of a bucket. It is full at the start, and gets one token per interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucketSize {
    /// Tokens of a full bucket.
    pub max_tokens: u32,
    /// The time that one token takes.
    pub fill_interval: Duration,
}

/// The tokens of a bucket, as the time when it will be full again (GCRA).
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenBucket {
    full_at: Instant,
}

impl TokenBucketSize {
    /// A bucket of this many tokens that fills in this time.
    #[must_use]
    pub fn new(max_tokens: u32, per: Duration) -> Self {
        Self {
            max_tokens,
            fill_interval: per / max_tokens.max(1),
        }
    }
}

impl TokenBucket {
    /// A bucket that is full at `now`, whatever its size.
    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token, or returns the time until there is one.
    pub(crate) fn take(&mut self, size: &TokenBucketSize, now: Instant) -> Result<(), Duration> {
        let missing = self.full_at.saturating_duration_since(now) + size.fill_interval;
        let wait = missing.saturating_sub(size.fill_interval * size.max_tokens);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.full_at = self.full_at.max(now) + size.fill_interval;
        Ok(())
    }

    pub(crate) fn put_back(&mut self, size: &TokenBucketSize) {
        self.full_at -= size.fill_interval;
    }

    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bucket_allows_a_burst_and_then_its_rate() {
        let size = TokenBucketSize {
            max_tokens: 3,
            fill_interval: Duration::from_millis(400),
        };
        let mut bucket = TokenBucket::new(Instant::now());
        for _ in 0..3 {
            bucket.take(&size, Instant::now()).unwrap();
        }
        let wait = bucket.take(&size, Instant::now()).unwrap_err();
        assert_eq!(wait, size.fill_interval);
        advance(wait).await;
        bucket.take(&size, Instant::now()).unwrap();
        bucket.take(&size, Instant::now()).unwrap_err();
        advance(size.fill_interval * 100).await;
        assert!(bucket.is_full(Instant::now()));
        let taken = (0..10).filter(|_| bucket.take(&size, Instant::now()).is_ok());
        assert_eq!(taken.count(), 3);
    }
}
