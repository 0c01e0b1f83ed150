//! An HTTP/2 client that shows resets, GOAWAY frames and pings.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    task::JoinHandle,
};

use super::TlsConnection;
use crate::{
    frames::{ACK, Frame, FrameTap, kind},
    within,
};

/// One HTTP/2 connection; dropping it closes the connection.
#[derive(Debug)]
pub struct Http2 {
    send: SendRequest<Bytes>,
    seen: Arc<watch::Sender<Seen>>,
    driver: JoinHandle<()>,
}

/// The frames of the server except HEADERS and DATA, and how the connection ended.
#[derive(Debug, Default)]
struct Seen {
    frames: Vec<Frame>,
    end: Option<Result<(), String>>,
}

impl Seen {
    fn pings(&self) -> usize {
        self.frames
            .iter()
            .filter(|frame| frame.kind == kind::PING && !frame.has(ACK))
            .count()
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Http2Response {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: Option<HeaderMap>,
}

impl Http2Response {
    /// The body as text, for messages and substrings.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Http2 {
    /// Starts HTTP/2 on this stream, with windows and a header limit that are large enough for every test.
    ///
    /// # Panics
    ///
    /// When the server does not respond to the preface.
    pub async fn new(tls: TlsConnection) -> Self {
        let mut builder = Builder::new();
        builder
            .initial_window_size(4 << 20)
            .initial_connection_window_size(64 << 20)
            .max_header_list_size(10 << 20);
        Self::with(&builder, tls).await
    }

    /// Starts HTTP/2 on this stream with these settings, for instance small windows.
    ///
    /// # Panics
    ///
    /// When the server does not respond to the preface.
    pub async fn with(builder: &Builder, tls: TlsConnection) -> Self {
        let seen = Arc::new(watch::Sender::new(Seen::default()));
        let tapped = Tapped {
            inner: tls,
            tap: FrameTap::from_server(),
            seen: Arc::clone(&seen),
        };
        let (send, connection) = within("an HTTP/2 handshake", builder.handshake(tapped))
            .await
            .expect("an HTTP/2 connection");
        let ended = Arc::clone(&seen);
        let driver = tokio::spawn(async move {
            let end = connection.await.map_err(|err| err.to_string());
            ended.send_modify(|seen| seen.end = Some(end));
        });
        Self { send, seen, driver }
    }

    /// Begins a request once the server allows another stream.
    ///
    /// # Errors
    ///
    /// When the connection accepts no more requests.
    ///
    /// # Panics
    ///
    /// When the server allows no stream in time.
    pub async fn begin(
        &self,
        request: Request<()>,
        end_of_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut send = within("room for a stream", self.send.clone().ready()).await?;
        send.send_request(request, end_of_stream)
    }

    /// Sends a request with a body and waits for the whole response.
    ///
    /// # Errors
    ///
    /// When the stream is reset or the connection ends. [`h2::Error::reason`] has the code.
    ///
    /// # Panics
    ///
    /// When no response arrives in time.
    pub async fn request(&self, request: Request<Bytes>) -> Result<Http2Response, h2::Error> {
        let (parts, body) = request.into_parts();
        let (response, mut stream) = self
            .begin(Request::from_parts(parts, ()), body.is_empty())
            .await?;
        if !body.is_empty() {
            // A server that has already responded may refuse the body; the response shows it.
            drop(stream.send_data(body, true));
        }
        whole(within("a response", response).await?).await
    }

    /// Sends GET and waits for the whole response. `url` is absolute; its authority becomes `:authority`.
    ///
    /// # Errors
    ///
    /// As for [`request`](Self::request).
    ///
    /// # Panics
    ///
    /// When no response arrives in time or `url` is not valid.
    pub async fn get(&self, url: &str) -> Result<Http2Response, h2::Error> {
        self.request(Request::get(url).body(Bytes::new()).expect("a URL"))
            .await
    }

    /// Sends GET and waits for the head of the response only.
    ///
    /// # Errors
    ///
    /// As for [`request`](Self::request).
    ///
    /// # Panics
    ///
    /// When no response arrives in time or `url` is not valid.
    pub async fn open(&self, url: &str) -> Result<http::Response<RecvStream>, h2::Error> {
        let (response, _) = self
            .begin(Request::get(url).body(()).expect("a URL"), true)
            .await?;
        within("the head of a response", response).await
    }

    /// How many pings the server sent.
    #[must_use]
    pub fn pings(&self) -> usize {
        self.seen.borrow().pings()
    }

    /// Waits until the server has sent this many pings.
    pub async fn wait_for_pings(&self, wanted: usize) {
        let enough = |seen: &Seen| (seen.pings() >= wanted).then_some(());
        self.wait(&format!("{wanted} pings"), enough).await;
    }

    /// Every frame that the server has sent, except HEADERS and DATA.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        self.seen.borrow().frames.clone()
    }

    /// Waits until the server has sent a frame of this type.
    pub async fn frame(&self, wanted: u8) -> Frame {
        let find = |seen: &Seen| {
            seen.frames
                .iter()
                .find(|frame| frame.kind == wanted)
                .cloned()
        };
        self.wait(&format!("a frame of type {wanted}"), find).await
    }

    /// Waits for the first GOAWAY and returns its code.
    ///
    /// # Panics
    ///
    /// When none arrives in time.
    pub async fn goaway(&self) -> Reason {
        self.frame(kind::GOAWAY)
            .await
            .error_code()
            .expect("a GOAWAY has a code")
            .into()
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    ///
    /// When the connection did not end cleanly: the error of h2.
    pub async fn end(&self) -> Result<(), String> {
        self.wait("the end of the connection", |seen| seen.end.clone())
            .await
    }

    async fn wait<T>(&self, what: &str, mut find: impl FnMut(&Seen) -> Option<T>) -> T {
        let mut found = None;
        let mut changes = self.seen.subscribe();
        let done = changes.wait_for(|seen| {
            found = find(seen);
            found.is_some()
        });
        drop(
            within(what, done)
                .await
                .expect("the sender lives as long as the connection"),
        );
        found.expect("the wait ends only after a match")
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Waits for the rest of a response.
///
/// # Errors
///
/// When the stream is reset or the connection ends.
///
/// # Panics
///
/// When it does not arrive in time.
pub async fn whole(response: http::Response<RecvStream>) -> Result<Http2Response, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = within("data", stream.data()).await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = within("trailers", stream.trailers()).await?;
    Ok(Http2Response {
        status: parts.status,
        headers: parts.headers,
        body: body.into(),
        trailers,
    })
}

#[derive(Debug)]
struct Tapped {
    inner: TlsConnection,
    tap: FrameTap,
    seen: Arc<watch::Sender<Seen>>,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let mut frames = self.tap.feed(&buf.filled()[before..]);
        frames.retain(|frame| !matches!(frame.kind, kind::HEADERS | kind::DATA));
        if !frames.is_empty() {
            self.seen
                .send_modify(|seen| seen.frames.append(&mut frames));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tapped {
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
