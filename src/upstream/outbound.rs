//! Connects to an apiserver through an outbound proxy: with CONNECT of HTTP/1.1 (RFC 9110 §9.3.6), perhaps in TLS, or
//! with SOCKS 5 (RFC 1928 and 1929).
//!
//! The proxy gets host and port of the apiserver, resolves the name, and then carries bytes. TLS with the apiserver is
//! verified inside, as without a proxy. The response of the proxy is bounded in size, and with the dial in time.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Buf as _, BytesMut};
use rustls::{ClientConfig, RootCertStore};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{UpstreamError, dial::tcp_connect, tls};
use crate::{
    config::{ClusterConfig, OutboundProtocol, OutboundProxy, Timeouts},
    hosts::{UpstreamAddr, url_host},
    text::escape,
    transport::ReadAhead,
};

/// An outbound proxy, and the apiserver that it connects to.
#[derive(Debug, Clone)]
pub struct OutboundRoute {
    proxy: OutboundProxy,
    /// Host name or address of the apiserver, without brackets.
    host: String,
    port: u16,
    /// For a proxy that speaks TLS.
    tls: Option<Arc<ClientConfig>>,
}

/// Why an outbound proxy has opened no connection to an apiserver.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// TCP to the proxy could not be established.
    #[error("cannot connect to it")]
    Connect(#[source] io::Error),
    /// Nor in time.
    #[error("it accepts no connection within timeouts.upstreamConnect")]
    ConnectTimeout,
    /// TLS with the proxy failed.
    #[error("the TLS handshake with it failed")]
    Tls(#[source] io::Error),
    /// Its response did not come in time. It may wait for the apiserver.
    #[error("it has not connected to the apiserver within timeouts.upstreamConnect")]
    Timeout,
    /// The connection broke.
    #[error("its connection broke before its response")]
    Broken(#[source] io::Error),
    /// It closed the connection.
    #[error("it closed the connection before its response")]
    Closed,
    /// It wants other credentials.
    #[error("it refused: {0}; check user name and password in its URL")]
    Credentials(String),
    /// Another status than 200.
    #[error("it refused: {code} {reason}")]
    Status {
        /// The status code.
        code: u16,
        /// The text beside it, escaped.
        reason: String,
    },
    /// A reply code of SOCKS other than 0.
    #[error("it refused: {0}")]
    Socks(SocksRefusal),
    /// Its response is something else.
    #[error("its response is not that of {0}; check the scheme in its URL")]
    Protocol(&'static str),
    /// Its response is too long.
    #[error("its response is longer than {MAX_RESPONSE} bytes")]
    TooLong,
}

/// The reply code with which a SOCKS proxy refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocksRefusal(u8);

impl std::fmt::Display for SocksRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let meaning = match self.0 {
            1 => "general failure",
            SOCKS_NOT_ALLOWED => "its rules do not allow the connection",
            3 => "the network of the apiserver is unreachable",
            4 => "the apiserver is unreachable, or its name has no address",
            5 => "the apiserver refused the connection",
            6 => "the connection to the apiserver timed out",
            7 => "it does not support connections",
            8 => "it does not support this kind of address",
            _ => "unknown reason",
        };
        write!(f, "{meaning} (SOCKS reply {})", self.0)
    }
}

impl OutboundError {
    /// Whether a machine is down or cannot be reached. False if the configuration is more likely to be wrong.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Timeout
            | Self::Broken(_)
            | Self::Closed => true,
            Self::Status { code, .. } => *code >= 500,
            Self::Socks(refusal) => (1..=6).contains(&refusal.0) && refusal.0 != SOCKS_NOT_ALLOWED,
            Self::Tls(_) | Self::Credentials(_) | Self::Protocol(_) | Self::TooLong => false,
        }
    }

    /// Whether the proxy itself was reached and has answered for the way from there to the apiserver.
    pub(crate) fn is_beyond_proxy(&self) -> bool {
        match self {
            Self::Timeout | Self::Status { .. } | Self::Socks(_) => true,
            Self::Connect(_)
            | Self::ConnectTimeout
            | Self::Tls(_)
            | Self::Broken(_)
            | Self::Closed
            | Self::Credentials(_)
            | Self::Protocol(_)
            | Self::TooLong => false,
        }
    }
}

impl OutboundRoute {
    /// The way to `cluster` through its outbound proxy; `None` if it has none. A proxy that speaks TLS is verified
    /// against the public CAs and `roots`, those of the cluster: client-go knows the latter only.
    #[must_use]
    pub fn from_config(cluster: &ClusterConfig, roots: &RootCertStore) -> Option<Self> {
        let proxy = cluster.outbound.clone()?;
        Some(Self {
            tls: (proxy.protocol == OutboundProtocol::Https).then(|| tls::of_outbound_proxy(roots)),
            proxy,
            host: cluster.upstream_host.clone(),
            port: cluster.upstream_port,
        })
    }

    /// The proxy.
    #[must_use]
    pub fn proxy(&self) -> &OutboundProxy {
        &self.proxy
    }

