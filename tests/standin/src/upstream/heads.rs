//! Extracts the request heads of an HTTP/1.1 connection byte for byte.
//!
//! A library that parses the head loses the order and the spelling of its lines; this module keeps them.

use bytes::{Buf as _, Bytes, BytesMut};

/// Returns each head when it is complete, and skips the bodies.
#[derive(Debug, Default)]
pub(super) struct HeadTap {
    buffer: BytesMut,
    position: Position,
}

#[derive(Debug, Default)]
enum Position {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailers,
}

impl HeadTap {
    /// Adds the next bytes and returns the heads that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        self.buffer.extend_from_slice(bytes);
        let mut heads = Vec::new();
        while self.step(&mut heads) {}
        heads
    }

    fn step(&mut self, heads: &mut Vec<Bytes>) -> bool {
        match self.position {
            Position::Head => {
                let Some(end) = self
                    .buffer
                    .windows(4)
                    .position(|window| window == b"\r\n\r\n")
                else {
                    return false;
                };
                let head = self.buffer.split_to(end + 4).freeze();
                self.position = position_after(&head);
                heads.push(head);
                true
            }
            Position::Body(left) => self.skip(left, Position::Body, Position::Head),
            Position::Chunk(left) => self.skip(left, Position::Chunk, Position::ChunkSize),
            Position::ChunkSize => {
                let Some(line) = self.line() else {
                    return false;
                };
                let digits = String::from_utf8_lossy(&line);
                let size =
                    u64::from_str_radix(digits.split(';').next().unwrap_or_default().trim(), 16)
                        .unwrap_or(0);
                // The two extra bytes are the line end after the chunk.
                self.position = if size == 0 {
                    Position::Trailers
                } else {
                    Position::Chunk(size + 2)
                };
                true
            }
            Position::Trailers => {
                let Some(line) = self.line() else {
                    return false;
                };
                if line.is_empty() {
                    self.position = Position::Head;
                }
                true
            }
        }
    }

    fn skip(&mut self, left: u64, here: fn(u64) -> Position, next: Position) -> bool {
        let available = self
            .buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        self.buffer.advance(available);
        let left = left - available as u64;
        self.position = if left == 0 { next } else { here(left) };
        left == 0
    }

    fn line(&mut self) -> Option<Bytes> {
        let end = self
            .buffer
            .windows(2)
            .position(|window| window == b"\r\n")?;
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(2);
        Some(line)
    }
}

/// The header lines of a head, names and values trimmed as RFC 9112 §5.1 requires.
pub(super) fn lines(head: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut parsed = Vec::new();
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        if let Some(colon) = line.iter().position(|byte| *byte == b':') {
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            parsed.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }
    parsed
}

/// The request target of a head.
pub(super) fn target(head: &[u8]) -> String {
    let target = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    String::from_utf8_lossy(target).into_owned()
}

fn position_after(head: &[u8]) -> Position {
    let mut length = 0;
    for (name, value) in lines(head) {
        let value = String::from_utf8_lossy(&value).to_ascii_lowercase();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.ends_with("chunked") {
            return Position::ChunkSize;
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap_or(0);
        }
    }
    if length == 0 {
        Position::Head
    } else {
        Position::Body(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_heads_and_skips_bodies_for_every_split() {
        let heads = [
            "POST /a HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\n\r\n",
            "PUT /b%2F HTTP/1.1\r\nX-A:  1 \r\nx-a: 2\r\ntransfer-encoding: chunked\r\n\r\n",
            "GET /c HTTP/1.1\r\n\r\n",
        ];
        let bodies = ["GET /", "4;ext=1\r\nGET \r\n0\r\nx: y\r\n\r\n", ""];
        let wire: String = heads
            .iter()
            .zip(bodies)
            .flat_map(|(head, body)| [*head, body])
            .collect();
        for step in 1..wire.len() {
            let mut tap = HeadTap::default();
            let found: Vec<Bytes> = wire
                .as_bytes()
                .chunks(step)
                .flat_map(|part| tap.feed(part))
                .collect();
            assert_eq!(found, heads, "in steps of {step}");
        }
        assert_eq!(target(heads[1].as_bytes()), "/b%2F");
        let expected = [("X-A", "1"), ("x-a", "2"), ("transfer-encoding", "chunked")];
        assert_eq!(
            lines(heads[1].as_bytes()),
            expected.map(|(name, value)| (name.into(), value.as_bytes().to_vec()))
        );
    }
}
