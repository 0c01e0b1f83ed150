//! Responses that end early, at every place and in every way. None of them looks complete to the client.

use super::{AfterResponse, Case, check_all};

/// A whole response in each framing. Its head has the same length in each.
const RESPONSES: [(&str, &str); 3] = [
    (
        "a length",
        "HTTP/1.1 200 OK\r\nX-A: 12345678\r\nContent-Length: 10\r\n\r\n0123456789",
    ),
    (
        "chunks",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5;a=b\r\n56789\r\n0\r\nX-T: y\r\n\r\n",
    ),
    (
        "a body until the close",
        "HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n0123456789",
    ),
];

const BODY: &str = "0123456789";

/// Ends each response after every third byte of its head and after every byte of its body.
fn cuts(then: AfterResponse) -> Vec<Case> {
    let mut cases = Vec::new();
    for (framing, response) in RESPONSES {
        let body = response.find("\r\n\r\n").unwrap() + 4;
        let is_until_close = framing == "a body until the close";
        for length in (0..response.len()).filter(|length| *length >= body || length % 3 == 0) {
            if is_until_close && then == AfterResponse::Close && length >= body {
                // This is a whole response.
                continue;
            }
            let name = format!("{framing}, {length} bytes, {then:?}").leak();
            let case = Case::get(name, &response[..length]).then(then);
            cases.push(if length < body {
                case
            } else {
                case.aborted(BODY)
            });
        }
        if is_until_close && then != AfterResponse::Close {
            let name = format!("{framing}, all bytes, {then:?}").leak();
            cases.push(Case::get(name, response).then(then).aborted(BODY));
        }
    }
    assert!(cases.len() >= 51, "{} cases", cases.len());
    cases
}

/// Case 24.
#[tokio::test]
async fn response_ended_by_close_notify_never_looks_complete() {
    check_all(&cuts(AfterResponse::Close)).await;
}

/// Case 24. Anyone on the path can close a TCP connection, but not forge a `close_notify`.
#[tokio::test]
async fn response_ended_without_close_notify_is_not_complete() {
    check_all(&cuts(AfterResponse::CloseWithoutNotify)).await;
}

/// Case 24.
#[tokio::test]
async fn response_ended_by_a_reset_never_looks_complete() {
    check_all(&cuts(AfterResponse::Reset)).await;
}
