//! Watches the bytes that a client sends over HTTP/2: the preface must come in time, and no request
//! target may hold a `#`.
//!
//! The `http` crate cuts a target at `#` and h2 does not show the raw one, so `DELETE …/configmaps/#y`
//! would reach the apiserver as `DELETE …/configmaps/`, which deletes all config maps. The monitor reads
//! the header blocks before h2 does and notes each target that the crate is about to cut. A request with
//! such a target is refused.
//!
//! A later request can repeat a cut target as an index into the HPACK table, so a note holds for the rest
//! of the connection. The monitor keeps no table: a field whose name is in the client's part of the table
//! counts as a target. A note that comes from such a field and not from a target does no harm unless the
//! client also asks for exactly that path.

use std::{
    borrow::Cow,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Uri;
use memchr::memchr;
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Sleep, sleep},
};

/// The bytes from an HTTP/2 client, watched.
#[derive(Debug)]
pub(super) struct ClientMonitor<S> {
    stream: S,
    /// Bytes of the preface still missing, and until when they may come; `None` once they have come. hyper
    /// itself waits for them without a limit.
    preface: Option<(usize, Pin<Box<Sleep>>)>,
    blocks: HeaderBlocks,
    targets: Arc<CutTargets>,
}

/// The request targets of one connection that were cut at `#`.
#[derive(Debug, Default)]
pub(super) struct CutTargets {
    /// Whether there are any, so that a request costs an ordinary client one load.
    any: AtomicBool,
    /// Whether every request is refused, because the monitor can no longer follow the connection.
    refuses_all: AtomicBool,
    /// The targets as the `http` crate leaves them.
    targets: Mutex<Vec<Box<str>>>,
}

impl CutTargets {
    /// Whether a request to this URI must be refused because its target is not what the client sent, or may
    /// not be.
    pub(super) fn refuses(&self, uri: &Uri) -> bool {
        if !self.any.load(Ordering::Relaxed) {
            return false;
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        self.refuses_all() || targets.iter().any(|cut| **cut == *target)
    }

    /// Whether the connection should end, since every request on it is refused.
    pub(super) fn refuses_all(&self) -> bool {
        self.refuses_all.load(Ordering::Relaxed)
    }

    /// Notes the part of a target before its `#`.
    fn note(&self, before: &[u8]) {
        // The crate refuses any other target by itself.
        let target = match std::str::from_utf8(before) {
            Ok("") => "/",
            Ok(target) if target.starts_with(['/', '?']) => target,
            _ => return,
        };
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        // A repeated target counts too, so that the work for one connection is bounded.
        let bytes: usize = targets.iter().map(|noted| noted.len()).sum();
        if targets.len() == MAX_CUT_TARGETS || bytes + target.len() > MAX_CUT_BYTES {
            drop(targets);
            return self.refuse_all();
        }
        targets.push(Box::from(target));
        self.any.store(true, Ordering::Relaxed);
    }

    /// Refuses every later request.
    fn refuse_all(&self) {
        self.refuses_all.store(true, Ordering::Relaxed);
        self.any.store(true, Ordering::Relaxed);
    }
}

impl<S> ClientMonitor<S> {
    /// Watches a stream whose preface must come within `preface_timeout`, and whose header blocks h2 reads up
    /// to `max_field` bytes.
    pub(super) fn new(
        stream: S,
        preface_timeout: Duration,
        max_field: usize,
    ) -> (Self, Arc<CutTargets>) {
        let targets = Arc::new(CutTargets::default());
        let monitor = Self {
            stream,
            preface: Some((PREFACE + FRAME_HEADER, Box::pin(sleep(preface_timeout)))),
            blocks: HeaderBlocks::new(PREFACE, max_field),
            targets: Arc::clone(&targets),
        };
        (monitor, targets)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientMonitor<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let new = buf.filled().get(before..).unwrap_or_default();
        this.blocks.read(new, &this.targets);
        let Some((missing, deadline)) = &mut this.preface else {
            return read;
        };
        if read.is_ready() {
            *missing = missing.saturating_sub(new.len());
            if *missing == 0 {
                this.preface = None;
            }
            return read;
        }
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no HTTP/2 preface in time",
        )))
    }
}

