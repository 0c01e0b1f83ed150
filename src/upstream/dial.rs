//! Dials an endpoint: TCP, TLS with verification, and the version of HTTP that both sides chose.
//!
//! `check` takes the same steps one by one ([`TcpConnected`]), so that it finds what `serve` would meet.
//! Nothing is sent to a server that was not verified.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use rustls::{CertificateError, ClientConfig, Error, ProtocolVersion};
use rustls_pki_types::ServerName;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ClientTls, Cluster, OutboundRoute, UpstreamContext, UpstreamError,
    context::Connection,
    endpoint::Endpoint,
    h1::H1Connection,
    h2::H2Connection,
    sockets::{ClientSockets, OpenSocket},
};
use crate::{
    config::Timeouts,
    hosts::UpstreamAddr,
    metrics::Dialled,
    pki::CertSummary,
    socket,
    transport::{ReadAhead, WriteBatcher},
};

/// Returns a new connection to the first endpoint that works, and records the health of each endpoint tried.
///
/// # Errors
///
/// As [`first_of`].
pub(super) async fn connect(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    sockets: &Arc<ClientSockets>,
) -> Result<Connection, UpstreamError> {
    first_of(cluster, sockets, |endpoint, socket| {
        try_one(context, cluster, config, endpoint, socket)
    })
    .await
}

/// Returns the result of the first dial that works. Each endpoint in turn is given to `dial`.
///
/// The next endpoint is tried as soon as one fails, and also when one is slow: a host that vanished must
/// not cost a request the whole connect timeout.
///
/// # Errors
///
/// The failure of an endpoint that was not verified, else of the one that failed last. No request byte was sent.
pub(super) async fn first_of<T, D>(
    cluster: &Cluster,
    sockets: &Arc<ClientSockets>,
    dial: impl Fn(Arc<Endpoint>, OpenSocket) -> D,
) -> Result<T, UpstreamError>
where
    D: Future<Output = Result<T, UpstreamError>>,
{
    let mut waiting = cluster.endpoints.pick().into_iter();
    let mut dials = Dials(Vec::new());
    let mut last = UpstreamError::NoEndpoint {
        name: cluster.endpoints.host().to_owned(),
    };
    loop {
        let has_next = match waiting.next() {
            Some(endpoint) => {
                if !dials.0.is_empty() {
                    cluster.endpoints.request_probe();
                }
                match sockets.take() {
                    Ok(permit) => {
                        // Here, so that a dial that is dropped before its first poll gives the permit back, too.
                        let socket = OpenSocket(permit);
                        dials.0.push(Box::pin(dial(endpoint, socket)));
                    }
                    Err(error) if dials.0.is_empty() => return Err(error),
                    // The dials in progress continue, and no other one starts.
                    Err(_) => {}
                }
                waiting.len() > 0
            }
            None if dials.0.is_empty() => return Err(last),
            None => false,
        };
        let ended = if has_next {
            timeout(HEDGE_TIMEOUT, dials.next()).await
        } else {
            Ok(dials.next().await)
        };
        match ended {
            Ok(Ok(connection)) => return Ok(connection),
            // A failed verification is the worst news, because another server may pose as the apiserver.
            Ok(Err(_)) if matches!(last, UpstreamError::Verify { .. }) => {}
            Ok(Err(error)) => last = error,
            Err(_elapsed) => {}
        }
    }
}

/// Dials that run side by side. The first success drops the others.
struct Dials<D>(Vec<Pin<Box<D>>>);

