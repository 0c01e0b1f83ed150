//! The body of a request: read from the client, and sent over HTTP/2 with a copy for one retry.
//!
//! An incomplete body never looks complete.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::{
    UploadError,
    http2_body::{Http2Body, UnreadBody},
    upload_pace::UploadPace,
};
use crate::{
    config::Limits,
    http1::IncomingBody,
    memory::MemoryPressure,
    metrics::{Counters, Limit},
};

/// Data that was read before and must be sent again, never empty.
#[derive(Debug, Default)]
struct Replay {
    pieces: VecDeque<Bytes>,
    /// For the copy among the pieces.
    charge: Option<ReplayCharge>,
}

/// The body of one downstream request, without trailers.
#[derive(Debug)]
pub struct RequestBody {
    /// Data that was read before and must be sent again. On the heap, because it is rare.
    replay: Option<Box<Replay>>,
    source: BodySource,
    /// Bytes received so far, if there is a body.
    received: Option<Arc<AtomicU64>>,
    /// On the heap, because most bodies never wait for their client.
    pace: Option<Box<UploadPace>>,
    has_pace: bool,
}

/// Where the data comes from.
#[derive(Debug)]
enum BodySource {
    Empty,
    Http1(Box<IncomingBody>),
    Http2(Http2Body),
}

impl RequestBody {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            replay: None,
            source: BodySource::Empty,
            received: None,
            pace: None,
            has_pace: true,
        }
    }

    /// The body of a request that came in over HTTP/1.1.
    pub(crate) fn from_http1(incoming: IncomingBody) -> Self {
        Self {
            source: BodySource::Http1(Box::new(incoming)),
            received: Some(Arc::default()),
            ..Self::empty()
        }
    }

    /// The body of a request that came in over HTTP/2, and what the stream of the client keeps of it. The client may
    /// wait for a 100 before it sends the body.
    pub(crate) fn from_http2(
        stream: RecvStream,
        expects_continue: bool,
    ) -> (Self, Option<UnreadBody>) {
        if stream.is_end_stream() {
            return (Self::empty(), None);
        }
        let (incoming, unread) = Http2Body::new(stream, expects_continue);
        let body = Self {
            source: BodySource::Http2(incoming),
            received: Some(Arc::default()),
            ..Self::empty()
        };
        (body, Some(unread))
    }

    /// The number of bytes received from the client so far, if there is a body.
    #[must_use]
    pub fn received(&self) -> Option<Arc<AtomicU64>> {
        self.received.clone()
    }

    /// Whether nothing more can be read from it.
    pub(super) fn is_end_stream(&self) -> bool {
        self.replay.is_none()
            && match &self.source {
                BodySource::Empty => true,
                BodySource::Http1(incoming) => incoming.is_end_stream(),
                BodySource::Http2(incoming) => incoming.is_end_stream(),
            }
    }

    /// The same body, which may come as slowly as the client likes: the response has begun, so that the client may have
    /// to read it before it sends more.
    pub(super) fn without_pace(self) -> Self {
        Self {
            pace: None,
            has_pace: false,
            ..self
        }
    }

    /// Puts data that was read already back in front: the copy of what was sent, then what was not sent.
    fn put_back(&mut self, sent: ReplayCopy, pending: Option<Bytes>) {
        let ReplayCopy { bytes, charge } = sent;
        for piece in pending.into_iter().chain([bytes.into()]) {
            if !piece.is_empty() {
                self.replay.get_or_insert_default().pieces.push_front(piece);
            }
        }
        if let (Some(replay), Some(charge)) = (&mut self.replay, charge) {
            replay.charge = Some(charge);
        }
    }

    /// The next piece of data, never empty; `None` only at a complete end.
    ///
    /// # Errors
    ///
    /// When the body ended early, or comes too slowly.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UploadError>>> {
        let polled = self.poll_source(cx);
        if polled.is_pending()
            && self.has_pace
            && let Some(received) = &self.received
        {
            let pace = self
                .pace
                .get_or_insert_with(|| Box::new(UploadPace::new(received)));
            return pace
                .poll_too_slow(cx, received)
                .map(|()| Some(Err(UploadError::TooSlow)));
        }
        polled
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UploadError>>> {
        if let Some(replay) = &mut self.replay {
            let data = replay.pieces.pop_front();
            if replay.pieces.is_empty() {
                self.replay = None;
            }
            if let Some(data) = data {
                return Poll::Ready(Some(Ok(data)));
            }
        }
        let data = match &mut self.source {
            BodySource::Empty => None,
            BodySource::Http1(incoming) => {
                ready!(incoming.poll_data(cx)).map(|data| data.map_err(UploadError::Http1))
            }
            BodySource::Http2(incoming) => ready!(incoming.poll_data(cx)),
        };
        if let (Some(Ok(data)), Some(received)) = (&data, &self.received) {
            received.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(data)
    }
}

