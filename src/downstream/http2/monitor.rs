//! Learns of the frames of an HTTP/2 client before h2 reads them: the preface and each head must come in time, frames
//! must stay within their budgets, and no request target may hold a `#`.
//!
//! `hpack.rs` finds the targets, and `budget.rs` has the budgets.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

use super::{
    budget::{FrameBudget, RequestBudget},
    hpack::{CutTargets, FieldError, read_fields},
};
use crate::{
    metrics::Connected,
    proxy::{self, Rejection},
    transport::{
        LastRead,
        frames::{
            CONTINUATION, DATA, END_HEADERS, END_STREAM, FrameHeader, FrameListener, FramePart,
            HEADERS, PADDED, PRIORITY, PROTOCOL_ERROR, PUSH_PROMISE, RST_STREAM,
            assert_same_in_pieces, feed,
        },
    },
};

/// What the frames of one client say so far.
#[derive(Debug)]
pub(super) struct ClientFrames {
    /// How long the preface and each head may take.
    timeout: Duration,
    /// The end of that time for the head with this number; 0 is the preface. `None` while nothing is incomplete, so
    /// that a head that comes whole costs no timer.
    deadline: Option<(u32, Pin<Box<Sleep>>)>,
    /// Heads so far, and whether the last one is incomplete. Before the first frame this is the preface, for which h2
    /// itself waits without a limit.
    heads: u32,
    is_incomplete: bool,
    /// What the payload of the current frame is. `None` if it holds no fields.
    block: Option<BlockPlace>,
    /// A field whose end has not come yet. Without memory of its own while the fields come whole.
    partial: Vec<u8>,
    /// Bytes of `partial` at most. A longer field is more than h2 takes.
    max_field: usize,
    /// The highest stream of a head.
    last_stream: u32,
    /// The streams whose request body may still come. Empty for a client that sends no bodies.
    uploads: Vec<u32>,
    /// The stream whose reset is being written.
    resets: Option<u32>,
    budget: FrameBudget,
    has_read: bool,
    observed: ClientObserved,
    /// Counts refused requests. `None` in tests.
    connected: Option<Arc<Connected>>,
}

/// What [`ClientFrames`] tells the rest of the connection.
#[derive(Debug, Clone)]
pub(super) struct ClientObserved {
    pub(super) cut_targets: Arc<CutTargets>,
    pub(super) requests: Arc<RequestBudget>,
    pub(super) last_read: LastRead,
}

/// Where in a frame its fields are (RFC 9113 §6.2).
#[derive(Debug, Clone, Copy)]
struct BlockPlace {
    /// The padding length comes next.
    is_padded: bool,
    /// Bytes of priority to skip.
    priority: usize,
    /// Bytes at the end that are no fields.
    padding: usize,
    /// The frame is the last one of its head.
    ends_head: bool,
}

impl ClientFrames {
    /// The preface and each head must come within `timeout`. h2 reads fields up to `max_field` bytes. Up to
    /// `max_streams` may be open at once.
    pub(super) fn new(
        timeout: Duration,
        max_field: usize,
        max_streams: u32,
    ) -> (Self, ClientObserved) {
        let observed = ClientObserved {
            cut_targets: Arc::new(CutTargets::default()),
            requests: RequestBudget::new(max_streams),
            last_read: LastRead::new(),
        };
        let frames = Self {
            timeout,
            deadline: None,
            heads: 0,
            is_incomplete: true,
            block: None,
            partial: Vec::new(),
            max_field,
            last_stream: 0,
            uploads: Vec::new(),
            resets: None,
            budget: FrameBudget::new(max_streams),
            has_read: false,
            observed: observed.clone(),
            connected: None,
        };
        (frames, observed)
    }

    /// The same, of the connection that this counts.
    pub(super) fn of_connection(self, connected: Arc<Connected>) -> Self {
        Self {
            connected: Some(connected),
            ..self
        }
    }

