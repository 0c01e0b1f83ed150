//! The byte streams below HTTP on both legs: reads take all that the socket has, writes leave together, and a silent
//! connection holds no buffer.
//!
//! h2 hands over each frame that carries a body on its own. Without this module each small response costs one TLS record and
//! one system call.
//!
//! The layers of each leg, HTTP first and the socket last:
//!
//! ```text
//! downstream HTTP/2    h2 > FrameMonitor               > WriteBatcher > TlsStream > PacedSocket > TcpStream
//! downstream HTTP/1.1  downstream::http1 > Wire                       > TlsStream > PacedSocket > TcpStream
//! upstream HTTP/2      h2 > FrameMonitor               > WriteBatcher > TlsStream > PacedSocket > TcpStream
//! upstream HTTP/1.1    upstream::h1 > Wire                            > TlsStream > PacedSocket > TcpStream
//! ```
//!
//! [`WriteBatcher::drive`] polls the connection, then sends what it wrote.

pub(crate) mod frames;
mod paced_socket;
mod tls;
mod turn;
mod write_batcher;

#[cfg(test)]
mod tests;

pub(crate) use paced_socket::{PacedSocket, Readable};
#[cfg(test)]
pub(crate) use tests::PlainStream;
pub(crate) use tls::{ClientHelloReader, TlsStream};
pub(crate) use turn::yield_turn;
pub(crate) use write_batcher::{TlsWriter, WriteBatcher};
