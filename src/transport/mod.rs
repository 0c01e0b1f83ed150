//! The byte streams below HTTP on both legs: reads take all that the socket has, writes leave together.
//!
//! rustls reads 4 KiB at a time, and h2 hands over each frame that carries a body on its own. Without
//! this module, one full TLS record costs five reads, and each small response costs one TLS record and
//! one system call.
//!
//! The layers of each leg, HTTP first and the socket last:
//!
//! ```text
//! downstream HTTP/2    h2 > FrameMonitor               > WriteBatcher > TlsStream > ReadAhead > TcpStream
//! downstream HTTP/1.1  downstream::http1 > Wire                       > TlsStream > ReadAhead > TcpStream
//! upstream HTTP/2      h2 > FrameMonitor               > WriteBatcher > TlsStream > ReadAhead > TcpStream
//! upstream HTTP/1.1    upstream::h1 > Wire                            > TlsStream > ReadAhead > TcpStream
//! ```
//!
//! [`WriteBatcher::drive`] polls the connection, then sends what it wrote.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, sink};

pub(crate) mod frames;
mod pings;
mod read_ahead;
mod turn;
mod write_batcher;

#[cfg(test)]
mod tests;

pub(crate) use pings::{Http2Error, LastRead, PingTimer};
pub(crate) use read_ahead::{ReadAhead, Readable};
#[cfg(test)]
pub(crate) use tests::PlainStream;
pub(crate) use turn::yield_turn;
pub(crate) use write_batcher::{TlsWriter, WriteBatcher};

/// Sends the last bytes of a connection, closes this side, and discards what still comes: for bytes that were not read
/// the kernel would send a reset, and the client may then not read the last ones. Limit it to [`LINGER`].
pub(crate) async fn send_last(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    copy(&mut stream.take(MAX_LINGER_BYTES), &mut sink()).await?;
    Ok(())
}

/// How long the rest of a request is read and discarded, so that its response arrives (500 ms in Go).
pub(crate) const LINGER: Duration = Duration::from_secs(1);
/// For how many bytes a client whose connection ends can still read why.
const MAX_LINGER_BYTES: u64 = 256 * 1024;
