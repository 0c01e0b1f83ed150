//! exec, attach, cp and port-forward: from the request to the 101 or the refusal.

mod refused;
mod tokens;

use std::{io, sync::Mutex};

pub(crate) use standin::upstream::echo;
use standin::{
    upstream::{Connection, Raw, Upstream},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;

use crate::proxy::{HOST, World};

/// The first request that kubectl sends for an exec.
pub(crate) const WEBSOCKET: &str = "\
    GET /api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&stdout=true HTTP/1.1\r\n\
    Host: kube.test\r\n\
    Authorization: Bearer t\r\n\
    Connection: Upgrade\r\n\
    Upgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";

/// The request that kubectl sends after the WebSocket request was refused.
pub(crate) const SPDY: &str = "\
    POST /api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&stdout=true HTTP/1.1\r\n\
    Host: kube.test\r\n\
    Authorization: Bearer t\r\n\
    Content-Length: 0\r\n\
    Connection: Upgrade\r\n\
    Upgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v5.channel.k8s.io\r\n\
    X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";

pub(crate) const WEBSOCKET_101: &str = "\
    HTTP/1.1 101 Switching Protocols\r\n\
    Upgrade: websocket\r\n\
    Connection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
    Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";

pub(crate) const SPDY_101: &str = "\
    HTTP/1.1 101 Switching Protocols\r\n\
    Connection: Upgrade\r\n\
    Upgrade: SPDY/3.1\r\n\
    X-Stream-Protocol-Version: v5.channel.k8s.io\r\n\r\n";

/// An apiserver that gives each connection to the test after it has read the head of the request.
pub(crate) struct ManualApiserver {
    pub(crate) upstream: Upstream,
    requests: Mutex<mpsc::UnboundedReceiver<PendingRequest>>,
}

/// A connection with a request that has no response yet.
pub(crate) struct PendingRequest {
    pub(crate) connection: Connection,
    pub(crate) head: String,
    pub(crate) stream: TlsStream<TcpStream>,
}

impl ManualApiserver {
    pub(crate) async fn start(world: &World) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let upstream = world
            .apiserver()
            .alpn(&["http/1.1"])
            .raw(
                move |Raw {
                          mut stream,
                          connection,
                      }| {
                    let sender = sender.clone();
                    async move {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let Ok(byte) = stream.read_u8().await else {
                                return;
                            };
                            head.push(byte);
                        }
                        let head = String::from_utf8(head).unwrap();
                        // A finished test has dropped the receiver.
                        drop(sender.send(PendingRequest {
                            connection,
                            head,
                            stream,
                        }));
                    }
                },
            )
            .start()
            .await;
        Self {
            upstream,
            requests: Mutex::new(requests),
        }
    }

    #[expect(clippy::await_holding_lock, reason = "only one task waits")]
    pub(crate) async fn next_request(&self) -> PendingRequest {
        let mut requests = self.requests.lock().unwrap();
        within("a request", requests.recv()).await.unwrap()
    }
}

impl PendingRequest {
    /// Writes these bytes in one TLS record.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut received = vec![0; length];
        within("bytes of the client", self.stream.read_exact(&mut received))
            .await
            .unwrap();
        received
    }

    /// Reads until the proxy closes the connection. Returns an error when it closes without `close_notify`.
    pub(crate) async fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut received = Vec::new();
        within(
            "the end of the connection",
            self.stream.read_to_end(&mut received),
        )
        .await?;
        Ok(received)
    }

    /// Sends `close_notify` and closes the write half of the TCP connection.
    pub(crate) async fn shutdown(&mut self) {
        self.stream.shutdown().await.unwrap();
    }
}

/// Cases 8, 9. Discovery over h2, and an apiserver that prefers h2, do not affect an upgrade.
#[tokio::test]
async fn upgrade_uses_a_new_connection_that_offers_only_http1() {
    let world = World::new();
    let upstream = world.apiserver().http(echo).start().await;
    let proxy = world.proxy(upstream.address()).start();

    let discovery = proxy.client().http2().await;
    discovery.get("https://kube.test/version").await.unwrap();
    // The upstream connection of this client is idle, and the proxy could reuse it.
    let mut pods = proxy.client().http1().await;
    pods.get(HOST, "/api/v1/pods", "").await;
    drop(pods);
    let used: Vec<usize> = upstream
        .connections()
        .iter()
        .map(|connection| connection.id)
        .collect();

    let mut exec = proxy.client().http1().await;
    exec.send(WEBSOCKET).await;
    assert_eq!(exec.head().await.unwrap().status, 101);
    exec.send("hello").await;
    assert_eq!(exec.take(5).await.unwrap(), "hello");

    let connections = upstream.connections();
    let of_exec = connections.last().unwrap();
    assert!(
        !used.contains(&of_exec.id),
        "the upgrade uses a new connection"
    );
    assert_eq!(of_exec.alpn_offered, Some(vec!["http/1.1".to_owned()]));
    assert_eq!(of_exec.requests, 1);
    assert_eq!(
        connections[0].alpn.as_deref(),
        Some("h2"),
        "the apiserver prefers h2"
    );
}

