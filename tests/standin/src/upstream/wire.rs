//! The layer between TLS and HTTP. It records the incoming bytes and sends GOAWAY as Go does.
//!
//! Go sends one GOAWAY with the last stream that it has seen, lets the open streams finish, silently ignores
//! every later stream, and closes the connection one second after the last stream ends. No Rust library for
//! HTTP/2 offers that, so this layer inserts the frame and removes the later streams below the library.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    heads::HeadTap,
    record::{Log, MAX_FRAMES},
};
use crate::frames::{Frame, HEADER_BYTES, PREFACE, kind};

/// The state of one connection, shared by this layer and the request handler.
#[derive(Debug)]
pub(super) struct Shared {
    log: Arc<Log>,
    connection: usize,
    heads: Mutex<VecDeque<Bytes>>,
    tunnel: AtomicBool,
    http2: Mutex<Http2>,
}

#[derive(Debug, Default)]
struct Http2 {
    last_stream: u32,
    goaway: GoAway,
    closing: bool,
    reader: Option<Waker>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum GoAway {
    #[default]
    No,
    Requested,
    Sent {
        last_stream: u32,
    },
}

impl Shared {
    pub(super) fn new(log: Arc<Log>, connection: usize) -> Arc<Self> {
        Arc::new(Self {
            log,
            connection,
            heads: Mutex::default(),
            tunnel: AtomicBool::new(false),
            http2: Mutex::default(),
        })
    }

    /// The head of the next HTTP/1.1 request, in order of arrival.
    pub(super) fn next_head(&self) -> Option<Bytes> {
        self.heads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    /// The following bytes on this connection are no longer HTTP.
    pub(super) fn tunnel_begins(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
    }

    /// Inserts a GOAWAY before the next written frame. Returns true for the first call.
    pub(super) fn go_away(&self) -> bool {
        let mut http2 = self.http2();
        let first = http2.goaway == GoAway::No;
        if first {
            http2.goaway = GoAway::Requested;
        }
        first
    }

    /// Lets HTTP see the end of the connection.
    pub(super) fn close(&self) {
        let mut http2 = self.http2();
        http2.closing = true;
        if let Some(reader) = http2.reader.take() {
            reader.wake();
        }
    }

    fn count(&self, bytes: usize) {
        self.log.connection(self.connection, |connection| {
            connection.bytes_received += bytes
        });
    }

    /// Records a frame. Returns false if its stream began after the GOAWAY.
    fn admit(&self, frame: &Frame) -> bool {
        if self.log.keeps_requests() && !matches!(frame.kind, kind::DATA | kind::HEADERS) {
            self.log.connection(self.connection, |connection| {
                if connection.frames.len() < MAX_FRAMES {
                    connection.frames.push(frame.clone());
                }
            });
        }
        let mut http2 = self.http2();
        if let GoAway::Sent { last_stream } = http2.goaway
            && frame.stream > last_stream
        {
            return false;
        }
        if frame.kind == kind::HEADERS {
            http2.last_stream = http2.last_stream.max(frame.stream);
        }
        true
    }

    fn goaway_requested(&self) -> bool {
        self.http2().goaway == GoAway::Requested
    }

    /// The GOAWAY frame, if it was requested and not yet sent.
    fn goaway_due(&self) -> Option<Frame> {
        let mut http2 = self.http2();
        if http2.goaway != GoAway::Requested {
            return None;
        }
        let last_stream = http2.last_stream;
        http2.goaway = GoAway::Sent { last_stream };
        let payload = [last_stream.to_be_bytes(), [0; 4]].concat().into();
        Some(Frame {
            kind: kind::GOAWAY,
            flags: 0,
            stream: 0,
            payload,
        })
    }

    /// Whether the reader must see the end. Stores the waker of the reader.
    fn closing(&self, cx: &mut Context<'_>) -> bool {
        let mut http2 = self.http2();
        http2.reader = Some(cx.waker().clone());
        http2.closing
    }

    fn http2(&self) -> MutexGuard<'_, Http2> {
        self.http2.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A decrypted HTTP/1.1 connection that is recorded.
#[derive(Debug)]
pub(super) struct Http1Wire<S> {
    inner: S,
    shared: Arc<Shared>,
    tap: HeadTap,
}

impl<S> Http1Wire<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            shared,
            tap: HeadTap::default(),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http1Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        this.shared.count(new.len());
        if !this.shared.tunnel.load(Ordering::Relaxed) {
            let heads = this.tap.feed(new);
            this.shared
                .heads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend(heads);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A decrypted HTTP/2 connection that is recorded, with GOAWAY as Go sends it.
#[derive(Debug)]
pub(super) struct Http2Wire<S> {
    inner: S,
    shared: Arc<Shared>,
    preface_left: usize,
    incoming: BytesMut,
    readable: BytesMut,
    position: FramePosition,
    injected: BytesMut,
}

impl<S> Http2Wire<S> {
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            shared,
            preface_left: PREFACE.len(),
            incoming: BytesMut::new(),
            readable: BytesMut::new(),
            position: FramePosition::default(),
            injected: BytesMut::new(),
        }
    }

    /// Moves the frames that HTTP may see from `incoming` to `readable`.
    fn filter(&mut self) {
        let preface = self.preface_left.min(self.incoming.len());
        self.preface_left -= preface;
        self.readable
            .extend_from_slice(&self.incoming.split_to(preface));
        while let Some(frame) = Frame::decode(&mut self.incoming) {
            if self.shared.admit(&frame) {
                self.readable.extend_from_slice(&frame.encode());
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http2Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.readable.is_empty() {
            if this.shared.closing(cx) {
                return Poll::Ready(Ok(()));
            }
            let mut space = [0; 16 << 10];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.shared.count(read.filled().len());
            this.incoming.extend_from_slice(read.filled());
            this.filter();
        }
        let some = this.readable.len().min(buf.remaining());
        buf.put_slice(&this.readable.split_to(some));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http2Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.position.is_boundary()
            && let Some(frame) = this.shared.goaway_due()
        {
            this.injected.extend_from_slice(&frame.encode());
        }
        while !this.injected.is_empty() {
            let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &this.injected))?;
            this.injected.advance(written);
        }
        let length = if this.shared.goaway_requested() {
            this.position.to_boundary(buf)
        } else {
            buf.len()
        };
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, &buf[..length]))?;
        this.position.advance(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The position of the writer within a frame.
#[derive(Debug, Default, Clone)]
struct FramePosition {
    header: Vec<u8>,
    payload_left: usize,
}

impl FramePosition {
    fn is_boundary(&self) -> bool {
        self.header.is_empty() && self.payload_left == 0
    }

    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// The number of bytes up to the end of the current frame.
    fn to_boundary(&self, bytes: &[u8]) -> usize {
        let mut position = self.clone();
        let mut passed = 0;
        while passed < bytes.len() {
            passed += position.step(&bytes[passed..]);
            if position.is_boundary() {
                break;
            }
        }
        passed
    }

    /// Advances over the rest of a header or of a payload. Returns the number of bytes.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.payload_left > 0 {
            let some = self.payload_left.min(bytes.len());
            self.payload_left -= some;
            return some;
        }
        let some = (HEADER_BYTES - self.header.len()).min(bytes.len());
        self.header.extend_from_slice(&bytes[..some]);
        if let [high, middle, low, _, _, _, _, _, _] = self.header[..] {
            self.payload_left =
                usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.header.clear();
        }
        some
    }
}
