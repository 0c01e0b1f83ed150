//! A TLS server whose responses a test defines, and which records what it receives.
//!
//! ```no_run
//! # async fn example() {
//! use standin::{pki::Ca, upstream::{Upstream, full}};
//!
//! let ca = Ca::new("cluster");
//! let upstream = Upstream::builder(ca.server(&["127.0.0.1"]))
//!     .http(|_request| async { http::Response::new(full("hello")) })
//!     .start()
//!     .await;
//! let request = upstream.next_request().await;
//! assert_eq!(request.target, "/version");
//! # }
//! ```

mod body;
mod heads;
mod record;
mod responders;
mod serve;
mod wire;

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
};

use http::{Request, Response};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::server::TlsStream;

pub use body::{BodySender, BoxError, Gone, RequestBody, ResponseBody, channel, empty, full};
pub use record::{BodyEnd, Connection, ConnectionEnd, MAX_BODY, MAX_FRAMES, Received, ResponseEnd};
pub use responders::{api, echo};

use crate::pki::{Identity, provider};
use record::Log;
use serve::{ServerState, serve};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handler = Arc<dyn Fn(Request<RequestBody>) -> BoxFuture<Response<ResponseBody>> + Send + Sync>;
type RawScript = Box<dyn Fn(Raw) -> BoxFuture<()> + Send + Sync>;

enum Script {
    Http(Handler),
    Raw(RawScript),
}

/// The connection of a request. It is one of the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(pub usize);

/// A decrypted connection, passed to a script.
#[derive(Debug)]
pub struct Raw {
    /// Bytes that are written in one call and flushed become one TLS record, up to 16 KiB.
    pub stream: TlsStream<TcpStream>,
    /// The facts that are known after the handshake.
    pub connection: Connection,
}

/// The settings of an [`Upstream`].
pub struct Builder {
    identity: Identity,
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    max_concurrent_streams: u32,
    asks_for_certificate: bool,
    keeps_requests: bool,
    script: Script,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("alpn", &self.alpn)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// The supported protocols, in order of preference; an empty list omits the extension. Default: `h2` and
    /// `http/1.1`.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        self
    }

    /// The supported TLS versions. Default: 1.2 and 1.3.
    #[must_use]
    pub fn tls_versions(mut self, versions: &[&'static SupportedProtocolVersion]) -> Self {
        self.versions = versions.to_vec();
        self
    }

    /// The maximum number of concurrent streams. Default: 100, as in kube-apiserver.
    #[must_use]
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.max_concurrent_streams = streams;
        self
    }

    /// Does not request a client certificate. The default is to request one, as kube-apiserver does, and to
    /// accept and record any certificate.
    #[must_use]
    pub fn without_certificate_request(mut self) -> Self {
        self.asks_for_certificate = false;
        self
    }

    /// Counts requests and does not keep them, so that a load of any length needs no memory.
    /// [`Upstream::requests`] is then empty, and so are the frames of every connection.
    #[must_use]
    pub fn only_counts(mut self) -> Self {
        self.keeps_requests = false;
        self
    }

    /// Responds to every request with this handler. A response header `Connection: close` over HTTP/2 becomes
    /// a GOAWAY, as in Go.
    #[must_use]
    pub fn http<A, F>(mut self, handler: A) -> Self
    where
        A: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ResponseBody>> + Send + 'static,
    {
        self.script = Script::Http(Arc::new(move |request| Box::pin(handler(request))));
        self
    }

    /// Passes every decrypted connection to this script, for bytes that no library would write.
    #[must_use]
    pub fn raw<A, F>(mut self, script: A) -> Self
    where
        A: Fn(Raw) -> F + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        self.script = Script::Raw(Box::new(move |raw| Box::pin(script(raw))));
        self
    }

    /// Listens on a free port of 127.0.0.1 and serves until the [`Upstream`] is dropped.
    ///
    /// # Panics
    ///
    /// When the identity's key cannot be read or no port is available.
    pub async fn start(self) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 is available");
        self.serve(listener)
    }

    /// Serves on this listener until the [`Upstream`] is dropped. Use it to start an upstream on the port of
    /// an earlier one.
    ///
    /// # Panics
    ///
    /// When the identity's key cannot be read.
    #[must_use]
    pub fn serve(self, listener: TcpListener) -> Upstream {
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let settings = TlsSettings {
            alpn: self.alpn,
            versions: self.versions,
            asks_for_certificate: self.asks_for_certificate,
        };
        let serving = Arc::new(ServerState {
            log: Arc::new(Log::new(self.keeps_requests)),
            tls: RwLock::new(settings.config(&self.identity)),
            script: self.script,
            max_concurrent_streams: self.max_concurrent_streams,
        });
        let accepting = tokio::spawn(accept(Arc::clone(&serving), listener));
        Upstream {
            address,
            settings,
            serving,
            accepting,
        }
    }
}

