//! Ends a watch between two events once the drain begins or the apiserver is lost, so that its client resumes from
//! the last event and sees no error.
//!
//! The bytes pass through unchanged. The proxy only tracks where events end. A watch whose events it cannot
//! track, such as one in YAML, is forwarded like any other response.

mod cbor;
mod events;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as _, Frame};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::Content;
use crate::{
    drain::Drain,
    ending::{EndReason, Ending},
    upstream::{DownloadError, ResponseBody},
};
use events::Events;
pub(super) use events::fuzz;

/// The body of a watch.
#[derive(Debug)]
pub(super) struct Watch {
    body: ResponseBody,
    events: Events,
    drain_begun: Pin<Box<WaitForCancellationFutureOwned>>,
    drain: Drain,
    state: WatchState,
    started: Instant,
    /// No byte has passed.
    is_empty: bool,
    /// How the apiserver was lost.
    lost: Option<Ending>,
    /// Set while an empty watch waits for [`MIN_EMPTY_WATCH`].
    delay: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WatchState {
    Running,
    /// The drain has begun. The current event is the last one.
    LastEvent,
    Ended,
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
        started: Instant::now(),
        is_empty: true,
        lost: None,
        delay: None,
    }))
}

impl Watch {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        if self.state == WatchState::Running && self.drain_begun.as_mut().poll(cx).is_ready() {
            self.state = WatchState::LastEvent;
        }
        if self.state == WatchState::LastEvent
            && self.events.is_between_events()
            && !self.is_too_short(cx)
        {
            self.end();
        }
        if self.state == WatchState::Ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            // The apiserver itself ends each watch here every few minutes, so nothing looks complete that is not. An
            // error would cost each reflector a new list of everything, and make `kubectl get -w` print a failure.
            Some(Err(error)) if error.is_lost_connection() && self.events.is_between_events() => {
                self.state = WatchState::Ended;
                self.lost = Some(error.ending());
                return Poll::Ready(None);
            }
            ended => return Poll::Ready(ended),
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        self.is_empty &= data.is_empty();
        if self.state == WatchState::LastEvent {
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

    /// Whether the watch has passed no byte and is younger than [`MIN_EMPTY_WATCH`]. If so, the task wakes at that age.
    fn is_too_short(&mut self, cx: &mut Context<'_>) -> bool {
        let end = self.started + MIN_EMPTY_WATCH;
        let delay = || Box::pin(sleep_until(end));
        self.is_empty
            && self
                .delay
                .get_or_insert_with(delay)
                .as_mut()
                .poll(cx)
                .is_pending()
    }

    /// Who ended the watch before the end of its body: the drain, or an apiserver that was lost.
    pub(super) fn ending(&self) -> Option<Ending> {
        let drained = Ending::by_proxy(EndReason::Drain);
        (self.state == WatchState::Ended).then(|| self.lost.unwrap_or(drained))
    }

    fn end(&mut self) {
        self.state = WatchState::Ended;
        self.drain.ended_watch();
    }
}

/// The drain ends no watch without an event that is younger than this: a reflector of client-go takes a watch that
/// lasted less than a second without an event for a fault, and lists everything again. Such watches are frequent,
/// because a reflector opens its next watch at once, often on the connection that is about to close.
const MIN_EMPTY_WATCH: Duration = Duration::from_secs(1);
