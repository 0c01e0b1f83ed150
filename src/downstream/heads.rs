//! Stands between TLS and hyper on HTTP/1.1 connections and adds what hyper's server lacks: a deadline
//! for each head, a refusal of ambiguous lengths, and a `Status` where hyper writes a bare 400, 414 or
//! 431.
//!
//! hyper answers a head that it cannot parse by itself and calls no service, so nothing behind it can
//! give the answer a body.

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

use super::scanner::Scanner;
use crate::{
    config::Limits,
    drain::Drain,
    metrics::Connected,
    proxy::{Rejection, refusal},
    socket,
    transport::{ReadAhead, Readable as _},
};

/// A stream of HTTP/1.1 requests that is looked after.
#[derive(Debug)]
pub(super) struct Heads {
    /// `None` only while being dropped.
    stream: Option<Box<TlsStream<ReadAhead>>>,
    scanner: Scanner,
    seen: Arc<Seen>,
    limits: Limits,
    head_timeout: Duration,
    /// Runs only while a head is incomplete and the client keeps the proxy waiting for it.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Our answer in place of hyper's, as far as it is not written yet.
    instead: Option<Bytes>,
    refused: bool,
    read_to_end: bool,
    /// Our side of the connection was ended in order.
    ended: bool,
    /// The place of the connection among those that may be open, kept until the socket is closed.
    connected: Arc<Connected>,
    drain: Drain,
}

/// What the stream and the service tell each other.
#[derive(Debug)]
pub(super) struct Seen {
    /// Requests that reached the service.
    served: AtomicU64,
    /// Requests whose bounds are certain; whatever is served after them is refused.
    good: AtomicU64,
    /// The service has answered and its response is not written to its end yet.
    owed: AtomicBool,
    /// hyper has taken all of that response, and may hold some of it.
    given: AtomicBool,
    /// The connection has become a tunnel.
    tunnel: AtomicBool,
}

impl Seen {
    /// Counts a request in; says what is wrong with its form, if anything is.
    pub(super) fn served(&self) -> Option<Rejection> {
        let before = self.served.fetch_add(1, Ordering::Relaxed);
        (before >= self.good.load(Ordering::Relaxed)).then_some(Rejection::AmbiguousLength)
    }

    /// Whether a request has come yet.
    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed) > 0
    }

    /// What is written from now on is the service's.
    pub(super) fn answered(&self) {
        self.given.store(false, Ordering::Relaxed);
        self.owed.store(true, Ordering::Relaxed);
    }

    /// Returns once no response was under way for a moment. The head of the last one has not said `close`,
    /// so that the client may be sending its next request when the last byte comes, as reflectors do; that
    /// one is still answered.
    pub(super) async fn quiet(&self) {
        loop {
            let was_owed = self.owed.load(Ordering::Relaxed);
            sleep(MOMENT).await;
            if !was_owed && !self.owed.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// hyper has taken the response to its end.
    pub(super) fn gave_all(&self) {
        self.given.store(true, Ordering::Relaxed);
    }

    /// Everything that hyper had taken is written.
    fn flushed(&self) {
        if self.given.swap(false, Ordering::Relaxed) {
            self.owed.store(false, Ordering::Relaxed);
        }
    }

    /// From now on the bytes are no requests.
    pub(super) fn became_tunnel(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
    }
}

impl Heads {
    pub(super) fn new(
        stream: Box<TlsStream<ReadAhead>>,
        limits: Limits,
        head_timeout: Duration,
        connected: Arc<Connected>,
        drain: Drain,
    ) -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen {
            served: AtomicU64::new(0),
            good: AtomicU64::new(u64::MAX),
            owed: AtomicBool::new(false),
            given: AtomicBool::new(false),
            tunnel: AtomicBool::new(false),
        });
        let heads = Self {
            stream: Some(stream),
            scanner: Scanner::new(),
            seen: Arc::clone(&seen),
            limits,
            head_timeout,
            deadline: None,
            instead: None,
            refused: false,
            read_to_end: false,
            ended: false,
            connected,
            drain,
        };
        (heads, seen)
    }

    fn stream(&mut self) -> Pin<&mut TlsStream<ReadAhead>> {
        let stream = self.stream.as_deref_mut();
        Pin::new(stream.expect("the stream is taken only when dropped"))
    }

    /// Whether the client owes a head: the first one from the start, later ones from their first byte.
    fn awaits_head(&self) -> bool {
        self.scanner.is_within_head() || self.scanner.heads() == 0
    }

    /// Ours, if this is what hyper says to a head that it could not parse.
    fn in_place_of(&mut self, written: &[u8]) -> Option<Bytes> {
        let status = written.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        // A tunnel may carry such bytes, and so may a response to a client that pipelines.
        if self.seen.tunnel.load(Ordering::Relaxed)
            || self.seen.owed.load(Ordering::Relaxed)
            || self.scanner.heads() <= self.seen.served.load(Ordering::Relaxed)
            || !is_bare(written)
        {
            return None;
        }
        // A head that hyper lets pass has one field more than is allowed, and its request line.
        let most_lines = self.limits.header_fields.saturating_add(2);
        let rejection = match status {
            b"414" => Rejection::Uri(self.limits.uri_bytes),
            b"431" if self.scanner.is_within_request_line() => {
                Rejection::Uri(self.limits.uri_bytes)
            }
            b"431" if self.scanner.most_lines() > most_lines => {
                Rejection::HeaderFields(self.limits.header_fields)
            }
            b"431" => Rejection::HeaderBytes(self.limits.header_bytes),
            b"400" => Rejection::Malformed,
            _ => return None,
        };
        let (status, json) = refusal(rejection, &self.connected);
        self.refused = true;
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{json}",
            json.len()
        );
        Some(head.into())
    }

    /// Writes the answer that stands in for `length` bytes of hyper's.
    fn poll_write_instead(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        while let Some(mut rest) = self.instead.take() {
            match self.stream().poll_write(cx, &rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    rest.advance(written);
                    self.instead = Some(rest).filter(|rest| !rest.is_empty());
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.instead = Some(rest);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(length))
    }
}

