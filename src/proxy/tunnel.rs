//! Joins two upgraded connections into one byte pipe, with half-close.
//!
//! When one direction ends in order, the end is passed on, and the other direction may stay open for a
//! limited time. A failed read, or an end without `close_notify`, ends both directions at once and without
//! `close_notify`, so that aborted data never looks complete. After a failed write this direction discards
//! what it reads, so that the earlier bytes of that peer still arrive through the other direction.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    time::timeout,
};
use tokio_util::io::poll_read_buf;

use crate::{
    ending::{EndReason, Ending},
    metrics::{Connected, Limit},
};

/// The bytes that went through a tunnel.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    /// Bytes from the client to the apiserver.
    pub(super) up: u64,
    /// Bytes from the apiserver to the client.
    pub(super) down: u64,
}

/// Why a tunnel did not end in order.
#[derive(Debug)]
pub(super) struct TunnelError {
    pub(super) ending: Ending,
    pub(super) error: io::Error,
}

/// As [`join`], until another client needs the place of the connection.
pub(super) async fn join_in_place<C, A>(
    client: C,
    apiserver: A,
    half_close_timeout: Duration,
    connected: &Connected,
    carried: &mut Carried,
) -> Result<Ending, TunnelError>
where
    C: AsyncRead + AsyncWrite + Send,
    A: AsyncRead + AsyncWrite + Send,
{
    tokio::select! {
        ended = join(client, apiserver, half_close_timeout, carried) => ended,
        () = connected.place().closing() => {
            connected.counters().limits_hit.count(Limit::ClientPlaces);
            Err(TunnelError {
                ending: Ending::by_proxy(EndReason::Place),
                error: io::Error::other("another client needs the place of the connection"),
            })
        }
    }
}

/// Copies in both directions until both have ended, one has failed, or one has stayed open for
/// `half_close_timeout` after the other ended.
///
/// A peer that accepts no more bytes still gets its earlier bytes delivered. An apiserver that has ended its
/// half accepts no more: what the client writes after that is lost, and this is not a failure.
///
/// The [`Ending`] names the side that ended its half first, or that failed.
pub(super) async fn join<C, A>(
    client: C,
    apiserver: A,
    half_close_timeout: Duration,
    carried: &mut Carried,
) -> Result<Ending, TunnelError>
where
    C: AsyncRead + AsyncWrite + Send,
    A: AsyncRead + AsyncWrite + Send,
{
    let (client_read, client_write) = split(client);
    let (apiserver_read, apiserver_write) = split(apiserver);
    let up = copy(client_read, apiserver_write, &mut carried.up);
    let down = copy(apiserver_read, client_write, &mut carried.down);
    tokio::pin!(up, down);
    let (first, second_is_up) = tokio::select! {
        result = &mut up => (result, false),
        result = &mut down => (result, true),
    };
    let ended = if second_is_up {
        Ending::by_apiserver(EndReason::Eof)
    } else {
        Ending::by_client(EndReason::Eof)
    };
    match first {
        Err(error) => Err(error.of_direction(!second_is_up)),
        Ok(()) => {
            let second = async { if second_is_up { up.await } else { down.await } };
            match timeout(half_close_timeout, second).await {
                // kubectl writes once more after exec and cp have ended.
                Ok(Err(CopyError::Write(_))) if second_is_up => Ok(ended),
                Ok(Err(error)) => Err(error.of_direction(second_is_up)),
                Ok(Ok(())) => Ok(ended),
                Err(_elapsed) => Err(TunnelError {
                    ending: Ending::by_proxy(EndReason::HalfCloseTimeout),
                    error: io::Error::new(
                        io::ErrorKind::TimedOut,
                        "half-closed tunnel did not end within timeouts.halfCloseTimeout",
                    ),
                }),
            }
        }
    }
}

/// Which end of one direction failed.
#[derive(Debug)]
enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

impl CopyError {
    /// The error of the direction from the client to the apiserver (`is_up`), or of the other one.
    fn of_direction(self, is_up: bool) -> TunnelError {
        let (is_client, error) = match self {
            Self::Read(error) => (is_up, error),
            Self::Write(error) => (!is_up, error),
        };
        let reason = EndReason::from_io(&error);
        let ending = if is_client {
            Ending::by_client(reason)
        } else {
            Ending::by_apiserver(reason)
        };
        TunnelError { ending, error }
    }
}

/// Copies one direction until it ends in order, and passes the end on.
async fn copy<R, W>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    carried: &mut u64,
) -> Result<(), CopyError>
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let mut buffer = BytesMut::with_capacity(RECORD);
    loop {
        let end = poll_fn(|cx| poll_gather(Pin::new(&mut from), cx, &mut buffer)).await;
        let written = async {
            to.write_all(&buffer).await?;
            to.flush().await
        };
        if let Err(error) = written.await {
            // A peer that accepts no more bytes may have sent many before, which are still on their way
            // through the other direction. The other direction decides when the tunnel
            // ends.
            loop {
                buffer.clear();
                let read = from.read_buf(&mut buffer).await;
                if read.map_err(CopyError::Read)? == 0 {
                    break;
                }
            }
            return Err(CopyError::Write(error));
        }
        *carried += buffer.len() as u64;
        clear(&mut buffer);
        match end {
            Some(Ok(())) => return to.shutdown().await.map_err(CopyError::Write),
            Some(Err(error)) => return Err(CopyError::Read(error)),
            None => {}
        }
    }
}

