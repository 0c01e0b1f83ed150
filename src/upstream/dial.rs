//! Dials an endpoint: TCP, TLS with verification, and the HTTP that both sides chose.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use rustls::{CertificateError, ClientConfig, Error};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Cluster, UpstreamContext, UpstreamError, endpoint::Endpoint, h1::H1Connection,
    h2::H2Connection, lease::Connection,
};
use crate::{
    config::Timeouts,
    hosts::UpstreamAddr,
    metrics::Dialled,
    socket,
    text::error_chain,
    transport::{ReadAhead, WriteBatcher},
};

/// A new connection to the first endpoint that works; ill ones are remembered.
///
/// The next one is tried as soon as one fails, and also when one keeps silent for a moment: a host that
/// is gone without a word must not cost a request the whole of its timeout.
///
/// # Errors
///
/// The failure of the endpoint tried last. Not one request byte was sent.
pub(super) async fn connect(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
) -> Result<Connection, UpstreamError> {
    let mut waiting = cluster.endpoints.pick().into_iter();
    let mut dials = Dials(Vec::new());
    let mut last = UpstreamError::NoEndpoint {
        name: cluster.endpoints.host().to_owned(),
    };
    loop {
        let hurry = match waiting.next() {
            Some(endpoint) => {
                if !dials.0.is_empty() {
                    cluster.endpoints.request_probe();
                }
                dials
                    .0
                    .push(Box::pin(try_one(context, cluster, config, endpoint)));
                waiting.len() > 0
            }
            None if dials.0.is_empty() => return Err(last),
            None => false,
        };
        let ended = if hurry {
            timeout(HEDGE, dials.next()).await
        } else {
            Ok(dials.next().await)
        };
        match ended {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = error,
            Err(_silent) => {}
        }
    }
}

type Dial<'a> = Pin<Box<dyn Future<Output = Result<Connection, UpstreamError>> + Send + 'a>>;

/// Dials that run side by side; the first to end well ends the others.
struct Dials<'a>(Vec<Dial<'a>>);

