//! Logs why handshakes of clients fail, and why peers may not connect, in lines that an operator sees without `debug`.
//! A client gets one line per reason, until some time has passed ([`OF_CLIENT`], [`OF_PEER`]).

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustls::Error;
use tokio::time::Instant;
use tracing::{debug, field::display, warn};

use super::HandshakeError;
use crate::{
    clients::ClientPrefix,
    hosts::PeerAddr,
    quote,
    telemetry::LogLimiter,
    text::{error_chain, escape},
    token_bucket::TokenBucketSize,
};

/// Which lines were written. All workers share it.
#[derive(Debug)]
pub struct HandshakeLog {
    handshakes: Mutex<LogLimiter>,
    /// Connections that end before the handshake: a flood of them must not hide why handshakes fail.
    peers: Mutex<LogLimiter>,
}

impl Default for HandshakeLog {
    fn default() -> Self {
        Self {
            handshakes: Mutex::new(LogLimiter::new(OF_CLIENT, OF_ALL)),
            peers: Mutex::new(LogLimiter::new(OF_PEER, OF_ALL)),
        }
    }
}

impl HandshakeLog {
    /// Logs why a handshake failed. `network_peer` is the load balancer that has named the client.
    pub(super) fn failed(
        &self,
        client: PeerAddr,
        network_peer: Option<PeerAddr>,
        error: &HandshakeError,
    ) {
        let reason = reason(error);
        // In a closure, because a line that is not written needs none.
        let server_name = || {
            let name = quote::name(error.server_name()?);
            Some(display(escape(&name, MAX_NAME_CHARS).to_string()))
        };
        let line = if is_notable(error) {
            let limiter = match error {
                HandshakeError::ProxyHeader(_) | HandshakeError::Denied => &self.peers,
                HandshakeError::Timeout { .. }
                | HandshakeError::Closed
                | HandshakeError::Refused(_)
                | HandshakeError::PlainHttp
                | HandshakeError::HelloTooLarge
                | HandshakeError::NoCertificate { .. }
                | HandshakeError::Failed { .. } => &self.handshakes,
            };
            let client = (ClientPrefix::new(client.ip()), reason);
            let mut lines = limiter.lock().unwrap_or_else(PoisonError::into_inner);
            lines.admit(client, Instant::now())
        } else {
            None
        };
        macro_rules! log_line {
            ($level:ident, $suppressed:expr) => {
                $level!(
                    client.address = %client,
                    network.peer.address = network_peer.map(display),
                    reason,
                    tls.client.server_name = server_name(),
                    error = %error_chain(error),
                    suppressed_lines = $suppressed,
                    "downstream handshake failed"
                )
            };
        }
        match line {
            Some(suppressed) => log_line!(warn, Some(suppressed).filter(|lines| *lines > 0)),
            None => log_line!(debug, None::<u64>),
        }
    }
}

/// Whether an operator has to know. Health checks of load balancers connect and say nothing, and the proxy itself
/// closes connections when places are scarce.
fn is_notable(error: &HandshakeError) -> bool {
    match error {
        HandshakeError::Timeout { .. }
        | HandshakeError::ProxyHeader(_)
        | HandshakeError::Denied
        | HandshakeError::PlainHttp
        | HandshakeError::HelloTooLarge
        | HandshakeError::NoCertificate { .. } => true,
        HandshakeError::Closed | HandshakeError::Refused(_) => false,
        HandshakeError::Failed {
            source,
            server_name,
        } => server_name.is_some() || tls_error(source).is_some(),
    }
}

/// One of a closed set.
fn reason(error: &HandshakeError) -> &'static str {
    let source = match error {
        HandshakeError::Timeout { .. } => return "timeout",
        HandshakeError::Closed | HandshakeError::Refused(_) => return "place",
        HandshakeError::ProxyHeader(_) => return "proxy_header",
        HandshakeError::Denied => return "denied",
        HandshakeError::PlainHttp => return "plain_http",
        HandshakeError::HelloTooLarge => return "hello_too_large",
        HandshakeError::NoCertificate { .. } => return "no_certificate",
        HandshakeError::Failed { source, .. } => source,
    };
    match tls_error(source) {
        // A client that does not trust the certificate says so.
        Some(Error::AlertReceived(_)) => "client_alert",
        Some(Error::PeerIncompatible(_)) => "incompatible",
        Some(Error::InvalidMessage(_)) => "not_tls",
        Some(_) => "protocol",
        None if source.kind() == io::ErrorKind::UnexpectedEof => "eof",
        None => "reset",
    }
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// One line for each client and reason in this time.
const OF_CLIENT: TokenBucketSize = TokenBucketSize {
    max_tokens: 1,
    fill_interval: Duration::from_secs(60),
};
/// One line for each peer, or client of a load balancer, and reason in this time.
const OF_PEER: TokenBucketSize = TokenBucketSize {
    max_tokens: 1,
    fill_interval: Duration::from_secs(10),
};
/// A port that is open to the internet is scanned all the time.
const OF_ALL: TokenBucketSize = TokenBucketSize {
    max_tokens: 30,
    fill_interval: Duration::from_secs(2),
};
const MAX_NAME_CHARS: usize = 256;

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, InvalidMessage, PeerIncompatible};

    use super::*;
    use crate::{clients::Refusal, downstream::ProxyHeaderError};

    fn failed(source: io::Error, server_name: Option<&str>) -> HandshakeError {
        HandshakeError::Failed {
            source,
            server_name: server_name.map(|name| Some(name.to_owned())),
        }
    }

    fn tls(error: Error) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    #[test]
    fn silent_health_check_is_not_notable_and_distrust_is() {
        let alert = Error::AlertReceived(AlertDescription::UnknownCA);
        let incompatible = Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered);
        let message = Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let limit = Duration::from_secs(10);
        for (error, expected, notable) in [
            (failed(eof(), None), "eof", false),
            (failed(eof(), Some("kube.test")), "eof", true),
            (
                failed(io::ErrorKind::ConnectionReset.into(), None),
                "reset",
                false,
            ),
            (failed(tls(alert), Some("kube.test")), "client_alert", true),
            (
                failed(tls(incompatible), Some("kube.test")),
                "incompatible",
                true,
            ),
            (failed(tls(message), None), "not_tls", true),
            (HandshakeError::Closed, "place", false),
            (HandshakeError::PlainHttp, "plain_http", true),
            (ProxyHeaderError::Missing.into(), "proxy_header", true),
            (HandshakeError::Denied, "denied", true),
            (
                HandshakeError::Refused(Refusal::Connections),
                "place",
                false,
            ),
            (
                HandshakeError::Timeout {
                    limit,
                    server_name: None,
                },
                "timeout",
                true,
            ),
        ] {
            assert_eq!(
                (reason(&error), is_notable(&error)),
                (expected, notable),
                "{error:?}"
            );
        }
    }
}
