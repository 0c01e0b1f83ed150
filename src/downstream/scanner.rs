//! Follows the framing of HTTP/1.1 requests as they pass, without changing them.
//!
//! hyper drops `Content-Length` when `Transfer-Encoding` is there too, and the second of two lengths that
//! agree, and tells nobody; such requests are how two parsers are made to disagree (RFC 9112 §6.3), so
//! they must be seen here.

use memchr::memchr;

/// Where in the stream of requests the next byte belongs.
#[derive(Debug)]
pub(super) struct Scanner {
    state: State,
    line: Line,
    head: Head,
    heads: u64,
    most_lines: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of a body are still to come.
    Body(u64),
    /// At the line with the size of a chunk.
    ChunkSize,
    /// In a chunk, or in the line end behind it.
    Chunk(u64),
    /// In the lines behind the last chunk.
    Trailers,
    /// Framing is of no interest any more: a tunnel, or a connection that is about to be closed.
    Blind,
}

/// The beginning of the current line; no field of interest is longer unless it is meant to mislead.
#[derive(Debug)]
struct Line {
    start: [u8; LINE],
    length: usize,
    /// Of all of it, to see how it ends.
    last_two: [u8; 2],
}

/// What the current head has said so far.
#[derive(Debug, Default, Clone, Copy)]
struct Head {
    lines: usize,
    length: Option<u64>,
    coded: bool,
    /// The length of the body was said twice, in whatever way.
    ambiguous: bool,
}

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            state: State::Head,
            line: Line {
                start: [0; LINE],
                length: 0,
                last_two: [0; 2],
            },
            head: Head::default(),
            heads: 0,
            most_lines: 0,
        }
    }

    /// How many heads have begun.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    /// Lines of the longest head so far, whole or under way, its request line included.
    pub(super) fn most_lines(&self) -> usize {
        self.most_lines
    }

    /// Whether a request line has begun and not ended.
    pub(super) fn is_within_request_line(&self) -> bool {
        self.is_within_head() && self.head.lines == 0
    }

    /// Whether a head has begun and not ended.
    pub(super) fn is_within_head(&self) -> bool {
        self.state == State::Head && (self.head.lines > 0 || self.line.length > 0)
    }

    /// Whether all requests that began have ended.
    pub(super) fn is_between_requests(&self) -> bool {
        self.state == State::Head && !self.is_within_head()
    }

    /// Stops following; true if it had not stopped before.
    pub(super) fn stop(&mut self) -> bool {
        std::mem::replace(&mut self.state, State::Blind) != State::Blind
    }

    /// Reads on. Returns the number of the first request, from 1, whose bounds two parsers could see in
    /// two places: its head gives the length in two ways, or the body before it has no certain end.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) -> Option<u64> {
        let mut ambiguous = None;
        while !bytes.is_empty() {
            match self.state {
                State::Blind => break,
                State::Body(left) => {
                    let left = take(&mut bytes, left);
                    self.state = if left == 0 {
                        State::Head
                    } else {
                        State::Body(left)
                    };
                }
                State::Chunk(left) => {
                    let left = take(&mut bytes, left);
                    self.state = if left == 0 {
                        State::ChunkSize
                    } else {
                        State::Chunk(left)
                    };
                }
                State::Head | State::ChunkSize | State::Trailers => {
                    if self.state == State::Head
                        && !self.is_within_head()
                        && !bytes.starts_with(b"\r")
                        && !bytes.starts_with(b"\n")
                    {
                        self.heads += 1;
                    }
                    let end = memchr(b'\n', bytes);
                    let (part, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
                    self.line.push(part);
                    bytes = rest;
                    if end.is_some() {
                        let found = self.line_ended();
                        ambiguous = ambiguous.or(found);
                        self.line.length = 0;
                        self.line.last_two = [0; 2];
                    }
                }
            }
        }
        ambiguous
    }

    fn line_ended(&mut self) -> Option<u64> {
        let line = self.line.text();
        match self.state {
            State::Head if line.is_empty() && self.head.lines == 0 => {} // Empty lines before a request are allowed (RFC 9112 §2.2).
            State::Head if line.is_empty() => {
                let head = std::mem::take(&mut self.head);
                self.state = match (head.coded, head.length) {
                    _ if head.ambiguous => State::Blind,
                    (true, _) => State::ChunkSize,
                    (false, None | Some(0)) => State::Head,
                    (false, Some(length)) => State::Body(length),
                };
                return head.ambiguous.then_some(self.heads);
            }
            State::Head => {
                self.head.lines += 1;
                self.most_lines = self.most_lines.max(self.head.lines);
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
            // hyper ends these lines with CR LF alone, others with LF too, and a number that goes on past
            // what is kept is unknown: whoever guesses may take a body for a head.
            State::ChunkSize | State::Trailers if !self.line.has_crlf() => return self.lost(),
            State::ChunkSize if self.line.is_cut() && line.iter().all(u8::is_ascii_hexdigit) => {
                return self.lost();
            }
            State::ChunkSize => {
                self.state = match number(line, 16) {
                    0 => State::Trailers,
                    // The line end behind the data belongs to the chunk.
                    size => State::Chunk(size.saturating_add(2)),
                };
            }
            State::Trailers if line.is_empty() => self.state = State::Head,
            State::Trailers | State::Body(_) | State::Chunk(_) | State::Blind => {}
        }
        None
    }

    /// Where the body ends is not known any more.
    fn lost(&mut self) -> Option<u64> {
        self.state = State::Blind;
        Some(self.heads + 1)
    }
}

