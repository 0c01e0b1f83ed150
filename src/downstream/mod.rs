//! Takes one accepted connection through its TLS handshake, and serves HTTP/1.1 or HTTP/2 on
//! it. ALPN alone chooses the protocol. A connection for a passthrough host leaves here after its `ClientHello`.

mod acme;
mod certificates;
mod client_auth;
mod handshake_log;
mod http1;
mod http2;
mod passthrough;
mod proxy_protocol;
#[cfg(test)]
mod tests;

use std::{error::Error, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{ServerConfig, ServerConnection, server::Acceptor};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};
use tracing::debug;

use acme::AcmeReply;

pub use acme::AcmeNames;
pub use certificates::server_config;
pub use client_auth::asking_server_config;
pub use handshake_log::HandshakeLog;
use passthrough::Greeting;
use proxy_protocol::ProxyHeaderError;

use crate::{
    clients::{Client, ClientTable, Place, Refusal},
    config::{Admission, LiveSettings, PeerPolicy},
    drain::{ConnectionKind, Drain, OpenConnection},
    hosts::PeerAddr,
    memory::MemoryPressure,
    metrics::{Connected, Counters, Handshake, Limit, Protocol},
    proxy::{
        self, ClientCertificates, ClientConnection, CredentialCache, PassedClient,
        PresentedCertificate, Routes,
    },
    socket,
    text::error_chain,
    transport::{LINGER, ReadAhead, send_last},
    upstream::{ClientLeases, UpstreamContext},
};

/// The fuzz bodies of this module: what the frames of an HTTP/2 client say, their budgets, where a `ClientHello` ends,
/// and PROXY headers.
pub(crate) const FUZZ: [fn(&[u8]); 4] = {
    let [targets, budgets] = http2::FUZZ;
    [targets, budgets, passthrough::fuzz, proxy_protocol::fuzz]
};

/// Everything that a reload replaces, as one value.
#[derive(Debug)]
pub struct Snapshot {
    /// Read once per handshake; `None` if no certificate comes from a CA by ACME.
    pub acme: Option<AcmeNames>,
    /// Read once per handshake, unless a route asks for certificates under the name of the client.
    pub tls: Arc<ServerConfig>,
    /// Read once per request, and once after the handshake for its SNI.
    pub routes: Arc<Routes>,
}

/// The state that all workers share. Requests only read it; a handshake takes a slot, and a reload replaces the
/// snapshot.
#[derive(Debug)]
pub struct Shared {
    /// The current state of everything that can be reloaded.
    pub snapshot: ArcSwap<Snapshot>,
    /// The places of all connections.
    pub clients: Arc<ClientTable>,
    /// Slots for handshakes in progress.
    pub handshakes: Arc<Semaphore>,
    /// Which failed handshakes were logged.
    pub handshake_log: HandshakeLog,
    /// Whether memory is short.
    pub memory: Arc<MemoryPressure>,
    /// Read once per connection.
    pub settings: LiveSettings,
}

/// Which peers may connect to one listener. A reload replaces it.
pub type LivePeers = Arc<ArcSwap<PeerPolicy>>;

/// A connection that was just accepted.
#[derive(Debug)]
pub struct NewConnection {
    /// The connection, with its TCP settings made.
    pub stream: TcpStream,
    /// The client, or a load balancer.
    pub peer: PeerAddr,
    /// Its place. It is unnamed if `peer` is a load balancer.
    pub place: Place,
    /// Which peers may connect to the listener that has accepted it.
    pub peers: LivePeers,
}

impl Shared {
    /// Decides about a peer that has just connected to a listener. Counts and logs one that is denied.
    pub fn judge(&self, peers: &LivePeers, peer: PeerAddr, counters: &Counters) -> Admission {
        let admission = peers.load().judge(peer.ip());
        if admission == Admission::Denied {
            counters.handshakes.count(Handshake::Denied);
            let error = HandshakeError::Denied;
            self.handshake_log.failed(peer, None, &error);
        }
        admission
    }
}

