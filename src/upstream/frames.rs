//! Reads along with an HTTP/2 connection to learn two things that the h2 crate does not tell: when
//! the peer was last heard, and the last stream of its GOAWAY.
//!
//! The second decides whether a request may be sent again. h2 hands one and the same error to streams
//! above the GOAWAY's last stream (never processed) and to streams below it whose connection broke
//! (perhaps processed); only the number tells them apart.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// What was heard on one upstream HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Heard {
    last_stream: AtomicU32,
    last_read: Mutex<Instant>,
}

/// A byte stream that is read along with.
#[derive(Debug)]
pub(super) struct Overheard<S> {
    stream: S,
    scanner: Scanner,
    heard: Arc<Heard>,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self {
            last_stream: AtomicU32::new(NO_GOAWAY),
            last_read: Mutex::new(Instant::now()),
        }
    }

    /// Whether the peer has said GOAWAY, so that no new stream may be opened.
    pub(super) fn is_going_away(&self) -> bool {
        self.last_stream.load(Ordering::Acquire) != NO_GOAWAY
    }

    /// Whether the peer has promised not to have processed this stream (RFC 9113 §6.8).
    pub(super) fn is_unprocessed(&self, stream: h2::StreamId) -> bool {
        u32::from(stream) > self.last_stream.load(Ordering::Acquire)
    }

    /// When bytes last came in.
    pub(super) fn last_read(&self) -> Instant {
        *self
            .last_read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Overheard<S> {
    pub(super) fn new(stream: S, heard: Arc<Heard>) -> Self {
        Self {
            stream,
            scanner: Scanner::default(),
            heard,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
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
            *this
                .heard
                .last_read
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Instant::now();
            if let Some(last_stream) = this.scanner.scan(new) {
                this.heard
                    .last_stream
                    .fetch_min(last_stream, Ordering::AcqRel);
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// Finds GOAWAY frames in a stream of frames that arrives in pieces of any size (RFC 9113 §4.1).
#[derive(Debug, Default)]
struct Scanner {
    /// The frame header and, of a GOAWAY, the stream number behind it, as far as they have come.
    head: [u8; HEADER + STREAM_ID],
    filled: usize,
    /// Payload bytes still to be passed over.
    skip: usize,
}

impl Scanner {
    /// The smallest last stream of the GOAWAY frames that end in `bytes`, if there are any.
    fn scan(&mut self, mut bytes: &[u8]) -> Option<u32> {
        let mut smallest = None;
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
                return smallest;
            }
            let [a, b, c, _kind, _flags, _, _, _, _, w, x, y, z] = self.head;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if self.filled == HEADER && self.is_goaway() && length >= STREAM_ID {
                continue;
            }
            if self.filled > HEADER {
                let last_stream = u32::from_be_bytes([w, x, y, z]) & 0x7fff_ffff;
                smallest =
                    Some(smallest.map_or(last_stream, |so_far: u32| so_far.min(last_stream)));
            }
            self.skip = length + HEADER - self.filled;
            self.filled = 0;
        }
    }

    fn is_goaway(&self) -> bool {
        let [_, _, _, kind, ..] = self.head;
        kind == GOAWAY
    }
}

/// Fuzz body: what is found does not depend on how the bytes were cut.
pub(super) fn fuzz(bytes: &[u8]) {
    let (size, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(size, rest)| (usize::from(*size).max(1), rest));
    let mut pieces = Scanner::default();
    let found = bytes
        .chunks(size)
        .filter_map(|piece| pieces.scan(piece))
        .min();
    let mut whole = Scanner::default();
    assert_eq!(whole.scan(bytes), found, "what is found depends on the cut");
    assert_eq!((whole.filled, whole.skip), (pieces.filled, pieces.skip));
}

const HEADER: usize = 9;
const STREAM_ID: usize = 4;
/// The type of a GOAWAY frame (RFC 9113 §6.8).
const GOAWAY: u8 = 7;
/// Larger than any stream number, which has 31 bits.
const NO_GOAWAY: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, 0, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn finds_goaway_however_the_bytes_are_cut() {
        let goaway = frame(GOAWAY, &[0x80, 0, 0, 5, 0, 0, 0, 0, b'x']);
        let bytes = [
            frame(0, &[7; 20]),
            frame(4, &[]),
            goaway.clone(),
            frame(0, &[7, 7]),
            goaway,
        ]
        .concat();
        for size in 1..=bytes.len() {
            let mut scanner = Scanner::default();
            let found: Vec<u32> = bytes
                .chunks(size)
                .filter_map(|chunk| scanner.scan(chunk))
                .collect();
            assert!(
                !found.is_empty() && found.iter().all(|id| *id == 5),
                "pieces of {size}: {found:?}"
            );
            assert_eq!((scanner.filled, scanner.skip), (0, 0), "pieces of {size}");
        }
    }

    #[test]
    fn payload_that_looks_like_a_goaway_is_not_one() {
        let inside = frame(0, &frame(GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 0]));
        assert_eq!(Scanner::default().scan(&inside), None);
    }

    #[test]
    fn a_later_goaway_can_only_lower_the_last_stream() {
        let heard = Heard::new();
        assert!(!heard.is_going_away());
        for (last, expected) in [(0x7fff_ffff, 0x7fff_ffff), (7, 7), (9, 7)] {
            heard.last_stream.fetch_min(last, Ordering::AcqRel);
            assert_eq!(heard.last_stream.load(Ordering::Acquire), expected);
        }
    }
}
