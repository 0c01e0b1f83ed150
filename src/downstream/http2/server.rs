//! Runs the server of h2 on one connection, and each of its streams from the request to the end of the response.
//!
//! h2 is used directly, not through hyper: the proxy needs interim responses, and has to keep a stream for a moment
//! after its response. hyper offers neither.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Buf as _;
use h2::{
    Ping, PingPong, Reason, RecvStream, SendStream,
    server::{Builder, Connection, Handshake, SendResponse},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Body;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep},
};
use tracing::debug;

use super::{super::LINGER, budget::RequestInProgress, stall::TrackedData};
use crate::upstream::UnreadBody;

/// The server side of one connection. The future ends with the connection, and starts each stream with `start`.
pub(super) struct Server<T, S> {
    state: ServerState<T>,
    start: S,
    pings: PingClock,
    drains: bool,
}

enum ServerState<T> {
    Handshake(Handshake<T, TrackedData>),
    Serving(Connection<T, TrackedData>, PingPong),
}

/// Why a connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub(in crate::downstream) enum ServerError {
    #[error("HTTP/2 failed")]
    Http2(#[from] h2::Error),
    #[error("no response to a ping within {0:?}")]
    PingTimeout(Duration),
}

impl<T, S> Server<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<RecvStream>, SendResponse<TrackedData>) + Unpin,
{
    pub(super) fn new(builder: &Builder, io: T, pings: PingClock, start: S) -> Self {
        Self {
            state: ServerState::Handshake(builder.handshake(io)),
            start,
            pings,
            drains: false,
        }
    }

    /// Sends GOAWAY. The connection ends after its streams.
    pub(super) fn drain(&mut self) {
        self.drains = true;
        if let ServerState::Serving(connection, _) = &mut self.state {
            connection.graceful_shutdown();
        }
    }
}

impl<T, S> Future for Server<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<RecvStream>, SendResponse<TrackedData>) + Unpin,
{
    type Output = Result<(), ServerError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                ServerState::Handshake(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if this.drains {
                        connection.graceful_shutdown();
                    }
                    let ping = connection
                        .ping_pong()
                        .expect("a new connection has its ping handle");
                    this.pings.restart();
                    this.state = ServerState::Serving(connection, ping);
                }
                ServerState::Serving(connection, ping) => match connection.poll_accept(cx) {
                    Poll::Ready(Some(accepted)) => {
                        let (request, respond) = accepted?;
                        (this.start)(request, respond);
                    }
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return this.pings.poll_timeout(ping, cx).map(Err),
                },
            }
        }
    }
}

/// Pings a client that has sent nothing for a while: only an answer shows that it is still there.
#[derive(Debug)]
pub(super) struct PingClock {
    interval: Duration,
    timeout: Duration,
    last_read: LastRead,
    tick: Pin<Box<Sleep>>,
    waits_for_pong: bool,
}

/// When the client last sent bytes.
#[derive(Debug, Clone)]
pub(super) struct LastRead(Arc<Mutex<Instant>>);

impl LastRead {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(super) fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn instant(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PingClock {
    /// Pings after `interval`. The client must answer within `timeout`.
    pub(super) fn new(interval: Duration, timeout: Duration, last_read: LastRead) -> Self {
        Self {
            interval,
            timeout,
            last_read,
            tick: Box::pin(sleep(interval)),
            waits_for_pong: false,
        }
    }

    fn restart(&mut self) {
        self.tick.as_mut().reset(Instant::now() + self.interval);
    }

    /// Ready when a ping was not answered in time.
    fn poll_timeout(&mut self, ping: &mut PingPong, cx: &mut Context<'_>) -> Poll<ServerError> {
        loop {
            if self.waits_for_pong {
                match ping.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waits_for_pong = false;
                        self.restart();
                    }
                    // The connection has failed and says why by itself.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.tick.as_mut().poll(cx));
                        return Poll::Ready(ServerError::PingTimeout(self.timeout));
                    }
                }
            }
            ready!(self.tick.as_mut().poll(cx));
            let next = self.last_read.instant() + self.interval;
            if next > Instant::now() {
                self.tick.as_mut().reset(next);
                continue;
            }
            if ping.send_ping(Ping::opaque()).is_err() {
                return Poll::Pending;
            }
            self.waits_for_pong = true;
            self.tick.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}

pin_project! {
    /// One stream: waits for the response of `handled`, sends it, and keeps the stream for a moment if its request is
    /// not complete.
    pub(super) struct ServerStream<F, B> {
        respond: SendResponse<TrackedData>,
        progress: Option<RequestInProgress>,
        unread: Option<UnreadBody>,
        #[pin]
        state: StreamState<F, B>,
    }
}

pin_project! {
    #[project = StreamStateProj]
    enum StreamState<F, B> {
        Handling {
            #[pin]
            handled: F,
        },
        Sending {
            response: OutgoingBody<B>,
        },
        // All of the response is in h2. Without a timer until the request turns out to be incomplete.
        Lingering {
            until: Option<Pin<Box<Sleep>>>,
        },
    }
}

/// The body of a response, and the frame of it that waits for the window of the client.
struct OutgoingBody<B> {
    body: B,
    stream: SendStream<TrackedData>,
    waiting: Option<(TrackedData, bool)>,
}

/// How the body of a response ended.
enum BodySent {
    /// h2 has all of it.
    Complete,
    /// The client has reset the stream, or must learn that the response is not complete.
    Aborted,
}

impl<F, B> ServerStream<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = TrackedData> + Unpin,
{
    /// `unread` is the body of the request, if it has one.
    pub(super) fn new(
        handled: F,
        respond: SendResponse<TrackedData>,
        progress: RequestInProgress,
        unread: Option<UnreadBody>,
    ) -> Self {
        Self {
            respond,
            progress: Some(progress),
            unread,
            state: StreamState::Handling { handled },
        }
    }
}

impl<F, B> Future for ServerStream<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data = TrackedData> + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StreamStateProj::Handling { handled } => match handled.poll(cx) {
                    Poll::Ready(response) => match begin_response(this.respond, response) {
                        Some(state) => {
                            if let Some(progress) = this.progress.take() {
                                progress.response_begins();
                            }
                            state
                        }
                        // A client that resets its upload makes `handled` fail; the request still counts as cancelled.
                        None => return Poll::Ready(()),
                    },
                    Poll::Pending => {
                        // The client has cancelled the request. Before a 100, which h2 would send even then.
                        if this.respond.poll_reset(cx).is_ready() {
                            return Poll::Ready(());
                        }
                        if (this.unread.as_ref()).is_some_and(UnreadBody::takes_continue) {
                            send_continue(this.respond);
                        }
                        return Poll::Pending;
                    }
                },
                StreamStateProj::Sending { response } => match ready!(response.poll_send(cx)) {
                    // Drops the body, so that nothing reads the request any more.
                    BodySent::Complete => StreamState::Lingering { until: None },
                    BodySent::Aborted => return Poll::Ready(()),
                },
                StreamStateProj::Lingering { until } => {
                    let Some(unread) = this.unread else {
                        return Poll::Ready(());
                    };
                    if unread.poll_discarded(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    let until = until.get_or_insert_with(|| Box::pin(sleep(LINGER)));
                    return until.as_mut().poll(cx);
                }
            };
            this.state.set(next);
        }
    }
}

