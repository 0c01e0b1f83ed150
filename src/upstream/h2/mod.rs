//! One HTTP/2 connection to an apiserver: its requests, its pings, its end.
//!
//! The h2 crate is used directly, not through hyper, because "sent again only if provably not
//! processed" needs stream numbers and reset reasons, which hyper keeps to itself.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, RecvStream, SendStream,
    client::{Connection, ResponseFuture, SendRequest},
};
use http::{Request, Response, StatusCode, request::Parts};
use hyper::body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{
    LostCause, ResponseBody, UpstreamError,
    frames::{Heard, Overheard},
    upload::{Pumped, Upload},
};
use crate::{addr::UpstreamAddr, config::Timeouts, drain::Drain, telemetry::causes};

/// A connection on which requests can be sent.
#[derive(Debug, Clone)]
pub(super) struct H2Connection {
    send: SendRequest<Bytes>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    endpoint: UpstreamAddr,
    established: Instant,
    heard: Arc<Heard>,
    in_flight: AtomicUsize,
    /// Something happened after which no other client may use the connection.
    spoiled: AtomicBool,
    closed: AtomicBool,
}

/// One stream of a connection, from the moment it is chosen to its end.
#[derive(Debug)]
pub(super) struct Stream {
    send: SendRequest<Bytes>,
    usage: Usage,
}

/// Counts a stream in and out, and spoils the connection if the stream did not end well.
#[derive(Debug)]
struct Usage {
    state: Arc<State>,
    ended_well: bool,
    /// The stream, if its end is watched for.
    watched: Option<h2::StreamId>,
}

/// The rest of a response, and of the upload when the response overtook it.
#[derive(Debug)]
pub(super) struct Answer {
    recv: RecvStream,
    data_ended: bool,
    usage: Usage,
    upload: Option<AbortHandle>,
}

impl H2Connection {
    /// Speaks the HTTP/2 preface on an established stream, waits for the apiserver's, and keeps the
    /// connection running.
    ///
    /// # Errors
    ///
    /// When the apiserver does not speak HTTP/2 after all.
    pub(super) async fn establish<S>(
        stream: S,
        endpoint: UpstreamAddr,
        timeouts: &Timeouts,
        drain: &Drain,
    ) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let heard = Arc::new(Heard::new());
        let (send, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(RESPONSE_HEADER_BYTES)
            // None until the apiserver has said how many: what is sent before and turns out to be too
            // much would wait behind streams that never end.
            .initial_max_send_streams(0)
            .enable_push(false)
            // The connection serves one client alone, so a stalled reader of small frames can hurt
            // nobody else; the default budget would end all of its streams (h2 `too_many_data_frames`).
            .data_frame_budget(usize::MAX)
            .handshake(Overheard::new(stream, Arc::clone(&heard)))
            .await?;
        settled(&send, &mut connection).await?;
        let state = Arc::new(State {
            endpoint,
            established: Instant::now(),
            heard,
            in_flight: AtomicUsize::new(0),
            spoiled: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        let ping = connection
            .ping_pong()
            .expect("a new connection has its ping handle");
        let (interval, limit) = (
            timeouts.upstream_ping_interval,
            timeouts.upstream_ping_timeout,
        );
        let running = Arc::clone(&state);
        drain.spawn(async move {
            let ended = drive(connection, ping, &running.heard, interval, limit).await;
            running.closed.store(true, Ordering::Release);
            if let Err(error) = ended {
                debug!(upstream.address = %endpoint, error = %causes(&error), "upstream connection ended");
            }
        });
        Ok(Self { send, state })
    }

    /// Whether a new stream may be opened now.
    pub(super) fn is_open(&self) -> bool {
        !self.state.closed.load(Ordering::Acquire) && !self.state.heard.is_going_away()
    }

    /// Takes one of the streams that the apiserver allows, if one is free.
    pub(super) fn take_stream(&self) -> Option<Stream> {
        let free =
            self.state.in_flight.load(Ordering::Acquire) < self.send.current_max_send_streams();
        (free && self.is_open()).then(|| {
            self.state.in_flight.fetch_add(1, Ordering::AcqRel);
            Stream {
                send: self.send.clone(),
                usage: Usage {
                    state: Arc::clone(&self.state),
                    ended_well: false,
                    watched: None,
                },
            }
        })
    }

    pub(super) fn endpoint(&self) -> UpstreamAddr {
        self.state.endpoint
    }

    pub(super) fn established(&self) -> Instant {
        self.state.established
    }

    /// Whether another client may have this connection: nothing runs, and nothing went wrong ever.
    pub(super) fn is_spotless(&self) -> bool {
        self.is_open()
            && self.state.in_flight.load(Ordering::Acquire) == 0
            && !self.state.spoiled.load(Ordering::Acquire)
    }
}

impl Stream {
    /// Sends the request and returns the response once its head is there.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::is_unprocessed`] says whether the apiserver can have acted on it.
    pub(super) async fn exchange(
        mut self,
        head: &Parts,
        upload: &mut Upload,
        drain: &Drain,
    ) -> Result<Response<ResponseBody>, UpstreamError> {
        let endpoint = self.usage.state.endpoint;
        let unsent = |source| UpstreamError::Unsent {
            endpoint,
            source: LostCause::H2(source),
        };
        let bodyless = upload.is_empty();
        poll_fn(|cx| self.send.poll_ready(cx))
            .await
            .map_err(unsent)?;
        let (response, stream) = self
            .send
            .send_request(without_body(head), bodyless)
            .map_err(unsent)?;
        let heard = Arc::clone(&self.usage.state.heard);
        let id = response.stream_id();
        if !bodyless {
            heard.watch_for_end(id);
            self.usage.watched = Some(id);
        }
        let answered = if bodyless {
            Answered::whole(response.await)
        } else {
            race(response, stream, upload).await?
        };
        let response = answered.response.map_err(|source| {
            let refused = source.is_remote()
                && source.is_reset()
                && source.reason() == Some(h2::Reason::REFUSED_STREAM);
            if refused || heard.is_unprocessed(id) {
                UpstreamError::Refused { endpoint, source }
            } else if heard.is_unwritten(id) {
                unsent(source)
            } else {
                UpstreamError::Lost {
                    endpoint,
                    source: LostCause::H2(source),
                }
            }
        })?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.usage.spoil();
        }
        let still_uploading = answered.rest.map(|stream| {
            let mut rest = upload.take_over(stream);
            drain
                .spawn(async move { poll_fn(|cx| rest.poll_pump(cx)).await })
                .abort_handle()
        });
        let (head, recv) = response.into_parts();
        let answer = Answer {
            recv,
            data_ended: false,
            usage: self.usage,
            upload: still_uploading,
        };
        Ok(Response::from_parts(head, answer.into()))
    }
}

/// The head of a response (or why there is none), and the stream if the upload is not finished.
struct Answered {
    response: Result<Response<RecvStream>, h2::Error>,
    rest: Option<SendStream<Bytes>>,
}

impl Answered {
    fn whole(response: Result<Response<RecvStream>, h2::Error>) -> Self {
        Self {
            response,
            rest: None,
        }
    }
}

/// Uploads until the response head is there: an apiserver may answer 413 long before the end.
async fn race(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    upload: &mut Upload,
) -> Result<Answered, UpstreamError> {
    let mut response = pin!(response);
    upload.start(stream);
    poll_fn(|cx| {
        if let Poll::Ready(response) = response.as_mut().poll(cx) {
            return Poll::Ready(Ok(Answered {
                response,
                rest: upload.unfinished(),
            }));
        }
        match upload.poll_pump(cx) {
            Poll::Ready(Pumped::Failed(source)) => {
                Poll::Ready(Err(UpstreamError::Upload { source }))
            }
            // The peer takes no more; what it has to say comes as the response or its error.
            Poll::Ready(Pumped::Done | Pumped::Stopped) | Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// An HTTP/2 request of the same head; cloned, because it may have to be sent once more.
fn without_body(head: &Parts) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = head.headers.clone();
    request
}

impl Answer {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => {
                    // The frame is handed on at once, so the window it took is free again.
                    self.recv.flow_control().release_capacity(data.len()).ok();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.failed(error).map(Err)),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.recv.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => {
                self.ended();
                None
            }
            Err(error) => self.failed(error).map(Err),
        })
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    #[expect(
        clippy::unused_self,
        reason = "the length stands in the content-length field, if at all"
    )]
    pub(super) fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn ended(&mut self) {
        self.usage.ended_well = self.upload.as_ref().is_none_or(AbortHandle::is_finished);
    }