/// One request body while it is sent to one HTTP/2 stream or, after a refusal, to the next one.
#[derive(Debug)]
pub(super) struct Upload {
    /// `None` after [`Upload::take_rest`].
    body: Option<RequestBody>,
    sent: ReplayBuffer,
    /// Data that was read and not sent yet.
    pending: Option<Bytes>,
    stream: Option<SendStream<Bytes>>,
}

/// The data sent so far, while all of it is kept and can be sent again.
#[derive(Debug)]
enum ReplayBuffer {
    Kept(ReplayCopy),
    /// A part of it was not kept.
    TooLong,
}

/// A copy of data. Not the data itself, because a slice of a client's frame keeps the whole buffer that it
/// was read into: a thousand small frames would hold far more than their bytes.
#[derive(Debug, Default)]
struct ReplayCopy {
    bytes: Vec<u8>,
    /// For the capacity of `bytes`. `None` if nothing may be kept.
    charge: Option<ReplayCharge>,
}

/// Bytes that copies of request bodies may use at once. Without a bound, 100 unfinished uploads of one
/// client would hold 100 times `limits.replayBytes`.
#[derive(Debug)]
pub struct ReplayBudget {
    max: usize,
    used: AtomicUsize,
    /// Nothing more is taken while memory is short. `None` for a part of another budget.
    memory: Option<Arc<MemoryPressure>>,
}

/// The budget of one client connection, which is also a part of the budget of the process.
#[derive(Debug)]
pub(super) struct ClientReplayBudget {
    max_of_request: usize,
    client: ReplayBudget,
    process: Arc<ReplayBudget>,
    counters: Arc<Counters>,
}

/// Bytes taken from a budget, given back when dropped.
#[derive(Debug)]
struct ReplayCharge {
    budget: Arc<ClientReplayBudget>,
    bytes: usize,
}

/// How an upload ended.
#[derive(Debug)]
pub(super) enum UploadEnd {
    /// All of the body was sent.
    Complete,
    /// The apiserver accepts no more of it.
    Stopped,
    /// The client did not finish it. The stream was reset, so the apiserver cannot mistake the body for a complete
    /// one.
    Failed(UploadError),
}

impl Upload {
    /// An upload that keeps a copy of the data it sends, as far as `budget` allows.
    pub(super) fn new(body: RequestBody, budget: &Arc<ClientReplayBudget>) -> Self {
        let charge = (!body.is_end_stream()).then(|| ReplayCharge {
            budget: Arc::clone(budget),
            bytes: 0,
        });
        Self::with_charge(body, charge)
    }

    /// An upload that cannot be sent again once a part of it was sent.
    pub(super) fn without_copy(body: RequestBody) -> Self {
        Self::with_charge(body, None)
    }

    fn with_charge(body: RequestBody, charge: Option<ReplayCharge>) -> Self {
        Self {
            body: Some(body),
            sent: ReplayBuffer::Kept(ReplayCopy {
                bytes: Vec::new(),
                charge,
            }),
            pending: None,
            stream: None,
        }
    }

