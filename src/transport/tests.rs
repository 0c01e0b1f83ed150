//! What the peer receives, in how many records, and how much memory stays in use.

use std::{
    cell::Cell,
    fmt::Debug,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

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
    fn write_record(&mut self, pieces: [&[u8]; 2]) -> io::Result<usize> {
        let record = pieces.concat();
        self.records.push(record.len());
        self.waiting.extend_from_slice(&record);
        Ok(record.len())
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

async fn connected() -> (ReadAhead, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (ReadAhead::new(near.unwrap()), far.unwrap().0)
}

/// Reads 4 KiB at a time, as rustls does.
async fn read_in_parts(ahead: &mut ReadAhead, length: usize) -> (Vec<u8>, usize) {
    let (mut bytes, mut most_ahead) = (Vec::new(), 0);
    let mut part = [0; 4096];
    while bytes.len() < length {
        let read = ahead.read(&mut part).await.unwrap();
        assert!(read > 0, "ended early");
        bytes.extend_from_slice(part.get(..read).unwrap());
        most_ahead = most_ahead.max(ahead.held());
    }
    (bytes, most_ahead)
}

#[tokio::test]
async fn bulk_is_read_ahead_and_no_byte_is_lost_or_kept() {
    let (mut ahead, mut far) = connected().await;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    let (written, (bytes, most_ahead)) =
        tokio::join!(far.write_all(&sent), read_in_parts(&mut ahead, 1_000_000));
    written.unwrap();
    assert!(bytes == sent, "the bytes read differ from the bytes sent");
    assert!(most_ahead > 4096, "no read found more than was asked for");
    assert!(waits(&mut ahead).await);
    assert_eq!(ahead.held(), 0);
    // A small message ends the reading ahead, so the next one needs no buffer.
    for _ in 0..2 {
        far.write_all(b"event").await.unwrap();
        let (bytes, most_ahead) = read_in_parts(&mut ahead, 5).await;
        assert_eq!((bytes.as_slice(), most_ahead), (b"event".as_slice(), 0));
    }
}

#[tokio::test]
async fn turn_reads_and_writes_a_bounded_number_of_bytes() {
    let (mut ahead, far) = connected().await;
    far.writable().await.unwrap();
    let mut sent = 0;
    while let Ok(written) = far.try_write(&[0; 64 * 1024]) {
        sent += written;
    }
    assert!(sent > 3 * MAX_BYTES_PER_TURN, "{sent}");
    ahead.tcp().readable().await.unwrap();
    let (mut read, mut written) = (Vec::new(), Vec::new());
    let mut part = [0; 4096];
    while read.iter().sum::<usize>() < sent {
        let mut turn = [0, 0];
        poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut part);
            while Pin::new(&mut ahead).poll_read(cx, &mut buf).is_ready() {
                turn[0] += buf.filled().len();
                buf.clear();
            }
            // The other end does not read, so that a write waits at last.
            while let Poll::Ready(Ok(count)) = Pin::new(&mut ahead).poll_write(cx, &[0; 4096]) {
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

/// Whether a read waits.
async fn waits(ahead: &mut ReadAhead) -> bool {
    let mut part = [0; 4096];
    let mut reading = pin!(ahead.read(&mut part));
    poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx).is_pending())).await
}

#[tokio::test]
async fn first_bytes_leave_no_buffer_once_they_were_read() {
    let (mut ahead, mut far) = connected().await;
    far.write_all(b"hello").await.unwrap();
    assert_eq!(ahead.first_bytes().await.unwrap(), b"hello");
    assert_eq!(read_in_parts(&mut ahead, 5).await.0, b"hello");
    assert_eq!(ahead.held(), 0);
    far.write_all(b"again").await.unwrap();
    assert_eq!(ahead.first_bytes().await.unwrap(), b"again");
    ahead.put_back(b"once ");
    assert_eq!(read_in_parts(&mut ahead, 10).await.0, b"once again");
}

#[tokio::test]
async fn idle_connection_holds_no_buffer() {
    let (mut ahead, mut far) = connected().await;
    far.write_all(&[0; 4096]).await.unwrap();
    read_in_parts(&mut ahead, 4096).await;
    assert!(waits(&mut ahead).await);
    assert_eq!(ahead.held(), 0);
    drop(far);
    let mut part = [0; 1];
    assert_eq!(
        ahead.read(&mut part).await.unwrap(),
        0,
        "the end of the stream is passed on"
    );
}