/// Finds the header blocks in a stream of frames that passes in pieces of any size (RFC 9113 §4.1, §6.2).
#[derive(Debug, Default)]
struct HeaderBlocks {
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
}

impl HeaderBlocks {
    /// Expects frames after this many other bytes.
    fn new(skip: usize, max_field: usize) -> Self {
        Self {
            skip,
            max_field,
            ..Self::default()
        }
    }

    /// Reads on, and notes the targets that will be cut.
    fn read(&mut self, mut bytes: &[u8], targets: &CutTargets) {
        while !bytes.is_empty() && !targets.refuses_all() {
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
                if self.read_fields(part, targets).is_err() {
                    targets.refuse_all();
                }
            } else if self.padding > 0 {
                self.skip = std::mem::take(&mut self.padding);
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
        let [a, b, c, kind, flags, ..] = self.header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
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

/// Reads whole fields; returns the bytes of the one that is incomplete.
fn read_fields<'a>(block: &'a [u8], targets: &CutTargets) -> Result<&'a [u8], FieldError> {
    let mut fields = Fields(block);
    loop {
        let before = fields.0;
        match fields.next_target() {
            Ok(value) => {
                if let Some(cut) = value.and_then(HpackString::before_hash) {
                    targets.note(&cut);
                }
            }
            Err(FieldError::Incomplete) => return Ok(before),
            Err(FieldError::Invalid) => return Err(FieldError::Invalid),
        }
    }
}

/// The unread fields of a header block (RFC 7541 §6).
struct Fields<'a>(&'a [u8]);

/// Why no further field can be read.
#[derive(Debug)]
enum FieldError {
    /// Its end has not come yet.
    Incomplete,
    /// It is not HPACK, and h2 ends the connection.
    Invalid,
}

/// A string as HPACK carries it (RFC 7541 §5.2).
#[derive(Clone, Copy)]
struct HpackString<'a> {
    bytes: &'a [u8],
    is_huffman: bool,
}

impl<'a> Fields<'a> {
    /// Passes over one field; returns its value if it is literal and its name may be `:path`.
    fn next_target(&mut self) -> Result<Option<HpackString<'a>>, FieldError> {
        let first = *self.0.first().ok_or(FieldError::Incomplete)?;
        if first & 0x80 != 0 {
            // An entry of the table, which was read when it came.
            return self.integer(7).map(|_index| None);
        }
        if first & 0xe0 == 0x20 {
            return self.integer(5).map(|_table_size| None);
        }
        let indexed = first & 0x40 != 0;
        let name = self.integer(if indexed { 6 } else { 4 })?;
        let is_target = match name {
            0 => self.string()?.is_pseudo_name(),
            STATIC_PATH | STATIC_PATH_INDEX => true,
            index => index > STATIC_ENTRIES,
        };
        let value = self.string()?;
        Ok(is_target.then_some(value))
    }

    /// An integer that begins in the low `bits` of the next byte (RFC 7541 §5.1).
    fn integer(&mut self, bits: u32) -> Result<usize, FieldError> {
        let mask = (1_u8 << bits) - 1;
        let (first, mut rest) = self.0.split_first().ok_or(FieldError::Incomplete)?;
        let mut value = usize::from(first & mask);
        if first & mask == mask {
            let mut shift = 0;
            loop {
                let (byte, after) = rest.split_first().ok_or(FieldError::Incomplete)?;
                rest = after;
                value += usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
                // h2 refuses a longer one too.
                if shift == 28 {
                    return Err(FieldError::Invalid);
                }
            }
        }
        self.0 = rest;
        Ok(value)
    }

    fn string(&mut self) -> Result<HpackString<'a>, FieldError> {
        let first = *self.0.first().ok_or(FieldError::Incomplete)?;
        let length = self.integer(7)?;
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(FieldError::Incomplete)?;
        self.0 = rest;
        Ok(HpackString {
            bytes,
            is_huffman: first & 0x80 != 0,
        })
    }
}

