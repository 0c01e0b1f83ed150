//! One watch event on the wire: a line with the time of its sending. The apiserver writes it, the client reads it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

/// The length of an event in bytes, with its line end.
pub(crate) const LENGTH: usize = 1024;

const SENT: &str = r#"{"type":"MODIFIED","sent":""#;
/// Digits of a time in nanoseconds, so that every event has the same length. A string, because of leading zeros.
const DIGITS: usize = 20;

/// The clock that both ends read: they are processes of one machine. If the clock is set during a run, latencies
/// are wrong, but not CPU time.
pub(crate) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// An event that is sent at `sent`.
pub(crate) fn modified(sent: Duration) -> Bytes {
    let nanos = sent.as_nanos();
    let mut line = format!(r#"{SENT}{nanos:0DIGITS$}","object":{{"kind":"Pod","pad":""#);
    line.push_str(&"x".repeat(LENGTH - line.len() - 4));
    line.push_str("\"}}\n");
    line.into()
}

/// The event that opens a watch.
pub(crate) fn added() -> Bytes {
    Bytes::from_static(b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"Pod\"}}\n")
}

/// The time at which the event of this line was sent, or `None` if it is not one of [`modified`].
pub(crate) fn sent(line: &[u8]) -> Option<Duration> {
    let digits = line.strip_prefix(SENT.as_bytes())?.get(..DIGITS)?;
    if line.len() + 1 != LENGTH {
        return None;
    }
    let nanos = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

/// Assembles lines from parts that may end anywhere.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes one part and returns every line that it completes, without the line end.
    pub(crate) fn feed(&mut self, part: &[u8], mut each: impl FnMut(&[u8])) {
        let mut rest = part;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            if self.begun.is_empty() {
                each(line);
            } else {
                self.begun.extend_from_slice(line);
                each(&self.begun);
                self.begun.clear();
            }
            rest = &after[1..];
        }
        self.begun.extend_from_slice(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_json_and_says_when_it_was_sent() {
        let when = Duration::from_nanos(1_234_567_890_123_456_789);
        let event = modified(when);
        assert_eq!(event.len(), LENGTH);
        assert!(event.ends_with(b"\n"));
        serde_json::from_slice::<serde_json::Value>(&event).unwrap();
        assert_eq!(sent(&event[..LENGTH - 1]), Some(when));
    }

    #[test]
    fn a_damaged_event_says_nothing() {
        let event = modified(Duration::from_secs(1));
        assert_eq!(sent(&event[..LENGTH - 2]), None, "cut");
        assert_eq!(sent(&event[1..]), None, "without its first byte");
        assert_eq!(sent(&added()), None);
    }

    #[test]
    fn lines_are_the_same_wherever_the_parts_end() {
        let whole = b"one\n\ntwo\nthree";
        for cut in 0..=whole.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for part in [&whole[..cut], &whole[cut..]] {
                lines.feed(part, |line| seen.push(line.to_vec()));
            }
            assert_eq!(seen, [&b"one"[..], b"", b"two"], "cut at {cut}");
        }
    }
}
