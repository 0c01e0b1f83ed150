//! Joins two upgraded connections into one plain pipe, with half-close.
//!
//! An orderly end one way is passed on, and the other way may go on for a bounded time. Anything else,
//! a TLS stream that ends without `close_notify` included, ends both ways at once and without
//! `close_notify`, so that what was cut never looks complete.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    time::timeout,
};

/// What went through a tunnel.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Carried {
    /// Bytes from the client to the apiserver.
    pub(super) up: u64,
    /// Bytes from the apiserver to the client.
    pub(super) down: u64,
}

/// Copies both ways until both have ended, one has failed, or the second has gone on for `rest` after
/// the end of the first.
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
            Err(error) => Err(error),
            Ok(()) => {
                let second = async { if second_is_up { up.await } else { down.await } };
                timeout(rest, second).await.unwrap_or_else(|_| {
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the other half of the tunnel did not end",
                    ))
                })
            }
        }
    };
    (carried, result)
}

/// Copies one way to its orderly end and passes the end on.
async fn copy<R, W>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    carried: &mut u64,
) -> io::Result<()>
where
    R: AsyncRead,
    W: AsyncWrite,
{
    let mut buffer = vec![0; BUFFER].into_boxed_slice();
    loop {
        let read = from.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        to.write_all(bytes).await?;
        to.flush().await?;
        *carried += bytes.len() as u64;
    }
    to.shutdown().await
}

/// One full TLS record.
const BUFFER: usize = 16 * 1024;
