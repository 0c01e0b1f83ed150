//! Clients that show more than a library does: single TLS records, exact bytes, single frames.
//!
//! ```no_run
//! # async fn example(proxy: std::net::SocketAddr, public: standin::pki::Ca) {
//! use standin::client::{Client, Http1};
//!
//! let tls = Client::new(proxy).trust(&public).sni("k8s.example.com").alpn(&["http/1.1"]).connect().await;
//! let mut client = Http1::new(tls.unwrap());
//! client.send("GET /version HTTP/1.1\r\nHost: k8s.example.com\r\n\r\n").await;
//! assert_eq!(client.response().await.status, 200);
//! # }
//! ```

mod http1;
mod http2;
mod sessions;
mod tls;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, OnceLock},
};

use rustls::{
    ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::{ClientSessionStore, ResolvesClientCert, Resumption},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
};

pub use http1::{Head, Http1, IncompleteBody, Response, parse_head};
pub use http2::{Http2, Http2Response, whole};
pub use tls::TlsConnection;

use sessions::SessionsOfAnyName;

use crate::{
    pki::{Ca, Identity, provider},
    within,
};

/// The settings of a TLS client. It offers no ALPN by default.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
    source: Option<IpAddr>,
    preamble: Vec<u8>,
    roots: RootCertStore,
    name: ServerName<'static>,
    alpn: Vec<Vec<u8>>,
    versions: Vec<&'static SupportedProtocolVersion>,
    identity: Option<Arc<Identity>>,
    requests: Option<Arc<CertificateRequests>>,
    sessions: Option<Arc<dyn ClientSessionStore>>,
    /// Built at the first connection and then kept: rustls resumes a session only with the same configuration.
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Client {
    /// A client for this address that trusts no CA and sends no server name.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            source: None,
            preamble: Vec::new(),
            roots: RootCertStore::empty(),
            name: ServerName::from(address.ip()),
            alpn: Vec::new(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            identity: None,
            requests: None,
            sessions: None,
            config: Arc::default(),
        }
    }

    /// Trusts this CA too.
    #[must_use]
    pub fn trust(mut self, ca: &Ca) -> Self {
        self.roots.roots.extend(ca.roots().roots);
        self.config = Arc::default();
        self
    }

    /// Trusts this certificate, in PEM, as a CA too.
    ///
    /// # Panics
    ///
    /// When it is not one certificate in PEM.
    #[must_use]
    pub fn trust_pem(mut self, pem: &str) -> Self {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM of a certificate");
        self.roots.add(der).expect("a certificate");
        self.config = Arc::default();
        self
    }

    /// Connects from this address, for instance another address of the loopback interface.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Sends these bytes before TLS, as a load balancer does.
    #[must_use]
    pub fn preamble(mut self, bytes: &[u8]) -> Self {
        self.preamble = bytes.to_vec();
        self
    }

    /// Sends this server name and expects it in the certificate.
    ///
    /// # Panics
    ///
    /// When it is neither a DNS name nor an address.
    #[must_use]
    pub fn sni(mut self, name: &str) -> Self {
        self.name = ServerName::try_from(name.to_owned()).expect("a DNS name or an address");
        self
    }

    /// Offers these protocols. An empty list omits the extension, as kubectl does for upgrade requests.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        self.config = Arc::default();
        self
    }

    /// Supports these TLS versions.
    #[must_use]
    pub fn tls_versions(mut self, versions: &[&'static SupportedProtocolVersion]) -> Self {
        self.versions = versions.to_vec();
        self.config = Arc::default();
        self
    }

    /// Presents this certificate when the server requests one.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(Arc::new(identity));
        self.config = Arc::default();
        self
    }

    /// Records whether the server requests a certificate.
    #[must_use]
    pub fn recording(mut self, requests: &Arc<CertificateRequests>) -> Self {
        self.requests = Some(Arc::clone(requests));
        self.config = Arc::default();
        self
    }

    /// Resumes the session of any server name under every other one, as no honest client does.
    #[must_use]
    pub fn sessions_of_any_name(mut self) -> Self {
        self.sessions = Some(Arc::new(SessionsOfAnyName::new()));
        self.config = Arc::default();
        self
    }

    /// Connects and runs the TLS handshake. A client and its clones share one session cache.
    ///
    /// # Errors
    ///
    /// When TCP or TLS fails. For a rejected certificate, the inner error is a `rustls::Error`.
    ///
    /// # Panics
    ///
    /// When the server does not respond in time.
    pub async fn connect(&self) -> io::Result<TlsConnection> {
        let tcp = within("a TCP connection", self.tcp()).await?;
        self.over(tcp).await
    }

    /// Connects without TLS. The wait has no limit.
    ///
    /// # Errors
    ///
    /// When TCP fails or the source address is not available.
    pub async fn tcp(&self) -> io::Result<TcpStream> {
        let Some(source) = self.source else {
            return TcpStream::connect(self.address).await;
        };
        let socket = if source.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        socket.bind(SocketAddr::new(source, 0))?;
        socket.connect(self.address).await
    }

    /// The bytes of a `ClientHello` with these settings, with their record header.
    ///
    /// # Panics
    ///
    /// When the settings are not valid.
    #[must_use]
    pub fn hello(&self) -> Vec<u8> {
        let mut tls = rustls::ClientConnection::new(self.config(), self.name.clone())
            .expect("the settings of a client are valid");
        let mut hello = Vec::new();
        tls.write_tls(&mut hello)
            .expect("a vector accepts all bytes");
        hello
    }

    /// Runs the TLS handshake on this connection, for instance on one from a specific port.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    ///
    /// # Panics
    ///
    /// When the server does not respond in time.
    pub async fn over(&self, mut tcp: TcpStream) -> io::Result<TlsConnection> {
        tcp.set_nodelay(true)?;
        tcp.write_all(&self.preamble).await?;
        let config = self.config.get_or_init(|| self.config());
        within(
            "a TLS handshake",
            TlsConnection::handshake(tcp, Arc::clone(config), self.name.clone()),
        )
        .await
    }

    /// Connects and speaks HTTP/1.1. Offers ALPN only if [`alpn`](Self::alpn) was called.
    ///
    /// # Panics
    ///
    /// When the connection fails.
    pub async fn http1(&self) -> Http1<TlsConnection> {
        Http1::new(self.connect().await.expect("a connection for HTTP/1.1"))
    }

    /// Connects with ALPN `h2` and speaks HTTP/2.
    ///
    /// # Panics
    ///
    /// When the connection fails or the server selects another protocol.
    pub async fn http2(&self) -> Http2 {
        let client = if self.alpn == [b"h2"] {
            self.clone()
        } else {
            self.clone().alpn(&["h2"])
        };
        let tls = client.connect().await.expect("a connection for HTTP/2");
        assert_eq!(
            tls.alpn(),
            Some("h2"),
            "the protocol that the server selected"
        );
        Http2::new(tls).await
    }

    fn config(&self) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&self.versions)
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
            .with_root_certificates(self.roots.clone());
        let mut config = match &self.identity {
            // Not `with_client_auth_cert`, which refuses a certificate without its key.
            Some(identity) => {
                let key = provider().key_provider.load_private_key(identity.key());
                let key = key.expect("a valid key");
                let certified = CertifiedKey::new(identity.chain.clone(), key);
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
            None => builder.with_no_client_auth(),
        };
        if let Some(requests) = &self.requests {
            config.client_auth_cert_resolver = Arc::new(RecordingResolver {
                requests: Arc::clone(requests),
                inner: config.client_auth_cert_resolver,
            });
        }
        if let Some(sessions) = &self.sessions {
            config.resumption = Resumption::store(Arc::clone(sessions));
        }
        config.alpn_protocols = self.alpn.clone();
        Arc::new(config)
    }
}

/// The requests for a certificate that a client has received.
#[derive(Debug, Default)]
pub struct CertificateRequests(Mutex<Vec<Vec<Vec<u8>>>>);

impl CertificateRequests {
    /// For each request the names of the CAs in it, as DER.
    ///
    /// # Panics
    ///
    /// When a handshake has panicked.
    #[must_use]
    pub fn all(&self) -> Vec<Vec<Vec<u8>>> {
        self.0.lock().expect("no handshake panics").clone()
    }
}

#[derive(Debug)]
struct RecordingResolver {
    requests: Arc<CertificateRequests>,
    inner: Arc<dyn ResolvesClientCert>,
}

impl ResolvesClientCert for RecordingResolver {
    fn resolve(&self, cas: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let names = cas.iter().map(|name| name.to_vec()).collect();
        let mut requests = self.requests.0.lock().expect("no handshake panics");
        requests.push(names);
        self.inner.resolve(cas, schemes)
    }

    /// rustls asks it only if this is true.
    fn has_certs(&self) -> bool {
        true
    }
}
