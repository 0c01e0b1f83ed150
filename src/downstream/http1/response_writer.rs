//! Writes one response: its head, and its body as it comes.

use std::{
    future::Future as _,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame};
use tokio::{
    io::AsyncWrite as _,
    time::{Instant, Sleep, sleep},
};

use super::{super::CLIENT_STALL, ServeError};
use crate::http1::{Outgoing, ResponseFraming, Wire};

/// A response that is being written. It asks the body for more only when the client has taken the bytes before.
#[derive(Debug)]
pub(super) struct ResponseWriter<B> {
    outgoing: Outgoing,
    body: B,
    framing: ResponseFraming,
    accepts_trailers: bool,
    /// Whether the response is a 101, so that a tunnel follows.
    pub(super) is_switch: bool,
    state: WriteState,
    /// Made when the response first waits for its client, because most responses never do.
    tick: Option<Pin<Box<Sleep>>>,
    /// Whether the client has taken something since the last tick, or had nothing to take.
    has_progressed: bool,
    /// Ticks in a row without progress.
    silent_ticks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteState {
    Body,
    /// All of the response is in `outgoing`.
    Complete,
    /// The body ended early. The bytes before its end are still written.
    Aborted,
}

impl<B: Body<Data = Bytes> + Unpin> ResponseWriter<B> {
    pub(super) fn new(
        head: BytesMut,
        framing: ResponseFraming,
        body: B,
        accepts_trailers: bool,
    ) -> Self {
        let has_body = !matches!(
            framing,
            ResponseFraming::NoBody | ResponseFraming::Length(0)
        );
        Self {
            outgoing: Outgoing::new(head),
            body,
            framing,
            accepts_trailers,
            is_switch: false,
            state: if has_body {
                WriteState::Body
            } else {
                WriteState::Complete
            },
            tick: None,
            has_progressed: false,
            silent_ticks: 0,
        }
    }

    pub(super) fn body_mut(&mut self) -> &mut B {
        &mut self.body
    }

    pub(super) fn into_body(self) -> B {
        self.body
    }

    /// Ready when the client's side of TLS has the whole response.
    ///
    /// # Errors
    ///
    /// When it must not look complete.
    pub(super) fn poll_write(
        &mut self,
        wire: &mut Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ServeError>> {
        loop {
            self.gather(cx);
            if !self.outgoing.is_empty() {
                match wire.poll_write(&mut self.outgoing, cx) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => return self.poll_stall(cx),
                };
                self.has_progressed = true;
                continue;
            }
            // The apiserver may send nothing more for a while; the client must not wait for bytes that TLS
            // still holds.
            match wire.with_io(|mut io| Pin::new(&mut io).poll_flush(cx)) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => return self.poll_stall(cx),
            }
            self.has_progressed = true;
            match self.state {
                WriteState::Complete => return Poll::Ready(Ok(())),
                WriteState::Aborted => return Poll::Ready(Err(ServeError::Aborted)),
                WriteState::Body => return Poll::Pending,
            }
        }
    }

