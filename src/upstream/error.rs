//! Why a request got no answer from the apiserver, and whether it can have been processed.

use std::{error::Error, io, sync::Arc};

use super::{H1Error, VerifyError, body::UploadError};
use crate::{hosts::UpstreamAddr, metrics::Dialled};

/// Why a request got no response from an apiserver.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The name has never resolved to an address.
    #[error("no address is known for {name}")]
    NoEndpoint {
        /// The configured name.
        name: String,
    },
    /// TCP could not be established.
    #[error("connect to {endpoint}")]
    Connect {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Connect, TLS handshake and HTTP preface together took too long.
    #[error("no connection to {endpoint} within timeouts.upstreamConnect")]
    ConnectTimeout {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
    },
    /// The endpoint's certificate is not the one expected. No request byte was sent.
    #[error("verify the certificate of {endpoint}")]
    Verify {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
        /// What is wrong with it, and what was presented: a [`VerifyError`], or what rustls said.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The TLS handshake failed for another reason than the certificate.
    #[error("TLS handshake with {endpoint}")]
    Handshake {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The connection failed before any of the request was written.
    #[error("{endpoint} was gone before the request was sent")]
    Unsent {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// What went wrong.
        #[source]
        source: HttpError,
    },
    /// The apiserver said that it did not process the request: GOAWAY or `REFUSED_STREAM`.
    #[error("{endpoint} refused the request unprocessed")]
    Refused {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// The frame that said so.
        #[source]
        source: h2::Error,
    },
    /// The connection failed after the request was sent and before a response came.
    #[error("{endpoint} gave no response")]
    Lost {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// What went wrong.
        #[source]
        source: HttpError,
    },
    /// The client stopped sending its request body half-way.
    #[error("read the request body")]
    Upload {
        /// What the downstream connection said.
        #[source]
        source: UploadError,
    },
    /// A 101 that nobody asked for.
    #[error("the apiserver switched protocols unasked")]
    UnsolicitedUpgrade,
    /// The dial that this and other requests of the client waited for.
    #[error(transparent)]
    Shared(Arc<Self>),
    /// The connection speaks another protocol than was agreed.
    #[error("{endpoint} answered {what}")]
    Protocol {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// What is wrong with the answer.
        what: &'static str,
    },
}

/// Whichever HTTP implementation noticed that the connection was gone.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// HTTP/2.
    #[error(transparent)]
    H2(#[from] h2::Error),
    /// HTTP/1.1.
    #[error(transparent)]
    H1(#[from] H1Error),
}

impl UpstreamError {
    /// What a dial that ended in this error came to, as its counter has it.
    pub(super) fn as_dialled(&self) -> Dialled {
        match self {
            Self::Connect { source, .. } if source.raw_os_error().is_some() => Dialled::Refused,
            // What failed behind the handshake is wrapped, and has no number of the kernel's.
            Self::Connect { .. } | Self::Protocol { .. } | Self::UnsolicitedUpgrade => {
                Dialled::Protocol
            }
            Self::ConnectTimeout { .. } => Dialled::Timeout,
            Self::Verify { .. } => Dialled::Verify,
            Self::Handshake { .. } => Dialled::Tls,
            Self::Shared(error) => error.as_dialled(),
            Self::NoEndpoint { .. }
            | Self::Unsent { .. }
            | Self::Refused { .. }
            | Self::Lost { .. }
            | Self::Upload { .. } => Dialled::Other,
        }
    }

    /// Whether the request provably was not processed, so that sending it again is safe whatever
    /// its method (RFC 9113 §8.7: "A server MUST NOT indicate that a stream has not been processed
    /// unless it can guarantee that fact").
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::NoEndpoint { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Verify { .. }
            | Self::Handshake { .. }
            | Self::Unsent { .. }
            | Self::Refused { .. } => true,
            Self::Shared(error) => error.is_unprocessed(),
            Self::Lost { .. }
            | Self::Upload { .. }
            | Self::UnsolicitedUpgrade
            | Self::Protocol { .. } => false,
        }
    }

    /// What the verifier said, if that was the failure.
    #[must_use]
    pub fn verify_error(&self) -> Option<&VerifyError> {
        let Self::Verify { source, .. } = self else {
            return None;
        };
        source.downcast_ref()
    }

    /// Whether it was the connection that turned out unusable, so that another one may do better.
    pub(super) fn wants_another_connection(&self) -> bool {
        matches!(self, Self::Unsent { .. } | Self::Refused { .. })
    }
}
