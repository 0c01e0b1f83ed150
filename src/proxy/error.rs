//! Why a request is answered by the proxy itself.

use super::Rejection;
use crate::{metrics::ErrorReason, upstream::UpstreamError};

/// Why a request got no response from the apiserver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request may not pass.
    #[error("request refused")]
    Rejected(#[from] Rejection),
    /// The apiserver gave no response.
    #[error("no response from the apiserver")]
    Upstream(#[from] UpstreamError),
    /// A 101 to another protocol than the client asked for.
    #[error("the apiserver switched to a protocol that was not asked for")]
    WrongSwitch,
    /// A redirect in answer to an upgrade request. client-go's SPDY dialer would follow it, with the
    /// user's token.
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
            Self::WrongSwitch | Self::RedirectedUpgrade => ErrorReason::Protocol,
        }
    }
}

fn upstream_reason(error: &UpstreamError) -> ErrorReason {
    match error {
        UpstreamError::NoEndpoint { .. } => ErrorReason::NoEndpoint,
        UpstreamError::Connect { .. } => ErrorReason::Connect,
        UpstreamError::ConnectTimeout { .. } => ErrorReason::ConnectTimeout,
        UpstreamError::Verify { .. } => ErrorReason::Verify,
        UpstreamError::Handshake { .. } => ErrorReason::Handshake,
        UpstreamError::Unsent { .. } | UpstreamError::Refused { .. } => ErrorReason::Unprocessed,
        UpstreamError::Lost { .. } => ErrorReason::Lost,
        UpstreamError::Upload { .. } => ErrorReason::Upload,
        UpstreamError::UnsolicitedUpgrade | UpstreamError::Protocol { .. } => ErrorReason::Protocol,
        UpstreamError::Shared(error) => upstream_reason(error),
    }
}
