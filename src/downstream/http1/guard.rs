//! Guards hyper's HTTP/1.1 server: a deadline for each request head, a refusal of ambiguous requests, and a
//! `Status` where hyper writes a bare 400, 414 or 431.
//!
//! hyper itself responds to a head that it cannot parse and calls no service, so no code above hyper can
//! give that response a body. The guard sits between TLS and hyper and replaces it.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use super::framing::{BadRequest, FramingScanner};
use crate::{
    config::Limits,
    drain::Drain,
    metrics::Connected,
    proxy::{Rejection, refusal},
    socket,
    transport::{ReadAhead, Readable as _},
};

/// The TLS stream of an HTTP/1.1 client, guarded.
#[derive(Debug)]
pub(super) struct RequestGuard {
    /// `None` only while being dropped.
    stream: Option<Box<TlsStream<ReadAhead>>>,
    framing: FramingScanner,
    tracker: Arc<RequestTracker>,
    limits: Limits,
    head_timeout: Duration,
    /// Runs only while a head is incomplete and the proxy waits for the client.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The rest of the response that replaces hyper's own.
    replacement: Option<Bytes>,
    read_to_end: bool,
    /// The proxy has ended its side of the connection in order.
    ended: bool,
    /// Counts the connection against the limit until the socket is closed.
    connected: Arc<Connected>,
    drain: Drain,
}

/// The state of the requests on one connection that the guard and the service share.
#[derive(Debug)]
pub(super) struct RequestTracker {
    /// Requests that reached the service.
    served: AtomicU64,
    /// Requests that may be served; every later one is refused.
    acceptable: AtomicU64,
    /// The first refused request has a malformed target and not an ambiguous length.
    target_is_bad: AtomicBool,
    /// The service has responded, and the response is not written to its end.
    response_pending: AtomicBool,
    /// hyper has taken the whole body of that response, and may still hold some of it.
    body_taken: AtomicBool,
    /// The connection is a tunnel.
    is_tunnel: AtomicBool,
}

impl RequestTracker {
    fn new() -> Self {
        Self {
            served: AtomicU64::new(0),
            acceptable: AtomicU64::new(u64::MAX),
            target_is_bad: AtomicBool::new(false),
            response_pending: AtomicBool::new(false),
            body_taken: AtomicBool::new(false),
            is_tunnel: AtomicBool::new(false),
        }
    }

    /// Counts a request that reached the service; returns why it is refused, if it is.
    pub(super) fn serve_next(&self) -> Option<Rejection> {
        let before = self.served.fetch_add(1, Ordering::Relaxed);
        (before >= self.acceptable.load(Ordering::Relaxed)).then(|| {
            if self.target_is_bad.load(Ordering::Relaxed) {
                Rejection::Target
            } else {
                Rejection::AmbiguousLength
            }
        })
    }

