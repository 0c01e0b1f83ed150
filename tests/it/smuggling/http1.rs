//! The requests of `tests/differential/requests.txt`, sent to a running proxy over HTTP/1.1.

#[path = "../../differential/notation.rs"]
mod notation;

use std::time::Duration;

use standin::client::{Http1, Response, TlsConnection};

use self::notation::{Case, cases, decode};
use super::{Echo, PARTIAL, Partials};
use crate::proxy::{HOST, Proxy, World};

/// One step of an outcome.
enum Step {
    /// The apiserver receives this request, and the client gets its response.
    Forwarded(Vec<u8>),
    /// The apiserver receives at most this much of a request.
    Partial(Vec<u8>),
    /// The proxy responds with this status.
    Refused { status: u16, keeps_connection: bool },
    /// The connection closes.
    Closed,
    /// The proxy waits for more.
    Waits,
}

impl Step {
    fn parse(text: &str) -> Self {
        let (digits, keeps_connection) = text
            .strip_suffix('~')
            .map_or((text, false), |digits| (digits, true));
        match (text, digits.parse()) {
            ("close", _) => Self::Closed,
            ("wait", _) => Self::Waits,
            (_, Ok(status)) => Self::Refused {
                status,
                keeps_connection,
            },
            _ => {
                let request = decode(text);
                if request.ends_with(PARTIAL) {
                    Self::Partial(request)
                } else {
                    Self::Forwarded(request)
                }
            }
        }
    }
}

fn closes(response: &Response) -> bool {
    response.head.lines("connection").contains(&"close")
}

async fn response(client: &mut Http1<TlsConnection>) -> Result<Response, String> {
    let head = loop {
        let head = client.head().await;
        let head = head.map_err(|error| format!("instead of a response: {error}"))?;
        // The client has sent its body already.
        if head.status != 100 {
            break head;
        }
    };
    let body = client
        .body(&head)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Response {
        status: head.status,
        head,
        body,
    })
}

/// Plays one case as the attacker. Returns what differs from its outcome.
async fn play(client: &mut Http1<TlsConnection>, steps: &[Step]) -> Result<(), String> {
    let mut is_open = true;
    for step in steps {
        match step {
            Step::Forwarded(request) => {
                let response = response(client).await?;
                if response.status != 200 || response.body != request[..] {
                    return Err(format!("{} {}", response.status, response.text()));
                }
                is_open = !closes(&response);
            }
            Step::Refused {
                status,
                keeps_connection,
            } => {
                let response = response(client).await?;
                if response.status != *status || closes(&response) == *keeps_connection {
                    return Err(format!("{:?} {}", response.head, response.text()));
                }
                is_open = *keeps_connection;
            }
            Step::Closed => is_open = false,
            Step::Partial(_) | Step::Waits => is_open = true,
        }
    }
    if matches!(steps.last(), Some(Step::Partial(_) | Step::Waits)) {
        return Ok(());
    }
    if is_open {
        let request = format!("GET /probe HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        client.try_send(request).await.ok();
        let probe = response(client).await?;
        return match probe.text().as_str() {
            "GET/probe" => Ok(()),
            other => Err(format!("the next request got {} {other}", probe.status)),
        };
    }
    match client.end().await {
        Ok(rest) if rest.is_empty() => Ok(()),
        other => Err(format!("{other:?} after the last response")),
    }
}

/// Sends a case in pieces of this size, and then a request of another client.
async fn check(
    apiserver: &mut Echo,
    proxy: &Proxy,
    number: usize,
    case: &Case,
    piece: usize,
    partials: &mut Partials,
) -> Result<(), String> {
    let (outcome, _) = case.line.split_once(" | ").unwrap();
    let steps: Vec<Step> = outcome.split(" + ").map(Step::parse).collect();
    let mut client = proxy.client().http1().await;
    for piece in case.bytes.chunks(piece) {
        // The proxy may respond and close before it has read everything.
        if client.try_send(piece).await.is_err() {
            break;
        }
    }
    let played = tokio::time::timeout(PATIENCE, play(&mut client, &steps)).await;
    let played = played.unwrap_or_else(|_| Err("no response".to_owned()));
    drop(client);
    let mut named = Vec::new();
    for step in steps {
        match step {
            Step::Forwarded(request) => named.push(request),
            Step::Partial(most) => partials.allow(most.strip_suffix(PARTIAL).unwrap()),
            Step::Refused { .. } | Step::Closed | Step::Waits => {}
        }
    }
    let mut received = apiserver.requests_before_victim(proxy, number).await;
    received.retain(|request| request.text != b"GET/probe" && !partials.take(request));
    let differs = !received.iter().map(|request| &request.text).eq(&named);
    let received: Vec<_> = received
        .iter()
        .map(|request| String::from_utf8_lossy(&request.text).into_owned())
        .collect();
    played?;
    if differs {
        return Err(format!("the apiserver received {received:?}"));
    }
    Ok(())
}

/// Shorter than the wait after which the stand-in ends the whole test.
const PATIENCE: Duration = Duration::from_secs(5);
/// Characters of a case in a message.
const EXCERPT: usize = 400;

async fn check_all(cases: &[Case], piece: usize) {
    let world = World::new();
    let mut apiserver = Echo::start(&world).await;
    let proxy = world.proxy(apiserver.upstream.address()).start();
    let mut failed = Vec::new();
    let mut partials = Partials::default();
    for (number, case) in cases.iter().enumerate() {
        if let Err(why) = check(&mut apiserver, &proxy, number, case, piece, &mut partials).await {
            let text = format!("{}\n    {why}", case.line);
            failed.push(text.chars().take(EXCERPT).collect::<String>());
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {} cases:\n{}",
        failed.len(),
        cases.len(),
        failed.join("\n")
    );
}

#[tokio::test]
async fn http1_requests_reach_the_apiserver_as_listed() {
    let cases = cases();
    assert!(cases.len() >= 300, "{} cases", cases.len());
    check_all(&cases, usize::MAX).await;
}

/// The same requests, one byte per TLS record.
#[tokio::test]
async fn http1_requests_in_single_bytes_reach_it_as_listed() {
    let mut cases = cases();
    cases.retain(|case| case.bytes.len() < 150 && case.bytes.len() % 4 == 0);
    assert!(cases.len() >= 50, "{} cases", cases.len());
    check_all(&cases, 1).await;
}
