//! Answers to the challenge `http-01` (RFC 8555 §8.3): a port without TLS, which is open only while an order needs it.
//!
//! The port is on the internet, so it serves a token of an order in progress and nothing else. Nothing that it serves
//! is secret. The host of the request does not matter: a CA that another party has asked sends tokens of other orders,
//! which are not known here.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use http::{Method, Request, StatusCode};
use tokio::{net::TcpListener, sync, task::JoinHandle};
use tracing::debug;

use crate::{
    drain::Drain,
    listen_error::{ListenError, ListenFlag},
    plain_http::{PlainPort, PlainResponse, text, typed},
};

/// The challenges that wait for the CA, and the ports on which it asks. Empty, except while an order is in progress.
#[derive(Debug, Default)]
pub(super) struct Http01Answers {
    /// The key authorizations that the CA reads, by token.
    by_token: Mutex<HashMap<String, String>>,
    /// Certificates may share a port.
    ports: sync::Mutex<HashMap<SocketAddr, KnownPort>>,
}

/// Answers one challenge until dropped.
#[derive(Debug)]
pub(super) struct Http01Answer {
    answers: Arc<Http01Answers>,
    token: String,
    _port: Arc<OpenPort>,
}

/// The port for `http-01` cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {address} for the challenge http-01")]
pub(crate) struct Http01PortError {
    address: SocketAddr,
    source: ListenError,
}

/// A port that is open, or was.
#[derive(Debug)]
struct KnownPort {
    open: Weak<OpenPort>,
    /// Ends when the socket is closed.
    serving: JoinHandle<()>,
}

/// A port that is closed when the last answer on it is dropped.
#[derive(Debug)]
struct OpenPort {
    drain: Drain,
}

impl Http01Answers {
    /// Answers the challenge with this token on this address.
    ///
    /// # Errors
    ///
    /// When the port cannot be opened.
    pub(super) async fn answer(
        self: &Arc<Self>,
        address: SocketAddr,
        token: &str,
        key_authorization: &str,
    ) -> Result<Http01Answer, Http01PortError> {
        let port = self.open(address).await;
        let port = port.map_err(|error| Http01PortError::new(address, error))?;
        let by_token = self.by_token.lock();
        let mut by_token = by_token.unwrap_or_else(PoisonError::into_inner);
        by_token.insert(token.to_owned(), key_authorization.to_owned());
        Ok(Http01Answer {
            answers: Arc::clone(self),
            token: token.to_owned(),
            _port: port,
        })
    }

    async fn open(self: &Arc<Self>, address: SocketAddr) -> io::Result<Arc<OpenPort>> {
        let mut ports = self.ports.lock().await;
        if let Some(known) = ports.remove(&address) {
            if let Some(port) = known.open.upgrade() {
                ports.insert(address, known);
                return Ok(port);
            }
            // Otherwise its socket could still have the port.
            known.serving.await.ok();
        }
        let socket = TcpListener::bind(address).await?;
        let drain = Drain::new();
        let answers = Arc::clone(self);
        let respond = move |request: &Request<_>| answers.respond(request);
        let serving = PORT.serve(socket, |_| Ok(()), respond, drain.clone());
        let serving = drain.spawn(serving);
        let port = Arc::new(OpenPort { drain });
        let open = Arc::downgrade(&port);
        ports.insert(address, KnownPort { open, serving });
        Ok(port)
    }

    fn respond<B>(&self, request: &Request<B>) -> PlainResponse {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let token = request.uri().path().strip_prefix(CHALLENGE_PATH);
        let by_token = self.by_token.lock();
        let by_token = by_token.unwrap_or_else(PoisonError::into_inner);
        match token.filter(|_| is_read).and_then(|it| by_token.get(it)) {
            Some(key_authorization) => {
                debug!("ACME challenge served");
                typed("application/octet-stream", key_authorization.clone())
            }
            None => text(StatusCode::NOT_FOUND, NOT_FOUND),
        }
    }
}

