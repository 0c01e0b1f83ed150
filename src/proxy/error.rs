//! Why the proxy answers a request itself, and how such an error is counted and logged.

use tracing::{debug, warn};

use super::{
    Denial, Rejection, request_client::LoggedPeers, request_facts::RequestFacts,
    request_id::RequestId,
};
use crate::{
    clients::Throttled,
    ending::{EndReason, Ending},
    hosts::{PeerAddr, UpstreamAddr},
    metrics::{ClusterSlot, Connected, ErrorReason, Limit},
    text::error_chain,
    upstream::{NamingError, UploadError, UpstreamError},
};

/// Why a request got no response from the apiserver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The proxy refused the request.
    #[error("request refused")]
    Rejected(#[from] Rejection),
    /// The access rules of the cluster deny the request.
    #[error("request refused")]
    Denied(#[source] Box<Denial>),
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
    /// The proxy cannot name the owner of a client certificate to the apiserver.
    #[error(transparent)]
    Naming(#[from] NamingError),
}

impl Error {
    /// The `error.type` of log lines.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.reason().label()
    }

    /// The address of the apiserver that failed, if it was one.
    pub(super) fn endpoint(&self) -> Option<UpstreamAddr> {
        match self {
            Self::Upstream(error) => error.endpoint(),
            Self::Rejected(_)
            | Self::Denied(_)
            | Self::UnexpectedProtocol
            | Self::RedirectedUpgrade
            | Self::Naming(_) => None,
        }
    }

    /// Who is the reason that the request failed, and why.
    pub(super) fn ending(&self) -> Ending {
        match self {
            Self::Rejected(_) | Self::Denied(_) => Ending::by_proxy(EndReason::Refused),
            Self::Upstream(error) => error.ending(),
            Self::UnexpectedProtocol | Self::RedirectedUpgrade => {
                Ending::by_apiserver(EndReason::Protocol)
            }
            Self::Naming(_) => Ending::by_proxy(EndReason::NoConnection),
        }
    }

    /// Whether the client left while the proxy read its request.
    pub(super) fn client_left(&self) -> bool {
        match self {
            Self::Upstream(UpstreamError::Upload { source }) => source.client_left(),
            Self::Upstream(_)
            | Self::Rejected(_)
            | Self::Denied(_)
            | Self::UnexpectedProtocol
            | Self::RedirectedUpgrade
            | Self::Naming(_) => false,
        }
    }

    /// The label of `errors_total`.
    pub(super) fn reason(&self) -> ErrorReason {
        match self {
            Self::Rejected(_) => ErrorReason::Rejected,
            Self::Denied(_) => ErrorReason::Denied,
            Self::Upstream(error) => upstream_reason(error),
            Self::UnexpectedProtocol | Self::RedirectedUpgrade => ErrorReason::Protocol,
            Self::Naming(NamingError::FrontProxyExpired) => ErrorReason::FrontProxy,
            Self::Naming(NamingError::NoToken) => ErrorReason::ImpersonationToken,
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

/// Counts an error, keeps it for the status page, and logs its cause. Returns `None` if the log has enough lines about
/// this client already, else the number of lines that were left out before. `facts` is `None` if the head of the
/// request could not be read.
pub(super) fn record(
    error: &Error,
    cluster: ClusterSlot,
    connected: &Connected,
    peers: LoggedPeers,
    id: &RequestId,
    facts: Option<&RequestFacts>,
) -> Option<u64> {
    let lines = count(error, cluster, connected, peers.client)?;
    // The usual zero is left out of the line.
    let suppressed = Some(lines).filter(|lines| *lines > 0);
    macro_rules! log_line {
        ($level:ident, $message:literal) => {
            $level!(
                cluster = connected.cluster_name(cluster),
                client.address = %peers.client,
                network.peer.address = peers.network_peer.map(display),
                http.request.id = %id,
                http.request.method = facts.map(|facts| display(facts.method())),
                url.path = facts.map(|facts| display(facts.path())),
                k8s.verb = facts.and_then(RequestFacts::verb),
                upstream.address = error.endpoint().map(display),
                "error.type" = error.label(),
                error = cause(error),
                suppressed_lines = suppressed,
                $message
            )
        };
    }
    match error {
        Error::Rejected(_) | Error::Denied(_) | Error::Upstream(UpstreamError::Upload { .. }) => {
            log_line!(debug, "request refused");
        }
        Error::Upstream(_)
        | Error::UnexpectedProtocol
        | Error::RedirectedUpgrade
        | Error::Naming(_) => {
            log_line!(warn, "request failed");
        }
    }
    Some(lines)
}

/// Counts an error, and keeps it for the status page. Returns as [`record`] does.
pub(super) fn count(
    error: &Error,
    cluster: ClusterSlot,
    connected: &Connected,
    client: PeerAddr,
) -> Option<u64> {
    if let Some(limit) = exceeded_limit(error) {
        connected.counters().limits_hit.count(limit);
    }
    if let Error::Denied(denial) = error {
        let counters = connected.counters().clusters().get(cluster);
        counters.denied.count(denial.rule());
    }
    let is_over_limit = matches!(
        error,
        Error::Rejected(Rejection::Throttled(_) | Rejection::RefusedProxy(_))
    );
    connected.record_error(client, cluster, error.reason(), || {
        let of_client = is_over_limit.then(|| format!(" ({})", client.ip()));
        format!("{}{}", cause(error), of_client.unwrap_or_default())
    })
}

/// The error and its causes. A certificate that was not accepted is described once, when the connection fails; here
/// only the reason follows.
pub(super) fn cause(error: &Error) -> String {
    let chain = error_chain(error);
    match error {
        Error::Upstream(of_upstream) => match of_upstream.verify_error() {
            Some(verify) => format!("{error}: the apiserver's certificate {}", verify.reason()),
            None => chain.to_string(),
        },
        Error::Rejected(_)
        | Error::Denied(_)
        | Error::UnexpectedProtocol
        | Error::RedirectedUpgrade
        | Error::Naming(_) => chain.to_string(),
    }
}

fn upstream_reason(error: &UpstreamError) -> ErrorReason {
    match error {
        UpstreamError::NoEndpoint { .. } => ErrorReason::NoEndpoint,
        UpstreamError::TooManyConnections { .. } | UpstreamError::NoSocket => {
            ErrorReason::UpstreamConnections
        }
        UpstreamError::Connect { .. } => ErrorReason::Connect,
        UpstreamError::Outbound { .. } => ErrorReason::OutboundProxy,
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
        Error::Denied(_)
        | Error::Upstream(_)
        | Error::UnexpectedProtocol
        | Error::RedirectedUpgrade
        | Error::Naming(_) => return None,
    };
    match rejection {
        Rejection::HeaderFields(_) => Some(Limit::HeaderFields),
        Rejection::HeaderBytes(_) => Some(Limit::HeaderBytes),
        Rejection::Uri(_) => Some(Limit::UriBytes),
        Rejection::Throttled(Throttled::Refused(_) | Throttled::Guesses(_))
        | Rejection::RefusedProxy(_) => Some(Limit::ClientUnauthorized),
        Rejection::Throttled(Throttled::Requests(_)) => Some(Limit::ClientRequests),
        Rejection::Connect
        | Rejection::NoHost
        | Rejection::BadHost
        | Rejection::HostMismatch
        | Rejection::NotOurs
        | Rejection::NoSuchPrefix
        | Rejection::Scheme
        | Rejection::Target
        | Rejection::TargetCharacter
        | Rejection::TransferEncoding
        | Rejection::AmbiguousLength
        | Rejection::Malformed
        | Rejection::Expectation
        | Rejection::UpgradeWithBody
        | Rejection::UpgradeCheck
        | Rejection::Certificate(_)
        | Rejection::CertificateOfOtherHost
        | Rejection::Impersonation
        | Rejection::Credential(_)
        | Rejection::AmbiguousPath
        | Rejection::PublishedMethod => None,
    }
}
