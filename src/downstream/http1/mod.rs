//! Serves the requests of one HTTP/1.1 connection, one after the other, in the task of the connection, until it
//! ends, is idle or drains.
//!
//! Each request is framed once, by the parser of `http1`. Until the last byte of a request was read, no later byte
//! is taken for another request. If the end of a request is uncertain, the connection closes after the response.

mod head_timer;
mod response_writer;

use std::{
    future::{self, Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version, header};
use hyper::body::Body as _;
use tokio::{
    io::AsyncWrite as _,
    sync::oneshot::{self, error::TryRecvError},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use self::{
    head_timer::{HeadTimer, HeadWait},
    response_writer::ResponseWriter,
};
use super::{CLOSE_TIMEOUT, Service};
use crate::{
    config::Limits,
    ending::{EndReason, Ending},
    http1::{
        BodyDecoder, BodyEnd, IncomingBody, RequestHead, RequestHeadError, RequestParser,
        ResponseFraming, Wire, encode_response_head,
    },
    metrics::Limit,
    proxy::{self, Rejection},
    socket,
    transport::{LINGER, ReadAhead},
    upstream::RequestBody,
};

/// Why a connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("no complete request head in time")]
    HeadTimeout,
    #[error("the client closed the connection in the middle of a request")]
    ClientGone,
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The response is incomplete, and must not look complete to the client.
    #[error("the response was aborted")]
    Aborted,
    #[error("the client did not read the response")]
    Stalled,
}

/// Serves one connection until it ends, or another client needs its place. Once the drain begins, the connection
/// closes after the response to the current request, or to the first one if none has come yet.
///
/// # Errors
///
/// When the connection does not end in order.
pub(super) async fn serve(
    stream: Box<TlsStream<ReadAhead>>,
    service: Arc<Service>,
) -> Result<(), ServeError> {
    let drain = service.downstream.drain.clone();
    let downstream = Arc::clone(&service.downstream);
    let connected = Arc::clone(&downstream.connected);
    let mut serving = pin!(ClientWire::new(stream, service).serve_requests());
    let mut drains = false;
    loop {
        tokio::select! {
            ended = serving.as_mut() => return ended,
            // `HeadTimer` and `begin_response` ask whether the drain has begun; this wakes the task.
            () = drain.begun(), if !drains => drains = true,
            () = drain.deadline(), if drains => return Ok(()),
            () = proxy::certificate_ended(downstream.certificate.as_deref()) => {
                connected.set_end(Ending::by_proxy(EndReason::Certificate));
                return Ok(());
            }
            () = connected.place().closing() => {
                let ended = Box::pin(timeout(CLOSE_TIMEOUT, serving)).await;
                return ended.unwrap_or(Ok(()));
            }
        }
    }
}

/// The connection of one client.
#[derive(Debug)]
struct ClientWire {
    service: Arc<Service>,
    wire: Wire,
    parser: RequestParser,
    timer: HeadTimer,
    /// Returns the right to read, and the unread bytes, while something else reads the body of the request.
    lent: Option<oneshot::Receiver<BodyEnd>>,
    /// Whether all of the last request was read, so that the next byte belongs to another one.
    at_request_end: bool,
    /// There was a request on this connection, and its response was written.
    has_served: bool,
    /// The proxy decided to close the connection, so the next request may be on its way.
    lingers: bool,
    /// Runs since the client has closed its side.
    half_closed: Option<Pin<Box<Sleep>>>,
}

/// The response to a request, as soon as there is one. On the heap, because it needs much memory, and its response
/// may last for hours.
type Handled = Pin<Box<dyn Future<Output = Response<proxy::Body>> + Send>>;

impl ClientWire {
    fn new(stream: Box<TlsStream<ReadAhead>>, service: Arc<Service>) -> Self {
        let Limits {
            uri_bytes,
            header_bytes,
            header_fields,
            ..
        } = service.downstream.settings.limits;
        Self {
            wire: Wire::new(stream),
            // A head just over a limit reaches the proxy, which names the limit and keeps the connection.
            parser: RequestParser::new(header_fields + 1, uri_bytes + header_bytes + HEAD_SLACK),
            timer: HeadTimer::new(&service.downstream.settings.timeouts),
            service,
            lent: None,
            at_request_end: true,
            has_served: false,
            lingers: false,
            half_closed: None,
        }
    }

    async fn serve_requests(mut self) -> Result<(), ServeError> {
        loop {
            self.timer.restart();
            let Some((handled, form)) = poll_fn(|cx| self.poll_request(cx)).await? else {
                break;
            };
            let (mut writer, closes) = self.handle(handled, form).await?;
            let is_switch = writer.is_switch;
            self.write(&mut writer).await?;
            if is_switch {
                self.wire.with_io(|io| {
                    // It fails only for a dead socket, which the next read reports.
                    io.tcp().map(socket::clear_user_timeout);
                });
                let client = self.wire.into_upgraded();
                proxy::start_tunnel(writer.into_body(), client, &self.service.downstream);
                return Ok(());
            }
            drop(writer);
            if self.lent.is_some() {
                // On the heap: few responses are complete before their request is.
                Box::pin(self.wait_for_upload(closes)).await;
            }
            self.has_served = true;
            if closes || !self.at_request_end {
                break;
            }
        }
        // On the heap: it needs its memory for a second at most.
        Box::pin(self.close()).await;
        Ok(())
    }

    /// Waits for the rest of a request whose response is complete. Nothing measures its rate any more: a client
    /// that stops would hold its connection and one to the apiserver for good.
    async fn wait_for_upload(&mut self, closes: bool) {
        let Some(lent) = &mut self.lent else {
            return;
        };
        let limit = if closes {
            LINGER
        } else {
            self.service.downstream.settings.timeouts.client_idle
        };
        let end = timeout(limit, lent).await;
        self.take_back(end.ok().and_then(Result::ok));
    }

    /// Reads the next head and begins to serve its request. `None` if no request follows.
    fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(Handled, ResponseForm)>, ServeError>> {
        // Another client gets this place, and has been promised it soon: a request that begins now could be cut
        // after the apiserver has executed it.
        if self.has_served && self.service.downstream.connected.place().is_closing() {
            return Poll::Ready(Ok(None));
        }
        loop {
            match self.parser.take(&mut self.wire.unread) {
                Ok(Some(head)) => return Poll::Ready(Ok(Some(self.begin_request(head)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Ok(Some(self.refuse(error)))),
            }
            match self.wire.poll_more(cx)? {
                Poll::Ready(0) if self.wire.unread.is_empty() => return Poll::Ready(Ok(None)),
                Poll::Ready(0) => return Poll::Ready(Err(ServeError::ClientGone)),
                Poll::Ready(_) => {}
                Poll::Pending => break,
            }
        }
        // Most heads come in one piece, so there is a timer only for the others.
        let has_begun = !self.wire.unread.is_empty();
        Poll::Ready(
            match ready!(self.timer.poll(has_begun, &self.service, cx)) {
                HeadWait::Head => Err(ServeError::HeadTimeout),
                HeadWait::Idle => Ok(None),
            },
        )
    }

    /// Serves one request.
    fn begin_request(&mut self, head: RequestHead) -> (Handled, ResponseForm) {
        let service = Arc::clone(&self.service);
        let rejection = head.body.err();
        let rejection =
            rejection.map(|error| rejection_for(error, &service.downstream.settings.limits));
        let (body, expects_continue) = self.lend_body(&head);
        let form = ResponseForm {
            is_head: head.parts.method == Method::HEAD,
            accepts_trailers: head.accepts_trailers,
            // HTTP/1.0 keeps a connection only if both sides say so, and the proxy does not.
            closes: !head.keep_alive || head.parts.version == Version::HTTP_10,
            expects_continue,
        };
        let request = Request::from_parts(head.parts, body);
        let handled = async move {
            let routes = Arc::clone(&service.shared.snapshot.load().routes);
            proxy::handle(&routes, &service.downstream, request, rejection).await
        };
        (Box::pin(handled), form)
    }

    /// Refuses bytes that are no head of a request.
    fn refuse(&mut self, error: RequestHeadError) -> (Handled, ResponseForm) {
        self.at_request_end = false;
        let downstream = &self.service.downstream;
        let rejection = rejection_for(error, &downstream.settings.limits);
        let response = proxy::refuse(rejection, &downstream.connected);
        (Box::pin(future::ready(response)), ResponseForm::default())
    }

    /// Waits for the response to a request, unless the client leaves.
    async fn handle(
        &mut self,
        mut handled: Handled,
        form: ResponseForm,
    ) -> Result<(ResponseWriter<proxy::Body>, bool), ServeError> {
        let mut form = Some(form);
        poll_fn(|cx| {
            if let Poll::Ready(response) = handled.as_mut().poll(cx) {
                let form = form.take().unwrap_or_default();
                return Poll::Ready(Ok(self.begin_response(response, form)));
            }
            self.poll_client(cx).map(Err)
        })
        .await
    }

    /// The body of a request. If it has one, the right to read goes with it, and the second value says whether
    /// the client may still wait for a 100.
    fn lend_body(&mut self, head: &RequestHead) -> (RequestBody, Option<Arc<AtomicBool>>) {
        self.at_request_end = head.body == Ok(BodyDecoder::Complete);
        let Ok(decoder) = head.body else {
            return (RequestBody::empty(), None);
        };
        if self.at_request_end {
            return (RequestBody::empty(), None);
        }
        let expects = head
            .expects_continue
            .then(|| Arc::new(AtomicBool::new(true)));
        let reader = self.wire.lend_reader();
        let (incoming, end) = IncomingBody::new(reader, decoder, expects.clone());
        self.lent = Some(end);
        (RequestBody::from_http1(incoming), expects)
    }

    /// Takes the right to read back after the body of a request has ended.
    fn take_back(&mut self, end: Option<BodyEnd>) {
        self.lent = None;
        if let Some(mut end) = end {
            // A body that the apiserver did not want may have arrived already.
            while let Ok(Some(_)) = end.decoder.decode(&mut end.unread) {}
            self.at_request_end = end.decoder == BodyDecoder::Complete;
            self.wire.unread = end.unread;
        }
    }

    /// Ready once the client has gone. Bytes of its next request hide that until they are read.
    ///
    /// A client that has closed its side in order may still wait for the response, but perhaps it has gone: its watch
    /// would stay open.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<ServeError> {
        if let Some(lent) = &mut self.lent {
            let end = ready!(Pin::new(lent).poll(cx));
            self.take_back(end.ok());
        }
        if self.half_closed.is_none() {
            if !self.at_request_end || !self.wire.unread.is_empty() {
                return Poll::Pending;
            }
            match ready!(self.wire.poll_more(cx)) {
                Ok(0) => {}
                Ok(_) => return Poll::Pending,
                Err(error) => {
                    let error = error.into();
                    self.note_end(&error);
                    return Poll::Ready(error);
                }
            }
        }
        let half_closed =
            (self.half_closed).get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED_TIMEOUT)));
        ready!(half_closed.as_mut().poll(cx));
        // Before the request is dropped: its log line says how the client left.
        self.note_end(&ServeError::ClientGone);
        Poll::Ready(ServeError::ClientGone)
    }

    /// Notes how the client left, if this error says so.
    fn note_end(&self, error: &ServeError) {
        let reason = match error {
            ServeError::ClientGone => EndReason::Eof,
            ServeError::Io(error) => EndReason::from_io(error),
            ServeError::HeadTimeout | ServeError::Aborted | ServeError::Stalled => return,
        };
        let connected = &self.service.downstream.connected;
        connected.set_end(Ending::by_client(reason));
    }

    /// Writes a response to its end, unless the client leaves.
    async fn write(&mut self, writer: &mut ResponseWriter<proxy::Body>) -> Result<(), ServeError> {
        let written = poll_fn(|cx| {
            if let Poll::Ready(written) = writer.poll_write(&mut self.wire, cx) {
                return Poll::Ready(written);
            }
            self.poll_client(cx).map(Err)
        });
        // The body may have been read to its end, and must not be logged as complete.
        let written = written.await;
        written.inspect_err(|error| match error {
            ServeError::Stalled => {
                writer.body_mut().abort(Ending::by_proxy(EndReason::Stall));
                let counters = self.service.downstream.connected.counters();
                counters.limits_hit.count(Limit::ClientStall);
            }
            // An error of the body has said why already. Otherwise its length is not the one of its head.
            ServeError::Aborted => {
                writer
                    .body_mut()
                    .abort(Ending::by_apiserver(EndReason::Protocol));
            }
            ServeError::HeadTimeout | ServeError::ClientGone | ServeError::Io(_) => {
                self.note_end(error);
                writer.body_mut().abandon();
            }
        })
    }

    /// The writer of a response, and whether the connection closes after it.
    fn begin_response(
        &mut self,
        response: Response<proxy::Body>,
        form: ResponseForm,
    ) -> (ResponseWriter<proxy::Body>, bool) {
        let (head, body) = response.into_parts();
        let framing = ResponseFraming::new(form.is_head, &head, &body.size_hint());
        match self.lent.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(end) => self.take_back(end.ok()),
        }
        // The client got no 100, so it may never send the body.
        let has_no_100 =
            (form.expects_continue).is_some_and(|expects| expects.swap(false, Ordering::Relaxed));
        if has_no_100 {
            self.lent = None;
        }
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        let is_unread = match self.lent {
            // After an error, the apiserver may not read the rest, nor the client send it. What still comes is sent
            // on for as long as `wait_for_upload` allows.
            Some(_) => is_error,
            None => !self.at_request_end,
        };
        let is_switch = head.status == StatusCode::SWITCHING_PROTOCOLS;
        let downstream = &self.service.downstream;
        let closes = form.closes
            || is_unread
            || framing == ResponseFraming::UntilClose
            || (!is_switch && head.headers.contains_key(header::CONNECTION))
            || downstream.connected.place().is_closing()
            || downstream.drain.has_begun();
        self.lingers = closes && !form.closes;
        let head = encode_response_head(&head, framing, closes);
        let mut writer = ResponseWriter::new(head, framing, body, form.accepts_trailers);
        writer.is_switch = is_switch;
        (writer, closes)
    }

    /// Closes the connection in order. If the client has sent bytes that were not read, or may be about to, the
    /// proxy reads on for up to [`LINGER`]: otherwise the kernel would send a reset, and a reset makes the client
    /// lose the response (RFC 9112 §9.6).
    async fn close(&mut self) {
        let lingers = self.lingers || !self.at_request_end || !self.wire.unread.is_empty();
        let closing = async {
            poll_fn(|cx| {
                self.wire
                    .with_io(|mut io| Pin::new(&mut io).poll_shutdown(cx))
            })
            .await?;
            if lingers {
                self.wire.unread = Bytes::new();
                while poll_fn(|cx| self.wire.poll_more(cx)).await? > 0 {
                    self.wire.unread = Bytes::new();
                }
            }
            io::Result::Ok(())
        };
        // Whether the client has read the response or not, the connection ends now.
        timeout(LINGER, closing).await.ok();
    }
}

/// What a request says about the form of its response.
#[derive(Debug, Default)]
struct ResponseForm {
    is_head: bool,
    accepts_trailers: bool,
    closes: bool,
    /// Set while the client may wait for a 100.
    expects_continue: Option<Arc<AtomicBool>>,
}

fn rejection_for(error: RequestHeadError, limits: &Limits) -> Rejection {
    match error {
        RequestHeadError::Malformed => Rejection::Malformed,
        RequestHeadError::TargetTooLong => Rejection::Uri(limits.uri_bytes),
        RequestHeadError::TooManyFields => Rejection::HeaderFields(limits.header_fields),
        RequestHeadError::FieldsTooLong => Rejection::HeaderBytes(limits.header_bytes),
        RequestHeadError::HashInTarget => Rejection::Target,
        RequestHeadError::TargetCharacter => Rejection::TargetCharacter,
        RequestHeadError::TransferEncoding => Rejection::TransferEncoding,
        RequestHeadError::AmbiguousLength => Rejection::AmbiguousLength,
    }
}

/// How long a client that has closed its side may wait for the rest of its response.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(2);
/// Room for the request line and line ends, in addition to the fields and the target.
const HEAD_SLACK: usize = 16 * 1024;
