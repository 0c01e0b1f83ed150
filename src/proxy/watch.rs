//! Ends a watch between two events once the drain begins, so that its client resumes from the last event
//! and sees no error.
//!
//! The bytes pass through unchanged. The proxy only tracks where events end. A watch whose events it cannot
//! track, such as a compressed one, is forwarded like any other response.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, header};
use hyper::body::{Body as _, Frame};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::Content;
use crate::{
    drain::Drain,
    upstream::{DownloadError, ResponseBody},
};

/// The body of a watch.
#[derive(Debug)]
pub(super) struct Watch {
    body: ResponseBody,
    events: Events,
    drain_begun: Pin<Box<WaitForCancellationFutureOwned>>,
    drain: Drain,
    state: WatchState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchState {
    Running,
    /// The drain has begun. The current event is the last one.
    Ending,
    Ended,
}

/// The framing of the events, and the position of the last byte in it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Events {
    /// JSON, one event per line.
    Lines {
        /// Whether the last byte ended a line. Also true before the first byte.
        between: bool,
    },
    /// Protobuf. Each event follows its length, a big-endian integer of four bytes.
    Frames {
        /// The length as far as it has arrived.
        length: u32,
        /// How many bytes of the length have arrived.
        length_bytes: u8,
        /// How many bytes of the current event have not arrived.
        missing: u32,
    },
}

/// The body of a response to a watch. After `drain` begins, it ends with the event in progress, or at once if there
/// is none. If the proxy cannot track the events, the body is treated like any other.
pub(super) fn content(body: ResponseBody, headers: &HeaderMap, drain: &Drain) -> Content {
    let Some(events) = Events::from_headers(headers) else {
        return Content::Upstream(body);
    };
    Content::Watch(Box::new(Watch {
        body,
        events,
        drain_begun: Box::pin(drain.begun_owned()),
        drain: drain.clone(),
        state: WatchState::Running,
    }))
}

impl Watch {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if self.state == WatchState::Running && self.drain_begun.as_mut().poll(cx).is_ready() {
            self.state = WatchState::Ending;
        }
        if self.state == WatchState::Ending && self.events.is_between_events() {
            self.end();
        }
        if self.state == WatchState::Ended {
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
        if self.state == WatchState::Ending {
            if let Some(length) = self.events.track_event(&data) {
                data.truncate(length);
                self.end();
            }
        } else {
            self.events.track(&data);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.state == WatchState::Ended || self.body.is_end_stream()
    }

    /// Whether the drain has ended it.
    pub(super) fn is_drained(&self) -> bool {
        self.state == WatchState::Ended
    }

    fn end(&mut self) {
        self.state = WatchState::Ended;
        self.drain.ended_watch();
    }
}

impl Events {
    /// The framing of the events of this response; `None` if the proxy cannot track it.
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let is_plain = text(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
        // A response of a known length must not end early.
        if !is_plain || headers.contains_key(header::CONTENT_LENGTH) {
            return None;
        }
        let mut parts = text(header::CONTENT_TYPE)?.split(';').map(str::trim);
        match parts.next()? {
            "application/json" => Some(Self::Lines { between: true }),
            "application/vnd.kubernetes.protobuf" if parts.any(|part| part == "stream=watch") => {
                Some(Self::Frames {
                    length: 0,
                    length_bytes: 0,
                    missing: 0,
                })
            }
            _ => None,
        }
    }

    fn is_between_events(&self) -> bool {
        match self {
            Self::Lines { between } => *between,
            Self::Frames {
                length_bytes,
                missing,
                ..
            } => *length_bytes == 0 && *missing == 0,
        }
    }

    /// Tracks all of these bytes.
    fn track(&mut self, data: &[u8]) {
        match self {
            Self::Lines { between } => {
                if let Some(last) = data.last() {
                    *between = *last == b'\n';
                }
            }
            Self::Frames { .. } => {
                let mut rest = data;
                while !rest.is_empty() {
                    let length = self.track_event(rest).unwrap_or(rest.len());
                    rest = rest.get(length..).unwrap_or_default();
                }
            }
        }
    }

    /// Tracks these bytes up to the end of the current event, and returns how many bytes that is. Returns
    /// `None` if the event does not end within them.
    fn track_event(&mut self, data: &[u8]) -> Option<usize> {
        match self {
            Self::Lines { between } => {
                let end = data.iter().position(|byte| *byte == b'\n')?;
                *between = true;
                Some(end.saturating_add(1))
            }
            Self::Frames {
                length,
                length_bytes,
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
                    *length_bytes += 1;
                    if *length_bytes == 4 {
                        (*missing, *length, *length_bytes) = (*length, 0, 0);
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
        Events::from_headers(&headers)
    }

    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf;stream=watch";

    #[test]
    fn only_trackable_framings_are_recognized() {
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
            assert_eq!(Events::from_headers(&headers), None, "{name}");
        }
    }

    /// Tracks `stream` in pieces of this size. Returns the event ends that coincide with the end of a piece.
    fn boundaries(of: &Events, stream: &[u8], piece: usize) -> Vec<usize> {
        let mut events = of.clone();
        let mut at = 0;
        let mut seen = Vec::new();
        for piece in stream.chunks(piece) {
            events.track(piece);
            at += piece.len();
            if events.is_between_events() {
                seen.push(at);
            }
        }
        seen
    }

    #[test]
    fn event_end_does_not_depend_on_piece_size() {
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
                // The end of the current event is found from every position.
                let (before, after) = stream.split_at(piece.min(stream.len() - 1));
                let mut events = of.clone();
                events.track(before);
                let next = ends.iter().find(|end| **end > before.len()).unwrap();
                let found = events.track_event(after);
                assert_eq!(found, Some(next - before.len()), "after {piece}");
                assert!(events.is_between_events());
            }
        }
    }

    #[test]
    fn incomplete_event_has_no_end() {
        let mut lines = events("application/json").unwrap();
        assert_eq!(lines.track_event(b"{\"a\":"), None);
        let mut frames = events(PROTOBUF).unwrap();
        assert_eq!(frames.track_event(&[0, 0, 0, 9, 1]), None);
        assert_eq!(frames.track_event(&[1; 7]), None);
        assert_eq!(frames.track_event(&[1; 3]), Some(1));
    }
}
