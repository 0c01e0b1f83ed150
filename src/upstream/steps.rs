//! The steps of a dial one by one, for `check`: what it finds is what `serve` meets.
//!
//! The steps are those of `connect`. No HTTP is spoken here, and nothing is sent to a server that was
//! not verified.

use rustls::ProtocolVersion;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::client::TlsStream;

use super::{ClientTls, UpstreamError, dial};
use crate::{config::Timeouts, hosts::UpstreamAddr, pki::CertSummary, transport::ReadAhead};

/// Which protocols are offered to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// HTTP/2, and HTTP/1.1 should the server not want it.
    Http2,
    /// HTTP/1.1 alone, as for every upgrade.
    Http1,
}

/// One endpoint, dialled as `connect` dials it and within the same time.
#[derive(Debug)]
pub(crate) struct TcpConnected {
    endpoint: UpstreamAddr,
    deadline: Instant,
    tcp: TcpStream,
}

/// A verified connection, and what was agreed in its handshake.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The connection, on which nothing has been sent yet.
    pub(crate) stream: TlsStream<ReadAhead>,
    /// Whether the server chose HTTP/2.
    pub(crate) is_http2: bool,
    /// `TLS 1.3` or `TLS 1.2`.
    pub(crate) version: &'static str,
    /// What the server's certificate says about itself.
    pub(crate) certificate: Option<CertSummary>,
}

impl TcpConnected {
    /// TCP with `endpoint`; this and the handshake share `timeouts.upstreamConnect`.
    ///
    /// # Errors
    ///
    /// As for a dial of `serve`.
    pub(crate) async fn dial(
        endpoint: UpstreamAddr,
        timeouts: &Timeouts,
    ) -> Result<Self, UpstreamError> {
        let deadline = Instant::now() + timeouts.upstream_connect;
        let tcp = timeout_at(deadline, dial::reach(endpoint, timeouts))
            .await
            .unwrap_or(Err(UpstreamError::ConnectTimeout { endpoint }))?;
        Ok(Self {
            endpoint,
            deadline,
            tcp,
        })
    }

    /// TLS on it, verified.
    ///
    /// # Errors
    ///
    /// As for a dial of `serve`.
    pub(crate) async fn secure(
        self,
        tls: &ClientTls,
        offer: Offer,
    ) -> Result<Verified, UpstreamError> {
        let Self {
            endpoint,
            deadline,
            tcp,
        } = self;
        let config = match offer {
            Offer::Http2 => &tls.h2,
            Offer::Http1 => &tls.h1,
        };
        let handshake = dial::secure(ReadAhead::new(tcp), &tls.name, config, endpoint);
        let stream = timeout_at(deadline, handshake)
            .await
            .unwrap_or(Err(UpstreamError::ConnectTimeout { endpoint }))?;
        let session = stream.get_ref().1;
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            // rustls speaks no other.
            Some(_) | None => "TLS 1.2",
        };
        let certificate = session
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(|leaf| CertSummary::from_der(leaf).ok());
        Ok(Verified {
            is_http2: session.alpn_protocol() == Some(b"h2"),
            version,
            certificate,
            stream,
        })
    }
}
