//! Runs the server of h2 on one connection, and each of its streams from the request to the end of the response.
//!
//! h2 is used directly, not through hyper: the proxy needs interim responses, and has to keep a stream for a moment
//! after its response. hyper offers neither.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use bytes::Buf as _;
use h2::{
    Reason, RecvStream, SendStream,
    server::{Builder, Connection, Handshake, SendResponse},
};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Body as _;
use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep},
};
use tracing::debug;

use super::{
    budget::RequestInProgress,
    stall::{PacedBody, StallGuard, TrackedData},
};
use crate::{
    transport::{Http2Error, LINGER, PingTimer},
    upstream::UnreadBody,
};

/// The server side of one connection. The future ends with the connection, and starts each stream with `start`.
pub(super) struct Server<T, S> {
    state: ServerState<T>,
    start: S,
    pings: PingTimer,
    drains: bool,
}

enum ServerState<T> {
    Handshake(Handshake<T, TrackedData>),
    /// The future is ready when the client is no longer there.
    Serving(
        Connection<T, TrackedData>,
        Pin<Box<dyn Future<Output = Http2Error> + Send>>,
    ),
}

impl<T, S> Server<T, S>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<RecvStream>, SendResponse<TrackedData>) + Unpin,
{
    pub(super) fn new(builder: &Builder, io: T, pings: PingTimer, start: S) -> Self {
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
    type Output = Result<(), Http2Error>;

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
                    let silence = Box::pin(this.pings.clone().run(ping));
                    this.state = ServerState::Serving(connection, silence);
                }
                ServerState::Serving(connection, silence) => match connection.poll_accept(cx) {
                    Poll::Ready(Some(accepted)) => {
                        let (request, respond) = accepted?;
                        (this.start)(request, respond);
                    }
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return silence.as_mut().poll(cx).map(Err),
                },
            }
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
    body: StallGuard<B>,
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
    F: Future<Output = Response<StallGuard<B>>>,
    B: PacedBody + Unpin,
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
    F: Future<Output = Response<StallGuard<B>>>,
    B: PacedBody + Unpin,
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
                StreamStateProj::Sending { response } => match response.poll_send(cx) {
                    // Drops the body, so that nothing reads the request any more.
                    Poll::Ready(BodySent::Complete) => StreamState::Lingering { until: None },
                    Poll::Ready(BodySent::Aborted) => return Poll::Ready(()),
                    // h2 resets a stream that is dropped before its end, and discards its pending data.
                    Poll::Pending => return response.body.poll_stalled(cx),
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
fn begin_response<F, B: PacedBody + Unpin>(
    respond: &mut SendResponse<TrackedData>,
    response: Response<StallGuard<B>>,
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

impl<B: PacedBody + Unpin> OutgoingBody<B> {
    /// Sends as much as the window of the client allows. Asks the body for a frame only after h2 has taken the one
    /// before.
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
