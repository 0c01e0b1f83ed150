//! Reads along with the frames of an HTTP/2 connection: [`FrameWalker`] finds them, and [`FrameMonitor`] tells a
//! [`FrameListener`] what passes. The legs of the client and of the apiserver have one listener each.

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Types of frames (RFC 9113 §6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
/// Flags (RFC 9113 §6.1, §6.2, §6.10).
pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const PRIORITY: u8 = 0x20;
/// A code of resets (RFC 9113 §7).
pub(crate) const PROTOCOL_ERROR: u8 = 1;
/// The bits of a stream's number.
pub(crate) const STREAM_ID: u32 = 0x7fff_ffff;
/// The bytes that a client sends before its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;
const HEADER: usize = 9;
/// Streams of which [`FrameMonitor`] remembers that h2 has written a head.
const MAX_HEADS_NOTED: usize = 128;

/// The header of a frame (RFC 9113 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl FrameHeader {
    pub(crate) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A part of the bytes that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FramePart<'a> {
    Header(FrameHeader),
    /// A piece of the payload, and how many bytes of the payload follow it.
    Payload(&'a [u8], usize),
}

/// Finds the frames in bytes that pass in pieces of any size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameWalker {
    /// The header of the current frame as far as it has come.
    header: [u8; HEADER],
    filled: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
}

impl FrameWalker {
    /// Expects frames after this many other bytes, which pass as payload.
    pub(crate) fn after(bytes: usize) -> Self {
        Self {
            header: [0; HEADER],
            filled: 0,
            left: bytes,
        }
    }

    /// Removes the next part from `bytes`. `None` when all bytes are used up.
    #[inline]
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<FramePart<'a>> {
        if self.left > 0 {
            if bytes.is_empty() {
                return None;
            }
            let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
            *bytes = rest;
            self.left -= piece.len();
            return Some(FramePart::Payload(piece, self.left));
        }
        let header = match bytes.split_first_chunk() {
            Some((header, rest)) if self.filled == 0 => {
                *bytes = rest;
                *header
            }
            _ => {
                let (part, rest) = bytes.split_at((HEADER - self.filled).min(bytes.len()));
                let room = self.header.iter_mut().skip(self.filled);
                room.zip(part).for_each(|(slot, byte)| *slot = *byte);
                *bytes = rest;
                self.filled += part.len();
                if self.filled < HEADER {
                    return None;
                }
                self.filled = 0;
                self.header
            }
        };
        let [a, b, c, kind, flags, stream @ ..] = header;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(FramePart::Header(FrameHeader {
            length: self.left,
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & STREAM_ID,
        }))
    }
}

/// Learns what passes on one connection.
pub(crate) trait FrameListener {
    /// Codes of `RST_STREAM` with the codes to write in their place. The connection is checked after each of them.
    /// A listener with such codes learns only of writes that hold a reset. h2 knows no code above 255.
    const RESET_CODES: &'static [(u8, u8)] = &[];

