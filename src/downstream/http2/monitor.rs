//! Watches the bytes that a client sends over HTTP/2, before h2 reads them: the preface and each head must come in
//! time, frames must stay within their budgets, and no request target may hold a `#`.
//!
//! `hpack.rs` finds the targets, and `budget.rs` has the budgets.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Sleep, sleep},
};

use super::{
    budget::{FrameBudget, RequestBudget},
    hpack::{CutTargets, FieldError, read_fields},
};
use crate::transport::{TlsWriter, WriteBatcher};

/// The bytes from an HTTP/2 client, watched.
#[derive(Debug)]
pub(super) struct ClientMonitor<S> {
    stream: WriteBatcher<S>,
    /// Bytes of the preface still missing. hyper itself waits for them without a limit.
    preface: usize,
    /// How long the preface and each head may take.
    timeout: Duration,
    /// The end of that time for the head with this number; 0 is the preface. `None` while nothing is incomplete, so
    /// that a head that comes whole costs no timer.
    deadline: Option<(u32, Pin<Box<Sleep>>)>,
    frames: ClientFrames,
    targets: Arc<CutTargets>,
    requests: Arc<RequestBudget>,
}

impl<S: TlsWriter> ClientMonitor<S> {
    /// Watches a stream whose preface and heads must each come within `timeout`, and whose fields h2 reads up to
    /// `max_field` bytes. Up to `max_streams` may be open at once.
    pub(super) fn new(
        stream: WriteBatcher<S>,
        timeout: Duration,
        max_field: usize,
        max_streams: u32,
    ) -> (Self, Arc<CutTargets>, Arc<RequestBudget>) {
        let targets = Arc::new(CutTargets::default());
        let requests = RequestBudget::new(max_streams);
        let monitor = Self {
            stream,
            preface: PREFACE + FRAME_HEADER,
            timeout,
            deadline: Some((0, Box::pin(sleep(timeout)))),
            frames: ClientFrames::new(PREFACE, max_field, max_streams),
            targets: Arc::clone(&targets),
            requests: Arc::clone(&requests),
        };
        (monitor, targets, requests)
    }

    /// Ready once the preface or a head took too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let incomplete = if self.preface > 0 {
            Some(0)
        } else {
            self.frames.incomplete_head()
        };
        let Some(number) = incomplete else {
            self.deadline = None;
            return Poll::Pending;
        };
        let (for_number, deadline) = self
            .deadline
            .get_or_insert_with(|| (number, Box::pin(sleep(self.timeout))));
        if *for_number != number {
            *for_number = number;
            *deadline = Box::pin(sleep(self.timeout));
        }
        deadline.as_mut().poll(cx)
    }
}

impl<S: TlsWriter> AsyncRead for ClientMonitor<S> {
    /// Reads, or fails if the connection must end. h2 gets no byte of a read that fails.
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let mut read = Poll::Pending;
        if !this.requests.is_exceeded() {
            read = Pin::new(&mut this.stream).poll_read(cx, buf)?.map(Ok);
            let new = buf.filled().get(before..).unwrap_or_default();
            this.preface = this.preface.saturating_sub(new.len());
            this.frames.read(new, &this.targets);
        }
        let budget = &mut this.frames.budget;
        if this.requests.is_exceeded() || budget.is_exceeded(|| this.stream.written()) {
            this.requests.exceed(this.frames.last_stream);
            return Poll::Ready(Err(io::Error::other(
                "too many control frames, or too many cancelled requests",
            )));
        }
        if this.poll_deadline(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "HTTP/2 preface or head incomplete after timeouts.requestHead",
            )));
        }
        read
    }
}

/// Counts the frames and finds the header blocks in a stream of frames that passes in pieces of any size (RFC 9113
/// §4.1, §6.2).
#[derive(Debug)]
struct ClientFrames {
    /// The header of the current frame, as far as it has come.
    header: [u8; FRAME_HEADER],
    filled: usize,
    /// Bytes to skip before anything else.
    skip: usize,
    /// Whether the padding length comes next, and how many bytes of priority follow it.
    padded: Option<usize>,
    /// Bytes of the block in this frame still to come, and of the padding after it.
    block: usize,
    padding: usize,
    /// A field whose end has not come yet. Without memory of its own while the fields come whole.
    partial: Vec<u8>,
    /// Bytes of `partial` at most. A longer field is more than h2 takes.
    max_field: usize,
    /// Whether the current frame belongs to a head, and whether it is the last one of the head.
    is_head: bool,
    is_last: bool,
    /// Heads so far.
    heads: u32,
    /// The highest stream of a head.
    last_stream: u32,
    budget: FrameBudget,
}