    /// Host and port of the apiserver.
    pub(crate) fn apiserver(&self) -> String {
        format!("{}:{}", url_host(&self.host), self.port)
    }

    /// Opens a connection to the apiserver through the proxy at `endpoint`.
    ///
    /// # Errors
    ///
    /// When the proxy does not connect. No byte was sent to the apiserver.
    pub(super) async fn connect(
        &self,
        endpoint: UpstreamAddr,
        timeouts: &Timeouts,
    ) -> Result<ReadAhead, UpstreamError> {
        let failed = |source| UpstreamError::Outbound {
            endpoint,
            proxy: self.proxy.to_string(),
            source,
        };
        // Ends before the dial does, so that the error can name the proxy.
        let deadline = Instant::now() + timeouts.upstream_connect.saturating_sub(HEADROOM);
        let tcp = match timeout_at(deadline, tcp_connect(endpoint, timeouts)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(UpstreamError::Connect { source, .. })) => {
                return Err(failed(OutboundError::Connect(source)));
            }
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => return Err(failed(OutboundError::ConnectTimeout)),
        };
        timeout_at(deadline, self.open(tcp))
            .await
            .unwrap_or(Err(OutboundError::Timeout))
            .map_err(failed)
    }

    async fn open(&self, tcp: TcpStream) -> Result<ReadAhead, OutboundError> {
        let (mut stream, unread) = match &self.tls {
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let tls = connector.connect(self.proxy.name.clone(), tcp).await;
                let mut talk = Talk::new(tls.map_err(OutboundError::Tls)?);
                talk.ask(&self.connect_request(), connect_response).await?;
                (ReadAhead::in_tls(talk.stream), talk.unread)
            }
            None => {
                let mut talk = Talk::new(tcp);
                if self.proxy.protocol == OutboundProtocol::Socks5 {
                    self.open_socks(&mut talk).await?;
                } else {
                    talk.ask(&self.connect_request(), connect_response).await?;
                }
                (ReadAhead::new(talk.stream), talk.unread)
            }
        };
        stream.put_back(&unread);
        Ok(stream)
    }

    fn connect_request(&self) -> Vec<u8> {
        let target = self.apiserver();
        let authorization = self.proxy.credentials.as_ref().map(|(user, password)| {
            let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
            format!("Proxy-Authorization: Basic {basic}\r\n")
        });
        let authorization = authorization.unwrap_or_default();
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n").into_bytes()
    }

    async fn open_socks(&self, talk: &mut Talk<TcpStream>) -> Result<(), OutboundError> {
        let refused = |why: &str| Err(OutboundError::Credentials(why.to_owned()));
        let credentials = self.proxy.credentials.as_ref();
        let greeting: &[u8] = match credentials {
            Some(_) => &[SOCKS_VERSION, 2, SOCKS_NO_LOGIN, SOCKS_LOGIN],
            None => &[SOCKS_VERSION, 1, SOCKS_NO_LOGIN],
        };
        match (talk.ask(greeting, socks_method).await?, credentials) {
            (SOCKS_NO_LOGIN, _) => {}
            (SOCKS_LOGIN, Some((user, password))) => {
                let mut login = vec![LOGIN_VERSION];
                push_with_length(&mut login, user);
                push_with_length(&mut login, password);
                if talk.ask(&login, socks_login).await? != 0 {
                    return refused("the login is wrong");
                }
            }
            (SOCKS_NO_METHOD, None) => return refused("it wants a user name and a password"),
            (SOCKS_NO_METHOD, Some(_)) => return refused("it accepts no login with a password"),
            _ => return Err(OutboundError::Protocol(SOCKS)),
        }
        let mut request = vec![SOCKS_VERSION, SOCKS_CONNECT, 0];
        match self.host.parse() {
            Ok(IpAddr::V4(address)) => {
                request.push(SOCKS_V4);
                request.extend(address.octets());
            }
            Ok(IpAddr::V6(address)) => {
                request.push(SOCKS_V6);
                request.extend(address.octets());
            }
            Err(_) => {
                request.push(SOCKS_NAME);
                push_with_length(&mut request, &self.host);
            }
        }
        request.extend(self.port.to_be_bytes());
        match talk.ask(&request, socks_reply).await? {
            0 => Ok(()),
            code => Err(OutboundError::Socks(SocksRefusal(code))),
        }
    }
}

/// Adds a text after its length. Credentials and host names have at most 255 bytes.
fn push_with_length(request: &mut Vec<u8>, text: &str) {
    request.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    request.extend(text.bytes().take(usize::from(u8::MAX)));
}

/// What a response says, and its length; `None` if it is not complete.
type Said<T> = Result<Option<(T, usize)>, OutboundError>;

/// A conversation with an outbound proxy.
struct Talk<S> {
    stream: S,
    /// Bytes after the last response.
    unread: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    fn new(stream: S) -> Self {
        let unread = BytesMut::new();
        Self { stream, unread }
    }