impl Line {
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

    /// Whether the line may go on behind what was kept of it.
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

/// Passes over up to `left` bytes and returns how many are still to come.
fn take(bytes: &mut &[u8], left: u64) -> u64 {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *bytes = bytes.get(taken..).unwrap_or_default();
    left - taken as u64
}

/// The digits at the start. What hyper refuses anyway may come out as any number here.
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

/// Fuzz body: what is seen does not depend on how the bytes were cut.
pub(super) fn fuzz(bytes: &[u8]) {
    let (size, bytes) = bytes
        .split_first()
        .map_or((1, bytes), |(size, rest)| (usize::from(*size).max(1), rest));
    let mut whole = Scanner::new();
    let mut pieces = Scanner::new();
    let ambiguous = whole.scan(bytes);
    let mut seen = None;
    for piece in bytes.chunks(size) {
        let found = pieces.scan(piece);
        seen = seen.or(found);
    }
    assert_eq!(ambiguous, seen, "ambiguity depends on the cut");
    assert_eq!(
        (whole.state, whole.heads, whole.head.lines),
        (pieces.state, pieces.heads, pieces.head.lines)
    );
}

/// Longer than `transfer-encoding:` and than `content-length:` with any number; more are zeros in front.
const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// Heads seen, and whether one of them was ambiguous, for every way of cutting the bytes.
    fn scan(text: &str) -> (u64, bool, bool) {
        let mut results: Vec<_> = (1..=text.len())
            .map(|size| {
                let mut scanner = Scanner::new();
                let mut ambiguous = false;
                for piece in text.as_bytes().chunks(size) {
                    ambiguous |= scanner.scan(piece).is_some();
                }
                (scanner.heads(), ambiguous, scanner.is_between_requests())
            })
            .collect();
        results.dedup();
        assert_eq!(
            results.len(),
            1,
            "{text:?} depends on how it is cut: {results:?}"
        );
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
    fn sees_two_lengths_or_length_and_coding_in_any_order() {
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
    fn a_body_whose_end_is_uncertain_makes_what_follows_ambiguous() {
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
    fn long_lines_of_a_body_are_no_matter() {
        let long = "x".repeat(LINE * 2);
        let body = format!("5;{long}\r\nGET /\r\n0;{long}\r\na: {long}\r\n\r\n");
        let request = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        assert_eq!(scan(&request), (1, false, true));
    }

    #[test]
    fn numbers_behind_many_zeros_are_not_followed_but_refused() {
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
    fn fields_in_a_body_are_not_fields() {
        let body = "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
        let request = format!(
            "POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        assert_eq!(scan(&request), (1, false, true));
    }

    #[test]
    fn knows_when_a_head_is_under_way() {
        let mut scanner = Scanner::new();
        assert!(!scanner.is_within_head());
        scanner.scan(b"G");
        assert!(scanner.is_within_head());
        scanner.scan(b"ET / HTTP/1.1\r\na: b\r\n");
        assert!(scanner.is_within_head());
        assert!(!scanner.is_within_request_line());
        assert_eq!(scanner.most_lines(), 2);
        scanner.scan(b"\r\n");
        assert!(!scanner.is_within_head());
        scanner.scan(b"G");
        assert!(scanner.is_within_request_line());
        assert_eq!(scanner.most_lines(), 2);
    }
}
