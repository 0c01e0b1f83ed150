//! Stage 2: the server handshake within its deadline, and what was agreed in it.

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

/// Why a downstream handshake did not come about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took longer than `timeouts.handshake`.
    #[error("no TLS handshake within {0:?}")]
    Timeout(Duration),
    /// The client's TLS and ours do not agree, or the connection broke.
    #[error("TLS handshake")]
    Failed(#[source] io::Error),
}

impl HandshakeError {
    /// As its counter has it.
    pub(super) fn as_ended(&self) -> Handshake {
        match self {
            Self::Timeout(_) => Handshake::Timeout,
            Self::Failed(_) => Handshake::Failed,
        }
    }
}

/// Settings that present one of `identities`, chosen by SNI; the first when there is no SNI or an
/// unknown one. `tickets` outlives the settings, so that a reload costs no client its session.
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

/// Shakes hands, as one of `slots`; all of it, the wait for a slot included, within `limit`.
///
/// # Errors
///
/// When the client is too slow or the handshake fails.
pub(super) async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    slots: &Semaphore,
    limit: Duration,
    counts: &Counters,
) -> Result<Box<TlsStream<ReadAhead>>, HandshakeError> {
    let handshake = async {
        // A client that has not said a whole ClientHello takes no slot, or a few of them would keep
        // everybody out.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), ReadAhead::new(stream)).await?;
        if slots.available_permits() == 0 {
            counts.limits_hit.count(Limit::Handshakes);
        }
        let _slot = slots.acquire().await.map_err(io::Error::other)?;
        let limit_buffer =
            |connection: &mut ServerConnection| connection.set_buffer_limit(Some(TLS_BUFFER));
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

/// The certificate for each name; the SANs decide.
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
                // Of two certificates for one name the first wins, as for the default.
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
const TLS_BUFFER: usize = 32 * 1024;
