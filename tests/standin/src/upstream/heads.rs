//! Reads along with the requests of an HTTP/1.1 connection and keeps their heads byte for byte.
//!
//! A library that parses the head loses the order and the spelling of its lines; this does not.

use bytes::{Buf as _, Bytes, BytesMut};

/// Yields each head once it is complete and steps over the bodies.
#[derive(Debug, Default)]
pub(super) struct HeadTap {
    buffer: BytesMut,
    place: Place,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailers,
}

impl HeadTap {
    /// Takes the next bytes and returns the heads that are complete with them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Bytes> {
        self.buffer.extend_from_slice(bytes);
        let mut heads = Vec::new();
        while self.step(&mut heads) {}
        heads
    }

    fn step(&mut self, heads: &mut Vec<Bytes>) -> bool {
        match self.place {
            Place::Head => {
                let Some(end) = self
                    .buffer
                    .windows(4)
                    .position(|window| window == b"\r\n\r\n")
                else {
                    return false;
                };
                let head = self.buffer.split_to(end + 4).freeze();
                self.place = after(&head);
                heads.push(head);
                true
            }
            Place::Body(left) => self.skip(left, Place::Body, Place::Head),
            Place::Chunk(left) => self.skip(left, Place::Chunk, Place::ChunkSize),
            Place::ChunkSize => {
                let Some(line) = self.line() else {
                    return false;
                };
                let digits = String::from_utf8_lossy(&line);
                let size =
                    u64::from_str_radix(digits.split(';').next().unwrap_or_default().trim(), 16)
                        .unwrap_or(0);
                // The two bytes are the line end after the chunk.
                self.place = if size == 0 {
                    Place::Trailers
                } else {
                    Place::Chunk(size + 2)
                };
                true
            }
            Place::Trailers => {
                let Some(line) = self.line() else {
                    return false;
                };
                if line.is_empty() {
                    self.place = Place::Head;
                }
                true
            }
        }
    }

    fn skip(&mut self, left: u64, here: fn(u64) -> Place, next: Place) -> bool {
        let there = self
            .buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        self.buffer.advance(there);
        let left = left - there as u64;
        self.place = if left == 0 { next } else { here(left) };
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

/// The lines of a head without its first line, names and values trimmed as RFC 9112 §5.1 says.
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

fn after(head: &[u8]) -> Place {
    let mut length = 0;
    for (name, value) in lines(head) {
        let value = String::from_utf8_lossy(&value).to_ascii_lowercase();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.ends_with("chunked") {
            return Place::ChunkSize;
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap_or(0);
        }
    }
    if length == 0 {
        Place::Head
    } else {
        Place::Body(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_heads_after_bodies_for_every_split_of_the_bytes() {
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