/// Sends the head of a response. `None` if h2 refuses it.
fn begin_response<F, B: Body<Data = TrackedData>>(
    respond: &mut SendResponse<TrackedData>,
    response: Response<B>,
) -> Option<StreamState<F, B>> {
    let (mut head, body) = response.into_parts();
    let is_complete = body.is_end_stream();
    if !is_complete && let Some(length) = body.size_hint().exact() {
        head.headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
    if !head.headers.contains_key(header::DATE) {
        // RFC 9110 §6.6.1. kube-apiserver sends one itself, so few responses need it.
        let date = httpdate::fmt_http_date(SystemTime::now());
        if let Ok(date) = HeaderValue::try_from(date) {
            head.headers.insert(header::DATE, date);
        }
    }
    let head = Response::from_parts(head, ());
    match respond.send_response(head, is_complete) {
        Ok(_) if is_complete => Some(StreamState::Lingering { until: None }),
        Ok(stream) => Some(StreamState::Sending {
            response: OutgoingBody {
                body,
                stream,
                waiting: None,
            },
        }),
        Err(error) => {
            debug!(error = %error, "cannot send the head of a response");
            respond.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}

/// Tells the client to send the body of its request (RFC 9110 §10.1.1).
fn send_continue(respond: &mut SendResponse<TrackedData>) {
    let mut interim = Response::new(());
    *interim.status_mut() = StatusCode::CONTINUE;
    // It fails only for a status that is not interim.
    respond.send_informational(interim).ok();
}

impl<B: Body<Data = TrackedData> + Unpin> OutgoingBody<B> {
    /// Sends as much as the window of the client allows. Asks the body for a frame only after h2 has taken the one before.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<BodySent> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(BodySent::Aborted);
            }
            if self.waiting.is_some() {
                while self.stream.capacity() == 0 {
                    match ready!(self.stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(BodySent::Aborted),
                    }
                }
            }
            if let Some((data, is_last)) = self.waiting.take() {
                if self.stream.send_data(data, is_last).is_err() {
                    return Poll::Ready(BodySent::Aborted);
                }
                if is_last {
                    return Poll::Ready(BodySent::Complete);
                }
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let is_last = self.body.is_end_stream();
                        if data.has_remaining() {
                            // h2 raises this to the length of the frame. More would take the window of the connection
                            // from other streams while this one waits.
                            self.stream.reserve_capacity(1);
                            self.waiting = Some((data, is_last));
                        } else if is_last {
                            return Poll::Ready(self.end());
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.reserve_capacity(0);
                            let sent = self.stream.send_trailers(trailers);
                            return Poll::Ready(sent.into());
                        }
                    }
                },
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(BodySent::Aborted);
                }
                None => return Poll::Ready(self.end()),
            }
        }
    }

    fn end(&mut self) -> BodySent {
        self.stream.send_data(TrackedData::default(), true).into()
    }
}

impl From<Result<(), h2::Error>> for BodySent {
    fn from(sent: Result<(), h2::Error>) -> Self {
        match sent {
            Ok(()) => Self::Complete,
            Err(_) => Self::Aborted,
        }
    }
}