    /// Takes the frames that the body has now.
    fn gather(&mut self, cx: &mut Context<'_>) {
        while self.state == WriteState::Body && self.outgoing.has_room() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => self.push(frame),
                Poll::Ready(Some(Err(_))) => self.state = WriteState::Aborted,
                Poll::Ready(None) => self.finish(),
                Poll::Pending => return,
            }
            if self.state == WriteState::Body && self.body.is_end_stream() {
                self.finish();
            }
        }
    }

    fn push(&mut self, frame: Frame<Bytes>) {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers()
                    && self.framing == ResponseFraming::Chunked
                    && self.accepts_trailers
                {
                    self.outgoing.push_trailers(&trailers);
                    self.state = WriteState::Complete;
                }
                return;
            }
        };
        match &mut self.framing {
            ResponseFraming::Length(left) => match left.checked_sub(data.len() as u64) {
                Some(rest) => {
                    *left = rest;
                    self.outgoing.push_data(data);
                }
                None => self.state = WriteState::Aborted,
            },
            ResponseFraming::Chunked => self.outgoing.push_chunk(data),
            ResponseFraming::UntilClose => self.outgoing.push_data(data),
            ResponseFraming::NoBody => {}
        }
    }

    /// The body has ended in order.
    fn finish(&mut self) {
        self.state = match self.framing {
            ResponseFraming::Length(1..) => WriteState::Aborted,
            ResponseFraming::Chunked => {
                self.outgoing.push_last_chunk();
                WriteState::Complete
            }
            ResponseFraming::NoBody | ResponseFraming::Length(0) | ResponseFraming::UntilClose => {
                WriteState::Complete
            }
        };
    }

    /// Ready when the client has taken nothing for [`CLIENT_STALL`]. A client that keeps its connection alive and
    /// reads nothing would hold the memory of a response and an upstream connection for good: TCP alone ends
    /// only a connection whose peer is gone.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ServeError>> {
        // Not set again for each write, because a large download waits for its client thousands of times.
        let tick = self.tick.get_or_insert_with(|| Box::pin(sleep(TICK)));
        loop {
            ready!(tick.as_mut().poll(cx));
            if mem::take(&mut self.has_progressed) {
                self.silent_ticks = 0;
            } else {
                self.silent_ticks += 1;
            }
            if self.silent_ticks == TICKS {
                return Poll::Ready(Err(ServeError::Stalled));
            }
            tick.as_mut().reset(Instant::now() + TICK);
        }
    }
}

