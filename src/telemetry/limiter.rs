//! The limit of log lines, per client and for all clients together.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
    time::Duration,
};

use tokio::time::Instant;

use crate::token_bucket::{TokenBucket, TokenBucketSize};

/// Limits the lines of one kind, for each client and for all of them, so that a client that fails in a loop can
/// neither fill the log nor hide what happens to others.
#[derive(Debug)]
pub(crate) struct LogLimiter {
    of_client: TokenBucketSize,
    of_all: TokenBucketSize,
    slots: Box<[ClientLines]>,
    all: TokenBucket,
}

/// The log lines of the clients that share a slot.
#[derive(Debug, Clone, Copy)]
struct ClientLines {
    bucket: TokenBucket,
    suppressed: u64,
}

impl Default for LogLimiter {
    /// The limit of lines about requests that fail.
    fn default() -> Self {
        Self::new(FAILURES_OF_CLIENT, FAILURES_OF_ALL)
    }
}

impl LogLimiter {
    /// A limit of lines, each of which takes one token.
    pub(crate) fn new(of_client: TokenBucketSize, of_all: TokenBucketSize) -> Self {
        let all = TokenBucket::new(Instant::now());
        let no_lines = ClientLines {
            bucket: all,
            suppressed: 0,
        };
        Self {
            of_client,
            of_all,
            slots: vec![no_lines; LIMITER_SLOTS].into(),
            all,
        }
    }

    /// Returns `Some` if a line about this client may be written, with the number of lines that were
    /// suppressed since the last one. `client` is its address, alone or with the kind of line.
    pub(crate) fn admit(&mut self, client: impl Hash, now: Instant) -> Option<u64> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(client);
        let slot = usize::try_from(hash % LIMITER_SLOTS as u64).unwrap_or_default();
        let lines = self.slots.get_mut(slot)?;
        let of_client = lines.bucket.take(&self.of_client, now);
        if of_client
            .and_then(|()| self.all.take(&self.of_all, now))
            .is_err()
        {
            lines.suppressed += 1;
            return None;
        }
        Some(std::mem::take(&mut lines.suppressed))
    }
}

/// Lines about failed requests.
const FAILURES_OF_CLIENT: TokenBucketSize = TokenBucketSize {
    max_tokens: 10,
    fill_interval: Duration::from_secs(1),
};
const FAILURES_OF_ALL: TokenBucketSize = TokenBucketSize {
    max_tokens: 50,
    fill_interval: Duration::from_millis(100),
};
/// A fixed number, so that memory does not grow with clients. Two clients in one slot share its lines.
const LIMITER_SLOTS: usize = 256;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn lines_of_a_noisy_client_are_suppressed_and_counted() {
        let noisy = IpAddr::from([192, 0, 2, 1]);
        let quiet = IpAddr::from([192, 0, 2, 3]);
        let mut limiter = LogLimiter::default();
        let now = Instant::now();
        let written = (0..100).filter(|_| limiter.admit(noisy, now).is_some());
        assert_eq!(written.count(), 10);
        assert_eq!(limiter.admit(quiet, now), Some(0), "another client");
        let later = now + Duration::from_secs(2);
        assert_eq!(limiter.admit(noisy, later), Some(90));
        assert_eq!(limiter.admit(noisy, later), Some(0));
        assert_eq!(limiter.admit(noisy, later), None, "one more a second");
    }

    #[test]
    fn many_noisy_clients_share_the_limit_of_all_lines() {
        let mut limiter = LogLimiter::default();
        let now = Instant::now();
        let mut written = 0;
        for millis in (0..30_000).step_by(10) {
            let now = now + Duration::from_millis(millis);
            let clients = (0..=255).map(|last| IpAddr::from([192, 0, 2, last]));
            written += clients
                .filter(|client| limiter.admit(client, now).is_some())
                .count();
        }
        assert!((300..=350).contains(&written), "{written} lines in 30 s");
    }
}
