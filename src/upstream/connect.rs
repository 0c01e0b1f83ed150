//! Dials an endpoint: TCP, TLS with verification, and the HTTP that both sides chose.

use std::{io, sync::Arc};

use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Cluster, UpstreamError, VerifyFailure, Worker, h1::H1Connection, h2::H2Connection,
    lease::Connection,
};
use crate::{addr::UpstreamAddr, socket, telemetry::causes};

/// A new connection to the first endpoint that works; ill ones are remembered.
///
/// # Errors
///
/// The failure of the endpoint tried last. Not one request byte was sent.
pub(super) async fn connect(
    worker: &Worker,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
) -> Result<Connection, UpstreamError> {
    let mut last = UpstreamError::NoEndpoint {
        name: cluster.endpoints.host().to_owned(),
    };
    for endpoint in cluster.endpoints.pick() {
        let dialled = timeout(
            worker.timeouts.upstream_connect,
            dial(worker, cluster, config, endpoint),
        )
        .await;
        match dialled.unwrap_or(Err(UpstreamError::ConnectTimeout { endpoint })) {
            Ok(connection) => {
                cluster.endpoints.mark_well(endpoint);
                return Ok(connection);
            }
            Err(error) => {
                cluster.endpoints.mark_ill(endpoint);
                tracing::warn!(
                    cluster = cluster.name,
                    error = %causes(&error),
                    "upstream connection failed"
                );
                last = error;
            }
        }
    }
    Err(last)
}

async fn dial(
    worker: &Worker,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: UpstreamAddr,
) -> Result<Connection, UpstreamError> {
    let tcp = TcpStream::connect(endpoint.0)
        .await
        .and_then(|tcp| socket::tune(&tcp, &worker.timeouts).map(|()| tcp))
        .map_err(|source| UpstreamError::Connect { endpoint, source })?;
    let tls = TlsConnector::from(Arc::clone(config))
        .connect_with(cluster.tls.name.clone(), tcp, |connection| {
            connection.set_buffer_limit(Some(TLS_BUFFER))
        })
        .await
        .map_err(|source| handshake_error(endpoint, source))?;
    if chose_h2(&tls) {
        let established = H2Connection::establish(
            tls,
            endpoint,
            &worker.limits,
            &worker.timeouts,
            &worker.drain,
        )
        .await;
        return established
            .map(Connection::H2)
            .map_err(|source| UpstreamError::Unsent { endpoint, source });
    }
    let established = H1Connection::establish(tls, endpoint, &worker.drain).await;
    established
        .map(Connection::H1)
        .map_err(|source| UpstreamError::Connect {
            endpoint,
            source: io::Error::other(source),
        })
}

fn chose_h2(tls: &TlsStream<TcpStream>) -> bool {
    tls.get_ref().1.alpn_protocol() == Some(b"h2")
}

fn handshake_error(endpoint: UpstreamAddr, source: io::Error) -> UpstreamError {
    let refused = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if matches!(
        refused,
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
    ) {
        UpstreamError::Verify { endpoint, source }
    } else {
        UpstreamError::Handshake { endpoint, source }
    }
}

/// Finds what the verifier said in the error that came out of the handshake.
pub(super) fn verify_failure(error: &io::Error) -> Option<&VerifyFailure> {
    let refused = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::InvalidCertificate(rustls::CertificateError::Other(cause)) = refused else {
        return None;
    };
    cause.0.downcast_ref()
}

/// Bytes that rustls may hold for a peer that does not read.
const TLS_BUFFER: usize = 32 * 1024;
