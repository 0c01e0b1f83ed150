//! Who ended a response, a tunnel or a connection, and why: for the access log and the metrics.

use std::io;

/// Which side ended it, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The side that ended it first.
    pub by: Side,
    /// What that side did, or why.
    pub reason: EndReason,
}

/// One of the three parties of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client, or something between it and the proxy.
    Client,
    /// The apiserver, or something between it and the proxy.
    Apiserver,
    /// This process.
    Proxy,
}

/// Why it ended: a closed set, so that a query of the log can list all values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The side ended it in order, or closed its connection in order.
    Eof,
    /// The connection was closed without `close_notify`: the process was killed, or something on the way closed it.
    TlsEof,
    /// The connection was reset.
    Reset,
    /// The peer was silent until TCP gave up.
    Timeout,
    /// The peer did not reply to an HTTP/2 ping.
    PingTimeout,
    /// The HTTP/2 stream was reset: a client has cancelled its request.
    Cancel,
    /// GOAWAY.
    GoAway,
    /// A message was malformed or incomplete.
    Protocol,
    /// One half of a tunnel ended, and the other half did not within `timeouts.halfCloseTimeout`.
    HalfCloseTimeout,
    /// The client did not read.
    Stall,
    /// The client exceeded a limit.
    Limit,
    /// Another client needed the place of the connection.
    Place,
    /// The client certificate has expired or is revoked.
    Certificate,
    /// The proxy was told to stop.
    Drain,
    /// The proxy was told to stop twice.
    SecondSignal,
    /// No connection to the apiserver could be used.
    NoConnection,
    /// The proxy refused the request.
    Refused,
}

impl Ending {
    /// The client ended it.
    #[must_use]
    pub fn by_client(reason: EndReason) -> Self {
        let by = Side::Client;
        Self { by, reason }
    }

    /// The apiserver ended it.
    #[must_use]
    pub fn by_apiserver(reason: EndReason) -> Self {
        let by = Side::Apiserver;
        Self { by, reason }
    }

    /// The proxy ended it.
    #[must_use]
    pub fn by_proxy(reason: EndReason) -> Self {
        let by = Side::Proxy;
        Self { by, reason }
    }
}

impl Side {
    /// The value in the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Apiserver => "apiserver",
            Self::Proxy => "proxy",
        }
    }
}

impl EndReason {
    /// The value in the log.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Eof => "eof",
            Self::TlsEof => "tls_eof",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::PingTimeout => "ping_timeout",
            Self::Cancel => "cancel",
            Self::GoAway => "goaway",
            Self::Protocol => "protocol",
            Self::HalfCloseTimeout => "half_close_timeout",
            Self::Stall => "stall",
            Self::Limit => "limit",
            Self::Place => "place",
            Self::Certificate => "certificate",
            Self::Drain => "drain",
            Self::SecondSignal => "second_signal",
            Self::NoConnection => "no_connection",
            Self::Refused => "refused",
        }
    }

    /// Whether it ended because the proxy stops.
    #[must_use]
    pub fn is_of_drain(self) -> bool {
        matches!(self, Self::Drain | Self::SecondSignal)
    }

    /// Whether the proxy closed a connection to protect itself, the cluster or other clients.
    #[must_use]
    pub fn is_of_limit(self) -> bool {
        matches!(
            self,
            Self::Limit | Self::Place | Self::Stall | Self::Certificate
        )
    }

    /// What an error of a connection says about its peer.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        let kind = error.kind();
        // rustls reports an end without `close_notify` as an unexpected end, and a violation of TLS as invalid data.
        if kind == io::ErrorKind::UnexpectedEof {
            Self::TlsEof
        } else if kind == io::ErrorKind::TimedOut {
            Self::Timeout
        } else if matches!(
            kind,
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
        ) {
            Self::Protocol
        } else {
            Self::Reset
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_peer_and_reset_are_different_reasons() {
        for (kind, reason) in [
            (io::ErrorKind::UnexpectedEof, "tls_eof"),
            (io::ErrorKind::ConnectionReset, "reset"),
            (io::ErrorKind::BrokenPipe, "reset"),
            (io::ErrorKind::TimedOut, "timeout"),
            (io::ErrorKind::InvalidData, "protocol"),
        ] {
            assert_eq!(EndReason::from_io(&kind.into()).label(), reason);
        }
    }
}
