//! What the peer receives, in how many records, and how much memory stays in use.

use std::{
    cell::Cell,
    fmt::Debug,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::{turn::MAX_BYTES_PER_TURN, *};

/// A stream without TLS that can be batched.
#[derive(Debug)]
pub(crate) struct PlainStream<S> {
    stream: S,
    waiting: Vec<u8>,
    /// The length of each record that was written.
    records: Vec<usize>,
}

impl<S> PlainStream<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            waiting: Vec::new(),
            records: Vec::new(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Debug + Send + Unpin> TlsWriter for PlainStream<S> {
    fn write_record(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.records.push(plaintext.len());
        self.waiting.extend_from_slice(plaintext);
        Ok(())
    }

    fn set_buffer_limit(&mut self, _bytes: usize) {}
}

impl<S: AsyncRead + AsyncWrite + Debug + Send + Unpin> Readable for PlainStream<S> {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Readable for DuplexStream {
    fn poll_readable(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PlainStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PlainStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        panic!("a batched stream is never written to past `write_record`")
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while !this.waiting.is_empty() {
            let sent = ready!(Pin::new(&mut this.stream).poll_write(cx, &this.waiting))?;
            this.waiting.drain(..sent);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn batched(room: usize) -> (WriteBatcher<PlainStream<DuplexStream>>, DuplexStream) {
    let (near, far) = duplex(room);
    (WriteBatcher::new(PlainStream::new(near)), far)
}

/// Writes once, while the batcher drives the writer.
async fn write(batcher: &WriteBatcher<PlainStream<DuplexStream>>, bytes: &[u8]) {
    let mut stream = batcher.clone();
    let mut all = pin!(async move { stream.write_all(bytes).await });
    poll_fn(|cx| batcher.drive(all.as_mut(), cx)).await.unwrap();
}

async fn received(far: &mut DuplexStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    far.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn writes_of_one_poll_leave_as_one_record() {
    let (batcher, mut far) = batched(64 * 1024);
    let mut stream = batcher.clone();
    let mut frames = pin!(async move {
        for _ in 0..16 {
            stream.write_all(b"frame").await?;
            stream.flush().await?;
        }
        io::Result::Ok(())
    });
    poll_fn(|cx| batcher.drive(frames.as_mut(), cx))
        .await
        .unwrap();
    assert_eq!(received(&mut far, 80).await, b"frame".repeat(16));
    batcher.inspect(|stream, held| {
        assert_eq!(stream.records, [80]);
        assert_eq!(held, 0, "a silent stream holds no buffer");
    });
}

#[tokio::test]
async fn order_is_kept_for_writes_of_any_size() {
    let (batcher, mut far) = batched(1024 * 1024);
    let mut expected = Vec::new();
    let sizes = [1, 16_384, 5, 40_000, 16_383, 1, 16_385, 100_000, 3];
    for (at, size) in sizes.into_iter().enumerate() {
        let piece = vec![u8::try_from(at).unwrap(); size];
        write(&batcher, &piece).await;
        expected.extend(piece);
    }
    assert_eq!(received(&mut far, expected.len()).await, expected);
    batcher.inspect(|stream, _| {
        assert!(stream.records.iter().all(|length| *length <= 16 * 1024));
    });
}

#[tokio::test]
async fn vectored_writes_are_taken_in_order() {
    let (batcher, mut far) = batched(64 * 1024);
    let mut stream = batcher.clone();
    let mut written = pin!(async move {
        let pieces = [b"head".as_slice(), b"", b"body"].map(io::IoSlice::new);
        poll_fn(|cx| Pin::new(&mut stream).poll_write_vectored(cx, &pieces)).await
    });
    let taken = poll_fn(|cx| batcher.drive(written.as_mut(), cx)).await;
    assert_eq!(taken.unwrap(), 8);
    assert_eq!(received(&mut far, 8).await, b"headbody");
}

#[tokio::test]
async fn writer_waits_for_a_peer_that_does_not_read() {
    let (batcher, mut far) = batched(1024);
    let mut stream = batcher.clone();
    let mut writing = pin!(async move {
        for _ in 0..100 {
            stream.write_all(&[b'x'; 10_000]).await?;
        }
        stream.shutdown().await
    });
    let stuck = poll_fn(|cx| Poll::Ready(batcher.drive(writing.as_mut(), cx).is_pending())).await;
    assert!(stuck);
    batcher.inspect(|stream, held| {
        let waiting = stream.waiting.len() + held;
        assert!(waiting < 100_000, "{waiting} bytes are held");
    });
    let (sent, bytes) = tokio::join!(
        poll_fn(|cx| batcher.drive(writing.as_mut(), cx)),
        received(&mut far, 1_000_000)
    );
    sent.unwrap();
    assert!(bytes.iter().all(|byte| *byte == b'x'));
}

#[tokio::test]
async fn turn_writes_one_batch_and_then_lets_others_run() {
    let (batcher, mut far) = batched(1024 * 1024);
    let mut stream = batcher.clone();
    let total = Cell::new(0);
    let mut writing = pin!(async {
        let data = vec![b'x'; 640 * 1024];
        while total.get() < data.len() {
            total.set(total.get() + stream.write(&data[total.get()..]).await?);
        }
        io::Result::Ok(())
    });
    let (mut written, mut turns) = (0, 0);
    poll_fn(|cx| {
        turns += 1;
        let polled = batcher.drive(writing.as_mut(), cx);
        let now = total.get();
        assert!(now - written <= MAX_BYTES_PER_TURN, "{written} {now}");
        written = now;
        polled
    })
    .await
    .unwrap();
    assert_eq!(turns, 10, "each turn wakes the next one");
    received(&mut far, 640 * 1024).await;
}

#[tokio::test]
async fn writer_gets_the_error_when_sending_fails() {
    let (batcher, far) = batched(1024);
    drop(far);
    let mut stream = batcher.clone();
    let mut writing = pin!(async move {
        loop {
            stream.write_all(b"frame").await?;
            yield_now().await;
        }
    });
    let ended: io::Result<()> = poll_fn(|cx| batcher.drive(writing.as_mut(), cx)).await;
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn shutdown_sends_what_was_written_before() {
    let (batcher, mut far) = batched(1024);
    let mut stream = batcher.clone();
    let mut leaving = pin!(async move {
        stream.write_all(b"goaway").await?;
        stream.shutdown().await
    });
    poll_fn(|cx| batcher.drive(leaving.as_mut(), cx))
        .await
        .unwrap();
    let mut bytes = Vec::new();
    far.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"goaway");
}

async fn connected() -> (PacedSocket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (PacedSocket::new(near.unwrap()), far.unwrap().0)
}

#[tokio::test]
async fn turn_reads_and_writes_a_bounded_number_of_bytes() {
    let (mut near, far) = connected().await;
    far.writable().await.unwrap();
    let mut sent = 0;
    while let Ok(written) = far.try_write(&[0; 64 * 1024]) {
        sent += written;
    }
    assert!(sent > 3 * MAX_BYTES_PER_TURN, "{sent}");
    near.tcp().readable().await.unwrap();
    let (mut read, mut written) = (Vec::new(), Vec::new());
    while read.iter().sum::<usize>() < sent {
        let mut turn = [0, 0];
        poll_fn(|cx| {
            let mut buffer = BytesMut::new();
            while let Poll::Ready(Ok((count, _))) = near.poll_read(cx, &mut buffer, 4096) {
                turn[0] += count;
                buffer.clear();
            }
            // The other end does not read, so that a write waits at last.
            while let Poll::Ready(Ok(count)) = near.poll_write(cx, &[0; 4096]) {
                turn[1] += count;
            }
            Poll::Ready(())
        })
        .await;
        read.push(turn[0]);
        written.push(turn[1]);
        yield_now().await;
    }
    assert!(
        read.iter()
            .chain(&written)
            .all(|turn| *turn <= MAX_BYTES_PER_TURN),
        "{read:?} {written:?}"
    );
    assert_eq!(read[0], MAX_BYTES_PER_TURN);
    assert_eq!(written[0], MAX_BYTES_PER_TURN);
}

#[tokio::test]
async fn read_of_an_empty_socket_takes_no_memory() {
    let (mut near, mut far) = connected().await;
    let mut buffer = BytesMut::new();
    let mut read =
        async |room| poll_fn(|cx| Poll::Ready(near.poll_read(cx, &mut buffer, room))).await;
    assert!(read(4096).await.is_pending());
    far.write_all(b"event").await.unwrap();
    drop(far);
    let (mut lengths, mut polls) = (Vec::new(), 0);
    while lengths.last() != Some(&0) {
        match read(3).await {
            Poll::Ready(read) => lengths.push(read.unwrap().0),
            Poll::Pending => yield_now().await,
        }
        polls += 1;
        assert!(polls < 1_000_000);
    }
    assert_eq!(lengths, [3, 2, 0], "the end of the stream is passed on");
    assert_eq!(buffer, "event");
}
