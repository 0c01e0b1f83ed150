//! Follows the framing of HTTP/1.1 requests as they pass, without changing them.
//!
//! hyper silently drops `Content-Length` next to `Transfer-Encoding`, and the second of two equal lengths.
//! An attacker uses such requests to make two parsers disagree (RFC 9112 §6.3), so they must be found here.
//! Likewise the `http` crate cuts a target at `#`: `DELETE …/configmaps/#y` would reach the apiserver as
//! `DELETE …/configmaps/`, which deletes all config maps.

use memchr::memchr;

/// The place in the stream of requests where the next byte belongs.
#[derive(Debug)]
pub(super) struct FramingScanner {
    state: FramingState,
    line: LineStart,
    head: HeadSummary,
    heads: u64,
    longest_head: usize,
}

/// A request that must be refused, by its number on the connection, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// Two parsers could see its end in two places, or the end of the one before it.
    Length(u64),
    /// Its target holds a `#`.
    Target(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramingState {
    Head,
    /// In a body with this many bytes still to come.
    Body(u64),
    /// At the line with the size of a chunk.
    ChunkSize,
    /// In a chunk, or in the line end after it.
    Chunk(u64),
    /// In the lines after the last chunk.
    Trailers,
    /// Not followed any more: a tunnel, or a connection that is about to close.
    Stopped,
}

/// The start of the current line. No field that matters is longer, unless it is meant to mislead.
#[derive(Debug)]
struct LineStart {
    start: [u8; LINE],
    length: usize,
    /// The last two bytes of the whole line so far, to see how it ends.
    last_two: [u8; 2],
}

/// What the current head contains so far.
#[derive(Debug, Default, Clone, Copy)]
struct HeadSummary {
    lines: usize,
    length: Option<u64>,
    coded: bool,
    /// It gives the length of the body in two ways.
    ambiguous: bool,
    /// The request line holds a `#`.
    has_hash: bool,
}

impl FramingScanner {
    pub(super) fn new() -> Self {
        Self {
            state: FramingState::Head,
            line: LineStart {
                start: [0; LINE],
                length: 0,
                last_two: [0; 2],
            },
            head: HeadSummary::default(),
            heads: 0,
            longest_head: 0,
        }
    }

    /// Returns how many heads have begun.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// How many lines the longest head has so far, complete or not, with its request line.
    pub(super) fn longest_head(&self) -> usize {
        self.longest_head
    }

    /// Whether a request line has begun and not ended.
    pub(super) fn is_within_request_line(&self) -> bool {
        self.is_within_head() && self.head.lines == 0
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_within_head(&self) -> bool {
        self.state == FramingState::Head && (self.head.lines > 0 || self.line.length > 0)
    }

    /// Whether all requests that began have ended.
    pub(super) fn is_between_requests(&self) -> bool {
        self.state == FramingState::Head && !self.is_within_head()
    }

    /// Stops following; returns whether it was following until now.
    pub(super) fn stop(&mut self) -> bool {
        std::mem::replace(&mut self.state, FramingState::Stopped) != FramingState::Stopped
    }

    /// Reads on. Returns the first request that must be refused. Nothing after it is followed.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) -> Option<BadRequest> {
        let mut bad = None;
        while !bytes.is_empty() {
            match self.state {
                FramingState::Stopped => break,
                FramingState::Body(left) => {
                    let left = take(&mut bytes, left);
                    self.state = if left == 0 {
                        FramingState::Head
                    } else {
                        FramingState::Body(left)
                    };
                }
                FramingState::Chunk(left) => {
                    let left = take(&mut bytes, left);
                    self.state = if left == 0 {
                        FramingState::ChunkSize
                    } else {
                        FramingState::Chunk(left)
                    };
                }
                FramingState::Head | FramingState::ChunkSize | FramingState::Trailers => {
                    if self.state == FramingState::Head
                        && !self.is_within_head()
                        && !bytes.starts_with(b"\r")
                        && !bytes.starts_with(b"\n")
                    {
                        self.heads += 1;
                    }
                    let end = memchr(b'\n', bytes);
                    let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
                    if self.state == FramingState::Head && self.head.lines == 0 {
                        self.head.has_hash |= memchr(b'#', part).is_some();
                    }
                    self.line.push(part);
                    bytes = rest;
                    if end.is_some() {
                        let found = self.line_ended();
                        bad = bad.or(found);
                        self.line.length = 0;
                        self.line.last_two = [0; 2];
                    }
                }
            }
        }
        bad
    }

    fn line_ended(&mut self) -> Option<BadRequest> {
        let line = self.line.text();
        match self.state {
            FramingState::Head if line.is_empty() && self.head.lines == 0 => {} // Empty lines before a request are allowed (RFC 9112 §2.2).
            FramingState::Head if line.is_empty() => {
                let head = std::mem::take(&mut self.head);
                self.state = match (head.coded, head.length) {
                    _ if head.ambiguous || head.has_hash => FramingState::Stopped,
                    (true, _) => FramingState::ChunkSize,
                    (false, None | Some(0)) => FramingState::Head,
                    (false, Some(length)) => FramingState::Body(length),
                };
                if head.ambiguous {
                    return Some(BadRequest::Length(self.heads));
                }
                return head.has_hash.then_some(BadRequest::Target(self.heads));
            }
            FramingState::Head => {
                self.head.lines += 1;
                self.longest_head = self.longest_head.max(self.head.lines);
                if let Some(at) = memchr(b':', line) {
                    let (name, value) = line.split_at(at);
                    if name.eq_ignore_ascii_case(b"content-length") {
                        self.head.ambiguous |=
                            self.head.coded || self.head.length.is_some() || self.line.is_cut();
                        self.head.length = Some(number(value.get(1..).unwrap_or_default(), 10));
                    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                        self.head.ambiguous |= self.head.length.is_some();
                        self.head.coded = true;
                    }
                }
            }
            // hyper accepts only CR LF at the end of these lines, and other parsers accept LF too. A number
            // that is longer than the kept start is unknown. A guess could take a body for a head.
            FramingState::ChunkSize | FramingState::Trailers if !self.line.has_crlf() => {
                return self.lost();
            }
            FramingState::ChunkSize
                if self.line.is_cut() && line.iter().all(u8::is_ascii_hexdigit) =>
            {
                return self.lost();
            }
            FramingState::ChunkSize => {
                self.state = match number(line, 16) {
                    0 => FramingState::Trailers,
                    // The line end after the data belongs to the chunk.
                    size => FramingState::Chunk(size.saturating_add(2)),
                };
            }
            FramingState::Trailers if line.is_empty() => self.state = FramingState::Head,
            FramingState::Trailers
            | FramingState::Body(_)
            | FramingState::Chunk(_)
            | FramingState::Stopped => {}
        }
        None
    }

    /// The end of the body is unknown, so no later request is certain.
    fn lost(&mut self) -> Option<BadRequest> {
        self.state = FramingState::Stopped;
        Some(BadRequest::Length(self.heads + 1))
    }
}

impl LineStart {
    fn push(&mut self, part: &[u8]) {
        self.last_two = match part {
            [.., one, two] => [*one, *two],
            [only] => [self.last_two[1], *only],
            [] => self.last_two,
        };
        let room = self.start.get_mut(self.length..).unwrap_or_default();
        let kept = part.len().min(room.len());
        if let (Some(room), Some(part)) = (room.get_mut(..kept), part.get(..kept)) {
            room.copy_from_slice(part);
        }
        self.length += kept;
    }

    /// Whether the line may be longer than the start that was kept.
    fn is_cut(&self) -> bool {
        self.length == LINE
    }

    fn has_crlf(&self) -> bool {
        self.last_two == *b"\r\n"
    }

    /// The line without its end.
    fn text(&self) -> &[u8] {
        let line = self.start.get(..self.length).unwrap_or_default();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line)
    }
}