impl ClientFrames {
    /// Expects frames after this many other bytes.
    fn new(skip: usize, max_field: usize, max_streams: u32) -> Self {
        Self {
            header: [0; FRAME_HEADER],
            filled: 0,
            skip,
            padded: None,
            block: 0,
            padding: 0,
            partial: Vec::new(),
            max_field,
            is_head: false,
            is_last: false,
            heads: 0,
            last_stream: 0,
            budget: FrameBudget::new(max_streams),
        }
    }

    /// The number of the head that has begun and is not complete.
    fn incomplete_head(&self) -> Option<u32> {
        let is_whole_frame = self.skip + self.block + self.padding == 0 && self.padded.is_none();
        (self.is_head && !(self.is_last && is_whole_frame)).then_some(self.heads)
    }

    /// Reads on, counts the frames, and notes the targets that will be cut.
    fn read(&mut self, mut bytes: &[u8], targets: &CutTargets) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                take(&mut bytes, &mut self.skip);
            } else if let Some(priority) = self.padded {
                let Some((padding, rest)) = bytes.split_first() else {
                    return;
                };
                bytes = rest;
                self.padded = None;
                self.skip = priority;
                self.padding = usize::from(*padding).min(self.block);
                // h2 ends the connection if the padding is longer than the frame.
                self.block -= self.padding;
            } else if self.block > 0 {
                let part = take(&mut bytes, &mut self.block);
                if !targets.refuses_all() && self.read_fields(part, targets).is_err() {
                    self.partial = Vec::new();
                    targets.refuse_all();
                }
            } else if self.padding > 0 {
                self.skip = mem::take(&mut self.padding);
            } else {
                if self.filled == 0
                    && let Some((header, rest)) = bytes.split_first_chunk()
                {
                    (self.header, bytes) = (*header, rest);
                    self.begin_frame(targets);
                    continue;
                }
                let missing = FRAME_HEADER - self.filled;
                let part = bytes.get(..missing).unwrap_or(bytes);
                let room = self.header.iter_mut().skip(self.filled);
                room.zip(part).for_each(|(slot, byte)| *slot = *byte);
                self.filled += part.len();
                bytes = bytes.get(part.len()..).unwrap_or_default();
                if self.filled == FRAME_HEADER {
                    self.filled = 0;
                    self.begin_frame(targets);
                }
            }
        }
    }

    fn begin_frame(&mut self, targets: &CutTargets) {
        let [a, b, c, kind, flags, stream @ ..] = self.header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.budget.count(kind, flags, length);
        self.is_head = matches!(kind, HEADERS | CONTINUATION);
        self.is_last = flags & END_HEADERS != 0;
        let (padding, priority) = match kind {
            HEADERS => (
                usize::from(flags & PADDED != 0),
                if flags & PRIORITY != 0 {
                    PRIORITY_BYTES
                } else {
                    0
                },
            ),
            CONTINUATION => (0, 0),
            PUSH_PROMISE => {
                // A client must not send it (RFC 9113 §8.4), but h2 adds its fields to the table and may let
                // the connection live after a reset of the stream.
                targets.refuse_all();
                self.skip = length;
                return;
            }
            _ => {
                self.skip = length;
                return;
            }
        };
        if kind == HEADERS {
            // A field that its block left incomplete is an error of the connection to h2.
            self.partial = Vec::new();
            self.heads = self.heads.wrapping_add(1);
            let stream = u32::from_be_bytes(stream) & STREAM_ID;
            self.last_stream = self.last_stream.max(stream);
        }
        let Some(block) = length.checked_sub(padding + priority) else {
            // Likewise an error to h2.
            self.skip = length;
            return;
        };
        self.block = block;
        if padding > 0 {
            self.padded = Some(priority);
        } else {
            self.skip = priority;
        }
    }

    /// Reads the fields that are complete with these bytes, and keeps the rest for the next ones.
    fn read_fields(&mut self, part: &[u8], targets: &CutTargets) -> Result<(), FieldError> {
        if self.partial.is_empty() {
            let rest = read_fields(part, targets)?;
            self.partial.extend_from_slice(rest);
            return Ok(());
        }
        self.partial.extend_from_slice(part);
        let rest = read_fields(&self.partial, targets)?.len();
        self.partial.drain(..self.partial.len() - rest);
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        if self.partial.len() > self.max_field {
            self.partial = Vec::new();
            return Err(FieldError::Invalid);
        }
        Ok(())
    }
}

