//! Joins two upgraded connections into one plain pipe, with half-close.
//!
//! An orderly end one way is passed on, and the other way may go on for a bounded time. Anything else,
//! a TLS stream that ends without `close_notify` included, ends both ways at once and without
//! `close_notify`, so that what was cut never looks complete.

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

/// What went through a tunnel.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    /// Bytes from the client to the apiserver.
    pub(super) up: u64,
    /// Bytes from the apiserver to the client.
    pub(super) down: u64,
}

/// Copies both ways until both have ended, one was cut, or the second has gone on for `rest` after the
/// end of the first. A side that takes no more does not stop what it said before, and an apiserver that
/// has ended its half takes no more: what the client still writes is lost, and that is no failure.
pub(super) async fn join<C, A>(client: C, apiserver: A, rest: Duration) -> (Carried, io::Result<()>)
where
    C: AsyncRead + AsyncWrite + Send,
    A: AsyncRead + AsyncWrite + Send,
{
    let (client_read, client_write) = split(client);
    let (apiserver_read, apiserver_write) = split(apiserver);
    let mut carried = Carried::default();
    let result = {
        let up = copy(client_read, apiserver_write, &mut carried.up);
        let down = copy(apiserver_read, client_write, &mut carried.down);
        tokio::pin!(up, down);
        let (first, second_is_up) = tokio::select! {
            ended = &mut up => (ended, false),
            ended = &mut down => (ended, true),
        };
        match first {
            Err(broken) => Err(broken.into()),
            Ok(()) => {
                let second = async { if second_is_up { up.await } else { down.await } };
                match timeout(rest, second).await {
                    // kubectl writes once more when exec and cp are over.
                    Ok(Err(Broken::Writing(_))) if second_is_up => Ok(()),
                    Ok(ended) => ended.map_err(Into::into),
                    Err(_elapsed) => Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the other half of the tunnel did not end",
                    )),
                }
            }
        }
    };
    (carried, result)
}

/// Which end of one way failed.
#[derive(Debug)]
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Reading(error) | Broken::Writing(error) => error,
        }
    }
}

/// Copies one way to its orderly end and passes the end on.
async fn copy<R, W>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    carried: &mut u64,
) -> Result<(), Broken>
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
            // A peer that takes nothing more may have said a lot before, which is still on its way
            // through the other half. That half knows when it is over.
            loop {
                buffer.clear();
                let read = from.read_buf(&mut buffer).await;
                if read.map_err(Broken::Reading)? == 0 {
                    break;
                }
            }
            return Err(Broken::Writing(error));
        }
        *carried += buffer.len() as u64;
        empty(&mut buffer);
        match end {
            Some(Ok(())) => return to.shutdown().await.map_err(Broken::Writing),
            Some(Err(error)) => return Err(Broken::Reading(error)),
            None => {}
        }
    }
}

/// Reads what there is now, at least a byte and about four records at most: what TLS gives record by
/// record leaves together. Returns how the stream ended, if it did.
fn poll_gather<R: AsyncRead>(
    mut from: Pin<&mut R>,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<Option<io::Result<()>>> {
    loop {
        let end = match poll_read_buf(from.as_mut(), cx, buffer) {
            // Whoever says less than a record at a time waits for an answer, or for a keystroke.
            Poll::Ready(Ok(read)) if read >= RECORD && buffer.len() <= MOST - RECORD => {
                buffer.reserve(MOST - buffer.len());
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

/// Makes room for what comes next; without the room for much once no more came than a keystroke.
fn empty(buffer: &mut BytesMut) {
    if buffer.len() < RECORD && buffer.capacity() > RECORD {
        *buffer = BytesMut::with_capacity(RECORD);
    }
    buffer.clear();
}

/// What one TLS record carries (RFC 8446 §5.1).
const RECORD: usize = 16 * 1024;
/// What is gathered before it is passed on.
const MOST: usize = 4 * RECORD;

#[cfg(test)]
mod tests {
    use tokio::io::{BufStream, duplex};

    use super::*;

    const REST: Duration = Duration::from_secs(30);

    /// kube-apiserver closes both halves when a command ends; a client that reads slowly and still
    /// writes must get the rest of the output all the same.
    #[tokio::test(start_paused = true)]
    async fn a_writing_client_gets_what_the_apiserver_said_before_it_closed() {
        let (mut client, near_client) = duplex(1024);
        let (near_apiserver, mut apiserver) = duplex(64 * 1024);
        let said = vec![b'x'; 50_000];
        apiserver.write_all(&said).await.unwrap();
        drop(apiserver);
        let talk = async {
            let mut heard = vec![0; 1024];
            client.read_exact(&mut heard).await.unwrap();
            client.write_all(b"ping").await.unwrap();
            tokio::time::sleep(REST * 2).await;
            client.read_to_end(&mut heard).await.unwrap();
            drop(client);
            heard
        };
        let (heard, (carried, ended)) = tokio::join!(talk, join(near_client, near_apiserver, REST));
        assert_eq!(heard.len(), said.len());
        assert_eq!(carried.down, said.len() as u64);
        assert!(ended.is_ok(), "the apiserver had ended before: {ended:?}");
        assert_eq!(carried.up, 0, "the ping was lost");
    }

    /// TLS keeps what the socket did not take at once until it is flushed, and behind a keystroke there
    /// may be nothing for hours.
    #[tokio::test(start_paused = true)]
    async fn no_byte_waits_for_the_next() {
        let (mut client, near_client) = duplex(1024);
        let (near_apiserver, mut apiserver) = duplex(1024);
        let near_client = BufStream::new(near_client);
        let near_apiserver = BufStream::new(near_apiserver);
        let talk = async {
            let mut heard = [0; 4];
            client.write_all(b"ping").await.unwrap();
            apiserver.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"ping");
            apiserver.write_all(b"pong").await.unwrap();
            client.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"pong");
        };
        tokio::select! {
            () = talk => {}
            _ = join(near_client, near_apiserver, REST) => panic!("nobody has ended"),
            () = tokio::time::sleep(REST) => panic!("a byte was kept back"),
        }
    }

    #[tokio::test]
    async fn what_is_there_leaves_together_and_takes_room_only_for_a_while() {
        let (mut near, mut far) = duplex(2 * MOST);
        let mut buffer = BytesMut::with_capacity(RECORD);
        far.write_all(&vec![b'x'; MOST + RECORD]).await.unwrap();
        let mut gathered = Vec::new();
        while gathered.iter().sum::<usize>() < MOST + RECORD {
            let end = poll_fn(|cx| poll_gather(Pin::new(&mut near), cx, &mut buffer)).await;
            assert!(end.is_none());
            gathered.push(buffer.len());
            empty(&mut buffer);
        }
        assert_eq!(gathered, [MOST, RECORD]);
        far.write_all(b"x").await.unwrap();
        drop(far);
        let end = poll_fn(|cx| poll_gather(Pin::new(&mut near), cx, &mut buffer)).await;
        assert_eq!((end.is_none(), &*buffer), (true, &b"x"[..]));
        empty(&mut buffer);
        assert_eq!(buffer.capacity(), RECORD);
        let end = poll_fn(|cx| poll_gather(Pin::new(&mut near), cx, &mut buffer)).await;
        assert!(matches!(end, Some(Ok(()))));
    }
}
