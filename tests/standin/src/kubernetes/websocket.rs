//! The server side of WebSocket (RFC 6455), with the parts that exec needs.

use std::io;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, BytesMut};
use http::{Response, StatusCode, header, response::Builder};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(aws_lc_rs::digest::digest(
        &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    ))
}

/// The head of the 101 for a `Sec-WebSocket-Key`.
pub(super) fn switched(key: &str) -> Builder {
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept(key))
}

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// The longest message that is accepted.
const MAX_MESSAGE: usize = 1 << 20;

/// A message or control frame from the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Message(Vec<u8>),
    /// Needs a [`pong`].
    Ping(Vec<u8>),
    Close,
}

/// The reading half.
#[derive(Debug)]
pub(super) struct Reader<S> {
    stream: S,
    buffer: BytesMut,
    message: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            message: Vec::new(),
        }
    }

    /// The next message, ping or close. The end of the connection counts as a close.
    ///
    /// Cancel safe: the buffer keeps the bytes that were read.
    pub(super) async fn next(&mut self) -> io::Result<Received> {
        loop {
            while let Some((first, payload)) = decode(&mut self.buffer)? {
                match first & 0x0f {
                    CLOSE => return Ok(Received::Close),
                    PING => return Ok(Received::Ping(payload)),
                    PONG => {}
                    _ => {
                        self.message.extend(payload);
                        if self.message.len() > MAX_MESSAGE {
                            return Err(io::Error::other("the message is too long"));
                        }
                        if first & 0x80 != 0 {
                            return Ok(Received::Message(std::mem::take(&mut self.message)));
                        }
                    }
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(Received::Close);
            }
        }
    }
}

/// Removes the first frame from the buffer, if it is complete. Returns its first byte and the unmasked payload.
fn decode(from: &mut BytesMut) -> io::Result<Option<(u8, Vec<u8>)>> {
    let [first, second, ..] = from[..] else {
        return Ok(None);
    };
    if second & 0x80 == 0 {
        return Err(io::Error::other("a client must mask its frames"));
    }
    let (length_bytes, short) = match second & 0x7f {
        126 => (2, None),
        127 => (8, None),
        short => (0, Some(usize::from(short))),
    };
    let header = 2 + length_bytes + 4;
    if from.len() < header {
        return Ok(None);
    }
    let long = from[2..2 + length_bytes]
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    let length = short.unwrap_or(long);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("the frame is too long"));
    }
    if from.len() < header + length {
        return Ok(None);
    }
    let mask: Vec<u8> = from[header - 4..header].to_vec();
    from.advance(header);
    let payload = from.split_to(length);
    Ok(Some((
        first,
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect(),
    )))
}

/// Writes one binary message.
pub(super) async fn message(
    stream: &mut (impl AsyncWrite + Unpin),
    parts: &[&[u8]],
) -> io::Result<()> {
    frame(stream, BINARY, &parts.concat()).await
}

/// Writes a pong.
pub(super) async fn pong(stream: &mut (impl AsyncWrite + Unpin), payload: &[u8]) -> io::Result<()> {
    frame(stream, PONG, payload).await
}

/// Writes a normal close.
pub(super) async fn close(stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    frame(stream, CLOSE, &1000_u16.to_be_bytes()).await
}

async fn frame(
    stream: &mut (impl AsyncWrite + Unpin),
    opcode: u8,
    payload: &[u8],
) -> io::Result<()> {
    debug_assert_ne!(opcode, CONTINUATION, "messages are not fragmented");
    let mut bytes = vec![0x80 | opcode];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..=125), _) => bytes.push(length),
        (_, Ok(length)) => {
            bytes.push(126);
            bytes.extend(length.to_be_bytes());
        }
        (_, Err(_)) => {
            bytes.push(127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_value_matches_the_example_of_the_rfc() {
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[tokio::test]
    async fn reader_joins_fragments_and_unmasks_them() {
        let masked = |first: u8, text: &[u8]| {
            let mask = [1, 2, 3, 4];
            let mut bytes = vec![first, 0x80 | u8::try_from(text.len()).unwrap()];
            bytes.extend(mask);
            bytes.extend(
                text.iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
            bytes
        };
        let wire = [
            masked(0x02, b"hel"),
            masked(0x89, b"?"),
            masked(0x80, b"lo"),
            masked(0x88, b""),
        ]
        .concat();
        let mut reader = Reader::new(&wire[..]);
        assert_eq!(reader.next().await.unwrap(), Received::Ping(b"?".to_vec()));
        assert_eq!(
            reader.next().await.unwrap(),
            Received::Message(b"hello".to_vec())
        );
        assert_eq!(reader.next().await.unwrap(), Received::Close);
        assert_eq!(reader.next().await.unwrap(), Received::Close);
    }
}