/// Case 58. kube-rs requires that `Connection` is exactly `Upgrade`. The proxy removes no field of the 101 and adds
/// no field except `Date`.
#[tokio::test]
async fn fields_of_a_101_are_unchanged() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (request, response) in [(WEBSOCKET, WEBSOCKET_101), (SPDY, SPDY_101)] {
        let mut client = proxy.client().http1().await;
        client.send(request).await;
        apiserver.next_request().await.send(response).await;
        let head = client.head().await.unwrap();
        assert_eq!(head.status, 101);
        let mut lines: Vec<String> = head
            .headers
            .iter()
            .filter(|(name, _)| name != "date")
            .map(|(name, value)| format!("{name}: {value}").to_lowercase())
            .collect();
        let mut sent: Vec<String> = response.lines().skip(1).map(str::to_lowercase).collect();
        sent.retain(|line| !line.is_empty());
        lines.sort();
        sent.sort();
        assert_eq!(lines, sent);
        assert_eq!(head.lines("connection"), ["Upgrade"]);
    }
}

/// The fields of an upgrade request arrive unchanged.
#[tokio::test]
async fn fields_of_an_upgrade_request_are_unchanged() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for request in [WEBSOCKET, SPDY] {
        let mut client = proxy.client().http1().await;
        client.send(request).await;
        let server = apiserver.next_request().await;
        let received: Vec<String> = server.head.lines().map(str::to_lowercase).collect();
        for line in request.lines().filter(|line| !line.is_empty()) {
            let line = line.to_lowercase();
            assert!(received.contains(&line), "{line:?} is not in {received:?}");
        }
        let versions = received
            .iter()
            .filter(|line| line.starts_with("x-stream-protocol-version"));
        let sent = request.matches("X-Stream-Protocol-Version").count();
        assert_eq!(
            versions.count(),
            sent,
            "one line per version, in order of preference"
        );
    }
}

/// Case 39. The subprotocol list with a token arrives as one unchanged line.
#[tokio::test]
async fn bearer_subprotocol_reaches_the_apiserver_unchanged() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let protocols = "base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io,undefined";
    let mut client = proxy.client().http1().await;
    client
        .send(WEBSOCKET.replace("v5.channel.k8s.io", protocols))
        .await;
    let head = apiserver.next_request().await.head;
    let lines: Vec<&str> = head
        .lines()
        .filter(|line| line.to_lowercase().starts_with("sec-websocket-protocol"))
        .collect();
    assert_eq!(lines.len(), 1, "{head}");
    assert!(lines[0].ends_with(protocols), "{lines:?}");
}

/// Cases 14, 15. client-go's SPDY dialer drops bytes that share a TLS record with the 101. The first bytes of the
/// apiserver must still arrive.
#[tokio::test]
async fn the_101_has_its_own_tls_record() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    for (request, response) in [(WEBSOCKET, WEBSOCKET_101), (SPDY, SPDY_101)] {
        let mut client = proxy.client().connect().await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        let mut server = apiserver.next_request().await;
        server.send(format!("{response}hello-in-101")).await;
        let first = client.record().await.unwrap().unwrap();
        assert!(
            first.starts_with(b"HTTP/1.1 101 ") && first.ends_with(b"\r\n\r\n"),
            "{first:?}"
        );
        assert_eq!(client.record().await.unwrap().unwrap(), "hello-in-101");
    }
}

/// Some clients send data before the 101; not a byte of it may be lost.
#[tokio::test]
async fn bytes_sent_before_the_101_arrive_after_it() {
    let world = World::new();
    let apiserver = ManualApiserver::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let early = "GET / HTTP/1.1\r\n".repeat(300);
    let mut client = proxy.client().http1().await;
    client.send(format!("{SPDY}{early}")).await;
    client.send("and more").await;
    let mut server = apiserver.next_request().await;
    server.send(SPDY_101).await;
    assert_eq!(client.head().await.unwrap().status, 101);
    assert_eq!(
        server.read(early.len() + 8).await,
        format!("{early}and more").as_bytes()
    );
}