const TICKS: u32 = 4;
/// The connection ends at most this much later.
const TICK: Duration = Duration::from_secs(CLIENT_STALL.as_secs() / TICKS as u64);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::HeaderMap;
    use tokio::{
        io::{AsyncReadExt as _, DuplexStream, duplex},
        sync::mpsc,
        time::timeout,
    };

    use super::*;

    /// A body of the frames that come on a channel; an `Err` is an aborted one.
    struct ChannelBody(mpsc::UnboundedReceiver<Result<Frame<Bytes>, ()>>);

    impl Body for ChannelBody {
        type Data = Bytes;
        type Error = ();

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
            self.0.poll_recv(cx)
        }
    }

    type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, ()>>;

    fn open(
        framing: ResponseFraming,
        room: usize,
    ) -> (Frames, ResponseWriter<ChannelBody>, Wire, DuplexStream) {
        let (frames, body) = mpsc::unbounded_channel();
        let (near, far) = duplex(room);
        let writer = ResponseWriter::new("head".into(), framing, ChannelBody(body), true);
        (frames, writer, Wire::new(Box::new(near)), far)
    }

    fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, ()> {
        Ok(Frame::data(bytes.into()))
    }

    /// The bytes that the client gets of a body of these frames, and whether the response is complete.
    async fn written(
        framing: ResponseFraming,
        frames: Vec<Result<Frame<Bytes>, ()>>,
    ) -> (String, bool) {
        let (sender, mut writer, mut wire, mut far) = open(framing, 64 * 1024);
        for frame in frames {
            sender.send(frame).unwrap();
        }
        drop(sender);
        let ended = poll_fn(|cx| writer.poll_write(&mut wire, cx)).await;
        drop(wire);
        let mut received = String::new();
        far.read_to_string(&mut received).await.unwrap();
        (received, ended.is_ok())
    }

    #[tokio::test]
    async fn body_is_framed_and_never_looks_complete_when_it_is_not() {
        use ResponseFraming::{Chunked, Length, NoBody, UntilClose};
        let two = || vec![data("ab"), data("cde")];
        let aborted = || vec![data("ab"), Err(())];
        let mut trailers = HeaderMap::new();
        trailers.insert("x", "1".parse().unwrap());
        let with_trailers = vec![data("ab"), Ok(Frame::trailers(trailers))];
        for (framing, frames, expected, is_complete) in [
            (Length(5), two(), "headabcde", true),
            (Length(6), two(), "headabcde", false),
            (Length(4), two(), "headab", false),
            (Length(0), vec![], "head", true),
            (Length(5), aborted(), "headab", false),
            (Chunked, two(), "head2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", true),
            (
                Chunked,
                vec![data(""), data("ab")],
                "head2\r\nab\r\n0\r\n\r\n",
                true,
            ),
            (Chunked, vec![], "head0\r\n\r\n", true),
            (
                Chunked,
                with_trailers,
                "head2\r\nab\r\n0\r\nx: 1\r\n\r\n",
                true,
            ),
            (Chunked, aborted(), "head2\r\nab\r\n", false),
            (UntilClose, two(), "headabcde", true),
            (UntilClose, aborted(), "headab", false),
            (NoBody, two(), "head", true),
        ] {
            let found = written(framing, frames).await;
            assert_eq!(found, (expected.to_owned(), is_complete), "{framing:?}");
        }
    }

    #[tokio::test]
    async fn pieces_of_any_size_arrive_in_order() {
        let sizes = [1, 5_000, 10, 4_096, 4_097, 70_000, 3];
        let pieces: Vec<String> = (b'a'..)
            .zip(sizes)
            .map(|(letter, size)| char::from(letter).to_string().repeat(size))
            .collect();
        let (sender, mut writer, mut wire, mut far) = open(ResponseFraming::UntilClose, 1000);
        for piece in &pieces {
            sender.send(data(piece.clone())).unwrap();
        }
        drop(sender);
        let mut received = String::new();
        let write = async {
            poll_fn(|cx| writer.poll_write(&mut wire, cx))
                .await
                .unwrap();
            drop(wire);
        };
        tokio::join!(write, async {
            far.read_to_string(&mut received).await.unwrap()
        });
        assert_eq!(received, format!("head{}", pieces.concat()));
    }

    #[tokio::test(start_paused = true)]
    async fn response_that_is_not_read_ends_after_a_minute() {
        let (sender, mut writer, mut wire, mut far) = open(ResponseFraming::Chunked, 100);
        sender.send(data(vec![b'x'; 1000])).unwrap();
        let started = Instant::now();
        let read_some = async {
            // The time runs again after each byte.
            sleep(CLIENT_STALL - Duration::from_secs(1)).await;
            far.read_u8().await.unwrap();
        };
        let write = poll_fn(|cx| writer.poll_write(&mut wire, cx));
        let (ended, ()) = tokio::join!(write, read_some);
        assert!(matches!(ended, Err(ServeError::Stalled)), "{ended:?}");
        let lasted = started.elapsed() - (CLIENT_STALL - Duration::from_secs(1));
        assert!(
            lasted >= CLIENT_STALL - TICK && lasted <= CLIENT_STALL + TICK,
            "{lasted:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silent_watch_and_slow_reader_keep_their_response() {
        let (sender, mut writer, mut wire, mut far) = open(ResponseFraming::Length(1000), 100);
        let silent = timeout(
            CLIENT_STALL * 60,
            poll_fn(|cx| writer.poll_write(&mut wire, cx)),
        );
        assert!(silent.await.is_err());
        sender.send(data(vec![b'x'; 1000])).unwrap();
        drop(sender);
        let read_slowly = async {
            // All but the last 100 bytes of head and body, which fit into the pipe.
            for _ in 0..(1004 - 100) / 2 {
                sleep(CLIENT_STALL - TICK).await;
                far.read_exact(&mut [0; 2]).await.unwrap();
            }
            // Kept open until the writer is done.
            far
        };
        let write = poll_fn(|cx| writer.poll_write(&mut wire, cx));
        let (ended, _far) = tokio::join!(write, read_slowly);
        ended.unwrap();
    }
}
