//! Stage 2: the TLS handshake with a client, within its deadline.

use std::{io, sync::Arc, time::Duration};

use rustls::{
    ServerConfig, ServerConnection,
    server::{Acceptor, ClientHello, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::{
    hosts::{HostMap, HostName},
    metrics::{Counters, Handshake, Limit},
    pki::{self, Identity},
    transport::ReadAhead,
};

/// Why a downstream handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took longer than `timeouts.handshake`.
    #[error("no TLS handshake within {0:?}")]
    Timeout(Duration),
    /// Client and proxy have no version or cipher in common, or the connection broke.
    #[error("TLS handshake")]
    Failed(#[source] io::Error),
}

impl HandshakeError {
    /// The label of its counter.
    pub(super) fn as_ended(&self) -> Handshake {
        match self {
            Self::Timeout(_) => Handshake::Timeout,
            Self::Failed(_) => Handshake::Failed,
        }
    }
}

/// Returns settings that present one of `identities`, chosen by SNI, or the first one without SNI or with an
/// unknown name. `tickets` outlives the settings, so that clients can resume their sessions after a reload.
///
/// # Panics
///
/// Never: aws-lc-rs supports both versions of TLS.
#[must_use]
pub fn server_config(identities: &[Identity], tickets: Arc<dyn ProducesTickets>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(pki::provider())
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(CertificateBySni::new(identities)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = tickets;
    config
}

/// Runs the TLS handshake. `limit` covers everything, including the wait for one of `slots`.
///
/// # Errors
///
/// When the client is too slow or the handshake fails.
pub(super) async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    slots: &Semaphore,
    limit: Duration,
    counters: &Counters,
) -> Result<Box<TlsStream<ReadAhead>>, HandshakeError> {
    let handshake = async {
        // A client takes a slot only after its whole ClientHello has arrived. Otherwise a few silent clients
        // would block all others.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), ReadAhead::new(stream)).await?;
        if slots.available_permits() == 0 {
            counters.limits_hit.count(Limit::Handshakes);
        }
        let _slot = slots.acquire().await.map_err(io::Error::other)?;
        let limit_buffer =
            |connection: &mut ServerConnection| connection.set_buffer_limit(Some(MAX_TLS_BUFFER));
        hello
            .into_stream_with(config, limit_buffer)
            .await
            .map(Box::new)
    };
    timeout(limit, handshake)
        .await
        .map_err(|_elapsed| HandshakeError::Timeout(limit))?
        .map_err(HandshakeError::Failed)
}

/// Chooses the certificate for a name, by the SANs of the certificates.
#[derive(Debug)]
struct CertificateBySni {
    by_name: HostMap<Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl CertificateBySni {
    fn new(identities: &[Identity]) -> Self {
        let mut by_name = HostMap::default();
        for identity in identities {
            for name in identity.names() {
                // Of two certificates for one name the first wins, as it does for the default.
                by_name.insert(name, identity.certified_key());
            }
        }
        Self {
            by_name,
            default: identities.first().map(Identity::certified_key),
        }
    }
}

impl ResolvesServerCert for CertificateBySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(HostName::new);
        name.and_then(|name| self.by_name.get(&name))
            .or(self.default.as_ref())
            .cloned()
    }
}

/// Bytes that rustls may hold for a client that does not read.
const MAX_TLS_BUFFER: usize = 32 * 1024;
