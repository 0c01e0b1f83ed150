//! The TLS of every load, the same for each contender, and HTTP connections over it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    CipherSuite, ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::Error;

/// Time limit for TCP and TLS together.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many connections are opened at a time while a load gets ready. A larger burst would overflow the
/// shortest backlog among the contenders, which is not what the comparison measures.
const DIALS: usize = 32;
/// The windows of Go's HTTP/2 client, which kubectl uses.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// The target of the connections, and how to verify it.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// The address of the proxy
    #[arg(long)]
    to: SocketAddr,
    /// The name for SNI, Host and verification
    #[arg(long, default_value = crate::pki::FRONT_NAME)]
    name: String,
    /// The CA that the proxy's certificate must come from, PEM
    #[arg(long)]
    ca: PathBuf,
}

/// The protocol, chosen only by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/1.1
    H1,
    /// HTTP/2
    H2,
}

/// Whether a connection may resume the session of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// Every handshake is a full one.
    Fresh,
    /// The connections of one dialer resume each other's sessions.
    Resumed,
}

/// Opens connections to one target.
#[derive(Clone)]
pub(crate) struct Dialer {
    target: Target,
    tls: Arc<ClientConfig>,
    turns: Arc<Semaphore>,
}

impl Dialer {
    /// Reads the CA.
    ///
    /// # Errors
    ///
    /// When the CA cannot be read.
    pub(crate) fn new(
        target: &Target,
        protocol: Protocol,
        sessions: Sessions,
    ) -> Result<Self, Error> {
        let unreadable = |err: &dyn std::error::Error| -> Error {
            format!("read the CA {}: {err}", target.ca.display()).into()
        };
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(&target.ca).map_err(|err| unreadable(&err))? {
            roots.add(cert.map_err(|err| unreadable(&err))?)?;
        }
        let mut tls = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = match protocol {
            Protocol::H1 => vec![b"http/1.1".to_vec()],
            Protocol::H2 => vec![b"h2".to_vec()],
        };
        if sessions == Sessions::Fresh {
            tls.resumption = Resumption::disabled();
        }
        Ok(Self {
            target: target.clone(),
            tls: Arc::new(tls),
            turns: Arc::new(Semaphore::new(DIALS)),
        })
    }

    /// A TLS connection.
    ///
    /// # Errors
    ///
    /// When TCP or TLS fails, or takes too long.
    pub(crate) async fn tls(&self) -> Result<TlsStream<TcpStream>, Error> {
        let _turn = self.turns.acquire().await?;
        let dial = async {
            let tcp = TcpStream::connect(self.target.to).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(self.target.name.clone())?;
            let tls = TlsConnector::from(Arc::clone(&self.tls));
            Ok::<_, Error>(tls.connect(name, tcp).await?)
        };
        timeout(HANDSHAKE_TIMEOUT, dial)
            .await
            .map_err(|_| format!("no TLS connection within {HANDSHAKE_TIMEOUT:?}"))?
    }

    /// An HTTP/1.1 connection, driven by a task of its own.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub(crate) async fn http1(&self) -> Result<http1::SendRequest<Empty<Bytes>>, Error> {
        over_http1(self.tls().await?).await
    }

    /// An HTTP/2 connection, driven by a task of its own.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub(crate) async fn http2(&self) -> Result<http2::SendRequest<Empty<Bytes>>, Error> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(self.tls().await?))
            .await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A GET as kubectl writes it: an absolute URI over HTTP/2, a path and a Host over HTTP/1.1.
    ///
    /// # Errors
    ///
    /// When the path is not valid.
    pub(crate) fn get(
        &self,
        protocol: Protocol,
        path: &str,
    ) -> Result<Request<Empty<Bytes>>, Error> {
        let request = match protocol {
            Protocol::H1 => Request::get(path).header("host", &self.target.name),
            Protocol::H2 => Request::get(format!("https://{}{path}", self.target.name)),
        };
        let request = HEADERS.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        Ok(request.body(Empty::new())?)
    }

    /// The head of an upgrade request to `path`, as kubectl writes it: a GET for WebSocket, a POST for SPDY.
    pub(crate) fn upgrade(&self, path: &str, protocol: &str) -> String {
        let is_websocket = protocol == "websocket";
        let method = if is_websocket { "GET" } else { "POST" };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.target.name);
        let mut add = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        for (name, value) in HEADERS {
            add(name, value);
        }
        add("connection", "Upgrade");
        add("upgrade", protocol);
        if is_websocket {
            // Some proxies answer 400 without these.
            add("sec-websocket-version", "13");
            add("sec-websocket-key", WEBSOCKET_KEY);
        } else {
            add("content-length", "0");
        }
        head + "\r\n"
    }
}

/// HTTP/1.1 over an open TLS connection.
///
/// # Errors
///
/// When hyper refuses it.
pub(crate) async fn over_http1(
    tls: TlsStream<TcpStream>,
) -> Result<http1::SendRequest<Empty<Bytes>>, Error> {
    let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Returns an error unless the status is 200.
///
/// # Errors
///
/// When it is another status.
pub(crate) fn expect_ok(status: StatusCode) -> Result<(), Error> {
    if status == StatusCode::OK {
        Ok(())
    } else {
        Err(format!("answered {status}").into())
    }
}

/// One cipher suite and one key exchange that every contender has, so that all of them compute the same.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    Arc::new(provider)
}

/// The header fields that kubectl sends with every request.
const HEADERS: &[(&str, &str)] = &[
    ("user-agent", "kubectl/v1.33.0 (linux/amd64)"),
    ("accept", "application/json"),
    ("authorization", "Bearer 0123456789abcdef0123456789abcdef"),
];

/// The key of the example in RFC 6455 §1.3, and its response.
const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
