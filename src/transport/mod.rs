//! What both legs have under their HTTP: reads that take all the socket has, writes that leave together.
//!
//! rustls reads 4 KiB at a time, and h2 hands over every frame with a body on its own. Left alone, that
//! is five reads for one full TLS record and one record and one system call for each small response.

mod ahead;
mod cork;
mod halves;
mod readable;

#[cfg(test)]
mod tests;

pub(crate) use ahead::Ahead;
pub(crate) use cork::{Cork, Seal};
pub(crate) use halves::Half;
pub(crate) use readable::Readable;
#[cfg(test)]
pub(crate) use tests::Unsealed;