    /// Sends a request and reads the response to it.
    async fn ask<T>(
        &mut self,
        request: &[u8],
        parse: fn(&[u8]) -> Said<T>,
    ) -> Result<T, OutboundError> {
        let sent = async {
            self.stream.write_all(request).await?;
            self.stream.flush().await
        };
        sent.await.map_err(OutboundError::Broken)?;
        loop {
            if let Some((said, length)) = parse(&self.unread)? {
                self.unread.advance(length.min(self.unread.len()));
                return Ok(said);
            }
            if self.unread.len() >= MAX_RESPONSE {
                return Err(OutboundError::TooLong);
            }
            let read = self.stream.read_buf(&mut self.unread).await;
            if read.map_err(OutboundError::Broken)? == 0 {
                return Err(OutboundError::Closed);
            }
        }
    }
}

/// The head of the response to CONNECT. As for client-go, only 200 means that the connection is open.
fn connect_response(bytes: &[u8]) -> Said<()> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    let parsed = head.parse(bytes);
    let length = match parsed.map_err(|_| OutboundError::Protocol(HTTP))? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(length) => length,
    };
    let code = head.code.unwrap_or_default();
    let reason = escape(head.reason.unwrap_or_default(), MAX_REASON).to_string();
    match code {
        200 => Ok(Some(((), length))),
        407 => Err(OutboundError::Credentials(format!("{code} {reason}"))),
        _ => Err(OutboundError::Status { code, reason }),
    }
}

/// The method of authentication that a SOCKS proxy has chosen.
fn socks_method(bytes: &[u8]) -> Said<u8> {
    match bytes {
        [] | [SOCKS_VERSION] => Ok(None),
        [SOCKS_VERSION, method, ..] => Ok(Some((*method, 2))),
        _ => Err(OutboundError::Protocol(SOCKS)),
    }
}

/// The result of a login; 0 is success.
fn socks_login(bytes: &[u8]) -> Said<u8> {
    match bytes {
        [] | [LOGIN_VERSION] => Ok(None),
        [LOGIN_VERSION, code, ..] => Ok(Some((*code, 2))),
        _ => Err(OutboundError::Protocol(SOCKS)),
    }
}

/// The reply code of a SOCKS proxy; 0 is success.
fn socks_reply(bytes: &[u8]) -> Said<u8> {
    let (kind, after) = match bytes {
        // Some proxies send no address with an error.
        [SOCKS_VERSION, code @ 1..=u8::MAX, ..] => return Ok(Some((*code, 2))),
        [SOCKS_VERSION, 0, 0, kind, after @ ..] => (*kind, after),
        [] | [SOCKS_VERSION] | [SOCKS_VERSION, 0] | [SOCKS_VERSION, 0, 0] => return Ok(None),
        _ => return Err(OutboundError::Protocol(SOCKS)),
    };
    let address = match (kind, after.first()) {
        (SOCKS_V4, _) => 4,
        (SOCKS_V6, _) => 16,
        (SOCKS_NAME, Some(length)) => 1 + usize::from(*length),
        (SOCKS_NAME, None) => return Ok(None),
        _ => return Err(OutboundError::Protocol(SOCKS)),
    };
    // The address is that of the proxy's own socket, and of no use here. A port follows.
    let length = 4 + address + 2;
    Ok((bytes.len() >= length).then_some((0, length)))
}

/// Fuzz target: the responses of outbound proxies. No parser panics, no response is longer than what was read, and it
/// is the same response whether more bytes follow or not.
pub(super) fn fuzz(bytes: &[u8]) {
    fn check<T: PartialEq>(parse: fn(&[u8]) -> Said<T>, bytes: &[u8]) {
        if let Ok(Some((said, length))) = parse(bytes) {
            let alone = bytes.get(..length).expect("a response within the bytes");
            assert!(matches!(parse(alone), Ok(Some((same, end))) if same == said && end == length));
        }
    }
    check(connect_response, bytes);
    for parse in [socks_method, socks_login, socks_reply] {
        check(parse, bytes);
    }
}

const HTTP: &str = "an HTTP proxy";
const SOCKS: &str = "a SOCKS 5 proxy";
const SOCKS_VERSION: u8 = 5;
const SOCKS_NO_LOGIN: u8 = 0;
const SOCKS_LOGIN: u8 = 2;
const SOCKS_NO_METHOD: u8 = 0xff;
const SOCKS_CONNECT: u8 = 1;
const SOCKS_V4: u8 = 1;
const SOCKS_NAME: u8 = 3;
const SOCKS_V6: u8 = 4;
const SOCKS_NOT_ALLOWED: u8 = 2;
const LOGIN_VERSION: u8 = 1;
/// Bytes of a response: the head of one over HTTP. Those of SOCKS have at most 262.
const MAX_RESPONSE: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
/// Characters of the text beside a status code that a message repeats.
const MAX_REASON: usize = 100;
/// How much sooner than the dial the conversation with the proxy ends.
const HEADROOM: Duration = Duration::from_millis(10);
