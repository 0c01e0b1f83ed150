//! Reads along with an HTTP/2 connection to learn what the h2 crate does not tell: when the peer last sent
//! bytes, the last stream of its GOAWAY, and the last stream whose head was written.
//!
//! The stream numbers decide whether a request may be sent again. h2 returns the same error for streams
//! above the GOAWAY's last stream (never processed), for streams that were never written, and for streams
//! whose connection broke (perhaps processed); only the numbers tell them apart.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

use crate::upstream::lock;

/// What the frames of one upstream HTTP/2 connection say so far.
#[derive(Debug)]
pub(super) struct PeerState {
    last_stream: AtomicU32,
    last_written: AtomicU32,
    last_read: Mutex<Instant>,
    /// Notified when the peer sends GOAWAY.
    waiting_for_goaway: Mutex<Option<Arc<Notify>>>,
}

/// A byte stream whose frames are observed in both directions.
#[derive(Debug)]
pub(super) struct FrameMonitor<S> {
    stream: S,
    incoming: FrameScanner,
    outgoing: FrameScanner,
    peer: Arc<PeerState>,
}

impl PeerState {
    pub(super) fn new() -> Self {
        Self {
            last_stream: AtomicU32::new(NO_GOAWAY),
            last_written: AtomicU32::new(0),
            last_read: Mutex::new(Instant::now()),
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

    fn received(&self, frame: FrameHeader) {
        if let Some(last_stream) = frame.goaway {
            self.last_stream.fetch_min(last_stream, Ordering::AcqRel);
            if let Some(waiting) = lock(&self.waiting_for_goaway).take() {
                waiting.notify_one();
            }
        }
    }

    fn written(&self, frame: FrameHeader) {
        if frame.kind == HEADERS {
            self.last_written.fetch_max(frame.stream, Ordering::AcqRel);
        }
    }

    /// When the peer last sent bytes.
    pub(super) fn last_read(&self) -> Instant {
        *lock(&self.last_read)
    }
}

impl<S> FrameMonitor<S> {
    pub(super) fn new(stream: S, peer: Arc<PeerState>) -> Self {
        Self {
            stream,
            incoming: FrameScanner::default(),
            outgoing: FrameScanner::after(PREFACE),
            peer,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FrameMonitor<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Some(new) = buf.filled().get(before..)
            && !new.is_empty()
        {
            *lock(&this.peer.last_read) = Instant::now();
            let peer = &this.peer;
            this.incoming.scan(new, |frame| peer.received(frame));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameMonitor<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = written {
            for buf in bufs {
                let part = buf.get(..left.min(buf.len())).unwrap_or_default();
                let peer = &this.peer;
                this.outgoing.scan(part, |frame| peer.written(frame));
                left -= part.len();
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The header of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FrameHeader {
    kind: u8,
    stream: u32,
    /// The last stream, if the frame is a GOAWAY.
    goaway: Option<u32>,
}

/// Finds the frames in bytes that pass in pieces of any size (RFC 9113 §4.1).
#[derive(Debug, Default)]
struct FrameScanner {
    /// The frame header as far as it has arrived; for a GOAWAY, also the last stream ID after it.
    head: [u8; HEADER + STREAM_ID],
    filled: usize,
    /// Payload bytes still to be skipped.
    skip: usize,
}

impl FrameScanner {
    /// A scanner of frames that begin after this many other bytes.
    fn after(bytes: usize) -> Self {
        Self {
            skip: bytes,
            ..Self::default()
        }
    }

    /// Calls `on_frame` for each frame whose header, or whose last stream if it is a GOAWAY, ends in `bytes`.
    fn scan(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(FrameHeader)) {
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            let wanted = if self.filled >= HEADER && self.is_goaway() {
                HEADER + STREAM_ID
            } else {
                HEADER
            };
            for (slot, byte) in self
                .head
                .iter_mut()
                .take(wanted)
                .skip(self.filled)
                .zip(bytes)
            {
                *slot = *byte;
            }
            let taken = (wanted - self.filled).min(bytes.len());
            self.filled += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.filled < wanted {
                return;
            }
            let [a, b, c, kind, _, k, l, m, n, w, x, y, z] = self.head;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if self.filled == HEADER && self.is_goaway() && length >= STREAM_ID {
                continue;
            }
            on_frame(FrameHeader {
                kind,
                stream: u32::from_be_bytes([k, l, m, n]) & STREAM,
                goaway: (self.filled > HEADER).then(|| u32::from_be_bytes([w, x, y, z]) & STREAM),
            });
            self.skip = length + HEADER - self.filled;
            self.filled = 0;
        }
    }

    fn is_goaway(&self) -> bool {
        let [_, _, _, kind, ..] = self.head;
        kind == GOAWAY
    }
}

/// Fuzz target: the size of the reads does not change which frames are found.
pub(in crate::upstream) fn fuzz(bytes: &[u8]) {
    let (size, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(size, rest)| (usize::from(*size).max(1), rest));
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    let mut pieces = FrameScanner::default();
    for piece in bytes.chunks(size) {
        pieces.scan(piece, |frame| found.push(frame));
    }
    let mut whole = FrameScanner::default();
    whole.scan(bytes, |frame| expected.push(frame));
    assert_eq!(found, expected, "the frames depend on the cut");
    assert_eq!((whole.filled, whole.skip), (pieces.filled, pieces.skip));
}

const HEADER: usize = 9;
const STREAM_ID: usize = 4;
/// Bytes that a client sends before its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;
/// Types of frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
/// The bits of a stream number.
const STREAM: u32 = 0x7fff_ffff;
/// Larger than any stream number, which has 31 bits.
const NO_GOAWAY: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, 0, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn every_frame_is_found_in_pieces_of_any_size() {
        let goaway = frame(GOAWAY, &[0x80, 0, 0, 5, 0, 0, 0, 0, b'x']);
        let kinds = [0, 4, GOAWAY, 0, GOAWAY];
        let bytes = [
            frame(0, &[7; 20]),
            frame(4, &[]),
            goaway.clone(),
            frame(0, &[7, 7]),
            goaway,
        ]
        .concat();
        for size in 1..=bytes.len() {
            let mut scanner = FrameScanner::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                scanner.scan(chunk, |frame| found.push(frame));
            }
            assert!(
                found.iter().map(|frame| frame.kind).eq(kinds),
                "pieces of {size}: {found:?}"
            );
            for frame in &found {
                let expected = (frame.kind == GOAWAY).then_some(5);
                assert_eq!(frame.goaway, expected, "pieces of {size}");
            }
            assert_eq!((scanner.filled, scanner.skip), (0, 0), "pieces of {size}");
        }
    }

    #[test]
    fn payload_that_looks_like_a_goaway_is_not_one() {
        let inside = frame(0, &frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 0]));
        FrameScanner::default().scan(&inside, |frame| assert_eq!(frame.goaway, None));
    }

    /// Go may send the GOAWAY before or after the head of the 401 that causes it.
    #[tokio::test]
    async fn goaway_is_noticed_before_and_after_the_response() {
        let goaway = FrameHeader {
            kind: GOAWAY,
            stream: 0,
            goaway: Some(1),
        };
        for is_first in [true, false] {
            let (peer, waiting) = (PeerState::new(), Arc::new(Notify::new()));
            if is_first {
                peer.received(goaway);
            }
            peer.notify_of_goaway(Arc::clone(&waiting));
            if !is_first {
                peer.received(goaway);
            }
            let noticed = timeout(Duration::from_secs(10), waiting.notified()).await;
            noticed.unwrap();
        }
    }

    #[test]
    fn later_goaway_only_lowers_the_last_stream() {
        let peer = PeerState::new();
        assert!(!peer.is_going_away());
        for (last, expected) in [(0x7fff_ffff, 0x7fff_ffff), (7, 7), (9, 7)] {
            peer.last_stream.fetch_min(last, Ordering::AcqRel);
            assert_eq!(peer.last_stream.load(Ordering::Acquire), expected);
        }
    }
}
