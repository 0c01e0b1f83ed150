//! What is written and read over a stream that takes only a part of each write.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::*;
use crate::transport::Readable;

/// A stream that takes a part of what is written, and never has anything to read.
#[derive(Debug, Clone, Default)]
struct SlowIo(Arc<Mutex<SlowState>>);

#[derive(Debug, Default)]
struct SlowState {
    /// Bytes that are still taken.
    room: usize,
    taken: Vec<u8>,
    /// Each flush is pending.
    holds_back: bool,
    /// Bytes that were taken before the last complete flush.
    flushed: usize,
    /// How often a read was tried.
    reads: usize,
}

impl SlowIo {
    fn with_room(room: usize) -> Self {
        let io = Self::default();
        io.state().room = room;
        io
    }

    fn state(&self) -> MutexGuard<'_, SlowState> {
        self.0.lock().unwrap()
    }
}

impl AsyncRead for SlowIo {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for SlowIo {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let length = buf.len().min(state.room);
        if length == 0 {
            return Poll::Pending;
        }
        state.room -= length;
        state.taken.extend_from_slice(&buf[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        if state.holds_back {
            return Poll::Pending;
        }
        state.flushed = state.taken.len();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Readable for SlowIo {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        self.state().reads += 1;
        Poll::Pending
    }
}

/// Writes until the stream takes no more.
fn write_all(outgoing: &mut Outgoing, io: &mut SlowIo) {
    let cx = &mut Context::from_waker(Waker::noop());
    while !outgoing.is_empty() && outgoing.poll_write(io, cx).is_ready() {}
}

#[test]
fn end_of_a_chunk_comes_first_wherever_a_write_stopped() {
    const DATA: [u8; 5000] = [b'x'; 5000];
    type Push = fn(&mut Outgoing);
    let more: [(Push, &str); 3] = [
        (Outgoing::push_last_chunk, "0\r\n\r\n"),
        (
            |outgoing| outgoing.push_trailers(&HeaderMap::new()),
            "0\r\n\r\n",
        ),
        (
            |outgoing| outgoing.push_chunk(Bytes::from_static(b"y")),
            "1\r\ny\r\n",
        ),
    ];
    let chunk = [&b"1388\r\n"[..], &DATA, b"\r\n"].concat();
    for (push, then) in more {
        let expected = [&chunk, then.as_bytes()].concat();
        for stop in 0..=chunk.len() {
            let mut io = SlowIo::with_room(stop);
            let mut outgoing = Outgoing::new(BytesMut::new());
            outgoing.push_chunk(Bytes::from_static(&DATA));
            write_all(&mut outgoing, &mut io);
            push(&mut outgoing);
            io.state().room = usize::MAX;
            write_all(&mut outgoing, &mut io);
            assert!(io.state().taken == expected, "{then:?} after {stop} bytes");
        }
    }
}

/// A body of one byte on this stream, for a client that waits for a 100.
fn expecting_body(
    io: &SlowIo,
) -> (
    IncomingBody,
    tokio::sync::oneshot::Receiver<BodyEnd>,
    Arc<AtomicBool>,
) {
    let expects = Arc::new(AtomicBool::new(true));
    let wire = Wire::new(Box::new(io.clone()));
    let (body, end) = IncomingBody::new(wire, BodyDecoder::Length(1), Some(Arc::clone(&expects)));
    (body, end, expects)
}

#[test]
fn a_100_that_is_not_flushed_at_once_is_flushed_later() {
    let cx = &mut Context::from_waker(Waker::noop());
    for response_begins in [false, true] {
        let io = SlowIo::with_room(usize::MAX);
        io.state().holds_back = true;
        let (mut body, _end, expects) = expecting_body(&io);
        for _ in 0..2 {
            assert!(body.poll_data(cx).is_pending());
            assert_eq!(io.state().flushed, 0);
            assert!(expects.load(Ordering::Relaxed), "the client still waits");
        }
        // The response takes over, and flushes what came before it.
        if response_begins {
            expects.store(false, Ordering::Relaxed);
        }
        io.state().holds_back = false;
        assert!(body.poll_data(cx).is_pending());
        let taken = String::from_utf8(io.state().taken.clone()).unwrap();
        assert_eq!(taken, "HTTP/1.1 100 Continue\r\n\r\n");
        let flushed = if response_begins { 0 } else { taken.len() };
        assert_eq!(io.state().flushed, flushed);
        assert!(!expects.load(Ordering::Relaxed));
    }
}

/// The connection reads and discards the rest itself. Bytes that the body took would be missing there.
#[test]
fn body_reads_nothing_after_its_connection_gave_it_up() {
    let cx = &mut Context::from_waker(Waker::noop());
    let io = SlowIo::with_room(usize::MAX);
    let (mut body, end, _expects) = expecting_body(&io);
    assert!(body.poll_data(cx).is_pending());
    let reads = io.state().reads;
    drop(end);
    let cut = body.poll_data(cx);
    assert!(
        matches!(cut, Poll::Ready(Some(Err(MessageError::Cut)))),
        "{cut:?}"
    );
    assert_eq!(io.state().reads, reads);
}

/// A client that sends a line byte by byte must not have all of it parsed for each byte.
#[test]
fn chunk_lines_are_parsed_once_they_are_complete() {
    let decode = |text: &str| {
        let mut body = BodyDecoder::Chunked(ChunkState::Size);
        let result = body.decode(&mut text.to_owned().into());
        result.map(|frame| {
            assert!(frame.is_none(), "{text:?}");
            body
        })
    };
    let size = BodyDecoder::Chunked(ChunkState::Size);
    assert_eq!(decode("1 x").unwrap(), size);
    decode("1 x\r\n").unwrap_err();
    for (trailers, seen) in [("a b", 0), ("a: b\r\nc", 6), ("a: b\r\nc: d\r\n\r", 12)] {
        let expected = BodyDecoder::Chunked(ChunkState::Trailers(seen));
        assert_eq!(decode(&format!("0\r\n{trailers}")).unwrap(), expected);
    }
}