    /// What a stream error means for the body: `RST_STREAM(NO_ERROR)` behind the end of the response is
    /// how a server says "this was the whole response, stop sending" (RFC 9113 §8.1); everywhere else
    /// it is a cut. h2 gives the same error for both.
    fn failed(&mut self, error: h2::Error) -> Option<h2::Error> {
        let told_to_stop =
            error.is_remote() && error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR);
        let watched = self.usage.watched;
        if told_to_stop && watched.is_some_and(|id| self.usage.state.heard.has_ended(id)) {
            None
        } else {
            Some(error)
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // A body without content is often dropped unread.
        if self.recv.is_end_stream() {
            self.ended();
        }
        if let Some(upload) = &self.upload {
            upload.abort();
        }
    }
}

impl Usage {
    fn spoil(&self) {
        self.state.spoiled.store(true, Ordering::Release);
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        if !self.ended_well {
            self.spoil();
        }
        if let Some(stream) = self.watched {
            self.state.heard.forget(stream);
        }
        self.state.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs a new connection until the apiserver's SETTINGS have come: only they say how many streams
/// there may be.
async fn settled<S>(
    send: &SendRequest<Bytes>,
    connection: &mut Connection<S, Bytes>,
) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(ended) => Poll::Ready(ended.and(Err(h2::Reason::PROTOCOL_ERROR.into()))),
        Poll::Pending if send.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// How a connection came to an end that nobody asked for.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    #[error("HTTP/2 failed")]
    Failed(#[from] h2::Error),
    #[error("a ping stayed unanswered for {0:?}")]
    Silent(Duration),
}

/// Runs the connection until it ends or leaves a ping unanswered; its streams then fail at once.
async fn drive<S>(
    connection: Connection<S, Bytes>,
    mut ping: PingPong,
    heard: &Heard,
    interval: Duration,
    limit: Duration,
) -> Result<(), ConnectionEnd>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let liveness = async {
        loop {
            // Whatever comes in proves the peer alive, so a busy connection is never pinged.
            while heard.last_read().elapsed() < interval {
                sleep_until(heard.last_read() + interval).await;
            }
            match timeout(limit, ping.ping(Ping::opaque())).await {
                Ok(Ok(_pong)) => {}
                Ok(Err(error)) => return ConnectionEnd::from(error),
                Err(_elapsed) => return ConnectionEnd::Silent(limit),
            }
        }
    };
    tokio::select! {
        ended = connection => Ok(ended?),
        end = liveness => Err(end),
    }
}

/// Of one stream and of the whole connection. Small, because the connection serves one client: what
/// its stalled readers block is its own (kube-apiserver itself grants 256 KiB a stream).
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Room for many `Warning` lines; kube-apiserver caps them at about 4 Ki characters each answer.
const RESPONSE_HEADER_BYTES: u32 = 256 * 1024;

#[cfg(test)]
mod tests;