impl Http01PortError {
    fn new(address: SocketAddr, error: io::Error) -> Self {
        let source = ListenError::new(ListenFlag::Http01, error);
        Self { address, source }
    }
}

impl Drop for Http01Answer {
    fn drop(&mut self) {
        let by_token = self.answers.by_token.lock();
        let mut by_token = by_token.unwrap_or_else(PoisonError::into_inner);
        by_token.remove(&self.token);
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        self.drain.begin();
    }
}

/// Checks that the port can be opened, and closes it again.
///
/// # Errors
///
/// When it cannot.
pub(crate) fn check(address: SocketAddr) -> Result<(), Http01PortError> {
    let socket = std::net::TcpListener::bind(address);
    socket
        .map(drop)
        .map_err(|error| Http01PortError::new(address, error))
}

const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";
const NOT_FOUND: &str =
    "not found: this port serves only ACME challenges; use https for kube-tls-proxy\n";
/// A CA connects from a few addresses at once, once per name. The connections are part of the reserve of open files
/// (`config::capacity`).
const PORT: PlainPort = PlainPort {
    name: "http-01",
    connections: 16,
    head_bytes: 8 * 1024,
    // The bytes that one client can send are then bounded too.
    keep_alive: false,
};

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use standin::within;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        time::{Duration, Instant},
    };

    use super::*;

    /// A port of loopback that was free a moment ago.
    fn free_address() -> SocketAddr {
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.local_addr().unwrap()
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.unwrap()
    }

    /// Sends these bytes on a new connection, and returns all that comes until the port closes it.
    async fn exchange(address: SocketAddr, sent: &[u8]) -> String {
        let mut stream = connect(address).await;
        // The port may close the connection before it has read everything.
        stream.write_all(sent).await.ok();
        received(&mut stream).await
    }

    async fn received(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        within("the end of the connection", stream.read_to_end(&mut bytes))
            .await
            .ok();
        String::from_utf8(bytes).unwrap()
    }

    fn get(path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: kube.test\r\n\r\n").into_bytes()
    }

    const RIGHT: &str = "/.well-known/acme-challenge/token-1";

    #[tokio::test]
    async fn only_the_token_of_an_order_gets_an_answer() {
        let answers = Arc::<Http01Answers>::default();
        let address = free_address();
        let held = answers.answer(address, "token-1", "token-1.key").await;
        let held = held.unwrap();
        for request in [
            &b"GET /.well-known/acme-challenge/token-1 HTTP/1.1\r\nHost: kube.test\r\n\r\n"[..],
            b"GET /.well-known/acme-challenge/token-1 HTTP/1.1\r\nHost: other.test:80\r\n\r\n",
            b"GET /.well-known/acme-challenge/token-1 HTTP/1.0\r\n\r\n",
        ] {
            let response = exchange(address, request).await;
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(" 200 OK\r\n"), "{head}");
            assert!(head.contains("\r\ncontent-type: application/octet-stream\r\n"));
            assert_eq!(body, "token-1.key");
        }
        for path in [
            "/",
            "/version",
            "/.well-known/acme-challenge/",
            "/.well-known/acme-challenge/token-2",
            "/.well-known/acme-challenge/token-1/",
            "/.well-known/acme-challenge/../acme-challenge/token-1",
            "/.well-known/acme-challenge/token%2d1",
            "/.Well-Known/acme-challenge/token-1",
            "//.well-known/acme-challenge/token-1",
        ] {
            let response = exchange(address, &get(path)).await;
            let (head, body) = response.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with("HTTP/1.1 404 Not Found\r\n"),
                "{path}: {head}"
            );
            assert!(!head.contains("location"), "{head}");
            assert_eq!(body, NOT_FOUND);
        }
        let post = format!("POST {RIGHT} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        let response = exchange(address, post.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
        drop(held);
    }

    #[tokio::test]
    async fn port_is_open_while_one_order_needs_it() {
        let answers = Arc::<Http01Answers>::default();
        let address = free_address();
        let first = answers.answer(address, "token-1", "a").await.unwrap();
        let second = answers.answer(address, "token-2", "b").await.unwrap();
        let mut idle = connect(address).await;
        drop(first);
        let response = exchange(address, &get(RIGHT)).await;
        assert!(response.starts_with("HTTP/1.1 404 "), "{response}");
        drop(second);
        // An order that begins at once does not find the port in use.
        let third = answers.answer(address, "token-1", "c").await.unwrap();
        assert_eq!(received(&mut idle).await, "");
        let response = exchange(address, &get(RIGHT)).await;
        assert!(response.ends_with("\r\n\r\nc"), "{response}");
        drop(third);
        let closed = async { while TcpStream::connect(address).await.is_ok() {} };
        within("the port to close", closed).await;
        assert!(answers.by_token.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn port_in_use_is_an_error_with_its_fix() {
        let answers = Arc::<Http01Answers>::default();
        let other = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = other.local_addr().unwrap();
        let errors = [
            answers.answer(address, "token-1", "a").await.unwrap_err(),
            check(address).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(
                crate::text::error_chain(&error).to_string(),
                format!(
                    "cannot open {address} for the challenge http-01: another process uses this port; \
                     stop it or choose another with --acme-http01-listen or `http01Listen` and forward port 80 to it"
                ),
            );
        }
        assert!(answers.by_token.lock().unwrap().is_empty());
        drop(other);
        check(address).unwrap();
        answers.answer(address, "token-1", "a").await.unwrap();
    }

    #[tokio::test]
    async fn second_request_of_a_connection_is_not_read() {
        let answers = Arc::<Http01Answers>::default();
        let address = free_address();
        let _held = answers.answer(address, "token-1", "a").await.unwrap();
        let response = exchange(address, &[get("/"), get(RIGHT)].concat()).await;
        assert_eq!(response.matches("HTTP/1.1").count(), 1, "{response}");
        assert!(response.contains("\r\nconnection: close\r\n"), "{response}");
    }

    #[tokio::test]
    async fn head_that_is_too_long_is_refused() {
        let answers = Arc::<Http01Answers>::default();
        let address = free_address();
        let _held = answers.answer(address, "token-1", "a").await.unwrap();
        let long = get(&format!("/{}", "x".repeat(9 * 1024)));
        let mut stream = connect(address).await;
        // Without its end: the port decides by the length, and not by the time.
        let began = Instant::now();
        stream.write_all(&long[..8 * 1024 + 500]).await.ok();
        let response = received(&mut stream).await;
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(
            response.is_empty() || response.starts_with("HTTP/1.1 431 "),
            "{response}"
        );
        // One more client is served.
        let response = exchange(address, &get(RIGHT)).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    }

    #[tokio::test(start_paused = true)]
    async fn head_that_does_not_end_closes_the_connection() {
        let answers = Arc::<Http01Answers>::default();
        let address = free_address();
        let _held = answers.answer(address, "token-1", "a").await.unwrap();
        for sent in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: a\r\n"] {
            let began = Instant::now();
            let mut stream = connect(address).await;
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            assert!(!bytes.starts_with(b"HTTP/1.1 2"));
            let took = began.elapsed();
            assert!(
                took >= Duration::from_secs(9) && took < Duration::from_secs(12),
                "{took:?}"
            );
        }
    }

    /// Otherwise clients that send nothing would keep the CA out.
    #[tokio::test]
    async fn silent_clients_do_not_keep_the_ca_out() {
        let answers = Arc::<Http01Answers>::default();
        let address = free_address();
        let _held = answers.answer(address, "token-1", "a").await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..2 * PORT.connections {
            silent.push(connect(address).await);
        }
        let response = exchange(address, &get(RIGHT)).await;
        assert!(response.ends_with("\r\n\r\na"), "{response}");
        // The oldest ones were closed for the new ones.
        for stream in silent.iter_mut().take(PORT.connections) {
            assert_eq!(received(stream).await, "");
        }
        let newest = silent.last_mut().unwrap();
        newest.write_all(&get(RIGHT)).await.unwrap();
        let response = received(newest).await;
        assert!(response.ends_with("\r\n\r\na"), "{response}");
    }
}