    /// Whether the request has no body.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.body.as_ref().is_none_or(RequestBody::is_end_stream)
    }

    /// Sets the stream to send on.
    pub(super) fn start(&mut self, stream: SendStream<Bytes>) {
        self.stream = Some(stream);
    }

    /// Stops sending. Returns the stream if the upload is not finished.
    pub(super) fn stop(&mut self) -> Option<SendStream<Bytes>> {
        self.stream.take()
    }

    /// The rest of the upload, for a task of its own; it cannot be sent again.
    pub(super) fn take_rest(&mut self, stream: SendStream<Bytes>) -> Self {
        Self {
            body: self.body.take().map(RequestBody::without_pace),
            sent: ReplayBuffer::TooLong,
            pending: self.pending.take(),
            stream: Some(stream),
        }
    }

    /// The same upload from its beginning. `None` if a part of it was not kept.
    pub(super) fn rewind(self, budget: &Arc<ClientReplayBudget>) -> Option<Self> {
        self.into_body().map(|body| Self::new(body, budget))
    }

    /// The body from its beginning, to send it over HTTP/1.1. `None` if a part of it was not kept.
    pub(super) fn into_body(self) -> Option<RequestBody> {
        let ReplayBuffer::Kept(sent) = self.sent else {
            return None;
        };
        let mut body = self.body?;
        body.put_back(sent, self.pending);
        Some(body)
    }

    /// Sends as much as the apiserver accepts now. Pending forever after the upload has ended.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        let (Some(stream), Some(body)) = (&mut self.stream, &mut self.body) else {
            return Poll::Pending;
        };
        let end = loop {
            let Some(piece) = &mut self.pending else {
                if stream.poll_reset(cx).is_ready() {
                    break UploadEnd::Stopped;
                }
                match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) => self.pending = Some(data),
                    Some(Err(error)) => {
                        stream.send_reset(Reason::CANCEL);
                        break UploadEnd::Failed(error);
                    }
                    None => {
                        break if stream.send_data(Bytes::new(), true).is_ok() {
                            UploadEnd::Complete
                        } else {
                            UploadEnd::Stopped
                        };
                    }
                }
                continue;
            };
            stream.reserve_capacity(piece.len());
            let mut capacity = stream.capacity();
            while capacity == 0 {
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(granted)) => capacity = granted,
                    Some(Err(_)) | None => break,
                }
            }
            let part = piece.split_to(capacity.min(piece.len()));
            if part.is_empty() {
                break UploadEnd::Stopped;
            }
            if piece.is_empty() {
                self.pending = None;
            }
            self.sent.keep(&part);
            if stream.send_data(part, false).is_err() {
                break UploadEnd::Stopped;
            }
        };
        self.stream = None;
        Poll::Ready(end)
    }
}

impl ReplayBuffer {
    fn keep(&mut self, part: &Bytes) {
        if let Self::Kept(copy) = self
            && !copy.append(part)
        {
            *self = Self::TooLong;
        }
    }
}

impl ReplayCopy {
    /// Whether `part` was appended.
    fn append(&mut self, part: &Bytes) -> bool {
        let length = self.bytes.len().saturating_add(part.len());
        let has_room = length <= self.bytes.capacity() || self.grow(length);
        if has_room {
            self.bytes.extend_from_slice(part);
        }
        has_room
    }

    /// Makes room for this many bytes, if the budget has it.
    fn grow(&mut self, length: usize) -> bool {
        let Some(charge) = &mut self.charge else {
            return false;
        };
        let max = charge.budget.max_of_request;
        if length > max {
            return false;
        }
        // Doubled, so that many small parts are copied few times.
        let doubled = self.bytes.capacity().saturating_mul(2);
        let capacity = length.max(doubled).min(max);
        if !charge.grow(capacity) {
            let limits_hit = &charge.budget.counters.limits_hit;
            limits_hit.count(Limit::ReplayCopies);
            return false;
        }
        self.bytes.reserve_exact(capacity - self.bytes.len());
        true
    }
}

impl ReplayBudget {
    /// The budget of one process.
    #[must_use]
    pub fn of_process(memory: Arc<MemoryPressure>) -> Self {
        Self::new(MAX_REPLAY_BYTES_OF_PROCESS, Some(memory))
    }

