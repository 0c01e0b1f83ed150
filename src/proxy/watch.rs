//! Ends a watch between two events once the drain begins, so that its client resumes from the last one
//! and sees no error.
//!
//! The bytes pass through untouched: all that is known of them is whether an event ends where they do.
//! What cannot be followed, such as a compressed watch, is a body as any other.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::request_info::RequestInfo;
use crate::{
    drain::Drain,
    upstream::{DownloadError, ResponseBody},
};

/// The body of a watch.
pub(super) struct Watch {
    body: ResponseBody,
    events: Events,
    begun: Pin<Box<WaitForCancellationFutureOwned>>,
    drain: Drain,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// The drain has begun; the event under way is the last one.
    Ending,
    Ended,
}

/// How events follow each other, and where between them the last byte stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Events {
    /// JSON, one event to a line.
    Lines {
        /// The last byte was the end of a line, or there was none.
        between: bool,
    },
    /// Protobuf, each event behind its length in four bytes, the highest first.
    Frames {
        /// The bytes of a length that is not complete.
        length: u32,
        digits: u8,
        /// Bytes of the event that are still to come.
        missing: u32,
    },
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("events", &self.events)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Whether a request asks for a watch.
pub(super) fn is_asked_for(method: &Method, uri: &Uri) -> bool {
    // A cheap test first: most requests are no watch. `%` may hide the word.
    let may = uri
        .query()
        .is_some_and(|query| query.contains("watch") || query.contains('%'))
        || uri.path().contains("/watch/")
        || uri.path().contains('%');
    may && RequestInfo::new(method, uri).verb == "watch"
}

impl Watch {
    /// A watch that ends between two `events` once `drain` begins.
    pub(super) fn new(body: ResponseBody, events: Events, drain: &Drain) -> Box<Self> {
        Box::new(Self {
            body,
            events,
            begun: Box::pin(drain.begun_owned()),
            drain: drain.clone(),
            state: State::Running,
        })
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if self.state == State::Running && self.begun.as_mut().poll(cx).is_ready() {
            self.state = State::Ending;
        }
        if self.state == State::Ending && self.events.are_between() {
            self.end();
        }
        if self.state == State::Ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(frame);
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        if self.state == State::Ending {
            if let Some(length) = self.events.pass_to_end_of_event(&data) {
                data.truncate(length);
                self.end();
            }
        } else {
            self.events.pass(&data);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.state == State::Ended || self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        // A length that was said must be kept; `Events::of` lets none through.
        SizeHint::default()
    }

    fn end(&mut self) {
        self.state = State::Ended;
        self.drain.ended_watch();
    }
}

impl Events {
    /// How the events of this response follow each other; `None` when that cannot be seen.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let is_plain = text(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
        if !is_plain || headers.contains_key(header::CONTENT_LENGTH) {
            return None;
        }
        let mut parts = text(header::CONTENT_TYPE)?.split(';').map(str::trim);
        match parts.next()? {
            "application/json" => Some(Self::Lines { between: true }),
            "application/vnd.kubernetes.protobuf" if parts.any(|part| part == "stream=watch") => {
                Some(Self::Frames {
                    length: 0,
                    digits: 0,
                    missing: 0,
                })
            }
            _ => None,
        }
    }

    fn are_between(&self) -> bool {
        match self {
            Self::Lines { between } => *between,
            Self::Frames {
                digits, missing, ..
            } => *digits == 0 && *missing == 0,
        }
    }

