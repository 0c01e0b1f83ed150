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
            Self::Upstream(error) => upstream_label(error),
            Self::WrongSwitch | Self::RedirectedUpgrade => "protocol",
        }
    }
}

fn upstream_label(error: &UpstreamError) -> &'static str {
    match error {
        UpstreamError::NoEndpoint { .. } => "no_endpoint",
        UpstreamError::Connect { .. } => "connect",
        UpstreamError::ConnectTimeout { .. } => "connect_timeout",
        UpstreamError::Verify { .. } => "verify",
        UpstreamError::Handshake { .. } => "handshake",
        UpstreamError::Unsent { .. } | UpstreamError::Refused { .. } => "unprocessed",
        UpstreamError::Lost { .. } => "lost",
        UpstreamError::Upload { .. } => "upload",
        UpstreamError::UnsolicitedUpgrade | UpstreamError::Protocol { .. } => "protocol",
        UpstreamError::Shared(error) => upstream_label(error),
    }
}
