//! Which failed dials of an endpoint are logged: the first one of each reason, then their number at intervals.
//!
//! While an apiserver is down, its clients may cause thousands of dials a second. Their errors are all the same.

use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::{Dialled, LabelSet as _};

/// The failed dials of one endpoint since it was last healthy.
#[derive(Debug, Default)]
pub(super) struct FailedDials {
    /// One bit for each reason that was logged.
    logged: u16,
    count: u64,
    unlogged: u64,
    next_report: Option<Instant>,
}

/// What to log about a failed dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureLine {
    /// The first failure for this reason: its whole cause.
    First,
    /// The number of failures since the last line.
    Still(u64),
    Nothing,
}

impl FailedDials {
    pub(super) fn add(&mut self, reason: Dialled, now: Instant) -> FailureLine {
        self.count += 1;
        let bit = 1 << reason.index();
        if self.logged & bit == 0 {
            self.logged |= bit;
            self.next_report.get_or_insert(now + REPORT_INTERVAL);
            return FailureLine::First;
        }
        self.unlogged += 1;
        if self.next_report.is_some_and(|at| now < at) {
            return FailureLine::Nothing;
        }
        self.next_report = Some(now + REPORT_INTERVAL);
        FailureLine::Still(std::mem::take(&mut self.unlogged))
    }

    /// Begins again, because the endpoint is healthy. Returns how many dials had failed.
    pub(super) fn reset(&mut self) -> u64 {
        std::mem::take(self).count
    }
}

/// How often a failure that lasts is logged again.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_logged_once_and_then_counted() {
        let mut failures = FailedDials::default();
        let now = Instant::now();
        assert_eq!(failures.add(Dialled::Refused, now), FailureLine::First);
        for _ in 0..999 {
            assert_eq!(failures.add(Dialled::Refused, now), FailureLine::Nothing);
        }
        assert_eq!(failures.add(Dialled::Verify, now), FailureLine::First);
        let later = now + REPORT_INTERVAL;
        assert_eq!(
            failures.add(Dialled::Refused, later),
            FailureLine::Still(1000)
        );
        assert_eq!(failures.add(Dialled::Refused, later), FailureLine::Nothing);
        assert_eq!(failures.reset(), 1003);
        assert_eq!(failures.add(Dialled::Refused, later), FailureLine::First);
    }
}