    /// A part was read.
    fn read(&mut self, part: FramePart<'_>);

    /// A part was written.
    fn written(&mut self, part: FramePart<'_>);

    /// Whether only h2 itself writes to this stream. If it resets the stream with [`PROTOCOL_ERROR`] and without a
    /// head, the frames of [`FrameListener::refuse`] are written before the reset.
    fn is_unserved(&self, _stream: u32) -> bool {
        false
    }

    /// A response to the request of this stream.
    fn refuse(&mut self, _stream: u32) -> Vec<u8> {
        Vec::new()
    }

    /// Called after each read and before each write, with the number of bytes written so far.
    ///
    /// # Errors
    ///
    /// When the connection must end.
    fn check(&mut self, written: u64) -> io::Result<()>;

    /// Ready once the peer took too long. Called after each read.
    fn poll_timeout(&mut self, _: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
}

/// A byte stream whose listener learns what passes in both directions.
#[derive(Debug)]
pub(crate) struct FrameMonitor<S, L> {
    stream: S,
    incoming: FrameWalker,
    outgoing: FrameWalker,
    /// Whether the frame that is being written is `RST_STREAM`.
    writes_reset: bool,
    written: u64,
    /// The rest of a response of [`FrameListener::refuse`], and the stream of the last one.
    refusal: Bytes,
    refused: u32,
    /// Unserved streams on which h2 has written a head, the oldest first: a 431.
    heads: VecDeque<u32>,
    listener: L,
}

/// What to change in frames that are about to be written.
enum Change {
    /// Writes this code in place of the byte at this position.
    Code(usize, u8),
    /// Writes a response to this stream before the reset at this position.
    Refusal(usize, u32),
}

impl<S, L: FrameListener> FrameMonitor<S, L> {
    /// The connection of a client, which sends the preface.
    pub(crate) fn of_client(stream: S, listener: L) -> Self {
        Self::new(stream, listener, PREFACE, 0)
    }

    /// The connection to an apiserver, which receives the preface.
    pub(crate) fn of_apiserver(stream: S, listener: L) -> Self {
        Self::new(stream, listener, 0, PREFACE)
    }

    fn new(stream: S, listener: L, read_before: usize, written_before: usize) -> Self {
        Self {
            stream,
            incoming: FrameWalker::after(read_before),
            outgoing: FrameWalker::after(written_before),
            writes_reset: false,
            written: 0,
            refusal: Bytes::new(),
            refused: 0,
            heads: VecDeque::new(),
            listener,
        }
    }

    /// Parses the frames in `bufs` before they are written, with a copy of the walker for outgoing frames. Returns the
    /// first change that a reset needs. Otherwise returns the walker after all bytes, or `None` if the bytes contain a
    /// reset.
    fn look_ahead(&mut self, bufs: &[io::IoSlice<'_>]) -> Result<Option<FrameWalker>, Change> {
        if L::RESET_CODES.is_empty() {
            return Ok(None);
        }
        let (mut walker, mut is_reset, mut before) = (self.outgoing, self.writes_reset, 0);
        let mut has_reset = is_reset;
        // The stream of a reset, and where the frame begins if that is in `bufs`.
        let mut reset = (0, None);
        for buf in bufs {
            let mut rest = &buf[..];
            while let Some(part) = walker.next(&mut rest) {
                let end = before + buf.len() - rest.len();
                match part {
                    FramePart::Header(frame) => {
                        is_reset = frame.kind == RST_STREAM;
                        has_reset |= is_reset;
                        reset = (frame.stream, end.checked_sub(HEADER));
                        if frame.kind == HEADERS {
                            self.note_head(frame.stream);
                        }
                    }
                    FramePart::Payload(piece, 0) if is_reset => {
                        let Some(last) = piece.last() else { continue };
                        if let (stream, Some(start)) = reset
                            && *last == PROTOCOL_ERROR
                            && stream != self.refused
                            && self.listener.is_unserved(stream)
                            && !self.heads.contains(&stream)
                        {
                            return Err(Change::Refusal(start, stream));
                        }
                        let code = L::RESET_CODES.iter().find(|(from, _)| from == last);
                        if let Some((_, to)) = code {
                            return Err(Change::Code(end - 1, *to));
                        }
                    }
                    FramePart::Payload(..) => {}
                }
            }
            before += buf.len();
        }
        Ok((!has_reset).then_some(walker))
    }

    fn note_head(&mut self, stream: u32) {
        if self.listener.is_unserved(stream) && !self.heads.contains(&stream) {
            // Such a stream has its reset soon.
            if self.heads.len() == MAX_HEADS_NOTED {
                self.heads.pop_front();
            }
            self.heads.push_back(stream);
        }
    }

    /// Ready once the refusal is written.
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while !self.refusal.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.refusal))?;
            self.written += written as u64;
            self.refusal.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn note_written(&mut self, mut bytes: &[u8]) {
        while let Some(part) = self.outgoing.next(&mut bytes) {
            if let FramePart::Header(frame) = part {
                self.writes_reset = frame.kind == RST_STREAM;
            }
            self.listener.written(part);
        }
    }
}

impl<S: AsyncRead + Unpin, L: FrameListener + Unpin> AsyncRead for FrameMonitor<S, L> {
    /// Reads, or fails if the connection must end. The reader gets no byte of a read that fails.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let mut new = buf.filled().get(before..).unwrap_or_default();
        while let Some(part) = this.incoming.next(&mut new) {
            this.listener.read(part);
        }
        this.listener.check(this.written)?;
        match this.listener.poll_timeout(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => read,
        }
    }
}

impl<S: AsyncWrite + Unpin, L: FrameListener + Unpin> AsyncWrite for FrameMonitor<S, L> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    /// Writes up to the first change that a reset needs, or fails if the connection must end.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.listener.check(this.written)?;
        ready!(this.poll_refusal(cx))?;
        let replaced: Vec<u8>;
        let mut change = this.look_ahead(bufs);
        if let Err(Change::Refusal(0, stream)) = change {
            this.refused = stream;
            this.refusal = this.listener.refuse(stream).into();
            ready!(this.poll_refusal(cx))?;
            change = this.look_ahead(bufs);
        }
        let (bufs, walker): (&[io::IoSlice<'_>], _) = match change {
            Ok(walker) => (bufs, walker),
            Err(change) => {
                let bytes = bufs.iter().flat_map(|buf| buf.iter().copied());
                replaced = match change {
                    Change::Code(at, code) => bytes.take(at).chain([code]).collect(),
                    Change::Refusal(at, _) => bytes.take(at).collect(),
                };
                (&[io::IoSlice::new(&replaced)], None)
            }
        };
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        let Poll::Ready(Ok(mut left)) = written else {
            return written;
        };
        this.written += left as u64;
        match walker {
            Some(walker) if left == bufs.iter().map(|buf| buf.len()).sum::<usize>() => {
                this.outgoing = walker;
            }
            _ => {
                for buf in bufs {
                    let part = buf.get(..left.min(buf.len())).unwrap_or_default();
                    left -= part.len();
                    this.note_written(part);
                }
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Tells a listener that these bytes were read in pieces of this size, for tests and fuzz targets.
pub(crate) fn feed(listener: &mut impl FrameListener, bytes: &[u8], size: usize) {
    let mut walker = FrameWalker::after(0);
    for mut piece in bytes.chunks(size) {
        while let Some(part) = walker.next(&mut piece) {
            listener.read(part);
        }
    }
}

/// The check of fuzz targets: what `read` returns does not depend on the size of the pieces, which the first byte
/// gives.
pub(crate) fn assert_same_in_pieces<T: Debug + PartialEq>(
    bytes: &[u8],
    read: impl Fn(&[u8], usize) -> T,
) {
    let Some((size, bytes)) = bytes.split_first() else {
        return;
    };
    let whole = read(bytes, bytes.len().max(1));
    let pieces = read(bytes, usize::from(*size).max(1));
    assert_eq!(whole, pieces, "it depends on the size of the pieces");
}

/// Fuzz target: the size of the pieces does not change which frames are found, and no byte is lost.
pub(crate) fn fuzz(bytes: &[u8]) {
    assert_same_in_pieces(bytes, |bytes, size| {
        let (mut walker, mut headers, mut payload) =
            (FrameWalker::after(0), Vec::new(), Vec::new());
        for mut piece in bytes.chunks(size) {
            while let Some(part) = walker.next(&mut piece) {
                match part {
                    FramePart::Header(frame) => headers.push((frame, payload.len())),
                    FramePart::Payload(part, _) => payload.extend_from_slice(part),
                }
            }
        }
        let found = headers.len() * HEADER + payload.len() + walker.filled;
        assert_eq!(found, bytes.len(), "bytes were lost");
        (walker.filled, walker.left, headers, payload)
    });
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const CANCEL: u8 = 8;
    const OTHER: u8 = 2;
    const CHECKED: u8 = 1;

    /// Notes the headers, replaces [`CANCEL`] by [`OTHER`], and is checked after [`CHECKED`].
    #[derive(Debug, Default)]
    struct Recorder(Vec<FrameHeader>);

    impl FrameListener for Recorder {
        const RESET_CODES: &'static [(u8, u8)] = &[(CANCEL, OTHER), (CHECKED, CHECKED)];

        fn read(&mut self, part: FramePart<'_>) {
            self.written(part);
        }

        fn written(&mut self, part: FramePart<'_>) {
            if let FramePart::Header(frame) = part {
                self.0.push(frame);
            }
        }

        /// At most two resets.
        fn check(&mut self, _: u64) -> io::Result<()> {
            let resets = self.0.iter().filter(|frame| frame.kind == RST_STREAM);
            if resets.count() > 2 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Ok(())
        }
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, 1, 0x80, 0, 0, 5], payload].concat()
    }

    #[tokio::test]
    async fn frames_are_found_in_reads_of_any_size() {
        // Data that looks like a frame.
        let bytes = [
            frame(DATA, &frame(GOAWAY, &[7; 8])),
            frame(4, &[]),
            frame(GOAWAY, &[1; 9]),
        ];
        let bytes = [&[0xff; PREFACE][..], &bytes.concat()].concat();
        let expected = [(DATA, 17), (4, 0), (GOAWAY, 9)].map(|(kind, length)| FrameHeader {
            length,
            kind,
            flags: 1,
            stream: 5,
        });
        for size in 1..=bytes.len() {
            let mut monitor = FrameMonitor::of_client(&bytes[..], Recorder::default());
            let mut buffer = vec![0; size];
            while tokio::io::AsyncReadExt::read(&mut monitor, &mut buffer)
                .await
                .unwrap()
                > 0
            {}
            assert_eq!(monitor.listener.0, expected, "reads of {size}");
        }
    }

    /// Takes up to this many bytes at a time.
    struct Narrow(Vec<u8>, usize);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = buf.len().min(self.1);
            self.0.extend(&buf[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Refuses stream 5 unless h2 has written a head on it.
    #[derive(Debug, Default)]
    struct Refuser;

    impl FrameListener for Refuser {
        const RESET_CODES: &'static [(u8, u8)] = &[(CANCEL, OTHER)];

        fn read(&mut self, _: FramePart<'_>) {}

        fn written(&mut self, _: FramePart<'_>) {}

        fn check(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn is_unserved(&self, stream: u32) -> bool {
            stream == 5
        }

        fn refuse(&mut self, stream: u32) -> Vec<u8> {
            format!("refusal of {stream}").into()
        }
    }

    #[tokio::test]
    async fn refusal_precedes_the_reset_of_an_unserved_stream() {
        let reset = |code| frame(RST_STREAM, &[0, 0, 0, code]);
        let served = |mut bytes: Vec<u8>| {
            bytes[8] = 7;
            bytes
        };
        let (head, data) = (frame(HEADERS, b"431"), frame(DATA, &reset(PROTOCOL_ERROR)));
        let bad = reset(PROTOCOL_ERROR);
        for (before, last, is_refused) in [
            (&data, &bad, true),
            (&head, &bad, false),
            (&served(head.clone()), &bad, true),
            (&data, &served(bad.clone()), false),
            (&data, &reset(3), false),
            (&bad, &bad, true),
        ] {
            let bytes = [&before[..], last, &data].concat();
            // Only the first of two resets of a stream is preceded by a refusal.
            let at = if before == &bad { 0 } else { before.len() };
            let (first, rest) = bytes.split_at(at);
            let refusal: &[u8] = if is_refused { b"refusal of 5" } else { b"" };
            let expected = [first, refusal, rest].concat();
            for taken in 1..=bytes.len() {
                let stream = Narrow(Vec::new(), taken);
                let mut monitor = FrameMonitor::of_client(stream, Refuser);
                monitor.write_all(&bytes).await.unwrap();
                assert_eq!(monitor.stream.0, expected, "{taken}");
                assert_eq!(monitor.written, expected.len() as u64);
            }
        }
    }

    #[tokio::test]
    async fn reset_codes_are_replaced_in_pieces_of_any_size() {
        let written = |code: u8| {
            [
                // Data that looks like a reset.
                frame(DATA, &frame(RST_STREAM, &[0, 0, 0, CANCEL])),
                frame(RST_STREAM, &[0, 0, 0, code]),
                frame(DATA, &[]),
                frame(RST_STREAM, &[0, 0, 0, code]),
                frame(DATA, &[7; 9]),
            ]
            .concat()
        };
        let bytes = written(CANCEL);
        for size in 1..=bytes.len() {
            for taken in 1..=size {
                let stream = Narrow(Vec::new(), taken);
                let mut monitor = FrameMonitor::of_client(stream, Recorder::default());
                for piece in bytes.chunks(size) {
                    monitor.write_all(piece).await.unwrap();
                }
                assert_eq!(monitor.stream.0, written(OTHER), "{taken} of {size}");
                let noted = monitor.listener.0.iter();
                let resets = noted.filter(|frame| frame.kind == RST_STREAM).count();
                assert_eq!(resets, 2, "{taken} of {size}");
                assert_eq!(monitor.written, bytes.len() as u64);
                assert_eq!(monitor.outgoing.left + monitor.outgoing.filled, 0);
            }
        }
    }

    #[tokio::test]
    async fn connection_ends_within_a_write_of_many_resets() {
        let bytes = frame(RST_STREAM, &[0, 0, 0, CHECKED]).repeat(9);
        let stream = Narrow(Vec::new(), usize::MAX);
        let mut monitor = FrameMonitor::of_client(stream, Recorder::default());
        let error = monitor.write_all(&bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(monitor.stream.0, bytes[..3 * 13]);
    }
}
