//! What a client sees of an apiserver that speaks HTTP/1.1 in every way there is, and whether the connection
//! is used for the next request.

mod ambiguous;
mod apiserver;
mod asking;
mod bodies;
mod both_ways;
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
    status::{Answer, BOTH, Protocol},
};
use apiserver::{Apiserver, Then};
use asking::{Asking, Seen};

/// One answer of the apiserver, what the client sees of it, and what becomes of the connection.
#[derive(Debug, Clone)]
struct Case {
    what: &'static str,
    method: &'static str,
    /// Each is written by itself.
    pieces: Vec<Vec<u8>>,
    then: Then,
    expected: Expected,
    used_again: bool,
    /// A refusal is as good.
    or_refused: bool,
}

#[derive(Debug, Clone)]
enum Expected {
    /// This status and the whole of this body.
    Whole(u16, Vec<u8>),
    /// Not an end, and not more than this before.
    Cut(Vec<u8>),
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
            then: Then::Stays,
            expected: Expected::Refused,
            used_again: false,
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
    fn by(mut self, size: usize) -> Self {
        let answer = self.pieces.concat();
        self.pieces = answer.chunks(size).map(<[u8]>::to_vec).collect();
        self
    }

    fn then(mut self, then: Then) -> Self {
        self.then = then;
        self
    }

    fn is(mut self, status: u16, body: impl AsRef<[u8]>) -> Self {
        self.expected = Expected::Whole(status, body.as_ref().to_vec());
        self
    }

    /// The client sees at most this much of the body and then a cut.
    fn cut(mut self, begin: &'static str) -> Self {
        self.expected = Expected::Cut(begin.into());
        self
    }

    fn used_again(mut self) -> Self {
        self.used_again = true;
        self
    }

    fn or_refused(mut self) -> Self {
        self.or_refused = true;
        self
    }

    /// What is expected of this, now that it is known which of two ways the proxy took.
    fn settle(&self, seen: &Seen) -> Self {
        let refused = matches!(seen, Seen::Whole(answer) if answer.code == 502);
        if !(self.or_refused && refused) {
            return self.clone();
        }
        Self {
            expected: Expected::Refused,
            used_again: false,
            ..self.clone()
        }
    }

    #[track_caller]
    fn check(&self, seen: &Seen, context: &str) {
        match (&self.expected, seen) {
            (Expected::Whole(status, body), Seen::Whole(answer)) => {
                assert_eq!(answer.code, *status, "{context}: {}", begin(answer));
                assert!(answer.body == *body, "{context}: {}", begin(answer));
                let lengths = answer.lines("content-length");
                let is_length = |length: &&str| length.parse() == Ok(body.len());
                // Not theirs, but that of the body that another request would get.
                let bodiless = self.method == "HEAD" || matches!(status, 204 | 304);
                assert!(
                    bodiless || lengths.len() <= 1 && lengths.iter().all(is_length),
                    "{context}: another length than that of its body: {}",
                    begin(answer)
                );
            }
            (Expected::Cut(most), Seen::Cut { received }) => {
                assert!(most.starts_with(received), "{context}: {received:?}");
            }
            (Expected::Refused, Seen::Whole(answer)) => {
                assert_eq!(answer.code, 502, "{context}: {}", begin(answer));
                if self.method != "HEAD" {
                    answer.status(502, "InternalError");
                }
            }
            (expected, seen) => panic!("{context}: {seen:?} instead of {expected:?}"),
        }
    }
}

/// As much of it as a message about a failed test needs.
fn begin(answer: &Answer) -> String {
    format!("{answer:?}").chars().take(1000).collect()
}

/// Asks for every case over both protocols. Behind each the client asks for something else, and gets
/// exactly that.
async fn hold(cases: &[Case]) {
    for protocol in BOTH {
        hold_over(protocol, cases).await;
    }
}

async fn hold_over(protocol: Protocol, cases: &[Case]) {
    let world = World::new();
    let mut apiserver = Apiserver::start(&world, cases).await;
    let proxy = world.proxy(apiserver.address()).start();
    for (number, case) in cases.iter().enumerate() {
        let context = format!("{} over {protocol:?}", case.what);
        let target = format!("/{number}");
        let exchange = async {
            let mut client = Asking::start(&proxy, protocol).await;
            let seen = client.ask(case.method, &target).await;
            if client.has_ended(&seen) {
                client = Asking::start(&proxy, protocol).await;
            }
            let next = client.ask("GET", "/next").await;
            // The client stays until it is known where its second request went.
            (seen, next, client)
        };
        let (seen, next, _client) = within(&context, exchange).await;
        let case = case.settle(&seen);
        case.check(&seen, &context);
        let Seen::Whole(next) = next else {
            panic!("{context}: the next request got {next:?}");
        };
        assert_eq!(
            (next.code, next.text().as_str()),
            (200, "next"),
            "{context}"
        );
        let (first, second) = (apiserver.asked(), apiserver.asked());
        assert_eq!(
            (first.target.as_str(), second.target.as_str()),
            (target.as_str(), "/next"),
            "{context}: each request is sent once"
        );
        assert_eq!(
            first.connection == second.connection,
            case.used_again,
            "{context}: whether the connection was used again"
        );
        if !case.used_again {
            let end = apiserver.connection_end(first.connection);
            within(&format!("{context}: the end of its connection"), end).await;
        }
    }
    assert_eq!(apiserver.open_requests(), 0, "each request is sent once");
}
