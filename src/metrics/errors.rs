//! The errors that the proxy answered by itself: how many, the last ones in words, and which of them are
//! worth a log line.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The errors of one worker. What a client can cause as often as it likes takes no room: reasons are
/// labels of ours, sentences are told apart by their text and kept for the last few only, and clients
/// share a fixed number of slots.
#[derive(Debug, Default)]
pub(super) struct Errors(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_reason: BTreeMap<&'static str, u64>,
    recent: VecDeque<RecentError>,
    lines: Lines,
}

/// The labels of `errors_total`, which is there from the start for each of them.
pub const REASONS: &[&str] = &[
    "rejected",
    "no_endpoint",
    "connect",
    "connect_timeout",
    "handshake",
    "verify",
    "unprocessed",
    "lost",
    "upload",
    "protocol",
];

/// One of the last errors; the same again is counted and not listed twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecentError {
    /// When it happened last.
    pub at: Instant,
    /// The label of `errors_total`.
    pub reason: &'static str,
    /// What happened, for the operator.
    pub sentence: String,
    /// How often.
    pub times: u64,
}

impl Errors {
    /// Counts an error. Returns how many log lines were kept back since the last one about this client,
    /// if there may be one now.
    pub(super) fn count(
        &self,
        reason: &'static str,
        client: IpAddr,
        sentence: impl FnOnce() -> String,
    ) -> Option<u64> {
        let now = Instant::now();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *inner.by_reason.entry(reason).or_default() += 1;
        let line = inner.lines.may_write(client, now);
        // A flood of one client's errors, most of them not logged, must not cost a sentence each.
        if line.is_some() {
            inner.note(reason, sentence(), now);
        } else if let Some(same) = inner
            .recent
            .iter_mut()
            .rev()
            .find(|error| error.reason == reason)
        {
            (same.at, same.times) = (now, same.times + 1);
        }
        line
    }

    pub(super) fn by_reason(&self, into: &mut BTreeMap<&'static str, u64>) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in &inner.by_reason {
            *into.entry(reason).or_default() += count;
        }
    }

    pub(super) fn recent(&self, into: &mut Vec<RecentError>) {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        into.extend(inner.recent.iter().cloned());
    }
}

impl Inner {
    fn note(&mut self, reason: &'static str, sentence: String, at: Instant) {
        let sentence = shortened(sentence);
        let same = |error: &RecentError| error.reason == reason && error.sentence == sentence;
        let before = self.recent.iter().position(same);
        let times = before
            .and_then(|at| self.recent.remove(at))
            .map_or(0, |error| error.times);
        if self.recent.len() >= MOST_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(RecentError {
            at,
            reason,
            sentence,
            times: times + 1,
        });
    }
}

fn shortened(mut sentence: String) -> String {
    if let Some((end, _)) = sentence.char_indices().nth(MOST_CHARS) {
        sentence.truncate(end);
        sentence.push('…');
    }
    sentence
}

/// Lets so many lines a second through for each client, so that one that fails in a loop can neither fill
/// the log nor hide what happens to others.
#[derive(Debug)]
struct Lines([Slot; SLOTS]);

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    since: Option<Instant>,
    lines: u32,
    kept_back: u64,
}

impl Default for Lines {
    fn default() -> Self {
        Self([Slot::default(); SLOTS])
    }
}

impl Lines {
    fn may_write(&mut self, client: IpAddr, now: Instant) -> Option<u64> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(client);
        let at = usize::try_from(hash % SLOTS as u64).unwrap_or_default();
        let slot = self.0.get_mut(at)?;
        if slot
            .since
            .is_none_or(|since| now.duration_since(since) >= SECOND)
        {
            (slot.since, slot.lines) = (Some(now), 0);
        }
        if slot.lines >= LINES_PER_SECOND {
            slot.kept_back += 1;
            return None;
        }
        slot.lines += 1;
        Some(std::mem::take(&mut slot.kept_back))
    }
}

/// Different errors that are remembered.
pub(super) const MOST_RECENT: usize = 20;
const MOST_CHARS: usize = 400;
/// Log lines about errors of one client and second, on one worker.
const LINES_PER_SECOND: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Clients are spread over these; two that meet in one share its lines.
const SLOTS: usize = 64;

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const NOISY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const QUIET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

    #[tokio::test(start_paused = true)]
    async fn lines_of_a_noisy_client_are_kept_back_and_counted() {
        let errors = Errors::default();
        let count = |client| errors.count("connect", client, || "refused".into());
        let written = (0..100).filter(|_| count(NOISY).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(count(QUIET), Some(0), "another client is still heard");
        advance(SECOND).await;
        assert_eq!(count(NOISY), Some(90), "the next line tells how many");
        assert_eq!(count(NOISY), Some(0));
        let mut by_reason = BTreeMap::new();
        errors.by_reason(&mut by_reason);
        assert_eq!(by_reason.get("connect"), Some(&103), "all are counted");
        let mut recent = Vec::new();
        errors.recent(&mut recent);
        assert_eq!(recent.len(), 1);
        assert_eq!(recent[0].times, 103);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_errors_are_remembered_each_once() {
        let errors = Errors::default();
        for number in 0..MOST_RECENT + 5 {
            advance(SECOND).await;
            errors.count("connect", NOISY, || format!("error {number}"));
        }
        errors.count("connect", QUIET, || "error 20".into());
        let mut recent = Vec::new();
        errors.recent(&mut recent);
        assert_eq!(recent.len(), MOST_RECENT);
        let last = recent.last().unwrap();
        assert_eq!((&*last.sentence, last.times), ("error 20", 2));
        assert_eq!(recent[0].sentence, "error 5");
    }

    #[tokio::test]
    async fn a_sentence_is_not_endless() {
        let errors = Errors::default();
        errors.count("lost", NOISY, || "ä".repeat(10_000));
        let mut recent = Vec::new();
        errors.recent(&mut recent);
        assert_eq!(recent[0].sentence.chars().count(), MOST_CHARS + 1);
    }
}