/// Everything that the requests of one connection need.
#[derive(Debug)]
struct Service {
    shared: Arc<Shared>,
    downstream: Arc<ClientConnection>,
}

/// Serves one accepted connection in a task of the drain.
pub fn spawn(
    accepted: NewConnection,
    shared: Arc<Shared>,
    context: Arc<UpstreamContext>,
    drain: &Drain,
) {
    let open = drain.count(ConnectionKind::Connection);
    // Without an async block around it, which would hold this future twice until the connection ends.
    drain.spawn(serve(accepted, shared, context, drain.clone(), open));
}

/// Serves a connection to its end. It returns no error, because every error here is the client's.
async fn serve(
    accepted: NewConnection,
    shared: Arc<Shared>,
    context: Arc<UpstreamContext>,
    drain: Drain,
    _open: OpenConnection,
) {
    let NewConnection {
        stream,
        peer,
        mut place,
        peers,
    } = accepted;
    let settings = shared.settings.load_full();
    let timeouts = &settings.timeouts;
    let (mut stream, mut client) = (ReadAhead::new(stream), peer);
    let network_peer = |client| Some(peer).filter(|peer| *peer != client);
    if place.is_unnamed() {
        let named = identify(&mut stream, peer, &mut place, &peers, timeouts.handshake);
        match Box::pin(named).await {
            Ok(Some(named)) => client = named,
            // A health check of the load balancer.
            Ok(None) => return,
            Err((client, error)) => {
                let counters = context.counters();
                if let HandshakeError::Refused(refusal) = error {
                    counters.limits_hit.count(refusal.into());
                } else {
                    counters.handshakes.count(error.label());
                }
                let log = &shared.handshake_log;
                log.failed(client, network_peer(client), &error);
                socket::reset_when_closed(stream.tcp());
                return;
            }
        }
        if place.is_waiting() {
            context.counters().limits_hit.count(Limit::Connections);
        }
    }
    let network_peer = network_peer(client);
    if !place.wait_for_permit(timeouts.handshake).await {
        socket::reset_when_closed(stream.tcp());
        return;
    }
    let snapshot = shared.snapshot.load_full();
    // On the heap: the handshake needs much memory for a moment, the connection little for hours.
    let accepted = Box::pin(async {
        tokio::select! {
            accepted = handshake(
                stream, &snapshot, place.client(), (&shared, timeouts.handshake), &context,
            ) => accepted,
            () = place.closing() => Err(HandshakeError::Closed),
        }
    });
    let accepted = accepted.await;
    let counters = Arc::clone(context.counters());
    let connect = |protocol, place| {
        let (counters, drain) = (Arc::clone(&counters), drain.clone());
        Connected::new(counters, client, network_peer, protocol, place, drain)
    };
    let stream = match accepted {
        Ok(HandshakeOutcome::Terminated(stream)) => stream,
        Ok(HandshakeOutcome::Passed(passed)) => {
            drop(snapshot);
            counters.handshakes.count(Handshake::Passed);
            let connected = connect(Protocol::Passthrough, place);
            let half_close_timeout = timeouts.half_close_timeout;
            let passed = proxy::pass(*passed, connected, &context, half_close_timeout, &drain);
            // On the heap, so that other connections do not pay for it.
            return Box::pin(passed).await;
        }
        Ok(HandshakeOutcome::Challenge(stream)) => {
            counters.handshakes.count(Handshake::Challenge);
            return Box::pin(refuse(*stream, &[])).await;
        }
        Err(error) => {
            if place.is_closing() {
                counters.limits_hit.count(Limit::ClientPlaces);
            }
            counters.handshakes.count(error.label());
            shared.handshake_log.failed(client, network_peer, &error);
            return;
        }
    };
    // It fails only for a dead socket, which the next read reports.
    socket::set_user_timeout(stream.get_ref().0.tcp(), timeouts).ok();
    let (protocol, sni) = negotiated(stream.get_ref().1);
    let certificate = presented_certificate(stream.get_ref().1, &snapshot, &shared);
    let local = stream.get_ref().0.tcp().local_addr().ok();
    counters.handshakes.count(Handshake::Ok);
    let connected = Arc::new(connect(protocol, place));
    let downstream = ClientConnection {
        peer: client,
        sni: sni.filter(|name| snapshot.routes.serves(name)),
        local,
        forwarded_for: ClientConnection::forwarded_for(client),
        certificate,
        leases: ClientLeases::new(context),
        settings,
        connected: Arc::clone(&connected),
        drain,
        credentials: CredentialCache::default(),
    };
    drop(snapshot);
    let service = Arc::new(Service {
        shared,
        downstream: Arc::new(downstream),
    });
    // On the heap, so that a connection needs the memory of its own protocol only.
    if protocol == Protocol::Http2 {
        if let Err(error) = Box::pin(http2::serve(stream, service)).await {
            ended_early(client, &error);
        }
    } else if let Err(error) = Box::pin(http1::serve(stream, service)).await {
        ended_early(client, &error);
    }
    // A tunnel keeps the place after its connection has ended.
    if connected.place().is_closing() {
        connected.counters().limits_hit.count(Limit::ClientPlaces);
        debug!(client.address = %client, "connection closed to make room for another client");
    }
}