    fn new(max: usize, memory: Option<Arc<MemoryPressure>>) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
            memory,
        }
    }

    /// Whether this many bytes were free and are now taken.
    fn take(&self, bytes: usize) -> bool {
        if self.memory.as_ref().is_some_and(|memory| memory.is_short()) {
            return false;
        }
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl ClientReplayBudget {
    pub(super) fn new(
        limits: &Limits,
        process: Arc<ReplayBudget>,
        counters: Arc<Counters>,
    ) -> Self {
        let of_client = limits
            .replay_bytes
            .saturating_mul(FULL_REPLAY_COPIES_PER_CLIENT);
        Self {
            max_of_request: limits.replay_bytes,
            client: ReplayBudget::new(of_client, None),
            process,
            counters,
        }
    }
}

impl ReplayCharge {
    /// Whether the charge now is this many bytes. Otherwise it stays as it was.
    fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let ClientReplayBudget {
            client, process, ..
        } = &*self.budget;
        if !client.take(more) {
            return false;
        }
        if !process.take(more) {
            client.give_back(more);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for ReplayCharge {
    fn drop(&mut self) {
        // The budget of the process is shared by all workers, so it is left alone when nothing was taken.
        if self.bytes > 0 {
            self.budget.client.give_back(self.bytes);
            self.budget.process.give_back(self.bytes);
        }
    }
}

/// How many requests of one client connection may keep `limits.replayBytes` each. Usual request bodies are
/// a few KiB, so that thousands of them have room.
const FULL_REPLAY_COPIES_PER_CLIENT: usize = 4;
/// This is an eighth of the memory in the manifests, and as much as the largest value of `limits.replayBytes`.
const MAX_REPLAY_BYTES_OF_PROCESS: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(replay_bytes: usize, process: &Arc<ReplayBudget>) -> Arc<ClientReplayBudget> {
        let limits = Limits {
            replay_bytes,
            ..Limits::default()
        };
        let (process, counters) = (Arc::clone(process), Arc::default());
        Arc::new(ClientReplayBudget::new(&limits, process, counters))
    }

    fn buffer(budget: &Arc<ClientReplayBudget>) -> ReplayBuffer {
        ReplayBuffer::Kept(ReplayCopy {
            bytes: Vec::new(),
            charge: Some(ReplayCharge {
                budget: Arc::clone(budget),
                bytes: 0,
            }),
        })
    }

    fn is_kept(buffer: &ReplayBuffer) -> bool {
        matches!(buffer, ReplayBuffer::Kept(_))
    }

    #[test]
    fn replay_buffer_holds_no_buffer_of_the_client() {
        let process = Arc::new(ReplayBudget::of_process(Arc::default()));
        let mut sent = buffer(&budget(3, &process));
        let read = Bytes::from(vec![b'x'; 64 * 1024]);
        for at in 0..3 {
            sent.keep(&read.slice(at..=at));
        }
        assert!(read.is_unique(), "a kept byte holds the whole buffer");
        assert!(matches!(&sent, ReplayBuffer::Kept(copy) if copy.bytes.len() == 3));
        sent.keep(&read.slice(..1));
        assert!(!is_kept(&sent));
        assert_eq!(process.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn copies_stay_within_client_and_process_budgets() {
        const REQUEST: usize = 1024;
        let process = Arc::new(ReplayBudget::new(6 * REQUEST, None));
        let clients = [budget(REQUEST, &process), budget(REQUEST, &process)];
        let full = Bytes::from(vec![b'x'; REQUEST]);
        let mut copies = Vec::new();
        for client in &clients {
            for _ in 0..5 {
                let mut copy = buffer(client);
                copy.keep(&full);
                copies.push(copy);
            }
        }
        let kept: Vec<_> = copies.iter().map(is_kept).collect();
        // Four of the first client, then the two that the process has left.
        let of_first = [true, true, true, true, false];
        let of_second = [true, true, false, false, false];
        assert_eq!(kept, [of_first, of_second].concat());
        drop(copies);
        assert_eq!(process.used.load(Ordering::Relaxed), 0);
        let mut copy = buffer(&clients[1]);
        copy.keep(&full);
        assert!(is_kept(&copy));
    }
}