    /// Follows these bytes to their end.
    fn pass(&mut self, data: &[u8]) {
        match self {
            Self::Lines { between } => {
                if let Some(last) = data.last() {
                    *between = *last == b'\n';
                }
            }
            Self::Frames { .. } => {
                let mut rest = data;
                while !rest.is_empty() {
                    let length = self.pass_to_end_of_event(rest).unwrap_or(rest.len());
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
        }
    }

    /// Follows these bytes to the end of the event under way, which is behind so many bytes of them, or
    /// to their own end.
    fn pass_to_end_of_event(&mut self, data: &[u8]) -> Option<usize> {
        match self {
            Self::Lines { between } => {
                let end = data.iter().position(|byte| *byte == b'\n')?;
                *between = true;
                Some(end.saturating_add(1))
            }
            Self::Frames {
                length,
                digits,
                missing,
            } => {
                let mut at = 0;
                loop {
                    if *missing > 0 {
                        let left = u32::try_from(data.len().saturating_sub(at)).unwrap_or(u32::MAX);
                        let taken = left.min(*missing);
                        *missing -= taken;
                        at = at.saturating_add(taken.try_into().unwrap_or(usize::MAX));
                        return (*missing == 0).then_some(at);
                    }
                    let byte = data.get(at)?;
                    at = at.saturating_add(1);
                    *length = (*length << 8) | u32::from(*byte);
                    *digits += 1;
                    if *digits == 4 {
                        (*missing, *length, *digits) = (*length, 0, 0);
                        if *missing == 0 {
                            return Some(at);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn events(content_type: &str) -> Option<Events> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_str(content_type).unwrap(),
        );
        Events::of(&headers)
    }

    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";

    #[test]
    fn only_what_can_be_followed_is() {
        for json in ["application/json", "application/json;stream=watch"] {
            assert!(matches!(events(json), Some(Events::Lines { .. })), "{json}");
        }
        assert!(matches!(events(PROTOBUF), Some(Events::Frames { .. })));
        for other in [
            "application/vnd.kubernetes.protobuf",
            "application/yaml",
            "application/cbor-seq",
            "text/plain",
        ] {
            assert_eq!(events(other), None, "{other}");
        }
        for (name, value) in [("content-encoding", "gzip"), ("content-length", "12")] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(Events::of(&headers), None, "{name}");
        }
    }

    #[test]
    fn a_watch_is_known_by_path_and_query() {
        let asks = |method, target: &str| is_asked_for(&method, &target.parse().unwrap());
        assert!(asks(Method::GET, "/api/v1/pods?watch=true"));
        assert!(asks(Method::GET, "/api/v1/pods?limit=1&watch=1"));
        assert!(asks(Method::GET, "/api/v1/watch/pods"));
        assert!(asks(Method::GET, "/api/v1/%77atch/pods"));
        assert!(asks(Method::GET, "/api/v1/pods?%77atch=1"));
        assert!(!asks(Method::GET, "/api/v1/pods?watch=false"));
        assert!(!asks(Method::GET, "/api/v1/pods?labelSelector=watch"));
        assert!(!asks(Method::POST, "/api/v1/namespaces/a/pods?watch=true"));
        assert!(!asks(Method::GET, "/api/v1/namespaces/a/pods/watch/log"));
    }

    /// The bytes of `stream` in pieces of every size, with the boundaries that are seen at their ends.
    fn boundaries(of: &Events, stream: &[u8], piece: usize) -> Vec<usize> {
        let mut events = of.clone();
        let mut at = 0;
        let mut seen = Vec::new();
        for piece in stream.chunks(piece) {
            events.pass(piece);
            at += piece.len();
            if events.are_between() {
                seen.push(at);
            }
        }
        seen
    }

    #[test]
    fn an_event_ends_where_it_ends_however_the_bytes_are_cut() {
        let lines = b"{}\n{\"a\":\"b\\n\"}\n{}\n".to_vec();
        let frames = [
            &[0, 0, 0, 3][..],
            b"abc",
            &[0, 0, 1, 4],
            &[7; 260],
            &[0, 0, 0, 0],
            &[0, 0, 0, 1],
            b"\n",
        ]
        .concat();
        let ends_of_lines = [3, 15, 18];
        let ends_of_frames = [7, 271, 275, 280];
        for (of, stream, ends) in [
            (
                events("application/json").unwrap(),
                lines,
                &ends_of_lines[..],
            ),
            (events(PROTOBUF).unwrap(), frames, &ends_of_frames[..]),
        ] {
            for piece in 1..=stream.len() {
                let at_piece =
                    |end: &&usize| (**end).is_multiple_of(piece) || **end == stream.len();
                let wanted: Vec<_> = ends.iter().filter(at_piece).copied().collect();
                assert_eq!(boundaries(&of, &stream, piece), wanted, "pieces of {piece}");
                // And from every place the end of the event under way is found.
                let (before, after) = stream.split_at(piece.min(stream.len() - 1));
                let mut events = of.clone();
                events.pass(before);
                let next = ends.iter().find(|end| **end > before.len()).unwrap();
                let found = events.pass_to_end_of_event(after);
                assert_eq!(found, Some(next - before.len()), "behind {piece}");
                assert!(events.are_between());
            }
        }
    }

    #[test]
    fn an_event_that_is_not_complete_has_no_end() {
        let mut lines = events("application/json").unwrap();
        assert_eq!(lines.pass_to_end_of_event(b"{\"a\":"), None);
        let mut frames = events(PROTOBUF).unwrap();
        assert_eq!(frames.pass_to_end_of_event(&[0, 0, 0, 9, 1]), None);
        assert_eq!(frames.pass_to_end_of_event(&[1; 7]), None);
        assert_eq!(frames.pass_to_end_of_event(&[1; 3]), Some(1));
    }
}
