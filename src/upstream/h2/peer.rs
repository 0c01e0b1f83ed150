//! What the frames of one upstream HTTP/2 connection say, and the h2 crate does not: when the peer last sent bytes, the
//! last stream of its GOAWAY, and the last stream whose head was written.
//!
//! The stream numbers decide whether a request may be sent again. h2 returns the same error for streams above the
//! GOAWAY's last stream (never processed), for streams that were never written, and for streams whose connection broke
//! (perhaps processed); only the numbers distinguish them.

use std::{
    io, mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    transport::{
        LastRead,
        frames::{
            FrameListener, FramePart, GOAWAY, HEADERS, STREAM_ID, assert_same_in_pieces, feed,
        },
    },
    upstream::lock,
};

/// What the frames of one connection say so far.
#[derive(Debug)]
pub(super) struct PeerState {
    last_stream: AtomicU32,
    last_written: AtomicU32,
    pub(super) last_read: LastRead,
    /// Notified when the peer sends GOAWAY.
    waiting_for_goaway: Mutex<Option<Arc<Notify>>>,
}

impl PeerState {
    pub(super) fn new() -> Self {
        Self {
            last_stream: AtomicU32::new(NO_GOAWAY),
            last_written: AtomicU32::new(0),
            last_read: LastRead::new(),
            waiting_for_goaway: Mutex::new(None),
        }
    }

    /// Notifies `waiting` when the peer sends GOAWAY, or now if it has. Only the client that called last is
    /// notified: a connection serves one client at a time.
    pub(super) fn notify_of_goaway(&self, waiting: Arc<Notify>) {
        let mut slot = lock(&self.waiting_for_goaway);
        if self.is_going_away() {
            waiting.notify_one();
        } else {
            *slot = Some(waiting);
        }
    }

    /// Whether the peer has sent GOAWAY, so that no new stream may be opened.
    pub(super) fn is_going_away(&self) -> bool {
        self.last_stream.load(Ordering::Acquire) != NO_GOAWAY
    }

    /// Whether the peer has promised not to have processed this stream (RFC 9113 §6.8).
    pub(super) fn is_unprocessed(&self, stream: h2::StreamId) -> bool {
        u32::from(stream) > self.last_stream.load(Ordering::Acquire)
    }

    /// Whether not even the head of this stream's request was written. h2 writes heads in the order of
    /// their stream numbers.
    pub(super) fn is_unwritten(&self, stream: h2::StreamId) -> bool {
        u32::from(stream) > self.last_written.load(Ordering::Acquire)
    }

    /// The peer sends GOAWAY. A later one only lowers the last stream.
    fn goes_away(&self, last_stream: u32) {
        self.last_stream.fetch_min(last_stream, Ordering::AcqRel);
        if let Some(waiting) = lock(&self.waiting_for_goaway).take() {
            waiting.notify_one();
        }
    }
}

/// Notes what passes in [`PeerState`].
#[derive(Debug)]
pub(super) struct PeerFrames {
    peer: Arc<PeerState>,
    /// The bytes of a GOAWAY's last stream that have come, and how many are missing.
    goaway: Option<(u32, usize)>,
    has_read: bool,
    /// Heads and trailers that the peer may still send.
    spare_heads: u32,
    /// Heads that the requests of a connection may save up. Each stream may end with a head and trailers at once.
    max_spare_heads: u32,
    has_too_many_heads: bool,
}

impl PeerFrames {
    /// The frames of a connection with at most this many streams.
    pub(super) fn new(peer: &Arc<PeerState>, max_streams: u32) -> Self {
        Self {
            peer: Arc::clone(peer),
            max_spare_heads: max_streams.saturating_mul(2).max(MIN_SPARE_HEADS),
            goaway: None,
            has_read: false,
            spare_heads: 0,
            has_too_many_heads: false,
        }
    }
}

impl FrameListener for PeerFrames {
    fn read(&mut self, part: FramePart<'_>) {
        self.has_read = true;
        match part {
            FramePart::Header(frame) => {
                self.goaway = (frame.kind == GOAWAY).then_some((0, 4));
                if frame.kind == HEADERS {
                    self.has_too_many_heads |= self.spare_heads == 0;
                    self.spare_heads = self.spare_heads.saturating_sub(1);
                }
            }
            FramePart::Payload(piece, _) => {
                let Some((last_stream, missing)) = &mut self.goaway else {
                    return;
                };
                for byte in piece.iter().take(*missing) {
                    *last_stream = *last_stream << 8 | u32::from(*byte);
                }
                *missing = missing.saturating_sub(piece.len());
                if *missing == 0 {
                    self.peer.goes_away(*last_stream & STREAM_ID);
                    self.goaway = None;
                }
            }
        }
    }

