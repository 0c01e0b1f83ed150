//! Where the events of a watch end, for each way in which an apiserver writes them.

use http::{HeaderMap, header};

use super::cbor::CborSequence;

/// The framing of the events, and the position of the last byte in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Events {
    /// JSON, one event per line.
    Lines {
        /// Whether the last byte ended a line. Also true before the first byte.
        between: bool,
    },
    /// Protobuf. Each event follows its length, a big-endian integer of four bytes.
    Frames {
        /// The length as far as it has arrived.
        length: u32,
        /// How many bytes of the length have arrived.
        length_bytes: u8,
        /// How many bytes of the current event have not arrived.
        missing: u32,
    },
    /// CBOR, one data item per event.
    Cbor(CborSequence),
    /// Any of these, compressed. The apiserver flushes only after whole events, and each flush ends a gzip member. So
    /// an event ends where a member ends, and the proxy need not decompress, which would take about 40 KiB of memory
    /// per watch and more time than everything else that the proxy does with these bytes.
    Members {
        /// The last bytes that passed. Before the first byte, those of a member that has ended.
        tail: Tail,
    },
}

/// As many bytes as the longest end of a member: see [`is_member_end`].
type Tail = [u8; 17];

impl Events {
    /// The framing of the events of this response; `None` if the proxy cannot track it.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        // A response of a known length must not end early.
        if headers.contains_key(header::CONTENT_LENGTH) {
            return None;
        }
        let mut parts = text(header::CONTENT_TYPE)?.split(';').map(str::trim);
        let plain = match parts.next()? {
            "application/json" => Self::Lines { between: true },
            "application/cbor-seq" => Self::Cbor(CborSequence::default()),
            "application/vnd.kubernetes.protobuf" if parts.any(|part| part == "stream=watch") => {
                Self::Frames {
                    length: 0,
                    length_bytes: 0,
                    missing: 0,
                }
            }
            _ => return None,
        };
        match text(header::CONTENT_ENCODING) {
            None | Some("identity") => Some(plain),
            Some("gzip") => Some(Self::Members { tail: MEMBER_END }),
            Some(_) => None,
        }
    }

    pub(super) fn is_between_events(&self) -> bool {
        match self {
            Self::Lines { between } => *between,
            Self::Frames {
                length_bytes,
                missing,
                ..
            } => *length_bytes == 0 && *missing == 0,
            Self::Cbor(sequence) => sequence.is_between_items(),
            Self::Members { tail } => is_member_end(tail),
        }
    }

    /// Tracks all of these bytes.
    pub(super) fn track(&mut self, data: &[u8]) {
        match self {
            Self::Lines { between } => {
                if let Some(last) = data.last() {
                    *between = *last == b'\n';
                }
            }
            Self::Frames { .. } | Self::Cbor(_) => {
                let mut rest = data;
                while !rest.is_empty() {
                    let length = self.track_event(rest).unwrap_or(rest.len());
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
            Self::Members { tail } => {
                let passed = data.len().min(tail.len());
                tail.rotate_left(passed);
                for (last, byte) in tail.iter_mut().rev().zip(data.iter().rev()) {
                    *last = *byte;
                }
            }
        }
    }

    /// Tracks these bytes up to the end of the current event, and returns how many bytes that is. Returns
    /// `None` if the event does not end within them.
    pub(super) fn track_event(&mut self, data: &[u8]) -> Option<usize> {
        match self {
            Self::Lines { between } => {
                let end = data.iter().position(|byte| *byte == b'\n');
                *between = end.is_some() || (*between && data.is_empty());
                end.map(|at| at.saturating_add(1))
            }
            Self::Frames {
                length,
                length_bytes,
                missing,
            } => {
                let mut at = 0;
                loop {
                    if *missing > 0 {
                        let left = u32::try_from(data.len().saturating_sub(at)).unwrap_or(u32::MAX);
                        let taken = left.min(*missing);
                        *missing -= taken;
                        at = at.saturating_add(taken.try_into().unwrap_or(usize::MAX));
                        return (*missing == 0).then_some(at);
                    }
                    let byte = data.get(at)?;
                    at = at.saturating_add(1);
                    *length = (*length << 8) | u32::from(*byte);
                    *length_bytes += 1;
                    if *length_bytes == 4 {
                        (*missing, *length, *length_bytes) = (*length, 0, 0);
                        if *missing == 0 {
                            return Some(at);
                        }
                    }
                }
            }
            Self::Cbor(sequence) => sequence.track_item(data),
            Self::Members { tail } => {
                // Copied, because a member may end with bytes of several pieces. Only the drain comes here.
                let passed = [&tail[..], data].concat();
                let mut ends = passed.windows(tail.len()).skip(1).map(is_member_end);
                let end = ends.position(|ends| ends).map(|at| at.saturating_add(1));
                self.track(end.and_then(|end| data.get(..end)).unwrap_or(data));
                end
            }
        }
    }
}

/// Whether these bytes end a gzip member that was flushed before: the marker of the flush, an empty last block (stored,
/// as Go's compress/flate writes it, or with fixed codes, as zlib does), CRC-32 and length.
///
/// Other bytes that look so by chance end the response inside a member. The trailer of the member is missing then, so
/// the client sees that the response is incomplete, exactly as after an abort.
fn is_member_end(tail: &[u8]) -> bool {
    matches!(
        tail,
        [
            0,
            0,
            0xff,
            0xff,
            1,
            0,
            0,
            0xff,
            0xff,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _
        ] | [_, _, _, 0, 0, 0xff, 0xff, 3, 0, _, _, _, _, _, _, _, _]
    )
}

/// The end of a member, as [`is_member_end`] knows it.
const MEMBER_END: Tail = [
    0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Whether an event has ended does not depend on how its bytes arrive, and [`Events::track_event`] finds the end that
/// comes next. The first byte chooses the framing.
pub(in crate::proxy) fn fuzz(bytes: &[u8]) {
    let Some((choice, stream)) = bytes.split_first() else {
        return;
    };
    let new = || match choice % 4 {
        0 => Events::Lines { between: true },
        1 => Events::Frames {
            length: 0,
            length_bytes: 0,
            missing: 0,
        },
        2 => Events::Cbor(CborSequence::default()),
        _ => Events::Members { tail: MEMBER_END },
    };
    let mut bytewise = new();
    let mut ends = Vec::new();
    for (at, byte) in stream.iter().enumerate() {
        bytewise.track(std::slice::from_ref(byte));
        if bytewise.is_between_events() {
            ends.push(at + 1);
        }
    }
    for cut in 0..=stream.len().min(MAX_FUZZED_CUTS) {
        let (before, after) = stream.split_at(cut);
        let mut events = new();
        events.track(before);
        assert_eq!(events.is_between_events(), cut == 0 || ends.contains(&cut));
        let next = ends.iter().find(|end| **end > cut);
        let found = events.clone().track_event(after);
        assert_eq!(found, next.map(|end| end - cut), "the next end after {cut}");
        events.track(after);
        assert_eq!(events, bytewise, "cut at {cut}");
    }
}

/// Enough for every input of the corpus.
const MAX_FUZZED_CUTS: usize = 256;

#[cfg(test)]
mod tests;
