//! Cheap clients that check everything: a wrong status or length ends the bench.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, request::Builder};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, HandshakeKind, client::Resumption};
use rustls_pki_types::ServerName;
use standin::pki::{Ca, provider};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::HOST;

/// The settings of all connections to the proxy.
pub(crate) struct Client {
    address: SocketAddr,
    h2: TlsConnector,
    http1: TlsConnector,
}

/// One HTTP/2 connection.
pub(crate) struct Http2 {
    send: SendRequest<Bytes>,
    driver: JoinHandle<Result<(), h2::Error>>,
    pub(crate) handshake: Option<HandshakeKind>,
}

/// One HTTP/1.1 connection.
pub(crate) struct Http1 {
    send: http1::SendRequest<Empty<Bytes>>,
}

impl Client {
    /// A client with this kind of session resumption.
    pub(crate) fn new(address: SocketAddr, public: &Ca, resumption: Resumption) -> Self {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs speaks TLS 1.2 and 1.3")
            .with_root_certificates(public.roots())
            .with_no_client_auth();
        config.resumption = resumption;
        let http1 = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            address,
            h2: TlsConnector::from(Arc::new(config)),
            // kubectl offers no ALPN when it wants to upgrade, and the proxy then uses HTTP/1.1.
            http1: TlsConnector::from(Arc::new(http1)),
        }
    }

    async fn connect(&self, tls: &TlsConnector) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.address).await;
        let tcp = tcp.expect("the proxy listens");
        tcp.set_nodelay(true)
            .expect("a new socket accepts the option");
        let name = ServerName::try_from(HOST).expect("a DNS name");
        tls.connect(name, tcp).await.expect("a TLS handshake")
    }

    pub(crate) async fn http2(&self) -> Http2 {
        let tls = self.connect(&self.h2).await;
        let handshake = tls.get_ref().1.handshake_kind();
        // The windows of client-go.
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(4 << 20)
            .initial_connection_window_size(1 << 30);
        let connected = builder.handshake(tls).await;
        let (send, connection) = connected.expect("an HTTP/2 connection");
        Http2 {
            send,
            driver: tokio::spawn(connection),
            handshake,
        }
    }

    pub(crate) async fn http1(&self) -> Http1 {
        let tls = TokioIo::new(self.connect(&self.http1).await);
        let connected = http1::handshake(tls).await;
        let (send, connection) = connected.expect("an HTTP/1.1 connection");
        tokio::spawn(connection);
        Http1 { send }
    }

    /// An upgraded connection, as exec and port-forward use it.
    pub(crate) async fn tunnel(&self) -> TlsStream<TcpStream> {
        let mut tls = self.connect(&self.http1).await;
        let request = format!(
            "POST /exec HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
        );
        let sent = tls.write_all(request.as_bytes()).await;
        sent.expect("the proxy accepts the request");
        tls.flush().await.expect("the proxy accepts the request");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tls.read_u8().await.expect("a response"));
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101 "),
            "the response is not a 101"
        );
        tls
    }
}

impl Http2 {
    /// Sends a request and waits for the head of a 200 response.
    pub(crate) async fn open(&self, path: &str) -> RecvStream {
        let request = request(format!("https://{HOST}{path}").parse().expect("a URL"));
        let request = request.body(()).expect("a valid request");
        let room = self.send.clone().ready().await;
        let sent = room.expect("room for a stream").send_request(request, true);
        let (response, _) = sent.expect("the connection accepts a request");
        let response = response.await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.into_body()
    }

    /// Sends a request and reads the whole response, which must have this length.
    pub(crate) async fn get(&self, path: &str, length: usize) {
        let mut body = self.open(path).await;
        let mut received = 0;
        while let Some(data) = body.data().await {
            received += release_data(&mut body, data);
        }
        assert_eq!(received, length, "{path}");
    }

    /// Closes the connection.
    pub(crate) async fn close(self) {
        drop(self.send);
        let ended = self.driver.await.expect("the connection does not panic");
        ended.expect("the connection ends cleanly");
    }
}

/// Returns the length of a piece of a response, and releases its flow-control window.
pub(crate) fn release_data(body: &mut RecvStream, data: Result<Bytes, h2::Error>) -> usize {
    let length = data.expect("the response is not aborted").len();
    let released = body.flow_control().release_capacity(length);
    released.expect("the released bytes were received");
    length
}

impl Http1 {
    /// Sends a request and reads the whole response, which must have this length.
    pub(crate) async fn get(&mut self, path: &str, length: usize) {
        let request = request(path.parse().expect("a path")).header("host", HOST);
        let request = request.body(Empty::new()).expect("a valid request");
        self.send.ready().await.expect("the connection is open");
        let response = self.send.send_request(request).await.expect("a response");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.expect("the response is not aborted");
            received += frame.data_ref().map_or(0, Bytes::len);
        }
        assert_eq!(received, length, "{path}");
    }
}

fn request(target: http::Uri) -> Builder {
    let mut request = Request::get(target);
    if let Some(headers) = request.headers_mut() {
        *headers = kubectl_fields();
    }
    request
}

/// The header fields of `kubectl get`, with a token as long as that of a service account.
pub(crate) fn kubectl_fields() -> HeaderMap {
    let token = format!("Bearer {}", "x".repeat(900));
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    let fields = [
        ("accept", table),
        ("accept-encoding", "gzip"),
        ("authorization", &token),
        ("kubectl-command", "kubectl get"),
        ("kubectl-session", "7c0ffd83-ea3d-4a4c-90f0-3ba1c5a1ed8a"),
        (
            "user-agent",
            "kubectl/v1.34.1 (linux/amd64) kubernetes/93248f9",
        ),
    ];
    let fields = fields.map(|(name, value)| {
        let value = HeaderValue::from_str(value).expect("a valid value");
        (HeaderName::from_static(name), value)
    });
    fields.into_iter().collect()
}