    fn begin_frame(&mut self, frame: FrameHeader) {
        if self.heads == 0 {
            self.is_incomplete = false;
        }
        self.block = None;
        self.budget.count(frame);
        match frame.kind {
            HEADERS => {
                self.begin_head(frame);
                self.begin_block(frame);
            }
            CONTINUATION => self.begin_block(frame),
            DATA => self.note_upload(frame),
            RST_STREAM => self.forget_upload(frame.stream),
            // A client must not send it (RFC 9113 §8.4), but h2 adds its fields to the table and may let the
            // connection live after a reset of the stream.
            PUSH_PROMISE => self.observed.cut_targets.refuse_all(),
            _ => {}
        }
    }

    fn begin_head(&mut self, frame: FrameHeader) {
        // A field that its block left incomplete is an error of the connection to h2.
        self.partial = Vec::new();
        self.heads = self.heads.wrapping_add(1).max(1);
        self.is_incomplete = true;
        if frame.stream <= self.last_stream {
            self.note_upload(frame);
            return;
        }
        self.last_stream = frame.stream;
        self.budget.count_request();
        if !frame.has(END_STREAM) {
            self.uploads.push(frame.stream);
        }
    }

    fn begin_block(&mut self, frame: FrameHeader) {
        let is_first = frame.kind == HEADERS;
        let ends_head = frame.has(END_HEADERS);
        if frame.length == 0 && ends_head {
            self.is_incomplete = false;
        }
        self.block = Some(BlockPlace {
            is_padded: is_first && frame.has(PADDED),
            priority: if is_first && frame.has(PRIORITY) {
                PRIORITY_BYTES
            } else {
                0
            },
            padding: 0,
            ends_head,
        });
    }

    /// Notes DATA, or trailers: a part of a request body.
    fn note_upload(&mut self, frame: FrameHeader) {
        if !self.uploads.contains(&frame.stream) {
            self.budget.count_late();
        } else if frame.has(END_STREAM) {
            self.forget_upload(frame.stream);
        }
    }

    fn forget_upload(&mut self, stream: u32) {
        self.uploads.retain(|upload| *upload != stream);
    }

    /// h2 has written a reset.
    fn stream_was_reset(&mut self, stream: u32, code: u8) {
        if self.uploads.contains(&stream) {
            self.forget_upload(stream);
            self.budget.allow_late();
        }
        if matches!(code, PROTOCOL_ERROR | FLOW_CONTROL_ERROR) {
            self.budget.count_refused();
        }
    }

    /// Reads the fields in a piece of a payload that `left` more bytes follow.
    fn read_block(&mut self, mut place: BlockPlace, mut piece: &[u8], left: usize) {
        if place.is_padded
            && let Some((padding, rest)) = piece.split_first()
        {
            place.is_padded = false;
            place.padding = usize::from(*padding);
            piece = rest;
        }
        let (skipped, rest) = piece.split_at(place.priority.min(piece.len()));
        place.priority -= skipped.len();
        // h2 ends the connection if the padding is longer than the frame.
        let fields = (rest.len() + left).saturating_sub(place.padding);
        let fields = rest.get(..fields).unwrap_or(rest);
        if !self.observed.cut_targets.refuses_all() && self.read_fields(fields).is_err() {
            self.partial = Vec::new();
            self.observed.cut_targets.refuse_all();
        }
        self.is_incomplete = left > 0 || !place.ends_head;
        self.block = Some(place);
    }

    /// Reads the fields that are complete with these bytes, and keeps the rest for the next ones.
    fn read_fields(&mut self, part: &[u8]) -> Result<(), FieldError> {
        if self.partial.is_empty() {
            let rest = read_fields(part, self.max_field, &self.observed.cut_targets)?;
            self.partial.extend_from_slice(rest);
        } else {
            self.partial.extend_from_slice(part);
            let rest =
                read_fields(&self.partial, self.max_field, &self.observed.cut_targets)?.len();
            self.partial.drain(..self.partial.len() - rest);
        }
        if self.partial.is_empty() {
            self.partial = Vec::new();
        }
        Ok(())
    }