impl<'a> HpackString<'a> {
    /// Whether this name begins with a colon.
    fn is_pseudo_name(self) -> bool {
        self.bytes.first().is_some_and(|first| {
            if self.is_huffman {
                // The code of the colon has seven bits.
                first & 0xfe == 0xb8
            } else {
                *first == b':'
            }
        })
    }

    /// The part before the first `#`, if there is one.
    fn before_hash(self) -> Option<Cow<'a, [u8]>> {
        if !self.is_huffman {
            let end = memchr(b'#', self.bytes)?;
            return self.bytes.get(..end).map(Cow::Borrowed);
        }
        if may_hold_hash(self.bytes) {
            decode_until_hash(self.bytes).map(Cow::Owned)
        } else {
            None
        }
    }
}

/// Whether these bytes hold the twelve bits of the code of `#`, at whatever bit they begin. The code of
/// another symbol and the one after it can hold them too. A few instructions for every six bytes, where
/// decoding takes some for each bit.
fn may_hold_hash(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(window) = rest.first_chunk() {
        if window_holds_hash(*window) {
            return true;
        }
        rest = rest.get(6..).unwrap_or_default();
    }
    let mut window = [0; 8];
    window
        .iter_mut()
        .zip(rest)
        .for_each(|(slot, byte)| *slot = *byte);
    window_holds_hash(window)
}

fn window_holds_hash(window: [u8; 8]) -> bool {
    let bits = u64::from_be_bytes(window);
    let two = bits & bits << 1;
    let four = two & two << 2;
    let eight = four & four << 4;
    // Nine ones, then 0, 1 and 0.
    eight & bits << 8 & !(bits << 9) & bits << 10 & !(bits << 11) != 0
}

/// Decodes Huffman codes (RFC 7541 §5.2, Appendix B) up to the first `#`; `None` if there is none.
///
/// The codes are canonical: those of one length are consecutive numbers, in the order of [`SYMBOLS`].
fn decode_until_hash(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len() * 2);
    let mut bits = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| usize::from(byte >> bit & 1)));
    loop {
        // The first code of the length looked at, and the place of its symbol.
        let (mut code, mut first, mut place) = (0, 0, 0);
        let symbol = CODES.iter().find_map(|count| {
            // Padding ends the string and is no symbol: its ones are not a whole code.
            let Some(bit) = bits.next() else {
                return Some(None);
            };
            code = code << 1 | bit;
            first <<= 1;
            let count = usize::from(*count);
            if code - first < count {
                return Some(SYMBOLS.get(place + code - first).copied());
            }
            first += count;
            place += count;
            None
        });
        match symbol.flatten()? {
            b'#' => return Some(decoded),
            symbol => decoded.push(symbol),
        }
    }
}

