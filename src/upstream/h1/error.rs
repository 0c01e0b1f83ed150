//! What can go wrong on an HTTP/1.1 connection to an apiserver.

use std::io;

use crate::upstream::UploadError;

/// Why an exchange over HTTP/1.1 has no answer, or not the whole of one.
#[derive(Debug, thiserror::Error)]
pub enum H1Error {
    /// The apiserver ended the connection where an answer was due.
    #[error("the connection was closed before the answer")]
    Closed,
    /// The connection ended in the middle of a body whose end had been announced.
    #[error("the connection was closed in the middle of the body")]
    Cut,
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// What came is no head of a response.
    #[error("the head of the response is malformed")]
    Head(#[source] httparse::Error),
    /// The head of the response is longer than any that is taken.
    #[error("the head of the response is longer than {most} bytes")]
    HeadTooLong {
        /// Bytes that are taken.
        most: usize,
    },
    /// Only answers that come before the answer came, one after the other.
    #[error("more than {most} interim responses came before the answer")]
    Interim {
        /// How many are taken.
        most: usize,
    },
    /// It is not certain where the body of the response ends (RFC 9112 §6.3).
    #[error("the end of the body is uncertain: {0}")]
    Framing(&'static str),
    /// The client's upload ended before its time.
    #[error("send the request body")]
    Upload(#[source] UploadError),
}
