//! Reads, writes and counts single HTTP/2 frames: for tests that send what no library would send.

use std::{collections::VecDeque, io};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The bytes that a client sends before its first frame (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (RFC 9113 §6).
#[expect(missing_docs, reason = "the RFC defines the names")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// The flag `END_STREAM` of HEADERS and DATA.
pub const END_STREAM: u8 = 0x1;
/// The flag ACK of SETTINGS and PING.
pub const ACK: u8 = 0x1;
/// The flag `END_HEADERS` of HEADERS.
pub const END_HEADERS: u8 = 0x4;

pub(crate) const HEADER_BYTES: usize = 9;

/// One frame as it was on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// See [`kind`].
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream of the frame; 0 is the connection.
    pub stream: u32,
    /// All bytes after the frame header, padding and priority included.
    pub payload: Bytes,
}

impl Frame {
    /// Whether the frame has this flag.
    #[must_use]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The error code of `RST_STREAM` or GOAWAY.
    #[must_use]
    pub fn error_code(&self) -> Option<u32> {
        let from = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        Some(u32::from_be_bytes(
            self.payload.get(from..from + 4)?.try_into().ok()?,
        ))
    }

    /// The pairs of identifier and value in SETTINGS.
    #[must_use]
    pub fn settings(&self) -> Vec<(u16, u32)> {
        if self.kind != kind::SETTINGS {
            return Vec::new();
        }
        let pairs = self.payload.chunks_exact(6);
        pairs
            .map(|mut pair| (pair.get_u16(), pair.get_u32()))
            .collect()
    }

    /// The frame as bytes for the wire.
    ///
    /// # Panics
    ///
    /// When the length of the payload does not fit the length field.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("a frame's length fits 24 bits");
        assert!(length < 1 << 24, "a frame's length fits 24 bits");
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Removes the first frame from the buffer, if it is complete.
    pub(crate) fn decode(from: &mut BytesMut) -> Option<Self> {
        let header = from.get(..HEADER_BYTES)?;
        let length =
            usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if from.len() < HEADER_BYTES + length {
            return None;
        }
        let mut header = from.split_to(HEADER_BYTES);
        header.advance(3);
        let (kind, flags, stream) = (
            header.get_u8(),
            header.get_u8(),
            header.get_u32() & 0x7fff_ffff,
        );
        Some(Self {
            kind,
            flags,
            stream,
            payload: from.split_to(length).freeze(),
        })
    }
}

/// Parses a copy of one direction of an HTTP/2 connection into frames.
///
/// The payloads of DATA frames are discarded, so that a long stream does not fill the memory.
#[derive(Debug)]
pub struct FrameTap {
    preface_left: usize,
    buffer: BytesMut,
}

impl FrameTap {
    /// For the direction from client to server, which begins with the preface.
    #[must_use]
    pub fn from_client() -> Self {
        Self {
            preface_left: PREFACE.len(),
            buffer: BytesMut::new(),
        }
    }

    /// For the direction from server to client.
    #[must_use]
    pub fn from_server() -> Self {
        Self {
            preface_left: 0,
            buffer: BytesMut::new(),
        }
    }

    /// Adds the next bytes and returns the frames that they complete.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Frame> {
        let skipped = self.preface_left.min(bytes.len());
        self.preface_left -= skipped;
        bytes = &bytes[skipped..];
        self.buffer.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(mut frame) = Frame::decode(&mut self.buffer) {
            if frame.kind == kind::DATA {
                frame.payload.clear();
            }
            frames.push(frame);
        }
        frames
    }
}

