//! The responses of the stand-in apiserver: complete bodies, and watches.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// The body of a response.
pub(crate) enum Answer {
    Whole(Option<Bytes>),
    Watch(mpsc::UnboundedReceiver<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match self.get_mut() {
            Self::Whole(data) => Poll::Ready(data.take()),
            Self::Watch(events) => events.poll_recv(context),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(data) => SizeHint::with_exact(data.as_ref().map_or(0, Bytes::len) as u64),
            Self::Watch(_) => SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }
}

/// A response with this status and this body; without a body if it is empty.
pub(crate) fn plain(status: StatusCode, body: Bytes) -> Response<Answer> {
    let body = (!body.is_empty()).then_some(body);
    let mut answer = Response::new(Answer::Whole(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    answer
}

/// A list of pods as JSON, of exactly `size` bytes.
pub(crate) fn pods(size: usize) -> Bytes {
    const HEAD: &str = r#"{"kind":"PodList","apiVersion":"v1","items":["#;
    const LAST: &str = r#"{"metadata":{"name":""#;
    const TAIL: &str = r#""}}]}"#;
    let mut text = String::with_capacity(size);
    text.push_str(HEAD);
    for number in 0.. {
        let pod = format!(
            r#"{{"metadata":{{"name":"web-{number:06}","namespace":"team-{:03}"}},"spec":{{"nodeName":"node-{:04}"}},"status":{{"phase":"Running"}}}},"#,
            number % 211,
            number % 1009,
        );
        if text.len() + pod.len() + LAST.len() + TAIL.len() > size {
            break;
        }
        text.push_str(&pod);
    }
    text.push_str(LAST);
    while text.len() + TAIL.len() < size {
        text.push('x');
    }
    text.push_str(TAIL);
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_json_of_the_size_asked_for() {
        for size in [1024, 5000, 70_001] {
            let list = pods(size);
            assert_eq!(list.len(), size);
            let list: serde_json::Value = serde_json::from_slice(&list).unwrap();
            assert!(list["items"].as_array().unwrap().len() > 1);
        }
    }
}
