//! A scriptable TLS server that records what reaches it.
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

use crate::pki::{Identity, provider};
use serve::{Serving, serve};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Answer = Arc<dyn Fn(Request<RequestBody>) -> BoxFuture<Response<ResponseBody>> + Send + Sync>;
type RawScript = Box<dyn Fn(Raw) -> BoxFuture<()> + Send + Sync>;

enum Script {
    Http(Answer),
    Raw(RawScript),
}

/// The connection that a request came on; among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(pub usize);

/// A decrypted connection handed to a script.
#[derive(Debug)]
pub struct Raw {
    /// Bytes written in one call and flushed leave as one TLS record, up to 16 KiB.
    pub stream: TlsStream<TcpStream>,
    /// What is known about it after the handshake.
    pub connection: Connection,
}

/// An upstream on its way.
pub struct Builder {
    identity: Identity,
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    max_concurrent_streams: u32,
    asks_for_certificate: bool,
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
    /// The protocols it agrees to, most wanted first; empty leaves the extension out. `h2` and `http/1.1`
    /// when not said.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        self
    }

    /// The TLS versions it speaks; 1.2 and 1.3 when not said.
    #[must_use]
    pub fn tls_versions(mut self, versions: &[&'static SupportedProtocolVersion]) -> Self {
        self.versions = versions.to_vec();
        self
    }

    /// How many streams a client may open; 100 as kube-apiserver when not said.
    #[must_use]
    pub fn max_concurrent_streams(mut self, streams: u32) -> Self {
        self.max_concurrent_streams = streams;
        self
    }

    /// Does not ask for a client certificate. kube-apiserver always asks, and so does this by default; it
    /// takes any certificate and records it.
    #[must_use]
    pub fn without_certificate_request(mut self) -> Self {
        self.asks_for_certificate = false;
        self
    }

    /// Answers every request with this. A response header `Connection: close` over HTTP/2 becomes a
    /// GOAWAY, as in Go.
    #[must_use]
    pub fn http<A, F>(mut self, answer: A) -> Self
    where
        A: Fn(Request<RequestBody>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ResponseBody>> + Send + 'static,
    {
        self.script = Script::Http(Arc::new(move |request| Box::pin(answer(request))));
        self
    }

    /// Hands every decrypted connection to this script, for bytes that no library would write.
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
    /// When the identity's key cannot be read or no port can be had.
    pub async fn start(self) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port of 127.0.0.1 can be had");
        self.serve(listener)
    }

    /// Serves on this listener until the [`Upstream`] is dropped; for an upstream that comes back on the
    /// port of one that has gone.
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
        let serving = Arc::new(Serving {
            log: Arc::default(),
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

async fn accept(serving: Arc<Serving>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (tcp, peer) = accepted.expect("the stand-in can accept");
                tcp.set_nodelay(true).expect("a fresh socket takes options");
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
            builder.with_client_cert_verifier(Arc::new(TakeAnyCertificate(provider())))
        } else {
            builder.with_no_client_auth()
        };
        let key = provider()
            .key_provider
            .load_private_key(identity.key())
            .expect("aws-lc-rs reads the keys of rcgen");
        // Unlike `with_single_cert` this does not look whether the key belongs to the certificate.
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
    serving: Arc<Serving>,
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
    /// An upstream that presents this certificate. Until told otherwise it answers every request with 200
    /// and the body `ok`, once it has read the request's body.
    #[must_use]
    pub fn builder(identity: Identity) -> Builder {
        Builder {
            identity,
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            versions: rustls::ALL_VERSIONS.to_vec(),
            max_concurrent_streams: 100,
            asks_for_certificate: true,
            script: Script::Http(Arc::new(|request| {
                Box::pin(async {
                    // How the body ended is in the record.
                    drop(request.into_body().read().await);
                    Response::new(full("ok"))
                })
            })),
        }
    }

    /// Where it listens.
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

    /// Waits for the next request that was not taken yet and takes it.
    pub async fn next_request(&self) -> Received {
        self.serving.log.next_request().await
    }

    /// All requests so far, taken or not, in order of arrival.
    #[must_use]
    pub fn requests(&self) -> Vec<Received> {
        self.serving.log.requests()
    }

    /// All connections so far, in order of arrival.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.serving.log.read(|state| state.connections.clone())
    }

    /// Waits until `find` finds something among the connections and returns that; `what` names it.
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

    /// How many responses have begun or are awaited and have not ended.
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

/// Asks for a certificate and takes any that proves to hold its key, as Go's `RequestClientCert`.
#[derive(Debug)]
struct TakeAnyCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for TakeAnyCertificate {
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
