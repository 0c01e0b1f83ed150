//! Why a request is answered by the proxy itself.

use super::Rejection;
use crate::upstream::UpstreamError;

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
        match self {
            Self::Rejected(_) => "rejected",
            Self::Upstream(UpstreamError::NoEndpoint { .. }) => "no_endpoint",
            Self::Upstream(UpstreamError::Connect { .. }) => "connect",
            Self::Upstream(UpstreamError::ConnectTimeout { .. }) => "connect_timeout",
            Self::Upstream(UpstreamError::Verify { .. }) => "verify",
            Self::Upstream(UpstreamError::Handshake { .. }) => "handshake",
            Self::Upstream(UpstreamError::Unsent { .. } | UpstreamError::Refused { .. }) => {
                "unprocessed"
            }
            Self::Upstream(UpstreamError::Lost { .. }) => "lost",
            Self::Upstream(UpstreamError::Upload { .. }) => "upload",
            Self::Upstream(UpstreamError::UnsolicitedSwitch | UpstreamError::Protocol { .. })
            | Self::WrongSwitch
            | Self::RedirectedUpgrade => "protocol",
        }
    }
}
