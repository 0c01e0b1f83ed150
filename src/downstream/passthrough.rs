//! Reads the `ClientHello` of a connection and keeps its bytes, to decide whether the connection is passed through.
//!
//! rustls parses the `ClientHello` here as it does without passthrough, so that both ways treat every `ClientHello` the
//! same. Only a configuration with passthrough hosts pays for the copy.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};

use super::HandshakeError;
use crate::{
    proxy::{PassedClient, Routes},
    transport::ReadAhead,
};

/// What a `ClientHello` asks for.
pub(super) enum Greeting {
    /// A handshake with the proxy.
    Terminated(Box<StartHandshake<ReadAhead>>),
    /// A connection that is passed through.
    Passed(Box<PassedClient>),
}

/// Reads the `ClientHello`, and passes the connection through if it is for a passthrough host. Without a server name it
/// never is.
///
/// # Errors
///
/// As without passthrough, and when the `ClientHello` is larger than [`MAX_HELLO`].
pub(super) async fn read_hello(
    stream: ReadAhead,
    routes: &Routes,
) -> Result<Greeting, HandshakeError> {
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), HelloRecorder::new(stream));
    let hello = match (&mut acceptor).await {
        Ok(hello) => hello,
        Err(source) => {
            let recorder = acceptor.take_io();
            return Err(if recorder.is_some_and(|recorder| recorder.is_full()) {
                HandshakeError::HelloTooLarge
            } else {
                source.into()
            });
        }
    };
    let name = hello.client_hello().server_name().map(str::to_owned);
    let passed = name.and_then(|name| Some((Arc::clone(routes.passthrough(&name)?), name)));
    let StartHandshake { accepted, io, .. } = hello;
    let HelloRecorder {
        mut stream,
        mut read,
    } = io;
    let Some((cluster, server_name)) = passed else {
        let hello = StartHandshake::from_parts(accepted, stream);
        return Ok(Greeting::Terminated(Box::new(hello)));
    };
    // An apiserver that fails is replaced by another one, which then gets the `ClientHello` again. What follows it,
    // such as early data, must not be sent twice.
    let length = hello_length(&read).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    stream.put_back(read.get(length..).unwrap_or_default());
    read.truncate(length);
    Ok(Greeting::Passed(Box::new(PassedClient {
        stream,
        hello: read,
        server_name,
        cluster,
    })))
}

/// The length of the TLS records that hold the `ClientHello` at the beginning of `bytes`. `None` if it is not complete,
/// or if another message comes first.
fn hello_length(bytes: &[u8]) -> Option<usize> {
    let (mut rest, mut header, mut received) = (bytes, [0; 4], 0);
    loop {
        let (head, tail) = rest.split_first_chunk::<5>()?;
        let [HANDSHAKE, _, _, high, low] = *head else {
            return None;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (fragment, tail) = tail.split_at_checked(length)?;
        for (slot, byte) in header.iter_mut().skip(received).zip(fragment) {
            *slot = *byte;
        }
        received += length;
        rest = tail;
        let [_, high, middle, low] = header;
        let message = u32::from_be_bytes([0, high, middle, low]);
        if received >= header.len() && received - header.len() >= usize::try_from(message).ok()? {
            return Some(bytes.len() - rest.len());
        }
    }
}

/// A stream that keeps a copy of what is read from it, at most [`MAX_HELLO`] bytes.
#[derive(Debug)]
struct HelloRecorder {
    stream: ReadAhead,
    read: Vec<u8>,
}

impl HelloRecorder {
    fn new(stream: ReadAhead) -> Self {
        let read = Vec::new();
        Self { stream, read }
    }

    fn is_full(&self) -> bool {
        self.read.len() >= MAX_HELLO
    }
}

impl AsyncRead for HelloRecorder {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = MAX_HELLO.saturating_sub(this.read.len());
        if room == 0 {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room.min(buf.remaining())));
        ready!(Pin::new(&mut this.stream).poll_read(cx, &mut part))?;
        let length = part.filled().len();
        this.read.extend_from_slice(part.filled());
        buf.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// Only an alert is written here, to a client whose `ClientHello` rustls refuses.
impl AsyncWrite for HelloRecorder {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Panics when [`hello_length`] and rustls disagree about the end of a `ClientHello`.
pub(super) fn fuzz(bytes: &[u8]) {
    let is_accepted = |mut bytes: &[u8]| {
        let mut acceptor = Acceptor::default();
        while acceptor.read_tls(&mut bytes).is_ok_and(|read| read > 0) {
            match acceptor.accept() {
                Ok(Some(_)) => return true,
                Ok(None) => {}
                Err(_refused) => return false,
            }
        }
        false
    };
    let length = hello_length(bytes);
    assert!(length.is_none_or(|length| length <= bytes.len()));
    if is_accepted(bytes) {
        let length = length.expect("rustls has found a whole ClientHello");
        assert!(is_accepted(bytes.get(..length).unwrap_or_default()));
        assert!(!is_accepted(bytes.get(..length - 1).unwrap_or_default()));
    }
}

/// The maximum bytes that the proxy reads of a `ClientHello`, record headers included. Clients send 200 to 2,000.
pub(super) const MAX_HELLO: usize = 16 * 1024;
/// The type of a TLS record with a handshake message.
const HANDSHAKE: u8 = 22;

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this length, in records of these lengths.
    fn hello(message: u8, records: &[u8]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, message];
        body.extend((0..message).map(|byte| byte.wrapping_mul(7)));
        let (mut bytes, mut rest) = (Vec::new(), body.as_slice());
        for length in records {
            let (fragment, left) = rest.split_at(usize::from(*length));
            bytes.extend([HANDSHAKE, 3, 1, 0, *length]);
            bytes.extend(fragment);
            rest = left;
        }
        bytes
    }

    #[test]
    fn length_covers_all_records_of_the_hello_and_no_more() {
        for records in [
            &[24][..],
            &[1, 1, 1, 1, 20],
            &[3, 21],
            &[4, 20],
            &[23, 1],
            &[2, 0, 22],
        ] {
            let bytes = hello(20, records);
            assert_eq!(hello_length(&bytes), Some(bytes.len()), "{records:?}");
            for end in 0..bytes.len() {
                assert_eq!(hello_length(&bytes[..end]), None, "{records:?} {end}");
            }
            let followed = [bytes.as_slice(), b"\x17\x03\x03\x00\x05early"].concat();
            assert_eq!(hello_length(&followed), Some(bytes.len()), "{records:?}");
        }
    }

    #[test]
    fn other_record_before_the_hello_ends_is_none() {
        let mut bytes = hello(20, &[4]);
        bytes.extend([23, 3, 3, 0, 20]);
        bytes.extend([0; 20]);
        assert_eq!(hello_length(&bytes), None);
    }
}