/// The certificate of the client, if it was asked for one and has presented it.
fn presented_certificate(
    session: &ServerConnection,
    snapshot: &Snapshot,
    shared: &Arc<Shared>,
) -> Option<Arc<PresentedCertificate>> {
    let route = snapshot.routes.asking_under(session.server_name())?;
    let chain = session.peer_certificates()?;
    let chain = chain.iter().map(|one| one.clone().into_owned()).collect();
    let shared = Arc::clone(shared);
    let routes = move || Arc::clone(&shared.snapshot.load().routes);
    let presented = PresentedCertificate::new(route.cluster.name(), chain, Box::new(routes));
    Some(Arc::new(presented))
}

fn ended_early(peer: PeerAddr, error: &(dyn Error + 'static)) {
    debug!(client.address = %peer, error = %error_chain(error), "downstream connection ended early");
}

/// Reads the PROXY header of a load balancer, and gives the connection its place as one of the client that it names.
/// `None` if the connection ended before its first byte.
///
/// # Errors
///
/// With the client as far as it is known.
async fn identify(
    stream: &mut ReadAhead,
    peer: PeerAddr,
    place: &mut Place,
    peers: &LivePeers,
    limit: Duration,
) -> Result<Option<PeerAddr>, (PeerAddr, HandshakeError)> {
    let header = tokio::select! {
        header = timeout(limit, proxy_protocol::read(stream, peer)) => header,
        () = place.closing() => Ok(Err(ProxyHeaderError::Displaced)),
    };
    let header = header.unwrap_or(Err(ProxyHeaderError::Timeout(limit)));
    let Some(client) = header.map_err(|error| (peer, error.into()))? else {
        return Ok(None);
    };
    if !peers.load().serves(client.ip()) {
        return Err((client, HandshakeError::Denied));
    }
    let rebound = place.rebind(client);
    rebound.map_err(|refusal| (client, HandshakeError::Refused(refusal)))?;
    Ok(Some(client))
}

/// What the handshake agreed on: the version of HTTP, and the name that the client asked for.
fn negotiated(session: &ServerConnection) -> (Protocol, Option<String>) {
    // No ALPN means HTTP/1.1: kubectl offers none when it dials for an upgrade.
    let protocol = match session.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        Some(_) | None => Protocol::Http1,
    };
    let sni = session
        .server_name()
        .map(|name| name.trim_end_matches('.').to_ascii_lowercase());
    (protocol, sni)
}

/// The beginning of a connection that is served.
enum HandshakeOutcome {
    /// The proxy has completed the TLS handshake.
    Terminated(Box<TlsStream<ReadAhead>>),
    /// The connection is passed through.
    Passed(Box<PassedClient>),
    /// A CA has the answer to its challenge.
    Challenge(Box<TlsStream<ReadAhead>>),
}