/// One side of an HTTP/2 connection. The test writes every frame.
#[derive(Debug)]
pub struct FrameConnection<S> {
    stream: S,
    buffer: BytesMut,
    put_back: VecDeque<Frame>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FrameConnection<S> {
    /// The server side: reads the preface and sends these settings.
    ///
    /// # Errors
    ///
    /// When the client closes the connection or sends no preface.
    pub async fn server(mut stream: S, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        if preface != PREFACE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "no HTTP/2 preface",
            ));
        }
        Self::begin(stream, settings).await
    }

    /// The client side: sends the preface and these settings.
    ///
    /// # Errors
    ///
    /// When the server is gone.
    pub async fn client(mut stream: S, settings: &[(u16, u32)]) -> io::Result<Self> {
        stream.write_all(PREFACE).await?;
        Self::begin(stream, settings).await
    }

    /// The client side with a window of 1 GiB per stream and connection, so that flow control never stops the peer.
    ///
    /// # Errors
    ///
    /// When the server is gone.
    pub async fn wide_client(stream: S) -> io::Result<Self> {
        const INITIAL_WINDOW_SIZE: u16 = 4;
        const WIDE: u32 = 1 << 30;
        let mut this = Self::client(stream, &[(INITIAL_WINDOW_SIZE, WIDE)]).await?;
        let more = WIDE.to_be_bytes().to_vec();
        this.send(kind::WINDOW_UPDATE, 0, 0, more).await?;
        Ok(this)
    }

    async fn begin(stream: S, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut this = Self {
            stream,
            buffer: BytesMut::new(),
            put_back: VecDeque::new(),
        };
        let payload = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
        this.send(kind::SETTINGS, 0, 0, payload.collect::<Vec<u8>>())
            .await?;
        Ok(this)
    }

    /// The next frame of any type, or `None` when the peer closed the connection.
    ///
    /// # Errors
    ///
    /// When the connection fails or ends within a frame.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        if let Some(frame) = self.put_back.pop_front() {
            return Ok(Some(frame));
        }
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer) {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// The next frame of this type. Acknowledges SETTINGS and PING frames that arrive before it, and keeps
    /// all other earlier frames for [`next`](Self::next).
    ///
    /// # Errors
    ///
    /// When the connection ends first.
    pub async fn expect(&mut self, wanted: u8) -> io::Result<Frame> {
        let mut passed = VecDeque::new();
        let found = loop {
            let Some(frame) = self.next().await? else {
                break Err(io::ErrorKind::UnexpectedEof.into());
            };
            if frame.kind == wanted {
                break Ok(frame);
            }
            match frame.kind {
                kind::SETTINGS | kind::PING if !frame.has(ACK) => self.acknowledge(&frame).await?,
                _ => passed.push_back(frame),
            }
        };
        passed.append(&mut self.put_back);
        self.put_back = passed;
        found
    }

    /// Sends the ACK for a SETTINGS or PING frame.
    ///
    /// # Errors
    ///
    /// When the peer is gone.
    pub async fn acknowledge(&mut self, frame: &Frame) -> io::Result<()> {
        let payload = if frame.kind == kind::PING {
            frame.payload.to_vec()
        } else {
            Vec::new()
        };
        self.send(frame.kind, ACK, 0, payload).await
    }

    /// Sends one frame.
    ///
    /// # Errors
    ///
    /// When the peer is gone.
    pub async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: impl Into<Bytes>,
    ) -> io::Result<()> {
        let bytes = Frame {
            kind,
            flags,
            stream,
            payload: payload.into(),
        }
        .encode();
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    /// Sends HEADERS with these fields, pseudo-fields first, without compression.
    ///
    /// # Errors
    ///
    /// When the peer is gone.
    pub async fn headers(
        &mut self,
        stream: u32,
        fields: &[(&str, &str)],
        flags: u8,
    ) -> io::Result<()> {
        self.send(
            kind::HEADERS,
            END_HEADERS | flags,
            stream,
            encode_fields(fields),
        )
        .await
    }

    /// Sends DATA.
    ///
    /// # Errors
    ///
    /// When the peer is gone.
    pub async fn data(&mut self, stream: u32, data: impl Into<Bytes>, flags: u8) -> io::Result<()> {
        self.send(kind::DATA, flags, stream, data).await
    }

    /// Sends `RST_STREAM` with this code, for instance 7 for `REFUSED_STREAM`.
    ///
    /// # Errors
    ///
    /// When the peer is gone.
    pub async fn reset(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.send(kind::RST_STREAM, 0, stream, code.to_be_bytes().to_vec())
            .await
    }

    /// Sends GOAWAY: streams above `last_stream` were not processed.
    ///
    /// # Errors
    ///
    /// When the peer is gone.
    pub async fn goaway(&mut self, last_stream: u32, code: u32) -> io::Result<()> {
        self.send(
            kind::GOAWAY,
            0,
            0,
            [last_stream.to_be_bytes(), code.to_be_bytes()].concat(),
        )
        .await
    }

    /// The underlying stream, for bytes that are already frames.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The underlying stream, for bytes that are not frames. Bytes in the read buffer are lost.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

/// A header block in which every field is a literal without indexing or Huffman code (RFC 7541 §6.2.2).
///
/// # Panics
///
/// When a name or value is longer than 2^28 bytes.
#[must_use]
pub fn encode_fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            encode_length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Appends an integer with a prefix of seven bits (RFC 7541 §5.1).
fn encode_length(block: &mut Vec<u8>, length: usize) {
    let low_bits = |value: usize| u8::try_from(value & 0x7f).expect("seven bits fit a byte");
    if length < 127 {
        block.push(low_bits(length));
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(low_bits(rest) | 0x80);
        rest >>= 7;
    }
    block.push(low_bits(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_finds_frames_for_every_split_of_the_bytes() {
        let ping = Frame {
            kind: kind::PING,
            flags: 0,
            stream: 0,
            payload: Bytes::from_static(b"12345678"),
        };
        let reset = Frame {
            kind: kind::RST_STREAM,
            flags: 0,
            stream: 5,
            payload: Bytes::from_static(&[0, 0, 0, 8]),
        };
        let wire = [PREFACE, &ping.encode(), &reset.encode()].concat();
        for step in 1..wire.len() {
            let mut tap = FrameTap::from_client();
            let frames: Vec<Frame> = wire.chunks(step).flat_map(|part| tap.feed(part)).collect();
            assert_eq!(frames, [ping.clone(), reset.clone()], "in steps of {step}");
        }
        assert_eq!(reset.error_code(), Some(8));
    }

    #[test]
    fn lengths_are_encoded_as_the_rfc_requires() {
        for (length, expected) in [
            (10, &[10][..]),
            (126, &[126]),
            (127, &[127, 0]),
            (1337 - 31 + 127, &[127, 154, 10]),
        ] {
            let mut block = Vec::new();
            encode_length(&mut block, length);
            assert_eq!(block, expected, "{length}");
        }
    }
}