    /// Whether a request has reached the service.
    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed) > 0
    }

    /// Refuses this request and all after it.
    fn refuse(&self, bad: BadRequest) {
        let (number, target_is_bad) = match bad {
            BadRequest::Length(number) => (number, false),
            BadRequest::Target(number) => (number, true),
        };
        self.target_is_bad.store(target_is_bad, Ordering::Relaxed);
        self.acceptable.store(number - 1, Ordering::Relaxed);
    }

    /// The service has responded: hyper writes that response from now on.
    pub(super) fn response_begins(&self) {
        self.body_taken.store(false, Ordering::Relaxed);
        self.response_pending.store(true, Ordering::Relaxed);
    }

    /// Returns once no response was pending for [`QUIET`]. The head of the last one did not say `close`, so
    /// a client such as a reflector may send its next request just as it receives the last byte. That
    /// request still gets its response.
    pub(super) async fn drained(&self) {
        loop {
            let was_pending = self.response_pending.load(Ordering::Relaxed);
            sleep(QUIET).await;
            if !was_pending && !self.response_pending.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// hyper has written everything that it had taken.
    fn flushed(&self) {
        if self.body_taken.swap(false, Ordering::Relaxed) {
            self.response_pending.store(false, Ordering::Relaxed);
        }
    }

    /// The bytes from now on are not requests.
    pub(super) fn become_tunnel(&self) {
        self.is_tunnel.store(true, Ordering::Relaxed);
    }

    fn is_tunnel(&self) -> bool {
        self.is_tunnel.load(Ordering::Relaxed)
    }
}

impl RequestGuard {
    /// Guards a stream whose request heads must each come within `head_timeout`.
    pub(super) fn new(
        stream: Box<TlsStream<ReadAhead>>,
        limits: Limits,
        head_timeout: Duration,
        connected: Arc<Connected>,
        drain: Drain,
    ) -> (Self, Arc<RequestTracker>) {
        let tracker = Arc::new(RequestTracker::new());
        let guard = Self {
            stream: Some(stream),
            framing: FramingScanner::new(),
            tracker: Arc::clone(&tracker),
            limits,
            head_timeout,
            deadline: None,
            replacement: None,
            read_to_end: false,
            ended: false,
            connected,
            drain,
        };
        (guard, tracker)
    }

    fn stream(&mut self) -> Pin<&mut TlsStream<ReadAhead>> {
        let stream = self.stream.as_deref_mut();
        Pin::new(stream.expect("the stream is taken only when dropped"))
    }

    /// Whether the proxy waits for a head: for the first one from the start, for later ones from their
    /// first byte.
    fn awaits_head(&self) -> bool {
        self.framing.is_within_head() || self.framing.heads() == 0
    }

    /// The response that replaces these bytes, if they are hyper's own response to a head that it could not
    /// parse.
    fn replace(&mut self, written: &[u8]) -> Option<Bytes> {
        let status = written.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        // A tunnel may carry such bytes, and so may a response to a client that pipelines.
        if self.tracker.is_tunnel()
            || self.tracker.response_pending.load(Ordering::Relaxed)
            || self.framing.heads() <= self.tracker.served.load(Ordering::Relaxed)
            || !is_bare(written)
        {
            return None;
        }
        // hyper accepts one field more than the limit, and the request line is a line too.
        let max_lines = self.limits.header_fields.saturating_add(2);
        let rejection = match status {
            b"414" => Rejection::Uri(self.limits.uri_bytes),
            b"431" if self.framing.is_within_request_line() => {
                Rejection::Uri(self.limits.uri_bytes)
            }
            b"431" if self.framing.longest_head() > max_lines => {
                Rejection::HeaderFields(self.limits.header_fields)
            }
            b"431" => Rejection::HeaderBytes(self.limits.header_bytes),
            b"400" => Rejection::Malformed,
            _ => return None,
        };
        let (status, json) = refusal(rejection, &self.connected);
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{json}",
            json.len()
        );
        Some(head.into())
    }

    /// Writes the replacement for `length` bytes of hyper's.
    fn poll_write_replacement(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        while let Some(mut rest) = self.replacement.take() {
            match self.stream().poll_write(cx, &rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    rest.advance(written);
                    self.replacement = Some(rest).filter(|rest| !rest.is_empty());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.replacement = Some(rest);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(length))
    }
}

/// Whether `written` is a complete response of hyper itself: no body, and no header field that the proxy adds.
fn is_bare(written: &[u8]) -> bool {
    let Some(head) = written.strip_suffix(b"\r\n\r\n") else {
        return false;
    };
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.all(|line| {
        [&b"connection: close"[..], b"content-length: 0", b"date: "]
            .iter()
            .any(|bare| line.starts_with(bare))
    })
}

impl AsyncRead for RequestGuard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.tracker.is_tunnel() {
            if this.framing.stop() {
                this.deadline = None;
                // It fails only for a dead socket, which the next read reports.
                socket::clear_user_timeout(this.stream().get_ref().0.tcp()).ok();
            }
            return this.stream().poll_read_if_ready(cx, buf);
        }
        let before = buf.filled().len();
        if let Poll::Ready(read) = this.stream().poll_read_if_ready(cx, buf) {
            let new = buf.filled().get(before..).unwrap_or_default();
            this.read_to_end = new.is_empty();
            let begun = this.framing.heads();
            if let Some(bad) = this.framing.scan(new) {
                this.tracker.refuse(bad);
            }
            // The time of the first head runs from the handshake, not from its first byte.
            let is_next = begun > 0 && this.framing.heads() > begun;
            if is_next || !this.awaits_head() {
                this.deadline = None;
            }
            return Poll::Ready(read);
        }
        // Most heads come in one piece, so the timer is made only for the others.
        if this.awaits_head() {
            let head_timeout = this.head_timeout;
            let deadline = this
                .deadline
                .get_or_insert_with(|| Box::pin(sleep(head_timeout)));
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no complete request head in time",
            )));
        }
        Poll::Pending
    }
}

impl AsyncWrite for RequestGuard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replacement.is_none() {
            self.replacement = self.replace(buf);
        }
        if self.replacement.is_some() {
            return self.poll_write_replacement(cx, buf.len());
        }
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // hyper writes its own responses in one piece.
        let mut filled = bufs.iter().filter(|buf| !buf.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next()) {
            return self.poll_write(cx, only);
        }
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes the stream only when it holds nothing back itself.
        self.tracker.flushed();
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        self.stream().poll_shutdown(cx)
    }
}

impl Drop for RequestGuard {
    /// Reads on for up to [`LINGER`] if the client got its response before it had sent the whole request. If
    /// the proxy closed the socket at once, the kernel would send a reset, and a reset makes the client lose
    /// the response (RFC 9112 §9.6). A connection that did not end in order is closed at once.
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else {
            return;
        };
        let is_incomplete = self.framing.heads() > self.tracker.served.load(Ordering::Relaxed)
            || !self.framing.is_between_requests();
        let is_tunnel = self.tracker.is_tunnel();
        if !self.ended || self.read_to_end || is_tunnel || !is_incomplete {
            return;
        }
        let connected = Arc::clone(&self.connected);
        self.drain.spawn(async move {
            let _connected = connected;
            let lingering = async {
                // hyper has called `poll_shutdown`; this completes it.
                stream.shutdown().await?;
                let mut discarded = vec![0; 16 * 1024];
                while stream.read(&mut discarded).await? > 0 {}
                io::Result::Ok(())
            };
            // Whether the client has read the response or not, the connection closes now.
            timeout(LINGER, lingering).await.ok();
        });
    }
}

/// Tells [`RequestTracker`] that hyper has taken the whole response body. hyper drops the body then, and this
/// with it.
#[derive(Debug)]
pub(super) struct NotifyOnDrop(pub(super) Arc<RequestTracker>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.body_taken.store(true, Ordering::Relaxed);
    }
}

/// How long the rest of a request is read and discarded, so that its response arrives (500 ms in Go).
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// How long a client may take to send its next request on a connection that it believes stays open; more
/// than a round trip.
const QUIET: Duration = Duration::from_millis(250);