/// Passes over up to `left` bytes; returns how many are still to come.
fn take(bytes: &mut &[u8], left: u64) -> u64 {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *bytes = bytes.get(taken..).unwrap_or_default();
    left - taken as u64
}

/// The number at the start of the text. For text that hyper refuses anyway, the result does not matter.
fn number(text: &[u8], radix: u32) -> u64 {
    text.trim_ascii()
        .iter()
        .map_while(|byte| char::from(*byte).to_digit(radix))
        .fold(0, |number, digit| {
            number
                .saturating_mul(u64::from(radix))
                .saturating_add(u64::from(digit))
        })
}

/// How many requests begin in these bytes of one connection; for the benches.
#[must_use]
pub fn scan_requests(bytes: &[u8]) -> u64 {
    let mut framing = FramingScanner::new();
    framing.scan(bytes);
    framing.heads()
}

/// More than `transfer-encoding:` and than `content-length:` with any number; a longer number has leading
/// zeros.
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many heads begin, whether a request is refused, and whether all have ended, for every way of
    /// cutting the bytes.
    fn scan(text: &str) -> (u64, bool, bool) {
        let mut results: Vec<_> = (1..=text.len())
            .map(|size| {
                let mut framing = FramingScanner::new();
                let mut is_bad = false;
                for piece in text.as_bytes().chunks(size) {
                    is_bad |= framing.scan(piece).is_some();
                }
                (framing.heads(), is_bad, framing.is_between_requests())
            })
            .collect();
        results.dedup();
        assert_eq!(results.len(), 1, "{text:?} depends on the cut: {results:?}");
        results[0]
    }

    #[test]
    fn follows_every_kind_of_body() {
        for body in [
            "content-length: 5\r\n\r\nGET /",
            "Content-Length:0\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\n5;x=y\r\nGET /\r\n0\r\n\r\n",
            "transfer-encoding: chunked\r\n\r\nA\r\n0123456789\r\n000\r\nTrailer: a\r\nb: c\r\n\r\n",
            "\r\n",
        ] {
            let requests = format!(
                "POST / HTTP/1.1\r\nhost: a\r\n{body}\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"
            );
            assert_eq!(scan(&requests), (2, false, true), "{body:?}");
        }
    }

    #[test]
    fn finds_two_lengths_or_length_and_coding_in_any_order() {
        for fields in [
            "content-length: 3\r\ntransfer-encoding: chunked",
            "Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 3",
            "x: y\r\ntransfer-encoding: chunked\r\nx: y\r\ncontent-length: 0",
            "content-length: 5\r\nx: y\r\nContent-Length: 5",
        ] {
            assert_eq!(
                scan(&format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n0\r\n\r\n")),
                (1, true, false),
                "{fields}"
            );
        }
    }

    #[test]
    fn finds_a_hash_in_the_request_line_only() {
        for (head, expected) in [
            ("GET /a#b HTTP/1.1\r\nhost: a", Some(BadRequest::Target(1))),
            ("\r\nGET # HTTP/1.1\r\nhost: a", Some(BadRequest::Target(1))),
            ("GET https://a/#b HTTP/1.1", Some(BadRequest::Target(1))),
            ("GET /%23 HTTP/1.1\r\nx: #", None),
        ] {
            let head = format!("{head}\r\n\r\n");
            assert_eq!(FramingScanner::new().scan(head.as_bytes()), expected);
            assert_eq!(scan(&head), (1, expected.is_some(), expected.is_none()));
        }
        let second = b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n#GET /# HTTP/1.1\r\n\r\n";
        let bad = FramingScanner::new().scan(second);
        assert_eq!(bad, Some(BadRequest::Target(2)));
    }

    #[test]
    fn next_request_is_bad_after_body_without_a_certain_end() {
        for body in [
            "transfer-encoding: chunked\r\n\r\n5\n",
            "transfer-encoding: chunked\r\n\r\n0\r\n\n",
            "transfer-encoding: chunked\r\n\r\n0\r\na: b\n\n",
        ] {
            let request = format!("POST / HTTP/1.1\r\n{body}");
            assert_eq!(scan(&request), (1, true, false), "{body:?}");
        }
    }

    #[test]
    fn long_lines_of_a_body_are_followed() {
        let long = "x".repeat(LINE * 2);
        let body = format!("5;{long}\r\nGET /\r\n0;{long}\r\na: {long}\r\n\r\n");
        let request = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        assert_eq!(scan(&request), (1, false, true));
    }

    #[test]
    fn number_with_many_leading_zeros_is_bad() {
        let zeros = "0".repeat(LINE);
        let tail = "GET / HTTP/1.1\r\n\r\n";
        for request in [
            format!("POST / HTTP/1.1\r\ncontent-length: {zeros}5\r\n\r\nhello{tail}"),
            format!(
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{zeros}5\r\nhello\r\n0\r\n\r\n{tail}"
            ),
        ] {
            assert_eq!(scan(&request), (1, true, false), "{request}");
        }
        let extended = format!(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;{zeros}\r\nhello\r\n0\r\n\r\n{tail}"
        );
        assert_eq!(scan(&extended), (2, false, true));
    }

    #[test]
    fn field_lines_in_a_body_are_ignored() {
        let body = "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
        let request = format!(
            "POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(scan(&request), (1, false, true));
    }

    #[test]
    fn knows_whether_a_head_is_incomplete() {
        let mut framing = FramingScanner::new();
        assert!(!framing.is_within_head());
        framing.scan(b"G");
        assert!(framing.is_within_head());
        framing.scan(b"ET / HTTP/1.1\r\na: b\r\n");
        assert!(framing.is_within_head());
        assert!(!framing.is_within_request_line());
        assert_eq!(framing.longest_head(), 2);
        framing.scan(b"\r\n");
        assert!(!framing.is_within_head());
        framing.scan(b"G");
        assert!(framing.is_within_request_line());
        assert_eq!(framing.longest_head(), 2);
    }
}