/// Fuzz target: what is noted does not depend on the size of the reads.
pub(in crate::downstream) fn fuzz(bytes: &[u8]) {
    let (size, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(size, rest)| (usize::from(*size).max(1), rest));
    let noted = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut blocks, targets) = (HeaderBlocks::new(0, 1024), CutTargets::default());
        pieces.for_each(|piece| blocks.read(piece, &targets));
        let place = (!targets.refuses_all()).then_some((blocks.filled, blocks.skip, blocks.block));
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
/// Types of frames and flags of HEADERS (RFC 9113 §6.2, §6.6, §6.10).
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// `:path` in the static table, with two values, and the size of that table (RFC 7541 Appendix A).
const STATIC_PATH: usize = 4;
const STATIC_PATH_INDEX: usize = 5;
const STATIC_ENTRIES: usize = 61;
/// Targets, and bytes of them, that are noted before the connection ends. A client that is no attacker has
/// none.
const MAX_CUT_TARGETS: usize = 256;
const MAX_CUT_BYTES: usize = 64 * 1024;
/// How many Huffman codes have 1 bit, 2 bits and so on. The last one with 30 bits ends a string and is no
/// symbol.
const CODES: [u8; 30] = [
    0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29,
    0, 4,
];
/// The symbols in the order of their codes.
const SYMBOLS: &[u8; 256] = b"\
    012aceiost %-./3456789=A_bdfghlmnpru:BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;XZ!\"()?'+|#>\
    \0$@[]~^}<`{\\\xc3\xd0\x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\
    \xd8\xd9\xe3\xe5\xe6\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\
    \xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\
    \x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef\x09\x8e\x90\x91\x94\x9f\
    \xab\xce\xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\
    \xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe\
    \x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\
    \x1c\x1d\x1e\x1f\x7f\xdc\xf9\x0a\x0d\x16";

#[cfg(test)]
mod tests {
    use super::*;

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
                let (mut blocks, targets) = (HeaderBlocks::new(0, 1024), CutTargets::default());
                for piece in bytes.chunks(size) {
                    blocks.read(piece, &targets);
                }
                assert!(blocks.partial.is_empty());
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
        let (mut blocks, targets) = (HeaderBlocks::new(PREFACE, 1024), CutTargets::default());
        let reading = async {
            let mut buffer = [0; 1024];
            while targets.targets.lock().unwrap().len() < expected.len() {
                let length = tokio::io::AsyncReadExt::read(&mut server, &mut buffer)
                    .await
                    .unwrap();
                blocks.read(&buffer[..length], &targets);
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
    fn huffman_strings_are_decoded_up_to_the_hash() {
        // `/a#b`: 011000 00011 111111111010 100011 and a padding of ones.
        let coded = [0x60, 0x7f, 0xf5, 0x1f];
        assert_eq!(decode_until_hash(&coded).unwrap(), b"/a");
        assert!(may_hold_hash(&coded));
        // `www.example.com` (RFC 7541 §C.4.1).
        let other = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert!(!may_hold_hash(&other));
        assert_eq!(decode_until_hash(&other), None);
    }

    #[test]
    fn hash_is_found_at_every_bit() {
        for before in 0..100 {
            // Zeros, then the twelve bits of `#`, then zeros.
            let mut bytes = vec![0_u8; 16];
            for (at, bit) in "111111111010".bytes().enumerate() {
                let at = before + at;
                bytes[at / 8] |= (bit - b'0') << (7 - at % 8);
            }
            assert!(may_hold_hash(&bytes), "after {before} bits");
            let cut = bytes.iter().rposition(|byte| *byte != 0).unwrap();
            assert!(
                may_hold_hash(&bytes[..=cut]),
                "at the end, after {before} bits"
            );
        }
        assert!(!may_hold_hash(&[0xff; 16]));
        assert!(!may_hold_hash(&[0xff, 0x7f, 0xaa, 0, 0xff, 0xfb]));
    }

    #[test]
    fn hostile_frames_and_too_many_targets_refuse_every_request() {
        let (mut blocks, targets) = (HeaderBlocks::new(0, 1024), CutTargets::default());
        assert!(!targets.refuses(&Uri::from_static("https://a/b")));
        blocks.read(&headers(&path("/a#")), &targets);
        assert!(!targets.refuses(&Uri::from_static("https://a/b")));
        assert!(targets.refuses(&Uri::from_static("https://a/a")));
        for number in 0..MAX_CUT_TARGETS {
            assert!(!targets.refuses_all());
            blocks.read(&headers(&path(&format!("/{number}#"))), &targets);
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
            let mut blocks = HeaderBlocks::new(0, 1024);
            hostile
                .chunks(64)
                .for_each(|piece| blocks.read(piece, &targets));
            assert!(targets.refuses_all(), "{hostile:?}");
        }
    }
}