    /// Ready once the preface or a head took too long.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_incomplete {
            self.deadline = None;
            return Poll::Pending;
        }
        let (number, deadline) = self
            .deadline
            .get_or_insert_with(|| (self.heads, Box::pin(sleep(self.timeout))));
        if *number != self.heads {
            *number = self.heads;
            *deadline = Box::pin(sleep(self.timeout));
        }
        deadline.as_mut().poll(cx)
    }
}

impl FrameListener for ClientFrames {
    /// h2 resets a response that is dropped before its end with `CANCEL`, and a dropped stream cannot choose another
    /// code. Some clients, hyper among them, take `CANCEL` for the end of a complete body. The other codes are for
    /// errors of the client, which are limited.
    const RESET_CODES: &'static [(u8, u8)] = &[
        (CANCEL, INTERNAL_ERROR),
        (PROTOCOL_ERROR, PROTOCOL_ERROR),
        (FLOW_CONTROL_ERROR, FLOW_CONTROL_ERROR),
    ];

    /// h2 resets the stream of a malformed request without a word.
    fn is_unserved(&self, stream: u32) -> bool {
        self.observed.requests.lacks(stream)
    }

    /// A 400 (RFC 9113 §8.1.1), in words. It has no body: h2 does not know of it, and could then send more data than
    /// the window of the client allows. Each field is a literal that leaves the HPACK table of the client as it is.
    fn refuse(&mut self, stream: u32) -> Vec<u8> {
        if let Some(connected) = &self.connected {
            drop(proxy::refuse(Rejection::Malformed, connected));
        }
        let length = u8::try_from(MALFORMED.len()).unwrap_or(0);
        let mut frame = vec![0, 0, 0, HEADERS, END_HEADERS | END_STREAM];
        frame.extend(stream.to_be_bytes());
        frame.push(STATUS_400);
        frame.extend([0, u8::try_from(WARNING.len()).unwrap_or(0)]);
        frame.extend(WARNING);
        // Lengths above 126 take a second byte (RFC 7541 §5.1).
        frame.extend([127, length - 127]);
        frame.extend(MALFORMED);
        let payload = frame.len() - FRAME_HEADER;
        if let ([_, _, size, ..], Ok(payload)) = (&mut frame[..], u8::try_from(payload)) {
            *size = payload;
        }
        frame
    }

    fn read(&mut self, part: FramePart<'_>) {
        self.has_read = true;
        match part {
            FramePart::Header(frame) => self.begin_frame(frame),
            FramePart::Payload(piece, left) => {
                if let Some(place) = self.block {
                    self.read_block(place, piece, left);
                }
            }
        }
    }

    /// The clock is read once per read, not per frame.
    fn check(&mut self, written: u64) -> io::Result<()> {
        if mem::take(&mut self.has_read) {
            self.observed.last_read.set();
        }
        if self.observed.requests.is_exceeded()
            || self.budget.is_exceeded(written, &self.observed.requests)
        {
            self.observed.requests.exceed(self.last_stream);
            return Err(io::Error::other(
                "too many control frames, or too many cancelled requests",
            ));
        }
        Ok(())
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.poll_deadline(cx).map(|()| {
            io::Error::new(
                io::ErrorKind::TimedOut,
                "HTTP/2 preface or head incomplete after timeouts.requestHead",
            )
        })
    }

    fn written(&mut self, part: FramePart<'_>) {
        match part {
            FramePart::Header(frame) => {
                self.resets = (frame.kind == RST_STREAM).then_some(frame.stream);
            }
            FramePart::Payload(piece, 0) => {
                if let (Some(stream), Some(code)) = (self.resets.take(), piece.last()) {
                    self.stream_was_reset(stream, *code);
                }
            }
            FramePart::Payload(..) => {}
        }
    }
}