/// Whether this is a whole response with no body and no field of its own, as hyper writes it.
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

impl AsyncRead for Heads {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.tunnel.load(Ordering::Relaxed) {
            if this.scanner.stop() {
                this.deadline = None;
                // As when it was set: a dead socket says so by itself.
                socket::clear_user_timeout(this.stream().get_ref().0.tcp()).ok();
            }
            return this.stream().poll_read_if_ready(cx, buf);
        }
        let before = buf.filled().len();
        if let Poll::Ready(read) = this.stream().poll_read_if_ready(cx, buf) {
            let new = buf.filled().get(before..).unwrap_or_default();
            this.read_to_end = new.is_empty();
            let begun = this.scanner.heads();
            if let Some(number) = this.scanner.scan(new) {
                this.seen.good.store(number - 1, Ordering::Relaxed);
            }
            // The first head's time runs from the handshake, not from its first byte.
            let another = begun > 0 && this.scanner.heads() > begun;
            if another || !this.awaits_head() {
                this.deadline = None;
            }
            return Poll::Ready(read);
        }
        // A head mostly comes in one piece, so the timer is made only for one that did not.
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

impl AsyncWrite for Heads {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.instead.is_none() {
            self.instead = self.in_place_of(buf);
        }
        if self.instead.is_some() {
            return self.poll_write_instead(cx, buf.len());
        }
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // hyper writes its own answers in one piece.
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
        // hyper flushes us only when it holds nothing back itself.
        self.seen.flushed();
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        self.stream().poll_shutdown(cx)
    }
}

impl Drop for Heads {
    /// Reads on for a moment when the client was answered before it had sent everything: closing at
    /// once would make the kernel send a reset, and a reset takes the answer away from the client
    /// (RFC 9112 §9.6). A connection that was not ended in order is cut.
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take() else {
            return;
        };
        let unanswered = self.scanner.heads() > self.seen.served.load(Ordering::Relaxed)
            || !self.scanner.is_between_requests();
        let is_tunnel = self.seen.tunnel.load(Ordering::Relaxed);
        if !self.ended || self.read_to_end || is_tunnel || !unanswered {
            return;
        }
        let connected = Arc::clone(&self.connected);
        self.drain.spawn(async move {
            let _connected = connected;
            let lingering = async {
                // Only what is left of it: the end was asked for above.
                stream.shutdown().await?;
                let mut scrap = vec![0; 16 * 1024];
                while stream.read(&mut scrap).await? > 0 {}
                io::Result::Ok(())
            };
            // Whether the client read to the end or not, nothing more can be done for it.
            timeout(LINGER, lingering).await.ok();
        });
    }
}

/// How long the rest of a request is thrown away so that its answer arrives (Go's server: 500 ms).
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// For what a client sends when it believes that its connection goes on; more than a round trip.
const MOMENT: Duration = Duration::from_millis(250);