/// Why a downstream handshake failed.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    /// It took longer than `timeouts.handshake`.
    #[error("no TLS handshake within {limit:?}")]
    Timeout {
        limit: Duration,
        /// As in `Failed`.
        server_name: Option<Option<String>>,
    },
    /// Another client needed the place of the connection.
    #[error("closed to admit another client, because its client has the most connections")]
    Closed,
    /// A load balancer sent no valid PROXY header, or another peer sent one.
    #[error(transparent)]
    ProxyHeader(#[from] ProxyHeaderError),
    /// The lists of the listener deny the client.
    #[error("`allow` or `deny` of the listener keeps this address out")]
    Denied,
    /// The client that a load balancer has named gets no place.
    #[error("no place is free for this client")]
    Refused(Refusal),
    /// The client speaks HTTP without TLS.
    #[error("the client sent plain HTTP to the HTTPS port")]
    PlainHttp,
    /// There are passthrough hosts, and the `ClientHello` has more bytes than the proxy would replay.
    #[error("the ClientHello is larger than {} bytes", passthrough::MAX_HELLO)]
    HelloTooLarge,
    /// A CA has yet to issue the certificate.
    #[error("there is no certificate for this name yet")]
    NoCertificate {
        /// The name that the client asked for.
        server_name: Option<String>,
    },
    /// Client and proxy have no version or cipher in common, or the connection broke.
    #[error("TLS handshake")]
    Failed {
        #[source]
        source: io::Error,
        /// `None` if no `ClientHello` has arrived; else the name in it, if there is one.
        server_name: Option<Option<String>>,
    },
}

impl From<io::Error> for HandshakeError {
    fn from(source: io::Error) -> Self {
        let server_name = None;
        Self::Failed {
            source,
            server_name,
        }
    }
}

impl HandshakeError {
    /// The label of its counter.
    fn label(&self) -> Handshake {
        match self {
            Self::Timeout { .. } => Handshake::Timeout,
            Self::Closed | Self::Refused(_) => Handshake::Closed,
            Self::ProxyHeader(_) => Handshake::ProxyHeader,
            Self::Denied => Handshake::Denied,
            Self::PlainHttp => Handshake::PlainHttp,
            Self::NoCertificate { .. } => Handshake::NoCertificate,
            Self::HelloTooLarge | Self::Failed { .. } => Handshake::Failed,
        }
    }

    /// The name that the client asked for.
    fn server_name(&self) -> Option<&str> {
        match self {
            Self::Closed
            | Self::Refused(_)
            | Self::ProxyHeader(_)
            | Self::Denied
            | Self::PlainHttp
            | Self::HelloTooLarge => None,
            Self::NoCertificate { server_name } => server_name.as_deref(),
            Self::Timeout { server_name, .. } | Self::Failed { server_name, .. } => {
                server_name.as_ref()?.as_deref()
            }
        }
    }
}

