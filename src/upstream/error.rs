//! Why a request got no response, or only part of one, and whether the apiserver may have processed it.

use std::{error::Error, io, sync::Arc};

use super::{OutboundError, VerifyError};
use crate::{
    ending::{EndReason, Ending},
    hosts::UpstreamAddr,
    http1::MessageError,
    metrics::Dialled,
};

/// Why a request got no response from an apiserver.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The name has never resolved to an address.
    #[error("no address is known for {name}")]
    NoEndpoint {
        /// The configured name.
        name: String,
    },
    /// The client connection holds all upstream connections that it may hold, and each is in use.
    #[error("the client uses {max} connections to the apiserver already")]
    TooManyConnections {
        /// Connections that it may hold.
        max: usize,
    },
    /// The process has no socket for another connection to an apiserver.
    #[error("no socket is free for a connection to the apiserver")]
    NoSocket,
    /// TCP could not be established.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
        /// The error of the kernel, or of HTTP on the new connection.
        #[source]
        source: io::Error,
    },
    /// The outbound proxy has opened no connection to the apiserver.
    #[error("no connection through the outbound proxy {proxy}")]
    Outbound {
        /// The address of the proxy.
        endpoint: UpstreamAddr,
        /// Its URL, without credentials.
        proxy: String,
        /// Why not.
        #[source]
        source: OutboundError,
    },
    /// Connect, TLS handshake and HTTP preface together took too long.
    #[error("no connection to {endpoint} within timeouts.upstreamConnect")]
    ConnectTimeout {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
    },
    /// The endpoint's certificate was refused. No request byte was sent.
    #[error("cannot verify the certificate of {endpoint}")]
    Verify {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
        /// Why it was refused: a [`VerifyError`], which names the certificate, or the error of rustls.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The TLS handshake failed for a reason other than the certificate.
    #[error("the TLS handshake with {endpoint} failed")]
    Handshake {
        /// The endpoint dialled.
        endpoint: UpstreamAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The connection failed before any of the request was written.
    #[error("the connection to {endpoint} was lost before the request was sent")]
    Unsent {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// Why it failed.
        #[source]
        source: HttpError,
    },
    /// The apiserver said that it did not process the request: GOAWAY or `REFUSED_STREAM`.
    #[error("{endpoint} refused the request without processing it")]
    Refused {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// The frame that said so.
        #[source]
        source: h2::Error,
    },
    /// The connection failed after the request was sent and before a response came.
    #[error("{endpoint} sent no response")]
    Lost {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// Why it failed.
        #[source]
        source: HttpError,
    },
    /// The head of the response is larger than the proxy reads.
    #[error("the head of the response of {endpoint} is larger than {max} bytes")]
    HeadTooLarge {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// Bytes that the proxy reads.
        max: usize,
    },
    /// The response is not valid HTTP.
    #[error("the response of {endpoint} is not valid HTTP")]
    Malformed {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// What is wrong with it.
        #[source]
        source: HttpError,
    },
    /// The client did not send its request body to the end.
    #[error("cannot read the request body")]
    Upload {
        /// Why the body ended early.
        #[source]
        source: UploadError,
    },
    /// The response to a request that asked for no upgrade is a 101.
    #[error("the apiserver switched protocols without being asked")]
    UnsolicitedUpgrade,
    /// The dial that this request and others of the same client waited for failed.
    #[error(transparent)]
    Shared(Arc<Self>),
    /// The request cannot be sent in the protocol of the connection.
    #[error("cannot send the request to {endpoint}: {reason}")]
    Protocol {
        /// The endpoint of the connection.
        endpoint: UpstreamAddr,
        /// Why not.
        reason: &'static str,
    },
}

/// The error of the HTTP implementation that noticed the failure.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// HTTP/2.
    #[error(transparent)]
    H2(#[from] h2::Error),
    /// HTTP/1.1.
    #[error(transparent)]
    H1(#[from] H1Error),
}

/// Why an exchange over HTTP/1.1 has no response, or only part of one.
#[derive(Debug, thiserror::Error)]
pub enum H1Error {
    /// The apiserver closed the connection before it sent a response.
    #[error("the connection was closed before the response")]
    Closed,
    /// The response is not complete, or not valid HTTP.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Too many interim responses came before the final one.
    #[error("more than {max} interim responses came before the final response")]
    Interim {
        /// Interim responses that are accepted.
        max: usize,
    },
    /// The client did not send its request body to the end.
    #[error("cannot send the request body")]
    Upload(#[source] UploadError),
}

/// Why a request body is not complete.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The downstream HTTP/2 connection failed.
    #[error("cannot read the request body")]
    Http2(#[source] h2::Error),
    /// The downstream HTTP/1.1 connection failed, or the body is malformed.
    #[error("cannot read the request body")]
    Http1(#[source] MessageError),
    /// The client reset the stream before the end of the body.
    #[error("the client reset the request before the end of its body")]
    Reset,
    /// The client sends its body too slowly.
    #[error("the client sends the request body too slowly")]
    TooSlow,
    /// The body is longer or shorter than the client announced.
    #[error("the length of the request body differs from its content-length")]
    Length,
}

/// Why a response body is not complete.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The HTTP/1.1 connection failed.
    #[error("cannot read the response body")]
    H1(#[source] H1Error),
    /// The HTTP/2 stream or its connection failed.
    #[error("cannot read the response body")]
    H2(#[source] h2::Error),
    /// The apiserver did not reply to a ping, so the proxy closed the connection.
    #[error("the apiserver did not reply to a ping within timeouts.upstreamPingTimeout")]
    PingTimeout,
}

impl DownloadError {
    /// Who ended the response, and why.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match self {
            Self::H1(error) => error.ending(),
            Self::H2(error) => Ending::by_apiserver(h2_reason(error)),
            Self::PingTimeout => Ending::by_apiserver(EndReason::PingTimeout),
        }
    }

    /// Whether the connection ended under the response: the apiserver died, or nothing reaches it any more. False if
    /// the apiserver itself aborted this response, or sent what is no HTTP.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        match self {
            Self::H1(H1Error::Message(error)) => {
                matches!(error, MessageError::Cut | MessageError::Io(_))
            }
            Self::H1(_) => false,
            Self::H2(error) => error.is_io() || (error.is_go_away() && error.is_remote()),
            Self::PingTimeout => true,
        }
    }
}

impl HttpError {
    fn ending(&self) -> Ending {
        match self {
            Self::H1(error) => error.ending(),
            Self::H2(error) => Ending::by_apiserver(h2_reason(error)),
        }
    }
}

impl H1Error {
    fn ending(&self) -> Ending {
        match self {
            Self::Upload(error) => error.ending(),
            Self::Closed => Ending::by_apiserver(EndReason::Eof),
            Self::Message(error) => Ending::by_apiserver(message_reason(error)),
            Self::Interim { .. } => Ending::by_apiserver(EndReason::Protocol),
        }
    }
}

impl UploadError {
    /// Whether the client has left, so that no response reaches it.
    #[must_use]
    pub fn client_left(&self) -> bool {
        match self {
            Self::Reset => true,
            Self::Http2(error) => error.is_io() || error.is_go_away(),
            // Go's client closes the connection in order when it cancels a request.
            Self::Http1(error) => matches!(error, MessageError::Cut | MessageError::Io(_)),
            Self::TooSlow | Self::Length => false,
        }
    }

    fn ending(&self) -> Ending {
        match self {
            Self::TooSlow => Ending::by_proxy(EndReason::Stall),
            Self::Reset => Ending::by_client(EndReason::Cancel),
            Self::Http2(error) => Ending::by_client(h2_reason(error)),
            Self::Http1(error) => Ending::by_client(message_reason(error)),
            Self::Length => Ending::by_client(EndReason::Protocol),
        }
    }
}

fn message_reason(error: &MessageError) -> EndReason {
    match error {
        MessageError::Cut => EndReason::Eof,
        MessageError::Io(error) => EndReason::from_io(error),
        MessageError::Head(_) | MessageError::HeadTooLong { .. } | MessageError::Framing(_) => {
            EndReason::Protocol
        }
    }
}

fn h2_reason(error: &h2::Error) -> EndReason {
    match error.get_io() {
        // h2 reports so that the peer has closed the connection in order.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => EndReason::Eof,
        Some(error) => EndReason::from_io(error),
        None if error.is_go_away() && error.is_remote() => EndReason::GoAway,
        None if error.is_reset() && error.is_remote() => EndReason::Cancel,
        None => EndReason::Protocol,
    }
}

impl UpstreamError {
    /// Who is the reason that there is no response, and why.
    #[must_use]
    pub fn ending(&self) -> Ending {
        match self {
            Self::NoEndpoint { .. }
            | Self::Connect { .. }
            | Self::Outbound { .. }
            | Self::ConnectTimeout { .. }
            | Self::Verify { .. }
            | Self::Handshake { .. } => Ending::by_apiserver(EndReason::NoConnection),
            Self::TooManyConnections { .. } | Self::NoSocket => Ending::by_proxy(EndReason::Limit),
            Self::Unsent { source, .. } | Self::Lost { source, .. } => source.ending(),
            Self::Refused { source, .. } => Ending::by_apiserver(h2_reason(source)),
            Self::Upload { source } => source.ending(),
            Self::HeadTooLarge { .. }
            | Self::Malformed { .. }
            | Self::UnsolicitedUpgrade
            | Self::Protocol { .. } => Ending::by_apiserver(EndReason::Protocol),
            Self::Shared(error) => error.ending(),
        }
    }

    /// The address of the apiserver that failed, if it was one.
    #[must_use]
    pub fn endpoint(&self) -> Option<UpstreamAddr> {
        match self {
            Self::Connect { endpoint, .. }
            | Self::Outbound { endpoint, .. }
            | Self::ConnectTimeout { endpoint }
            | Self::Verify { endpoint, .. }
            | Self::Handshake { endpoint, .. }
            | Self::Unsent { endpoint, .. }
            | Self::Refused { endpoint, .. }
            | Self::Lost { endpoint, .. }
            | Self::HeadTooLarge { endpoint, .. }
            | Self::Malformed { endpoint, .. }
            | Self::Protocol { endpoint, .. } => Some(*endpoint),
            Self::Shared(error) => error.endpoint(),
            Self::NoEndpoint { .. }
            | Self::TooManyConnections { .. }
            | Self::NoSocket
            | Self::Upload { .. }
            | Self::UnsolicitedUpgrade => None,
        }
    }

    /// Why a request has no response, although it was sent.
    pub(super) fn no_response(endpoint: UpstreamAddr, source: HttpError) -> Self {
        match source {
            HttpError::H1(H1Error::Message(MessageError::HeadTooLong { max })) => {
                Self::HeadTooLarge { endpoint, max }
            }
            HttpError::H1(
                H1Error::Message(MessageError::Head(_) | MessageError::Framing(_))
                | H1Error::Interim { .. },
            ) => Self::Malformed { endpoint, source },
            // An error that h2 found in the frames of the apiserver.
            HttpError::H2(ref error) if error.is_library() => Self::Malformed { endpoint, source },
            HttpError::H1(_) | HttpError::H2(_) => Self::Lost { endpoint, source },
        }
    }

    /// The metric label of a dial that ended in this error.
    pub(super) fn as_dialled(&self) -> Dialled {
        match self {
            Self::Connect { source, .. } if source.raw_os_error().is_some() => Dialled::Refused,
            // An error after the handshake is wrapped, so it has no error number of the kernel.
            Self::Connect { .. } | Self::Protocol { .. } | Self::UnsolicitedUpgrade => {
                Dialled::Protocol
            }
            Self::Outbound { .. } => Dialled::OutboundProxy,
            Self::ConnectTimeout { .. } => Dialled::Timeout,
            Self::Verify { .. } => Dialled::Verify,
            Self::Handshake { .. } => Dialled::Tls,
            Self::Shared(error) => error.as_dialled(),
            Self::NoEndpoint { .. }
            | Self::TooManyConnections { .. }
            | Self::NoSocket
            | Self::Unsent { .. }
            | Self::Refused { .. }
            | Self::Lost { .. }
            | Self::HeadTooLarge { .. }
            | Self::Malformed { .. }
            | Self::Upload { .. } => Dialled::Other,
        }
    }

    /// Whether the apiserver provably did not process the request, so that it can be sent again
    /// whatever its method (RFC 9113 §8.7: "A server MUST NOT indicate that a stream has not been
    /// processed unless it can guarantee that fact").
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::NoEndpoint { .. }
            | Self::TooManyConnections { .. }
            | Self::NoSocket
            | Self::Connect { .. }
            | Self::Outbound { .. }
            | Self::ConnectTimeout { .. }
            | Self::Verify { .. }
            | Self::Handshake { .. }
            | Self::Unsent { .. }
            | Self::Refused { .. } => true,
            Self::Shared(error) => error.is_unprocessed(),
            Self::Lost { .. }
            | Self::HeadTooLarge { .. }
            | Self::Malformed { .. }
            | Self::Upload { .. }
            | Self::UnsolicitedUpgrade
            | Self::Protocol { .. } => false,
        }
    }

    /// Whether the apiserver is down or cannot be reached. False if something answers that this proxy must not use,
    /// because the fault is then more likely to be in the configuration of the proxy.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Unsent { .. }
            | Self::Refused { .. }
            | Self::Lost { .. } => true,
            // rustls reports what it received as invalid data. Any other error is one of the connection: a load
            // balancer whose apiservers are down accepts it and closes it.
            Self::Handshake { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::Outbound { source, .. } => source.is_outage(),
            Self::Shared(error) => error.is_outage(),
            Self::NoEndpoint { .. }
            | Self::TooManyConnections { .. }
            | Self::NoSocket
            | Self::Verify { .. }
            | Self::Upload { .. }
            | Self::UnsolicitedUpgrade
            | Self::HeadTooLarge { .. }
            | Self::Malformed { .. }
            | Self::Protocol { .. } => false,
        }
    }

    /// Why the verifier refused the certificate, if it did.
    #[must_use]
    pub fn verify_error(&self) -> Option<&VerifyError> {
        if let Self::Shared(error) = self {
            return error.verify_error();
        }
        let Self::Verify { source, .. } = self else {
            return None;
        };
        source.downcast_ref()
    }

    /// Whether the request may be sent again on another connection. Each such error is also
    /// [`UpstreamError::is_unprocessed`].
    pub(super) fn wants_another_connection(&self) -> bool {
        matches!(self, Self::Unsent { .. } | Self::Refused { .. })
    }
}
