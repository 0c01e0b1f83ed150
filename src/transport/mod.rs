//! What both legs have under their HTTP: reads that take all the socket has, writes that leave together.
//!
//! rustls reads 4 KiB at a time, and h2 hands over every frame with a body on its own. Left alone, that
//! is five reads for one full TLS record and one record and one system call for each small response.

mod halves;
mod read_ahead;
mod readable;
mod write_batcher;

#[cfg(test)]
mod tests;

pub(crate) use halves::SharedIo;
pub(crate) use read_ahead::ReadAhead;
pub(crate) use readable::Readable;
#[cfg(test)]
pub(crate) use tests::PlainStream;
pub(crate) use write_batcher::{TlsWriter, WriteBatcher};