/// Runs the TLS handshake, or only reads the `ClientHello` of a connection that is passed through, which needs no slot.
/// `timeouts.handshake` covers everything, including the wait for a slot. A client that fills its
/// own slots waits for them, so that it never fills those of all clients.
///
/// # Errors
///
/// When the client is too slow or the handshake fails.
async fn handshake(
    mut stream: ReadAhead,
    snapshot: &Snapshot,
    client: &Client,
    (shared, limit): (&Shared, Duration),
    context: &UpstreamContext,
) -> Result<HandshakeOutcome, HandshakeError> {
    let mut server_name = None;
    let handshake = async {
        let first = stream.first_bytes().await?;
        if is_plain_http(first) {
            Box::pin(refuse(stream, SPEAKS_HTTPS)).await;
            return Err(HandshakeError::PlainHttp);
        }
        if proxy_protocol::is_header(first) {
            Box::pin(refuse(stream, UNEXPECTED_MESSAGE)).await;
            return Err(ProxyHeaderError::Unexpected.into());
        }
        // A client takes a slot only after its whole ClientHello has arrived. Otherwise a few silent clients
        // would block all others.
        let hello = if snapshot.routes.has_passthrough() {
            match Box::pin(passthrough::read_hello(stream, &snapshot.routes)).await? {
                Greeting::Terminated(hello) => *hello,
                Greeting::Passed(client) => return Ok(HandshakeOutcome::Passed(client)),
            }
        } else {
            LazyConfigAcceptor::new(Acceptor::default(), stream).await?
        };
        server_name = Some(hello.client_hello().server_name().map(str::to_owned));
        let acme = snapshot.acme.as_ref();
        let reply = acme.map_or(AcmeReply::Ordinary, |acme| {
            acme.reply(&hello.client_hello())
        });
        let is_challenge = matches!(reply, AcmeReply::Challenge(_));
        let config = match reply {
            AcmeReply::Challenge(config) => config,
            AcmeReply::NoCertificate => {
                let StartHandshake { io, .. } = hello;
                Box::pin(refuse(io, UNRECOGNIZED_NAME)).await;
                let server_name = server_name.take().flatten();
                return Err(HandshakeError::NoCertificate { server_name });
            }
            AcmeReply::Ordinary => {
                let asking = snapshot
                    .routes
                    .asking_under(hello.client_hello().server_name());
                let asking = asking.and_then(|route| route.certificates.as_deref());
                Arc::clone(asking.map_or(&snapshot.tls, ClientCertificates::tls))
            }
        };
        let slots = [&client.handshakes, &shared.handshakes];
        if slots.iter().any(|slots| slots.available_permits() == 0) {
            context.counters().limits_hit.count(Limit::Handshakes);
        }
        let _slots = (
            client
                .handshakes
                .acquire()
                .await
                .map_err(io::Error::other)?,
            shared
                .handshakes
                .acquire()
                .await
                .map_err(io::Error::other)?,
        );
        let limit_buffer =
            |connection: &mut ServerConnection| connection.set_buffer_limit(Some(MAX_TLS_BUFFER));
        // In the future, because this call already exchanges keys and signs, which takes most of the time.
        let handshake = async { hello.into_stream_with(config, limit_buffer).await };
        // On the heap, because `run` holds it twice. A future of 8 KiB would also cost each HTTP/2 connection a page:
        // the allocator gives its memory to the read buffer of h2, and a silent client uses half of that buffer.
        let stream = context.client_turns().run(Box::pin(handshake)).await?;
        let stream = Box::new(stream);
        Ok(if is_challenge {
            HandshakeOutcome::Challenge(stream)
        } else {
            HandshakeOutcome::Terminated(stream)
        })
    };
    match timeout(limit, handshake).await {
        Ok(Err(HandshakeError::Failed { source, .. })) => Err(HandshakeError::Failed {
            source,
            server_name,
        }),
        Ok(ended) => ended,
        Err(_elapsed) => Err(HandshakeError::Timeout { limit, server_name }),
    }
}

/// Whether a connection begins with a request of HTTP instead of a TLS record, whose first byte is 22.
fn is_plain_http(first: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"PATCH ",
        b"DELETE ",
        b"OPTIONS ",
        b"CONNECT ",
        b"PRI ",
    ];
    METHODS.iter().any(|method| first.starts_with(method))
}

/// Sends the last bytes of a connection without HTTP, and ends it.
async fn refuse(stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) {
    timeout(LINGER, send_last(stream, bytes)).await.ok();
}

/// How long a client may leave pending data of a response unread (60 s in nginx, too: `send_timeout`).
const CLIENT_STALL: Duration = Duration::from_secs(60);
/// For a client that speaks HTTP, as Go and nginx do.
const SPEAKS_HTTPS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 86\r\nConnection: close\r\n\r\n\
    kube-tls-proxy: this port speaks HTTPS; begin its address in the client with https://\n";
/// A TLS alert, for the client of a load balancer that sends a PROXY header where none is expected: `check` knows it.
const UNEXPECTED_MESSAGE: &[u8] = &[21, 3, 3, 0, 2, 2, 10];
/// A TLS alert: the server has no certificate for the name (RFC 6066 §3).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];
/// How long a connection may take to end in order when another client needs its place.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes that rustls may hold for a client that does not read.
const MAX_TLS_BUFFER: usize = 32 * 1024;
