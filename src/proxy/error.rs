//! Why the proxy answers a request itself, and how such an error is counted and logged.

use tracing::{debug, warn};

use super::Rejection;
use crate::{
    clients::Throttled,
    metrics::{ClusterSlot, Connected, ErrorReason, Limit},
    text::error_chain,
    upstream::{UploadError, UpstreamError},
};

/// Why a request got no response from the apiserver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The proxy refused the request.
    #[error("request refused")]
    Rejected(#[from] Rejection),
    /// The apiserver sent no response.
    #[error("no response from the apiserver")]
    Upstream(#[from] UpstreamError),
    /// A 101 to a protocol that the client did not request.
    #[error("the apiserver switched to a protocol that the client did not request")]
    UnexpectedProtocol,
    /// A redirect in response to an upgrade request. client-go's SPDY dialer would follow it and send the
    /// user's token along.
    #[error("the apiserver redirected an upgrade request")]
    RedirectedUpgrade,
}

impl Error {
    /// The `error.type` of log lines.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.reason().label()
    }

    /// The label of `errors_total`.
    pub(super) fn reason(&self) -> ErrorReason {
        match self {
            Self::Rejected(_) => ErrorReason::Rejected,
            Self::Upstream(error) => upstream_reason(error),
            Self::UnexpectedProtocol | Self::RedirectedUpgrade => ErrorReason::Protocol,
        }
    }
}

/// Whether more of the request body may come after the response, and the client cannot tell where it ends.
pub(super) fn leaves_body_unread(error: &Error) -> bool {
    matches!(
        error,
        Error::Upstream(UpstreamError::Upload {
            source: UploadError::TooSlow
        })
    )
}

/// Counts an error, keeps it for the status page, and logs its cause unless this client has filled its
/// share of the log already.
pub(super) fn record(error: &Error, cluster: ClusterSlot, connected: &Connected) {
    if let Some(limit) = exceeded_limit(error) {
        connected.counters().limits_hit.count(limit);
    }
    let Some(suppressed) =
        connected.record_error(cluster, error.reason(), || error_chain(error).to_string())
    else {
        return;
    };
    // The usual zero is left out of the line.
    let suppressed = Some(suppressed).filter(|lines| *lines > 0);
    let client = connected.client();
    match error {
        Error::Rejected(_) | Error::Upstream(UpstreamError::Upload { .. }) => {
            debug!(client.address = %client, "error.type" = error.label(), error = %error_chain(error), suppressed_lines = suppressed, "request refused");
        }
        Error::Upstream(_) | Error::UnexpectedProtocol | Error::RedirectedUpgrade => {
            warn!(client.address = %client, "error.type" = error.label(), error = %error_chain(error), suppressed_lines = suppressed, "request failed");
        }
    }
}

fn upstream_reason(error: &UpstreamError) -> ErrorReason {
    match error {
        UpstreamError::NoEndpoint { .. } => ErrorReason::NoEndpoint,
        UpstreamError::TooManyConnections { .. } | UpstreamError::NoSocket => {
            ErrorReason::UpstreamConnections
        }
        UpstreamError::Connect { .. } => ErrorReason::Connect,
        UpstreamError::ConnectTimeout { .. } => ErrorReason::ConnectTimeout,
        UpstreamError::Verify { .. } => ErrorReason::Verify,
        UpstreamError::Handshake { .. } => ErrorReason::Handshake,
        UpstreamError::Unsent { .. } | UpstreamError::Refused { .. } => ErrorReason::Unprocessed,
        UpstreamError::Lost { .. } => ErrorReason::Lost,
        UpstreamError::Upload { .. } => ErrorReason::Upload,
        UpstreamError::HeadTooLarge { .. }
        | UpstreamError::Malformed { .. }
        | UpstreamError::UnsolicitedUpgrade
        | UpstreamError::Protocol { .. } => ErrorReason::Protocol,
        UpstreamError::Shared(error) => upstream_reason(error),
    }
}

fn is_no_socket(error: &UpstreamError) -> bool {
    if let UpstreamError::Shared(error) = error {
        return is_no_socket(error);
    }
    matches!(error, UpstreamError::NoSocket)
}

/// The limit that the request exceeded, if that was the reason.
fn exceeded_limit(error: &Error) -> Option<Limit> {
    let rejection = match error {
        Error::Rejected(rejection) => rejection,
        Error::Upstream(UpstreamError::TooManyConnections { .. }) => {
            return Some(Limit::UpstreamConnections);
        }
        Error::Upstream(UpstreamError::Upload {
            source: UploadError::TooSlow,
        }) => return Some(Limit::UploadRate),
        Error::Upstream(error) if is_no_socket(error) => return Some(Limit::UpstreamSockets),
        Error::Upstream(_) | Error::UnexpectedProtocol | Error::RedirectedUpgrade => return None,
    };
    match rejection {
        Rejection::HeaderFields(_) => Some(Limit::HeaderFields),
        Rejection::HeaderBytes(_) => Some(Limit::HeaderBytes),
        Rejection::Uri(_) => Some(Limit::UriBytes),
        Rejection::Throttled(Throttled::Refused(_) | Throttled::Guesses(_)) => {
            Some(Limit::ClientUnauthorized)
        }
        Rejection::Throttled(Throttled::Requests(_)) => Some(Limit::ClientRequests),
        Rejection::Connect
        | Rejection::NoHost
        | Rejection::BadHost
        | Rejection::HostMismatch
        | Rejection::NotOurs
        | Rejection::Scheme
        | Rejection::Target
        | Rejection::TargetCharacter
        | Rejection::TransferEncoding
        | Rejection::AmbiguousLength
        | Rejection::Malformed
        | Rejection::Expectation
        | Rejection::UpgradeWithBody => None,
    }
}