    /// The clock is read once per read, not per frame.
    fn check(&mut self, _: u64) -> io::Result<()> {
        if mem::take(&mut self.has_read) {
            self.peer.last_read.set();
        }
        if self.has_too_many_heads {
            return Err(io::Error::other("too many interim responses"));
        }
        Ok(())
    }

    fn written(&mut self, part: FramePart<'_>) {
        if let FramePart::Header(frame) = part
            && frame.kind == HEADERS
        {
            self.peer
                .last_written
                .fetch_max(frame.stream, Ordering::AcqRel);
            let heads = self.spare_heads.saturating_add(MAX_HEADS);
            self.spare_heads = heads.min(self.max_spare_heads);
        }
    }
}

/// Fuzz target: what the frames of an apiserver say does not depend on the size of the reads.
pub(in crate::upstream) fn fuzz(bytes: &[u8]) {
    assert_same_in_pieces(bytes, |bytes, size| {
        let peer = Arc::new(PeerState::new());
        let mut frames = PeerFrames::new(&peer, 100);
        frames.spare_heads = MAX_HEADS;
        feed(&mut frames, bytes, size);
        let last_stream = peer.last_stream.load(Ordering::Acquire);
        (
            last_stream,
            frames.goaway,
            frames.spare_heads,
            frames.has_too_many_heads,
        )
    });
}

/// Maximum HEADERS frames per request: 100 interim responses (the same limit as over HTTP/1.1), the response and its
/// trailers. The h2 crate does not limit interim responses. kube-apiserver sends none.
const MAX_HEADS: u32 = 100 + 2;
/// Heads that the requests of a connection may save up at least: those of 500 streams.
const MIN_SPARE_HEADS: u32 = 1000;
/// Larger than any stream number, which has 31 bits.
const NO_GOAWAY: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::transport::frames::FrameHeader;

    fn goaway(last_stream: u32) -> Vec<u8> {
        let payload = [&last_stream.to_be_bytes()[..], &[0, 0, 0, 0, b'x']].concat();
        [&[0, 0, 9, GOAWAY, 0, 0, 0, 0, 0], &payload[..]].concat()
    }

    #[test]
    fn goaway_is_read_in_pieces_and_only_lowers_the_last_stream() {
        for size in 1..20 {
            let peer = Arc::new(PeerState::new());
            let mut frames = PeerFrames::new(&peer, 100);
            // Data that looks like a GOAWAY.
            let data = [&[0, 0, 18, 0, 0, 0, 0, 0, 1][..], &goaway(1)].concat();
            feed(&mut frames, &data, size);
            assert!(!peer.is_going_away());
            for (last, expected) in [(0xffff_ffff, 0x7fff_ffff), (7, 7), (9, 7)] {
                feed(&mut frames, &goaway(last), size);
                assert_eq!(peer.last_stream.load(Ordering::Acquire), expected);
            }
        }
    }

    #[test]
    fn every_stream_may_end_with_a_head_and_trailers() {
        const STREAMS: u32 = 10_000;
        let headers = [0, 0, 0, HEADERS, 0, 0, 0, 0, 1];
        let mut frames = PeerFrames::new(&Arc::new(PeerState::new()), STREAMS);
        let request = FrameHeader {
            length: 0,
            kind: HEADERS,
            flags: 0,
            stream: 1,
        };
        for _ in 0..STREAMS {
            frames.written(FramePart::Header(request));
        }
        for _ in 0..2 * STREAMS {
            feed(&mut frames, &headers, 9);
        }
        frames.check(0).unwrap();
        feed(&mut frames, &headers, 9);
        frames.check(0).unwrap_err();
    }

    /// Go may send the GOAWAY before or after the head of the 401 that causes it.
    #[tokio::test]
    async fn goaway_is_noticed_before_and_after_the_response() {
        for is_first in [true, false] {
            let (peer, waiting) = (PeerState::new(), Arc::new(Notify::new()));
            if is_first {
                peer.goes_away(1);
            }
            peer.notify_of_goaway(Arc::clone(&waiting));
            if !is_first {
                peer.goes_away(1);
            }
            let noticed = timeout(Duration::from_secs(10), waiting.notified()).await;
            noticed.unwrap();
        }
    }
}
