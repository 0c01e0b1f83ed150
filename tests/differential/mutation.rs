//! Changes requests at random, in the same way in every run.

/// A generator of random numbers that needs no state but a number (`SplitMix64`).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).expect("a length fits 64 bits");
        usize::try_from(self.next() % end).expect("it is below a length")
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A part of these bytes, of at most `most` bytes.
    fn part(&mut self, bytes: &[u8], most: usize) -> std::ops::Range<usize> {
        let start = self.below(bytes.len() + 1);
        let length = self.below(most + 1).min(bytes.len() - start);
        start..start + length
    }
}

/// One of the requests, changed in one to four places.
pub(crate) fn mutate(random: &mut Random, requests: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = random.pick(requests).clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = *random.pick(BYTES),
            2 => bytes.insert(at, *random.pick(BYTES)),
            3 => drop(bytes.drain(random.part(&bytes, 12))),
            4 => {
                let part = random.part(&bytes, 40);
                let copy = bytes[part].to_vec();
                bytes.splice(at..at, copy);
            }
            // The start of one request and the end of another.
            5 => {
                let other = random.pick(requests);
                let rest = random.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(&other[rest..]);
            }
            6 => bytes.truncate(at),
            _ => {
                let token = random.pick(TOKENS).as_bytes();
                bytes.splice(at..at, token.iter().copied());
            }
        }
    }
    bytes
}

/// Bytes that mean something to a parser, and some that no parser should accept.
const BYTES: &[u8] = b"\r\n\t\0 :;,#?*/0159aAfF+-_\x7f\x80\xff\"\\@[]<>";

const TOKENS: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    "\n\n",
    "\r\n ",
    " ",
    "\t",
    ": ",
    ";a=b",
    "0\r\n\r\n",
    "0\r\n",
    "5\r\nhello\r\n",
    "\r\nX: y",
    "\r\nX: y\n\n",
    "Transfer-Encoding: chunked\r\n",
    "\r\nTransfer-Encoding: chunked",
    "transfer-encoding:\tchunked\n",
    "Transfer-Encoding: gzip\r\n",
    "Content-Length: 5\r\n",
    "\r\nContent-Length: 0",
    "content-length:1\n",
    "Content-Length: 18446744073709551615\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Expect: 100-continue\r\n",
    "Host: other.test\r\n",
    " HTTP/1.1",
    " HTTP/1.0",
    "HTTP/1.1",
    "HTTP/2.0",
    "https://other.test",
    "GET / HTTP/1.1\r\n\r\n",
    "POST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    "POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "CONNECT a:1 HTTP/1.1\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];
