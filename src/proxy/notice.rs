//! Counts an error that the proxy answers by itself, remembers it for the operator, and logs its cause
//! unless the same client's errors fill the log already.

use tracing::{debug, warn};

use super::{Error, Rejection};
use crate::{
    metrics::{Connected, Limit},
    text::error_chain,
    upstream::UpstreamError,
};

/// Counts and logs one error.
pub(super) fn notice(error: &Error, connected: &Connected) {
    if let Error::Rejected(rejection) = error
        && let Some(limit) = limit(*rejection)
    {
        connected.counts().limits_hit.count(limit);
    }
    let line = connected.record_error(error.reason(), || error_chain(error).to_string());
    let Some(kept_back) = line else {
        return;
    };
    // Zero is the rule, and no field.
    let kept_back = Some(kept_back).filter(|lines| *lines > 0);
    let client = connected.client();
    match error {
        Error::Rejected(_) | Error::Upstream(UpstreamError::Upload { .. }) => {
            debug!(client.address = %client, "error.type" = error.label(), error = %error_chain(error), suppressed_lines = kept_back, "request refused");
        }
        Error::Upstream(_) | Error::WrongSwitch | Error::RedirectedUpgrade => {
            warn!(client.address = %client, "error.type" = error.label(), error = %error_chain(error), suppressed_lines = kept_back, "request failed");
        }
    }
}

/// The limit that a request passed, if that is what is wrong with it.
fn limit(rejection: Rejection) -> Option<Limit> {
    match rejection {
        Rejection::HeaderFields(_) => Some(Limit::HeaderFields),
        Rejection::HeaderBytes(_) => Some(Limit::HeaderBytes),
        Rejection::Uri(_) => Some(Limit::UriBytes),
        Rejection::Connect
        | Rejection::NoHost
        | Rejection::BadHost
        | Rejection::HostMismatch
        | Rejection::NotOurs
        | Rejection::Scheme
        | Rejection::Target
        | Rejection::TransferEncoding
        | Rejection::AmbiguousLength
        | Rejection::Malformed
        | Rejection::Expectation
        | Rejection::UpgradeWithBody => None,
    }
}
