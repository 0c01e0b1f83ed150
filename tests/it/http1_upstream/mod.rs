//! Responses of an HTTP/1.1 apiserver in every shape: what the client receives, and whether the proxy reuses the
//! connection.

mod ambiguous;
mod apiserver;
mod bodies;
mod both_ways;
mod client;
mod connections;
mod cuts;
mod idle;
mod interim;
mod malformed;
mod upgrades;
mod upload_ends;
mod uploads;

use standin::within;

use crate::{
    proxy::World,
    responses::{BOTH, ClientResponse, Protocol},
};
use apiserver::{AfterResponse, Apiserver};
use client::{ClientResult, TestClient};

/// One response of the apiserver, what the client receives, and whether the connection is reused.
#[derive(Debug, Clone)]
struct Case {
    name: &'static str,
    method: &'static str,
    /// Each piece is written separately.
    pieces: Vec<Vec<u8>>,
    then: AfterResponse,
    expected: Expected,
    reused: bool,
    /// The proxy may refuse the response instead.
    or_refused: bool,
}

#[derive(Debug, Clone)]
enum Expected {
    /// This status and this complete body.
    Complete(u16, Vec<u8>),
    /// An aborted response with at most these bytes of its body.
    Aborted(Vec<u8>),
    /// A 502 that the proxy wrote.
    Refused,
}

impl Case {
    /// A GET whose response is these bytes. By default, the proxy must refuse the response, and the apiserver
    /// keeps the connection open.
    fn get(name: &'static str, response: impl AsRef<[u8]>) -> Self {
        Self {
            name,
            method: "GET",
            pieces: vec![response.as_ref().to_vec()],
            then: AfterResponse::KeepOpen,
            expected: Expected::Refused,
            reused: false,
            or_refused: false,
        }
    }

    fn head(name: &'static str, response: impl AsRef<[u8]>) -> Self {
        Self {
            method: "HEAD",
            ..Self::get(name, response)
        }
    }

    /// Writes `size` bytes at a time.
    fn in_chunks_of(mut self, size: usize) -> Self {
        let response = self.pieces.concat();
        self.pieces = response.chunks(size).map(<[u8]>::to_vec).collect();
        self
    }

    fn then(mut self, then: AfterResponse) -> Self {
        self.then = then;
        self
    }

    fn is(mut self, status: u16, body: impl AsRef<[u8]>) -> Self {
        self.expected = Expected::Complete(status, body.as_ref().to_vec());
        self
    }

    /// The client receives at most these bytes of the body, and then the response is aborted.
    fn aborted(mut self, start: &'static str) -> Self {
        self.expected = Expected::Aborted(start.into());
        self
    }

    fn reused(mut self) -> Self {
        self.reused = true;
        self
    }

    fn or_refused(mut self) -> Self {
        self.or_refused = true;
        self
    }

    /// Returns the case with its final expectation: if the proxy refused a response that it may refuse, a refusal.
    fn resolve(&self, seen: &ClientResult) -> Self {
        let refused = matches!(seen, ClientResult::Complete(response) if response.code == 502);
        if !(self.or_refused && refused) {
            return self.clone();
        }
        Self {
            expected: Expected::Refused,
            reused: false,
            ..self.clone()
        }
    }

    #[track_caller]
    fn check(&self, seen: &ClientResult, context: &str) {
        match (&self.expected, seen) {
            (Expected::Complete(status, body), ClientResult::Complete(response)) => {
                assert_eq!(response.code, *status, "{context}: {}", excerpt(response));
                assert!(response.body == *body, "{context}: {}", excerpt(response));
                let lengths = response.lines("content-length");
                let is_length = |length: &&str| length.parse() == Ok(body.len());
                // In these responses the length is that of the body that a GET would get.
                let bodiless = self.method == "HEAD" || matches!(status, 204 | 304);
                assert!(
                    bodiless || lengths.len() <= 1 && lengths.iter().all(is_length),
                    "{context}: Content-Length does not match the body: {}",
                    excerpt(response)
                );
            }
            (Expected::Aborted(most), ClientResult::Aborted { received }) => {
                assert!(most.starts_with(received), "{context}: {received:?}");
            }
            (Expected::Refused, ClientResult::Complete(response)) => {
                assert_eq!(response.code, 502, "{context}: {}", excerpt(response));
                if self.method != "HEAD" {
                    response.assert_status(502, "InternalError");
                }
            }
            (expected, seen) => panic!("{context}: {seen:?} instead of {expected:?}"),
        }
    }
}

/// The start of a response, short enough for an assertion message.
fn excerpt(response: &ClientResponse) -> String {
    format!("{response:?}").chars().take(1000).collect()
}

/// Sends the request of each case over both protocols. After each case the client sends another request, and must
/// get exactly the response to that request.
async fn check_all(cases: &[Case]) {
    for protocol in BOTH {
        check_over(protocol, cases).await;
    }
}

async fn check_over(protocol: Protocol, cases: &[Case]) {
    let world = World::new();
    let mut apiserver = Apiserver::start(&world, cases).await;
    let proxy = world.proxy(apiserver.address()).start();
    for (number, case) in cases.iter().enumerate() {
        let context = format!("{} over {protocol:?}", case.name);
        let target = format!("/{number}");
        let exchange = async {
            let mut client = TestClient::start(&proxy, protocol).await;
            let seen = client.request(case.method, &target).await;
            if client.is_closed_after(&seen) {
                client = TestClient::start(&proxy, protocol).await;
            }
            let next = client.request("GET", "/next").await;
            // Keep the client open until the test knows which connection its second request used.
            (seen, next, client)
        };
        let (seen, next, _client) = within(&context, exchange).await;
        let case = case.resolve(&seen);
        case.check(&seen, &context);
        let ClientResult::Complete(next) = next else {
            panic!("{context}: the next request got {next:?}");
        };
        assert_eq!(
            (next.code, next.text().as_str()),
            (200, "next"),
            "{context}"
        );
        let (first, second) = (apiserver.next_request(), apiserver.next_request());
        assert_eq!(
            (first.target.as_str(), second.target.as_str()),
            (target.as_str(), "/next"),
            "{context}: each request is sent once"
        );
        assert_eq!(
            first.connection == second.connection,
            case.reused,
            "{context}: whether the connection was reused"
        );
        if !case.reused {
            let end = apiserver.connection_end(first.connection);
            within(&format!("{context}: the end of its connection"), end).await;
        }
    }
    assert_eq!(apiserver.open_requests(), 0, "each request is sent once");
}