async fn accept(serving: Arc<ServerState>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (tcp, peer) = accepted.expect("the stand-in accepts a connection");
                tcp.set_nodelay(true).expect("a new socket accepts the option");
                let id = serving.log.connected(peer);
                connections.spawn(serve(Arc::clone(&serving), tcp, id));
            }
            Some(ended) = connections.join_next() => ended.expect("a script does not panic"),
        }
    }
}

struct TlsSettings {
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    asks_for_certificate: bool,
}

impl TlsSettings {
    fn config(&self, identity: &Identity) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions)
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3");
        let builder = if self.asks_for_certificate {
            builder.with_client_cert_verifier(Arc::new(AcceptAnyCertificate(provider())))
        } else {
            builder.with_no_client_auth()
        };
        let key = provider()
            .key_provider
            .load_private_key(identity.key())
            .expect("aws-lc-rs reads the keys of rcgen");
        // Unlike `with_single_cert`, this does not check that the key belongs to the certificate.
        let served = CertifiedKey::new(identity.chain.clone(), key);
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(served)));
        config.alpn_protocols = self.alpn.clone();
        Arc::new(config)
    }
}

/// A running upstream. Dropping it closes the listener and every connection.
pub struct Upstream {
    address: SocketAddr,
    settings: TlsSettings,
    serving: Arc<ServerState>,
    accepting: JoinHandle<()>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// An upstream that presents this certificate. By default it reads the body of every request and then
    /// responds with 200 and the body `ok`.
    #[must_use]
    pub fn builder(identity: Identity) -> Builder {
        Builder {
            identity,
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            versions: rustls::ALL_VERSIONS.to_vec(),
            max_concurrent_streams: 100,
            asks_for_certificate: true,
            keeps_requests: true,
            script: Script::Http(Arc::new(|request| {
                Box::pin(async {
                    // The record shows how the body ended.
                    drop(request.into_body().read().await);
                    Response::new(full("ok"))
                })
            })),
        }
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Presents another certificate from the next handshake on.
    pub fn present(&self, identity: &Identity) {
        *self
            .serving
            .tls
            .write()
            .unwrap_or_else(PoisonError::into_inner) = self.settings.config(identity);
    }

    /// Waits for the next request that an earlier call has not returned.
    pub async fn next_request(&self) -> Received {
        self.serving.log.next_request().await
    }

    /// All requests so far, in order of arrival, including those that [`next_request`](Self::next_request) returned.
    #[must_use]
    pub fn requests(&self) -> Vec<Received> {
        self.serving.log.requests()
    }

    /// All connections so far, in order of arrival.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.serving.log.read(|state| state.connections.clone())
    }

    /// The number of connections that were accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.serving.log.read(|state| state.connections.len())
    }

    /// The number of connections that are open, those in the handshake included.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        let is_open = |one: &&Connection| one.end.is_none();
        self.serving
            .log
            .read(|state| state.connections.iter().filter(is_open).count())
    }

    /// Waits until `find` returns a value for the connections, and returns it. `what` names it in the message.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        mut find: impl FnMut(&[Connection]) -> Option<T>,
    ) -> T {
        self.serving
            .log
            .wait(what, |state| find(&state.connections))
            .await
    }

    /// Waits until this connection has ended and returns how.
    pub async fn connection_end(&self, id: usize) -> ConnectionEnd {
        self.wait_for("the end of a connection", |connections| {
            connections.get(id)?.end.clone()
        })
        .await
    }

    /// The number of requests whose response has not ended, or not even begun.
    #[must_use]
    pub fn open_responses(&self) -> usize {
        self.serving.log.open_responses()
    }

    /// Waits until this many responses are open.
    pub async fn wait_for_open_responses(&self, wanted: usize) {
        let what = format!("{wanted} open responses");
        let found =
            |state: &record::State| (record::open_responses(state, None) == wanted).then_some(());
        self.serving.log.wait(&what, found).await;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Requests a certificate and accepts any whose key the client holds, as Go's `RequestClientCert` does.
#[derive(Debug)]
struct AcceptAnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AcceptAnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