impl<T, D: Future<Output = Result<T, UpstreamError>>> Dials<D> {
    /// The result of the dial that ends next.
    async fn next(&mut self) -> D::Output {
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

/// Dials one endpoint within the timeout, and records the result.
async fn try_one(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: Arc<Endpoint>,
    socket: OpenSocket,
) -> Result<Connection, UpstreamError> {
    let opened = open(context, cluster, config, &endpoint, socket);
    let counters = &context.counters;
    in_time(context, cluster, &endpoint, opened)
        .await
        .inspect(|connection| {
            cluster.endpoints.mark_healthy(&endpoint);
            let times = endpoint.time_to_headers(counters.worker());
            let stats = connection.stats();
            stats.on_dial(counters, &cluster.in_use, times);
        })
        .inspect_err(|error| dial_failed(cluster, &endpoint, error))
}

/// Limits a dial to the timeout, and counts its result.
pub(super) async fn in_time<T>(
    context: &UpstreamContext,
    cluster: &Cluster,
    endpoint: &Endpoint,
    dial: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let timed_out = UpstreamError::ConnectTimeout {
        endpoint: endpoint.address(),
    };
    let dials = &context.counters.cluster(cluster.label()).dials;
    let limit = context.settings.load().timeouts.upstream_connect;
    timeout(limit, dial)
        .await
        .unwrap_or(Err(timed_out))
        .inspect(|_| dials.count(Dialled::Ok))
        .inspect_err(|error| {
            // The apiserver is not at fault when there is no socket.
            if !matches!(error, UpstreamError::NoSocket) {
                dials.count(error.as_dialled());
            }
        })
}

/// Records a failed dial with the health of its endpoint.
pub(super) fn dial_failed(cluster: &Cluster, endpoint: &Endpoint, error: &UpstreamError) {
    if !matches!(error, UpstreamError::NoSocket) {
        let why = cluster.describe(error);
        cluster.endpoints.dial_failed(endpoint, error, why);
    }
}

/// Opens a connection to one endpoint, ready for a request.
async fn open(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: &Arc<Endpoint>,
    socket: OpenSocket,
) -> Result<Connection, UpstreamError> {
    let permit = Arc::clone(&socket.0);
    let tls = verified_stream(context, cluster, config, endpoint, Some(socket)).await?;
    let endpoint = Arc::clone(endpoint);
    if !chose_h2(&tls) {
        let connection = H1Connection::new(Box::new(tls), endpoint).with_socket_permit(permit);
        return Ok(Connection::H1(connection));
    }
    let address = endpoint.address();
    let failed = |source| UpstreamError::Connect {
        endpoint: address,
        source,
    };
    let settings = context.settings.load_full();
    let timeouts = &settings.timeouts;
    socket::set_user_timeout(tls.get_ref().0.tcp(), timeouts).map_err(failed)?;
    let batcher = WriteBatcher::new(tls);
    let streams = settings.limits.streams_per_connection;
    H2Connection::establish(batcher, endpoint, timeouts, streams, &context.drain)
        .await
        .map(|connection| Connection::H2(connection.with_socket_permit(permit)))
        .map_err(|source| failed(io::Error::other(source)))
}

/// TCP and TLS with one endpoint, whose certificate is verified. `socket` is dropped with the stream.
///
/// # Errors
///
/// When any step fails. No request byte was sent.
pub(super) async fn verified_stream(
    context: &UpstreamContext,
    cluster: &Cluster,
    config: &Arc<ClientConfig>,
    endpoint: &Arc<Endpoint>,
    socket: Option<OpenSocket>,
) -> Result<TlsStream<ReadAhead>, UpstreamError> {
    // Counted before TCP connects, so that dials at the same time spread over the endpoints.
    let counted = endpoint.count();
    let settings = context.settings.load_full();
    let begun = Instant::now();
    let route = cluster.outbound.as_ref();
    let stream = reach(route, endpoint.address(), &settings.timeouts).await?;
    let connected = Instant::now();
    let times = endpoint.connect_times();
    times.tcp.observe(connected.duration_since(begun));
    let stream = stream.with_on_close(Box::new((counted, socket)));
    let handshake = tls_handshake(stream, &cluster.tls.name, config, endpoint.address());
    let secured = context.dial_turns.run(handshake).await?;
    times.tls.observe(connected.elapsed());
    Ok(secured)
}

/// Connects to an endpoint, or to the apiserver through the outbound proxy at its address.
///
/// # Errors
///
/// When the endpoint or the proxy does not connect.
pub(super) async fn reach(
    route: Option<&OutboundRoute>,
    endpoint: UpstreamAddr,
    timeouts: &Timeouts,
) -> Result<ReadAhead, UpstreamError> {
    match route {
        // On the heap: a dial without a proxy is no larger for it.
        Some(route) => Box::pin(route.connect(endpoint, timeouts)).await,
        None => tcp_connect(endpoint, timeouts).await.map(ReadAhead::new),
    }
}

pub(super) async fn tcp_connect(
    endpoint: UpstreamAddr,
    timeouts: &Timeouts,
) -> Result<TcpStream, UpstreamError> {
    TcpStream::connect(endpoint.0)
        .await
        .and_then(|tcp| socket::tune(&tcp, timeouts).map(|()| tcp))
        .map_err(|source| {
            if is_lack_of_sockets(&source) {
                UpstreamError::NoSocket
            } else {
                UpstreamError::Connect { endpoint, source }
            }
        })
}

/// Whether the process or the machine has no file, port or memory for another socket.
fn is_lack_of_sockets(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [
        Errno::MFILE,
        Errno::NFILE,
        Errno::ADDRNOTAVAIL,
        Errno::NOBUFS,
        Errno::NOMEM,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// The TLS handshake; the certificate of the endpoint must carry `name`.
async fn tls_handshake(
    stream: ReadAhead,
    name: &ServerName<'static>,
    config: &Arc<ClientConfig>,
    endpoint: UpstreamAddr,
) -> Result<TlsStream<ReadAhead>, UpstreamError> {
    TlsConnector::from(Arc::clone(config))
        .connect_with(name.clone(), stream, |connection| {
            connection.set_buffer_limit(Some(MAX_TLS_BUFFER));
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
        // Unwrapped, because rustls prints the wrapper as a dump of types.
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

/// The protocols that `check` offers to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// HTTP/2, and HTTP/1.1 if the server does not want it.
    Http2,
    /// HTTP/1.1 only, as for every upgrade.
    Http1,
}

/// The first step of a dial: a TCP connection to one endpoint.
#[derive(Debug)]
pub(crate) struct TcpConnected {
    endpoint: UpstreamAddr,
    deadline: Instant,
    stream: ReadAhead,
}

/// The second step of a dial: a verified connection, and the outcome of its handshake.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The connection, on which no request was sent yet.
    pub(crate) stream: TlsStream<ReadAhead>,
    /// Whether the server chose HTTP/2.
    pub(crate) is_http2: bool,
    /// `TLS 1.3` or `TLS 1.2`.
    pub(crate) version: &'static str,
    /// Subject, names and validity of the server's certificate.
    pub(crate) certificate: Option<CertSummary>,
}

impl TcpConnected {
    /// Connects to `endpoint`. The connect and the handshake share `timeouts.upstreamConnect`.
    ///
    /// # Errors
    ///
    /// The error that a dial of `serve` would return.
    pub(crate) async fn dial(
        route: Option<&OutboundRoute>,
        endpoint: UpstreamAddr,
        timeouts: &Timeouts,
    ) -> Result<Self, UpstreamError> {
        let deadline = Instant::now() + timeouts.upstream_connect;
        let stream = timeout_at(deadline, reach(route, endpoint, timeouts))
            .await
            .unwrap_or(Err(UpstreamError::ConnectTimeout { endpoint }))?;
        Ok(Self {
            endpoint,
            deadline,
            stream,
        })
    }

    /// Sends bytes that the server reads before TLS. A failure shows in the handshake.
    pub(crate) async fn send_first(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.ok();
    }

    /// Runs the TLS handshake and verifies the certificate.
    ///
    /// # Errors
    ///
    /// The error that a dial of `serve` would return.
    pub(crate) async fn secure(
        self,
        tls: &ClientTls,
        offer: Offer,
    ) -> Result<Verified, UpstreamError> {
        let endpoint = self.endpoint;
        let config = match offer {
            Offer::Http2 => &tls.h2,
            Offer::Http1 => &tls.h1,
        };
        let handshake = tls_handshake(self.stream, &tls.name, config, endpoint);
        let stream = timeout_at(self.deadline, handshake)
            .await
            .unwrap_or(Err(UpstreamError::ConnectTimeout { endpoint }))?;
        let session = stream.get_ref().1;
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
            // rustls supports no other version.
            Some(_) | None => "TLS 1.2",
        };
        let certificate = session
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(|leaf| CertSummary::from_der(leaf).ok());
        Ok(Verified {
            is_http2: chose_h2(&stream),
            version,
            certificate,
            stream,
        })
    }
}

/// How long a dial may take before the next endpoint is dialled beside it.
const HEDGE_TIMEOUT: Duration = Duration::from_millis(300);
/// Bytes that rustls may buffer for a peer that does not read.
const MAX_TLS_BUFFER: usize = 32 * 1024;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use standin::{
        pki::Ca,
        tcp::{Behaviour, Peer},
        upstream::Upstream,
    };

    use super::*;
    use crate::{drain::Drain, text::error_chain, upstream::Endpoints};

    const NAME: &str = "kubernetes.default.svc";

    fn cluster(ca: &Ca, endpoints: &[SocketAddr]) -> Cluster {
        let name = ServerName::try_from(NAME).unwrap();
        let tls = ClientTls::new(Arc::new(ca.roots()), name).unwrap();
        let endpoints = Arc::new(Endpoints::resolved(endpoints));
        Cluster::new(
            crate::metrics::ClusterLabels::default().label("test"),
            String::new(),
            endpoints,
            tls,
        )
    }

    async fn dial_once(
        context: &UpstreamContext,
        cluster: &Cluster,
    ) -> Result<SocketAddr, UpstreamError> {
        let sockets = ClientSockets::new(Arc::clone(&context.spare_sockets));
        let connection = connect(context, cluster, &cluster.tls.h2, &sockets).await?;
        Ok(connection.address().0)
    }

    fn context() -> UpstreamContext {
        UpstreamContext::new(Arc::default(), Drain::new())
    }

    #[tokio::test]
    async fn endpoint_that_failed_is_not_dialled_again() {
        let ca = Ca::new("cluster");
        let unhealthy = Peer::start(Behaviour::CloseInHandshake).await;
        let healthy = Upstream::builder(ca.server(&[NAME])).start().await;
        let cluster = cluster(&ca, &[unhealthy.address(), healthy.address()]);
        let context = context();
        for _ in 0..4 {
            let endpoint = dial_once(&context, &cluster).await.unwrap();
            assert_eq!(endpoint, healthy.address());
        }
        assert_eq!(unhealthy.connections(), 1);
    }

    #[tokio::test]
    async fn unhealthy_endpoints_are_dialled_when_there_is_no_other() {
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
    async fn unverified_apiserver_gets_no_byte_and_next_one_is_dialled() {
        let (ca, foreign) = (Ca::new("cluster"), Ca::new("foreign"));
        let unverified = Upstream::builder(foreign.server(&[NAME])).start().await;
        let verified = Upstream::builder(ca.server(&[NAME])).start().await;
        let cluster = cluster(&ca, &[unverified.address(), verified.address()]);
        let endpoint = dial_once(&context(), &cluster).await.unwrap();
        assert_eq!(endpoint, verified.address());
        unverified.connection_end(0).await;
        assert_eq!(unverified.connections()[0].bytes_received, 0);
    }

    #[test]
    fn lack_of_sockets_is_not_blamed_on_the_apiserver() {
        use rustix::io::Errno;
        let is_lack =
            |errno: Errno| is_lack_of_sockets(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!(
            [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL]
                .into_iter()
                .all(is_lack)
        );
        assert!(
            ![Errno::CONNREFUSED, Errno::HOSTUNREACH]
                .into_iter()
                .any(is_lack)
        );
    }

    #[tokio::test]
    async fn log_names_the_certificate_that_was_refused() {
        let (ca, foreign) = (Ca::new("cluster"), Ca::new("foreign"));
        let unverified = Upstream::builder(foreign.server(&[NAME])).start().await;
        let cluster = cluster(&ca, &[unverified.address()]);
        let error = dial_once(&context(), &cluster).await.unwrap_err();
        let logged = error_chain(&error).to_string();
        let expected = format!(
            "cannot verify the certificate of {}: the certificate is not signed by the cluster CA (expected {NAME}; presented ",
            unverified.address()
        );
        assert!(logged.starts_with(&expected), "{logged}");
        assert!(error.verify_error().is_some(), "for the client's response");
    }
}
