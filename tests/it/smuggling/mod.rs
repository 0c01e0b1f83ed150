//! Requests that two parsers could read in two ways. The apiserver receives exactly the requests that the tables name,
//! and the client that gets the upstream connection next gets the response to its own request.

mod http1;
mod http2;

use standin::{
    upstream::{Raw, Upstream},
    within,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_rustls::server::TlsStream;

use crate::proxy::{HOST, Proxy, World};

/// An HTTP/1.1 apiserver with a parser of its own. Its response to a request repeats the request.
struct Echo {
    upstream: Upstream,
    requests: mpsc::UnboundedReceiver<EchoedRequest>,
}

/// One request as it reached the apiserver.
#[derive(Debug)]
struct EchoedRequest {
    /// Method and target, then `=` and the body if there is one. [`PARTIAL`] ends it if the request was cut.
    text: Vec<u8>,
}

/// Ends the text of a request that did not arrive whole.
const PARTIAL: &[u8] = "…".as_bytes();

impl Echo {
    async fn start(world: &World) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        let apiserver = world.apiserver().alpn(&["http/1.1"]).raw(move |raw: Raw| {
            let sender = sender.clone();
            async move { serve(raw.stream, &sender).await }
        });
        Self {
            upstream: apiserver.start().await,
            requests,
        }
    }

    async fn next_request(&mut self) -> EchoedRequest {
        within("a request", self.requests.recv()).await.unwrap()
    }

    /// Sends a request as another client, on a connection of its own. Returns the requests that arrived before it,
    /// and asserts that the other client gets the response to its own request.
    async fn requests_before_victim(&mut self, proxy: &Proxy, number: usize) -> Vec<EchoedRequest> {
        let target = format!("/victim/{number}");
        let mut victim = proxy.client().http1().await;
        let response = victim.get(HOST, &target, "").await;
        let expected = format!("GET{target}");
        assert_eq!(response.text(), expected, "the victim's response");
        let mut before = Vec::new();
        loop {
            let request = self.next_request().await;
            if request.text == expected.as_bytes() {
                return before;
            }
            before.push(request);
        }
    }
}

async fn serve(mut stream: TlsStream<TcpStream>, sender: &mpsc::UnboundedSender<EchoedRequest>) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else {
                return;
            };
            head.push(byte);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ');
        let method = words.next().unwrap_or_default();
        let mut text = format!("{method}{}", words.next().unwrap_or_default()).into_bytes();
        let mut body = Vec::new();
        let end = read_body(&mut stream, &head, &mut body).await;
        if !body.is_empty() {
            text.push(b'=');
            text.extend(&body);
        }
        let mut response =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len()).into_bytes();
        if method != "HEAD" {
            response.extend(&text);
        }
        match end {
            BodyEnd::Complete => {}
            BodyEnd::Cut => text.extend(PARTIAL),
            // No table names such a request, so this one fails the test.
            BodyEnd::Malformed => text.extend(format!(" malformed: {head:?}").bytes()),
        }
        // A finished test has dropped the receiver.
        sender.send(EchoedRequest { text }).ok();
        if end != BodyEnd::Complete || stream.write_all(&response).await.is_err() {
            return;
        }
        if stream.flush().await.is_err() {
            return;
        }
    }
}

/// How a request ended at the apiserver.
#[derive(Debug, PartialEq, Eq)]
enum BodyEnd {
    Complete,
    /// The connection closed first.
    Cut,
    /// The proxy must never send this.
    Malformed,
}

/// Reads the body that this head announces.
async fn read_body(stream: &mut TlsStream<TcpStream>, head: &str, body: &mut Vec<u8>) -> BodyEnd {
    let values = |name: &str| -> Vec<String> {
        let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
        lines
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    let read = match (&lengths[..], &codings[..]) {
        ([], []) => return BodyEnd::Complete,
        ([length], []) => match length.parse() {
            Ok(length) => read_bytes(stream, length, body).await.ok_or(BodyEnd::Cut),
            Err(_) => return BodyEnd::Malformed,
        },
        ([], [coding]) if coding == "chunked" => read_chunks(stream, body).await,
        _ => return BodyEnd::Malformed,
    };
    read.map_or_else(|end| end, |()| BodyEnd::Complete)
}

async fn read_bytes(
    stream: &mut TlsStream<TcpStream>,
    length: u64,
    into: &mut Vec<u8>,
) -> Option<()> {
    for _ in 0..length {
        into.push(stream.read_u8().await.ok()?);
    }
    Some(())
}

async fn read_chunks(stream: &mut TlsStream<TcpStream>, body: &mut Vec<u8>) -> Result<(), BodyEnd> {
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            read_bytes(stream, 1, &mut line).await.ok_or(BodyEnd::Cut)?;
        }
        let size = String::from_utf8_lossy(&line);
        let size = u64::from_str_radix(size.trim_end(), 16).map_err(|_| BodyEnd::Malformed)?;
        read_bytes(stream, size, body).await.ok_or(BodyEnd::Cut)?;
        let mut end = Vec::new();
        read_bytes(stream, 2, &mut end).await.ok_or(BodyEnd::Cut)?;
        if end != b"\r\n" {
            return Err(BodyEnd::Malformed);
        }
        if size == 0 {
            return Ok(());
        }
    }
}

/// What the apiserver may receive beyond whole requests: the beginning of a request whose end never comes. It records
/// one only when the proxy closes the connection, which may be after the next request of another client.
#[derive(Debug, Default)]
struct Partials(Vec<Vec<u8>>);

impl Partials {
    /// The apiserver may receive at most this much of a request.
    fn allow(&mut self, most: &[u8]) {
        self.0.push(most.to_vec());
    }

    /// Whether this is the beginning of a request that [`allow`](Self::allow) named.
    fn take(&mut self, request: &EchoedRequest) -> bool {
        let Some(part) = request.text.strip_suffix(PARTIAL) else {
            return false;
        };
        let known = self.0.iter().position(|most| most.starts_with(part));
        known.map(|at| self.0.swap_remove(at)).is_some()
    }
}