/// Reads the available bytes, from one byte to about four records, so that records that TLS delivers one by
/// one leave together. Returns how the stream ended, if it did.
fn poll_gather<R: AsyncRead>(
    mut from: Pin<&mut R>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<Option<io::Result<()>>> {
    loop {
        let end = match poll_read_buf(from.as_mut(), cx, buffer) {
            // A read of less than one full TLS record (`RECORD`) means that the peer has sent all it has for now: it
            // waits for a response, or for the user to type. So another read would find nothing.
            Poll::Ready(Ok(read)) if read >= RECORD && buffer.len() <= MAX_GATHERED - RECORD => {
                buffer.reserve(MAX_GATHERED - buffer.len());
                continue;
            }
            Poll::Ready(Ok(0)) => Some(Ok(())),
            Poll::Ready(Ok(_)) => None,
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Pending if buffer.is_empty() => return Poll::Pending,
            Poll::Pending => None,
        };
        return Poll::Ready(end);
    }
}

/// Clears the buffer. Gives its memory back after a short read, because an interactive session may then be
/// quiet for hours.
fn clear(buffer: &mut BytesMut) {
    if buffer.len() < RECORD && buffer.capacity() > RECORD {
        *buffer = BytesMut::with_capacity(RECORD);
    }
    buffer.clear();
}

/// The most bytes in one TLS record (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;
/// Bytes that are gathered before they are written.
const MAX_GATHERED: usize = 4 * RECORD;

#[cfg(test)]
mod tests {
    use tokio::io::{BufStream, duplex};

    use super::*;

    const HALF_CLOSE: Duration = Duration::from_secs(30);

    /// kube-apiserver closes both halves when a command ends. A client that reads slowly and still writes
    /// must get the rest of the output.
    #[tokio::test(start_paused = true)]
    async fn writing_client_gets_all_output_after_apiserver_closed() {
        let (mut client, near_client) = duplex(1024);
        let (near_apiserver, mut apiserver) = duplex(64 * 1024);
        let output = vec![b'x'; 50_000];
        apiserver.write_all(&output).await.unwrap();
        drop(apiserver);
        let session = async {
            let mut received = vec![0; 1024];
            client.read_exact(&mut received).await.unwrap();
            client.write_all(b"ping").await.unwrap();
            tokio::time::sleep(HALF_CLOSE * 2).await;
            client.read_to_end(&mut received).await.unwrap();
            drop(client);
            received
        };
        let mut carried = Carried::default();
        let (received, result) = tokio::join!(
            session,
            join(near_client, near_apiserver, HALF_CLOSE, &mut carried)
        );
        assert_eq!(received.len(), output.len());
        assert_eq!(carried.down, output.len() as u64);
        assert!(result.is_ok(), "the apiserver had ended first: {result:?}");
        assert_eq!(carried.up, 0, "the ping was lost");
    }

    /// TLS buffers bytes that the socket did not accept until it is flushed, and after a keystroke no byte may
    /// follow for hours.
    #[tokio::test(start_paused = true)]
    async fn no_byte_waits_for_the_next_one() {
        let (mut client, near_client) = duplex(1024);
        let (near_apiserver, mut apiserver) = duplex(1024);
        let near_client = BufStream::new(near_client);
        let near_apiserver = BufStream::new(near_apiserver);
        let session = async {
            let mut received = [0; 4];
            client.write_all(b"ping").await.unwrap();
            apiserver.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"ping");
            apiserver.write_all(b"pong").await.unwrap();
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(&received, b"pong");
        };
        let mut carried = Carried::default();
        tokio::select! {
            () = session => {}
            _ = join(near_client, near_apiserver, HALF_CLOSE, &mut carried) => panic!("no side has ended"),
            () = tokio::time::sleep(HALF_CLOSE) => panic!("a byte was not flushed"),
        }
    }

    #[tokio::test]
    async fn records_are_gathered_and_memory_is_given_back() {
        let (mut near, mut far) = duplex(2 * MAX_GATHERED);
        let mut buffer = BytesMut::with_capacity(RECORD);
        far.write_all(&vec![b'x'; MAX_GATHERED + RECORD])
            .await
            .unwrap();
        let mut gathered = Vec::new();
        while gathered.iter().sum::<usize>() < MAX_GATHERED + RECORD {
            let end = poll_fn(|cx| poll_gather(Pin::new(&mut near), cx, &mut buffer)).await;
            assert!(end.is_none());
            gathered.push(buffer.len());
            clear(&mut buffer);
        }
        assert_eq!(gathered, [MAX_GATHERED, RECORD]);
        far.write_all(b"x").await.unwrap();
        drop(far);
        let end = poll_fn(|cx| poll_gather(Pin::new(&mut near), cx, &mut buffer)).await;
        assert_eq!((end.is_none(), &*buffer), (true, &b"x"[..]));
        clear(&mut buffer);
        assert_eq!(buffer.capacity(), RECORD);
        let end = poll_fn(|cx| poll_gather(Pin::new(&mut near), cx, &mut buffer)).await;
        assert!(matches!(end, Some(Ok(()))));
    }
}