/// Takes up to `left` of these bytes, and counts them off.
fn take<'a>(bytes: &mut &'a [u8], left: &mut usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at((*left).min(bytes.len()));
    *bytes = rest;
    *left -= taken.len();
    taken
}

/// Fuzz target: what is noted does not depend on the size of the reads.
pub(in crate::downstream) fn fuzz(bytes: &[u8]) {
    let (size, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(size, rest)| (usize::from(*size).max(1), rest));
    let noted = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut frames, targets) = (ClientFrames::new(0, 1024, 100), CutTargets::default());
        pieces.for_each(|piece| frames.read(piece, &targets));
        let place = (!targets.refuses_all()).then_some((frames.filled, frames.skip, frames.block));
        let targets = targets.targets.into_inner();
        (targets.unwrap_or_else(PoisonError::into_inner), place)
    };
    assert_eq!(
        noted(&mut std::iter::once(bytes)),
        noted(&mut bytes.chunks(size)),
        "what is noted depends on the cut"
    );
}

/// What a client sends before its first frame (RFC 9113 §3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// Types of frames, and flags of HEADERS and DATA (RFC 9113 §6.1, §6.2, §6.6, §6.10).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// The bits of a stream's number in the header of a frame (RFC 9113 §4.1).
const STREAM_ID: u32 = 0x7fff_ffff;
#[cfg(test)]
mod tests {
    use http::Uri;

    use super::{super::hpack::MAX_CUT_TARGETS, *};

    /// A literal field of the static name `:path`, with its value raw.
    fn path(value: &str) -> Vec<u8> {
        literal(0x44, value)
    }

    /// A field that begins with this byte, with its value raw.
    fn literal(first: u8, value: &str) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap();
        [&[first, length], value.as_bytes()].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn headers(block: &[u8]) -> Vec<u8> {
        frame(HEADERS, 4, block)
    }

    /// What is noted of these bytes, for every way of cutting them.
    fn noted(bytes: &[u8]) -> Vec<String> {
        let mut results: Vec<_> = (1..=bytes.len())
            .map(|size| {
                let (mut frames, targets) =
                    (ClientFrames::new(0, 1024, 100), CutTargets::default());
                for piece in bytes.chunks(size) {
                    frames.read(piece, &targets);
                }
                assert!(frames.partial.is_empty());
                assert!(!targets.refuses_all(), "cut into pieces of {size}");
                let targets = targets.targets.into_inner().unwrap();
                targets.into_iter().map(String::from).collect::<Vec<_>>()
            })
            .collect();
        results.dedup();
        assert_eq!(results.len(), 1, "it depends on the cut: {results:?}");
        results.remove(0)
    }

