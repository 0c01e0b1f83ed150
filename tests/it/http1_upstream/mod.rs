//! What a client sees of an apiserver that speaks HTTP/1.1 in every way there is, and whether the connection
//! is used for the next request.

mod ambiguous;
mod apiserver;
mod bodies;
mod both_ways;
mod client;
mod connections;
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

/// One answer of the apiserver, what the client sees of it, and what becomes of the connection.
#[derive(Debug, Clone)]
struct Case {
    what: &'static str,
    method: &'static str,
    /// Each is written by itself.
    pieces: Vec<Vec<u8>>,
    then: AfterResponse,
    expected: Expected,
    reused: bool,
    /// A refusal is as good.
    or_refused: bool,
}

#[derive(Debug, Clone)]
enum Expected {
    /// This status and the whole of this body.
    Complete(u16, Vec<u8>),
    /// Not an end, and not more than this before.
    Aborted(Vec<u8>),
    /// A 502 that the proxy wrote.
    Refused,
}

impl Case {
    /// A GET that is answered with these bytes. Until told otherwise they are expected to be refused, and
    /// the connection stays open on the side of the apiserver.
    fn get(what: &'static str, answer: impl AsRef<[u8]>) -> Self {
        Self {
            what,
            method: "GET",
            pieces: vec![answer.as_ref().to_vec()],
            then: AfterResponse::KeepOpen,
            expected: Expected::Refused,
            reused: false,
            or_refused: false,
        }
    }

    fn head(what: &'static str, answer: impl AsRef<[u8]>) -> Self {
        Self {
            method: "HEAD",
            ..Self::get(what, answer)
        }
    }

    /// Writes so many bytes at a time.
    fn in_chunks_of(mut self, size: usize) -> Self {
        let answer = self.pieces.concat();
        self.pieces = answer.chunks(size).map(<[u8]>::to_vec).collect();
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

    /// The client sees at most this much of the body and then a cut.
    fn aborted(mut self, begin: &'static str) -> Self {
        self.expected = Expected::Aborted(begin.into());
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

    /// What is expected of this, now that it is known which of two ways the proxy took.
    fn settle(&self, seen: &ClientResult) -> Self {
        let refused = matches!(seen, ClientResult::Complete(answer) if answer.code == 502);
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
            (Expected::Complete(status, body), ClientResult::Complete(answer)) => {
                assert_eq!(answer.code, *status, "{context}: {}", excerpt(answer));
                assert!(answer.body == *body, "{context}: {}", excerpt(answer));
                let lengths = answer.lines("content-length");
                let is_length = |length: &&str| length.parse() == Ok(body.len());
                // Not theirs, but that of the body that another request would get.
                let bodiless = self.method == "HEAD" || matches!(status, 204 | 304);
                assert!(
                    bodiless || lengths.len() <= 1 && lengths.iter().all(is_length),
                    "{context}: another length than that of its body: {}",
                    excerpt(answer)
                );
            }
            (Expected::Aborted(most), ClientResult::Aborted { received }) => {
                assert!(most.starts_with(received), "{context}: {received:?}");
            }
            (Expected::Refused, ClientResult::Complete(answer)) => {
                assert_eq!(answer.code, 502, "{context}: {}", excerpt(answer));
                if self.method != "HEAD" {
                    answer.assert_status(502, "InternalError");
                }
            }
            (expected, seen) => panic!("{context}: {seen:?} instead of {expected:?}"),
        }
    }
}

/// As much of it as a message about a failed test needs.
fn excerpt(answer: &ClientResponse) -> String {
    format!("{answer:?}").chars().take(1000).collect()
}

/// Asks for every case over both protocols. Behind each the client asks for something else, and gets
/// exactly that.
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
        let context = format!("{} over {protocol:?}", case.what);
        let target = format!("/{number}");
        let exchange = async {
            let mut client = TestClient::start(&proxy, protocol).await;
            let seen = client.request(case.method, &target).await;
            if client.is_closed_after(&seen) {
                client = TestClient::start(&proxy, protocol).await;
            }
            let next = client.request("GET", "/next").await;
            // The client stays until it is known where its second request went.
            (seen, next, client)
        };
        let (seen, next, _client) = within(&context, exchange).await;
        let case = case.settle(&seen);
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
            "{context}: whether the connection was used again"
        );
        if !case.reused {
            let end = apiserver.connection_end(first.connection);
            within(&format!("{context}: the end of its connection"), end).await;
        }
    }
    assert_eq!(apiserver.open_requests(), 0, "each request is sent once");
}