impl Dials<'_> {
    /// The next one that ends.
    async fn next(&mut self) -> Result<Connection, UpstreamError> {
        poll_fn(|cx| {
            for (at, dial) in self.0.iter_mut().enumerate() {
                if let Poll::Ready(ended) = dial.as_mut().poll(cx) {
                    drop(self.0.swap_remove(at));
                    return Poll::Ready(ended);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Dials one endpoint within the timeout and remembers how that went.
async fn try_one(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: Arc<Endpoint>,
) -> Result<Connection, UpstreamError> {
    let address = endpoint.address();
    let dialled = timeout(
        context.timeouts.upstream_connect,
        dial(context, cluster, config, &endpoint),
    )
    .await;
    match dialled.unwrap_or(Err(UpstreamError::ConnectTimeout { endpoint: address })) {
        Ok(connection) => {
            cluster.endpoints.mark_healthy(&endpoint);
            context.counts.dials.count(cluster.name(), Dialled::Ok);
            connection
                .stats()
                .on_dial(&context.counts, &cluster.generation);
            Ok(connection.to(endpoint))
        }
        Err(error) => {
            context
                .counts
                .dials
                .count(cluster.name(), error.as_dialled());
            tracing::warn!(
                cluster = cluster.name,
                error = %error_chain(&error),
                "upstream connection failed"
            );
            cluster
                .endpoints
                .mark_unhealthy(&endpoint, error_chain(&error).to_string());
            Err(error)
        }
    }
}

/// TCP and TLS with one endpoint, which has proved who it is.
///
/// # Errors
///
/// Whatever failed; not one request byte was sent.
pub(super) async fn handshake(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: &Arc<Endpoint>,
) -> Result<TlsStream<ReadAhead>, UpstreamError> {
    // From the first moment, so that those who dial at the same time spread out.
    let counted = endpoint.count();
    let endpoint = endpoint.address();
    let tcp = reach(endpoint, &context.timeouts).await?;
    let stream = ReadAhead::new(tcp).with_on_close(Box::new(counted));
    secure(stream, &cluster.tls.name, config, endpoint).await
}

async fn dial(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: &Arc<Endpoint>,
) -> Result<Connection, UpstreamError> {
    let tls = handshake(context, cluster, config, endpoint).await?;
    let endpoint = endpoint.address();
    let failed = |source: io::Error| UpstreamError::Connect { endpoint, source };
    if chose_h2(&tls) {
        socket::set_user_timeout(tls.get_ref().0.tcp(), &context.timeouts).map_err(failed)?;
        let established = H2Connection::establish(
            WriteBatcher::new(tls),
            endpoint,
            &context.timeouts,
            &context.drain,
        )
        .await;
        return established
            .map(Connection::H2)
            .map_err(|source| failed(io::Error::other(source)));
    }
    let connection = H1Connection::new(Box::new(tls), endpoint);
    Ok(Connection::H1(connection))
}

/// TCP with an endpoint.
pub(super) async fn reach(
    endpoint: UpstreamAddr,
    timeouts: &Timeouts,
) -> Result<TcpStream, UpstreamError> {
    TcpStream::connect(endpoint.0)
        .await
        .and_then(|tcp| socket::tune(&tcp, timeouts).map(|()| tcp))
        .map_err(|source| UpstreamError::Connect { endpoint, source })
}

/// TLS with an endpoint that proves to be `name`.
pub(super) async fn secure(
    stream: ReadAhead,
    name: &ServerName<'static>,
    config: &Arc<ClientConfig>,
    endpoint: UpstreamAddr,
) -> Result<TlsStream<ReadAhead>, UpstreamError> {
    TlsConnector::from(Arc::clone(config))
        .connect_with(name.clone(), stream, |connection| {
            connection.set_buffer_limit(Some(TLS_BUFFER))
        })
        .await
        .map_err(|source| handshake_error(endpoint, source))
}

fn chose_h2(tls: &TlsStream<ReadAhead>) -> bool {
    tls.get_ref().1.alpn_protocol() == Some(b"h2")
}

fn handshake_error(endpoint: UpstreamAddr, source: io::Error) -> UpstreamError {
    let refused = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>());
    match refused {
        // Taken out of its wrapping, which rustls prints as a dump of types.
        Some(Error::InvalidCertificate(CertificateError::Other(cause))) => UpstreamError::Verify {
            endpoint,
            source: Arc::clone(&cause.0),
        },
        Some(error @ (Error::InvalidCertificate(_) | Error::NoCertificatesPresented)) => {
            UpstreamError::Verify {
                endpoint,
                source: Arc::new(error.clone()),
            }
        }
        Some(_) | None => UpstreamError::Handshake { endpoint, source },
    }
}

/// How long a dial may keep silent before the next endpoint is tried beside it.
const HEDGE: Duration = Duration::from_millis(300);
/// Bytes that rustls may hold for a peer that does not read.
const TLS_BUFFER: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use standin::{
        pki::Ca,
        tcp::{Behaviour, Peer},
        upstream::Upstream,
    };

    use super::*;
    use crate::{
        config::Limits,
        drain::Drain,
        upstream::{ClientTls, Endpoints},
    };

    const NAME: &str = "kubernetes.default.svc";

    fn cluster(ca: &Ca, endpoints: &[SocketAddr]) -> Cluster {
        let name = ServerName::try_from(NAME).unwrap();
        let tls = ClientTls::new(Arc::new(ca.roots()), name).unwrap();
        let endpoints = Arc::new(Endpoints::resolved(endpoints));
        Cluster::new("test".into(), String::new(), endpoints, tls)
    }

    async fn dial_once(
        context: &UpstreamContext,
        cluster: &Cluster,
    ) -> Result<SocketAddr, UpstreamError> {
        let connection = connect(context, cluster, &cluster.tls.h2).await?;
        Ok(connection.endpoint().0)
    }

    fn context() -> UpstreamContext {
        UpstreamContext::new(Limits::default(), Timeouts::default(), Drain::new())
    }

    #[tokio::test]
    async fn an_endpoint_that_failed_is_passed_over() {
        let ca = Ca::new("cluster");
        let ill = Peer::start(Behaviour::CloseInHandshake).await;
        let well = Upstream::builder(ca.server(&[NAME])).start().await;
        let cluster = cluster(&ca, &[ill.address(), well.address()]);
        let context = context();
        for _ in 0..4 {
            let endpoint = dial_once(&context, &cluster).await.unwrap();
            assert_eq!(endpoint, well.address());
        }
        assert_eq!(ill.connections(), 1);
    }

    #[tokio::test]
    async fn ill_endpoints_are_tried_when_there_is_no_other() {
        let ca = Ca::new("cluster");
        let one = Peer::start(Behaviour::CloseInHandshake).await;
        let other = Peer::start(Behaviour::ResetInHandshake).await;
        let cluster = cluster(&ca, &[one.address(), other.address()]);
        let context = context();
        for tries in 1..=3 {
            let error = dial_once(&context, &cluster).await.unwrap_err();
            assert!(
                matches!(error, UpstreamError::Handshake { .. }),
                "{error:?}"
            );
            assert_eq!((one.connections(), other.connections()), (tries, tries));
        }
    }

    #[tokio::test]
    async fn an_apiserver_with_another_certificate_gets_no_byte_and_the_next_endpoint_is_tried() {
        let (ca, foreign) = (Ca::new("cluster"), Ca::new("foreign"));
        let ill = Upstream::builder(foreign.server(&[NAME])).start().await;
        let well = Upstream::builder(ca.server(&[NAME])).start().await;
        let cluster = cluster(&ca, &[ill.address(), well.address()]);
        let endpoint = dial_once(&context(), &cluster).await.unwrap();
        assert_eq!(endpoint, well.address());
        ill.connection_end(0).await;
        assert_eq!(ill.connections()[0].bytes_received, 0);
    }

    #[tokio::test]
    async fn the_log_says_in_words_which_certificate_was_refused() {
        let (ca, foreign) = (Ca::new("cluster"), Ca::new("foreign"));
        let ill = Upstream::builder(foreign.server(&[NAME])).start().await;
        let cluster = cluster(&ca, &[ill.address()]);
        let error = dial_once(&context(), &cluster).await.unwrap_err();
        let logged = error_chain(&error).to_string();
        let words = format!(
            "verify the certificate of {}: the certificate is not signed by the cluster CA (expected {NAME}; presented ",
            ill.address()
        );
        assert!(logged.starts_with(&words), "{logged}");
        assert!(error.verify_error().is_some(), "for the client's words");
    }
}