    #[test]
    fn targets_with_a_hash_are_noted_in_every_kind_of_frame() {
        let block = [&[0x82, 0x87][..], &path("/a#y"), &[0xbe]].concat();
        let (first, last) = block.split_at(6);
        let padded = [&[3][..], &block, &[0; 3]].concat();
        let with_all = [&[3, 0, 0, 0, 0, 7][..], &block, &[0; 3]].concat();
        for bytes in [
            headers(&block),
            frame(HEADERS, PADDED, &padded),
            frame(HEADERS, PADDED | PRIORITY, &with_all),
            frame(HEADERS, PRIORITY, &[&[0; 5][..], &block].concat()),
            [frame(HEADERS, 0, first), frame(CONTINUATION, 4, last)].concat(),
            [frame(HEADERS, 0, &[]), frame(CONTINUATION, 4, &block)].concat(),
        ] {
            let bytes = [frame(0, 0, &block), bytes, headers(&path("/b?c#"))].concat();
            let expected = ["/a", "/b?c"].map(str::to_owned);
            // DATA holds no fields.
            assert_eq!(noted(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn only_names_that_may_be_a_path_are_looked_at() {
        for (field, expected) in [
            (path("/a#"), "/a"),
            (literal(0x04, "/a#"), "/a"),
            (literal(0x15, "/a#"), "/a"),
            (path("#"), "/"),
            (path("#/.."), "/"),
            (path("/#?a"), "/"),
            (path("?a#"), "?a"),
            // In the client's part of the table.
            (literal(0x7e, "/a#"), "/a"),
            ([&[0x0f, 0x2f][..], b"\x03/a#"].concat(), "/a"),
            ([&[0x40][..], b"\x05:path\x03/a#"].concat(), "/a"),
            (
                [&[0x40, 0x84, 0xb9, 0x58, 0xd3, 0x3f][..], b"\x03/a#"].concat(),
                "/a",
            ),
            (path("/a"), ""),
            (path("a#b"), ""),
            (path("*#"), ""),
            (literal(0x7e, "group#1"), ""),
            // `:authority`, `user-agent` and a name of the client's.
            (literal(0x41, "/a#"), ""),
            (literal(0x7a, "/a#"), ""),
            ([&[0x40][..], b"\x04path\x03/a#"].concat(), ""),
            // A change of the table's size.
            ([&[0x3f, 0xe1, 0x1f][..], &path("/a#")].concat(), "/a"),
        ] {
            let notes = noted(&headers(&field)).concat();
            assert_eq!(notes, expected, "{field:?}");
        }
    }

    /// The strings of an h2 client, which codes them by the table of the RFC.
    #[tokio::test]
    async fn huffman_codes_are_those_of_h2() {
        let two_bytes = ('\u{80}'..'\u{c0}').chain(('\u{c0}'..'\u{800}').step_by(0x40));
        let more_bytes = ('\u{800}'..'\u{ffff}')
            .step_by(0x1000)
            .chain(['\u{10000}', '\u{40000}']);
        let chars = (' '..='~')
            .filter(|c| *c != '#')
            .chain(two_bytes)
            .chain(more_bytes);
        let expected: Vec<_> = chars.map(|c| format!("/{c}/x")).collect();
        let mut request = http::Request::new(());
        *request.uri_mut() = Uri::from_static("https://kube.test/");
        for value in &expected {
            let value = http::HeaderValue::from_bytes(format!("{value}#x").as_bytes()).unwrap();
            request.headers_mut().append("x", value);
        }
        // The first value comes with the name itself, which is none of a target.
        let expected = &expected[1..];
        let (client, mut server) = tokio::io::duplex(64 * 1024);
        let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
        let (_response, _body) = sender.send_request(request, true).unwrap();
        let (mut frames, targets) = (ClientFrames::new(PREFACE, 1024, 100), CutTargets::default());
        let reading = async {
            let mut buffer = [0; 1024];
            while targets.targets.lock().unwrap().len() < expected.len() {
                let length = tokio::io::AsyncReadExt::read(&mut server, &mut buffer)
                    .await
                    .unwrap();
                frames.read(&buffer[..length], &targets);
            }
        };
        tokio::select! {
            ended = connection => panic!("{ended:?}"),
            () = reading => {}
        }
        let noted = targets.targets.into_inner().unwrap();
        assert!(noted.iter().map(|target| &**target).eq(expected));
    }

    #[test]
    fn hostile_frames_and_too_many_targets_refuse_every_request() {
        let (mut frames, targets) = (ClientFrames::new(0, 1024, 100), CutTargets::default());
        assert!(!targets.refuses(&Uri::from_static("https://a/b")));
        frames.read(&headers(&path("/a#")), &targets);
        assert!(!targets.refuses(&Uri::from_static("https://a/b")));
        assert!(targets.refuses(&Uri::from_static("https://a/a")));
        for number in 0..MAX_CUT_TARGETS {
            assert!(!targets.refuses_all());
            frames.read(&headers(&path(&format!("/{number}#"))), &targets);
        }
        assert!(targets.refuses_all());
        assert!(targets.refuses(&Uri::from_static("https://a/b")));
        for hostile in [
            headers(&[0xff; 8]),
            frame(PUSH_PROMISE, 4, &[&[0, 0, 0, 2][..], &path("/a#")].concat()),
            // A field that is longer than 1,024 bytes.
            headers(&[&[0x04, 0x7f, 0xf1, 0x07][..], &[b'a'; 1100]].concat()),
        ] {
            let targets = CutTargets::default();
            let mut frames = ClientFrames::new(0, 1024, 100);
            hostile
                .chunks(64)
                .for_each(|piece| frames.read(piece, &targets));
            assert!(targets.refuses_all(), "{hostile:?}");
        }
    }
}