/// Fuzz target: what is noted does not depend on the size of the reads.
pub(in crate::downstream) fn fuzz(bytes: &[u8]) {
    assert_same_in_pieces(bytes, |bytes, size| {
        let (mut frames, observed) = ClientFrames::new(Duration::ZERO, 64, 100);
        let targets = observed.cut_targets;
        feed(&mut frames, bytes, size);
        let state = (!targets.refuses_all()).then_some((frames.is_incomplete, frames.partial));
        let noted = targets.targets.lock().map(|noted| noted.clone()).ok();
        (noted, state, frames.uploads, frames.budget.counts)
    });
}

const PRIORITY_BYTES: usize = 5;
const FRAME_HEADER: usize = 9;
/// `:status: 400` of the static table (RFC 7541 Appendix A).
const STATUS_400: u8 = 0x8c;
const WARNING: &[u8] = b"warning";
/// kubectl prints it.
const MALFORMED: &[u8] = b"299 - \"kube-tls-proxy: the request is malformed: a field that HTTP/2 forbids, a path of more than \
    65534 bytes, or a character in it that must be percent-encoded\"";
/// Codes of resets (RFC 9113 §7).
const INTERNAL_ERROR: u8 = 2;
const FLOW_CONTROL_ERROR: u8 = 3;
const CANCEL: u8 = 8;

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::{super::hpack::MAX_CUT_TARGETS, *};
    use crate::transport::frames::FrameWalker;

    fn client_frames() -> (ClientFrames, Arc<CutTargets>) {
        let (frames, observed) = ClientFrames::new(Duration::ZERO, 1024, 100);
        (frames, observed.cut_targets)
    }

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
                let (mut frames, targets) = client_frames();
                feed(&mut frames, bytes, size);
                assert!(frames.partial.is_empty());
                assert!(!frames.is_incomplete);
                assert!(!targets.refuses_all(), "cut into pieces of {size}");
                let targets = targets.targets.lock().unwrap();
                targets
                    .iter()
                    .map(|target| target.to_string())
                    .collect::<Vec<_>>()
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
        let (mut frames, targets) = client_frames();
        let mut walker = FrameWalker::after(24);
        let reading = async {
            let mut buffer = [0; 1024];
            while targets.targets.lock().unwrap().len() < expected.len() {
                let length = tokio::io::AsyncReadExt::read(&mut server, &mut buffer)
                    .await
                    .unwrap();
                let mut bytes = &buffer[..length];
                while let Some(part) = walker.next(&mut bytes) {
                    frames.read(part);
                }
            }
        };
        tokio::select! {
            ended = connection => panic!("{ended:?}"),
            () = reading => {}
        }
        let noted = targets.targets.lock().unwrap();
        assert!(noted.iter().map(|target| &**target).eq(expected));
    }

    #[test]
    fn hostile_frames_and_too_many_targets_refuse_every_request() {
        let (mut frames, targets) = client_frames();
        assert!(!targets.refuses(&Uri::from_static("https://a/b")));
        feed(&mut frames, &headers(&path("/a#")), 64);
        assert!(!targets.refuses(&Uri::from_static("https://a/b")));
        assert!(targets.refuses(&Uri::from_static("https://a/a")));
        for number in 0..MAX_CUT_TARGETS {
            assert!(!targets.refuses_all());
            feed(&mut frames, &headers(&path(&format!("/{number}#"))), 64);
        }
        assert!(targets.refuses_all());
        assert!(targets.refuses(&Uri::from_static("https://a/b")));
        for hostile in [
            headers(&[0xff; 8]),
            frame(PUSH_PROMISE, 4, &[&[0, 0, 0, 2][..], &path("/a#")].concat()),
            // A field that is longer than 1,024 bytes.
            headers(&[&[0x04, 0x7f, 0xf1, 0x07][..], &[b'a'; 1100]].concat()),
        ] {
            let (mut frames, targets) = client_frames();
            feed(&mut frames, &hostile, 64);
            assert!(targets.refuses_all(), "{hostile:?}");
        }
    }
}
